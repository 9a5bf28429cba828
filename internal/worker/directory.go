package worker

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"stoker.dev"
	"stoker.dev/cache"
	"stoker.dev/cache/peer"
	"stoker.dev/cache/placement"
	"stoker.dev/planner"
)

var _ cache.Directory = (*directory)(nil)

const (
	leaseTTL      = 15 * time.Second       // of this worker in the index
	renewEvery    = 3 * time.Second        // also how old the list of workers may be while it says enough
	refreshAge    = 200 * time.Millisecond // and while it does not
	announceEvery = 100 * time.Millisecond // one pipeline for what came together
	wholeAge      = 2 * time.Second        // how long it is believed that a worker holds a shard
	nobodyAge     = announceEvery          // and that nobody does: others tell no sooner
	heldKept      = 10_000                 // shards, or groups of them, of which that is remembered
	goneKept      = 100_000                // withdrawals that an index has not heard of
	askTimeout    = 500 * time.Millisecond // an index that is slower is as good as none
	silentFor     = time.Second            // it is not asked again after that, so that reads do not wait for it
	loadTimeout   = 3 * time.Second        // a load waits longer: what it does not hear of it fetches from the store
	insistFor     = 10 * time.Second       // if the index has answered since then
)

// directory is what this worker knows of the others. It renews the worker's
// own lease in the index, keeps the list of live workers, and announces what
// the cache holds. If the index is gone, the last list serves on: placements
// are only hints.
type directory struct {
	index placement.Index
	self  func() placement.Worker // this worker as it is now
	held  func(ctx context.Context, f func(id stoker.ID, n uint32, whole bool)) error
	log   *slog.Logger

	silent   atomic.Int64 // when the index last gave no answer, unix ns
	answered atomic.Int64 // and when it gave one
	blind    atomic.Bool  // it did not say who is live when last asked

	sending sync.Mutex // held while announcements are on their way; taken before mu
	failing bool       // +checklocks:sending — the last ones did not all get through

	mu      sync.Mutex
	workers []placement.Worker                      // +checklocks:mu — live ones, self included, by id
	asked   time.Time                               // +checklocks:mu — when workers was read
	heldBy  map[shardKey]holders                    // +checklocks:mu — of one shard
	unheld  map[shardKey]nobody                     // +checklocks:mu — of a group of them, by its first
	pending map[stoker.ID]map[uint32]placement.Mark // +checklocks:mu
	gone    map[stoker.ID]map[uint32]bool           // +checklocks:mu

	registered bool      // +checklocks:mu
	forgot     time.Time // +checklocks:mu — when the index was last seen to have forgotten us
}

type shardKey struct {
	manifest stoker.ID
	shard    uint32
}

// holders are what is believed for a moment.
type holders struct {
	peers []cache.Peer // those with all of the shard first
	until time.Time
}

// nobody are the shards of a group of which no other worker has any, for a moment.
type nobody struct {
	shards uint32 // a bit each
	until  time.Time
	asking chan struct{} // closed when whoever asks anew has heard; nil: nobody asks
}

func newDirectory(index placement.Index, self func() placement.Worker, log *slog.Logger) *directory {
	return &directory{index: index, self: self, log: log, heldBy: map[shardKey]holders{}, unheld: map[shardKey]nobody{},
		pending: map[stoker.ID]map[uint32]placement.Mark{}, gone: map[stoker.ID]map[uint32]bool{}}
}

// run registers the worker, keeps its lease and announces, until ctx ends.
// ready is called once the worker is registered.
func (d *directory) run(ctx context.Context, ready func()) {
	renew := time.NewTicker(renewEvery)
	defer renew.Stop()
	flush := time.NewTicker(announceEvery)
	defer flush.Stop()
	var failed time.Time // when something was last not sent
	known := d.register(ctx)
	if known {
		ready()
	}
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), askTimeout)
			_ = d.index.Leave(last, d.self().Incarnation) // its lease ends by itself
			cancel()
			return
		case <-flush.C:
			if time.Since(failed) >= silentFor && !d.send(ctx) {
				failed = time.Now()
			}
		case <-renew.C:
			if known {
				known = d.renew(ctx)
			}
			if !known {
				d.mu.Lock()
				d.forgot = time.Now() // or it never knew us: then there is nobody to remember
				d.mu.Unlock()
				if known = d.register(ctx); known {
					ready()
				}
			}
		}
	}
}

