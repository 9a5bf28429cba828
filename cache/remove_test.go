package cache

import (
	"errors"
	"testing"

	"stoker.dev"
	"stoker.dev/cache/store"
	"stoker.dev/internal/api"
)

// twoGenerations are here on one worker: they have a large object in common.
func twoGenerations(t *testing.T) (g *generations, first, second stoker.ID) {
	t.Helper()
	g = &generations{cluster: newCluster(t, 1, 1<<30)}
	here := func(int) int { return 0 }
	g.cluster.put("large", stoker.ExtentBytes, 1)
	g.cluster.put("small", 1000, 2)
	first = g.freeze()
	g.bring(g.planFor(first, 1, here))
	g.cluster.put("small", 1000, 3)
	second = g.freezeAfter(first)
	g.bring(g.planFor(second, 1, here))
	if g.shared(first, second) != 1 {
		t.Fatal("the generations do not share the large object: the test tries nothing")
	}
	return g, first, second
}

// A shard that goes is announced for no manifest any more that is known here and
// has it, whyever it goes, and its space comes back, whatever other datasets had it
// open.
func TestWhatGoesIsWithdrawnFromAllGenerations(t *testing.T) {
	for name, goes := range map[string]func(s *Set) error{
		"evicted": func(s *Set) error {
			_, err := s.c.Evict(t.Context(), s.id, false)
			return err
		},
		"given up by the policy": func(s *Set) error {
			s.c.dropVictims(t.Context(), s, []uint32{0, 1})
			return nil
		},
		"bad": func(s *Set) error {
			s.discard(0, errors.New("wrong bytes"))
			s.discard(1, errors.New("wrong bytes"))
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			g, first, second := twoGenerations(t)
			n := g.nodes[0]
			other, s := n.open(t, second), n.open(t, first)
			if name != "given up by the policy" { // which leaves alone what others have open
				for i := range other.slots {
					other.shard(uint32(i)).mu.RUnlock()
				}
			}
			if err := goes(s); err != nil {
				t.Fatal(err)
			}
			g.announcesWhatItHas(n)
			if left := n.store.Shards(); len(left) != 1 || left[0].Bytes > 4096 {
				t.Errorf("%d shards are left, want the second generation's small one", len(left))
			}
			if used := n.store.Usage().UsedBytes; used > 4<<20 {
				t.Errorf("%d bytes are still used", used)
			}
		})
	}
}

// What stays for another generation, which somebody holds, is not announced for one
// that is forgotten: nobody would withdraw it when it goes, too.
func TestForgottenGenerationIsWithdrawn(t *testing.T) {
	g, first, second := twoGenerations(t)
	n := g.nodes[0]
	put(t, n.cache, api.LeaseRequest{Leases: []api.Lease{{Holder: "job", Manifest: second, TTLSeconds: 600}}})
	if r, err := n.cache.Evict(t.Context(), first, false); err != nil || r.Shards != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	n.dir.mu.Lock()
	for at := range n.dir.held {
		if at.id == first {
			t.Errorf("shard %d of the forgotten one is announced", at.n)
		}
	}
	n.dir.mu.Unlock()
	put(t, n.cache, api.LeaseRequest{Drop: []string{"job"}, Partial: true})
	if r, err := n.cache.Evict(t.Context(), second, false); err != nil || r.Shards != 2 {
		t.Fatalf("%+v, %v", r, err)
	}
	g.announcesWhatItHas(n)
}

// orphan makes a shard that no manifest has.
func (n *node) orphan(t *testing.T, number byte, bytes int64) *store.Shard {
	t.Helper()
	sh, err := n.store.Create(store.Spec{ID: stoker.ID{number}, Bytes: bytes, Blocks: int(bytes / stoker.BlockBytes)}, "")
	if err != nil {
		t.Fatal(err)
	}
	return sh
}

// Shards that no manifest known here has go within the hour, but those that somebody
// has open; nothing else does.
func TestOrphansGo(t *testing.T) {
	c := newCluster(t, 1, 1<<30)
	want := c.fillUFS(61, 20, 0)
	id := c.freeze()
	c.load(0, c.plan(id))
	n := c.nodes[0]
	n.orphan(t, 1, 1<<20).Release()
	open := n.orphan(t, 2, 1<<20)
	n.cache.dropOrphans(t.Context())
	if left := n.store.Shards(); len(left) != 2 || n.store.Users(stoker.ID{2}) != 1 {
		t.Errorf("%d shards are left, want the dataset's and the one that is open", len(left))
	}
	open.Release()
	n.cache.dropOrphans(t.Context())
	if left := n.store.Shards(); len(left) != 1 {
		t.Errorf("%d shards are left", len(left))
	}
	_, before := c.ufs.counted()
	c.readAll(0, id, want)
	if _, after := c.ufs.counted(); after != before {
		t.Errorf("%d bytes of the dataset are gone", after-before)
	}
}

// A manifest that cannot be read names perhaps any of them: then all stay.
func TestOrphansOfWhatIsNotKnown(t *testing.T) {
	c := newCluster(t, 1, 1<<30)
	n := c.nodes[0]
	n.orphan(t, 1, 1<<20).Release()
	if err := n.cache.holds.know(n.store, stoker.ID{9}, "gone"); err != nil {
		t.Fatal(err)
	}
	n.cache.dropOrphans(t.Context())
	if left := n.store.Shards(); len(left) != 1 {
		t.Errorf("%d shards are left", len(left))
	}
}

// They are no reason to refuse a load.
func TestOrphansMakeRoom(t *testing.T) {
	c := newCluster(t, 1, 40<<20)
	c.nodes[0].orphan(t, 1, 32<<20).Release()
	c.put("large", 20<<20, 1)
	if p := c.load(0, c.plan(c.freeze())); p.Bytes != 20<<20 {
		t.Errorf("%+v", p)
	}
}
