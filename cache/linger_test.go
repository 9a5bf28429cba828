package cache

import (
	"context"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/planner"
	"stoker.dev/ufs"
	"stoker.dev/ufs/folder"
)

// plansRead counts how often plans are asked of the manifest store.
type plansRead struct {
	ufs.Objects
	n atomic.Int64
}

func (p *plansRead) Get(ctx context.Context, name string) ([]byte, string, error) {
	if strings.HasPrefix(name, "plans/") {
		p.n.Add(1)
	}
	return p.Objects.Get(ctx, name)
}

// A worker that nobody reads a dataset on, and that others ask for it, opens it once,
// not for each request; some time after the last one it lets go of it.
func TestServedDatasetsStayOpen(t *testing.T) {
	c := newCluster(t, 0, 0)
	objects, err := folder.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	plans := &plansRead{Objects: objects}
	c.store = manifest.NewStore(plans, t.TempDir())
	for _, name := range []string{"a", "b", "c", "d"} {
		c.ufs.Put(name, []byte(name))
	}
	c.add(0, filepath.Join(t.TempDir(), "cache"), 1<<30)
	id := c.freeze()
	c.load(0, c.plan(id))
	c.add(1, filepath.Join(t.TempDir(), "cache"), 1<<30)
	holder, before := c.nodes[0].cache, plans.n.Load()
	if holder.opened(id) != nil {
		t.Fatal("it is open before anybody asks")
	}
	ask := func() {
		t.Helper()
		got := 0
		err := c.nodes[1].cache.o.Fetcher.Fetch(t.Context(), c.nodes[0].peer, id, 0, 0, 1, false, func(int, []byte) error { got++; return nil })
		if err != nil || got != 1 {
			t.Fatalf("%d blocks, %v", got, err)
		}
	}
	for range 10 {
		ask()
	}
	if n := plans.n.Load() - before; n != 1 {
		t.Errorf("10 requests read the plan %d times", n)
	}
	s := holder.opened(id)
	if s == nil {
		t.Fatal("it is closed")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for range time.Tick(time.Millisecond) { // until the last answer has ended: nothing keeps its shard from being evicted
		if holder.o.Store.Users(c.nodes[0].store.Shards()[0].ID) == 0 {
			break
		}
	}
	s.endLingering() // as its timer does
	if s := holder.opened(id); s == nil {
		t.Fatal("somebody asked a moment ago, and it is closed")
	} else if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s.lingering.asked.Store(0)
	s.endLingering()
	if holder.opened(id) != nil {
		t.Error("nobody has asked for long, and it is open")
	}
	s.endLingering() // a timer that came late
	ask()
	if err := holder.Close(); err != nil || holder.opened(id) != nil {
		t.Errorf("the cache has ended, and it is open: %v", err)
	}
}

// When a view is made the workers that it will ask open the dataset, before it reads:
// one request each, which brings nothing. Shards are not gone through once all are known.
func TestOwnersAreGreeted(t *testing.T) {
	c := newCluster(t, 0, 0)
	for _, name := range []string{"a", "b", "c", "d", "e", "f", "g", "h"} {
		c.ufs.Put(name, make([]byte, 40<<20))
	}
	for i := range 3 {
		c.add(i, filepath.Join(t.TempDir(), "cache"), 1<<30)
	}
	id := c.freeze()
	plan := c.plan(id)
	for i := range c.nodes {
		c.load(i, plan)
	}
	asked := &askedPeers{Fetcher: c.nodes[0].cache.o.Fetcher, by: map[string]int{}}
	c.nodes[0].cache.o.Fetcher = asked
	owners := &askedOwners{Directory: c.nodes[0].cache.o.Directory}
	c.nodes[0].cache.o.Directory = owners
	s, err := c.nodes[0].cache.Open(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	p, err := c.nodes[0].cache.readPlan(t.Context(), plan)
	if err != nil {
		t.Fatal(err)
	}
	s.UsePlan(p)
	before := c.nodes[0].cache.Counters().PeerBytes.Load()
	s.greet(t.Context())
	if last := len(owners.first) - 1; last < 1 || slices.Index(owners.first, owners.first[last]) != last {
		t.Errorf("it was gone on where all were known: %v", owners.first)
	}
	for _, n := range c.nodes[1:] {
		o := n.cache.opened(id)
		if o == nil {
			t.Fatalf("%s has not opened it", n.peer.ID)
		}
		if err := o.Close(); err != nil {
			t.Error(err)
		}
		if got := asked.by[n.peer.ID]; got != 1 {
			t.Errorf("%s was asked %d times", n.peer.ID, got)
		}
		if got := n.cache.Counters().ServedBytes.Load(); got != 0 {
			t.Errorf("%s has sent %d bytes", n.peer.ID, got)
		}
	}
	if len(asked.by) != 2 || c.nodes[0].cache.Counters().PeerBytes.Load() != before {
		t.Errorf("asked %v", asked.by)
	}
}

// askedOwners notes the first owners that it has told.
type askedOwners struct {
	Directory
	first []string
}

func (a *askedOwners) Owners(ctx context.Context, plan *planner.Plan, shard stoker.ID, n uint32) (ask []Peer, self bool, lost []string) {
	if ask, self, lost = a.Directory.Owners(ctx, plan, shard, n); len(ask) > 0 {
		a.first = append(a.first, ask[0].ID)
	}
	return ask, self, lost
}

// askedPeers counts who is asked.
type askedPeers struct {
	Fetcher
	mu sync.Mutex
	by map[string]int
}

func (a *askedPeers) Fetch(ctx context.Context, p Peer, id stoker.ID, n uint32, from, to int, through bool, got func(int, []byte) error) error {
	a.mu.Lock()
	a.by[p.ID]++
	a.mu.Unlock()
	return a.Fetcher.Fetch(ctx, p, id, n, from, to, through, got)
}