// register enters the worker into the index and announces all that it has.
func (d *directory) register(ctx context.Context) bool {
	if err := d.index.Register(ctx, d.self(), leaseTTL); err != nil {
		d.log.Warn("not registered: the placement index does not answer", "error", err)
		return false
	}
	d.mu.Lock()
	d.registered = true
	d.mu.Unlock()
	d.refresh(ctx)
	err := d.held(ctx, d.Announce)
	if err != nil {
		d.log.Warn("not all that is here was announced", "error", err)
	}
	return err == nil
}

// renew reports whether the index still knows this worker. When the index
// does not answer, the worker believes that it does.
func (d *directory) renew(ctx context.Context) bool {
	known, err := d.index.Renew(ctx, d.self(), leaseTTL)
	if err != nil {
		d.log.Warn("lease not renewed: the placement index does not answer", "error", err)
		return true
	}
	d.refresh(ctx)
	return known
}

func (d *directory) refresh(ctx context.Context) {
	ws, err := d.index.Workers(ctx)
	d.blind.Store(err != nil)
	if err != nil {
		return // the last list serves on
	}
	d.answered.Store(time.Now().UnixNano())
	self := d.self().Incarnation
	here := slices.ContainsFunc(ws, func(w placement.Worker) bool { return w.Incarnation == self })
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.registered && !here {
		d.forgot = time.Now()
	}
	if time.Since(d.forgot) < leaseTTL {
		ws = joined(ws, d.workers)
	}
	slices.SortFunc(ws, func(a, b placement.Worker) int { return strings.Compare(a.ID, b.ID) })
	d.workers, d.asked = ws, time.Now()
}

// emptied reports whether the index was emptied less than a lease ago: not all
// who live are in it yet.
func (d *directory) emptied() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return time.Since(d.forgot) < leaseTTL
}

// joined adds to the present workers those of before that have no other life
// among them: an index that was emptied hears of them within their leases.
func joined(now, before []placement.Worker) []placement.Worker {
	for _, w := range before {
		if !slices.ContainsFunc(now, func(x placement.Worker) bool { return x.ID == w.ID }) {
			now = append(now, w)
		}
	}
	return now
}

// search finds a worker among the live ones; one that is not known may have
// come since they were read.
func (d *directory) search(ctx context.Context, is func(placement.Worker) bool) (placement.Worker, bool) {
	for again := false; ; again = true {
		d.mu.Lock()
		ws, old := d.workers, time.Since(d.asked) > refreshAge
		d.mu.Unlock()
		if i := slices.IndexFunc(ws, is); i >= 0 {
			return ws[i], true
		}
		if again || !old {
			return placement.Worker{}, false
		}
		ctx, cancel := context.WithTimeout(ctx, askTimeout)
		d.refresh(ctx)
		cancel()
	}
}

func (d *directory) live() []placement.Worker {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.workers
}

// Holders implements cache.Directory. That somebody holds a whole shard, or nobody
// any of it, is remembered for a moment from when it was asked: reads ask again and again.
// Nobody is heard of a whole group of shards at once, so that reads in no order do not ask
// for each. Who comes when that moment is over waits for who asks anew: by now somebody may
// hold it.
func (d *directory) Holders(ctx context.Context, id stoker.ID, n uint32) []cache.Peer {
	key, group, bit := shardKey{id, n}, shardKey{id, n / placement.GroupShards * placement.GroupShards}, uint32(1)<<(n%placement.GroupShards)
	peers, asking := d.remembered(ctx, key, group, bit)
	if asking == nil {
		return peers
	}
	defer close(asking)
	asked := time.Now()
	peers, unheld, known := d.askHolders(ctx, id, n)
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.heldBy) >= heldKept || len(d.unheld) >= heldKept {
		clear(d.heldBy)
		clear(d.unheld)
	}
	if len(peers) == 0 {
		unheld |= bit
	} else if h := (holders{peers, asked.Add(wholeAge)}); peers[0].Whole && !d.heldBy[key].until.After(h.until) {
		d.heldBy[key] = h
	}
	switch g := (nobody{shards: unheld, until: asked.Add(nobodyAge)}); {
	case d.unheld[group].until.After(g.until): // who asked later has heard already
	case known:
		d.unheld[group] = g
	default:
		delete(d.unheld, group)
	}
	return peers
}

