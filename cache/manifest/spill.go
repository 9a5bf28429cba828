package manifest

import (
	"bytes"
	"cmp"
	"container/heap"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"stoker.dev"
)

// Sizes of what a build holds in memory, in bytes.
const (
	defaultMemory = 64 << 20
	minMemory     = 64 << 10
	maxMemory     = 1 << 30
	smallChunk    = 64 << 10  // of file reads and writes
	spoolMemory   = 512 << 10 // of each section, before it goes to a file
	recordHead    = 8         // lengths of key and value, u32 each
)

// tempFile makes a file without a name: whatever ends the process, it leaves nothing.
func tempFile(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, "manifest-*")
	if err == nil {
		err = os.Remove(f.Name())
	}
	if err != nil {
		return nil, tempError(dir, err)
	}
	return f, nil
}

// ClearTemp removes what a process that was killed left of manifests in the making,
// and of copies of them, in a folder that nobody else uses.
func ClearTemp(dir string) error {
	all, err := os.ReadDir(dir)
	errs := []error{err}
	for _, f := range all {
		if name := f.Name(); f.Type().IsRegular() && (strings.HasPrefix(name, "manifest-") || strings.HasPrefix(name, ".new-")) {
			errs = append(errs, os.Remove(filepath.Join(dir, name)))
		}
	}
	return errors.Join(errs...)
}

// tempError says what to do about a temporary file that cannot be written.
func tempError(dir string, err error) error {
	if errors.Is(err, syscall.ENOSPC) {
		return stoker.Errorf(stoker.KindNoSpace, "manifest.build", dir, "%w: a build needs some 300 bytes a file there: free space, or set another folder for temporary files", err)
	}
	return stoker.Errorf(stoker.KindInternal, "manifest.build", dir, "%w", err)
}

// sorter sorts records by key, then by value, in bounded memory: when its
// buffer is full, that is written to a file as a sorted run, and all runs are
// merged in the end. add may be called concurrently; sorted once, after the last.
type sorter struct {
	dir    string // for the file of runs
	memory int    // bytes

	mu   sync.Mutex
	recs records  // +checklocks:mu
	file *os.File // +checklocks:mu — nil until something is spilled
	size int64    // +checklocks:mu — of file
	runs []int64  // +checklocks:mu — where each run in file ends
	n    int64    // +checklocks:mu — records
}

func newSorter(dir string, memory int) *sorter {
	return &sorter{dir: dir, memory: min(max(memory, minMemory), maxMemory)}
}

// add takes a record; key and value are copied.
func (s *sorter) add(key, value []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n++
	ok, err := s.recs.add(key, value, s.memory)
	if err != nil || ok {
		return err
	}
	if err := s.spill(); err != nil {
		return err
	}
	if ok, err = s.recs.add(key, value, s.memory); err == nil && !ok {
		err = s.write(appendRecord(nil, key, value)) // larger than the buffer: a run of its own
		s.runs = append(s.runs, s.size)
	}
	return err
}

// spill writes the buffer as a run.
//
// +checklocks:s.mu
func (s *sorter) spill() error {
	m := newMerger(s.recs.stretches())
	out := make([]byte, 0, smallChunk)
	for m.ok() {
		key, value := m.head()
		out = appendRecord(out, key, value)
		if err := m.next(); err != nil {
			return err
		}
		if len(out) >= smallChunk/2 || !m.ok() {
			if err := s.write(out); err != nil {
				return err
			}
			out = out[:0]
		}
	}
	s.runs = append(s.runs, s.size)
	s.recs.reset()
	return nil
}

// write appends to the file of runs.
//
// +checklocks:s.mu
func (s *sorter) write(b []byte) (err error) {
	if s.file == nil {
		if s.file, err = tempFile(s.dir); err != nil {
			return err
		}
	}
	n, err := s.file.Write(b)
	s.size += int64(n)
	if err != nil {
		return tempError(s.dir, err)
	}
	return nil
}

// sorted returns all records in order, and how many there are.
func (s *sorter) sorted() (*merger, int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sources := s.recs.stretches()
	each := min(max(s.memory/(len(s.runs)+1), 8<<10), 256<<10)
	from := int64(0)
	for _, to := range s.runs {
		r := &runSource{dir: s.dir, r: io.NewSectionReader(s.file, from, to-from), buf: make([]byte, 0, each)}
		from = to
		if err := r.next(); err != nil {
			return nil, 0, err
		}
		sources = append(sources, r)
	}
	return newMerger(sources), s.n, nil
}

