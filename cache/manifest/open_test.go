package manifest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"stoker.dev"
)

// sign makes a changed header valid, as somebody who means harm would.
func sign(b []byte) {
	sum := crc32.Checksum(b[:headerBytes-4], crc32.MakeTable(crc32.Castagnoli))
	binary.LittleEndian.PutUint32(b[headerBytes-4:], sum)
}

// hostile is the file of a good manifest, and somewhere to put bad ones.
type hostile struct {
	id   stoker.ID
	good []byte
	path string
}

func newHostile(t testing.TB) *hostile {
	t.Helper()
	b := build(t, some().options(t))
	good, err := os.ReadFile(b.Path)
	if err != nil {
		t.Fatal(err)
	}
	return &hostile{b.ID, good, filepath.Join(t.TempDir(), "manifest")}
}

// try opens b: an error of kind Corrupt, or bounded answers. What is verified
// has the content that the id is of.
func (h *hostile) try(t testing.TB, b []byte) (opened bool) {
	t.Helper()
	if err := os.WriteFile(h.path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	kind := stoker.KindCorrupt
	if otherFormat(b) {
		kind = stoker.KindInvalid
	}
	if err := VerifyFile(h.path, h.id); err != nil {
		wantKind(t, err, kind)
	} else if !h.sameContent(b) {
		t.Error("VerifyFile took a file with other content")
	}
	m, err := Open(h.path)
	if err != nil {
		wantKind(t, err, kind)
		return false
	}
	defer m.Close()
	bounded(t, m)
	return true
}

// otherFormat reports whether b is a sound file of another format, as far as
// this one can know.
func otherFormat(b []byte) bool {
	return len(b) >= headerBytes && string(b[:8]) == magic && binary.LittleEndian.Uint32(b[8:]) != formatVersion &&
		binary.LittleEndian.Uint32(b[headerBytes-4:]) == crc32.Checksum(b[:headerBytes-4], crc32.MakeTable(crc32.Castagnoli))
}

// sameContent compares all but what two listings of the same may differ in.
func (h *hostile) sameContent(b []byte) bool {
	const times, counts, table = 80, 96, 128 + 16*sections
	return len(b) == len(h.good) && bytes.Equal(b[16:48], h.good[16:48]) &&
		bytes.Equal(b[counts:table], h.good[counts:table]) && bytes.Equal(b[headerBytes:], h.good[headerBytes:])
}

// bounded asks everything and wants answers that lead nowhere outside.
func bounded(t testing.TB, m *Manifest) {
	t.Helper()
	rows := uint64(m.Rows())
	var dst []Member
	for _, r := range append(upTo(min(rows, 500)), Row(rows/2), Row(rows-1), Row(rows), ^Row(0)) {
		e := m.Entry(r)
		if uint64(e.FirstChild)+uint64(e.Children) > rows || e.Bytes < 0 || e.Children > 0 && e.FirstChild <= r {
			t.Fatalf("row %d: %+v leads out of %d rows", r, e, rows)
		}
		name := m.AppendName(nil, r)
		if len(name) > groupRows*4096 || len(m.AppendLink(nil, r)) > len(m.sec[secStrings]) {
			t.Fatalf("row %d: a name of %d bytes", r, len(name))
		}
		m.Path(r)
		m.Source(r)
		m.Lookup(r, name)
		n := 0
		m.ReadDir(r, 0, func(child Row, _ []byte) bool {
			n++
			if uint64(child) >= rows || child <= r {
				t.Fatalf("row %d has the child %d of %d", r, child, rows)
			}
			return n < 1000
		})
		for _, off := range []int64{0, e.Bytes - 1, 1 << 62} {
			if s := m.ShardOf(r, off); s != NoShard && int(s) >= m.Shards() {
				t.Fatalf("row %d lies in shard %d of %d", r, s, m.Shards())
			}
		}
	}
	for n := range uint32(m.Shards()) + 2 {
		s := m.Shard(n)
		dst = m.Members(n, dst[:0])
		for _, p := range dst {
			if uint64(p.Row) >= rows || p.Bytes <= 0 || p.Off < 0 || p.ObjectOff < 0 || p.Bytes > s.Bytes-p.Off ||
				int64(p.FirstBlock)+int64(BlocksOf(p.Bytes)) > int64(s.Blocks) || p.ObjectOff+p.Bytes > m.Entry(p.Row).Bytes {
				t.Fatalf("shard %d %+v has the member %+v", n, s, p)
			}
		}
	}
	m.LookupPath("train/1/f1")
	m.LookupPath("//")
}

func upTo(n uint64) []Row {
	rows := make([]Row, n)
	for i := range rows {
		rows[i] = Row(i)
	}
	return rows
}

func TestTruncatedFile(t *testing.T) {
	h := newHostile(t)
	for n := 0; n < len(h.good); n += 1 + n/50 {
		if h.try(t, h.good[:n]) {
			t.Errorf("%d of %d bytes were opened", n, len(h.good))
		}
	}
	if h.try(t, append(bytes.Clone(h.good), 0)) {
		t.Error("a longer file was opened")
	}
	if !h.try(t, h.good) {
		t.Error("the good file was not opened")
	}
	_, err := Open(h.path + "x")
	wantKind(t, err, stoker.KindNotExist)
}

// Damage of the header is seen at once, damage of the rest leads nowhere.
func TestFlippedBytes(t *testing.T) {
	h := newHostile(t)
	r := rand.New(rand.NewPCG(2, 3))
	for range 1000 {
		b := bytes.Clone(h.good)
		at := r.IntN(len(b))
		b[at] ^= byte(1 + r.IntN(255))
		if opened := h.try(t, b); opened && at < headerBytes {
			t.Fatalf("byte %d of the header was changed and nobody saw it", at)
		}
		if err := VerifyFile(h.path, h.id); err == nil {
			t.Fatalf("byte %d was changed and VerifyFile did not see it", at)
		}
	}
}

// A file that somebody made on purpose: fields of the header, of rows and of
// shards with the worst values, under a valid checksum.
func TestCraftedFiles(t *testing.T) {
	h := newHostile(t)
	r := rand.New(rand.NewPCG(4, 5))
	worst := []uint64{0, 1, 2, 0x7f, 0xff, 0xffff, 1<<31 - 1, 1 << 31, 1<<32 - 1, 1 << 32, 1<<63 - 1, 1 << 63, 1<<64 - 1, 1<<64 - 512, uint64(len(h.good)), 62, 70, 1000}
	section := func(b []byte, i int) []byte {
		off, n := binary.LittleEndian.Uint64(b[128+16*i:]), binary.LittleEndian.Uint64(b[136+16*i:])
		return b[off : off+n]
	}
	opened := 0
	for range 1500 {
		b := bytes.Clone(h.good)
		for range 1 + r.IntN(3) {
			part := b[:headerBytes-4]
			if i := r.IntN(sections + 1); i < sections && len(section(h.good, i)) >= 8 {
				at := binary.LittleEndian.Uint64(h.good[128+16*i:])
				part = b[at : at+uint64(len(section(h.good, i)))]
			}
			at := r.IntN(len(part)-7) / 4 * 4
			if len(part) == headerBytes-4 && r.IntN(2) == 0 { // numbers of rows, places of sections
				at = 96 + 8*r.IntN(4+2*sections)
			}
			v := worst[r.IntN(len(worst))]
			if r.IntN(2) == 0 {
				binary.LittleEndian.PutUint32(part[at:], uint32(v))
			} else {
				binary.LittleEndian.PutUint64(part[at:], v)
			}
		}
		sign(b)
		if h.try(t, b) {
			opened++
		}
	}
	if opened < 150 {
		t.Errorf("only %d of the crafted files were opened: the test proves little", opened)
	}
}

// The sums in the header are no part of the id, and are checked all the same:
// they are the denominator of "everything is there".
func TestVerifyCountsTheRows(t *testing.T) {
	h := newHostile(t)
	for name, at := range map[string]int{"objects": 104, "directories": 112, "bytes": 120} {
		t.Run(name, func(t *testing.T) {
			b := bytes.Clone(h.good)
			b[at]--
			sign(b)
			h.try(t, b)
			wantKind(t, VerifyFile(h.path, h.id), stoker.KindCorrupt)
		})
	}
	if err := os.WriteFile(h.path, h.good, 0o600); err != nil {
		t.Fatal(err)
	}
	wantKind(t, VerifyFile(h.path, stoker.ID{1}), stoker.KindCorrupt)
}

// A manifest of another format is not damaged, and a damaged one is of no
// other format: the message says what to do.
func TestOtherFormatIsRefused(t *testing.T) {
	h := newHostile(t)
	for _, version := range []byte{0, 2, 255} {
		b := bytes.Clone(h.good)
		b[8] = version
		if h.try(t, b) {
			t.Error("a damaged header was opened")
		}
		_, err := Open(h.path)
		wantKind(t, err, stoker.KindCorrupt)
		for i := range b[128 : headerBytes-4] { // nothing else is known of another format
			b[128+i] = byte(i)
		}
		sign(b)
		if h.try(t, b) {
			t.Errorf("a file of format %d was opened", version)
		}
		_, err = Open(h.path)
		wantKind(t, err, stoker.KindInvalid)
		for _, says := range []string{fmt.Sprintf("is of format %d", version), "reads format 1", "upgrade stoker"} {
			if !strings.Contains(fmt.Sprint(err), says) {
				t.Errorf("%q does not say %q", err, says)
			}
		}
	}
}

// A stored manifest of another format is refused with that error, not called
// damaged or fetched again and again.
func TestLoadOfAnotherFormat(t *testing.T) {
	s, objects := newStore(t)
	h := newHostile(t)
	b := bytes.Clone(h.good)
	b[8] = 2
	sign(b)
	if _, err := objects.PutIfAbsent(t.Context(), manifestName(h.id), b); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		_, err := s.Load(t.Context(), h.id)
		wantKind(t, err, stoker.KindInvalid)
		if !strings.Contains(fmt.Sprint(err), "upgrade stoker") {
			t.Errorf("%q does not say what to do", err)
		}
	}
	removed(t, s.dir)
}

