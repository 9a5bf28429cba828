package prefetch

import (
	"math"
	"sync"

	"stoker.dev/planner/order"
)

const (
	// LeastSamples is how many a dataset has at least whose epochs are looked for: of fewer
	// any order looks right.
	LeastSamples = 512

	remembered = 256 // reads that an epoch is looked for by, at most
	firstTry   = 32  // and at least: then after twice as many each time
	leastWaits = 8   // of them for bytes that were not here: else nothing can be gained
	runsNeeded = 6   // reads next to others, of runsOf of a rank, before it is believed
	runsOf     = 16
	looked     = 64  // reads after which it is judged again whether an epoch is the right one
	mostRanks  = 256 // that read through one mount
	rankReads  = 32  // of a rank, that the next ones are compared with
	mostTurn   = 32  // samples at a time
	mostGap    = 8192
	furthest   = 4096 // steps of a window
	leastMost  = 4    // likewise, of samples however large: of each, MostWindow comes at most
	blockBytes = 256 << 10
)

// Epochs follows a job whose sampler is known: it finds the epoch, and which ranks
// read, by the samples that are read, and tells which ones come next. What it finds
// is a guess that the reads must bear out: in the right order most reads are next
// to another one of the same rank, in a wrong one hardly any. It may be used from any
// goroutine.
type Epochs struct {
	Found func() // is called for each epoch that is recognised; may be nil

	sampler     order.Sampler
	samples     int
	steps       int    // of a rank in an epoch
	mean        int64  // bytes of a sample
	first, most int    // of a window, in steps
	work        int    // mostWork
	whole       uint64 // the next epoch to look at as a whole; only Think has it

	mu       sync.Mutex
	recent   [remembered]uint32 // +checklocks:mu — a ring of the samples that were read
	noted    uint64             // +checklocks:mu — all reads
	since    uint64             // +checklocks:mu — reads before this one are of an epoch that has ended
	waited   int                // +checklocks:mu — reads that waited, since it was last looked for an epoch
	tryAt    uint64             // +checklocks:mu — when to look for one
	searchAt uint64             // +checklocks:mu — and not only for those that probably come
	gap      uint64             // +checklocks:mu — reads from that search to the one after it
	thinking bool               // +checklocks:mu — Think is to be called, or runs
	last     uint64             // +checklocks:mu — the epoch that was followed last, if any was
	any      bool               // +checklocks:mu — one was
	again    bool               // +checklocks:mu — the job reads the same epoch again and again
	now      *epoch             // +checklocks:mu — that is followed; nil: none
	next     *epoch             // +checklocks:mu — that will probably follow it; nil: not known yet
	judged   int                // +checklocks:mu — reads since it was last judged
	fits     [2]int             // +checklocks:mu — of those, the ones that fitted now, and next
}

// NewEpochs is for so many samples of so many bytes together. REQUIRES: samples is
// LeastSamples to order.MostSamples.
func NewEpochs(s order.Sampler, samples int, bytes int64) *Epochs {
	mean := max(1, bytes/int64(samples))
	of := func(blocks int) int { return int(min(int64(blocks)*blockBytes/mean, furthest)) }
	return &Epochs{sampler: s, samples: samples, mean: mean, steps: s.Steps(samples), first: max(1, min(of(FirstWindow), mostRanks)), most: max(leastMost, of(MostWindow)),
		work: mostWork, tryAt: firstTry, gap: firstTry}
}

// Limit bounds what comes ahead of one reader to less than MostWindow. REQUIRES: nothing
// was noted yet.
func (e *Epochs) Limit(bytes int64) {
	if bytes >= MostWindow*blockBytes {
		return
	}
	steps := int(max(1, min(bytes/e.mean, furthest)))
	e.first, e.most = min(e.first, steps), min(e.most, steps)
}

// Memory is how many bytes it holds at most.
func Memory(samples int) int64 { return 16 * int64(samples) } // two epochs, both ways

// Turn is what is to be brought in now, in this order.
type Turn struct {
	Samples [mostTurn]uint32
	N       int // of them

	of    *epoch
	rank  int
	begin int // step of the first
}

