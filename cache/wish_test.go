package cache

import (
	"testing"
	"time"

	"stoker.dev/internal/api"
)

// A load keeps to the limit that is wished, this worker's part of it, also in the
// worker's next life; without the wish it does not.
func TestLoadKeepsToItsWish(t *testing.T) {
	c := newCluster(t, 2, 128<<20)
	c.alone = true
	files := c.fillUFS(1, 40, 8<<20)
	id := c.freeze()
	plan := c.plan(id)
	n := c.nodes[0]
	wish := api.LoadWish{Manifest: id, LimitBytesPerSecond: 2 * total(files), Rank: 5}
	put(t, n.cache, api.LeaseRequest{Leases: []api.Lease{{Holder: "j", Manifest: id, TTLSeconds: 60}}, Wishes: []api.LoadWish{wish}})
	if err := n.cache.Close(); err != nil {
		t.Fatal(err)
	}
	var err error
	n.cache, err = New(n.cache.o)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	p := c.load(0, plan)
	if took := time.Since(began); p.UFSBytes == 0 || took < 400*time.Millisecond {
		t.Errorf("%d bytes, its half, came in %v: want half a second", p.UFSBytes, took)
	}
	put(t, n.cache, api.LeaseRequest{Partial: true, Wishes: []api.LoadWish{{Manifest: id}}})
	if _, err := n.cache.Evict(t.Context(), id, true); err != nil {
		t.Fatal(err)
	}
	began = time.Now()
	c.load(0, c.plan(id))
	if took := time.Since(began); took > 300*time.Millisecond {
		t.Errorf("without a limit it took %v", took)
	}
}
