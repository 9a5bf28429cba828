package manifest

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"stoker.dev"
	"stoker.dev/ufs"
)

// Manifest is an open manifest file. Its methods do not allocate unless they
// return a string or a slice; rows beyond the last are answered with zero
// values.
type Manifest struct {
	h       head
	m       []byte // the mapped file
	sec     [sections][]byte
	roots   []Root
	users   atomic.Int32
	release func() // what the last Close does besides
}

// Header says where a manifest comes from.
type Header struct {
	FormatVersion        int
	Base                 stoker.ID // generation it was made from; zero = none
	ListedFrom, ListedTo time.Time
	Roots                []Root
}

// Open maps a manifest file. It reads header and roots alone, so that a file
// of any size opens at once and takes no heap for what it lists. Damage that
// can be seen so is Corrupt, another format Invalid; VerifyFile finds the rest.
func Open(path string) (*Manifest, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, stoker.Errorf(stoker.KindNotExist, "manifest.open", path, "%w", err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, stoker.Errorf(stoker.KindInternal, "manifest.open", path, "%w", err)
	}
	if fi.Size() < headerBytes {
		return nil, stoker.Errorf(stoker.KindCorrupt, "manifest.open", path, "%d bytes are too few", fi.Size())
	}
	b, err := unix.Mmap(int(f.Fd()), 0, int(fi.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, stoker.Errorf(stoker.KindInternal, "manifest.open", path, "%w", err)
	}
	m := &Manifest{m: b}
	m.users.Store(1)
	if err := m.parse(); err != nil {
		_ = unix.Munmap(b)
		return nil, err
	}
	return m, nil
}

func (m *Manifest) parse() (err error) {
	if m.h, err = decodeHead(m.m, int64(len(m.m))); err != nil {
		return err
	}
	for i := range sections {
		m.sec[i] = m.m[m.h.offset[i] : m.h.offset[i]+m.h.length[i]]
	}
	if err := json.Unmarshal(m.sec[secRoots], &m.roots); err != nil {
		return stoker.Errorf(stoker.KindCorrupt, "manifest.open", "", "roots: %w", err)
	}
	if m.Entry(0).Kind != Directory {
		return stoker.Errorf(stoker.KindCorrupt, "manifest.open", "", "row 0 is no directory")
	}
	return nil
}

// VerifyFile reads the whole file and compares its content with the id that
// it must have.
func VerifyFile(path string, want stoker.ID) error {
	m, err := Open(path)
	if err != nil {
		return err
	}
	defer m.Close()
	if !m.counted() {
		return stoker.Errorf(stoker.KindCorrupt, "manifest.verify", want.Short(), "the header's sums are not those of the rows")
	}
	h := newIDHash()
	for i := range sections {
		hashSection(h, m.h.length[i])
		if _, err := io.Copy(h, bytes.NewReader(m.sec[i])); err != nil {
			return err
		}
	}
	if got := stoker.ID(h.Sum(nil)); got != want || m.h.id != want {
		return stoker.Errorf(stoker.KindCorrupt, "manifest.verify", want.Short(), "the file's content has id %s", got.Short())
	}
	return nil
}

// counted compares the header's sums, which the id does not cover, with the rows.
func (m *Manifest) counted() bool {
	var objects, dirs uint64
	var size int64
	for r := range Row(m.h.rows) {
		switch e := m.Entry(r); e.Kind {
		case Directory:
			dirs++
		case File:
			objects++
			size += e.Bytes
		default:
			objects++
		}
	}
	return objects == m.h.objects && dirs == m.h.dirs && size == m.h.bytes
}

// retain adds a use, unless the last one is just being given back.
func (m *Manifest) retain() bool {
	for {
		n := m.users.Load()
		if n == 0 {
			return false
		}
		if m.users.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// Close gives one use back; the last one unmaps the file.
func (m *Manifest) Close() error {
	if m.users.Add(-1) > 0 {
		return nil
	}
	if m.release != nil {
		m.release()
	}
	if err := unix.Munmap(m.m); err != nil {
		return stoker.Errorf(stoker.KindInternal, "manifest.close", m.h.id.Short(), "%w", err)
	}
	return nil
}

// ID returns the manifest's id.
func (m *Manifest) ID() stoker.ID { return m.h.id }

// Header returns where it comes from.
func (m *Manifest) Header() Header {
	return Header{formatVersion, m.h.base, time.Unix(0, m.h.from), time.Unix(0, m.h.to), m.roots}
}

// Rows returns how many rows there are, directories included.
func (m *Manifest) Rows() int { return int(m.h.rows) }

// Objects returns how many objects have a row.
func (m *Manifest) Objects() int64 { return int64(m.h.objects) }

// Directories returns how many directories there are, the root included.
func (m *Manifest) Directories() int64 { return int64(m.h.dirs) }

// Bytes returns the sum of the objects' sizes.
func (m *Manifest) Bytes() int64 { return m.h.bytes }

// Roots returns what is joined in the dataset. Do not change it.
func (m *Manifest) Roots() []Root { return m.roots }

// Unmountable returns the keys without a row, read anew at each call. A
// section that is damaged, which VerifyFile finds, has none.
func (m *Manifest) Unmountable() []Unmountable {
	var all []Unmountable
	if err := json.Unmarshal(m.sec[secUnmountable], &all); err != nil {
		return nil
	}
	return all
}

func (m *Manifest) row(r Row) []byte {
	if uint64(r) >= m.h.rows {
		return nil
	}
	return m.sec[secRows][uint64(r)*rowBytes:][:rowBytes]
}

// Entry returns a row.
func (m *Manifest) Entry(r Row) Entry {
	b := m.row(r)
	if b == nil {
		return Entry{Shard: NoShard}
	}
	le := binary.LittleEndian
	e := Entry{
		Kind: EntryKind(b[0]), Exec: b[1]&flagExec != 0, Root: le.Uint16(b[2:]), Parent: Row(le.Uint32(b[4:])),
		Shard: le.Uint32(b[40:]), Off: int64(le.Uint16(b[44:])) * stoker.AlignBytes, FirstBlock: uint32(le.Uint16(b[46:])),
	}
	if b[1]&flagTime != 0 {
		e.ModTime = time.Unix(0, int64(le.Uint64(b[16:])))
	} else {
		e.ModTime = time.Unix(0, m.h.from)
	}
	if e.Kind == Directory {
		e.FirstChild, e.Children = Row(le.Uint32(b[8:])), le.Uint32(b[12:])
		if uint64(e.FirstChild)+uint64(e.Children) > m.h.rows || e.FirstChild <= r {
			e.FirstChild, e.Children = 0, 0 // damage never leads out of the file, or round in circles
		}
	} else {
		e.Bytes = max(0, int64(le.Uint64(b[8:])))
	}
	return e
}

// AppendName appends the last part of the row's path.
func (m *Manifest) AppendName(dst []byte, r Row) []byte {
	if uint64(r) >= m.h.rows {
		return dst
	}
	names := m.group(r)
	base := len(dst)
	for i := Row(0); ; i++ {
		var ok bool
		if dst, names, ok = nextName(dst, base, names, i == 0); !ok || i == r%groupRows {
			return dst
		}
	}
}

// group returns the names from the beginning of the row's group on.
func (m *Manifest) group(r Row) []byte {
	off := binary.LittleEndian.Uint64(m.sec[secRestarts][uint64(r/groupRows)*8:])
	if off > uint64(len(m.sec[secNames])) {
		return nil
	}
	return m.sec[secNames][off:]
}

// nextName replaces dst[base:], the name before, with the next one.
func nextName(dst []byte, base int, names []byte, first bool) (_, rest []byte, ok bool) {
	shared := uint64(0)
	if !first {
		var n int
		if shared, n = binary.Uvarint(names); n <= 0 || shared > uint64(len(dst)-base) {
			return dst[:base], nil, false
		}
		names = names[n:]
	}
	own, n := binary.Uvarint(names)
	if n <= 0 || own > uint64(len(names)-n) || own > 4096 {
		return dst[:base], nil, false
	}
	names = names[n:]
	return append(dst[:base+int(shared)], names[:own]...), names[own:], true
}

// Path returns the row's path below the mount, "" for the root.
func (m *Manifest) Path(r Row) string {
	var parts [][]byte
	n := 0
	for r != 0 && len(parts) < 4096 {
		name := m.AppendName(nil, r)
		parts = append(parts, name)
		n += len(name) + 1
		r = m.Entry(r).Parent
	}
	out := make([]byte, 0, n)
	for i := len(parts) - 1; i >= 0; i-- {
		if len(out) > 0 {
			out = append(out, '/')
		}
		out = append(out, parts[i]...)
	}
	return string(out)
}

// Lookup finds a name in a directory: it halves the groups, whose first names
// stand in full, and goes through one of them.
func (m *Manifest) Lookup(dir Row, name []byte) (Row, bool) {
	e := m.Entry(dir)
	if e.Kind != Directory || e.Children == 0 {
		return 0, false
	}
	first, last := e.FirstChild, e.FirstChild+Row(e.Children-1)
	lo, hi := first/groupRows, last/groupRows+1 // the group is in [lo, hi)
	for hi-lo > 1 {
		mid := lo + (hi-lo)/2
		if bytes.Compare(m.groupName(mid), name) <= 0 {
			lo = mid
		} else {
			hi = mid
		}
	}
	var space [256]byte
	got, names, ok := space[:0], m.group(lo*groupRows), true
	for i := range min(groupRows, last-lo*groupRows+1) {
		if got, names, ok = nextName(got, 0, names, i == 0); !ok {
			return 0, false
		}
		r := lo*groupRows + i
		if r < first {
			continue
		}
		switch c := bytes.Compare(got, name); {
		case c == 0:
			return r, true
		case c > 0:
			return 0, false
		}
	}
	return 0, false
}

// groupName returns the first name of a group, where it lies.
func (m *Manifest) groupName(group Row) []byte {
	names := m.group(group * groupRows)
	own, n := binary.Uvarint(names)
	if n <= 0 || own > uint64(len(names)-n) {
		return nil
	}
	return names[n : n+int(own)]
}

// LookupPath finds a slash-separated path below the root.
func (m *Manifest) LookupPath(path string) (Row, bool) {
	row := Row(0)
	for len(path) > 0 {
		name := path
		for i := range path {
			if path[i] == '/' {
				name = path[:i]
				break
			}
		}
		var ok bool
		if row, ok = m.Lookup(row, []byte(name)); !ok {
			return 0, false
		}
		path = path[min(len(path), len(name)+1):]
	}
	return row, true
}

// ReadDir calls fn for the children of a directory in name order, from the
// child number from on, until it returns false. name is valid during the call.
func (m *Manifest) ReadDir(dir Row, from int, fn func(r Row, name []byte) bool) {
	e := m.Entry(dir)
	if e.Kind != Directory || from < 0 || uint64(from) >= uint64(e.Children) {
		return
	}
	var space [256]byte
	name := space[:0]
	first, end := e.FirstChild+Row(from), e.FirstChild+Row(e.Children)
	var names []byte
	ok := true
	for r := first / groupRows * groupRows; r < end && ok; r++ {
		if r%groupRows == 0 {
			names = m.group(r)
		}
		name, names, ok = nextName(name, 0, names, r%groupRows == 0)
		if ok && r >= first && !fn(r, name) {
			return
		}
	}
}

// Source returns the object behind a row.
func (m *Manifest) Source(r Row) Source {
	b := m.row(r)
	e := m.Entry(r)
	s := Source{Root: e.Root, Version: ufs.Version{Bytes: e.Bytes}}
	if b == nil || int(e.Root) >= len(m.roots) {
		return s
	}
	root := m.roots[e.Root]
	path := m.Path(r)
	if root.Folder != "" {
		path = path[min(len(path), len(root.Folder)+1):]
	}
	s.Key = prefixOf(root.URI) + path
	if b[1]&flagTime != 0 {
		s.Version.ModTime = e.ModTime
	}
	switch {
	case b[1]&flagETag != 0:
		s.Version.Tag = `"` + hex.EncodeToString(b[24:40]) + `"`
	case b[1]&flagTag != 0:
		s.Version.Tag = string(m.str(b))
	}
	return s
}

// str returns the string that a row's version field points to.
func (m *Manifest) str(b []byte) []byte {
	off, n := binary.LittleEndian.Uint64(b[24:]), uint64(binary.LittleEndian.Uint32(b[32:]))
	all := m.sec[secStrings]
	if off > uint64(len(all)) || n > uint64(len(all))-off {
		return nil
	}
	return all[off : off+n]
}

// AppendLink appends the target of a symbolic link.
func (m *Manifest) AppendLink(dst []byte, r Row) []byte {
	if b := m.row(r); b != nil && EntryKind(b[0]) == Symlink {
		return append(dst, m.str(b)...)
	}
	return dst
}

// Shards returns how many shards there are.
func (m *Manifest) Shards() int { return len(m.sec[secShards]) / shardBytes }

// Shard returns one line of the shard table.
func (m *Manifest) Shard(n uint32) Shard {
	if int(n) >= m.Shards() {
		return Shard{Extent: -1}
	}
	b := m.sec[secShards][int(n)*shardBytes:][:shardBytes]
	le := binary.LittleEndian
	s := Shard{FirstRow: Row(le.Uint32(b[32:])), Rows: le.Uint32(b[36:]), Extent: int32(le.Uint32(b[40:])),
		Blocks: le.Uint32(b[44:]), Bytes: int64(le.Uint64(b[48:]))}
	copy(s.ID[:], b)
	return s
}

// Members appends the parts of shard n to dst, in the order of their blocks.
// All of them lie within the shard, whatever the file holds.
func (m *Manifest) Members(n uint32, dst []Member) []Member {
	s := m.Shard(n)
	if s.Extent >= 0 {
		off := int64(s.Extent) * stoker.ExtentBytes
		bytes := min(m.Entry(s.FirstRow).Bytes-off, stoker.ExtentBytes)
		return s.member(dst, Member{Row: s.FirstRow, ObjectOff: off, Bytes: bytes})
	}
	end := min(uint64(s.FirstRow)+uint64(s.Rows), m.h.rows)
	for r := s.FirstRow; uint64(r) < end; r++ {
		if e := m.Entry(r); e.Kind == File && e.Shard == n {
			dst = s.member(dst, Member{Row: r, Off: e.Off, Bytes: e.Bytes, FirstBlock: e.FirstBlock})
		}
	}
	return dst
}

// member appends p if it fits into the shard.
func (s *Shard) member(dst []Member, p Member) []Member {
	if !s.fits(&p) {
		return dst
	}
	return append(dst, p)
}

// fits reports whether p lies within the shard.
func (s *Shard) fits(p *Member) bool {
	return p.Bytes > 0 && p.Bytes <= min(stoker.ExtentBytes, s.Bytes-p.Off) && int64(BlocksOf(p.Bytes)) <= int64(s.Blocks)-int64(p.FirstBlock)
}

// ShardOf returns the shard that holds the byte at off of a file; NoShard if
// there is none.
func (m *Manifest) ShardOf(r Row, off int64) uint32 {
	e := m.Entry(r)
	if e.Kind != File || off < 0 || off >= e.Bytes || e.Shard == NoShard {
		return NoShard
	}
	n := e.Shard
	if e.Bytes >= stoker.ExtentBytes {
		n += uint32(off / stoker.ExtentBytes)
	}
	if int(n) >= m.Shards() {
		return NoShard
	}
	return n
}
