package cache

import (
	"bytes"
	"path/filepath"
	"testing"

	"stoker.dev"
	"stoker.dev/cache/store"
	"stoker.dev/internal/api"
	"stoker.dev/ufs"
	"stoker.dev/ufs/guard"
)

// held puts an object and loads all as a dataset of one shard that a job holds.
func (c *cluster) held(name string, body []byte) stoker.ID {
	c.t.Helper()
	c.ufs.Put(name, body)
	id := c.freezeFrom("mem://"+name, stoker.ID{}) // nothing is copied from one to another
	c.load(0, c.plan(id))
	c.lease(name, id)
	return id
}

// lease holds a dataset beside what else is held.
func (c *cluster) lease(holder string, id stoker.ID) {
	c.t.Helper()
	put(c.t, c.nodes[0].cache, api.LeaseRequest{Partial: true, Leases: []api.Lease{{Holder: holder, Manifest: id, TTLSeconds: 600}}})
}

// takeDisk gives a dataset's only shard up, as the store does whose disk refuses it.
func (c *cluster) takeDisk(id stoker.ID) (shard stoker.ID) {
	c.t.Helper()
	n := c.nodes[0]
	s := n.open(c.t, id)
	shard = s.man.Shard(0).ID
	sh, ok := n.store.Get(shard)
	if !ok {
		c.t.Fatal("it is not here")
	}
	if err := n.store.Remove(shard); err != nil {
		c.t.Fatal(err)
	}
	s.release(0)
	n.cache.gone.add([]*store.Shard{sh})
	sh.Release()
	return shard
}

// A refill waits for its store as long as a preload does, and behind those. What
// disks take of other datasets meanwhile is fetched at once, and said to be gone.
func TestRefillsDoNotWaitForEachOther(t *testing.T) {
	c := newCluster(t, 1, 1<<30)
	one := bytes.Repeat([]byte("x"), 100_000)
	first, second, third := c.held("one", one), c.held("two", one), c.held("three", one)
	n := c.nodes[0]
	put(t, n.cache, api.LeaseRequest{Drop: []string{"three"}, Partial: true})
	g := &gated{FS: c.ufs, gate: make(chan struct{}), first: make(chan struct{})}
	c.openUFS = func() ufs.FS { return g }
	shard := c.takeDisk(first)
	<-g.first
	n.cache.fills.mu.Lock()
	if runs := n.cache.fills.runs[shard]; len(runs) != 1 || runs[0].urgency.Priority() != guard.Repair {
		t.Errorf("%d flights, want one of a repair", len(runs))
	}
	n.cache.fills.mu.Unlock()
	announced := func(id stoker.ID) bool {
		n.dir.mu.Lock()
		defer n.dir.mu.Unlock()
		return n.dir.held[heldShard{id, 0}]
	}
	if announced(first) {
		t.Error("the first one is not said to be gone")
	}
	again := n.dir.wholes(1)
	c.takeDisk(third)
	c.takeDisk(second)
	waitFor(t, "news of what nobody holds", func() bool { return !announced(third) })
	waitFor(t, "the second dataset, while the store of the first one is away", func() bool { return announced(second) })
	<-again
	again = n.dir.wholes(1)
	close(g.gate)
	<-again
	c.readAll(0, first, map[string][]byte{"one": one})
	if len(g.keys) != 3 {
		t.Errorf("requests for %v, want one for each object of the two that are held", g.keys)
	}
}

// waitsForSpace is a held dataset whose disk has gone while what the other one has
// free is promised, and whose refill has found that out.
func waitsForSpace(t *testing.T) (c *cluster, id stoker.ID, want map[string][]byte) {
	d := sickDisks(t)["unmounted"](t)
	c = newCluster(t, 0, 0)
	c.addFolders(0, d.folder(), store.Folder{Dir: filepath.Join(t.TempDir(), "b"), CapacityBytes: 40 << 20})
	want = map[string][]byte{"one": bytes.Repeat([]byte("x"), 20<<20)}
	id = c.held("one", want["one"])
	n := c.nodes[0]
	if n.store.Folders()[0].Shards != 1 {
		t.Fatal("it lies on the other disk")
	}
	if err := n.store.ReserveFor("other", n.store.FreeBytes(1<<20), 1<<20); err != nil {
		t.Fatal(err)
	}
	if err := d.ruin(); err != nil {
		t.Fatal(err)
	}
	n.store.Probe()
	waitFor(t, "the refill to find no space", func() bool {
		n.cache.refills.mu.Lock()
		defer n.cache.refills.mu.Unlock()
		return n.cache.refills.waits == 1
	})
	return c, id, want
}

// A refill takes nothing of what is promised. It goes on when that is given back.
func TestRefillWaitsForSpace(t *testing.T) {
	c, id, want := waitsForSpace(t)
	n := c.nodes[0]
	_, before := c.ufs.counted()
	whole := n.dir.wholes(1)
	if err := n.store.Unreserve("other"); err != nil {
		t.Fatal(err)
	}
	<-whole
	c.readAll(0, id, want)
	if _, after := c.ufs.counted(); after-before != total(want) {
		t.Errorf("%d bytes came again, want %d", after-before, total(want))
	}
}

// A refill that waits ends with what it waits for: when nobody holds the dataset
// any more.
func TestRefillEndsWithItsHolders(t *testing.T) {
	c, _, _ := waitsForSpace(t)
	r := &c.nodes[0].cache.refills
	put(t, c.nodes[0].cache, api.LeaseRequest{Drop: []string{"one"}, Partial: true})
	waitFor(t, "its end", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.lacks) == 0
	})
}

// What merely lies there makes room for what is held and lost.
func TestRefillTakesThePlaceOfWhatNobodyHolds(t *testing.T) {
	d := sickDisks(t)["unmounted"](t)
	c := newCluster(t, 0, 0)
	c.addFolders(0, store.Folder{Dir: d.dir, CapacityBytes: 30 << 20}, store.Folder{Dir: filepath.Join(t.TempDir(), "b"), CapacityBytes: 40 << 20})
	n := c.nodes[0]
	c.held("two", bytes.Repeat([]byte("y"), 20<<20))
	put(t, n.cache, api.LeaseRequest{Drop: []string{"two"}, Partial: true})
	c.ufs.Delete("two")
	want := map[string][]byte{"one": bytes.Repeat([]byte("x"), 20<<20)}
	id := c.held("one", want["one"])
	if f := n.store.Folders(); f[0].Shards != 1 || f[1].Shards != 1 {
		t.Fatalf("not one on each disk: %+v", f)
	}
	whole := n.dir.wholes(1)
	if err := d.ruin(); err != nil {
		t.Fatal(err)
	}
	n.store.Probe()
	<-whole
	c.readAll(0, id, want)
}
