// Package tree is the tree view: a dataset as a FUSE file system, on go-fuse's
// raw API. The node id of a file is its row in the manifest + 1, so nothing is
// kept per inode and every answer can be given by any later life of the
// worker. The manifest never changes, therefore names, attributes, folders and
// data stay in the kernel for as long as it likes, and opens cost no request
// at all (OPEN and OPENDIR are answered ENOSYS once). Only READs of what the
// page cache does not have come here. An FS is used by go-fuse from many
// goroutines.
package tree

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math"
	"sync/atomic"
	"syscall"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"

	"stoker.dev/cache/manifest"
	"stoker.dev/fuse"
)

// Reader reads files by row. It must give all of p, or io.EOF with what there
// is before the end of the file, or an error with a kind.
type Reader interface {
	ReadAt(ctx context.Context, row manifest.Row, p []byte, off int64) (int, error)
}

// Options say what is shown, and to whom it belongs.
type Options struct {
	Manifest *manifest.Manifest
	Reader   Reader
	UID, GID uint32
	Umask    uint32          // taken from 0777 for folders and executables, from 0666 for files
	Deadline time.Duration   // of one READ; 0 = fuse.DefaultDeadline
	Until    context.Context // READs that wait fail when it ends; nil = for ever
	Log      *slog.Logger
}

// forever is a time to live of a year: nothing changes under a view.
const forever = 365 * 24 * 3600

const (
	maxName    = 255
	blockBytes = 4096
	rootNode   = gofuse.FUSE_ROOT_ID
)

var _ gofuse.RawFileSystem = (*FS)(nil)

// FS is the file system of one view.
type FS struct {
	gofuse.RawFileSystem // what is not here answers ENOSYS
	o                    Options
	rows                 uint64
	reads, requests      atomic.Int64
}

// New makes a view of a manifest, which the caller keeps open.
func New(o Options) *FS {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Deadline <= 0 {
		o.Deadline = fuse.DefaultDeadline
	}
	return &FS{RawFileSystem: gofuse.NewDefaultRawFileSystem(), o: o, rows: uint64(o.Manifest.Rows())}
}

// String names the file system in go-fuse's messages.
func (f *FS) String() string { return "stoker" }

// Reads is how many READs came here: misses of the page cache.
func (f *FS) Reads() int64 { return f.reads.Load() }

// Requests is how many requests of any kind came here.
func (f *FS) Requests() int64 { return f.requests.Load() }

// row is the manifest's row of a node.
func (f *FS) row(node uint64) (manifest.Row, bool) {
	f.requests.Add(1)
	if node == 0 || node > f.rows {
		return 0, false
	}
	return manifest.Row(node - rootNode), true
}

func nodeOf(r manifest.Row) uint64 { return uint64(r) + rootNode }

// attr fills in what stat(2) shows.
func (f *FS) attr(r manifest.Row, e *manifest.Entry, a *gofuse.Attr) {
	mode := uint32(syscall.S_IFREG | 0o666)
	switch {
	case e.Kind == manifest.Directory:
		mode = syscall.S_IFDIR | 0o777
	case e.Kind == manifest.Symlink:
		mode = syscall.S_IFLNK | 0o777
	case e.Exec:
		mode = syscall.S_IFREG | 0o777
	}
	size := uint64(e.Bytes)
	if e.Kind == manifest.Directory {
		size = blockBytes
	}
	sec, nsec := uint64(0), uint32(0)
	if t := e.ModTime; !t.IsZero() && t.Unix() > 0 {
		sec, nsec = uint64(t.Unix()), uint32(t.Nanosecond())
	}
	if e.Kind != manifest.Symlink {
		mode &^= f.o.Umask & 0o777
	}
	*a = gofuse.Attr{
		Ino: nodeOf(r), Size: size, Blocks: (size + 511) / 512, Blksize: 512 << 10, // what a reader should ask for at a time
		Atime: sec, Mtime: sec, Ctime: sec, Atimensec: nsec, Mtimensec: nsec, Ctimensec: nsec,
		Mode: mode, Owner: gofuse.Owner{Uid: f.o.UID, Gid: f.o.GID},
		Nlink: 1, // of a folder it means that sub-folders are not counted
	}
}

func (f *FS) entry(r manifest.Row, out *gofuse.EntryOut) {
	e := f.o.Manifest.Entry(r)
	out.NodeId, out.Generation = nodeOf(r), 1
	out.EntryValid, out.AttrValid = forever, forever
	f.attr(r, &e, &out.Attr)
}

// Lookup implements gofuse.RawFileSystem.
func (f *FS) Lookup(_ <-chan struct{}, h *gofuse.InHeader, name string, out *gofuse.EntryOut) gofuse.Status {
	dir, ok := f.row(h.NodeId)
	if !ok {
		return gofuse.Status(syscall.ESTALE)
	}
	if len(name) > maxName {
		return gofuse.Status(syscall.ENAMETOOLONG)
	}
	if f.o.Manifest.Entry(dir).Kind != manifest.Directory {
		return gofuse.ENOTDIR
	}
	child, ok := f.o.Manifest.Lookup(dir, []byte(name))
	if !ok {
		out.NodeId, out.EntryValid = 0, forever // a name that is not there stays so
		return gofuse.OK
	}
	f.entry(child, out)
	return gofuse.OK
}

// GetAttr implements gofuse.RawFileSystem.
func (f *FS) GetAttr(_ <-chan struct{}, in *gofuse.GetAttrIn, out *gofuse.AttrOut) gofuse.Status {
	r, ok := f.row(in.NodeId)
	if !ok {
		return gofuse.Status(syscall.ESTALE)
	}
	e := f.o.Manifest.Entry(r)
	out.AttrValid = forever
	f.attr(r, &e, &out.Attr)
	return gofuse.OK
}

