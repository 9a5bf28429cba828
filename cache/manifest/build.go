package manifest

import (
	"context"
	"os"
	"strings"
	"sync"
	"time"

	"stoker.dev"
	"stoker.dev/cache/listing"
	"stoker.dev/ufs"
)

// BuildOptions say what to freeze.
type BuildOptions struct {
	Roots    []Root
	Open     func(context.Context, ufs.Location) (ufs.FS, string, error)
	Base     stoker.ID                         // generation that this one follows; zero = none
	Parallel int                               // listing requests in flight; 0 = 16
	Progress func(objects, bytes, pages int64) // called after each page, from several goroutines; may be nil
	Journal  *listing.Journal                  // of this listing, so that another process can go on with it; may be nil
	TempDir  string                            // where the file, and what it is made of, is written; "" = the system's
	Memory   int                               // bytes of the listing held in memory, the rest goes to TempDir; 0 = 64 MiB
}

// maxUnmountable is how many unmountable keys Built names.
const maxUnmountable = 1000

// Built is a finished manifest file, not yet in a store. Remove it when done.
type Built struct {
	Path                 string
	ID                   stoker.ID
	Objects, Bytes       int64
	ListedFrom, ListedTo time.Time
	Unmountable          []Unmountable // the first 1,000; all of them stand in the file
	Lost                 int64         // how many there are
}

// Build lists all roots in parallel and writes the manifest. It fails if a
// single page cannot be listed: a manifest is complete or it is none. Its
// memory does not grow with the listing: what exceeds o.Memory is sorted in
// files without a name, so that nothing is left however Build ends.
func Build(ctx context.Context, o BuildOptions) (*Built, error) {
	if o.Parallel <= 0 {
		o.Parallel = 16
	}
	if o.Memory <= 0 {
		o.Memory = defaultMemory
	}
	if len(o.Roots) == 0 || len(o.Roots) > 1<<16-1 {
		return nil, stoker.Errorf(stoker.KindInvalid, "manifest.build", "", "%d roots", len(o.Roots))
	}
	from := time.Now()
	c := newCollector(o)
	defer c.close()
	if err := c.folders(); err != nil {
		return nil, err
	}
	if err := list(ctx, o, c.page); err != nil {
		return nil, err
	}
	from, to := o.Journal.Since(from), time.Now()
	w := newWriter(o.TempDir, c)
	defer w.close()
	if err := w.rowsOf(ctx); err != nil {
		return nil, err
	}
	return w.file(ctx, o, from, to)
}

// collector gives each listed object its path and makes records of both. Its
// methods may be called concurrently.
type collector struct {
	roots []rootPlace
	rows  *sorter // directories and objects
	lost  *sorter // unmountable keys, with the reason as value

	mu    sync.Mutex
	last  string              // +checklocks:mu — directory of the object before
	known map[string]struct{} // +checklocks:mu — directories that have a record; forgotten when they are many
	size  int                 // +checklocks:mu — bytes of known
	most  int                 // of size
}

func newCollector(o BuildOptions) *collector {
	return &collector{roots: rootPlaces(o.Roots), rows: newSorter(o.TempDir, o.Memory/16*15), lost: newSorter(o.TempDir, o.Memory/16),
		known: map[string]struct{}{}, most: max(o.Memory/16, minMemory)}
}

func (c *collector) close() {
	c.rows.close()
	c.lost.close()
}

// folders enters where roots are joined: that is there even if they are empty.
func (c *collector) folders() error {
	for _, r := range c.roots {
		if err := c.dir(r.folder); err != nil {
			return err
		}
	}
	return nil
}

// page takes one page of root's listing.
func (c *collector) page(root int, objects []ufs.Object) error {
	r := &c.roots[root]
	var key, value []byte
	for i := range objects {
		o := &objects[i]
		path, dir, reason := pathOf(o.Key, r.prefix, r.folder, o.Version.Bytes)
		var err error
		switch {
		case o.Unmountable != "":
			err = c.lost.add([]byte(o.Key), []byte(o.Unmountable))
		case reason != "":
			err = c.lost.add([]byte(o.Key), []byte(reason))
		case dir:
			err = c.dir(path)
		default:
			if at := strings.LastIndexByte(path, '/'); at > 0 {
				err = c.dir(path[:at])
			}
			if err == nil {
				key = appendPath(key[:0], path)
				value = appendListed(value[:0], uint16(root), o, r.derives(o.Key, path))
				err = c.rows.add(key, value)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// dir enters a directory and all above it. One that is entered twice is one.
func (c *collector) dir(path string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if path == c.last {
		return nil
	}
	c.last = path
	for path != "" {
		if _, ok := c.known[path]; ok {
			return nil
		}
		if err := c.rows.add(appendPath(nil, path), []byte{recordDir}); err != nil {
			return err
		}
		path = strings.Clone(path) // else the key that it is part of stays in memory
		c.known[path] = struct{}{}
		c.size += len(path) + 64
		path = path[:max(0, strings.LastIndexByte(path, '/'))]
	}
	if c.size > c.most {
		clear(c.known)
		c.size = 0
	}
	return nil
}

// samePath is the error of two objects with one path.
func samePath(path, a, b []byte) error {
	return stoker.Errorf(stoker.KindInvalid, "manifest.build", string(path),
		"roots overlap: %s and %s have the same path", a, b)
}

// file joins the sections to a manifest file.
func (w *writer) file(ctx context.Context, o BuildOptions, from, to time.Time) (*Built, error) {
	s, err := w.sections(o.Roots)
	if err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(o.TempDir, "manifest-*")
	if err != nil {
		return nil, tempError(o.TempDir, err)
	}
	h := head{base: o.Base, from: from.UnixNano(), to: to.UnixNano(), rows: w.count, objects: w.objects, dirs: w.dirs, bytes: w.bytes}
	err = join(ctx, f, &h, s)
	if cerr := f.Close(); err == nil && cerr != nil {
		err = tempError(f.Name(), cerr)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return nil, err
	}
	return &Built{Path: f.Name(), ID: h.id, Objects: int64(w.objects), Bytes: w.bytes, ListedFrom: from, ListedTo: to,
		Unmountable: w.named, Lost: w.lost}, nil
}
