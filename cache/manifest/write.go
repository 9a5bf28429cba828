package manifest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"hash"
	"io"
	"os"

	"stoker.dev"
)

// writer makes the sections of the file from sorted records, each as a stream.
// What a row can only know later, the children of a directory, is a stream of
// its own, merged in when the sections are joined.
type writer struct {
	c *collector

	rows, restarts, names, strings, lostKeys spool

	children spool // first child u32, number u32 of each directory, in row order
	pending  queue // directories whose children have not come: row u32, length of path u16, path
	packs    packer

	count, objects, dirs uint64
	bytes                int64
	lastName             []byte // of the row before, in its group

	dir   openDir
	obj   object
	key   []byte // of the record before
	value []byte // of the record before, if it is an object's
	named []Unmountable
	lost  int64
}

// openDir is the directory whose children come now.
type openDir struct {
	path     []byte // slashes as 0
	row      uint32
	first, n uint32
}

func newWriter(dir string, c *collector) *writer {
	at := spool{dir: dir}
	return &writer{c: c, rows: at, restarts: at, names: at, strings: at, lostKeys: at, children: at,
		pending: queue{spool: at}, packs: packer{roots: c.roots, table: at, packs: at}}
}

func (w *writer) close() {
	for _, s := range []*spool{&w.rows, &w.restarts, &w.names, &w.strings, &w.lostKeys, &w.children, &w.pending.spool, &w.packs.table, &w.packs.packs} {
		s.close()
	}
}

// rowsOf writes the rows breadth first, as the records come.
func (w *writer) rowsOf(ctx context.Context) error {
	if err := w.directory(nil, nil, 0); err != nil { // the root
		return err
	}
	w.dir.first = 1
	if _, err := w.pending.read(make([]byte, 6)); err != nil { // it is open already
		return err
	}
	m, _, err := w.c.rows.sorted()
	if err != nil {
		return err
	}
	for i := 0; m.ok(); i++ {
		if i%4096 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		if err := w.record(m.head()); err != nil {
			return err
		}
		if err := m.next(); err != nil {
			return err
		}
	}
	for open := true; open; {
		if open, err = w.nextDir(); err != nil {
			return err
		}
	}
	w.c.rows.close() // its space is needed no more
	return w.packs.close()
}

// record takes one record. A name that is both file and folder is the folder;
// two objects with one path are refused.
func (w *writer) record(key, value []byte) error {
	again := bytes.Equal(key, w.key)
	if again && value[0] == recordDir {
		return nil
	}
	if again {
		w.obj.decode(key, value, w.c.roots)
		if len(w.value) > 0 {
			path, mine := bytes.Clone(w.obj.path), bytes.Clone(w.obj.key)
			w.obj.decode(key, w.value, w.c.roots)
			return samePath(path, w.obj.key, mine)
		}
		w.value = append(w.value[:0], value...)
		return w.c.lost.add(w.obj.key, []byte("file with the name of a folder"))
	}
	w.key, w.value = append(w.key[:0], key...), w.value[:0]
	parent, name := splitPath(key)
	for !bytes.Equal(w.dir.path, parent) {
		if open, err := w.nextDir(); err != nil {
			return err
		} else if !open {
			return stoker.Errorf(stoker.KindInternal, "manifest.build", string(key[2:]), "its folder has no row")
		}
	}
	if w.count >= uint64(NoShard) {
		return stoker.Errorf(stoker.KindInvalid, "manifest.build", "", "more than %d rows: split the dataset", w.count)
	}
	w.dir.n++
	if value[0] == recordDir {
		return w.directory(key[2:], name, w.dir.row)
	}
	w.value = append(w.value[:0], value...)
	w.obj.decode(key, value, w.c.roots)
	return w.object(name)
}

// nextDir ends the open directory and opens the next one; false if there is none.
func (w *writer) nextDir() (bool, error) {
	if err := w.children.room(); err != nil {
		return false, err
	}
	le := binary.LittleEndian
	w.children.buf = le.AppendUint32(le.AppendUint32(w.children.buf, w.dir.first), w.dir.n)
	var b [6]byte
	if ok, err := w.pending.read(b[:]); err != nil || !ok {
		return false, err
	}
	w.dir.row, w.dir.first, w.dir.n = le.Uint32(b[:]), uint32(w.count), 0
	n := int(le.Uint16(b[4:]))
	w.dir.path = append(w.dir.path[:0], make([]byte, n)...)
	ok, err := w.pending.read(w.dir.path)
	if err == nil && !ok {
		err = stoker.Errorf(stoker.KindInternal, "manifest.build", "", "the queue of folders ends early")
	}
	return true, err
}

