package cache

import (
	"testing"
	"time"

	"stoker.dev/internal/api"
	"stoker.dev/planner"
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

// A load of a selection brings its objects and no byte more, knows its size, and one
// of everything brings the rest, once.
func TestLoadOfASelection(t *testing.T) {
	c := newCluster(t, 1, 128<<20)
	files := c.fillUFS(2, 60, 20<<20)
	id := c.freeze()
	key, err := api.Selection{Exclude: []string{"*3*", "large*"}}.Key()
	if err != nil {
		t.Fatal(err)
	}
	s, err := api.ParseSelection(key)
	if err != nil {
		t.Fatal(err)
	}
	var want, objects int64
	for name, body := range files {
		if s.Selector().Has(name) {
			want, objects = want+int64(len(body)), objects+1
		}
	}
	if objects == 0 || want == total(files) {
		t.Fatalf("%d of %d files are selected", objects, len(files))
	}
	body, err := c.store.GetBlob(t.Context(), "plans", c.plan(id))
	if err != nil {
		t.Fatal(err)
	}
	plan, err := planner.DecodePlan(body)
	if err != nil {
		t.Fatal(err)
	}
	plan.Select = key
	some, err := c.store.PutBlob(t.Context(), "plans", plan.Encode())
	if err != nil {
		t.Fatal(err)
	}
	if p := c.load(0, some); p.UFSBytes != want || p.Bytes != want || p.TotalBytes != want || len(p.Failed) != 0 {
		t.Errorf("selected are %d bytes: %+v", want, p)
	}
	if p := c.load(0, c.plan(id)); p.UFSBytes != total(files)-want || p.TotalBytes != total(files) {
		t.Errorf("the rest has %d bytes: %+v", total(files)-want, p)
	}
	c.readAll(0, id, files)
}
