package cache

import (
	"context"
	"slices"
	"sync"

	"stoker.dev"
	"stoker.dev/ufs/guard"
)

// refills are the shards that are fetched again by themselves: they went with a
// disk, or had wrong bytes, and somebody holds their dataset. Each dataset has a
// goroutine of its own while it lacks any, so that a store that is away keeps up
// neither the others nor the news of what else is gone. Its mutex is a leaf: the
// store, locked, wakes those that wait for space.
type refills struct {
	mu    sync.Mutex
	lacks map[*Set][]uint32 // +checklocks:mu — by dataset that has a goroutine; it is at the first
	waits int               // +checklocks:mu — goroutines that wait for space
	again chan struct{}     // +checklocks:mu — not nil while one may wait, closed when there may be space
}

// add has shards of a dataset fetched again.
func (r *refills) add(s *Set, shards ...uint32) {
	if len(shards) == 0 {
		return
	}
	r.mu.Lock()
	if r.lacks == nil {
		r.lacks = map[*Set][]uint32{}
	}
	_, runs := r.lacks[s]
	r.lacks[s] = append(r.lacks[s], shards...)
	r.mu.Unlock()
	if runs {
		return
	}
	s.background(func() { s.fetchAgain(s.c.stop) })
}

// first is the shard that comes next; false: none is left, and the goroutine ends.
func (r *refills) first(s *Set) (n uint32, left int, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := r.lacks[s]
	if len(list) == 0 {
		delete(r.lacks, s)
		return 0, 0, false
	}
	return list[0], len(list), true
}

// settled takes the first one off the list.
func (r *refills) settled(s *Set) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lacks[s] = r.lacks[s][1:]
}

// brings reports whether a shard is on its way, or will be.
func (r *refills) brings(s *Set, n uint32) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Contains(r.lacks[s], n)
}

// space is closed when there may be more space than now, or a holder less.
func (r *refills) space() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.again == nil {
		r.again = make(chan struct{})
	}
	return r.again
}

// wake lets those who wait for space look again. The store calls it.
func (r *refills) wake() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.again != nil {
		close(r.again)
		r.again = nil
	}
}

func (r *refills) await(ctx context.Context, space <-chan struct{}) {
	count := func(by int) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.waits += by
	}
	count(1)
	defer count(-1)
	select {
	case <-space:
	case <-ctx.Done():
	}
}

// fetchAgain brings in what the dataset lacks for as long as somebody holds it. What
// finds no space asks for room, as a read of held data does, and waits for it.
func (s *Set) fetchAgain(ctx context.Context) {
	r := &s.c.refills
	for said := false; ; {
		n, left, ok := r.first(s)
		if !ok {
			return
		}
		space := r.space() // before it is tried: what is freed from here on is noticed
		var err error
		if ctx.Err() == nil && s.c.holdOf(s.id) != free {
			err = s.bring(ctx, n)
		}
		if err != nil && !said && ctx.Err() == nil {
			s.log().Warn("lost shards are not fetched again for now: reads fetch them", "shards", left, "error", err)
			said = true
		}
		if stoker.KindOf(err) == stoker.KindNoSpace && ctx.Err() == nil {
			s.c.evictor.want(s, n)
			r.await(ctx, space)
			continue
		}
		r.settled(s)
	}
}

// bring brings in what is missing of shard n, as patient with a store that is
// away as a preload, and behind those. Its error is want of space, or that ctx has
// ended; objects that cannot be had are left out.
func (s *Set) bring(ctx context.Context, n uint32) error {
	for _, p := range s.pieces(n) {
		short := false
		err := s.bringRun(ctx, n, p.from, p.to, why{prio: guard.Repair}, func(f *flight, from, to int) {
			f.mu.Lock()
			defer f.mu.Unlock()
			short = short || f.short
		})
		if err == nil && short && s.firstMissing(n, p.from, p.to) < p.to {
			err = stoker.Errorf(stoker.KindNoSpace, "cache.refill", s.id.Short(), "no cache folder takes shard %d", n)
		}
		if err != nil {
			return err
		}
	}
	return s.c.stopped()
}
