package manifest

import (
	"bytes"
	"context"

	"stoker.dev"
)

// ChangeKind says what became of a path between two generations.
type ChangeKind uint8

// The kinds of changes.
const (
	Added ChangeKind = iota
	Changed
	Removed
)

// String returns the word for k as it stands in JSON.
func (k ChangeKind) String() string {
	return [...]string{"added", "changed", "removed"}[min(k, Removed)]
}

// Change is one path that is not the same in both manifests.
type Change struct {
	Kind     ChangeKind
	Path     []byte // below the mount, valid during the call; a folder's ends in a slash
	Old, New Row    // in the manifest that has it; 0 in the other
	OldBytes int64
	NewBytes int64
	// Content: another object, or another version of it, lies behind the path;
	// else only how it is shown has changed, such as its exec bit.
	Content bool
}

// Diff calls each for every path that is not the same in both manifests, in
// the order of a walk: by name, a folder's content after its name. Files and
// links are compared by path and by (root, key, version); of folders only
// empty ones are named, the others are what is in them. An error of each, or
// the end of ctx, ends it. It keeps two names for each level of folders and
// nothing else: both files are read where they are mapped, once.
func Diff(ctx context.Context, old, new *Manifest, each func(*Change) error) error {
	if old.h.id == new.h.id {
		return nil
	}
	d := &differ{ctx: ctx, old: old, new: new, each: each}
	return d.folder(0, 0, 0, true, true)
}

// differ is one walk through both.
type differ struct {
	ctx      context.Context
	old, new *Manifest
	each     func(*Change) error
	path     []byte
	levels   []*level
	change   Change
	steps    uint32
}

// level is a folder of the walk, on either side.
type level struct{ old, new cursor }

// folder compares one folder's children. Without old or new there is none on
// that side.
func (d *differ) folder(depth int, oldDir, newDir Row, hasOld, hasNew bool) error {
	if depth > 4096 {
		return stoker.Errorf(stoker.KindCorrupt, "manifest.diff", d.new.h.id.Short(), "folders without end")
	}
	if depth == len(d.levels) {
		d.levels = append(d.levels, &level{})
	}
	a, b := &d.levels[depth].old, &d.levels[depth].new
	a.open(d.old, oldDir, hasOld)
	b.open(d.new, newDir, hasNew)
	at := len(d.path)
	for a.ok || b.ok {
		if d.steps++; d.steps%4096 == 0 && d.ctx.Err() != nil {
			return d.ctx.Err()
		}
		order := 0
		switch {
		case !a.ok:
			order = 1
		case !b.ok:
			order = -1
		default:
			order = bytes.Compare(a.name, b.name)
		}
		name := a.name
		if order > 0 {
			name = b.name
		}
		d.path = append(d.path[:at], name...)
		if err := d.pair(depth, a.row, b.row, order <= 0, order >= 0); err != nil {
			return err
		}
		if order <= 0 {
			a.next()
		}
		if order >= 0 {
			b.next()
		}
	}
	d.path = d.path[:at]
	return nil
}

// pair compares what one name is on either side.
func (d *differ) pair(depth int, oldRow, newRow Row, hasOld, hasNew bool) error {
	var a, b Entry
	if hasOld {
		a = d.old.Entry(oldRow)
	}
	if hasNew {
		b = d.new.Entry(newRow)
	}
	oldDir, newDir := hasOld && a.Kind == Directory, hasNew && b.Kind == Directory
	oldFile, newFile := hasOld && !oldDir, hasNew && !newDir
	c := &d.change
	*c = Change{Path: d.path, OldBytes: a.Bytes, NewBytes: b.Bytes, Content: true}
	var err error
	switch {
	case oldFile && newFile:
		same, content := d.compare(oldRow, newRow)
		if c.Kind, c.Old, c.New, c.Content = Changed, oldRow, newRow, content; !same {
			err = d.each(c)
		}
	case oldFile:
		c.Kind, c.Old, c.NewBytes = Removed, oldRow, 0
		err = d.each(c)
	case newFile:
		c.Kind, c.New, c.OldBytes = Added, newRow, 0
		err = d.each(c)
	}
	if err != nil || !oldDir && !newDir {
		return err
	}
	d.path = append(d.path, '/')
	switch {
	case !oldDir && b.Children == 0:
		*c = Change{Kind: Added, Path: d.path, New: newRow}
		return d.each(c)
	case !newDir && a.Children == 0:
		*c = Change{Kind: Removed, Path: d.path, Old: oldRow}
		return d.each(c)
	}
	return d.folder(depth+1, oldRow, newRow, oldDir, newDir)
}

// compare reports whether two rows of one path, files or links, are the same,
// and whether another object or version lies behind them.
func (d *differ) compare(oldRow, newRow Row) (same, content bool) {
	a, b := d.old.row(oldRow), d.new.row(newRow)
	ea, eb := d.old.Entry(oldRow), d.new.Entry(newRow)
	var x, y *Root
	if int(ea.Root) < len(d.old.roots) && int(eb.Root) < len(d.new.roots) {
		x, y = &d.old.roots[ea.Root], &d.new.roots[eb.Root]
	}
	content = x == nil || x.URI != y.URI || x.Folder != y.Folder || // with one path, so are the keys
		a[0] != b[0] || a[1]&^flagExec != b[1]&^flagExec || !bytes.Equal(a[8:24], b[8:24])
	switch {
	case content:
	case a[1]&flagTag != 0 || EntryKind(a[0]) == Symlink:
		content = !bytes.Equal(d.old.str(a), d.new.str(b))
	default:
		content = !bytes.Equal(a[24:40], b[24:40])
	}
	return !content && a[1] == b[1], content
}

// cursor goes through the children of a directory in name order.
type cursor struct {
	m        *Manifest
	at, end  Row // the next row, and the one after the last
	first    Row
	names    []byte // from row at on
	row      Row    // of name
	name     []byte
	ok       bool // row and name are a child's
	readable bool
}

// open goes to the first child; there is none without have.
func (c *cursor) open(m *Manifest, dir Row, have bool) {
	*c = cursor{m: m, name: c.name[:0], readable: true}
	if e := m.Entry(dir); have && e.Kind == Directory {
		c.first, c.end = e.FirstChild, e.FirstChild+Row(e.Children)
		c.at = c.first / groupRows * groupRows
	}
	c.next()
}

func (c *cursor) next() {
	for c.ok = false; c.at < c.end && c.readable && !c.ok; c.at++ {
		begins := c.at%groupRows == 0
		if begins {
			c.names = c.m.group(c.at)
		}
		c.name, c.names, c.readable = nextName(c.name, 0, c.names, begins)
		c.row, c.ok = c.at, c.readable && c.at >= c.first
	}
}
