// Package memufs is an under file system in memory, for tests. It passes the
// same conformance suite as the real drivers, keeps the same rules (key order,
// versions, conditional reads), and never does I/O. All methods may be called
// concurrently.
package memufs

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"stoker.dev"
	"stoker.dev/ufs"
)

var _ ufs.FS = (*FS)(nil)

// DefaultPage is how many entries a page has at most, as in S3.
const DefaultPage = 1000

// FS is one bucket in memory. New makes it.
type FS struct {
	mu      sync.RWMutex
	objects map[string]object // +checklocks:mu
	keys    []string          // +checklocks:mu — sorted; nil when it must be made anew
	puts    uint64            // +checklocks:mu
}

type object struct {
	ufs.Object
	body []byte
}

// New makes an empty one.
func New() *FS { return &FS{objects: map[string]object{}} }

// Put stores a copy of body with the present time.
func (f *FS) Put(key string, body []byte) { f.PutAt(key, body, time.Now()) }

// PutAt stores a copy of body with a given modification time.
func (f *FS) PutAt(key string, body []byte, mod time.Time) {
	f.PutObject(ufs.Object{Key: key, Version: ufs.Version{ModTime: mod}}, body)
}

// PutObject stores a copy of body with the attributes of o; the tag and the
// size are made here.
func (f *FS) PutObject(o ufs.Object, body []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.puts++
	o.Version.Tag = fmt.Sprintf("%q", fmt.Sprintf("%032x", f.puts))
	o.Version.Bytes = int64(len(body))
	if _, known := f.objects[o.Key]; !known {
		f.keys = nil
	}
	f.objects[o.Key] = object{o, bytes.Clone(body)}
}

// Delete removes an object; one that is not there is fine.
func (f *FS) Delete(key string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.objects, key)
	f.keys = nil
}

func (f *FS) get(key string) (object, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	o, ok := f.objects[key]
	if !ok {
		return o, stoker.Errorf(stoker.KindNotExist, "mem.get", key, "no such object")
	}
	return o, nil
}

// Stat implements ufs.FS.
func (f *FS) Stat(ctx context.Context, key string) (ufs.Object, error) {
	if err := ctx.Err(); err != nil {
		return ufs.Object{}, err
	}
	o, err := f.get(key)
	return o.Object, err
}

// sorted returns the keys in byte order.
func (f *FS) sorted() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.keys == nil {
		f.keys = make([]string, 0, len(f.objects))
		for k := range f.objects {
			f.keys = append(f.keys, k)
		}
		slices.Sort(f.keys)
	}
	return f.keys
}

// List implements ufs.FS. A token is the last key or prefix of the page.
func (f *FS) List(ctx context.Context, o ufs.ListOptions) (ufs.Page, error) {
	var page ufs.Page
	limit := DefaultPage
	if o.MaxKeys > 0 {
		limit = min(limit, o.MaxKeys)
	}
	after := o.StartAfter
	if o.Token != "" {
		after = o.Token[1:] // behind the mark that makes it differ from ""
	}
	keys := f.sorted()
	from, _ := slices.BinarySearch(keys, max(o.Prefix, after))
	last := ""
	for _, key := range keys[from:] {
		if err := ctx.Err(); err != nil {
			return ufs.Page{}, err
		}
		if !strings.HasPrefix(key, o.Prefix) {
			break
		}
		entry, folded := fold(key, o)
		if after != "" && (key <= after || folded && entry == after) {
			continue
		}
		if folded && len(page.Prefixes) > 0 && page.Prefixes[len(page.Prefixes)-1] == entry {
			continue
		}
		if len(page.Objects)+len(page.Prefixes) == limit {
			page.Next = "+" + last
			break
		}
		last = entry
		if folded {
			page.Prefixes = append(page.Prefixes, entry)
		} else if obj, err := f.get(key); err == nil {
			page.Objects = append(page.Objects, obj.Object)
		}
	}
	return page, nil
}

// fold returns the entry that a key is listed as.
func fold(key string, o ufs.ListOptions) (string, bool) {
	if o.Delimiter != "" {
		if i := strings.Index(key[len(o.Prefix):], o.Delimiter); i >= 0 {
			return key[:len(o.Prefix)+i+len(o.Delimiter)], true
		}
	}
	return key, false
}

// Open implements ufs.FS.
func (f *FS) Open(ctx context.Context, key string, want ufs.Version, off, length int64) (io.ReadCloser, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	o, err := f.get(key)
	if err != nil {
		return nil, err
	}
	if !want.Same(o.Version) {
		return nil, stoker.Errorf(stoker.KindStale, "mem.get", key, "is %v now, asked for %v", o.Version, want)
	}
	if off < 0 || length <= 0 || off+length > int64(len(o.body)) {
		return nil, stoker.Errorf(stoker.KindInvalid, "mem.get", key, "%d bytes from %d of %d", length, off, len(o.body))
	}
	return io.NopCloser(bytes.NewReader(o.body[off : off+length])), nil
}