// Note takes in that a sample is read. waited: its first bytes were not here. If
// think, Think is to be called, from where it may take its time.
func (e *Epochs) Note(sample uint32, waited bool) (t Turn, think bool) {
	if int64(sample) >= int64(e.samples) {
		return t, false
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.recent[e.noted%remembered] = sample
	e.noted++
	if waited {
		e.waited++
	}
	if e.now == nil {
		think = !e.thinking && e.noted >= e.tryAt && e.waited >= leastWaits
	} else {
		t = e.followLocked(sample, waited)
		think = e.now != nil && e.next == nil && !e.thinking && e.now.ends(e.steps)
	}
	e.thinking = e.thinking || think
	return t, think
}

// followLocked finds the read in the epoch that is followed, or in the next one.
func (e *Epochs) followLocked(sample uint32, waited bool) (t Turn) {
	of, i := e.now, 0
	rank, step, fit := of.find(e, sample)
	if e.next != nil && fit != inRun {
		if r, s, f := e.next.find(e, sample); f > fit {
			of, i, rank, step, fit = e.next, 1, r, s, f
		} else {
			e.next.saw(e, r, s, stray, false)
		}
	}
	r := of.saw(e, rank, step, fit, waited)
	if r != nil && r.believed() {
		if r.rewound(step, e.steps) { // the epoch is read once more
			e.again, e.next = true, nil
			e.fits = [2]int{e.fits[0] + e.fits[1], 0} // of a next one that comes later, none
		}
		t = e.turnLocked(of, rank, r)
	}
	if fit != stray {
		e.fits[i]++
	}
	if e.judged++; e.judged == looked {
		e.judgeLocked()
	}
	return t
}

// judgeLocked goes on to the next epoch, or gives up, if the last reads say so.
func (e *Epochs) judgeLocked() {
	now, next := e.fits[0], e.fits[1]
	e.judged, e.fits = 0, [2]int{}
	switch {
	case now+next < looked/2:
		e.now, e.next = nil, nil
		e.since, e.waited = e.noted-looked/2, 0
		e.tryAt, e.searchAt, e.gap = e.noted, e.noted, firstTry
	case next > now && e.next != nil: // it may just have gone
		e.now, e.next, e.last = e.next, nil, e.next.number
		count(e.Found)
	}
}

// turnLocked moves a rank's window on, which begins behind the worker that is
// farthest on, and into the next epoch where this one ends. Of that no more than a first
// window comes before its own reads bear it out.
func (e *Epochs) turnLocked(of *epoch, rank int, r *readerRank) (t Turn) {
	end := r.front + 1 + r.window
	t.of, t.rank = of, rank
	if t.begin = r.next; r.next >= e.steps && of == e.now && e.next != nil {
		n := e.next.rank(e, rank)
		if n == nil {
			return t
		}
		most := end - e.steps
		if !n.believed() {
			most = min(most, e.first)
		}
		t.of, t.begin, r, end = e.next, n.next, n, most
	}
	for end = min(end, e.steps); r.next < end && t.N < mostTurn; r.next++ {
		t.Samples[t.N] = e.sampler.At(t.of.order, rank, r.next)
		t.N++
	}
	return t
}

// Return gives back what could not be begun of a turn: the samples from the i-th on.
func (e *Epochs) Return(t Turn, i int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if r := t.of.ranks[t.rank]; r != nil {
		r.next = min(r.next, t.begin+i)
	}
}

// Think computes what Note asked for: which epoch the last reads are of, or the
// order of the next one. It ends early, with nothing, once stop says so.
func (e *Epochs) Think(stop func() bool) {
	e.mu.Lock()
	now, number := e.now, e.last+1
	if e.again {
		number = e.last
	}
	var seen []uint32
	for i := max(e.since, e.noted-min(e.noted, compared(e.samples))); i < e.noted; i++ {
		seen = append(seen, e.recent[i%remembered])
	}
	var likely []uint64
	if e.any {
		likely = []uint64{e.last + 1, e.last, e.last + 2}
	}
	search := e.noted >= e.searchAt
	e.mu.Unlock()
	if now != nil {
		next := newEpoch(e, number, order.NewDeck(e.samples))
		e.mu.Lock()
		defer e.mu.Unlock()
		if e.thinking = false; e.now == now {
			e.next = next
		}
		return
	}
	var found *epoch
	deck := order.NewDeck(e.samples)
	number, ok := e.find(deck, seen, likely, search, stop)
	if ok {
		found = newEpoch(e, number, deck)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.thinking, e.waited = false, 0
	if !ok {
		if search {
			e.searchAt, e.gap = e.noted+e.gap, min(2*e.gap, mostGap)
		}
		e.tryAt = e.searchAt
		if e.any {
			e.tryAt = min(e.tryAt, e.noted+max(remembered, uint64(e.samples/remembered)))
		}
		return
	}
	e.again = e.any && number == e.last
	e.now, e.last, e.any = found, number, true
	e.judged, e.fits = 0, [2]int{}
	count(e.Found)
	for i := max(e.since, e.noted-min(e.noted, remembered)); i < e.noted; i++ {
		rank, step, fit := found.find(e, e.recent[i%remembered])
		found.saw(e, rank, step, fit, false)
	}
}

// Bounds of a search, in samples that are shuffled: of the beginnings of epochs, which
// is where a job is mostly met, and of whole ones, of which the next search takes
// others. About a third of a second of one core.
const (
	mostEpochs  = 1024
	mostWork    = 1 << 24
	atBeginning = 1024 // steps
)

// find looks for the epoch in which most of the samples have a neighbour.
func (e *Epochs) find(deck *order.Deck, seen []uint32, likely []uint64, search bool, stop func() bool) (uint64, bool) {
	m := newMatch(seen, e.sampler.World, e.samples)
	fits := func(epoch uint64, most int) bool { return !stop() && m.fits(deck.Deal(e.sampler, epoch, most)) }
	for _, epoch := range likely {
		if fits(epoch, e.samples) {
			return epoch, true
		}
	}
	if !search {
		return 0, false
	}
	if most := max(4*atBeginning, atBeginning*e.sampler.World); most <= e.samples/2 {
		for epoch := range uint64(min(mostEpochs, e.work/most)) {
			if fits(epoch, most) {
				return epoch, true
			}
		}
	}
	for range max(1, min(mostEpochs, e.work/e.samples)) {
		epoch := e.whole % mostEpochs
		if fits(epoch, e.samples) {
			return epoch, true
		}
		e.whole++
	}
	return 0, false
}

// match compares some samples with orders.
type match struct {
	world, need int
	samples     map[uint32]bool
	filter      [1024]uint64 // bits of samples, modulo 64 Ki
	at          map[int]bool
}

func newMatch(seen []uint32, world, samples int) *match {
	m := &match{world: world, samples: map[uint32]bool{}, at: map[int]bool{}}
	for _, s := range seen {
		m.samples[s] = true
		m.filter[s%65536/64] |= 1 << (s % 64)
	}
	m.need = max(8, len(m.samples)/2, byChance(len(m.samples), samples))
	return m
}

// byChance is how many of n samples, of so many, have a neighbour among each other in a
// wrong order at most. They come in pairs, about as many as Poisson's law says: six standard
// deviations and five more than the mean are not met in some thousand orders.
func byChance(n, of int) int {
	alone := 1 - float64(n)/float64(of)
	pairs := float64(n) * (1 - alone*alone) / 2
	return 2 * int(math.Ceil(pairs+6*math.Sqrt(pairs)+5))
}

// compared is how many of the last reads are compared with orders of so many samples: few
// enough that chance does not make them neighbours.
func compared(samples int) uint64 {
	return uint64(max(firstTry, min(remembered, samples/8)))
}

// fits reports whether enough of the samples are next to another one of the same rank.
func (m *match) fits(order []uint32) bool {
	clear(m.at)
	for p, s := range order {
		if m.filter[s%65536/64]&(1<<(s%64)) != 0 && m.samples[s] {
			m.at[p] = true
		}
	}
	if len(m.at) < m.need {
		return false
	}
	near := 0
	for p := range m.at {
		if m.at[p-m.world] || m.at[p+m.world] {
			near++
		}
	}
	return near >= m.need
}
