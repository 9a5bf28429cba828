package cache

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/ufs/guard"
)

// fills merges concurrent fetches of the same blocks into one flight.
//
// A flight does not run under its first caller's context: a caller that gives
// up must neither fail nor restart it. It is cancelled when its last waiter
// has given up.
//
// Lock order: fills.mu before slot.mu; flight.mu is a leaf.
type fills struct {
	mu   sync.Mutex
	runs map[stoker.ID][]*flight // +checklocks:mu — by shard
	kept []*flight               // +checklocks:mu — of those, ended ones: see memory.go; oldest first
}

// flight brings in the missing blocks of [from, to) of one shard.
type flight struct {
	from, to int
	copies   bool           // from other workers alone
	ahead    bool           // began before anybody waited, and may bring nothing: who waits tries again
	stopped  atomic.Bool    // by its last waiter: the same
	away     atomic.Bool    // it ended without what a worker has that does not answer: the same
	urgency  *guard.Urgency // of its requests to the UFS
	cancel   context.CancelFunc
	done     chan struct{} // closed by run
	waiters  int           // guarded by fills.mu
	served   bool          // guarded by fills.mu: somebody got a block from it
	ended    bool          // guarded by fills.mu: run is over
	kept     bool          // guarded by fills.mu: and it is in fills.kept
	id       stoker.ID     // of the shard; set when kept
	memory   bool          // there was no space when it began; only its own goroutine looks
	once     bool          // and it is not kept: the next read asks the policy again; likewise
	early    bool          // began ahead of readers: what it brings is marked
	brought  func()        // see why
	whose    cause         // see whoseIs
	phases   phases

	share   *share // of its blocks in memory; set before the first
	granted int64  // bytes of it that the flight has

	came atomic.Int64 // blocks; who waits for another one sees that it goes on

	mu      sync.Mutex
	waiting []*waiter              // +checklocks:mu — for blocks of it
	failed  map[manifest.Row]error // +checklocks:mu — objects that could not be read
	mem     map[int][]byte         // +checklocks:mu — blocks for which the disk has no space, until the last waiter has left
	held    int64                  // +checklocks:mu — what they take
	short   bool                   // +checklocks:mu — a block found no space on any disk
}

// waiter waits for one block of a flight.
type waiter struct {
	block, skip int
	p           []byte        // gets the block's bytes from skip on
	copied      int           // how many; set before came is closed
	came        chan struct{} // closed when the block is in p, on the disk or in flight.mem
}

// why says on whose behalf a fill runs.
type why struct {
	direct  bool   // this worker was asked as the owner: it asks no other owner
	ahead   bool   // nobody waits: only what a peer has is copied
	copies  bool   // a replica: likewise, but a load waits
	waits   bool   // a load waits: for a worker that is away, too
	early   bool   // nobody waits yet: what finds no space does not come
	brought func() // called when a block that came ahead is on the disk; may be nil
	prio    guard.Priority
}

// joinFlight returns the flight that will bring in the first missing block of
// [from, to), starting one if there is none; nil if no block is missing. The
// caller has become a waiter and must leave.
func (s *Set) joinFlight(n uint32, from, to int, w why) *flight {
	c := s.c
	if w.prio == guard.Demand {
		s.ask(n)
	}
	c.fills.mu.Lock()
	defer c.fills.mu.Unlock()
	first, end, there := s.gapLocked(n, from, to)
	if there != nil {
		there.waiters++
		there.urgency.Join(w.prio)
		return there
	}
	if first == to || c.stop.Err() != nil {
		return nil
	}
	return s.startLocked(n, first, end, w)
}

// gapLocked returns the first missing block of [from, to) and where the next
// flight, or to, ends the gap; or the flight that brings that block in.
func (s *Set) gapLocked(n uint32, from, to int) (first, end int, there *flight) {
	first, end = s.firstMissing(n, from, to), to
	if first == to {
		return first, end, nil
	}
	for _, f := range s.c.fills.runs[s.man.Shard(n).ID] {
		if f.from <= first && first < f.to {
			return first, end, f
		}
		if f.from > first {
			end = min(end, f.from)
		}
	}
	return first, end, nil
}

