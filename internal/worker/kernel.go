package worker

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/cache/store"
	"stoker.dev/fuse/erofs"
	"stoker.dev/fuse/mount"
	"stoker.dev/fuse/shardfs"
)

// imageFolder is where images lie while they are mounted, below the first cache
// folder: the kernel reads them from there, so that nobody else may write it.
const imageFolder = "images"

// kernel makes kernel views, where the kernel and the worker's rights allow.
type kernel struct {
	dir string // of images
	err error  // why there are none; nil: they can be made
}

// newKernel tries a small kernel view. What an earlier life left half done goes.
func newKernel(cacheDir string) *kernel {
	k := &kernel{dir: filepath.Join(cacheDir, imageFolder)}
	k.err = os.RemoveAll(k.dir)
	if k.err == nil {
		k.err = os.Mkdir(k.dir, 0o700)
	}
	if k.err == nil {
		k.err = k.try()
	}
	return k
}

// image writes the image of a listing into a folder of its own, under the name
// that the mount table is to show. end removes it: what is mounted stays.
func (k *kernel) image(ctx context.Context, l erofs.Listing, o erofs.Options, name string) (dir *os.File, bytes int64, end func(), err error) {
	at, err := os.MkdirTemp(k.dir, "view-")
	if err != nil {
		return nil, 0, nil, stoker.Errorf(stoker.KindNoSpace, "mount", k.dir, "%w", err)
	}
	remove := func() { _ = os.RemoveAll(at) } // the next life removes what stays
	f, err := os.OpenFile(filepath.Join(at, mount.ImageName(name)), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o400)
	if err == nil {
		if bytes, err = erofs.Write(ctx, f, l, o); err == nil {
			err = f.Truncate(bytes) // to whole blocks
		}
		err = errors.Join(err, f.Close())
	}
	if err == nil {
		dir, err = os.Open(at)
	}
	if err != nil {
		remove()
		if stoker.KindOf(err) == stoker.KindInternal {
			err = stoker.Errorf(stoker.KindNoSpace, "mount", name, "its image cannot be written: %w", err)
		}
		return nil, 0, nil, err
	}
	return dir, bytes, func() { _ = dir.Close(); remove() }, nil
}

// imagePromise begins the names of the promises that count the images' space. A
// kernel view has its image open until it has ended.
const imagePromise = "image-"

// dropImagePromises ends those of the last life: this one writes images anew.
func dropImagePromises(st *store.Store) error {
	return st.UnreserveAll(func(name string) bool { return strings.HasPrefix(name, imagePromise) })
}

// kernelView is what a kernel view holds while it is mounted.
type kernelView struct {
	mounted *mount.Mounted
	fs      *shardfs.FS
	shards  []*store.Shard // local devices: their space counts until the kernel has let them go
	local   bits           // numbers of shards that are local devices
	store   *store.Store
	image   string // the name of its promise
	bytes   int64  // of the image
}

func (w *kernelView) release() {
	_ = w.store.Unreserve(w.image) // the next life drops what stays
	for _, sh := range w.shards {
		sh.Release()
	}
	w.shards = nil
}

// mountKernel mounts a kernel view. Which shards are local is settled here: those
// that are sealed. The others are read through the worker, as in a tree view,
// for as long as the view is mounted.
func (v *views) mountKernel(ctx context.Context, of *view, owner erofs.Options, o mount.Options, old *mount.Left) (*kernelView, error) {
	if v.kernel.err != nil {
		return nil, v.kernel.err
	}
	m, r := of.set.Manifest(), of.info.MountRequest
	dir, bytes, end, err := v.kernel.image(ctx, m, owner, o.Name)
	if err != nil {
		return nil, err
	}
	defer end()
	name := imagePromise + stoker.NewToken()
	if err := v.store.Reserve(name, bytes); err != nil {
		return nil, stoker.Errorf(stoker.KindNoSpace, "mount", r.Dataset, "a kernel view needs room for its image: %w", err)
	}
	w := &kernelView{store: v.store, image: name, bytes: bytes, fs: v.shardsOf(of)}
	devices := make([]mount.Device, m.Shards())
	for n := range devices {
		if devices[n] = w.device(v.store, m.Shard(uint32(n))); devices[n].File != nil {
			w.local.set(n)
		}
	}
	w.mounted, err = mount.Kernel(mount.KernelOptions{Options: o, Images: dir, Devices: devices, Shards: w.fs, NameOf: shardfs.Name, Beneath: old})
	if err != nil {
		w.release()
		return nil, err
	}
	return w, nil
}

