// Package shardfs shows the shards of a dataset as files, to the kernel alone:
// they are devices of an EROFS image (fuse/erofs). A READ is answered in full,
// filled first where blocks are missing, or with an error: what the kernel is
// given short it would take as zeros. The files lie in one folder, named by the
// number of the shard; behind them is the sentinel, which holds nothing and is
// served for as long as the image is mounted. Node ids are numbers of
// shards, so nothing is kept per file. An FS is used by go-fuse from many
// goroutines.
package shardfs

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/fuse"
	"stoker.dev/fuse/erofs"
)

// Reader reads files by row. It must give all of p, or io.EOF with what there
// is before the end of the file, or an error with a kind.
type Reader interface {
	ReadAt(ctx context.Context, row manifest.Row, p []byte, off int64) (int, error)
}

// Options say what is shown.
type Options struct {
	Manifest *manifest.Manifest
	Reader   Reader
	Deadline time.Duration   // of one READ; 0 = fuse.DefaultDeadline
	Until    context.Context // READs that wait fail when it ends; nil = for ever
	Log      *slog.Logger
}

const (
	forever   = 365 * 24 * 3600
	firstNode = gofuse.FUSE_ROOT_ID + 1 // of shard 0
)

var _ gofuse.RawFileSystem = (*FS)(nil)

// FS is the file system of one image's devices.
type FS struct {
	gofuse.RawFileSystem // what is not here answers ENOSYS
	o                    Options
	files                uint64 // shards and the sentinel
	reads, requests      atomic.Int64
}

// New makes the devices of a manifest, which the caller keeps open.
func New(o Options) *FS {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Deadline <= 0 {
		o.Deadline = fuse.DefaultDeadline
	}
	return &FS{RawFileSystem: gofuse.NewDefaultRawFileSystem(), o: o, files: uint64(o.Manifest.Shards()) + 1}
}

// NewEmpty makes devices without a shard: the sentinel, whose name is Name(0).
func NewEmpty() *FS {
	return &FS{RawFileSystem: gofuse.NewDefaultRawFileSystem(), files: 1}
}

// Name is the name of a shard's file; the sentinel is named as the shard behind
// the last one would be.
func Name(shard uint32) string { return strconv.FormatUint(uint64(shard), 10) }

// String names the file system in go-fuse's messages.
func (f *FS) String() string { return "stoker-shards" }

// Reads is how many READs came here: what neither the page cache nor a local
// shard had.
func (f *FS) Reads() int64 { return f.reads.Load() }

// Requests is how many requests of any kind came here.
func (f *FS) Requests() int64 { return f.requests.Load() }

// shard is the shard of a node; the sentinel is number Shards().
func (f *FS) shard(node uint64) (uint32, bool) {
	if node < firstNode || node-firstNode >= f.files {
		return 0, false
	}
	return uint32(node - firstNode), true
}

// bytes is the length of a file: whole blocks, as the image says.
func (f *FS) bytes(n uint32) int64 {
	if uint64(n) == f.files-1 {
		return erofs.SentinelBytes
	}
	return erofs.DeviceBytes(f.o.Manifest.Shard(n))
}

func (f *FS) attr(node uint64, a *gofuse.Attr) bool {
	if node == gofuse.FUSE_ROOT_ID {
		*a = gofuse.Attr{Ino: node, Mode: syscall.S_IFDIR | 0o500, Nlink: 2}
		return true
	}
	n, ok := f.shard(node)
	if ok {
		size := uint64(f.bytes(n))
		*a = gofuse.Attr{Ino: node, Mode: syscall.S_IFREG | 0o400, Nlink: 1, Size: size, Blocks: size / 512}
	}
	return ok
}

// Lookup implements gofuse.RawFileSystem.
func (f *FS) Lookup(_ <-chan struct{}, h *gofuse.InHeader, name string, out *gofuse.EntryOut) gofuse.Status {
	f.requests.Add(1)
	n, err := strconv.ParseUint(name, 10, 32)
	if h.NodeId != gofuse.FUSE_ROOT_ID || err != nil || n >= f.files || Name(uint32(n)) != name {
		return gofuse.ENOENT
	}
	out.NodeId, out.Generation, out.EntryValid, out.AttrValid = n+firstNode, 1, forever, forever
	f.attr(out.NodeId, &out.Attr)
	return gofuse.OK
}

// GetAttr implements gofuse.RawFileSystem.
func (f *FS) GetAttr(_ <-chan struct{}, in *gofuse.GetAttrIn, out *gofuse.AttrOut) gofuse.Status {
	f.requests.Add(1)
	out.AttrValid = forever
	if !f.attr(in.NodeId, &out.Attr) {
		return gofuse.Status(syscall.ESTALE)
	}
	return gofuse.OK
}