// startLocked starts a flight with one waiter: who began it ahead of readers is one, so
// that none of them can stop it, until it ends.
func (s *Set) startLocked(n uint32, from, to int, w why) *flight {
	c, id := s.c, s.man.Shard(n).ID
	ctx, cancel := context.WithCancel(c.stop)
	f := &flight{from: from, to: to, cancel: cancel, waiters: 1, copies: w.copies, ahead: w.ahead || w.early || w.copies, urgency: guard.NewUrgency(w.prio),
		done: make(chan struct{}), early: w.early, brought: w.brought, whose: whoseIs(w)}
	f.phases.enter(forTurn)
	c.fills.runs[id] = append(c.fills.runs[id], f)
	for b := from; b < to; b++ { // what came ahead and went again unread
		s.wasted(n, b)
	}
	s.retain()
	c.busy.Add(1)
	go func() {
		defer c.busy.Done()
		defer cancel()
		share := s.admit(ctx, n, w)
		if share != nil {
			s.fly(ctx, n, f, w)
		}
		c.fills.mu.Lock()
		f.ended = true
		if w.ahead || w.early { // nobody else leaves for who only began it
			f.waiters--
		}
		left := false
		if !c.fills.keepLocked(c.memory, id, f) {
			c.fills.removeLocked(id, f)
			left = f.waiters == 0
		}
		c.fills.mu.Unlock()
		if left {
			c.memory.letGo(f)
		}
		if share != nil {
			c.memory.release(share, flightBytes)
		}
		close(f.done)
		switch {
		case w.ahead:
			<-c.following
		case w.early:
			<-c.ahead
		}
		s.closeOrLog()
	}()
	return f
}

// removeLocked takes a flight out of the table.
func (fs *fills) removeLocked(id stoker.ID, f *flight) {
	fs.runs[id] = slices.DeleteFunc(fs.runs[id], func(g *flight) bool { return g == f })
	if len(fs.runs[id]) == 0 {
		delete(fs.runs, id)
	}
}

// leave ends the caller's waiting. The flight goes on for those who still
// wait, and to its end once somebody got a block from it: stopping it then
// would waste what its request has brought so far. Otherwise the last one out
// stops it.
func (c *Cache) leave(f *flight, served bool) {
	c.fills.mu.Lock()
	f.waiters--
	f.served = f.served || served
	last, ended := f.waiters == 0, f.ended && !f.kept
	stop := last && !f.served && !f.ended
	if stop {
		f.stopped.Store(true) // before anybody can join it
	}
	c.fills.mu.Unlock()
	if stop {
		f.cancel()
	}
	if last && ended {
		c.memory.letGo(f)
	}
}

// firstMissing returns the first block of [from, to) that is not on this
// worker's disk, or to.
func (s *Set) firstMissing(n uint32, from, to int) int {
	sl := s.shard(n)
	defer sl.mu.RUnlock()
	if sl.sh == nil {
		return from
	}
	for from < to && sl.sh.Has(from) {
		from++
	}
	return from
}

// fillOne waits until block has come. Its bytes from skip on are copied to p as they
// come in; copied says how many: none if the block was already on the disk. passed: the
// disk had no space for it.
func (s *Set) fillOne(ctx context.Context, n uint32, block, to int, w why, skip int, p []byte) (copied int, passed bool, err error) {
	for try := 0; ; {
		f := s.joinFlight(n, block, to, w)
		if f == nil {
			return 0, false, s.c.stopped()
		}
		then := f.phases.soFar()
		copied, passed, err := s.await(ctx, n, f, &waiter{block: block, skip: skip, p: p, came: make(chan struct{})})
		if !w.direct { // who asked for another worker waits for that one
			s.waited(f, then)
		}
		ahead, beyond := f.ahead || f.away.Load() || f.stopped.Load(), err != nil && ctx.Err() == nil && block >= s.endOf(f)
		s.c.leave(f, err == nil)
		if ahead && err != nil && ctx.Err() == nil {
			continue
		}
		if errors.Is(err, errEnded) && s.c.stop.Err() == nil {
			if beyond { // it was cut short: the next one begins here
				continue
			}
			if try++; try < writeTries {
				continue
			}
		}
		return copied, passed, err
	}
}

// endOf returns where a flight ends: before there, if it was narrowed.
func (s *Set) endOf(f *flight) int {
	s.c.fills.mu.Lock()
	defer s.c.fills.mu.Unlock()
	return f.to
}

// errEnded: a flight has ended without a block, and without a reason why it
// could not be had. It was stopped, or what it brought in went with a disk.
var errEnded = errors.New("the fill was stopped")

// stopped is nil while the cache is open.
func (c *Cache) stopped() error {
	if c.stop.Err() != nil {
		return stoker.Errorf(stoker.KindTransient, "cache.fill", "", "the worker is stopping")
	}
	return nil
}

// readerWaits is how long a reader waits for a flight that brings nothing: one
// that a preload waits for too goes on for longer than a reader should hang.
const readerWaits = 2 * time.Minute