// remembered returns the holders of a shard that are still believed, nobody among them, or
// a channel to close for who is to ask for them. Who waits believes what would have
// been believed when it came.
func (d *directory) remembered(ctx context.Context, key, group shardKey, bit uint32) ([]cache.Peer, chan struct{}) {
	for now := time.Now(); ; {
		d.mu.Lock()
		g := d.unheld[group]
		switch h, held := d.heldBy[key]; {
		case held && now.Before(h.until):
			d.mu.Unlock()
			return h.peers, nil
		case g.shards&bit == 0: // somebody may hold it
			d.mu.Unlock()
			return nil, make(chan struct{})
		case now.Before(g.until):
			d.mu.Unlock()
			return nil, nil
		case g.asking == nil:
			g.asking = make(chan struct{})
			d.unheld[group] = g
			d.mu.Unlock()
			return nil, g.asking
		}
		d.mu.Unlock()
		select {
		case <-g.asking:
		case <-time.After(d.patience(ctx)):
			return nil, nil
		case <-ctx.Done():
			return nil, nil
		}
	}
}

// patience is how long the index may take to say who holds a shard.
func (d *directory) patience(ctx context.Context) time.Duration {
	if peer.IsOrdered(ctx) && time.Since(time.Unix(0, d.answered.Load())) < insistFor {
		return loadTimeout
	}
	return askTimeout
}

// askHolders asks the index, and says whether it has answered, and which shards of the
// group no other worker has any of.
func (d *directory) askHolders(ctx context.Context, id stoker.ID, n uint32) (peers []cache.Peer, unheld uint32, known bool) {
	self := d.self().Incarnation
	patience := d.patience(ctx)
	if patience == askTimeout && time.Since(time.Unix(0, d.silent.Load())) < silentFor {
		return nil, 0, false
	}
	group := make([]uint32, placement.GroupShards)
	for i := range group {
		group[i] = n/placement.GroupShards*placement.GroupShards + uint32(i)
	}
	asking, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	holders, err := d.index.Holders(asking, id, group)
	if err != nil && ctx.Err() == nil {
		d.silent.Store(time.Now().UnixNano())
	}
	if err != nil || len(holders) != len(group) {
		return nil, 0, false
	}
	d.answered.Store(time.Now().UnixNano())
	for i, of := range holders {
		if !slices.ContainsFunc(of, func(h placement.Holder) bool { return h.Incarnation != self }) {
			unheld |= 1 << i
		}
	}
	for _, h := range holders[n%placement.GroupShards] {
		if h.Incarnation == self {
			continue
		}
		if w, ok := d.search(ctx, func(w placement.Worker) bool { return w.Incarnation == h.Incarnation }); ok {
			peers = append(peers, cache.Peer{ID: w.ID, Incarnation: w.Incarnation, Address: w.Address, Whole: h.Whole})
		}
	}
	slices.SortFunc(peers, func(a, b cache.Peer) int {
		switch {
		case a.Whole == b.Whole:
			return strings.Compare(a.ID, b.ID)
		case a.Whole:
			return -1
		}
		return 1
	})
	whole := slices.IndexFunc(peers, func(p cache.Peer) bool { return !p.Whole })
	if whole < 0 {
		whole = len(peers)
	}
	takeTurns(peers[:whole], self, n)
	takeTurns(peers[whole:], self, n)
	return peers, unheld, true
}

// takeTurns begins with another peer for each shard and each asker, so that those
// who hold the same share the sending.
func takeTurns(peers []cache.Peer, self stoker.Incarnation, n uint32) {
	if len(peers) < 2 {
		return
	}
	first := int((uint64(self)>>32 + uint64(n)) % uint64(len(peers)))
	copy(peers, slices.Concat(peers[first:], peers[:first]))
}

// Owners implements cache.Directory: the plan's live ones, in its order up to this
// worker, else the first choice of rendezvous over the live workers.
func (d *directory) Owners(ctx context.Context, plan *planner.Plan, shard stoker.ID, n uint32) (ask []cache.Peer, self bool, lost []string) {
	me := d.self()
	if plan != nil && int(n) < len(plan.Owners) {
		for _, o := range plan.Owners[n] {
			id := plan.Workers[o].ID
			switch {
			case id != me.ID:
			case me.Draining:
				continue // others read it through, and store it
			default:
				return ask, true, lost
			}
			if w, ok := d.search(ctx, func(w placement.Worker) bool { return w.ID == id }); ok && w.Draining {
				continue
			} else if ok {
				ask = append(ask, cache.Peer{ID: w.ID, Incarnation: w.Incarnation, Address: w.Address})
			} else if d.blind.Load() || d.emptied() { // it may live, unknown to us; whichever of its lives is there will do
				ask = append(ask, cache.Peer{ID: id, Address: plan.Workers[o].Address})
			} else {
				lost = append(lost, id)
			}
		}
		if len(ask) > 0 {
			return ask, false, nil
		}
	}
	workers := slices.DeleteFunc(slices.Clone(d.live()), func(w placement.Worker) bool { return w.Draining })
	choices := make([]planner.Worker, len(workers))
	for i, w := range workers {
		choices[i] = planner.Worker{ID: w.ID, Weight: 1}
	}
	best := planner.Guess(shard, choices, 1)
	if len(best) == 0 || workers[best[0]].ID == me.ID {
		return nil, true, nil
	}
	w := workers[best[0]]
	return []cache.Peer{{ID: w.ID, Incarnation: w.Incarnation, Address: w.Address}}, false, nil
}

