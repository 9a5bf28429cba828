package cache

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"stoker.dev"
	"stoker.dev/internal/api"
)

// only makes the UFS hold objects of that name alone, and freezes it.
func (c *cluster) only(name string, objects int) stoker.ID {
	c.t.Helper()
	for _, other := range []string{"a", "b", "c", "d", "e"} {
		for i := range 250 {
			c.ufs.Delete(fmt.Sprintf("%s/%d", other, i))
		}
	}
	for i := range objects {
		c.ufs.Put(fmt.Sprintf("%s/%d", name, i), bytes.Repeat([]byte(name), 150<<10))
	}
	return c.freeze()
}

// here lists the datasets that a node has data of.
func (c *cluster) here(i int) (ids []stoker.ID) {
	c.t.Helper()
	held, err := c.nodes[i].cache.Holdings(c.t.Context())
	if err != nil {
		c.t.Fatal(err)
	}
	for _, h := range held {
		if h.Bytes > 0 {
			ids = append(ids, h.Manifest)
		}
	}
	return ids
}

func put(t testing.TB, n *Cache, r api.LeaseRequest) {
	t.Helper()
	if err := n.PutLeases(r); err != nil {
		t.Fatal(err)
	}
}

// aged moves what is known of leases into the past.
func (c *Cache) aged(d time.Duration) {
	c.holds.mu.Lock()
	defer c.holds.mu.Unlock()
	for _, l := range c.holds.leases {
		l.renewed = l.renewed.Add(-d)
	}
}

// What a job let go of lately makes room after what nobody wanted, though that
// was used later; but it does make room.
func TestGraceGoesLast(t *testing.T) {
	c := newCluster(t, 1, 40<<20)
	n := c.nodes[0].cache
	var ids []stoker.ID
	for _, name := range []string{"a", "b", "c"} {
		id := c.only(name, 60)
		c.load(0, c.plan(id))
		ids = append(ids, id)
	}
	put(t, n, api.LeaseRequest{Leases: []api.Lease{{Holder: "j", Manifest: ids[0], TTLSeconds: 60, GraceSeconds: 300}}})
	put(t, n, api.LeaseRequest{Drop: []string{"j"}, Partial: true})
	for _, id := range ids[1:] {
		n.holds.touch(n.o.Store, id)
	}
	d := c.only("d", 120)
	c.load(0, c.plan(d))
	if here := c.here(0); !slices.Contains(here, ids[0]) || slices.Contains(here, ids[1]) || !slices.Contains(here, d) {
		t.Fatalf("of %v and %v are left %v", ids, d, here)
	}
	e := c.only("e", 220)
	c.load(0, c.plan(e))
	if here := c.here(0); !slices.Equal(here, []stoker.ID{e}) {
		t.Errorf("%v is left, want %v alone", here, e)
	}
}

// Grace holds nothing: a user's eviction goes through. When it has passed the
// order is that of use.
func TestGraceHoldsNothing(t *testing.T) {
	c := newCluster(t, 1, 40<<20)
	n := c.nodes[0].cache
	a := c.only("a", 5)
	c.load(0, c.plan(a))
	b := c.only("b", 5)
	c.load(0, c.plan(b))
	put(t, n, api.LeaseRequest{Leases: []api.Lease{{Holder: "j", Manifest: a, TTLSeconds: 60, GraceSeconds: 300}}})
	if _, err := n.Evict(t.Context(), a, false); stoker.KindOf(err) != stoker.KindHeld {
		t.Fatalf("eviction of leased data: %v", err)
	}
	put(t, n, api.LeaseRequest{Drop: []string{"j"}})
	n.holds.touch(n.o.Store, b)
	if got := n.unheld(nil); !slices.Equal(got, []stoker.ID{b, a}) {
		t.Errorf("in grace the order is %v, want %v last", got, a)
	}
	n.holds.known[a].GraceUntil = now().Add(-time.Second)
	if got := n.unheld(nil); !slices.Equal(got, []stoker.ID{a, b}) {
		t.Errorf("after it the order is %v, want %v first", got, a)
	}
	n.holds.known[a].GraceUntil = now().Add(time.Hour)
	if rep, err := n.Evict(t.Context(), a, false); err != nil || rep.Bytes == 0 {
		t.Errorf("eviction of data in grace: %+v, %v", rep, err)
	}
}

// A pin says who holds, why and until when; it survives the worker, and ends by
// itself, renewed or not.
func TestPinIsALeaseThatEnds(t *testing.T) {
	c := newCluster(t, 1, 40<<20)
	n := c.nodes[0].cache
	a := c.only("a", 5)
	c.load(0, c.plan(a))
	until := time.Now().UTC().Add(2 * time.Hour).Truncate(time.Second)
	pin := api.Lease{Holder: "pin/ann/a", Owner: "ann", Manifest: a, TTLSeconds: 120, EndsSeconds: 3600, Reason: "a sweep", Until: until.Add(-time.Hour)}
	put(t, n, api.LeaseRequest{Leases: []api.Lease{pin}})
	pin.EndsSeconds, pin.Until = 7200, until
	put(t, n, api.LeaseRequest{Leases: []api.Lease{pin}})
	want := "the pin of ann (a sweep) until " + until.Format(time.RFC3339)
	if _, err := n.Evict(t.Context(), a, false); stoker.KindOf(err) != stoker.KindHeld || !strings.Contains(err.Error(), want) {
		t.Fatalf("eviction of pinned data: %v", err)
	}
	var next holds
	if err := next.restore(n.o.Store); err != nil {
		t.Fatal(err)
	}
	next.mu.Lock()
	if who := next.holdersLocked(a); !slices.Equal(who, []string{want}) {
		t.Errorf("the next life knows %v", who)
	}
	next.mu.Unlock()
	n.aged(2*time.Hour - time.Second)
	if _, err := n.Evict(t.Context(), a, false); stoker.KindOf(err) != stoker.KindHeld {
		t.Errorf("a pin that nobody renews ended before its time: %v", err)
	}
	n.aged(2 * time.Second)
	if len(n.Leases()) != 0 {
		t.Errorf("it has ended, and is listed: %+v", n.Leases())
	}
	if _, err := n.Evict(t.Context(), a, false); err != nil {
		t.Errorf("after its end: %v", err)
	}
}

// Only a whole list ends the leases that are not in it.
func TestPartialListsEndNothing(t *testing.T) {
	c := newCluster(t, 1, 40<<20)
	n := c.nodes[0].cache
	a := c.only("a", 5)
	put(t, n, api.LeaseRequest{Leases: []api.Lease{{Holder: "j", Manifest: a, TTLSeconds: 120}}})
	n.aged(10 * time.Minute) // nobody was heard for so long
	put(t, n, api.LeaseRequest{Leases: []api.Lease{{Holder: "k", Manifest: a, TTLSeconds: 120}}, Partial: true})
	if len(n.Leases()) != 2 {
		t.Errorf("after a partial list there are %+v", n.Leases())
	}
	put(t, n, api.LeaseRequest{Leases: []api.Lease{{Holder: "k", Manifest: a, TTLSeconds: 120}}})
	if l := n.Leases(); len(l) != 1 || l[0].Holder != "k" {
		t.Errorf("after a whole list there are %+v", l)
	}
}
