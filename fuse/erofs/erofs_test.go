package erofs_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	reader "github.com/erofs/go-erofs"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/fuse/erofs"
	"stoker.dev/fuse/mount"
	"stoker.dev/fuse/shardfs"
	"stoker.dev/internal/testenv"
	"stoker.dev/ufs"
	"stoker.dev/ufs/memufs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// thing is a file, or a link if it has a target.
type thing struct {
	body []byte
	link string
	exec bool
	mod  time.Time
}

// dataset is a tree, its manifest, and a reader of its files.
type dataset struct {
	things map[string]thing
	m      *manifest.Manifest
	fail   atomic.Pointer[error]
}

func (d *dataset) ReadAt(_ context.Context, row manifest.Row, p []byte, off int64) (int, error) {
	if err := d.fail.Load(); err != nil {
		return 0, *err
	}
	return bytes.NewReader(d.things[d.m.Path(row)].body).ReadAt(p, off)
}

func freeze(t testing.TB, things map[string]thing) *dataset {
	t.Helper()
	mem := memufs.New()
	for k, x := range things {
		mem.PutObject(ufs.Object{Key: k, Exec: x.exec, Link: x.link, Version: ufs.Version{ModTime: x.mod}}, x.body)
	}
	b, err := manifest.Build(t.Context(), manifest.BuildOptions{
		Roots: []manifest.Root{{Location: ufs.Location{URI: "mem://b"}}}, TempDir: t.TempDir(),
		Open: func(context.Context, ufs.Location) (ufs.FS, string, error) { return mem, "", nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	m, err := manifest.Open(b.Path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return &dataset{things: things, m: m}
}

// shard returns the bytes of a shard's file, whole blocks of them.
func (d *dataset) shard(n uint32) []byte {
	b := make([]byte, erofs.DeviceBytes(d.m.Shard(n)))
	for _, x := range d.m.Members(n, nil) {
		copy(b[x.Off:], d.things[d.m.Path(x.Row)].body[x.ObjectOff:x.ObjectOff+x.Bytes])
	}
	return b
}

func noise(r *rand.Rand, n int) []byte {
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], r.Uint64())
	b := make([]byte, n)
	_, _ = rand.NewChaCha8(seed).Read(b) // never fails
	return b
}

// anyTree makes a random tree with names and sizes of all sorts.
func anyTree(r *rand.Rand, files int) map[string]thing {
	odd := []string{"ü\nname", "!", "-", ".a", "..b", "...", "a b", "\xff\xfe", "~", strings.Repeat("n", 255), "0", "%41", `\`, "\x01"}
	dirs := []string{""}
	for range files/8 + 1 {
		name := fmt.Sprintf("d%d", r.IntN(1000))
		if r.IntN(4) == 0 {
			name = odd[r.IntN(len(odd))] + "d"
			name = name[max(0, len(name)-255):]
		}
		dirs = append(dirs, dirs[r.IntN(len(dirs))]+name+"/")
	}
	out := map[string]thing{}
	for i := range files {
		name := fmt.Sprintf("f%04d.bin", i)
		if r.IntN(5) == 0 {
			name = odd[r.IntN(len(odd))]
		}
		sizes := []int{0, 1, 4095, 4096, 4097, 8192, 100 << 10, 300_000, r.IntN(20_000)}
		x := thing{body: noise(r, sizes[r.IntN(len(sizes))]), exec: r.IntN(7) == 0, mod: time.Unix(1_600_000_000+int64(r.IntN(1e8)), int64(r.IntN(1e9)))}
		if r.IntN(10) == 0 {
			x = thing{link: strings.Repeat("../x", 1+r.IntN(30)), mod: x.mod}
			if r.IntN(5) == 0 {
				x.link = strings.Repeat("y", 4040+r.IntN(50)) // too long to lie behind its inode
			}
		}
		out[dirs[r.IntN(len(dirs))]+name] = x
	}
	return out
}

func write(t testing.TB, l erofs.Listing, o erofs.Options, at string) *os.File {
	t.Helper()
	f, err := os.Create(at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	n, err := erofs.Write(t.Context(), f, l, o)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(n); err != nil {
		t.Fatal(err)
	}
	return f
}

// compare checks a file system against the source: no thing more, none less.
func (d *dataset) compare(t *testing.T, fsys iofs.FS) {
	t.Helper()
	left := maps.Clone(d.things)
	folders := map[string]bool{}
	for name := range left {
		for at := filepath.Dir(name); at != "."; at = filepath.Dir(at) {
			folders[at] = true
		}
	}
	err := iofs.WalkDir(fsys, ".", func(name string, e iofs.DirEntry, err error) error {
		if err != nil || name == "." {
			return err
		}
		fi, err := e.Info()
		if err != nil {
			return err
		}
		if e.IsDir() {
			if !folders[name] {
				t.Errorf("folder %q is not in the source", name)
			}
			delete(folders, name)
			return nil
		}
		want, ok := left[name]
		delete(left, name)
		if !ok {
			t.Errorf("%q is not in the source", name)
			return nil
		}
		if !fi.ModTime().Equal(want.mod) {
			t.Errorf("%q: modified %v, want %v", name, fi.ModTime(), want.mod)
		}
		if want.link != "" {
			got, err := iofs.ReadLink(fsys, name)
			if err != nil || got != want.link || e.Type() != iofs.ModeSymlink {
				t.Errorf("%q: %v leads to %.50q (%v), want %.50q", name, e.Type(), got, err, want.link)
			}
			return nil
		}
		mode := iofs.FileMode(0o644)
		if want.exec {
			mode = 0o755
		}
		got, err := readFile(fsys, name, fi.Size())
		if err != nil || !bytes.Equal(got, want.body) || fi.Size() != int64(len(want.body)) || fi.Mode().Perm() != mode || !fi.Mode().IsRegular() {
			t.Errorf("%q: %d bytes of %d, mode %v, want %v, %v", name, len(got), len(want.body), fi.Mode(), mode, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for name := range left {
		t.Errorf("%q is missing", name)
	}
	for name := range folders {
		t.Errorf("folder %q is missing", name)
	}
}

// readFile is iofs.ReadFile without a limit of its own.
func readFile(fsys iofs.FS, name string, bytes int64) ([]byte, error) {
	f, err := fsys.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, bytes)
	n, err := io.ReadFull(f, b)
	return b[:n], err
}

// root is a folder of the real file system. Unlike os.DirFS it takes names that
// are not UTF-8.
type root string

func (r root) Open(name string) (iofs.File, error) { return os.Open(filepath.Join(string(r), name)) }
func (r root) ReadDir(name string) ([]iofs.DirEntry, error) {
	return os.ReadDir(filepath.Join(string(r), name))
}
func (r root) ReadLink(name string) (string, error) {
	return os.Readlink(filepath.Join(string(r), name))
}
func (r root) Lstat(name string) (iofs.FileInfo, error) {
	return os.Lstat(filepath.Join(string(r), name))
}

// Trees of all sorts come back as they were, as an independent reader and as
// the kernel see them; from shards that are local, and from those that are not.
func TestTreesComeBack(t *testing.T) {
	for seed := range uint64(5) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 7))
			things := anyTree(r, 1+r.IntN(600))
			if seed == 3 { // two extents, the last one of an odd length
				things["large"] = thing{body: noise(r, stoker.ExtentBytes+12_345), mod: time.Unix(1, 0)}
			}
			d := freeze(t, things)
			image := write(t, d.m, erofs.Options{UID: 1234, GID: 100_000, Umask: 0o022}, filepath.Join(t.TempDir(), "image"))
			again := write(t, d.m, erofs.Options{UID: 1234, GID: 100_000, Umask: 0o022}, filepath.Join(t.TempDir(), "again"))
			one, _ := os.ReadFile(image.Name())
			if two, _ := os.ReadFile(again.Name()); !bytes.Equal(one, two) {
				t.Error("the same manifest gives two images")
			}
			t.Run("reader", func(t *testing.T) { d.compare(t, d.independent(t, image)) })
			for name, local := range map[string]func(uint32) bool{
				"local":  func(uint32) bool { return true },
				"served": func(uint32) bool { return false },
				"mixed":  func(n uint32) bool { return n%2 == 0 },
			} {
				t.Run(name, func(t *testing.T) {
					v := d.mount(t, local)
					mounting := v.fs.Requests()
					d.compare(t, root(v.dir))
					if n := v.fs.Requests() - mounting; mounting == 0 || name == "local" && n != 0 {
						t.Errorf("%d requests to mount it, which looks the sentinel up, and %d to read it", mounting, n)
					}
				})
			}
		})
	}
}

// independent opens the image with a reader that is not ours.
func (d *dataset) independent(t *testing.T, image *os.File) iofs.FS {
	var devices []io.ReaderAt
	for n := range uint32(d.m.Shards()) {
		devices = append(devices, bytes.NewReader(d.shard(n)))
	}
	devices = append(devices, bytes.NewReader(make([]byte, erofs.SentinelBytes)))
	fsys, err := reader.Open(image, reader.WithExtraDevices(devices...))
	if err != nil {
		t.Fatal(err)
	}
	return fsys
}

type view struct {
	dir string
	fs  *shardfs.FS
	m   *mount.Mounted
}

// mount mounts a kernel view, with those shards in local files.
func (d *dataset) mount(t *testing.T, local func(uint32) bool) view {
	t.Helper()
	base := t.TempDir()
	dir := filepath.Join(base, "view")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	const name = "stoker-test:a/b c"
	write(t, d.m, erofs.Options{UID: 1234, GID: 100_000, Umask: 0o022}, filepath.Join(base, mount.ImageName(name)))
	images, err := os.Open(base)
	if err != nil {
		t.Fatal(err)
	}
	defer images.Close()
	devices := make([]mount.Device, d.m.Shards())
	for n := range devices {
		if !local(uint32(n)) {
			continue
		}
		at := filepath.Join(base, fmt.Sprint("shard-", n))
		if err := os.WriteFile(at, d.shard(uint32(n)), 0o400); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(at)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		devices[n] = mount.Device{File: f, Bytes: erofs.DeviceBytes(d.m.Shard(uint32(n)))}
	}
	v := view{dir: dir, fs: shardfs.New(shardfs.Options{Manifest: d.m, Reader: d})}
	v.m, err = mount.Kernel(mount.KernelOptions{
		Options: mount.Options{Dir: dir, Name: name}, Images: images, Devices: devices, Shards: v.fs, NameOf: shardfs.Name,
	})
	if stoker.KindOf(err) == stoker.KindInvalid && !hasEROFS() {
		testenv.Lacks(t, "%v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := v.m.Unmount(true); err != nil {
			t.Error(err)
		}
		<-v.m.Done()
	})
	return v
}

// hasEROFS reports whether the kernel knows the file system at all; without
// it there is nothing to test.
func hasEROFS() bool {
	known, err := os.ReadFile("/proc/filesystems")
	return err == nil && bytes.Contains(known, []byte("erofs"))
}

// What stat(2) shows, and what cannot be done.
func TestAttributes(t *testing.T) {
	d := freeze(t, map[string]thing{
		"d/f": {body: []byte("1234"), mod: time.Unix(1_700_000_000, 123_456_789)}, "d/x.sh": {body: []byte("2"), exec: true, mod: time.Unix(5, 0)},
		"link": {link: "d/f", mod: time.Unix(6, 0)},
	})
	v := d.mount(t, func(uint32) bool { return false })
	for name, want := range map[string]uint32{"": syscall.S_IFDIR | 0o755, "d": syscall.S_IFDIR | 0o755, "d/f": syscall.S_IFREG | 0o644, "d/x.sh": syscall.S_IFREG | 0o755, "link": syscall.S_IFLNK | 0o777} {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(v.dir, name), &st); err != nil || st.Mode != want || st.Uid != 1234 || st.Gid != 100_000 || st.Nlink != 1 {
			t.Errorf("%q: mode %o, owner %d:%d, %d links (%v)", name, st.Mode, st.Uid, st.Gid, st.Nlink, err)
		}
	}
	if b, err := os.ReadFile(filepath.Join(v.dir, "link")); err != nil || string(b) != "1234" {
		t.Errorf("through the link: %q, %v", b, err)
	}
	for what, err := range map[string]error{
		"create": os.WriteFile(filepath.Join(v.dir, "new"), nil, 0o644), "remove": os.Remove(filepath.Join(v.dir, "d/f")),
		"chmod": os.Chmod(filepath.Join(v.dir, "d/f"), 0o777),
	} {
		if !errors.Is(err, syscall.EROFS) {
			t.Errorf("%s: %v", what, err)
		}
	}
	table, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(table)) {
		if f := strings.Fields(line); f[1] == v.dir && (!strings.Contains(f[3], "ro,nosuid,nodev") || !strings.HasSuffix(f[0], "stoker-test:a_b_c")) {
			t.Errorf("mounted as %s", line)
		}
	}
}

// A read that fails gives EIO, never zeros, and the next one succeeds.
func TestFailedFillIsAnError(t *testing.T) {
	d := freeze(t, map[string]thing{"f": {body: bytes.Repeat([]byte("x"), 300_000)}})
	v := d.mount(t, func(uint32) bool { return false })
	for _, kind := range []stoker.Kind{stoker.KindTransient, stoker.KindStale, stoker.KindDenied} {
		var later error = stoker.Errorf(kind, "test", "f", "not now")
		d.fail.Store(&later)
		if b, err := os.ReadFile(filepath.Join(v.dir, "f")); !errors.Is(err, syscall.EIO) || len(b) > 0 {
			t.Errorf("%v: %d bytes, %v", kind, len(b), err)
		}
	}
	short := io.EOF // of a reader that gives less than it must
	d.fail.Store(&short)
	if b, err := os.ReadFile(filepath.Join(v.dir, "f")); !errors.Is(err, syscall.EIO) {
		t.Errorf("short: %d bytes, %v", len(b), err)
	}
	d.fail.Store(nil)
	if b, err := os.ReadFile(filepath.Join(v.dir, "f")); err != nil || !bytes.Equal(b, d.things["f"].body) {
		t.Errorf("afterwards: %d bytes, %v", len(b), err)
	}
}

// A device that is shorter than the image says is refused.
func TestShortDeviceIsRefused(t *testing.T) {
	base := t.TempDir()
	f, err := os.Create(filepath.Join(base, "short"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(4095); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(base, "view")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	_, err = mount.Kernel(mount.KernelOptions{Options: mount.Options{Dir: dir, Name: "x"}, Devices: []mount.Device{{File: f, Bytes: 4096}}})
	if stoker.KindOf(err) != stoker.KindCorrupt || !strings.Contains(err.Error(), "4095 bytes, want a file of 4096") {
		t.Errorf("%v", err)
	}
}

// The sentinel tells when a view has ended, whoever unmounted it, and not
// while somebody has a file of it open.
func TestEndOfAView(t *testing.T) {
	d := freeze(t, map[string]thing{"f": {body: []byte("1234")}})
	v := d.mount(t, func(uint32) bool { return true })
	f, err := os.Open(filepath.Join(v.dir, "f"))
	if err != nil {
		t.Fatal(err)
	}
	if err := v.m.Unmount(false); stoker.KindOf(err) != stoker.KindHeld {
		t.Errorf("unmount in use: %v", err)
	}
	if err := unix.Unmount(v.dir, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(f); err != nil || string(b) != "1234" {
		t.Errorf("what is open: %q, %v", b, err)
	}
	select {
	case <-v.m.Done():
		t.Error("ended with a file open")
	default:
	}
	_ = f.Close()
	<-v.m.Done()
}

// many is a listing of one folder with n files of the same size, of which each
// has its own extents or none.
type many struct {
	n     int
	bytes int64
	bad   func(r manifest.Row, e *manifest.Entry, name *string)
}

func (l many) ID() stoker.ID                                { return stoker.ID{1} }
func (l many) Header() manifest.Header                      { return manifest.Header{ListedFrom: time.Unix(1, 0)} }
func (l many) Rows() int                                    { return l.n + 1 }
func (l many) Shards() int                                  { return l.n * int((l.bytes+stoker.ExtentBytes-1)/stoker.ExtentBytes) }
func (l many) AppendLink(dst []byte, _ manifest.Row) []byte { return dst }
func (l many) Shard(uint32) manifest.Shard {
	return manifest.Shard{Bytes: stoker.ExtentBytes, Extent: 0}
}

func (l many) entry(r manifest.Row) (e manifest.Entry) {
	if r == 0 {
		return manifest.Entry{Kind: manifest.Directory, FirstChild: 1, Children: uint32(l.n)}
	}
	return manifest.Entry{Bytes: l.bytes, Shard: uint32(int(r-1) * (l.Shards() / l.n)), ModTime: time.Unix(int64(r), 0)}
}

func (l many) Entry(r manifest.Row) manifest.Entry {
	if l.bad == nil {
		return l.entry(r)
	}
	e, name := l.entry(r), ""
	l.bad(r, &e, &name)
	return e
}

func (l many) ReadDir(_ manifest.Row, from int, fn func(manifest.Row, []byte) bool) {
	digits := []byte("f00000000")
	for r := manifest.Row(1 + from); r < manifest.Row(1+l.Entry(0).Children); r++ {
		for i, n := 8, r; i > 0; i, n = i-1, n/10 {
			digits[i] = '0' + byte(n%10)
		}
		name := digits
		if l.bad != nil {
			e, changed := l.entry(r), string(digits)
			l.bad(r, &e, &changed)
			name = []byte(changed)
		}
		if !fn(r, name) {
			return
		}
	}
}

// A folder of a million names can be listed and looked up; a file of 9 GiB has
// its length, and each of its bytes is in the right shard.
func TestLargeFoldersAndFiles(t *testing.T) {
	l := many{n: 1_000_000}
	dir := l.mount(t, nil)
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil || len(names) != l.n || names[0] != "f00000001" || names[l.n-1] != "f01000000" {
		t.Fatalf("%d names, %v", len(names), err)
	}
	for _, r := range []int64{1, 2, 4711, int64(l.n / 2), int64(l.n)} {
		if fi, err := os.Stat(filepath.Join(dir, fmt.Sprintf("f%08d", r))); err != nil || fi.ModTime().Unix() != r {
			t.Errorf("row %d: %+v, %v", r, fi, err)
		}
	}
	for _, name := range []string{"f00000000", "f01000001", "a", "z", "f", ".a"} {
		if _, err := os.Stat(filepath.Join(dir, name)); !errors.Is(err, iofs.ErrNotExist) {
			t.Errorf("%s, which is not there: %v", name, err)
		}
	}

	big := many{n: 2, bytes: 9<<30 - 5000}
	base := t.TempDir()
	dir = big.mount(t, func(n int) *os.File { return numbered(t, base, n) })
	if f, err = os.Open(filepath.Join(dir, "f00000002")); err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || fi.Size() != big.bytes {
		t.Errorf("%+v, %v", fi, err)
	}
	for _, off := range []int64{0, stoker.ExtentBytes - 8, stoker.ExtentBytes, 4<<30 - 8, 4 << 30, (big.bytes - 1) &^ (stoker.ExtentBytes - 1)} {
		var b [8]byte
		if _, err := f.ReadAt(b[:], off); err != nil || binary.LittleEndian.Uint64(b[:]) != uint64(144+off/stoker.ExtentBytes) {
			t.Errorf("at %d: shard %d (%v), want %d", off, b, err, 144+off/stoker.ExtentBytes)
		}
	}
}

// An image has as many devices as there can be shards, and each byte is in the right
// one. Most of them are one file here: it is what the kernel opens that counts.
func TestMostDevices(t *testing.T) {
	l, base := many{n: 65_534, bytes: 8192}, t.TempDir()
	other, apart := numbered(t, base, 0), map[int]*os.File{}
	for _, n := range []int{1, 2, 255, 256, 4711, 32_767, 32_768, 65_532, 65_533} {
		apart[n] = numbered(t, base, n)
	}
	began := time.Now()
	dir := l.mount(t, func(n int) *os.File {
		if f := apart[n]; f != nil {
			return f
		}
		return other
	})
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("mounted in %v", took)
	}
	apart[0], apart[3000] = other, other
	for n, f := range apart {
		want := make([]byte, l.bytes)
		if f != other {
			binary.LittleEndian.PutUint64(want, uint64(n))
		}
		if got, err := os.ReadFile(filepath.Join(dir, fmt.Sprintf("f%08d", n+1))); err != nil || !bytes.Equal(got, want) {
			t.Errorf("shard %d: %d bytes, of shard %d, %v", n, len(got), binary.LittleEndian.Uint64(got), err)
		}
	}
}

// mount mounts the listing's image with those files as shards.
func (l many) mount(t *testing.T, shard func(n int) *os.File) (dir string) {
	base := t.TempDir()
	dir = filepath.Join(base, "view")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, l, erofs.Options{Umask: 0o022}, filepath.Join(base, "x"))
	images, err := os.Open(base)
	if err != nil {
		t.Fatal(err)
	}
	defer images.Close()
	devices := make([]mount.Device, l.Shards())
	for n := range devices {
		devices[n] = mount.Device{File: shard(n), Bytes: stoker.ExtentBytes}
	}
	fs := shardfs.NewEmpty()
	m, err := mount.Kernel(mount.KernelOptions{
		Options: mount.Options{Dir: dir, Name: "x"}, Images: images, Devices: devices, Shards: fs, NameOf: func(uint32) string { return shardfs.Name(0) },
	})
	if stoker.KindOf(err) == stoker.KindInvalid && !hasEROFS() {
		testenv.Lacks(t, "%v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Unmount(true); err != nil {
			t.Error(err)
		}
		<-m.Done()
	})
	return dir
}

// numbered is a sparse shard with its number at both ends.
func numbered(t *testing.T, dir string, n int) *os.File {
	f, err := os.Create(filepath.Join(dir, fmt.Sprint(n)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], uint64(n))
	for _, off := range []int64{0, stoker.ExtentBytes - 8} {
		if _, err := f.WriteAt(b[:], off); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// A listing that contradicts itself is refused: the kernel would be led astray
// by its image.
func TestDamagedListings(t *testing.T) {
	for what, bad := range map[string]func(r manifest.Row, e *manifest.Entry, name *string){
		"slash": func(r manifest.Row, _ *manifest.Entry, name *string) {
			if r == 2 {
				*name = "f/2"
			}
		},
		"NUL": func(r manifest.Row, _ *manifest.Entry, name *string) {
			if r == 2 {
				*name = "f00000001\x00"
			}
		},
		"empty": func(r manifest.Row, _ *manifest.Entry, name *string) {
			if r == 1 {
				*name = ""
			}
		},
		"dots": func(r manifest.Row, _ *manifest.Entry, name *string) {
			if r == 1 {
				*name = ".."
			}
		},
		"long": func(r manifest.Row, _ *manifest.Entry, name *string) {
			if r == 3 {
				*name = strings.Repeat("z", 256)
			}
		},
		"twice": func(r manifest.Row, _ *manifest.Entry, name *string) {
			if r == 2 {
				*name = "f00000001"
			}
		},
		"not sorted": func(r manifest.Row, _ *manifest.Entry, name *string) {
			if r == 3 {
				*name = "a"
			}
		},
		"foreign child": func(r manifest.Row, e *manifest.Entry, _ *string) {
			if r == 2 {
				e.Parent = 1
			}
		},
		"orphans": func(r manifest.Row, e *manifest.Entry, _ *string) {
			if r == 0 {
				e.Children--
			}
		},
		"no such child": func(r manifest.Row, e *manifest.Entry, _ *string) {
			if r == 0 {
				e.FirstChild = 2
			}
		},
		"no such shard": func(r manifest.Row, e *manifest.Entry, _ *string) {
			if r == 3 {
				e.Shard = 99
			}
		},
		"no shard": func(r manifest.Row, e *manifest.Entry, _ *string) {
			if r == 3 {
				e.Shard = manifest.NoShard
			}
		},
		"behind its end": func(r manifest.Row, e *manifest.Entry, _ *string) {
			if r == 3 {
				e.Off = stoker.ExtentBytes - 4096
			}
		},
		"not aligned": func(r manifest.Row, e *manifest.Entry, _ *string) {
			if r == 3 {
				e.Off = 100
			}
		},
		"link": func(r manifest.Row, e *manifest.Entry, _ *string) {
			if r == 3 {
				e.Kind = manifest.Symlink
			}
		},
	} {
		f, err := os.Create(filepath.Join(t.TempDir(), "image"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := erofs.Write(t.Context(), f, many{n: 3, bytes: 10_000, bad: bad}, erofs.Options{}); stoker.KindOf(err) != stoker.KindCorrupt {
			t.Errorf("%s: %v", what, err)
		}
		_ = f.Close()
	}
	if _, err := erofs.Write(t.Context(), nil, many{n: 65_535, bytes: 1}, erofs.Options{}); stoker.KindOf(err) != stoker.KindInvalid {
		t.Errorf("too many shards: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := erofs.Write(ctx, nil, many{n: 1, bytes: 1}, erofs.Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("whose caller has gone: %v", err)
	}
}
