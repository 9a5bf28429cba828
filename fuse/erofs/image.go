// Package erofs compiles a manifest into an EROFS image: names, attributes and,
// for each file, which shard holds it and where. The image holds no data: its
// devices are the shards, in the order of the manifest, each a file whose
// bytes are as the manifest lays them out, and behind them one that holds
// nothing, the sentinel, whose only use is that the kernel keeps it open
// for as long as the image is mounted. The kernel reads files of a mounted image
// from those devices by itself (docs/adr/0016). The same manifest gives the
// same image, byte by byte. Nothing is kept per file while it is written:
// rows are breadth first, so that all that has to be looked up is met in order.
// The package mounts nothing; its functions may be called concurrently.
package erofs

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"

	"stoker.dev"
	"stoker.dev/cache/manifest"
)

// Listing is what an image is made of; *manifest.Manifest is one.
type Listing interface {
	ID() stoker.ID
	Header() manifest.Header
	Rows() int
	Entry(manifest.Row) manifest.Entry
	ReadDir(dir manifest.Row, from int, fn func(r manifest.Row, name []byte) bool)
	AppendLink(dst []byte, r manifest.Row) []byte
	Shards() int
	Shard(n uint32) manifest.Shard
}

var _ Listing = (*manifest.Manifest)(nil)

// Options say to whom the files belong.
type Options struct {
	UID, GID uint32
	Umask    uint32 // taken from 0777 for folders and executables, from 0666 for files
}

// MaxShards is the most shards that an image can name: the kernel counts
// devices with 16 bits, and one is the sentinel.
const MaxShards = maxDevices - 1

// SentinelBytes is how large the last device is.
const SentinelBytes = blockBytes

// DeviceBytes is how many bytes a device must have at least: a shard's length,
// rounded up to whole blocks. The kernel reads whole blocks, and Linux 6.18
// gives EIO for one that a file ends in, others would give zeros.
func DeviceBytes(s manifest.Shard) int64 { return blocksOf(s.Bytes) << blockBits }

// Write writes the image of a listing to a file that is empty, and returns its
// length in bytes. Invalid: it has more shards than MaxShards. Corrupt: the
// listing contradicts itself.
func Write(ctx context.Context, w io.WriterAt, l Listing, o Options) (int64, error) {
	if l.Shards() > MaxShards {
		return 0, stoker.Errorf(stoker.KindInvalid, "erofs.write", l.ID().Short(),
			"%d shards: a kernel view takes %d at most; take the tree view", l.Shards(), MaxShards)
	}
	devices := l.Shards() + 1
	meta := int64(slotOffset+devices*slotBytes+blockBytes-1) &^ (blockBytes - 1)
	b := builder{ctx: ctx, l: l, o: o, rows: manifest.Row(l.Rows()), meta: meta}
	end, err := b.measure()
	if err != nil {
		return 0, err
	}
	b.inodes = stream{w: w, at: meta}
	b.folders = stream{w: w, at: meta + end}
	if err := b.writeRows(); err != nil {
		return 0, err
	}
	total := b.folders.at
	if total>>blockBits > 1<<32-1 {
		return 0, stoker.Errorf(stoker.KindInvalid, "erofs.write", l.ID().Short(), "an image of %d bytes is too large; take the tree view", total)
	}
	if err := writeDevices(w, l); err != nil {
		return 0, err
	}
	s := super{id: l.ID(), rows: uint64(l.Rows()), built: l.Header().ListedFrom, blocks: uint32(total >> blockBits), meta: uint32(meta >> blockBits), devices: devices}
	_, err = w.WriteAt(s.encode(), 0)
	return total, err
}

// writeDevices writes the table of devices: the shards, tagged with their ids,
// and the sentinel.
func writeDevices(w io.WriterAt, l Listing) error {
	s := stream{w: w, at: slotOffset}
	var slot []byte
	for n := range l.Shards() {
		sh := l.Shard(uint32(n))
		slot = appendSlot(slot[:0], sh.ID[:], sh.Bytes)
		if err := s.write(slot); err != nil {
			return err
		}
	}
	if err := s.write(appendSlot(slot[:0], []byte("stoker sentinel"), SentinelBytes)); err != nil {
		return err
	}
	return s.flush()
}

