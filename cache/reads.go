package cache

import (
	"sync"
	"sync/atomic"
	"time"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/ufs/guard"
)

// Reads say where the bytes of reads and loads came from, what came ahead of
// readers, and what readers waited for: of all datasets, or of one of them.
type Reads struct {
	Reads                      atomic.Int64 // READs of views
	LocalBytes, PeerBytes      atomic.Int64
	AheadBlocks                atomic.Int64 // that fills began to bring in before they were asked for
	AheadBytes, AheadUsedBytes atomic.Int64 // of those, what came; and of these, what somebody read since
	AheadWastedBytes           atomic.Int64 // what went, or was left by the last user of its dataset, unread
	Streams, Steppers, Footers atomic.Int64 // readers that were followed; ends of containers that came as a whole
	Files                      atomic.Int64 // of which something came ahead of who reads one after the other as listed
	Epochs                     atomic.Int64 // of jobs whose samplers are known, that were recognised
	Random, SparedBytes        atomic.Int64 // misses in no order, for which no window came; what these windows have beside what did
	UFS                        guard.Count  // all data requests

	waits [causes]atomic.Int64 // ns
}

// Waits is how long readers waited for bytes that were not here, added up over
// all of them. Each moment of a reader's wait has one cause.
type Waits struct {
	UFS   time.Duration // the under file system to answer
	Peer  time.Duration // another worker to send
	Disk  time.Duration // this worker's disk: space made, copied from older generations, or brought in again after it failed
	Queue time.Duration // memory, or a turn at the under file system
	Load  time.Duration // what a load had begun to bring in
}

// Waits returns it so far: of the waits that have ended.
func (r *Reads) Waits() Waits {
	of := func(c cause) time.Duration { return time.Duration(r.waits[c].Load()) }
	return Waits{UFS: of(forUFS), Peer: of(forPeer), Disk: of(forDisk), Queue: of(forTurn), Load: of(forLoad)}
}

// ReadsOf calls each with what was counted of some manifests since the worker started.
func (c *Cache) ReadsOf(ids []stoker.ID, each func(*Reads)) {
	for _, id := range ids {
		c.mu.Lock()
		u := c.uses[id]
		c.mu.Unlock()
		if u != nil {
			each(&u.reads)
		}
	}
}

// count adds to what is counted of the dataset, and of all.
func (s *Set) count(add func(*Reads)) {
	add(&s.c.counters.Reads)
	add(&s.use.reads)
}

func (s *Set) countLocal(n int) {
	s.c.counters.LocalBytes.Add(int64(n))
	s.use.reads.LocalBytes.Add(int64(n))
}

// cause is what a flight waits for, and with it those who wait for the flight.
type cause int

const (
	forTurn cause = iota
	forDisk
	forPeer
	forUFS
	forLoad
	causes
)

// phases add up how long a flight waits for what.
type phases struct {
	mu    sync.Mutex
	now   cause                 // +checklocks:mu
	since time.Time             // +checklocks:mu
	spent [causes]time.Duration // +checklocks:mu — before since
}

// enter begins another phase and returns the one before.
func (p *phases) enter(c cause) (was cause) {
	p.mu.Lock()
	defer p.mu.Unlock()
	at := now()
	if !p.since.IsZero() {
		p.spent[p.now] += at.Sub(p.since)
	}
	was, p.now, p.since = p.now, c, at
	return was
}

// turn is told that the flight waits for its turn, and what it returns, that it
// has come.
func (p *phases) turn() func() {
	was := p.enter(forTurn)
	return func() { p.enter(was) }
}

func (p *phases) soFar() [causes]time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := p.spent
	out[p.now] += now().Sub(p.since)
	return out
}

// waited counts a reader's wait for a flight by what that did since then. What
// others began is one cause of its own, whatever it does.
func (s *Set) waited(f *flight, then [causes]time.Duration) {
	for c, d := range f.phases.soFar() {
		if d -= then[c]; d <= 0 {
			continue
		}
		to := cause(c)
		if f.whose != forTurn {
			to = f.whose
		}
		s.count(func(r *Reads) { r.waits[to].Add(int64(d)) })
	}
}

// whoseIs is what readers wait for who join a flight that others began: a load, or
// what the disk has lost; forTurn: what the flight does says it.
func whoseIs(w why) cause {
	switch {
	case w.prio == guard.Repair && !w.copies:
		return forDisk
	case w.waits || w.copies:
		return forLoad
	}
	return forTurn
}

// came marks a block that a fill ahead of readers brings, before anybody can read it;
// what it returns is told whether it is on the disk.
func (s *Set) came(n uint32, block, length int) (here func(bool)) {
	e := &s.slots[n].early
	e.made(int(s.man.Shard(n).Blocks)).set(block)
	return func(onDisk bool) {
		if !onDisk {
			e.take(block)
			return
		}
		s.count(func(r *Reads) { r.AheadBytes.Add(int64(length)) })
	}
}

// spared counts a miss that brings in an object's blocks up to to, where its window
// would have ended at end.
func (s *Set) spared(m manifest.Member, to, end int) {
	first := int(m.FirstBlock)
	size := min(m.Bytes, int64(end-first)*stoker.BlockBytes) - int64(to-first)*stoker.BlockBytes
	s.count(func(r *Reads) {
		r.Random.Add(1)
		r.SparedBytes.Add(max(0, size))
	})
}

// used counts a block that came ahead, when it is read for the first time.
func (s *Set) used(n uint32, block, length int) {
	if s.slots[n].early.take(block) {
		s.count(func(r *Reads) { r.AheadUsedBytes.Add(int64(length)) })
	}
}

// wasted counts a block that came ahead and is fetched again.
func (s *Set) wasted(n uint32, block int) {
	if s.slots[n].early.take(block) {
		_, length := s.where(n, block)
		s.count(func(r *Reads) { r.AheadWastedBytes.Add(int64(length)) })
	}
}

// wasteLocked counts what came ahead of a shard and goes with it, unread.
// REQUIRES: sl.mu is held.
func (s *Set) wasteLocked(n uint32, sl *slot) {
	e := sl.early.p.Swap(nil)
	if e == nil {
		return
	}
	var sum int64
	for b := range int(s.man.Shard(n).Blocks) {
		if (*e)[b/32].Load()&(1<<(b%32)) != 0 {
			_, _, length := blockOf(memberOf(sl.members, b), b)
			sum += int64(length)
		}
	}
	s.count(func(r *Reads) { r.AheadWastedBytes.Add(sum) })
}