// directory writes the row of a directory, its children left open.
func (w *writer) directory(path, name []byte, parent uint32) error {
	if err := w.pending.room(); err != nil {
		return err
	}
	le := binary.LittleEndian
	q := le.AppendUint16(le.AppendUint32(w.pending.buf, uint32(w.count)), uint16(len(path)))
	w.pending.buf = append(q, path...)
	w.dirs++
	return w.row(name, func(b []byte) error {
		b[0] = byte(Directory)
		le.PutUint32(b[4:], parent)
		le.PutUint32(b[40:], NoShard)
		return nil
	})
}

// row appends a row with its name; fill gets 48 zero bytes.
func (w *writer) row(name []byte, fill func(b []byte) error) error {
	if err := w.name(name); err != nil {
		return err
	}
	if err := w.rows.room(); err != nil {
		return err
	}
	var zero [rowBytes]byte
	w.rows.buf = append(w.rows.buf, zero[:]...)
	err := fill(w.rows.buf[len(w.rows.buf)-rowBytes:])
	w.count++
	return err
}

// name appends a row's name, front-coded.
func (w *writer) name(name []byte) error {
	if err := w.names.room(); err != nil {
		return err
	}
	b, shared := w.names.buf, 0
	if w.count%groupRows == 0 {
		if err := w.restarts.room(); err != nil {
			return err
		}
		w.restarts.buf = binary.LittleEndian.AppendUint64(w.restarts.buf, uint64(w.names.len()))
	} else {
		for shared < len(name) && shared < len(w.lastName) && name[shared] == w.lastName[shared] {
			shared++
		}
		b = binary.AppendUvarint(b, uint64(shared))
	}
	b = binary.AppendUvarint(b, uint64(len(name)-shared))
	w.names.buf = append(b, name[shared:]...)
	w.lastName = append(w.lastName[:0], name...)
	return nil
}

// object writes the row of the file or link in w.obj.
func (w *writer) object(name []byte) error {
	le, o, row := binary.LittleEndian, &w.obj, Row(w.count)
	w.objects++
	return w.row(name, func(b []byte) error {
		le.PutUint16(b[2:], o.root)
		le.PutUint32(b[4:], w.dir.row)
		if o.timed {
			b[1] |= flagTime
			le.PutUint64(b[16:], uint64(o.time))
		}
		if len(o.link) > 0 {
			b[0] = byte(Symlink)
			le.PutUint64(b[8:], uint64(len(o.link)))
			le.PutUint32(b[40:], NoShard)
			return w.str(b, o.link)
		}
		if o.exec {
			b[1] |= flagExec
		}
		if o.etag != nil {
			b[1] |= flagETag
			copy(b[24:40], o.etag)
		} else if len(o.tag) > 0 {
			b[1] |= flagTag
			if err := w.str(b, o.tag); err != nil {
				return err
			}
		}
		w.bytes += o.bytes
		le.PutUint64(b[8:], uint64(o.bytes))
		shard, off, block, err := w.packs.add(row, o)
		le.PutUint32(b[40:], shard)
		le.PutUint16(b[44:], uint16(off/stoker.AlignBytes))
		le.PutUint16(b[46:], uint16(block))
		return err
	})
}

// str puts a string into the string table and its place into row b.
func (w *writer) str(b, s []byte) error {
	if err := w.strings.room(); err != nil {
		return err
	}
	binary.LittleEndian.PutUint64(b[24:], uint64(w.strings.len()))
	binary.LittleEndian.PutUint32(b[32:], uint32(len(s)))
	w.strings.buf = append(w.strings.buf, s...)
	return nil
}