// builder writes the inodes and folders of a listing.
type builder struct {
	ctx             context.Context
	l               Listing
	o               Options
	rows            manifest.Row
	meta            int64
	inodes, folders stream
	children        cursor       // at the children of the folder that is being written
	parents         cursor       // at its parent
	next            manifest.Row // the next child
	dir             folderWriter
	buf, link, name []byte
}

// shape is what a row takes among the inodes: so many bytes, of which the first
// `whole` must not cross the border of a block.
type shape struct{ whole, total int64 }

// chunks returns how many chunk indexes a file has.
func chunks(e *manifest.Entry) int64 {
	return (e.Bytes + stoker.ExtentBytes - 1) / stoker.ExtentBytes
}

// shapeOf returns a row's shape. Small folders and links lie behind their
// inode, in the same block.
func (b *builder) shapeOf(r manifest.Row, e *manifest.Entry) shape {
	inline := int64(0)
	switch e.Kind {
	case manifest.Directory:
		inline = b.smallFolder(r, e)
	case manifest.Symlink:
		if inodeBytes+e.Bytes <= blockBytes {
			inline = e.Bytes
		}
	default:
		return shape{inodeBytes, inodeBytes + indexBytes*chunks(e)}
	}
	return shape{inodeBytes + inline, inodeBytes + inline}
}

// smallFolder returns how many bytes a folder's entries take, 0 if they do not
// fit behind its inode.
func (b *builder) smallFolder(r manifest.Row, e *manifest.Entry) int64 {
	const room = blockBytes - inodeBytes
	n := 2*int64(direntBytes) + int64(len(".")+len(".."))
	if n+int64(e.Children)*(direntBytes+1) > room {
		return 0
	}
	b.l.ReadDir(r, 0, func(_ manifest.Row, name []byte) bool {
		n += direntBytes + int64(len(name))
		return n <= room
	})
	if n > room {
		return 0
	}
	return n
}

// cursor walks over rows and knows where their inodes lie.
type cursor struct {
	row manifest.Row
	at  int64 // where the row's inode may begin, from the first inode on
}

// place returns where an inode of this shape begins if it may from at on.
func place(at int64, s shape) int64 {
	at = (at + nidBytes - 1) &^ (nidBytes - 1)
	if at&(blockBytes-1)+s.whole > blockBytes {
		at = (at + blockBytes - 1) &^ (blockBytes - 1)
	}
	return at
}

// start is the cursor at the root.
func start() cursor { return cursor{at: firstNid * nidBytes} }

// to moves the cursor to a row that is not before it and returns where its
// inode lies.
func (b *builder) to(c *cursor, r manifest.Row) int64 {
	for {
		e := b.l.Entry(c.row)
		s := b.shapeOf(c.row, &e)
		at := place(c.at, s)
		if c.row >= r {
			return at
		}
		c.row, c.at = c.row+1, at+s.total
	}
}

// measure returns how many bytes the inodes take, in whole blocks.
func (b *builder) measure() (int64, error) {
	c := start()
	for r := range b.rows {
		if err := b.alive(r); err != nil {
			return 0, err
		}
		e := b.l.Entry(r)
		s := b.shapeOf(r, &e)
		c.at = place(c.at, s) + s.total
	}
	return blocksOf(c.at) << blockBits, nil
}

// alive fails if the caller has gone.
func (b *builder) alive(r manifest.Row) error {
	if r%4096 == 0 {
		return b.ctx.Err()
	}
	return nil
}

// writeRows writes all inodes in order, and each folder with its own.
func (b *builder) writeRows() error {
	b.children, b.parents, b.next = start(), start(), 1
	b.dir.to, b.buf = &b.folders, make([]byte, 0, blockBytes)
	at := int64(firstNid * nidBytes)
	for r := range b.rows {
		if err := b.alive(r); err != nil {
			return err
		}
		e := b.l.Entry(r)
		s := b.shapeOf(r, &e)
		at = place(at, s)
		if err := b.inodes.skipTo(b.meta + at); err != nil {
			return err
		}
		n := inode{mode: modeOf(&e, b.o.Umask), bytes: e.Bytes, nid: uint64(at / nidBytes), uid: b.o.UID, gid: b.o.GID, modified: e.ModTime}
		var err error
		switch {
		case e.Kind == manifest.Directory:
			err = b.folder(r, &e, &n, s)
		case e.Kind == manifest.Symlink:
			err = b.symlink(r, &n, s)
		default:
			err = b.file(r, &e, &n)
		}
		if err != nil {
			return err
		}
		at += s.total
	}
	if b.next != b.rows {
		return b.corrupt(b.next, "is in no folder")
	}
	if err := b.inodes.flush(); err != nil {
		return err
	}
	return b.folders.flush()
}

