package cache

import (
	"context"
	"errors"
	"slices"
	"sync"
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
}

// flight brings in the missing blocks of [from, to) of one shard.
type flight struct {
	from, to int
	ahead    bool           // copies what a peer has, and no more: who waits for the rest tries again
	urgency  *guard.Urgency // of its requests to the UFS
	cancel   context.CancelFunc
	done     chan struct{} // closed by run
	waiters  int           // guarded by fills.mu
	served   bool          // guarded by fills.mu: somebody got a block from it
	memory   bool          // there was no space when it began; only its own goroutine looks

	mu      sync.Mutex
	changed chan struct{}          // +checklocks:mu — closed and replaced when blocks came in
	failed  map[manifest.Row]error // +checklocks:mu — objects that could not be read
	mem     map[int][]byte         // +checklocks:mu — blocks for which the disk has no space
}

// why says on whose behalf a fill runs.
type why struct {
	direct bool // this worker was asked as the owner: it asks no other owner
	ahead  bool // nobody waits: only what a peer has is copied
	prio   guard.Priority
}

// joinFlight returns the flight that will bring in the first missing block of
// [from, to), starting one if there is none; nil if no block is missing. The
// caller has become a waiter and must leave.
func (s *Set) joinFlight(n uint32, from, to int, w why) *flight {
	c := s.c
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

// startLocked starts a flight with one waiter.
func (s *Set) startLocked(n uint32, from, to int, w why) *flight {
	c, id := s.c, s.man.Shard(n).ID
	ctx, cancel := context.WithCancel(c.stop)
	f := &flight{from: from, to: to, cancel: cancel, waiters: 1, ahead: w.ahead, urgency: guard.NewUrgency(w.prio),
		done: make(chan struct{}), changed: make(chan struct{})}
	c.fills.runs[id] = append(c.fills.runs[id], f)
	s.retain()
	c.busy.Add(1)
	go func() {
		defer c.busy.Done()
		defer cancel()
		s.fly(ctx, n, f, w)
		c.fills.mu.Lock()
		c.fills.runs[id] = slices.DeleteFunc(c.fills.runs[id], func(g *flight) bool { return g == f })
		if len(c.fills.runs[id]) == 0 {
			delete(c.fills.runs, id)
		}
		c.fills.mu.Unlock()
		close(f.done)
		if w.ahead {
			<-c.following
		}
		if err := s.Close(); err != nil {
			s.log().Error("cannot close a dataset", "error", err)
		}
	}()
	return f
}

// leave ends the caller's waiting. The flight goes on for those who still
// wait, and to its end once somebody got a block from it: stopping it then
// would waste what its request has brought so far. Otherwise the last one out
// stops it.
func (c *Cache) leave(f *flight, served bool) {
	c.fills.mu.Lock()
	f.waiters--
	f.served = f.served || served
	stop := f.waiters == 0 && !f.served
	c.fills.mu.Unlock()
	if stop {
		f.cancel()
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

// fillOne waits until block is here. If the disk has no space for it, its
// bytes are returned instead.
func (s *Set) fillOne(ctx context.Context, n uint32, block, to int) ([]byte, error) {
	for try := 0; ; try++ {
		f := s.joinFlight(n, block, to, why{prio: guard.Demand})
		if f == nil {
			return nil, s.c.stopped()
		}
		mem, here, err := s.await(ctx, n, f, block)
		s.c.leave(f, err == nil)
		if f.ahead && err != nil && ctx.Err() == nil {
			continue
		}
		if errors.Is(err, errEnded) && try < writeTries && s.c.stop.Err() == nil {
			continue
		}
		if mem != nil || here || err != nil {
			return mem, err
		}
	}
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

// await waits until the flight has brought in block, or has ended.
func (s *Set) await(ctx context.Context, n uint32, f *flight, block int) (mem []byte, here bool, err error) {
	silent := time.NewTimer(readerWaits)
	defer silent.Stop()
	for ; ; silent.Reset(readerWaits) {
		f.mu.Lock()
		changed := f.changed
		mem = f.mem[block]
		f.mu.Unlock()
		if mem != nil {
			return mem, false, nil
		}
		if s.firstMissing(n, block, block+1) != block {
			return nil, true, nil
		}
		select {
		case <-ctx.Done():
			return nil, false, ctx.Err()
		case <-silent.C:
			return nil, false, stoker.Errorf(stoker.KindTransient, "cache.fill", s.id.Short(), "nothing of shard %d came for %v: is the store up?", n, readerWaits)
		case <-changed:
		case <-f.done:
			f.mu.Lock()
			mem = f.mem[block]
			f.mu.Unlock()
			if mem != nil || s.firstMissing(n, block, block+1) != block {
				return mem, mem == nil, nil
			}
			return nil, false, s.failure(n, f, block)
		}
	}
}

// failure says why an ended flight did not bring in block.
func (s *Set) failure(n uint32, f *flight, block int) error {
	sl := s.shard(n)
	row := memberOf(sl.members, block).Row
	sl.mu.RUnlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.failed[row]; err != nil {
		return err
	}
	return stoker.Errorf(stoker.KindTransient, "cache.fill", s.man.Path(row), "%w", errEnded)
}

// deliver puts the bytes of a block where its waiters find them: on the disk,
// or in memory if the disk has no space.
func (s *Set) deliver(n uint32, f *flight, block int, off int64, data []byte) error {
	onDisk, err := s.write(n, f, block, off, data)
	if err != nil {
		return err
	}
	f.mu.Lock()
	if !onDisk {
		if f.mem == nil {
			f.mem = map[int][]byte{}
		}
		f.mem[block] = append([]byte(nil), data...)
	}
	close(f.changed)
	f.changed = make(chan struct{})
	f.mu.Unlock()
	return nil
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
		s.c.o.Directory.Announce(s.id, n, true)
	}
}