// Forget implements gofuse.RawFileSystem: there is nothing to forget.
func (f *FS) Forget(uint64, uint64) {}

// Readlink implements gofuse.RawFileSystem.
func (f *FS) Readlink(_ <-chan struct{}, h *gofuse.InHeader) ([]byte, gofuse.Status) {
	r, ok := f.row(h.NodeId)
	if !ok || f.o.Manifest.Entry(r).Kind != manifest.Symlink {
		return nil, gofuse.EINVAL
	}
	return f.o.Manifest.AppendLink(nil, r), gofuse.OK
}

// Open implements gofuse.RawFileSystem: ENOSYS makes the kernel open files by
// itself from then on, and keep their pages.
func (f *FS) Open(<-chan struct{}, *gofuse.OpenIn, *gofuse.OpenOut) gofuse.Status {
	f.requests.Add(1)
	return gofuse.ENOSYS
}

// Flush implements gofuse.RawFileSystem: ENOSYS makes the kernel close files by
// itself, too.
func (f *FS) Flush(<-chan struct{}, *gofuse.FlushIn) gofuse.Status {
	f.requests.Add(1)
	return gofuse.ENOSYS
}

// OpenDir implements gofuse.RawFileSystem: as Open, for folders.
func (f *FS) OpenDir(<-chan struct{}, *gofuse.OpenIn, *gofuse.OpenOut) gofuse.Status {
	f.requests.Add(1)
	return gofuse.ENOSYS
}

// ReadDir implements gofuse.RawFileSystem. Position 0 is ".", 1 "..", the
// children follow.
func (f *FS) ReadDir(_ <-chan struct{}, in *gofuse.ReadIn, out *gofuse.DirEntryList) gofuse.Status {
	return f.readDir(in, func(r manifest.Row, e gofuse.DirEntry) bool { return out.AddDirEntry(e) })
}

// ReadDirPlus implements gofuse.RawFileSystem: names with their attributes, so
// that a walk costs no request for each file.
func (f *FS) ReadDirPlus(_ <-chan struct{}, in *gofuse.ReadIn, out *gofuse.DirEntryList) gofuse.Status {
	return f.readDir(in, func(r manifest.Row, e gofuse.DirEntry) bool {
		o := out.AddDirLookupEntry(e)
		if o == nil {
			return false
		}
		if e.Name != "." && e.Name != ".." {
			f.entry(r, o)
		}
		return true
	})
}

func (f *FS) readDir(in *gofuse.ReadIn, add func(manifest.Row, gofuse.DirEntry) bool) gofuse.Status {
	dir, ok := f.row(in.NodeId)
	if !ok {
		return gofuse.Status(syscall.ESTALE)
	}
	m := f.o.Manifest
	e := m.Entry(dir)
	if e.Kind != manifest.Directory {
		return gofuse.ENOTDIR
	}
	at := in.Offset
	for i, d := range []struct {
		name string
		row  manifest.Row
	}{{".", dir}, {"..", e.Parent}} {
		if at == uint64(i) {
			if !add(d.row, gofuse.DirEntry{Name: d.name, Ino: nodeOf(d.row), Mode: syscall.S_IFDIR, Off: at + 1}) {
				return gofuse.OK
			}
			at++
		}
	}
	if at-2 >= uint64(e.Children) {
		return gofuse.OK
	}
	m.ReadDir(dir, int(at-2), func(r manifest.Row, name []byte) bool {
		mode := uint32(syscall.S_IFREG)
		switch m.Entry(r).Kind {
		case manifest.Directory:
			mode = syscall.S_IFDIR
		case manifest.Symlink:
			mode = syscall.S_IFLNK
		}
		at++
		return add(r, gofuse.DirEntry{Name: string(name), Ino: nodeOf(r), Mode: mode, Off: at})
	})
	return gofuse.OK
}

// Read implements gofuse.RawFileSystem. It ignores interrupts: the kernel reads
// ahead asynchronously, so that a process that is killed does not wait for the
// answer, and no other signal may end the read of a file.
func (f *FS) Read(_ <-chan struct{}, in *gofuse.ReadIn, buf []byte) (gofuse.ReadResult, gofuse.Status) {
	r, ok := f.row(in.NodeId)
	if !ok {
		return nil, gofuse.Status(syscall.ESTALE)
	}
	f.reads.Add(1)
	if in.Offset > math.MaxInt64 {
		return nil, gofuse.EINVAL
	}
	ctx := fuse.NewDeadline(f.o.Deadline, f.o.Until)
	defer ctx.Release()
	n, err := f.o.Reader.ReadAt(ctx, r, buf, int64(in.Offset))
	if err != nil && !errors.Is(err, io.EOF) {
		errno := fuse.Errno(err)
		if errno != syscall.EINTR {
			f.o.Log.Error("read failed", "path", f.o.Manifest.Path(r), "offset", in.Offset, "errno", errno.Error(), "error", err)
		}
		return nil, gofuse.Status(errno)
	}
	return fuse.Answer(buf[:n]), gofuse.OK
}

// StatFs implements gofuse.RawFileSystem: a full disk of the dataset's size.
func (f *FS) StatFs(_ <-chan struct{}, _ *gofuse.InHeader, out *gofuse.StatfsOut) gofuse.Status {
	f.requests.Add(1)
	m := f.o.Manifest
	*out = gofuse.StatfsOut{
		Blocks: uint64(m.Bytes()+blockBytes-1) / blockBytes, Files: f.rows,
		Bsize: blockBytes, Frsize: blockBytes, NameLen: maxName,
	}
	return gofuse.OK
}