// await waits until the flight has brought in the waiter's block, or has ended. It
// returns what fillOne does.
func (s *Set) await(ctx context.Context, n uint32, f *flight, w *waiter) (copied int, passed bool, err error) {
	if s.enter(n, f, w) {
		return w.copied, w.copied > 0 && f.passes(), nil
	}
	defer f.exit(w)
	silent := time.NewTimer(s.c.readerWaits)
	defer silent.Stop()
	handed, ended := w.came, false
	for came := f.came.Load(); ; {
		select {
		case <-ctx.Done():
			return 0, false, ctx.Err()
		case <-silent.C:
			now := f.came.Load()
			if now == came {
				return 0, false, stoker.Errorf(stoker.KindTransient, "cache.fill", s.id.Short(), "nothing of shard %d came for %v: is the store up?", n, s.c.readerWaits)
			}
			came = now
			silent.Reset(s.c.readerWaits)
			continue
		case <-handed:
			handed = nil // if it was lost at once, the end of the flight says why
		case <-f.done:
			ended = true
		}
		if f.exit(w); w.copied > 0 || s.found(n, f, w) {
			return w.copied, w.copied > 0 && f.passes(), nil
		}
		if ended {
			return 0, false, s.failure(n, f, w.block)
		}
	}
}

// enter makes w one of those whom the flight gives their blocks, unless its block is
// here already.
func (s *Set) enter(n uint32, f *flight, w *waiter) (here bool) {
	f.mu.Lock()
	f.waiting = append(f.waiting, w)
	f.mu.Unlock()
	here = s.found(n, f, w) // after: what comes in between gets to w
	if here {
		f.exit(w)
	}
	return here
}

// exit ends it: nobody writes to w.p any more.
func (f *flight) exit(w *waiter) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.waiting = slices.DeleteFunc(f.waiting, func(o *waiter) bool { return o == w })
}

// found looks for a waiter's block on the disk and in the flight's memory, out of
// which it is copied.
func (s *Set) found(n uint32, f *flight, w *waiter) bool {
	if s.firstMissing(n, w.block, w.block+1) != w.block {
		return true
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	mem := f.mem[w.block]
	if mem != nil && w.copied == 0 {
		w.copied = copy(w.p, mem[min(w.skip, len(mem)):])
	}
	return mem != nil
}

// hand copies a block to those who wait for it; with nil they look for it themselves.
// short: the disk has no space for it.
func (f *flight) hand(block int, data []byte, short bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.short = f.short || short
	f.waiting = slices.DeleteFunc(f.waiting, func(w *waiter) bool {
		if w.block == block {
			w.copied = copy(w.p, data[min(w.skip, len(data)):])
			close(w.came)
		}
		return w.block == block
	})
}

// passes reports whether the disk has no space for what the flight brings.
func (f *flight) passes() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.short
}

// failure says why an ended flight did not bring in block.
func (s *Set) failure(n uint32, f *flight, block int) error {
	row := s.memberAt(n, block).Row
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.failed[row]; err != nil {
		return err
	}
	if f.short {
		return stoker.Errorf(stoker.KindNoSpace, "cache.fill", s.man.Path(row), "%w: no cache folder takes it", errEnded)
	}
	return stoker.Errorf(stoker.KindTransient, "cache.fill", s.man.Path(row), "%w", errEnded)
}

// deliver hands the bytes of a block to its waiters and puts them where others find
// them: on the disk, or in memory if the disk has no space.
func (s *Set) deliver(n uint32, f *flight, block int, off int64, data []byte) error {
	here := func(bool) {}
	if f.early {
		here = s.came(n, block, len(data))
	}
	f.came.Add(1)
	f.hand(block, data, f.memory)
	onDisk, err := s.write(n, f, block, off, data)
	here(onDisk)
	if onDisk && f.brought != nil {
		f.brought()
	}
	if err != nil {
		return err
	}
	if !onDisk && !s.keep(f, block, data) {
		err = errEnded // who waits for it tries again, and waits for memory then
	}
	f.hand(block, nil, !onDisk) // to who came meanwhile
	return err
}

// fail notes that an object could not be read.
func (f *flight) fail(row manifest.Row, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failed == nil {
		f.failed = map[manifest.Row]error{}
	}
	if f.failed[row] == nil {
		f.failed[row] = err
	}
}

// seal makes the shard read-only and durable once it is whole.
func (s *Set) seal(n uint32) {
	sl := s.shard(n)
	whole := sl.sh != nil && sl.sh.Present() == int(s.man.Shard(n).Blocks)
	var err error
	if whole && !sl.sh.Sealed() {
		err = sl.sh.Seal()
	}
	sl.mu.RUnlock()
	if err != nil {
		s.log().Error("cannot seal a shard", "shard", n, "error", err)
		return
	}
	if whole {
		s.letAllPagesGo(n)
		s.c.o.Directory.Announce(s.id, n, true)
	}
}
