package prefetch

import "stoker.dev/planner/order"

// epoch is the order of one, and which ranks read of it. Epochs.mu guards all that
// changes.
type epoch struct {
	number uint64
	order  []uint32 // samples by position
	at     []uint32 // positions by sample
	ranks  map[int]*readerRank
}

func newEpoch(e *Epochs, number uint64, deck *order.Deck) *epoch {
	x := &epoch{number: number, order: deck.Take(e.sampler, number), ranks: map[int]*readerRank{}}
	x.at = make([]uint32, len(x.order))
	for p, s := range x.order {
		x.at[s] = uint32(p)
	}
	return x
}

// readerRank is a rank that reads here, or does not: it is believed after some reads
// next to each other.
type readerRank struct {
	recent [rankReads]int // a ring of steps
	reads  int
	runs   int     // reads that were next to another one; before it is believed, of the last ones
	mean   float64 // of the last steps: its workers read some batches at the same time
	front  int     // the last step that one of them has read
	next   int     // step to bring in next
	window int     // steps to keep ahead
}

func (r *readerRank) believed() bool { return r.runs >= runsNeeded }

// fit says how well a read fits an epoch.
type fit int

const (
	stray  fit = iota
	inTurn     // it was brought in ahead
	inRun      // it is next to another one of its rank
)

// find says where a sample is in an epoch.
func (x *epoch) find(e *Epochs, sample uint32) (rank, step int, f fit) {
	p := int(x.at[sample])
	rank, step = p%e.sampler.World, p/e.sampler.World
	r := x.ranks[rank]
	switch {
	case step >= e.steps: // it is dropped
		return rank, step, stray
	case r == nil:
		return rank, step, stray
	case r.beside(step):
		return rank, step, inRun
	case step < r.next && step >= int(r.mean)-max(r.window, atBeginning) && (r.believed() || x == e.next):
		return rank, step, inTurn
	}
	return rank, step, stray
}

func (r *readerRank) beside(step int) bool {
	for _, s := range r.recent[:min(r.reads, rankReads)] {
		if s == step-1 || s == step+1 {
			return true
		}
	}
	return false
}

// rank returns one. Of too many, one goes that is not believed.
func (x *epoch) rank(e *Epochs, n int) *readerRank {
	r := x.ranks[n]
	if r != nil {
		return r
	}
	for other, r := range x.ranks {
		if len(x.ranks) < mostRanks {
			break
		}
		if !r.believed() {
			delete(x.ranks, other)
		}
	}
	if len(x.ranks) >= mostRanks {
		return nil
	}
	r = &readerRank{window: e.first}
	x.ranks[n] = r
	return r
}

// saw takes a read of a rank in.
func (x *epoch) saw(e *Epochs, rank, step int, f fit, waited bool) *readerRank {
	if step >= e.steps {
		return nil
	}
	r := x.rank(e, rank)
	if r == nil {
		return nil
	}
	if r.reads%runsOf == 0 && !r.believed() {
		r.runs = 0 // a few are by chance
	}
	r.recent[r.reads%rankReads] = step
	r.reads++
	if f == inRun {
		if r.runs++; r.runs == runsNeeded {
			r.start()
		}
	}
	if f != stray && r.believed() {
		if r.mean += (float64(step) - r.mean) / 16; step < int(r.mean)+atBeginning { // else it is by chance
			r.front = max(r.front, step)
		}
		if waited {
			r.window = min(2*r.window, e.most)
		}
	}
	return r
}

// start begins to follow a rank, behind the first of its reads.
func (r *readerRank) start() {
	first, last, sum, n := -1, 0, 0, 0
	for _, s := range r.recent[:min(r.reads, rankReads)] {
		if !r.beside(s) {
			continue
		}
		if first < 0 || s < first {
			first = s
		}
		last, sum, n = max(last, s), sum+s, n+1
	}
	r.mean, r.front, r.next = float64(sum)/float64(n), last, max(r.next, first+1)
}

// rewound reports whether the rank reads the epoch from its beginning once more, and
// goes back there: all of it has come, and its reads are again where they were long ago.
// A window that is half of the epoch, or more, tells nothing: then they have been at its end.
func (r *readerRank) rewound(step, steps int) bool {
	back := r.next >= steps && int(r.mean) < steps/2 && step < steps/2 && (int(r.mean)+r.window < steps/2 || r.front >= steps-steps/8)
	if back {
		r.mean, r.front, r.next = float64(step), step, step+1
	}
	return back
}

// ends reports whether a rank's window has come so far that the next epoch's order
// should be known soon.
func (x *epoch) ends(steps int) bool {
	for _, r := range x.ranks {
		if r.believed() && r.next >= steps-steps/8 {
			return true
		}
	}
	return false
}