func (b *builder) corrupt(r manifest.Row, format string, args ...any) error {
	return stoker.Errorf(stoker.KindCorrupt, "erofs.write", b.l.ID().Short(), "row %d: "+format, append([]any{r}, args...)...)
}

// file writes a file's inode and where its chunks are.
func (b *builder) file(r manifest.Row, e *manifest.Entry, n *inode) error {
	if e.Bytes == 0 {
		return b.inodes.write(n.append(b.buf[:0]))
	}
	n.layout, n.u = chunkBased, chunkFormat
	b.buf = n.append(b.buf[:0])
	for c := range chunks(e) {
		device, part := int64(e.Shard)+c, min(e.Bytes-c*stoker.ExtentBytes, stoker.ExtentBytes)
		if device >= int64(b.l.Shards()) || e.Off%blockBytes != 0 || e.Off+part > b.l.Shard(uint32(device)).Bytes {
			return b.corrupt(r, "%d bytes at %d do not lie in shard %d", part, e.Off, device)
		}
		b.buf = appendIndex(b.buf, uint16(device+1), uint32(e.Off>>blockBits))
		if len(b.buf) >= bufferBytes { // a file of a thousand terabytes is no reason for memory
			if err := b.inodes.write(b.buf); err != nil {
				return err
			}
			b.buf = b.buf[:0]
		}
	}
	return b.inodes.write(b.buf)
}

// symlink writes a link and its target.
func (b *builder) symlink(r manifest.Row, n *inode, s shape) error {
	b.link = b.l.AppendLink(b.link[:0], r)
	if int64(len(b.link)) != n.bytes || len(b.link) == 0 || len(b.link) > blockBytes {
		return b.corrupt(r, "a link of %d bytes with a target of %d", n.bytes, len(b.link))
	}
	if s.total > inodeBytes {
		n.layout = flatInline
		return b.inodes.write(append(n.append(b.buf[:0]), b.link...))
	}
	n.u = uint32(b.folders.at >> blockBits)
	if err := b.folders.write(b.link); err != nil {
		return err
	}
	if err := b.folders.align(); err != nil {
		return err
	}
	return b.inodes.write(n.append(b.buf[:0]))
}

// folder writes a folder's inode and its entries.
func (b *builder) folder(r manifest.Row, e *manifest.Entry, n *inode, s shape) error {
	b.dir.begin(n.nid, uint64(b.to(&b.parents, e.Parent)/nidBytes))
	if e.Children > 0 && e.FirstChild != b.next {
		return b.corrupt(r, "its children begin at row %d, want %d", e.FirstChild, b.next)
	}
	var err error
	end := b.next + manifest.Row(e.Children)
	b.name = b.name[:0]
	b.l.ReadDir(r, 0, func(c manifest.Row, name []byte) bool {
		err = b.child(r, c, name)
		return err == nil
	})
	if err == nil && b.next != end {
		err = b.corrupt(r, "not all of its %d names can be read", e.Children)
	}
	if err == nil {
		err = b.dir.dots([]byte{0xff})
	}
	if err != nil {
		return err
	}
	n.bytes = b.dir.blocks<<blockBits + int64(b.dir.used())
	if s.total > inodeBytes { // all of it is in the one block
		n.layout = flatInline
		b.buf = b.dir.appendBlock(n.append(b.buf[:0]))
		if int64(len(b.buf)) != s.total {
			return b.corrupt(r, "its names change while they are read")
		}
		return b.inodes.write(b.buf)
	}
	n.u = uint32(b.folders.at>>blockBits - b.dir.blocks)
	b.dir.block = b.dir.appendBlock(b.dir.block[:0])
	if err := b.folders.write(b.dir.block); err != nil {
		return err
	}
	if err := b.folders.align(); err != nil {
		return err
	}
	return b.inodes.write(n.append(b.buf[:0]))
}

