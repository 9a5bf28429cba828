package manifest

import (
	"bytes"
	"strings"

	"stoker.dev"
)

// Twins finds in another manifest the objects that one has: those of the same
// URI, key and version, as in a shard's id. It remembers the folder it was last
// asked about, so that one goroutine uses it at a time.
type Twins struct {
	m, other *Manifest
	roots    []int // of other, for each root of m; -1: none has its URI

	asked  bool
	root   uint16 // of what was asked last
	parent Row
	dir    Row // its folder in other
	found  bool
}

// NewTwins looks for what m and other have in common; false if they have no
// root in common.
func NewTwins(m, other *Manifest) (*Twins, bool) {
	t := &Twins{m: m, other: other, roots: make([]int, len(m.roots))}
	common := false
	for i, root := range m.roots {
		t.roots[i] = -1
		for j, o := range other.roots {
			if t.roots[i] < 0 && strings.TrimRight(o.URI, "/") == strings.TrimRight(root.URI, "/") {
				t.roots[i], common = j, true
			}
		}
	}
	return t, common
}

// Row returns the row of the same object in the other manifest; false if there
// is none, or nothing tells its versions apart. It does not allocate while the
// rows asked for are of one folder.
func (t *Twins) Row(r Row) (Row, bool) {
	e := t.m.Entry(r)
	if e.Kind != File || int(e.Root) >= len(t.roots) || t.roots[e.Root] < 0 {
		return 0, false
	}
	if !t.asked || e.Root != t.root || e.Parent != t.parent {
		t.asked, t.root, t.parent = true, e.Root, e.Parent
		t.dir, t.found = t.folder(e.Root, e.Parent)
	}
	if !t.found {
		return 0, false
	}
	var space [256]byte
	twin, ok := t.other.Lookup(t.dir, t.m.AppendName(space[:0], r))
	if !ok || int(t.other.Entry(twin).Root) != t.roots[e.Root] || !t.sameVersion(t.m.row(r), t.other.row(twin)) {
		return 0, false
	}
	return twin, true
}

// folder finds a folder below a root, wherever that root is joined.
func (t *Twins) folder(root uint16, dir Row) (Row, bool) {
	path := t.m.Path(dir)
	if at := t.m.roots[root].Folder; at != "" {
		path = strings.TrimPrefix(path[min(len(path), len(at)):], "/")
	}
	if at := t.other.roots[t.roots[root]].Folder; at != "" {
		path = strings.TrimSuffix(at+"/"+path, "/")
	}
	return t.other.LookupPath(path)
}

// sameVersion compares size, tag and time of two rows as they are in the files.
func (t *Twins) sameVersion(a, b []byte) bool {
	const versioned = flagETag | flagTag | flagTime
	if EntryKind(b[0]) != File || a[1]&versioned == 0 || a[1]&versioned != b[1]&versioned || !bytes.Equal(a[8:24], b[8:24]) {
		return false
	}
	if a[1]&flagTag != 0 {
		return bytes.Equal(t.m.str(a), t.other.str(b))
	}
	return bytes.Equal(a[24:40], b[24:40])
}

// Part returns where the bytes of a file from off on lie: the shard, and what
// it has of the file; false if no shard has them. off is 0, or where an extent
// of a large object begins.
func (m *Manifest) Part(r Row, off int64) (shard uint32, p Member, ok bool) {
	n := m.ShardOf(r, off)
	if n == NoShard {
		return 0, Member{}, false
	}
	e, s := m.Entry(r), m.Shard(n)
	p = Member{Row: r, Off: e.Off, ObjectOff: off, Bytes: e.Bytes, FirstBlock: e.FirstBlock}
	if e.Bytes >= stoker.ExtentBytes {
		p = Member{Row: r, ObjectOff: off, Bytes: min(e.Bytes-off, stoker.ExtentBytes)}
	}
	return n, p, s.fits(&p)
}
