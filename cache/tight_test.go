package cache

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"stoker.dev"
	"stoker.dev/cache/store"
	"stoker.dev/internal/api"
)

// charges says what the shards of a manifest take on each of two workers, and
// what the largest takes.
func (g *generations) charges(id stoker.ID, owner func(n int) int) (parts [2]int64, largest int64) {
	g.t.Helper()
	m, err := g.store.Load(context.Background(), id)
	if err != nil {
		g.t.Fatal(err)
	}
	defer m.Close()
	st, err := store.Open(store.Options{Folders: []store.Folder{{Dir: filepath.Join(g.t.TempDir(), "c"), CapacityBytes: 1 << 20}}})
	if err != nil {
		g.t.Fatal(err)
	}
	defer st.Close()
	for n := range m.Shards() {
		d := m.Shard(uint32(n))
		charge := st.ChargeBytes(d.Bytes, int(d.Blocks))
		parts[owner(n)%2] += charge
		largest = max(largest, charge)
	}
	return parts, largest
}

// bringAtOnce loads all parts at the same time and returns what they cost.
func (g *generations) bringAtOnce(plan stoker.ID) (fetched, lost int64) {
	g.t.Helper()
	for i, n := range g.nodes {
		if _, err := n.cache.Reserve(g.t.Context(), api.ReserveRequest{Plan: plan, Part: i}); err != nil {
			g.t.Fatal(err)
		}
	}
	for i, n := range g.nodes {
		if err := n.cache.Load(g.t.Context(), plan, i); err != nil {
			g.t.Fatal(err)
		}
	}
	for i, n := range g.nodes {
		var last api.LoadProgress
		err := n.cache.WatchLoad(g.t.Context(), plan, i, time.Second, func(p api.LoadProgress) error { last = p; return nil })
		if err != nil || last.FailedObjects > 0 || last.Bytes != last.TotalBytes {
			g.t.Fatalf("part %d: %v, %+v", i, err, last)
		}
		fetched, lost = fetched+last.UFSBytes, lost+last.Refetched.Lost
	}
	return fetched, lost
}

// announcesWhatItHas checks that no shard is said to be on a node where it is not.
func (g *generations) announcesWhatItHas(n *node) {
	g.t.Helper()
	here := map[stoker.ID]bool{}
	for _, sh := range n.store.Shards() {
		here[sh.ID] = true
	}
	n.dir.mu.Lock()
	defer n.dir.mu.Unlock()
	for at := range n.dir.held {
		m, err := g.store.Load(g.t.Context(), at.id)
		if err != nil {
			g.t.Fatal(err)
		}
		if !here[m.Shard(at.n).ID] {
			g.t.Errorf("shard %d of %s is announced and not here", at.n, at.id.Short())
		}
		if err := m.Close(); err != nil {
			g.t.Fatal(err)
		}
	}
}

// pair is two workers with room for their parts of a new dataset and slack times
// its largest shard. by says by how many workers each generation moves.
func pair(t *testing.T, slack float64, by int) (g *generations, first stoker.ID, owner func(generation int) func(n int) int, capacity int64) {
	g = newCluster(t, 0, 0).generations(1600, images) // about 320 MB
	owner = func(generation int) func(int) int { return func(n int) int { return n + (generation-1)*by } }
	first = g.freeze()
	even, largest := g.charges(first, owner(1))
	odd, _ := g.charges(first, owner(2))
	// Parts grow and shrink a little from one generation to the next.
	capacity = max(even[0], even[1], odd[0], odd[1])*101/100 + int64(slack*float64(largest))
	for i := range 2 {
		g.cluster.add(i, filepath.Join(t.TempDir(), "cache"), capacity)
	}
	g.bringAtOnce(g.planFor(first, 1, owner(1)))
	return g, first, owner, capacity
}