// shardsOf makes the file system of a kernel view's shards.
func (v *views) shardsOf(w *view) *shardfs.FS {
	return shardfs.New(shardfs.Options{Manifest: w.set.Manifest(), Reader: w.reader(), Deadline: v.deadline, Until: v.answers, Log: v.logOf(w.info.MountRequest)})
}

// device is a shard's device if it is whole here and will not change any more.
func (w *kernelView) device(st *store.Store, s manifest.Shard) mount.Device {
	sh, ok := st.Get(s.ID)
	if !ok {
		return mount.Device{}
	}
	d := mount.Device{File: sh.File(), Bytes: erofs.DeviceBytes(s)}
	fi, err := d.File.Stat()
	if err != nil || !sh.Sealed() || fi.Size() < d.Bytes { // of an earlier release, it may end within a block
		sh.Release()
		return mount.Device{}
	}
	w.shards = append(w.shards, sh)
	return d
}

// bits is a set of small numbers.
type bits []byte

func (b *bits) set(n int) {
	for len(*b) <= n/8 {
		*b = append(*b, 0)
	}
	(*b)[n/8] |= 1 << (n % 8)
}

func (b bits) has(n int) bool { return n/8 < len(b) && b[n/8]&(1<<(n%8)) != 0 }

// try mounts an image with one file of one byte on a folder of its own and
// reads it: local, and through the worker.
func (k *kernel) try() (err error) {
	base, err := os.MkdirTemp(k.dir, "try-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(base)) }()
	shard := make([]byte, erofs.DeviceBytes(oneByte{}.Shard(0)))
	shard[0] = probeByte
	at := filepath.Join(base, "shard")
	if err := os.WriteFile(at, shard, 0o400); err != nil {
		return err
	}
	f, err := os.Open(at)
	if err != nil {
		return err
	}
	defer f.Close()
	dir, _, end, err := k.image(context.Background(), oneByte{}, erofs.Options{Umask: 0o022}, "stoker-probe")
	if err != nil {
		return err
	}
	defer end()
	view := filepath.Join(base, "view")
	if err := os.Mkdir(view, 0o700); err != nil {
		return err
	}
	m, err := mount.Kernel(mount.KernelOptions{
		Options: mount.Options{Dir: view, Name: "stoker-probe"}, Images: dir,
		Devices: []mount.Device{{File: f, Bytes: int64(len(shard))}}, Shards: shardfs.NewEmpty(), NameOf: func(uint32) string { return shardfs.Name(0) },
	})
	if err != nil {
		return err
	}
	got, err := os.ReadFile(filepath.Join(view, "f"))
	err = errors.Join(err, m.Unmount(true))
	<-m.Done()
	if err == nil && (len(got) != 1 || got[0] != probeByte) {
		err = stoker.Errorf(stoker.KindCorrupt, "mount", view, "a file of one byte is read as %q", got)
	}
	return err
}

const probeByte = 's'

// oneByte is a listing of one file of one byte.
type oneByte struct{}

var _ erofs.Listing = oneByte{}

func (oneByte) ID() stoker.ID { return stoker.ID{'p'} }

func (oneByte) Header() manifest.Header { return manifest.Header{ListedFrom: time.Unix(0, 0)} }

func (oneByte) Rows() int { return 2 }

func (oneByte) Entry(r manifest.Row) manifest.Entry {
	if r == 0 {
		return manifest.Entry{Kind: manifest.Directory, FirstChild: 1, Children: 1}
	}
	return manifest.Entry{Bytes: 1}
}

func (oneByte) ReadDir(_ manifest.Row, _ int, fn func(manifest.Row, []byte) bool) { fn(1, []byte("f")) }

func (oneByte) AppendLink(dst []byte, _ manifest.Row) []byte { return dst }

func (oneByte) Shards() int { return 1 }

func (oneByte) Shard(uint32) manifest.Shard { return manifest.Shard{Bytes: 1, Rows: 1, Extent: -1} }
