package cache

import (
	"cmp"
	"testing"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/internal/api"
)

// has says which of some shards a node has.
func (n *node) has(shards map[stoker.ID]bool) map[stoker.ID]bool {
	out := map[stoker.ID]bool{}
	for _, sh := range n.store.Shards() {
		if shards[sh.ID] {
			out[sh.ID] = true
		}
	}
	return out
}

// yields gives old shards up while that costs no more than most, and says how many.
func (n *node) yields(t *testing.T, s *Set, is settled, most loss, atMost int) (gone int) {
	t.Helper()
	n.cache.room.Lock()
	defer n.cache.room.Unlock()
	for gone < atMost {
		made, _ := s.yield(t.Context(), is, most)
		if !made {
			break
		}
		gone++
	}
	return gone
}

// Two workers have all of the old generation. Of each of its shards one copy is
// kept, by the one whose part copies most from it, and goes only at a loss: the
// one of which the least is lacked first. Of a generation that a job leases
// nothing goes.
func TestOneCopyIsKept(t *testing.T) {
	g := newCluster(t, 2, 1<<30).generations(1600, images)
	first := g.freeze()
	g.bring(g.planFor(first, 1, func(n int) int { return n }))
	g.same(0, first)
	g.same(1, first)
	g.change()
	second := g.freezeAfter(first)
	plan := g.planFor(second, 1, func(n int) int { return n })
	var sets [2]*Set
	for i, n := range g.nodes {
		if _, err := n.cache.Reserve(t.Context(), api.ReserveRequest{Plan: plan, Part: i}); err != nil {
			t.Fatal(err)
		}
		s, err := n.cache.Open(t.Context(), second)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		sets[i] = s
	}
	old := map[stoker.ID]bool{}
	list := func(s *Set) []oldShard { return s.bases.old.list }
	for i := range sets {
		if _, err := sets[i].yieldable(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	lacks := map[stoker.ID]*[2]int64{} // of each old shard, by part
	for i := range list(sets[0]) {
		o := &list(sets[0])[i]
		if sets[0].bases.old.used[o.id] {
			continue
		}
		old[o.id], lacks[o.id] = true, &[2]int64{}
		sets[0].eachNeeded(o, func(manifest.Member) bool { return false }, func(n uint32, bytes int64) { lacks[o.id][n%2] += bytes })
	}
	part := func(i int) settled {
		return func(n uint32) (mine, ended bool) { return int(n)%2 == i, false }
	}
	for i, n := range g.nodes {
		n.yields(t, sets[i], part(i), noLoss, 1000)
	}
	zero, one := g.nodes[0].has(old), g.nodes[1].has(old)
	if len(old) < 4 || len(zero) == 0 || len(one) == 0 {
		t.Fatalf("%d old shards, %d and %d kept: the test tries nothing", len(old), len(zero), len(one))
	}
	for id, l := range lacks {
		first := cmp.Compare(g.nodes[1].store.WorkerID(), g.nodes[0].store.WorkerID()) > 0
		keeper := 1
		if l[0] > l[1] || l[0] == l[1] && first {
			keeper = 0
		}
		if zero[id] == one[id] || zero[id] != (keeper == 0) {
			t.Errorf("shard %s, of which the parts lack %v: kept by the first %v, by the second %v", id.Short(), *l, zero[id], one[id])
		}
	}

	n := g.nodes[0]
	lease := api.Lease{Holder: "job", Manifest: first, TTLSeconds: 600}
	if err := n.cache.PutLeases(api.LeaseRequest{Leases: []api.Lease{lease}}); err != nil {
		t.Fatal(err)
	}
	if gone := n.yields(t, sets[0], part(0), anyLoss, 1); gone != 0 {
		t.Error("a shard of a leased generation went")
	}
	if err := n.cache.PutLeases(api.LeaseRequest{Drop: []string{"job"}}); err != nil {
		t.Fatal(err)
	}
	total := func(id stoker.ID) int64 { return lacks[id][0] + lacks[id][1] }
	least := stoker.ID{}
	for id := range zero {
		if least.IsZero() || total(id) < total(least) {
			least = id
		}
	}
	if gone := n.yields(t, sets[0], unsettled, anyLoss, 1); gone != 1 || n.has(old)[least] || len(n.has(old)) != len(zero)-1 {
		t.Errorf("%d went, not the one of which %d bytes are lacked", gone, total(least))
	}
	for i, n := range g.nodes {
		if err := n.cache.GiveBack(plan, i); err != nil {
			t.Fatal(err)
		}
	}
}
