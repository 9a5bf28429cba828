package cache

import (
	"context"
	"testing"
	"time"

	"stoker.dev"
	"stoker.dev/internal/api"
	"stoker.dev/ufs/guard"
)

// underWay returns the flight of a dataset's shard 0 that has block 0; nil if there is none.
func (s *Set) underWay() *flight {
	s.c.fills.mu.Lock()
	defer s.c.fills.mu.Unlock()
	for _, f := range s.c.fills.runs[s.man.Shard(0).ID] {
		if f.from == 0 {
			return f
		}
	}
	return nil
}

func (f *flight) in(c cause) bool {
	f.phases.mu.Lock()
	defer f.phases.mu.Unlock()
	return f.phases.now == c
}

// What a reader waits for is told apart, and adds up to no more than its wait; who
// finds everything here waits for nothing.
func TestWaitsOfReadersByCause(t *testing.T) {
	const size = 100_000
	turnOf := func(w Waits) time.Duration { return w.Queue }
	for name, x := range map[string]struct {
		nodes int
		opts  guard.Options
		// before is called with the store held, and may begin what the reader finds under
		// way; what it returns is called at the end.
		before func(t *testing.T, c *cluster, s *Set, id stoker.ID) func()
		is     cause // of the flight, while the reader waits
		of     func(Waits) time.Duration
	}{
		"the store": {1, guard.Options{}, nil, forUFS, func(w Waits) time.Duration { return w.UFS }},
		"a peer":    {2, guard.Options{}, nil, forPeer, func(w Waits) time.Duration { return w.Peer }},
		"a turn at the store": {1, guard.Options{MaxInFlight: 1}, func(t *testing.T, c *cluster, s *Set, _ stoker.ID) func() {
			other, end := rowOf(t, s, "b"), make(chan error)
			asked, _ := c.ufs.counted()
			go func() {
				_, err := s.ReadAt(context.Background(), other, make([]byte, size), 0)
				end <- err
			}()
			waitFor(t, "the other one is served", func() bool { n, _ := c.ufs.counted(); return n > asked })
			return func() {
				if err := <-end; err != nil {
					t.Error(err)
				}
			}
		}, forTurn, turnOf},
		"memory": {1, guard.Options{}, func(t *testing.T, _ *cluster, s *Set, _ stoker.ID) func() {
			m := s.c.memory
			for _, sh := range []*share{&m.flights, &m.ownerFlights} {
				if err := m.acquire(t.Context(), sh, sh.size); err != nil {
					t.Fatal(err)
				}
			}
			return func() {}
		}, forTurn, turnOf},
		"a load": {1, guard.Options{}, func(t *testing.T, c *cluster, s *Set, id stoker.ID) func() {
			plan := c.plan(id)
			if _, err := s.c.Reserve(t.Context(), api.ReserveRequest{Plan: plan}); err != nil {
				t.Fatal(err)
			}
			if err := s.c.Load(t.Context(), plan, 0); err != nil {
				t.Fatal(err)
			}
			waitFor(t, "the load has begun", func() bool { return s.underWay() != nil })
			return func() { s.c.StopLoad(plan, 0) }
		}, forUFS, func(w Waits) time.Duration { return w.Load }},
		"a disk": {1, guard.Options{}, func(t *testing.T, _ *cluster, s *Set, _ stoker.ID) func() {
			end := make(chan error)
			go func() {
				end <- s.bringRun(context.Background(), 0, 0, 1, why{prio: guard.Repair}, func(*flight, int, int) {})
			}()
			waitFor(t, "what went is fetched again", func() bool { return s.underWay() != nil })
			return func() {
				if err := <-end; err != nil {
					t.Error(err)
				}
			}
		}, forUFS, func(w Waits) time.Duration { return w.Disk }},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, x.nodes, 1<<30)
			fs := guard.New(c.ufs, x.opts) // one for all, as a daemon has it
			c.guarded = fs
			c.put("a", size, 1)
			c.put("b", size, 2)
			id := c.freeze()
			n := c.nodes[x.nodes-1]
			s := n.open(t, id)
			hold := make(chan struct{})
			c.ufs.mu.Lock()
			c.ufs.hold = hold
			c.ufs.mu.Unlock()
			end, began := func() {}, time.Now()
			if x.before != nil {
				end = x.before(t, c, s, id)
			}
			row, got := rowOf(t, s, "a"), make([]byte, size)
			read := make(chan error)
			go func() {
				_, err := s.ReadAt(context.Background(), row, got, 0)
				read <- err
			}()
			waitFor(t, "the reader waits", func() bool {
				f := s.underWay()
				if f == nil {
					return false
				}
				s.c.fills.mu.Lock()
				joined := f.waiters > 0 && (x.before == nil || name != "a load" && name != "a disk" || f.waiters > 1)
				s.c.fills.mu.Unlock()
				return joined && f.in(x.is) && (name != "a turn at the store" || f.phases.soFar()[forPeer] > 0)
			})
			waits := time.Now()
			if name == "memory" {
				waitFor(t, "memory is waited for", func() bool { _, _, waits := s.c.MemoryUse(); return waits > 0 })
				waits = time.Now()
				m := s.c.memory
				m.release(&m.flights, m.flights.size)
				m.release(&m.ownerFlights, m.ownerFlights.size)
			}
			least := time.Since(waits)
			close(hold)
			if err := <-read; err != nil {
				t.Fatal(err)
			}
			most := time.Since(began)
			end()
			n.settle(t)
			var of *Reads
			n.cache.ReadsOf([]stoker.ID{id, {1}}, func(r *Reads) { of = r })
			w := of.Waits()
			all := w.UFS + w.Peer + w.Disk + w.Queue + w.Load
			if name == "a turn at the store" {
				most *= 2 // two readers waited
			}
			if got := x.of(w); got < least || got == 0 || all > most {
				t.Errorf("waits %+v: %v for %s, want %v at least, and %v of %v in all", w, got, name, least, all, most)
			}
			if x.of(w) < all/2 && name != "a turn at the store" && least > time.Millisecond {
				t.Errorf("waits %+v: most of it is not for %s", w, name)
			}
			if total := n.cache.Counters().Waits(); total != w {
				t.Errorf("the worker's waits are %+v, its one dataset's %+v", total, w)
			}
			if name == "a peer" && c.nodes[0].cache.Counters().Waits() != (Waits{}) {
				t.Errorf("who serves others waits: %+v", c.nodes[0].cache.Counters().Waits())
			}
			if _, err := s.ReadAt(t.Context(), row, got, 0); err != nil || of.Waits() != w {
				t.Errorf("a warm read waited: %+v, %v", of.Waits(), err)
			}
			if k := of; k.Reads.Load() < 2 || k.LocalBytes.Load() < 2*size || k.PeerBytes.Load()+k.UFS.Bytes.Load() < size {
				t.Errorf("%d reads, %d bytes from the disk, %d from peers, %d from the store", k.Reads.Load(), k.LocalBytes.Load(), k.PeerBytes.Load(), k.UFS.Bytes.Load())
			}
		})
	}
}

