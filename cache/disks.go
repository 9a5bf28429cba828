package cache

import (
	"context"
	"maps"
	"slices"
	"sync"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/cache/store"
)

// What a disk takes with it is fetched again, in this order: by the read or
// the load that needs it, which meets a missing block; else, if somebody holds
// the dataset, by refills, one shard at a time.

// mourning is what disks have taken. Its mutex is a leaf: the store, locked,
// adds to it.
type mourning struct {
	mu   sync.Mutex
	gone []*store.Shard // +checklocks:mu
	some chan struct{}  // holds one when there are any
}

// add is what the store calls.
func (m *mourning) add(gone []*store.Shard) {
	m.mu.Lock()
	m.gone = append(m.gone, gone...)
	m.mu.Unlock()
	select {
	case m.some <- struct{}{}:
	default:
	}
}

func (m *mourning) take() map[stoker.ID]*store.Shard {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := map[stoker.ID]*store.Shard{}
	for _, sh := range m.gone {
		out[sh.ID()] = sh
	}
	m.gone = nil
	return out
}

// tendDisks looks after what disks take, until the cache closes.
func (c *Cache) tendDisks() {
	for {
		select {
		case <-c.stop.Done():
			return
		case <-c.gone.some:
			c.bury(c.stop, c.gone.take())
		}
	}
}

// bury says that shards are gone, counts them, and has fetched again what is held.
func (c *Cache) bury(ctx context.Context, gone map[stoker.ID]*store.Shard) {
	ids := map[stoker.ID]bool{}
	c.holds.mu.Lock()
	for id := range c.holds.known {
		ids[id] = len(c.holds.holdersLocked(id)) > 0
	}
	c.holds.mu.Unlock()
	c.mu.Lock()
	for id := range c.sets { // read, and held by nobody
		if _, known := ids[id]; !known {
			ids[id] = false
		}
	}
	c.mu.Unlock()
	for _, id := range slices.SortedFunc(maps.Keys(ids), func(a, b stoker.ID) int { return slices.Compare(a[:], b[:]) }) {
		s, err := c.Open(ctx, id)
		if err != nil {
			c.logOf(id).Warn("what a disk took of a dataset is not known", "error", err)
			continue
		}
		s.buryOwn(gone, ids[id])
		s.closeOrLog()
	}
}

func (s *Set) buryOwn(gone map[stoker.ID]*store.Shard, held bool) {
	var ours, refill []uint32
	for n := range s.slots {
		sh := gone[s.man.Shard(uint32(n)).ID]
		if sh == nil {
			continue
		}
		ours = append(ours, uint32(n))
		s.countLost(uint32(n), sh)
		if held && (sh.Sealed() || s.c.refills.brings(s, uint32(n))) {
			refill = append(refill, uint32(n))
		}
	}
	if len(ours) == 0 {
		return
	}
	s.withdraw(ours...)
	s.log().Warn("shards went with their disk", "shards", len(ours), "toFetchAgain", len(refill))
	s.c.refills.add(s, refill...)
}

// countLost notes that a shard which went with its disk has to come again.
func (s *Set) countLost(n uint32, sh *store.Shard) {
	a := s.accountOf(n)
	if !sh.Mourn() {
		return
	}
	var bytes int64
	for _, m := range s.man.Members(n, nil) {
		for b := int(m.FirstBlock); b < int(m.FirstBlock)+manifest.BlocksOf(m.Bytes); b++ {
			if sh.Had(b) {
				_, _, length := blockOf(m, b)
				bytes += int64(length)
			}
		}
	}
	s.c.counters.LostBytes.Add(bytes)
	if a != nil {
		a.lost.Add(bytes)
	}
}

// freshen lets go of a file that was given up. REQUIRES: sl.mu is held.
func (s *Set) freshen(n uint32, sl *slot) {
	if sl.sh != nil && sl.sh.Retired() {
		s.countLost(n, sl.sh)
		s.wasteLocked(n, sl)
		sl.sh.Release()
		sl.sh = nil
		sl.lost.Store(true)
	}
}

// writeTries is how many disks in a row may fail under one block.
const writeTries = 4

// write puts a block on a disk: on another one if the shard's turns out to be
// bad. false: no disk has the space, or none works.
func (s *Set) write(n uint32, f *flight, block int, off int64, data []byte) (bool, error) {
	for range writeTries {
		sl := s.shard(n)
		if sl.sh == nil && !f.memory { // evicted by force meanwhile, or gone with its disk
			sl.mu.RUnlock()
			f.memory = s.create(n) != nil
			sl = s.shard(n)
		}
		if sl.sh == nil {
			sl.mu.RUnlock()
			return false, nil
		}
		_, err := sl.sh.Write(block, off, data)
		retired := sl.sh.Retired()
		sl.mu.RUnlock()
		switch {
		case retired:
		case err == nil:
			return true, nil
		case stoker.KindOf(err) == stoker.KindNoSpace:
			return false, nil
		default:
			return false, err
		}
	}
	return false, nil
}

// mendRounds is how often a load begins shards anew that went with their disk.
const mendRounds = 4

// mend loads again what disks took from a load that has run to its end.
func (s *Set) mend(ctx context.Context, l *load, err error) error {
	for range mendRounds {
		again := false
		for _, n := range l.part {
			if err != nil || ctx.Err() != nil {
				return err
			}
			s.shard(n).mu.RUnlock() // notices what is gone
			if !s.slots[n].lost.Swap(false) {
				continue
			}
			again = true
			s.recount(l)
			for _, p := range s.wanted(l, n) {
				if err = s.loadPiece(ctx, l, n, p.from, p.to); err != nil {
					break
				}
			}
		}
		if !again {
			break
		}
		s.recount(l)
	}
	return err
}

// recount sets how far a load is to what is here: a disk took some of it.
func (s *Set) recount(l *load) {
	var sum int64
	for _, n := range l.part {
		for _, p := range s.wanted(l, n) {
			sum += s.residentBytes(n, p.from, p.to)
		}
	}
	l.bytes.Store(sum)
}
