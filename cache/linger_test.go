package cache

import (
	"context"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"stoker.dev/cache/manifest"
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
