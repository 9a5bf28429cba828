package prefetch

import (
	"sync"
	"sync/atomic"
)

// Bounds of readers in steps, in bytes where they say nothing else.
const (
	equalSteps = 3               // of one length before what follows is read ahead
	leastStep  = 4<<20 + 256<<10 // what lies closer is a stream of windows of demand
	mostPiece  = leastStep / 2   // of one piece; what goes on for longer is no piece
	rounding   = 8 << 10         // by which steps may differ: the kernel asks for whole pages
	firstSteps = 4               // pieces ahead of a reader at first
	mostSteps  = 32              // and when it had to wait again and again

	steppers    = 64 // remembered; the one that was not read for the longest time goes first
	stepperIdle = 64 * steppers
)

// Piece is what a read touched of an object: Bytes from At on.
type Piece struct {
	Object    uint32
	At, Bytes int64
	Waited    bool // for bytes that were not here
}

// Pieces are what a reader in steps will read next, all of one length.
type Pieces struct {
	Bytes int64
	At    []int64 // ascending, or descending where the reader goes back
}

// Steps follows readers that read pieces of an object at equal distances: a
// column of a table with rows of one size, every n-th record. It names those
// pieces and not what lies between. It may be used from any goroutine.
type Steps struct {
	Followed func() // called for each reader that is read ahead of; may be nil

	mu    sync.Mutex
	all   []stepper // +checklocks:mu
	reads uint64    // +checklocks:mu — all of them, the clock of stepperIdle

	acting atomic.Int32 // steppers that are followed
}

// stepper is a reader of pieces of one object.
type stepper struct {
	object uint32
	at     int64 // where its last piece began
	bytes  int64 // of the longest piece
	origin int64 // where the piece was that its equal steps began at
	equal  int64 // steps since
	lead   int64 // pieces brought in, or on their way
	window int64 // pieces to keep ahead; 0: it is only watched
	last   uint64
}

// step is the mean of the equal steps, which rounding does not move.
func (s *stepper) step() int64 { return (s.at - s.origin) / max(s.equal, 1) }

// expects reports whether a distance from the last piece is one more equal step.
func (s *stepper) expects(d int64) bool {
	off := d - s.step()
	return s.equal > 0 && off <= rounding && off >= -rounding
}

// Note takes a read in and returns what to bring in now.
func (t *Steps) Note(r Piece) Pieces {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.reads++
	s := t.find(r)
	if s == nil {
		t.begin(r)
		return Pieces{}
	}
	s.last = t.reads
	switch d := r.At - s.at; {
	case d >= 0 && d <= s.bytes && d+r.Bytes <= mostPiece: // more of the same piece
		s.bytes = max(s.bytes, d+r.Bytes)
		return Pieces{}
	case s.expects(d):
		s.equal++
		s.lead = max(0, s.lead-1)
	default:
		s.origin, s.equal = s.at, 1
	}
	s.at, s.bytes = r.At, min(max(s.bytes, r.Bytes), mostPiece)
	if step := s.step(); s.equal < equalSteps || step < leastStep && step > -leastStep {
		t.drop(s)
		return Pieces{}
	}
	return t.ahead(s, r)
}

// Acting reports whether reads that find their bytes here need be noted.
func (t *Steps) Acting() bool { return t.acting.Load() > 0 }

// Follows reports whether a reader of an object is followed.
func (t *Steps) Follows(object uint32) bool {
	if !t.Acting() {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range t.all {
		if t.all[i].object == object && t.all[i].window > 0 {
			return true
		}
	}
	return false
}

// find returns the reader that made a read: the one that it was expected of, else
// the last one of the object that is not followed, or whose piece it goes on with.
func (t *Steps) find(r Piece) (found *stepper) {
	for i := range t.all {
		s := &t.all[i]
		if s.window > 0 && t.reads-s.last > stepperIdle {
			t.drop(s)
		}
		if s.object != r.Object {
			continue
		}
		d := r.At - s.at
		if s.expects(d) {
			return s
		}
		within := d >= 0 && d <= s.bytes
		if (s.window == 0 || within) && (found == nil || s.last > found.last) {
			found = s
		}
	}
	return found
}

func (t *Steps) begin(r Piece) {
	s := stepper{object: r.Object, at: r.At, origin: r.At, bytes: min(r.Bytes, mostPiece), last: t.reads}
	if len(t.all) < steppers {
		t.all = append(t.all, s)
		return
	}
	oldest := &t.all[0]
	for i := range t.all {
		if t.all[i].last < oldest.last {
			oldest = &t.all[i]
		}
	}
	t.drop(oldest)
	*oldest = s
}

// drop ends that a reader is followed.
func (t *Steps) drop(s *stepper) {
	if s.window > 0 {
		t.acting.Add(-1)
	}
	s.window, s.lead = 0, 0
}

// ahead decides which pieces come in now. As of streams, more come only while the
// reader waits.
func (t *Steps) ahead(s *stepper, r Piece) Pieces {
	switch {
	case s.window == 0:
		s.window = firstSteps
		t.acting.Add(1)
		count(t.Followed)
	case r.Waited:
		s.window = min(2*s.window, mostSteps)
	}
	if r.Waited { // what was asked for may not have been begun
		s.lead = 0
	}
	if s.lead > s.window/2 {
		return Pieces{}
	}
	p := Pieces{Bytes: s.bytes}
	for s.lead < s.window {
		s.lead++
		p.At = append(p.At, s.at+s.lead*(s.at-s.origin)/s.equal)
	}
	return p
}
