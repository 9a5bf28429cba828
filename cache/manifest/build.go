package manifest

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"stoker.dev"
	"stoker.dev/ufs"
)

// BuildOptions say what to freeze.
type BuildOptions struct {
	Roots    []Root
	Open     func(context.Context, ufs.Location) (ufs.FS, string, error)
	Base     stoker.ID                         // generation that this one follows; zero = none
	Parallel int                               // listing requests in flight; 0 = 16
	Progress func(objects, bytes, pages int64) // called after each page, from several goroutines; may be nil
	TempDir  string                            // where the file is written; "" = the system's
}

// Built is a finished manifest file, not yet in a store. Remove it when done.
type Built struct {
	Path                 string
	ID                   stoker.ID
	Objects, Bytes       int64
	ListedFrom, ListedTo time.Time
	Unmountable          []Unmountable
}

// Build lists all roots in parallel and writes the manifest. It fails if a
// single page cannot be listed: a manifest is complete or it is none.
func Build(ctx context.Context, o BuildOptions) (*Built, error) {
	if o.Parallel <= 0 {
		o.Parallel = 16
	}
	if len(o.Roots) == 0 || len(o.Roots) > 1<<16-1 {
		return nil, stoker.Errorf(stoker.KindInvalid, "manifest.build", "", "%d roots", len(o.Roots))
	}
	from := time.Now()
	var mu sync.Mutex
	found := make([][]ufs.Object, len(o.Roots))
	err := listRoots(ctx, o, func(root int, objects []ufs.Object) error {
		mu.Lock()
		defer mu.Unlock()
		found[root] = append(found[root], objects...)
		return nil
	})
	if err != nil {
		return nil, err
	}
	items, dirs, lost := place(o.Roots, found)
	top, both, err := tree(items, dirs)
	if err != nil {
		return nil, err
	}
	lost = append(lost, both...)
	slices.SortFunc(lost, func(a, b Unmountable) int { // several roots may have lost one key
		return cmp.Or(strings.Compare(a.Key, b.Key), strings.Compare(a.Reason, b.Reason))
	})
	w := &writer{roots: o.Roots, items: items, unmountable: lost}
	if err := w.rowsOf(top); err != nil {
		return nil, err
	}
	return w.file(o, from, time.Now())
}

// place gives each listed object its path.
func place(roots []Root, found [][]ufs.Object) (items []item, dirs []string, lost []Unmountable) {
	for i, root := range roots {
		if root.Folder != "" {
			dirs = append(dirs, root.Folder)
		}
		prefix := prefixOf(root.URI)
		for _, obj := range found[i] {
			path, dir, reason := pathOf(obj.Key, prefix, root.Folder, obj.Version.Bytes)
			switch {
			case reason != "":
				lost = append(lost, Unmountable{obj.Key, reason})
			case dir:
				dirs = append(dirs, path)
			default:
				items = append(items, item{obj, path, uint16(i)})
			}
		}
		found[i] = nil
	}
	return items, dirs, lost
}

// writer makes the sections of the file.
type writer struct {
	roots       []Root
	items       []item
	unmountable []Unmountable

	rows, restarts, names, strings []byte
	count, objects, dirs           uint64
	bytes                          int64
	last                           string // name of the row before, in its group
	packs                          packer
}

// rowsOf writes the rows breadth first.
func (w *writer) rowsOf(top *node) error {
	type todo struct {
		n   *node
		row uint32
	}
	w.packs.roots = w.roots
	w.name("")
	w.rows = append(w.rows, make([]byte, rowBytes)...)
	w.count = 1
	queue := []todo{{top, 0}}
	for len(queue) > 0 {
		t := queue[0]
		queue = queue[1:]
		names := t.n.children()
		w.directory(t.row, uint32(w.count), uint32(len(names)))
		for _, name := range names {
			if w.count >= uint64(NoShard) {
				return stoker.Errorf(stoker.KindInvalid, "manifest.build", "", "more than %d rows", w.count)
			}
			row := uint32(w.count)
			w.name(name)
			b := make([]byte, rowBytes)
			binary.LittleEndian.PutUint32(b[4:], t.row)
			if d := t.n.dirs[name]; d != nil {
				queue = append(queue, todo{d, row})
			} else {
				w.object(b, Row(row), &w.items[t.n.files[name]])
			}
			w.rows = append(w.rows, b...)
			w.count++
		}
		t.n.dirs, t.n.files = nil, nil
	}
	w.packs.close()
	return nil
}

// directory completes the row of a directory whose children are known now.
func (w *writer) directory(row, first, children uint32) {
	b := w.rows[uint64(row)*rowBytes:][:rowBytes]
	b[0] = byte(Directory)
	binary.LittleEndian.PutUint32(b[8:], first)
	binary.LittleEndian.PutUint32(b[12:], children)
	binary.LittleEndian.PutUint32(b[40:], NoShard)
	w.dirs++
}