func (s *sorter) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.file != nil {
		_ = s.file.Close() // it has no name: nobody will read it
	}
	s.file = nil
	s.recs.free()
}

func appendRecord(dst, key, value []byte) []byte {
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(key)))
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(value)))
	return append(append(dst, key...), value...)
}

// parseRecord returns the record that b begins with.
func parseRecord(b []byte) (key, value []byte) {
	k, v := binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:])
	return b[recordHead : recordHead+k], b[recordHead+k : recordHead+k+v]
}

func compareRecords(ak, av, bk, bv []byte) int {
	if c := bytes.Compare(ak, bk); c != 0 {
		return c
	}
	return bytes.Compare(av, bv)
}

// records is a buffer of records in the order of their coming. It knows which
// stretches came in order already: pages of a listing do. The bytes lie outside
// Go's heap, which would else grow to twice as much.
type records struct {
	arena  []byte // mapped; pages that were never used take no memory
	size   int    // bytes used
	at     []uint32
	starts []int // of stretches in order, indexes into at
}

// add takes a record, unless it makes the buffer larger than most bytes.
func (r *records) add(key, value []byte, most int) (ok bool, err error) {
	n := recordHead + len(key) + len(value)
	if r.size+n+4*(len(r.at)+1) > most {
		return false, nil
	}
	if r.arena == nil {
		if r.arena, err = unix.Mmap(-1, 0, most, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE); err != nil {
			return false, stoker.Errorf(stoker.KindInternal, "manifest.build", "", "no memory: %w", err)
		}
	}
	p := uint32(r.size)
	appendRecord(r.arena[:r.size], key, value)
	r.size += n
	if last := len(r.at) - 1; last < 0 || r.compare(r.at[last], p) > 0 {
		r.starts = append(r.starts, len(r.at))
	}
	r.at = append(r.at, p)
	return true, nil
}

// reset empties the buffer and keeps its memory.
func (r *records) reset() { r.size, r.at, r.starts = 0, r.at[:0], r.starts[:0] }

// free gives the memory back; nothing that the buffer returned is valid any more.
func (r *records) free() {
	if r.arena != nil {
		_ = unix.Munmap(r.arena) // it is a mapping
	}
	*r = records{}
}

func (r *records) get(p uint32) (key, value []byte) { return parseRecord(r.arena[p:]) }

func (r *records) compare(a, b uint32) int {
	ak, av := r.get(a)
	bk, bv := r.get(b)
	return compareRecords(ak, av, bk, bv)
}

// stretches returns the buffer as sorted runs: the stretches that came in
// order, or one, sorted here, where they are too short to be worth merging.
func (r *records) stretches() []stretch {
	if len(r.starts) > 1 && len(r.starts) > len(r.at)/16 {
		slices.SortFunc(r.at, r.compare)
		r.starts = append(r.starts[:0], 0)
	}
	out := make([]stretch, 0, len(r.starts))
	for i, from := range r.starts {
		to := len(r.at)
		if i+1 < len(r.starts) {
			to = r.starts[i+1]
		}
		out = append(out, &bufferSource{r, r.at[from:to]})
	}
	return out
}

// stretch is a sorted run of records.
type stretch interface {
	head() (key, value []byte) // nil, nil at the end
	next() error               // what head returned is not valid any more
}

// bufferSource is a run in memory.
type bufferSource struct {
	r  *records
	at []uint32
}

func (b *bufferSource) head() (key, value []byte) {
	if len(b.at) == 0 {
		return nil, nil
	}
	return b.r.get(b.at[0])
}

func (b *bufferSource) next() error {
	b.at = b.at[1:]
	return nil
}

// runSource is a run in a file.
type runSource struct {
	dir        string
	r          io.Reader
	buf        []byte // read and not yet used: buf[at:]
	at         int
	key, value []byte
}

func (s *runSource) head() (key, value []byte) { return s.key, s.value }

func (s *runSource) next() error {
	s.key, s.value = nil, nil
	if ok, err := s.need(recordHead); !ok {
		return err
	}
	k, v := binary.LittleEndian.Uint32(s.buf[s.at:]), binary.LittleEndian.Uint32(s.buf[s.at+4:])
	n := recordHead + int(k) + int(v)
	if ok, err := s.need(n); !ok {
		return cmp.Or(err, tempError(s.dir, io.ErrUnexpectedEOF))
	}
	s.key, s.value = parseRecord(s.buf[s.at : s.at+n])
	s.at += n
	return nil
}

