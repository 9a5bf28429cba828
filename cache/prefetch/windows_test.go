package prefetch

import "testing"

func missed(w *Windows, object uint32, n int) (whole int) {
	for range n {
		if w.Missed(Miss{Object: object}) {
			whole++
		}
	}
	return whole
}

// Windows of scattered misses end after eight in vain, come again when misses lie beside
// what is here, and are not missed by who goes on.
func TestWindowsEndAndComeAgain(t *testing.T) {
	w := &Windows{}
	if whole := missed(w, 1, 100); whole != tries {
		t.Fatalf("%d windows of scattered misses", whole)
	}
	for run, want := range map[int]bool{0: false, 1: false, runs - 1: false, runs: true, FirstWindow - 1: true, FirstWindow: true} {
		w := &Windows{}
		missed(w, 1, 100)
		if got := w.Missed(Miss{Object: 1, Run: run}); got != want {
			t.Errorf("behind %d blocks: a window: %t", run, got)
		}
	}
	for range 1000 { // somebody who reads in order changes nothing for the others
		w.Missed(Miss{Object: 1, Run: FirstWindow})
	}
	if missed(w, 1, 1) != 0 {
		t.Error("a window for a scattered miss beside a reader in order")
	}
	near := 0
	for ; !w.Missed(Miss{Object: 1, Near: true}); near++ {
	}
	if near != saved*(doubts-tries)+1 {
		t.Errorf("windows came again after %d misses beside what is here", near)
	}
	w = &Windows{}
	missed(w, 1, 100)
	for i := range 1000 { // three of five: a window would save too few
		if w.Missed(Miss{Object: 1, Near: i%5 < 3}) {
			t.Fatalf("a window after %d misses", i)
		}
	}
}

// A window in which somebody reads on is not held against the others.
func TestUsedWindowsAreNotInVain(t *testing.T) {
	w := &Windows{}
	for i := range 100 {
		if missed(w, 1, 1) != 1 {
			t.Fatalf("window %d did not come", i)
		}
		w.Used(1)
	}
	if whole := missed(w, 1, 100); whole != tries {
		t.Errorf("%d windows after that", whole)
	}
}

// What is read at random in one object is not held against another one whose windows are
// used; a new one begins as its dataset is read.
func TestObjectsHaveWindowsOfTheirOwn(t *testing.T) {
	w := &Windows{}
	missed(w, 2, 1)
	w.Used(2)
	missed(w, 1, 100)
	if missed(w, 2, 1) != 1 || missed(w, 3, 1) != 0 {
		t.Error("another object has no window, or a new one has")
	}
	for k := range uint32(10 * judged) {
		missed(w, 4+k, 1)
	}
	if len(w.objects) != judged {
		t.Errorf("%d objects are remembered", len(w.objects))
	}
	for range doubts {
		w.Used(5000)
	}
	if missed(w, 6000, 1) != 1 {
		t.Error("a new object has no window where those of its dataset are used")
	}
}