// child adds the next child to the folder. Every row but the root is the child
// of one folder, and rows follow one another as their parents do: what does
// not is refused, since the kernel would be led astray.
func (b *builder) child(dir, r manifest.Row, name []byte) error {
	e := b.l.Entry(r)
	switch {
	case r != b.next || e.Parent != dir:
		return b.corrupt(r, "is no child of row %d", dir)
	case len(name) == 0 || len(name) > maxName || bytes.IndexByte(name, '/') >= 0 || bytes.IndexByte(name, 0) >= 0, string(name) == ".", string(name) == "..":
		return b.corrupt(r, "has the name %q", name)
	case bytes.Compare(b.name, name) >= 0:
		return b.corrupt(r, "%q comes after %q", name, b.name)
	}
	b.name, b.next = append(b.name[:0], name...), r+1
	if err := b.dir.dots(name); err != nil {
		return err
	}
	return b.dir.put(name, uint64(b.to(&b.children, r)/nidBytes), typeOf(&e))
}

func typeOf(e *manifest.Entry) byte {
	switch e.Kind {
	case manifest.Directory:
		return typeFolder
	case manifest.Symlink:
		return typeSymlink
	}
	return typeFile
}

// folderWriter packs the entries of a folder, in the order of their names,
// into blocks: dirents first, names behind them. "." and ".." are entries like
// the others, in their place.
type folderWriter struct {
	to           *stream
	self, parent uint64
	dotted       int   // how many of the two are written
	blocks       int64 // whole ones that were written

	dirents, names []byte // of the block that is being filled
	block          []byte
}

func (f *folderWriter) begin(self, parent uint64) {
	f.self, f.parent, f.dotted, f.blocks = self, parent, 0, 0
	f.dirents, f.names = f.dirents[:0], f.names[:0]
}

func (f *folderWriter) used() int { return len(f.dirents) + len(f.names) }

// dots adds "." and ".." if they come before a name.
func (f *folderWriter) dots(name []byte) error {
	for ; f.dotted < 2; f.dotted++ {
		dot, nid := []byte("."), f.self
		if f.dotted == 1 {
			dot, nid = []byte(".."), f.parent
		}
		if bytes.Compare(dot, name) > 0 {
			return nil
		}
		if err := f.put(dot, nid, typeFolder); err != nil {
			return err
		}
	}
	return nil
}

func (f *folderWriter) put(name []byte, nid uint64, kind byte) error {
	if f.used()+direntBytes+len(name) > blockBytes {
		f.block = f.appendBlock(f.block[:0])
		if err := f.to.write(f.block); err != nil {
			return err
		}
		if err := f.to.align(); err != nil {
			return err
		}
		f.blocks++
		f.dirents, f.names = f.dirents[:0], f.names[:0]
	}
	f.dirents = binary.LittleEndian.AppendUint64(f.dirents, nid)
	f.dirents = binary.LittleEndian.AppendUint16(f.dirents, uint16(len(f.names))) // appendBlock adds what is before the names
	f.dirents = append(f.dirents, kind, 0)
	f.names = append(f.names, name...)
	return nil
}

// appendBlock appends the block that is being filled.
func (f *folderWriter) appendBlock(dst []byte) []byte {
	at := len(dst)
	dst = append(append(dst, f.dirents...), f.names...)
	for d := dst[at : at+len(f.dirents)]; len(d) > 0; d = d[direntBytes:] {
		binary.LittleEndian.PutUint16(d[8:], binary.LittleEndian.Uint16(d[8:])+uint16(len(f.dirents)))
	}
	return dst
}

const bufferBytes = 1 << 20

// stream writes one part of the image in order.
type stream struct {
	w   io.WriterAt
	at  int64 // of the next byte
	buf []byte
}

func (s *stream) write(p []byte) error {
	if len(s.buf)+len(p) > bufferBytes {
		if err := s.flush(); err != nil {
			return err
		}
	}
	if s.buf == nil {
		s.buf = make([]byte, 0, bufferBytes)
	}
	s.buf = append(s.buf, p...)
	s.at += int64(len(p))
	return nil
}

// skipTo writes zeros up to a place that is not before the present one, and
// less than a block away.
func (s *stream) skipTo(at int64) error {
	var zeros [blockBytes]byte
	return s.write(zeros[:at-s.at])
}

func (s *stream) align() error { return s.skipTo((s.at + blockBytes - 1) &^ (blockBytes - 1)) }

func (s *stream) flush() error {
	if len(s.buf) == 0 {
		return nil
	}
	_, err := s.w.WriteAt(s.buf, s.at-int64(len(s.buf)))
	s.buf = s.buf[:0]
	return err
}
