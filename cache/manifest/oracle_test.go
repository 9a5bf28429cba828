package manifest

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"hash"
	"hash/fnv"
	"math/bits"
	"slices"
	"strings"
	"sync"
	"time"

	"stoker.dev"
	"stoker.dev/ufs"
)

// This file is the builder that format 1 began with: everything in memory,
// each step plain. It is the oracle of the one that streams: both must make
// the same bytes of one listing.

// oracle builds in memory and returns the file.
func oracle(ctx context.Context, o BuildOptions, from, to time.Time) ([]byte, []Unmountable, error) {
	if o.Parallel <= 0 {
		o.Parallel = 16
	}
	var mu sync.Mutex
	found := make([][]ufs.Object, len(o.Roots))
	err := list(ctx, o, func(root int, objects []ufs.Object) error {
		mu.Lock()
		defer mu.Unlock()
		found[root] = append(found[root], objects...)
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	items, dirs, lost := oldPlace(o.Roots, found)
	top, both, err := tree(items, dirs)
	if err != nil {
		return nil, nil, err
	}
	lost = append(lost, both...)
	slices.SortFunc(lost, func(a, b Unmountable) int {
		return cmp.Or(strings.Compare(a.Key, b.Key), strings.Compare(a.Reason, b.Reason))
	})
	w := &oldWriter{roots: o.Roots, items: items, unmountable: lost}
	if err := w.rowsOf(top); err != nil {
		return nil, nil, err
	}
	return w.encode(o, from, to), lost, nil
}

// item is one listed object and the path it gets.
type item struct {
	ufs.Object
	path string
	root uint16
}

// oldPlace gives each listed object its path.
func oldPlace(roots []Root, found [][]ufs.Object) (items []item, dirs []string, lost []Unmountable) {
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

// oldWriter makes the sections of the file.
type oldWriter struct {
	roots       []Root
	items       []item
	unmountable []Unmountable

	rows, restarts, names, strings []byte
	count, objects, dirs           uint64
	bytes                          int64
	last                           string // name of the row before, in its group
	packs                          oldPacker
}

// rowsOf writes the rows breadth first.
func (w *oldWriter) rowsOf(top *node) error {
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
	w.packs.end()
	return nil
}

// directory completes the row of a directory whose children are known now.
func (w *oldWriter) directory(row, first, children uint32) {
	b := w.rows[uint64(row)*rowBytes:][:rowBytes]
	b[0] = byte(Directory)
	binary.LittleEndian.PutUint32(b[8:], first)
	binary.LittleEndian.PutUint32(b[12:], children)
	binary.LittleEndian.PutUint32(b[40:], NoShard)
	w.dirs++
}

// name appends a row's name, front-coded.
func (w *oldWriter) name(name string) {
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
func (w *oldWriter) object(b []byte, row Row, it *item) {
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

func (w *oldWriter) tag(b []byte, tag string) {
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

func (w *oldWriter) str(b []byte, s string) {
	clear(b[24:40])
	binary.LittleEndian.PutUint64(b[24:], uint64(len(w.strings)))
	binary.LittleEndian.PutUint32(b[32:], uint32(len(s)))
	w.strings = append(w.strings, s...)
}

func (w *oldWriter) encode(o BuildOptions, from, to time.Time) []byte {
	roots, _ := json.Marshal(w.roots)
	lost := []byte("[]")
	if len(w.unmountable) > 0 {
		lost, _ = json.Marshal(w.unmountable)
	}
	content := [sections][]byte{roots, w.rows, w.restarts, w.names, w.strings, w.packs.lines(), lost}
	h := head{base: o.Base, from: from.UnixNano(), to: to.UnixNano(), rows: w.count, objects: w.objects, dirs: w.dirs, bytes: w.bytes}
	sum, at := newIDHash(), uint64(headerBytes)
	for i, c := range content {
		h.offset[i], h.length[i] = at, uint64(len(c))
		at += uint64(len(c))
		hashSection(sum, uint64(len(c)))
		sum.Write(c)
	}
	h.id = stoker.ID(sum.Sum(nil))
	return append(h.encode(), slices.Concat(content[:]...)...)
}

// oldPacker cuts files into shards, in row order.
type oldPacker struct {
	roots  []Root
	shards []Shard
	cur    int // shard that is being filled, if open
	open   bool
	sum    hash.Hash // of the open shard's members
}

// add puts a file into the shards and returns where it begins.
func (p *oldPacker) add(row Row, it *item) (shard uint32, off int64, block uint32) {
	switch n := it.Version.Bytes; {
	case n <= 0:
		return NoShard, 0, 0
	case n >= stoker.ExtentBytes:
		return p.extents(row, it), 0, 0
	}
	padded := (it.Version.Bytes + stoker.AlignBytes - 1) / stoker.AlignBytes * stoker.AlignBytes
	if p.open && p.shards[p.cur].Bytes+padded > packMax {
		p.end()
	}
	if !p.open {
		p.open, p.cur, p.sum = true, len(p.shards), newShardHash()
		p.shards = append(p.shards, Shard{FirstRow: row, Extent: -1})
	}
	s := &p.shards[p.cur]
	off, block = s.Bytes, s.Blocks
	s.Bytes += padded
	s.Blocks += uint32(BlocksOf(it.Version.Bytes))
	s.Rows = uint32(row-s.FirstRow) + 1
	p.member(p.sum, it, 0, it.Version.Bytes)
	shard = uint32(p.cur)
	if s.Bytes >= packMin && oldCutAfter(it.path, padded) {
		p.end()
	}
	return shard, off, block
}

// oldCutAfter decides from path and size alone, so that it decides the same in
// every listing.
func oldCutAfter(path string, padded int64) bool {
	h := fnv.New64a()
	h.Write([]byte(path))
	// FNV mixes its last bytes badly; a multiply spreads them over the word.
	mixed := h.Sum64() * 0x9e3779b97f4a7c15
	mixed ^= mixed >> 32
	mixed *= 0xd6e8feb86659fd93
	limit, _ := bits.Div64(uint64(min(padded, packTarget-1)), 0, packTarget)
	return mixed < limit
}

// end ends the open pack.
func (p *oldPacker) end() {
	if p.open {
		p.shards[p.cur].ID = stoker.ID(p.sum.Sum(nil))
		p.open = false
	}
}

// extents cuts a large object.
func (p *oldPacker) extents(row Row, it *item) uint32 {
	first := uint32(len(p.shards))
	for off := int64(0); off < it.Version.Bytes; off += stoker.ExtentBytes {
		n := min(it.Version.Bytes-off, stoker.ExtentBytes)
		h := newShardHash()
		p.member(h, it, off, n)
		p.shards = append(p.shards, Shard{ID: stoker.ID(h.Sum(nil)), FirstRow: row, Rows: 1,
			Extent: int32(off / stoker.ExtentBytes), Blocks: uint32(BlocksOf(n)), Bytes: n})
	}
	return first
}

// member adds one part to a shard's identity: which bytes of which version of
// which object. Row numbers and credentials have no say.
func (p *oldPacker) member(h hash.Hash, it *item, off, n int64) {
	uri := p.roots[it.root].URI
	for _, s := range []string{uri, it.Key, it.Version.Tag} {
		hashSection(h, uint64(len(s)))
		h.Write([]byte(s))
	}
	mod := int64(0)
	if !it.Version.ModTime.IsZero() {
		mod = it.Version.ModTime.UnixNano()
	}
	for _, v := range []int64{mod, it.Version.Bytes, off, n} {
		hashSection(h, uint64(v))
	}
}

// lines encodes the shard table.
func (p *oldPacker) lines() []byte {
	out := make([]byte, len(p.shards)*shardBytes)
	le := binary.LittleEndian
	for i, s := range p.shards {
		b := out[i*shardBytes:]
		copy(b, s.ID[:])
		le.PutUint32(b[32:], uint32(s.FirstRow))
		le.PutUint32(b[36:], s.Rows)
		le.PutUint32(b[40:], uint32(s.Extent))
		le.PutUint32(b[44:], s.Blocks)
		le.PutUint64(b[48:], uint64(s.Bytes))
	}
	return out
}

// node is a directory while the tree is built.
type node struct {
	name  string
	dirs  map[string]*node
	files map[string]int // index into items
}

func (n *node) sub(name string) *node {
	if n.dirs == nil {
		n.dirs = map[string]*node{}
	}
	d := n.dirs[name]
	if d == nil {
		d = &node{name: name}
		n.dirs[name] = d
	}
	return d
}

// walk finds or makes the directory of a path.
func (n *node) walk(path string) *node {
	for part := range strings.SplitSeq(path, "/") {
		if part != "" {
			n = n.sub(part)
		}
	}
	return n
}

// tree joins the items to one tree. A name that is both file and folder is
// the folder; two objects with one path are refused.
func tree(items []item, dirs []string) (*node, []Unmountable, error) {
	top := &node{}
	for _, d := range dirs {
		top.walk(d)
	}
	for i := range items {
		dir, name := "", items[i].path
		if at := strings.LastIndexByte(name, '/'); at >= 0 {
			dir, name = name[:at], name[at+1:]
		}
		n := top.walk(dir)
		if n.files == nil {
			n.files = map[string]int{}
		}
		if other, twice := n.files[name]; twice {
			return nil, nil, stoker.Errorf(stoker.KindInvalid, "manifest.build", items[i].path,
				"roots overlap: %s and %s have the same path", items[other].Key, items[i].Key)
		}
		n.files[name] = i
	}
	var lost []Unmountable
	var check func(n *node)
	check = func(n *node) {
		for name, d := range n.dirs {
			if i, both := n.files[name]; both {
				lost = append(lost, Unmountable{items[i].Key, "file with the name of a folder"})
				delete(n.files, name)
			}
			check(d)
		}
	}
	check(top)
	return top, lost, nil
}

// children returns the names of a directory in byte order.
func (n *node) children() []string {
	names := make([]string, 0, len(n.dirs)+len(n.files))
	for name := range n.dirs {
		names = append(names, name)
	}
	for name := range n.files {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