// name appends a row's name, front-coded.
func (w *writer) name(name string) {
	if w.count%groupRows == 0 {
		w.restarts = binary.LittleEndian.AppendUint64(w.restarts, uint64(len(w.names)))
		w.names = binary.AppendUvarint(w.names, uint64(len(name)))
		w.names = append(w.names, name...)
		w.last = name
		return
	}
	shared := 0
	for shared < len(name) && shared < len(w.last) && name[shared] == w.last[shared] {
		shared++
	}
	w.names = binary.AppendUvarint(w.names, uint64(shared))
	w.names = binary.AppendUvarint(w.names, uint64(len(name)-shared))
	w.names = append(w.names, name[shared:]...)
	w.last = name
}

// object fills the row of a file or link.
func (w *writer) object(b []byte, row Row, it *item) {
	le := binary.LittleEndian
	le.PutUint16(b[2:], it.root)
	w.objects++
	if !it.Version.ModTime.IsZero() {
		b[1] |= flagTime
		le.PutUint64(b[16:], uint64(it.Version.ModTime.UnixNano()))
	}
	if it.Link != "" {
		b[0] = byte(Symlink)
		le.PutUint64(b[8:], uint64(len(it.Link)))
		w.str(b, it.Link)
		le.PutUint32(b[40:], NoShard)
		return
	}
	if it.Exec {
		b[1] |= flagExec
	}
	w.tag(b, it.Version.Tag)
	w.bytes += it.Version.Bytes
	le.PutUint64(b[8:], uint64(it.Version.Bytes))
	shard, off, block := w.packs.add(row, it)
	le.PutUint32(b[40:], shard)
	le.PutUint16(b[44:], uint16(off/stoker.AlignBytes))
	le.PutUint16(b[46:], uint16(block))
}

func (w *writer) tag(b []byte, tag string) {
	if len(tag) == 34 && tag[0] == '"' && tag[33] == '"' {
		if _, err := hex.Decode(b[24:40], []byte(tag[1:33])); err == nil && strings.ToLower(tag) == tag {
			b[1] |= flagETag
			return
		}
	}
	if tag != "" {
		b[1] |= flagTag
		w.str(b, tag)
	}
}

func (w *writer) str(b []byte, s string) {
	clear(b[24:40])
	binary.LittleEndian.PutUint64(b[24:], uint64(len(w.strings)))
	binary.LittleEndian.PutUint32(b[32:], uint32(len(s)))
	w.strings = append(w.strings, s...)
}

// file writes what was made to a temporary file.
func (w *writer) file(o BuildOptions, from, to time.Time) (*Built, error) {
	roots, err := json.Marshal(w.roots)
	if err != nil {
		return nil, stoker.Errorf(stoker.KindInternal, "manifest.build", "", "%w", err)
	}
	lost := []byte("[]")
	if len(w.unmountable) > 0 {
		if lost, err = json.Marshal(w.unmountable); err != nil {
			return nil, stoker.Errorf(stoker.KindInternal, "manifest.build", "", "%w", err)
		}
	}
	content := [sections][]byte{roots, w.rows, w.restarts, w.names, w.strings, w.packs.table(), lost}
	h := head{base: o.Base, from: from.UnixNano(), to: to.UnixNano(), rows: w.count, objects: w.objects, dirs: w.dirs, bytes: w.bytes}
	sum, at := newIDHash(), uint64(headerBytes)
	for i, c := range content {
		h.offset[i], h.length[i] = at, uint64(len(c))
		at += uint64(len(c))
		hashSection(sum, uint64(len(c)))
		sum.Write(c)
	}
	h.id = stoker.ID(sum.Sum(nil))
	path, err := writeFile(o.TempDir, h.encode(), content[:])
	if err != nil {
		return nil, stoker.Errorf(stoker.KindInternal, "manifest.build", path, "%w", err)
	}
	return &Built{Path: path, ID: h.id, Objects: int64(w.objects), Bytes: w.bytes, ListedFrom: from, ListedTo: to, Unmountable: w.unmountable}, nil
}

func writeFile(dir string, header []byte, content [][]byte) (string, error) {
	f, err := os.CreateTemp(dir, "manifest-*")
	if err != nil {
		return dir, err
	}
	bw := bufio.NewWriterSize(f, 1<<20)
	_, err = bw.Write(header)
	for _, c := range content {
		if err == nil {
			_, err = bytes.NewReader(c).WriteTo(bw)
		}
	}
	if err == nil {
		err = bw.Flush()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return f.Name(), err
}
