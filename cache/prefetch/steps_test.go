package prefetch

import (
	"math/rand/v2"
	"testing"
)

// inSteps reads n pieces of an object and returns how many were not named before.
func inSteps(t *Steps, object uint32, from, step, bytes int64, n int, in map[int64]bool) (misses int) {
	for i := range int64(n) {
		at := from + i*step
		page := at / 4096 * 4096 // as the kernel asks
		waited := true
		for b := range in {
			waited = waited && (b > page+rounding || b < page-rounding)
		}
		if waited {
			misses++
		} else if !t.Acting() {
			continue
		}
		for _, next := range t.Note(Piece{Object: object, At: page, Bytes: bytes, Waited: waited}).At {
			in[next] = true
		}
	}
	return misses
}

// Pieces at equal distances are named ahead, whatever the distance, forwards and
// back, of several readers at once; nothing else is.
func TestPiecesAtEqualDistances(t *testing.T) {
	for _, step := range []int64{leastStep, 5_000_000, 64 << 20, 1_234_567_890, -10_000_001} {
		var tr Steps
		in := map[int64]bool{}
		from := max(0, -step) * 100
		if misses := inSteps(&tr, 1, from, step, 64<<10, 100, in); misses > equalSteps+1 {
			t.Errorf("step %d: %d waits", step, misses)
		}
		if len(in) > 100+mostSteps {
			t.Errorf("step %d: %d pieces named", step, len(in))
		}
	}
}

// A piece may be read in parts; all of it is named.
func TestPiecesInParts(t *testing.T) {
	var tr Steps
	var named Pieces
	for i := range int64(10) {
		for part := range int64(4) {
			if p := tr.Note(Piece{Object: 1, At: i*10<<20 + part*128<<10, Bytes: 128 << 10}); len(p.At) > 0 {
				named = p
			}
		}
	}
	if named.Bytes != 512<<10 {
		t.Errorf("pieces of %d bytes are named, want 512 KiB", named.Bytes)
	}
}

// Neither random reads nor streams are steps, and a reader that leaves its steps
// is not followed.
func TestWhatAreNoSteps(t *testing.T) {
	var tr Steps
	r := rand.New(rand.NewPCG(1, 2))
	named := 0
	note := func(at int64) {
		named += len(tr.Note(Piece{Object: 1, At: at, Bytes: 100_000, Waited: true}).At)
	}
	for range 10_000 {
		note(r.Int64N(4 << 30))
	}
	for i := range int64(1000) {
		note(i * 100_000)
	}
	for i := range int64(100) {
		note(i * 4 << 20)
	}
	if named != 0 || tr.Acting() {
		t.Errorf("%d pieces named, acting: %v", named, tr.Acting())
	}
	for i := range int64(10) {
		note(i * 20 << 20)
	}
	if named == 0 || !tr.Acting() {
		t.Fatal("steps are not followed")
	}
	for range stepperIdle + 2 {
		tr.Note(Piece{Object: 2, At: r.Int64N(4 << 30), Bytes: 1})
	}
	if tr.Acting() {
		t.Error("a reader that left is followed for ever")
	}
}
