package cache

import (
	"context"
	"sync"
	"testing"
	"time"

	"stoker.dev"
	"stoker.dev/internal/api"
)

// silence is a Fetcher whose peers do not answer until it ends.
type silence struct {
	Fetcher
	mu    sync.Mutex
	over  bool          // +checklocks:mu
	asked chan struct{} // closed when somebody asked in vain
	once  sync.Once
}

func (f *silence) Fetch(ctx context.Context, p Peer, id stoker.ID, n uint32, from, to int, through bool, got func(int, []byte) error) error {
	f.mu.Lock()
	over := f.over
	f.mu.Unlock()
	if over {
		return f.Fetcher.Fetch(ctx, p, id, n, from, to, through, got)
	}
	f.once.Do(func() { close(f.asked) })
	return stoker.Errorf(stoker.KindTransient, "peer.fetch", p.ID, "connection refused")
}

// move begins to load a second generation on node 0 of which node 1, which does
// not answer, has the first.
func move(t *testing.T) (g *generations, quiet *silence, second, plan stoker.ID, changed int64) {
	g = newCluster(t, 2, 1<<30).generations(300, images)
	first := g.freeze()
	g.load(1, g.planFor(first, 1, func(int) int { return 1 }))
	g.asked()
	changed = g.change()
	second = g.freezeAfter(first)
	plan = g.planFor(second, 1, func(int) int { return 0 })
	n := g.nodes[0].cache
	quiet = &silence{Fetcher: n.o.Fetcher, asked: make(chan struct{})}
	n.o.Fetcher = quiet
	n.waitMost = 2 * askAgain
	return g, quiet, second, plan, changed
}

func (g *generations) begin(plan stoker.ID) {
	g.t.Helper()
	n := g.nodes[0].cache
	if _, err := n.Reserve(g.t.Context(), api.ReserveRequest{Plan: plan}); err != nil {
		g.t.Fatal(err)
	}
	if err := n.Load(g.t.Context(), plan, 0); err != nil {
		g.t.Fatal(err)
	}
}

func (g *generations) end(plan stoker.ID) (p api.LoadProgress) {
	g.t.Helper()
	err := g.nodes[0].cache.WatchLoad(g.t.Context(), plan, 0, time.Second, func(now api.LoadProgress) error { p = now; return nil })
	if err != nil || p.FailedObjects != 0 || p.Bytes != p.TotalBytes {
		g.t.Fatalf("%v, %+v", err, p)
	}
	return p
}

// A worker that went away with what a load copies, and comes back, costs nothing:
// the load waits for it.
func TestDeltaWaitsForAWorkerThatIsAway(t *testing.T) {
	g, quiet, second, plan, changed := move(t)
	g.nodes[0].cache.waitMost = time.Hour
	g.begin(plan)
	<-quiet.asked
	quiet.mu.Lock()
	quiet.over = true
	quiet.mu.Unlock()
	p := g.end(plan)
	if sent := g.asked(); sent > changed || p.CopiedBytes == 0 {
		t.Errorf("%d bytes changed, the UFS sent %d: %+v", changed, sent, p)
	}
	g.same(0, second)
}

// Readers do not wait for it.
func TestDeltaReadersDoNotWait(t *testing.T) {
	g, quiet, second, plan, _ := move(t)
	g.nodes[0].cache.waitMost = time.Hour
	g.begin(plan)
	<-quiet.asked
	g.same(0, second)
	if p := g.end(plan); p.UFSBytes-p.Refetched.Hedge != p.TotalBytes {
		t.Errorf("%+v", p)
	}
}

// One that does not come back is waited for, then everything is fetched.
func TestDeltaDoesNotWaitForEver(t *testing.T) {
	g, _, second, plan, _ := move(t)
	begun := time.Now()
	g.begin(plan)
	p := g.end(plan)
	if sent := g.asked(); sent != p.TotalBytes || p.CopiedBytes != 0 {
		t.Errorf("the UFS sent %d: %+v", sent, p)
	}
	if took := time.Since(begun); took < 2*askAgain {
		t.Errorf("it took %v", took)
	}
	g.same(0, second)
}
