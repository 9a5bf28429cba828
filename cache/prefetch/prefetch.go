// Package prefetch tells from the reads of a dataset what will be read next.
//
// A dataset is one line of blocks, shard after shard in the order of its
// listing: a large file that is read from its start, a file of records read
// front to back, and small files opened one after the other are the same there,
// a stream. A read that goes on where another one ended belongs to that one's
// stream; so several readers at once are several streams. What is read in no
// order begins a stream each time and brings nothing in ahead.
package prefetch

import (
	"sync"
	"sync/atomic"
)

// Pos is a block of a dataset. The position behind the last block of a shard is
// block 0 of the next.
type Pos struct {
	Shard uint32
	Block int
}

// Read is what one read touched: the blocks from At up to After, of one object. Of a read
// that waited, these are all that come with what it waits for.
type Read struct {
	At, After Pos
	Blocks    int    // between them; 0 if the block was not read to its end
	Object    uint32 // any number that tells objects apart
	Left      int    // blocks of the object behind After
	First     bool   // At is the object's first
	Waited    bool   // for bytes that were not here
}

// Bounds of a stream, in blocks of at most 256 KiB.
const (
	FirstWindow = 16  // ahead of a reader at first: 4 MiB
	MostWindow  = 256 // and when it had to wait again and again: 64 MiB

	streams   = 64           // remembered; the one that was not read for the longest time goes first
	slack     = 16           // blocks by which reads of one stream may pass each other
	largeSpan = 3 * 16       // in order before a reader of large objects is followed: three windows of demand,
	wholeSpan = 2 * 16       // and two if it began at its object's first byte
	smallRuns = 3            // objects in a row before what follows them is read ahead
	young     = 32           // reads of others after which a stream that is not followed is forgotten
	idle      = 64 * streams // and one that is
)

// Tracker follows the reads of one dataset. It may be used from any goroutine.
type Tracker struct {
	Most     int    // blocks ahead of one stream; MostWindow unless it is from 1 on
	Followed func() // called for each stream that is read ahead of; may be nil

	mu      sync.Mutex
	streams []stream // +checklocks:mu
	reads   uint64   // +checklocks:mu — all of them, the clock of idle

	acting atomic.Int32 // streams that are followed
}

// stream is reads that go on one after the other.
type stream struct {
	next    Pos // where it goes on
	object  uint32
	whole   bool   // it began with its object
	crossed int    // objects that it went on to
	span    int    // blocks that it went over, lately
	seen    int    // of those, the ones that were read
	lead    int    // blocks brought in, or on their way, from next on
	window  int    // blocks to keep ahead; 0: it is only watched
	last    uint64 // read
}

// Note takes a read in and returns how many blocks from r.After on to bring in
// now. Blocks that are here, or on their way, may be among them.
func (t *Tracker) Note(r Read) (ahead int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.reads++
	s, behind := t.find(r)
	if s == nil {
		t.begin(r)
		return 0
	}
	s.last = t.reads
	if behind { // or read again
		s.seen = min(s.span, s.seen+r.Blocks)
		return 0
	}
	s.advance(r)
	if !s.inOrder() {
		if s.window > 0 {
			t.acting.Add(-1)
		}
		s.window, s.lead = 0, 0
		return 0
	}
	return t.ahead(s, r)
}

// Acting reports whether reads that find their blocks here need be noted: some
// stream is read ahead of.
func (t *Tracker) Acting() bool {
	return t.acting.Load() > 0
}

func count(followed func()) {
	if followed != nil {
		followed()
	}
}

// find returns the stream that a read belongs to; behind: it was there before.
func (t *Tracker) find(r Read) (found *stream, behind bool) {
	exact := false
	for i := range t.streams {
		s := &t.streams[i]
		if t.over(s) {
			continue
		}
		d := r.At.Block - s.next.Block
		switch {
		case r.At == s.next:
			if !exact || s.span > found.span {
				found, behind, exact = s, false, true
			}
		case exact || r.At.Shard != s.next.Shard:
		case d > 0 && d <= slack && s.object == r.Object: // what lies between comes later
			found, behind = s, false
		case d < 0 && d >= -slack && found == nil, r.After == s.next && found == nil:
			found, behind = s, true
		}
	}
	return found, behind
}

// over reports whether a stream has ended, and stops to read ahead of it.
func (t *Tracker) over(s *stream) bool {
	age := t.reads - s.last
	if s.window > 0 && age > idle {
		s.window, s.lead = 0, 0
		t.acting.Add(-1)
	}
	return s.window == 0 && age > young
}

func (t *Tracker) begin(r Read) {
	s := stream{next: r.After, object: r.Object, whole: r.First, span: r.Blocks, seen: r.Blocks, last: t.reads}
	if len(t.streams) < streams {
		t.streams = append(t.streams, s)
		return
	}
	oldest := &t.streams[0]
	for i := range t.streams {
		if t.streams[i].last < oldest.last {
			oldest = &t.streams[i]
		}
	}
	if oldest.window > 0 {
		t.acting.Add(-1)
	}
	*oldest = s
}

// advance moves the stream on to the end of a read.
func (s *stream) advance(r Read) {
	gap := 0
	if r.At.Shard == s.next.Shard {
		gap = r.At.Block - s.next.Block
	}
	if r.Object != s.object {
		s.crossed++
		s.object, s.whole = r.Object, false
	}
	s.next = r.After
	s.span += gap + r.Blocks
	s.seen += r.Blocks
	s.lead = max(0, s.lead-gap-r.Blocks)
	if s.span > MostWindow { // what was long ago counts less and less
		s.span, s.seen = s.span/2, s.seen/2
	}
}

// inOrder reports whether enough was read, and nearly all of what lay between.
func (s *stream) inOrder() bool {
	enough := s.crossed >= smallRuns || s.span >= largeSpan || s.whole && s.span >= wholeSpan
	return enough && s.seen*4 >= s.span*3
}

func (t *Tracker) most() int {
	if t.Most > 0 {
		return t.Most
	}
	return MostWindow
}

// ahead decides how much comes in now. The window grows only while the reader
// waits: one that computes longer than the store takes needs no more.
func (t *Tracker) ahead(s *stream, r Read) int {
	switch {
	case s.window == 0:
		s.window = min(FirstWindow, t.most())
		t.acting.Add(1)
		count(t.Followed)
	case r.Waited:
		s.window = min(2*s.window, t.most())
	}
	if r.Waited { // what was asked for may not have been begun
		s.lead = 0
	}
	most := s.window
	if s.crossed < smallRuns { // who reads one file may not read the next
		most = min(most, r.Left)
	}
	if s.lead > s.window/2 || most <= s.lead {
		return 0
	}
	s.lead = most
	return most
}
