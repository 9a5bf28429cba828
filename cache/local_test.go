package cache

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"stoker.dev"
	"stoker.dev/internal/api"
	"stoker.dev/planner"
)

// halfMegabytes make 200 files two or three shards.
func halfMegabytes(r *rand.Rand) int { return 256<<10 + r.IntN(700<<10) }

// planLocal puts every shard on some nodes; sources says which each is read by.
func (g *generations) planLocal(id stoker.ID, round int64, nodes []int, source func(n int) int) stoker.ID {
	g.t.Helper()
	m, err := g.store.Load(context.Background(), id)
	if err != nil {
		g.t.Fatal(err)
	}
	defer m.Close()
	p := planner.Plan{Dataset: "test", Generation: 1, Manifest: id, Replicas: len(nodes), Round: round}
	for i, n := range g.nodes {
		p.Workers = append(p.Workers, planner.PlanWorker{ID: n.store.WorkerID(), Address: n.peer.Address})
		if slices.Contains(nodes, i) {
			p.Nodes = append(p.Nodes, uint16(i))
		}
	}
	for n := range m.Shards() {
		first := source(n) % len(nodes)
		var owners []uint16
		for k := range nodes {
			owners = append(owners, uint16(nodes[(first+k)%len(nodes)]))
		}
		p.Owners = append(p.Owners, owners)
	}
	pid, err := g.store.PutBlob(context.Background(), "plans", p.Encode())
	if err != nil {
		g.t.Fatal(err)
	}
	return pid
}

// beginOn reserves some parts of a plan, and begins them.
func (g *generations) beginOn(plan stoker.ID, nodes ...int) {
	g.t.Helper()
	for _, i := range nodes { // all first: one that reads through another is on that one's account
		if _, err := g.nodes[i].cache.Reserve(g.t.Context(), api.ReserveRequest{Plan: plan, Part: i}); err != nil {
			g.t.Fatal(err)
		}
	}
	for _, i := range nodes {
		if err := g.nodes[i].cache.Load(g.t.Context(), plan, i); err != nil {
			g.t.Fatal(err)
		}
	}
}

// endOn waits for it.
func (g *generations) endOn(node int, plan stoker.ID) (p api.LoadProgress) {
	g.t.Helper()
	err := g.nodes[node].cache.WatchLoad(g.t.Context(), plan, node, time.Second, func(now api.LoadProgress) error { p = now; return nil })
	if err != nil || p.FailedObjects != 0 || p.Bytes != p.TotalBytes {
		g.t.Fatalf("node %d: %v, %+v", node, err, p)
	}
	return p
}

// loadAll loads several parts side by side.
func (g *generations) loadAll(plan stoker.ID, nodes []int) (fetched int64) {
	g.t.Helper()
	g.beginOn(plan, nodes...)
	for _, i := range nodes {
		fetched += g.endOn(i, plan).UFSBytes
	}
	return fetched
}

func (g *generations) bytes() (sum int64) {
	for _, b := range g.want {
		sum += int64(len(b))
	}
	return sum
}

// Every shard on every node costs the UFS its bytes once, and each node gets what
// it did not fetch itself from the others, once.
func TestLocalIsFetchedOnce(t *testing.T) {
	g := newCluster(t, 3, 1<<30).generations(350, halfMegabytes)
	id, nodes := g.freeze(), []int{0, 1, 2}
	fetched := g.loadAll(g.planLocal(id, 1, nodes, func(n int) int { return n }), nodes)
	size, asked := g.bytes(), g.asked()
	if asked != size || fetched != size {
		t.Errorf("%d bytes were asked of the UFS, the loads fetched %d, want %d", asked, fetched, size)
	}
	for i := range nodes {
		c := &g.nodes[i].cache.counters
		own, peers, served := c.UFS.Bytes.Load(), c.PeerBytes.Load(), c.ServedBytes.Load()
		if own+peers != size || own == 0 || served != 2*own {
			t.Errorf("node %d: %d from the UFS, %d from others, %d to others; want %d in all, and to others twice what it fetched", i, own, peers, served, size)
		}
		g.same(i, id)
		if c.PeerBytes.Load() != peers || g.asked() != 0 {
			t.Errorf("node %d: reads asked others", i)
		}
	}
}