// Forget implements gofuse.RawFileSystem: there is nothing to forget.
func (f *FS) Forget(uint64, uint64) {}

// Open implements gofuse.RawFileSystem: ENOSYS makes the kernel open files by
// itself from then on.
func (f *FS) Open(<-chan struct{}, *gofuse.OpenIn, *gofuse.OpenOut) gofuse.Status {
	f.requests.Add(1)
	return gofuse.ENOSYS
}

// Flush implements gofuse.RawFileSystem: as Open.
func (f *FS) Flush(<-chan struct{}, *gofuse.FlushIn) gofuse.Status {
	f.requests.Add(1)
	return gofuse.ENOSYS
}

// Read implements gofuse.RawFileSystem. It ignores interrupts, as the tree view
// does.
func (f *FS) Read(_ <-chan struct{}, in *gofuse.ReadIn, buf []byte) (gofuse.ReadResult, gofuse.Status) {
	f.requests.Add(1)
	n, ok := f.shard(in.NodeId)
	if !ok {
		return nil, gofuse.Status(syscall.ESTALE)
	}
	f.reads.Add(1)
	size := f.bytes(n)
	if in.Offset >= uint64(size) {
		return fuse.Answer(nil), gofuse.OK
	}
	off := int64(in.Offset)
	buf = buf[:min(int64(len(buf)), size-off)]
	ctx := fuse.NewDeadline(f.o.Deadline, f.o.Until)
	defer ctx.Release()
	if err := f.read(ctx, n, buf, off); err != nil {
		errno := fuse.Errno(err)
		f.o.Log.Error("read of a shard failed", "manifest", f.o.Manifest.ID().Short(), "shard", n, "offset", off, "bytes", len(buf), "errno", errno.Error(), "error", err)
		return nil, gofuse.Status(errno)
	}
	return fuse.Answer(buf), gofuse.OK
}

// read fills p with the bytes of shard n from off on: those of its members, and
// zeros between them.
func (f *FS) read(ctx context.Context, n uint32, p []byte, off int64) error {
	if uint64(n) == f.files-1 {
		clear(p)
		return nil
	}
	end, filled := off+int64(len(p)), off
	for m, ok := member(f.o.Manifest, n, off); ok && m.Off < end; m, ok = after(f.o.Manifest, n, m) {
		from, to := max(off, m.Off), min(end, m.Off+m.Bytes)
		if from >= to {
			continue
		}
		clear(p[filled-off : from-off])
		filled = to
		part := p[from-off : to-off]
		got, err := f.o.Reader.ReadAt(ctx, m.Row, part, m.ObjectOff+from-m.Off)
		if got == len(part) {
			continue
		}
		if err == nil || errors.Is(err, io.EOF) {
			err = stoker.Errorf(stoker.KindInternal, "shard.read", f.o.Manifest.Path(m.Row), "%d bytes of %d", got, len(part))
		}
		return err
	}
	clear(p[filled-off:])
	return nil
}

// member returns the last member of shard n that begins at or before off, else
// the first one. Members of a pack lie in the order of their rows, among
// rows of other shards and of none.
func member(m *manifest.Manifest, n uint32, off int64) (manifest.Member, bool) {
	s := m.Shard(n)
	if s.Extent >= 0 {
		at := int64(s.Extent) * stoker.ExtentBytes
		return manifest.Member{Row: s.FirstRow, ObjectOff: at, Bytes: min(m.Entry(s.FirstRow).Bytes-at, s.Bytes)}, true
	}
	lo, hi := s.FirstRow, s.FirstRow+manifest.Row(s.Rows) // what is looked for begins in [lo, hi)
	for hi-lo > 1 {
		mid := lo + (hi-lo)/2
		x, ok := next(m, n, mid, hi)
		switch {
		case !ok || x.Off > off:
			hi = mid
		default:
			lo = x.Row
		}
	}
	return next(m, n, lo, s.FirstRow+manifest.Row(s.Rows))
}

// after returns the member behind x.
func after(m *manifest.Manifest, n uint32, x manifest.Member) (manifest.Member, bool) {
	s := m.Shard(n)
	if s.Extent >= 0 {
		return x, false
	}
	return next(m, n, x.Row+1, s.FirstRow+manifest.Row(s.Rows))
}

// next returns the first member of pack n in rows [from, end).
func next(m *manifest.Manifest, n uint32, from, end manifest.Row) (manifest.Member, bool) {
	for r := from; r < end; r++ {
		if e := m.Entry(r); e.Kind == manifest.File && e.Shard == n {
			return manifest.Member{Row: r, Off: e.Off, Bytes: e.Bytes, FirstBlock: e.FirstBlock}, true
		}
	}
	return manifest.Member{}, false
}