// unmountable writes that section: JSON, sorted by key and reason.
func (w *writer) unmountable() error {
	m, n, err := w.c.lost.sorted()
	if err != nil {
		return err
	}
	w.lost = n
	open := byte('[')
	for m.ok() {
		key, reason := m.head()
		u := Unmountable{string(key), string(reason)}
		if len(w.named) < maxUnmountable {
			w.named = append(w.named, u)
		}
		b, err := json.Marshal(u)
		if err != nil {
			return stoker.Errorf(stoker.KindInternal, "manifest.build", "", "%w", err)
		}
		if err := w.lostKeys.room(); err != nil {
			return err
		}
		w.lostKeys.buf = append(append(w.lostKeys.buf, open), b...)
		open = ','
		if err := m.next(); err != nil {
			return err
		}
	}
	if n == 0 {
		w.lostKeys.buf = append(w.lostKeys.buf, open)
	}
	w.lostKeys.buf = append(w.lostKeys.buf, ']')
	return nil
}

// section is one to be written: n bytes of from.
type section struct {
	n    int64
	from io.Reader
}

// sections returns all of them, complete.
func (w *writer) sections(roots []Root) (out [sections]section, err error) {
	b, err := json.Marshal(roots)
	if err != nil {
		return out, stoker.Errorf(stoker.KindInternal, "manifest.build", "", "%w", err)
	}
	if err := w.unmountable(); err != nil {
		return out, err
	}
	out[secRoots] = section{int64(len(b)), bytes.NewReader(b)}
	for i, s := range [sections]*spool{secRows: &w.rows, secRestarts: &w.restarts, secNames: &w.names, secStrings: &w.strings,
		secShards: &w.packs.table, secUnmountable: &w.lostKeys} {
		if s != nil {
			out[i] = section{s.len(), s.reader()}
		}
	}
	out[secRows].from = newFiller(out[secRows].from, rowBytes, w.children.reader(),
		func(row []byte) []byte {
			if EntryKind(row[0]) == Directory {
				return row[8:16]
			}
			return nil
		})
	out[secShards].from = newFiller(out[secShards].from, shardBytes, w.packs.packs.reader(),
		func(line []byte) []byte {
			if isGap(line) {
				return line
			}
			return nil
		})
	return out, nil
}

// filler reads lines of equal length and fills the gap that some of them have
// with the next piece of another stream.
type filler struct {
	lines, pieces *bufio.Reader
	gap           func(line []byte) []byte // nil: none
	line          []byte
	rest          []byte // of line, not yet read
}

func newFiller(lines io.Reader, length int, pieces io.Reader, gap func(line []byte) []byte) *filler {
	return &filler{lines: bufio.NewReaderSize(lines, 32<<10), pieces: bufio.NewReaderSize(pieces, 4<<10), gap: gap, line: make([]byte, length)}
}

// Read implements io.Reader.
func (f *filler) Read(p []byte) (n int, err error) {
	for n < len(p) {
		if len(f.rest) == 0 {
			if _, err := io.ReadFull(f.lines, f.line); err != nil {
				if n > 0 && err == io.EOF {
					return n, nil
				}
				return n, err
			}
			if gap := f.gap(f.line); gap != nil {
				if _, err := io.ReadFull(f.pieces, gap); err != nil {
					return n, io.ErrUnexpectedEOF
				}
			}
			f.rest = f.line
		}
		c := copy(p[n:], f.rest)
		n, f.rest = n+c, f.rest[c:]
	}
	return n, nil
}

// join writes header and sections to f and completes h with where they lie and
// the id.
func join(ctx context.Context, f *os.File, h *head, s [sections]section) error {
	sum, at, buf := newIDHash(), int64(headerBytes), make([]byte, smallChunk)
	for i := range s {
		h.offset[i], h.length[i] = uint64(at), uint64(s[i].n)
		hashSection(sum, uint64(s[i].n))
		if err := copySection(ctx, f, sum, s[i], at, buf); err != nil {
			return err
		}
		at += s[i].n
	}
	h.id = stoker.ID(sum.Sum(nil))
	if _, err := f.WriteAt(h.encode(), 0); err != nil {
		return tempError(f.Name(), err)
	}
	return nil
}

func copySection(ctx context.Context, f *os.File, sum hash.Hash, s section, at int64, buf []byte) error {
	for n := int64(0); n < s.n; {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		got, err := io.ReadFull(s.from, buf[:min(int64(len(buf)), s.n-n)])
		if err != nil {
			return tempError(f.Name(), err)
		}
		sum.Write(buf[:got])
		if _, err := f.WriteAt(buf[:got], at+n); err != nil {
			return tempError(f.Name(), err)
		}
		n += int64(got)
	}
	return nil
}