// What came ahead and went, or was left, unread is wasted, and what is read is not;
// what one dataset did is not another's.
func TestWhatComesAheadAndIsNotReadIsWasted(t *testing.T) {
	for name, leave := range map[string]func(t *testing.T, n *node, s *Set){
		"evicted": func(t *testing.T, n *node, s *Set) {
			if _, err := n.cache.Evict(t.Context(), s.id, true); err != nil {
				t.Fatal(err)
			}
		},
		"closed": func(t *testing.T, _ *node, s *Set) {
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, 1, 1<<30)
			c.put("a", 2*stoker.ExtentBytes, 1)
			n, id := c.nodes[0], c.freeze()
			s, err := n.cache.Open(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			row, got := rowOf(t, s, "a"), make([]byte, window)
			for off := 0; off < 5*window; off += window {
				if _, err := s.ReadAt(t.Context(), row, got, int64(off)); err != nil {
					t.Fatal(err)
				}
				n.settle(t)
			}
			k := n.cache.Counters()
			ahead, used := k.AheadBytes.Load(), k.AheadUsedBytes.Load()
			if ahead <= used || used == 0 || k.AheadWastedBytes.Load() != 0 {
				t.Fatalf("%d bytes came ahead, %d were read, %d wasted", ahead, used, k.AheadWastedBytes.Load())
			}
			leave(t, n, s)
			if wasted := k.AheadWastedBytes.Load(); wasted != ahead-used {
				t.Errorf("of %d bytes that came ahead %d were read, and %d wasted", ahead, used, wasted)
			}
			n.cache.ReadsOf([]stoker.ID{id}, func(r *Reads) {
				if r.AheadWastedBytes.Load() != ahead-used || r.AheadBytes.Load() != ahead || r.Streams.Load() != 1 || r.UFS.Bytes.Load() != k.UFS.Bytes.Load() {
					t.Errorf("of the dataset %d bytes came ahead of %d streams, and %d were wasted", r.AheadBytes.Load(), r.Streams.Load(), r.AheadWastedBytes.Load())
				}
			})
			n.cache.ReadsOf([]stoker.ID{{7}}, func(*Reads) { t.Error("what nobody read was counted") })
			if name == "evicted" {
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}