// The sections must have the sizes that so many rows take.
func TestSectionsMustFit(t *testing.T) {
	h := newHostile(t)
	add := func(b []byte, at int, n uint64) {
		binary.LittleEndian.PutUint64(b[at:], binary.LittleEndian.Uint64(b[at:])+n)
	}
	move := func(b []byte, sec int, n uint64) { // the end of a section
		add(b, 136+16*sec, n)
		add(b, 128+16*(sec+1), n)
		add(b, 136+16*(sec+1), -n)
	}
	for name, change := range map[string]func(b []byte){
		"one row more":          func(b []byte) { add(b, 96, 1) },
		"one row less":          func(b []byte) { add(b, 96, ^uint64(0)) },
		"no rows":               func(b []byte) { add(b, 96, -binary.LittleEndian.Uint64(b[96:])) },
		"longer rows":           func(b []byte) { move(b, secRows, 8) },
		"shorter restarts":      func(b []byte) { move(b, secRestarts, ^uint64(7)) },
		"half a shard":          func(b []byte) { move(b, secShards, ^uint64(31)) },
		"sections with a gap":   func(b []byte) { add(b, 136+16*secNames, ^uint64(0)) },
		"sections that overlap": func(b []byte) { add(b, 136+16*secNames, 1) },
		"last one too short":    func(b []byte) { add(b, 136+16*secUnmountable, ^uint64(0)) },
	} {
		t.Run(name, func(t *testing.T) {
			b := bytes.Clone(h.good)
			change(b)
			sign(b)
			if h.try(t, b) {
				t.Error("the file was opened")
			}
		})
	}
}

func TestRootMustBeADirectory(t *testing.T) {
	h := newHostile(t)
	b := bytes.Clone(h.good)
	b[binary.LittleEndian.Uint64(b[128+16*secRows:])] = byte(File)
	if h.try(t, b) {
		t.Error("a file whose row 0 is no directory was opened")
	}
}

func FuzzOpen(f *testing.F) {
	h := newHostile(f)
	f.Add(h.good)
	f.Add(h.good[:headerBytes])
	f.Fuzz(func(t *testing.T, b []byte) {
		b, h := bytes.Clone(b), *h
		h.path = filepath.Join(t.TempDir(), "m")
		if len(b) >= headerBytes {
			sign(b)
		}
		h.try(t, b)
	})
}
