package cache

import (
	"bytes"
	"context"
	"fmt"
	"testing"

	"stoker.dev"
	"stoker.dev/internal/api"
)

// What does not fit is refused with numbers while somebody holds the rest,
// and makes room by eviction when nobody does.
func TestReserveEvictsOnlyWhatNobodyHolds(t *testing.T) {
	c := newCluster(t, 1, 40<<20)
	ctx := context.Background()
	c.fillUFS(6, 150, 0) // about 22 MB
	first := c.freeze()
	c.load(0, c.plan(first))
	n := c.nodes[0].cache
	lease := api.Lease{Holder: "job1", Owner: "ann", Manifest: first, TTLSeconds: 60}
	if err := n.PutLeases(api.LeaseRequest{Leases: []api.Lease{lease}}); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Evict(ctx, first, false); stoker.KindOf(err) != stoker.KindHeld {
		t.Fatalf("eviction of held data: %v", err)
	}
	for i := range 150 {
		c.ufs.Put(fmt.Sprintf("other/%d", i), bytes.Repeat([]byte{byte(i)}, 150<<10))
	}
	for i := range 150 {
		c.ufs.Delete(fmt.Sprintf("train/%02d/f%05d.bin", i%7, i))
	}
	second := c.freeze()
	plan := c.plan(second)
	_, err := n.Reserve(ctx, api.ReserveRequest{Plan: plan, Part: 0})
	if stoker.KindOf(err) != stoker.KindNoSpace {
		t.Fatalf("reservation beyond held data: %v", err)
	}
	if err := n.PutLeases(api.LeaseRequest{Drop: []string{"job1"}}); err != nil {
		t.Fatal(err)
	}
	if p := c.load(0, plan); p.Bytes != 150*150<<10 {
		t.Fatalf("after the release: %+v", p)
	}
	held, err := n.Holdings(ctx)
	if err != nil || len(held) != 1 || held[0].Manifest != second {
		t.Errorf("holdings: %+v, %v", held, err)
	}
}

// A read of mounted data makes room, in the background: until there is some it
// passes through memory, as does one of data that nobody holds here, which makes none.
func TestReadOfHeldDataMakesRoom(t *testing.T) {
	c := newCluster(t, 1, 40<<20)
	c.fillUFS(6, 150, 0) // about 22 MB
	first := c.freeze()
	c.load(0, c.plan(first))
	want := map[string][]byte{}
	for i := range 150 {
		name := fmt.Sprintf("other/%d", i)
		want[name] = bytes.Repeat([]byte{byte(i)}, 150<<10)
		c.ufs.Put(name, want[name])
		c.ufs.Delete(fmt.Sprintf("train/%02d/f%05d.bin", i%7, i))
	}
	second := c.freeze()
	n := c.nodes[0].cache
	resident := func(id stoker.ID) (bytes int64) {
		held, err := n.Holdings(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range held {
			if h.Manifest == id {
				bytes = h.Bytes
			}
		}
		return bytes
	}
	before := resident(first)
	c.readAll(0, second, want)
	n.settle()
	if got := resident(first); got != before {
		t.Fatalf("a read of data that nobody holds evicted %d bytes", before-got)
	}
	if err := n.Mounted(second, "second", 1); err != nil {
		t.Fatal(err)
	}
	c.readAll(0, second, want)
	n.settle()
	c.readAll(0, second, want)
	if resident(first) != 0 || resident(second) != 150*150<<10 {
		t.Errorf("after a read of mounted data %d bytes of the other and %d of its own are resident", resident(first), resident(second))
	}
}
