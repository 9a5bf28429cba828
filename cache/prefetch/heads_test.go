package prefetch

import "testing"

// begin begins files, from a number on, of which so many blocks are read by who asks for
// one; it returns how many came with the first of each.
func begin(h *Heads, from uint32, files, read int) (brought []int) {
	for k := range uint32(files) {
		brought = append(brought, h.Blocks())
		h.Began(from+k, 1)
		if read > 1 {
			h.Read(from+k, read)
		}
	}
	return brought
}

// Files that are only begun bring what is read of them, the longest of the last eight, when
// as many were begun as readers may be at once and eight more; one that is read on changes
// that at once.
func TestBeginsBringWhatIsRead(t *testing.T) {
	h := &Heads{}
	for i, n := range begin(h, 0, 100, 1) {
		want := 1
		if i < beginners+agree {
			want = FirstWindow
		}
		if n != want {
			t.Fatalf("file %d: %d blocks, want %d", i, n, want)
		}
	}
	h.Read(99, 3)
	if got := begin(h, 100, agree, 1); got[0] != 3 || got[agree-1] != 3 {
		t.Errorf("after one of three blocks %v", got)
	}
	if got := begin(h, 200, 2, 1); got[1] != 1 {
		t.Errorf("after eight more %v", got)
	}
	if h.Read(7, FirstWindow); h.Blocks() != FirstWindow { // begun long ago
		t.Errorf("after a file that is read on %d", h.Blocks())
	}
	if h.Read(8, 2*FirstWindow); h.Blocks() != FirstWindow {
		t.Errorf("%d blocks, want a window at most", h.Blocks())
	}
}

// As many readers at once as there may be keep their windows, whatever lies between a file's
// beginning and the rest, and with seven files of eight only begun.
func TestBeginsOfReadersInOrderStay(t *testing.T) {
	h := &Heads{}
	for round := range uint32(10) {
		for _, n := range begin(h, round*beginners, beginners, 1) {
			if n != FirstWindow {
				t.Fatalf("round %d: %d blocks", round, n)
			}
		}
		for k := range uint32(beginners) {
			for blocks := 2; blocks <= FirstWindow; blocks++ {
				h.Read(round*beginners+k, blocks)
			}
		}
	}
	for i := range uint32(100) {
		for _, n := range append(begin(h, 1000+agree*i, agree-1, 1), begin(h, 1000+agree*i+agree-1, 1, FirstWindow)...) {
			if n != FirstWindow {
				t.Fatalf("%d: %d blocks", i, n)
			}
		}
	}
	if len(h.begun) > beginners || len(h.known) > agree {
		t.Errorf("%d and %d files are remembered", len(h.begun), len(h.known))
	}
}