// Begun implements cache.Directory. An index that does not answer, or remembers
// nothing of a worker, may have forgotten.
func (d *directory) Begun(ctx context.Context, workers []string, id stoker.ID, n uint32) bool {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	return slices.ContainsFunc(workers, func(worker string) bool {
		begun, known, err := d.index.Begun(ctx, worker, id, []uint32{n})
		return err != nil || !known || begun[0]
	})
}

// Announce implements cache.Directory.
func (d *directory) Announce(id stoker.ID, n uint32, whole bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.pending[id][n].Whole {
		d.markLocked(id, placement.Mark{Shard: n, Whole: whole})
	}
	delete(d.gone[id], n)
}

func (d *directory) markLocked(id stoker.ID, m placement.Mark) {
	if d.pending[id] == nil {
		d.pending[id] = map[uint32]placement.Mark{}
	}
	d.pending[id][m.Shard] = m
}

// Withdraw implements cache.Directory.
func (d *directory) Withdraw(id stoker.ID, shards []uint32) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, n := range shards {
		d.goneLocked(id, n)
		delete(d.pending[id], n)
	}
}

func (d *directory) goneLocked(id stoker.ID, n uint32) {
	if d.gone[id] == nil {
		d.gone[id] = map[uint32]bool{}
	}
	d.gone[id][n] = true
}

// Flush implements cache.Directory: it sends what was announced and withdrawn
// since the last time.
func (d *directory) Flush(ctx context.Context) { d.send(ctx) }

// send reports whether all of it got through. What did not is kept, and sent again with
// what comes next: no new registration announces it as long as the index knows this worker.
func (d *directory) send(ctx context.Context) bool {
	d.sending.Lock()
	defer d.sending.Unlock()
	d.mu.Lock()
	pending, gone := d.pending, d.gone
	if len(pending) == 0 && len(gone) == 0 {
		d.mu.Unlock()
		return true
	}
	d.pending, d.gone = map[stoker.ID]map[uint32]placement.Mark{}, map[stoker.ID]map[uint32]bool{}
	d.mu.Unlock()
	err := d.sendAll(ctx, pending, gone)
	if err != nil && !d.failing && ctx.Err() == nil {
		d.log.Warn("what is here is announced later: the placement index does not answer", "dataset", "all", "error", err)
	}
	d.failing = err != nil
	d.keep(pending, gone)
	return err == nil
}

// sendAll takes out of its arguments what got through.
func (d *directory) sendAll(ctx context.Context, pending map[stoker.ID]map[uint32]placement.Mark, gone map[stoker.ID]map[uint32]bool) error {
	inc := d.self().Incarnation
	for id, marks := range pending {
		if err := d.index.Announce(ctx, inc, id, slices.Collect(maps.Values(marks))); err != nil {
			return err
		}
		delete(pending, id)
	}
	for id, shards := range gone {
		if err := d.index.Withdraw(ctx, inc, id, slices.Collect(maps.Keys(shards))); err != nil {
			return err
		}
		delete(gone, id)
	}
	return nil
}

// keep puts back what did not get through, but what was said anew of a shard meanwhile
// stands. Marks are no more than shards are here; withdrawals it keeps goneKept, and who
// misses one asks in vain.
func (d *directory) keep(pending map[stoker.ID]map[uint32]placement.Mark, gone map[stoker.ID]map[uint32]bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	said := func(id stoker.ID, n uint32) bool { _, ok := d.pending[id][n]; return ok || d.gone[id][n] }
	for id, marks := range pending {
		for n, m := range marks {
			if !said(id, n) {
				d.markLocked(id, m)
			}
		}
	}
	left := goneKept
	for _, shards := range d.gone {
		left -= len(shards)
	}
	for id, shards := range gone {
		for n := range shards {
			if left > 0 && !said(id, n) {
				d.goneLocked(id, n)
				left--
			}
		}
	}
}