// Two workers have room for their parts and little more than the largest
// shard. Each of two more generations changes one percent, whether shards stay where
// they are or move to the other worker each time, and whether or not the slack
// is full of copies of what the other one has: the UFS sends at most 1.1 times
// the changed bytes.
func TestDeltaInTightSpace(t *testing.T) {
	for _, c := range []struct {
		name string
		by   int
		read bool
	}{{"they stay", 0, true}, {"they move", 1, false}, {"they move and are read", 1, true}} {
		t.Run(c.name, func(t *testing.T) {
			if raceDetector && c.name != "they move" {
				t.Skip("one of them is enough under the race detector, which makes these minutes")
			}
			g, last, owner, capacity := pair(t, 1.1, c.by)
			for generation := 2; generation <= 3; generation++ {
				if c.read {
					g.same(0, last)
					g.same(1, last)
				}
				g.asked()
				changed := g.change()
				last = g.freezeAfter(last)
				begun := time.Now()
				fetched, lost := g.bringAtOnce(g.planFor(last, 1, owner(generation)))
				t.Logf("generation %d: %d bytes changed, %d fetched, %d of them lost, in %v", generation, changed, fetched, lost, time.Since(begun))
				if sent := g.asked(); sent != fetched || fetched > changed*11/10 || fetched > changed+lost {
					t.Errorf("generation %d: %d bytes changed, the UFS sent %d, the loads say %d, %d of them lost", generation, changed, sent, fetched, lost)
				}
				for i, n := range g.nodes {
					if u := n.store.Usage(); u.UsedBytes > capacity || u.ReservedBytes != 0 {
						t.Errorf("node %d after generation %d: %+v", i, generation, u)
					}
					g.announcesWhatItHas(n)
				}
			}
			g.same(1, last)
		})
	}
}

// With less slack than the largest shard nothing is refused: old shards go before
// they were copied, and what that costs is counted as lost.
func TestDeltaInTooLittleSpace(t *testing.T) {
	g, last, owner, capacity := pair(t, 0.3, 1)
	for _, n := range g.nodes {
		n.cache.waitMost = 2 * askAgain
	}
	g.asked()
	changed := g.change()
	last = g.freezeAfter(last)
	fetched, lost := g.bringAtOnce(g.planFor(last, 1, owner(2)))
	t.Logf("%d bytes changed, %d fetched, %d lost", changed, fetched, lost)
	if sent := g.asked(); sent != fetched || fetched <= changed || fetched > changed+lost {
		t.Errorf("%d bytes changed, the UFS sent %d, the loads say %d and %d lost", changed, sent, fetched, lost)
	}
	for i, n := range g.nodes {
		if u := n.store.Usage(); u.UsedBytes > capacity || u.ReservedBytes != 0 {
			t.Errorf("node %d: %+v", i, u)
		}
	}
	g.same(1, last)
}

// Copies of shards that both generations have make room, too. Then this worker
// has them of neither, and says so: another one would give up its own.
func TestYieldWithdrawsFromAllGenerations(t *testing.T) {
	g := newCluster(t, 0, 0).generations(1600, images) // about 320 MB
	g.cluster.add(0, filepath.Join(t.TempDir(), "cache"), 200<<20)
	g.cluster.add(1, filepath.Join(t.TempDir(), "cache"), 1<<30)
	elsewhere := func(int) int { return 1 }
	first := g.freeze()
	g.bring(g.planFor(first, 1, elsewhere))
	g.put(g.names[0])
	second := g.freezeAfter(first)
	if g.shared(first, second) < 2 {
		t.Fatal("the generations share nothing: the test tries nothing")
	}
	g.bring(g.planFor(second, 1, elsewhere))
	n := g.nodes[0]
	g.same(0, second)
	s, err := n.cache.Open(t.Context(), second)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	before := len(n.store.Shards())
	n.cache.room.Lock()
	for made := true; made; {
		made, _ = s.yield(t.Context(), unsettled, anyLoss)
	}
	n.cache.room.Unlock()
	if after := len(n.store.Shards()); after == before {
		t.Fatal("nothing has made room: the test tries nothing")
	}
	g.announcesWhatItHas(n)
	left := int64(3 << 20) // more than the documents take
	for _, sh := range n.store.Shards() {
		left += n.store.ChargeBytes(sh.Bytes, sh.Blocks)
	}
	if u := n.store.Usage(); u.UsedBytes > left {
		t.Errorf("the space did not come back: %+v, the shards take %d", u, left)
	}
	g.same(0, second)
}