// need reads on until n bytes are there; false at the end of the run.
func (s *runSource) need(n int) (bool, error) {
	for len(s.buf)-s.at < n {
		s.buf = s.buf[:copy(s.buf, s.buf[s.at:])]
		s.at = 0
		s.buf = slices.Grow(s.buf, max(0, n-len(s.buf)))
		got, err := s.r.Read(s.buf[len(s.buf):cap(s.buf)])
		s.buf = s.buf[:len(s.buf)+got]
		if err == io.EOF && got == 0 {
			return false, nil
		}
		if err != nil && err != io.EOF {
			return false, tempError(s.dir, err)
		}
	}
	return true, nil
}

// merger merges runs: a heap with the least head on top.
type merger struct{ runs runHeap }

type runHeap []run

type run struct {
	stretch
	key, value []byte
}

func (h runHeap) Len() int { return len(h) }
func (h runHeap) Less(i, j int) bool {
	return compareRecords(h[i].key, h[i].value, h[j].key, h[j].value) < 0
}
func (h runHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *runHeap) Push(x any)   { *h = append(*h, x.(run)) }
func (h *runHeap) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}

func newMerger(sources []stretch) *merger {
	m := &merger{}
	for _, s := range sources {
		if key, value := s.head(); key != nil {
			m.runs = append(m.runs, run{s, key, value})
		}
	}
	heap.Init(&m.runs)
	return m
}

func (m *merger) ok() bool { return len(m.runs) > 0 }

// head returns the least record, valid until next.
func (m *merger) head() (key, value []byte) { return m.runs[0].key, m.runs[0].value }

func (m *merger) next() error {
	top := &m.runs[0]
	if err := top.next(); err != nil {
		return err
	}
	if top.key, top.value = top.head(); top.key == nil {
		heap.Pop(&m.runs)
	} else {
		heap.Fix(&m.runs, 0)
	}
	return nil
}

// spool is bytes that are written first and read afterwards: in memory while
// they are few, then in a file. For one goroutine.
type spool struct {
	dir  string
	buf  []byte // what is not in the file
	file *os.File
	size int64 // of file
}

func (s *spool) len() int64 { return s.size + int64(len(s.buf)) }

// room flushes if the buffer is full; then anything may be appended to buf.
func (s *spool) room() (err error) {
	if len(s.buf) < spoolMemory {
		return nil
	}
	if s.file == nil {
		if s.file, err = tempFile(s.dir); err != nil {
			return err
		}
	}
	if _, err := s.file.Write(s.buf); err != nil {
		return tempError(s.dir, err)
	}
	s.size += int64(len(s.buf))
	s.buf = s.buf[:0]
	return nil
}

// reader reads everything from the beginning.
func (s *spool) reader() io.Reader {
	if s.file == nil {
		return bytes.NewReader(s.buf)
	}
	return io.MultiReader(io.NewSectionReader(s.file, 0, s.size), bytes.NewReader(s.buf))
}

func (s *spool) close() {
	if s.file != nil {
		_ = s.file.Close() // it has no name: nobody will read it
	}
	s.buf = nil
}

// queue is a spool that is read while it is written.
type queue struct {
	spool
	at   int64  // what was read
	page []byte // of the file, from at on: the end of mem
	mem  []byte
}

// read fills p with the next bytes; false if so many are not there.
func (q *queue) read(p []byte) (bool, error) {
	if q.at+int64(len(p)) > q.len() {
		return false, nil
	}
	for len(p) > 0 {
		var n int
		switch {
		case q.at >= q.size:
			n = copy(p, q.buf[q.at-q.size:])
		case len(q.page) == 0:
			q.mem = slices.Grow(q.mem[:0], smallChunk)
			q.page = q.mem[:min(smallChunk, q.size-q.at)]
			if _, err := q.file.ReadAt(q.page, q.at); err != nil {
				return false, tempError(q.dir, err)
			}
		default:
			n = copy(p, q.page)
			q.page = q.page[n:]
		}
		p, q.at = p[n:], q.at+int64(n)
	}
	return true, nil
}
