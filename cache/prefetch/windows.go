package prefetch

import "sync"

const (
	tries  = 8  // windows in vain before those of scattered misses end
	doubts = 16 // the most that are held against them
	saved  = 3  // misses that windows would have saved are as good as one that they would not
	runs   = 4  // blocks in a row, 1 MiB, that a reader has gone over who goes on

	judged = 64 // objects remembered; the one that was not missed for the longest time goes first
)

// Windows decides whether a miss brings in the window that it lies in, or no more than
// was asked for. A reader who goes on where something came in has the whole window at
// once, whatever others do in the same object. Of those who begin somewhere the windows
// are weighed: each is held against its object until somebody reads on in it; without
// windows each miss beside something that is here speaks for them, for with them it
// would have been none. An object that is new begins with what its dataset has. It may
// be used from any goroutine.
type Windows struct {
	Tries int // windows in vain before those of scattered misses end; 8 unless it is from 1 on

	mu      sync.Mutex
	all     score        // +checklocks:mu — of the dataset
	objects []objectRead // +checklocks:mu
	misses  uint64       // +checklocks:mu — all of them, the clock of last
}

type objectRead struct {
	object uint32
	score  score
	last   uint64
}

// score is how many windows came in vain, lately, times saved.
type score int

func (s *score) add(n score) { *s = min(max(*s+n, 0), doubts*saved) }

// Miss is a read of a block of an object that is neither here nor on its way.
type Miss struct {
	Object uint32
	Run    int  // blocks right before it that are here or on their way, as far as FirstWindow
	Near   bool // some of its window is
}

// Missed takes a miss in. whole: its window is to come.
func (w *Windows) Missed(m Miss) (whole bool) {
	if m.Run >= FirstWindow {
		return true
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	by := score(saved)
	if m.Near || m.Run > 0 {
		by = -1
	}
	w.misses++
	o := w.of(m.Object)
	whole = int(o.score) < w.tries()*saved || m.Run >= runs
	o.last = w.misses
	o.score.add(by)
	w.all.add(by)
	return whole
}

func (w *Windows) tries() int {
	if w.Tries > 0 {
		return w.Tries
	}
	return tries
}

// Used takes in that somebody read on in a window of an object.
func (w *Windows) Used(object uint32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.of(object).score.add(-saved)
	w.all.add(-saved)
}

// of returns what is remembered of an object.
// REQUIRES: w.mu is held.
func (w *Windows) of(object uint32) *objectRead {
	oldest := 0
	for i := range w.objects {
		switch o := &w.objects[i]; {
		case o.object == object:
			return o
		case o.last < w.objects[oldest].last:
			oldest = i
		}
	}
	fresh := objectRead{object: object, score: w.all, last: w.misses}
	if len(w.objects) < judged {
		w.objects = append(w.objects, fresh)
		return &w.objects[len(w.objects)-1]
	}
	w.objects[oldest] = fresh
	return &w.objects[oldest]
}