// A node that has everything sends it once, not to each: the sources of the others
// hand it on.
func TestWhoHasAllSendsItOnce(t *testing.T) {
	g := newCluster(t, 4, 1<<30).generations(200, halfMegabytes)
	id := g.freeze()
	g.load(0, g.planFor(id, 1, func(int) int { return 0 }))
	g.asked()
	others := []int{1, 2, 3}
	if fetched := g.loadAll(g.planLocal(id, 2, others, func(n int) int { return n }), others); fetched != 0 || g.asked() != 0 {
		t.Errorf("%d bytes were fetched again", fetched)
	}
	size := g.bytes()
	if served := g.nodes[0].cache.counters.ServedBytes.Load(); served != size {
		t.Errorf("the one that has all sent %d bytes, want %d", served, size)
	}
	for _, i := range others {
		c := &g.nodes[i].cache.counters
		if got := c.PeerBytes.Load(); got != size {
			t.Errorf("node %d got %d bytes, want %d", i, got, size)
		}
		g.same(i, id)
	}
}

// absence is a Fetcher to whom one peer does not answer until it is back.
type absence struct {
	Fetcher
	who string

	mu    sync.Mutex
	back  bool          // +checklocks:mu
	asked chan struct{} // closed when it was asked in vain
	once  sync.Once
}

func (f *absence) Fetch(ctx context.Context, p Peer, id stoker.ID, n uint32, from, to int, through bool, got func(int, []byte) error) error {
	f.mu.Lock()
	back := f.back
	f.mu.Unlock()
	if back || p.ID != f.who {
		return f.Fetcher.Fetch(ctx, p, id, n, from, to, through, got)
	}
	f.once.Do(func() { close(f.asked) })
	return stoker.Errorf(stoker.KindTransient, "peer.fetch", p.ID, "connection refused")
}

// without hides a node from the others.
func (g *generations) without(node int) (all []*absence) {
	for i, n := range g.nodes {
		if i != node {
			f := &absence{Fetcher: n.cache.o.Fetcher, who: g.nodes[node].peer.ID, asked: make(chan struct{})}
			n.cache.o.Fetcher = f
			all = append(all, f)
		}
	}
	return all
}

// A source that goes away with what it has read is waited for: when it is back, the
// others copy that from it.
func TestLocalWaitsForItsSource(t *testing.T) {
	g := newCluster(t, 3, 1<<30).generations(200, halfMegabytes)
	id, nodes := g.freeze(), []int{0, 1, 2}
	g.load(0, g.planFor(id, 1, func(int) int { return 0 }))
	g.asked()
	gone := g.without(0)
	plan := g.planLocal(id, 2, nodes, func(int) int { return 0 })
	g.beginOn(plan, 1, 2)
	for _, f := range gone {
		<-f.asked
		f.mu.Lock()
		f.back = true
		f.mu.Unlock()
	}
	if n := g.endOn(1, plan).UFSBytes + g.endOn(2, plan).UFSBytes; n != 0 || g.asked() != 0 {
		t.Errorf("%d bytes were fetched again", n)
	}
}

// What a source that is gone had not begun is read by the next in turn, once for
// all; and what it had begun too, when it was waited for long enough.
func TestLocalSourceIsTakenOver(t *testing.T) {
	for _, begun := range []bool{false, true} {
		t.Run(fmt.Sprintf("begun %v", begun), func(t *testing.T) {
			g := newCluster(t, 3, 1<<30).generations(200, halfMegabytes)
			id, nodes := g.freeze(), []int{0, 1, 2}
			if begun {
				g.load(0, g.planFor(id, 1, func(int) int { return 0 }))
				g.asked()
			}
			g.without(0)
			for _, n := range g.nodes {
				n.cache.waitMost = askAgain
			}
			plan := g.planLocal(id, 2, nodes, func(int) int { return 0 })
			if fetched, size := g.loadAll(plan, []int{1, 2}), g.bytes(); fetched != size || g.asked() != size {
				t.Errorf("%d bytes were fetched, want %d", fetched, size)
			}
			var bypass int64
			for _, i := range []int{1, 2} {
				g.same(i, id)
				bypass += g.nodes[i].cache.counters.Bypass.Bytes.Load()
			}
			// What one asks the other for, as the owner after the one that is gone, is not.
			if size := g.bytes(); bypass > size || bypass > 0 != begun {
				t.Errorf("%d bytes of %d are counted as read past their owner", bypass, size)
			}
		})
	}
}
