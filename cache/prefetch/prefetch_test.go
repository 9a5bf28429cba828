package prefetch

import (
	"math/rand/v2"
	"sync/atomic"
	"testing"
)

// line is a dataset of objects of equal size that fill shards of a few.
type line struct {
	objects, blocks, perShard int // blocks of an object
}

func (l line) pos(object, block int) Pos {
	object += block / l.blocks
	return Pos{Shard: uint32(object / l.perShard), Block: object%l.perShard*l.blocks + block%l.blocks}
}

// read is one of n blocks of an object.
func (l line) read(object, block, n int, waited bool) Read {
	return Read{At: l.pos(object, block), After: l.pos(object, block+n), Blocks: n, Object: uint32(object), Left: l.blocks - block - n, First: block == 0, Waited: waited}
}

// here is what a reader's tracker brought in, all of it at once, in order.
type here struct {
	t      Tracker
	l      line
	in     map[int]bool // block of the dataset
	misses int
}

func (h *here) index(p Pos) int { return int(p.Shard)*h.l.perShard*h.l.blocks + p.Block }

// want reads one block as a cache does: a miss brings in a window of demand, what
// is here is noted only while somebody is followed.
func (h *here) want(object, block int) {
	waited := !h.in[object*h.l.blocks+block]
	r := h.l.read(object, block, 1, false)
	if waited {
		h.misses++
		n := min(FirstWindow-block%FirstWindow, h.l.blocks-block)
		r = h.l.read(object, block, n, true)
		for b := range n {
			h.in[object*h.l.blocks+block+b] = true
		}
	} else if !h.t.Acting() {
		return
	}
	ahead := h.t.Note(r)
	for i, at := 0, h.index(r.After); i < ahead && at+i < h.l.objects*h.l.blocks; i++ {
		h.in[at+i] = true
	}
}

func of(l line) *here { return &here{l: l, in: map[int]bool{}} }

// A reader who catches up with what comes ahead of him waits for each block of it;
// he is followed on.
func TestReaderWhoCatchesUp(t *testing.T) {
	l := line{objects: 1, blocks: 2000, perShard: 1}
	var followed atomic.Int64
	tr := Tracker{Followed: func() { followed.Add(1) }}
	for block := range l.blocks {
		to := min(l.blocks, (block/FirstWindow+1)*FirstWindow)
		ahead := tr.Note(l.read(0, block, to-block, true))
		if begun := block%FirstWindow == 0; begun && block > largeSpan && block < l.blocks-MostWindow && ahead == 0 {
			t.Fatalf("nothing comes ahead of block %d", block)
		}
	}
	if n := followed.Load(); n != 1 {
		t.Errorf("one reader was followed %d times", n)
	}
}

// A file that is read front to back is brought in ahead of its reader, across
// shards, and not beyond its end: from its second window on, and if the reader did not begin
// with it from the third.
func TestLargeFile(t *testing.T) {
	const blocks = 1000
	for from, waits := range map[int]int{0: 2, 5 * FirstWindow: 3} {
		h := of(line{objects: 3, blocks: blocks, perShard: 1})
		for b := from; b < blocks; b++ {
			h.want(1, b)
		}
		if h.misses != waits {
			t.Errorf("from block %d: %d waits, want %d", from, h.misses, waits)
		}
		if len(h.in) != blocks-from {
			t.Errorf("%d blocks for %d", len(h.in), blocks-from)
		}
	}
}

// Reads that the kernel sends at once may pass each other.
func TestReadsThatPassEachOther(t *testing.T) {
	h := of(line{objects: 1, blocks: 2000, perShard: 1})
	for b := 0; b < 2000; b += 4 {
		for _, i := range []int{2, 0, 3, 1} {
			h.want(0, b+i)
		}
	}
	if h.misses > 2*(largeSpan/FirstWindow+1) { // two in each window until they are followed
		t.Errorf("%d waits", h.misses)
	}
}

// Several readers, each with a file of its own, are as many streams.
func TestSeveralReaders(t *testing.T) {
	const readers = 16
	h := of(line{objects: readers, blocks: 800, perShard: 1})
	for b := range 800 {
		for r := range readers {
			h.want(r, b)
		}
	}
	if h.misses > 3*readers {
		t.Errorf("%d waits of %d readers", h.misses, readers)
	}
}

// Small files in the order of the listing come in ahead, across shards too.
func TestSmallFilesInOrder(t *testing.T) {
	h := of(line{objects: 2000, blocks: 1, perShard: 100})
	for o := range 2000 {
		h.want(o, 0)
	}
	if h.misses > smallRuns+1 {
		t.Errorf("%d waits", h.misses)
	}
}

// What is read in no order brings next to nothing in that is not asked for.
func TestRandomReadsBringNothing(t *testing.T) {
	for name, l := range map[string]line{
		"small files": {objects: 20_000, blocks: 1, perShard: 200},
		"one file":    {objects: 1, blocks: 16_384, perShard: 1},
	} {
		h := of(l)
		var asked int
		r := rand.New(rand.NewPCG(1, 2))
		for range 2000 {
			o, b := r.IntN(l.objects), r.IntN(l.blocks)
			missed := h.misses
			h.want(o, b)
			if h.misses > missed {
				asked += min(FirstWindow, l.blocks)
			}
		}
		if extra := float64(len(h.in)) / float64(asked); extra > 1.02 {
			t.Errorf("%s: %.3f of what was asked for", name, extra)
		}
	}
}

// Strides beyond a window are not taken for a stream.
func TestStrides(t *testing.T) {
	h := of(line{objects: 1, blocks: 16_384, perShard: 1})
	for b := 0; b < 16_384; b += 4 * FirstWindow {
		h.want(0, b)
	}
	if want := 16_384 / 4; len(h.in) != want {
		t.Errorf("%d blocks, want %d", len(h.in), want)
	}
}

// The window grows while the reader waits, and no further than its bound; a
// stream that is left is forgotten, and Acting with it.
func TestWindow(t *testing.T) {
	var tr Tracker
	l := line{objects: 1, blocks: 1 << 20, perShard: 1}
	most := 0
	for b := 0; b < 100*FirstWindow; b += FirstWindow {
		most = max(most, tr.Note(l.read(0, b, FirstWindow, true)))
	}
	if most != MostWindow {
		t.Errorf("at most %d blocks ahead, want %d", most, MostWindow)
	}
	for _, bound := range []int{FirstWindow / 2, 2 * FirstWindow} {
		own, most := Tracker{Most: bound}, 0
		for b := 0; b < 100*FirstWindow; b += FirstWindow {
			most = max(most, own.Note(l.read(0, b, FirstWindow, true)))
		}
		if most != bound {
			t.Errorf("at most %d blocks ahead, want %d", most, bound)
		}
	}
	if !tr.Acting() {
		t.Fatal("nobody is followed")
	}
	r := rand.New(rand.NewPCG(3, 4))
	for range idle + streams {
		tr.Note(l.read(0, 1<<15+r.IntN(1<<19), 1, true))
	}
	if tr.Acting() {
		t.Error("a stream that ended is followed for ever")
	}
}

func BenchmarkNote(b *testing.B) {
	var tr Tracker
	l := line{objects: 64, blocks: 1 << 20, perShard: 1}
	b.ReportAllocs()
	for i := range b.N {
		tr.Note(l.read(i%64, i/64%(1<<19), 1, false))
	}
}
