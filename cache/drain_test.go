package cache

import (
	"context"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"stoker.dev"
	"stoker.dev/cache/store"
	"stoker.dev/internal/api"
	"stoker.dev/planner"
)

// onto makes a plan that puts every shard on one node.
func (c *cluster) onto(id stoker.ID, i int) stoker.ID {
	c.t.Helper()
	m, err := c.store.Load(context.Background(), id)
	if err != nil {
		c.t.Fatal(err)
	}
	defer m.Close()
	p := planner.Plan{Dataset: "test", Manifest: id, Replicas: 1, Round: int64(i)}
	for _, n := range c.nodes {
		p.Workers = append(p.Workers, planner.PlanWorker{ID: n.store.WorkerID(), Address: n.peer.Address})
	}
	for range m.Shards() {
		p.Owners = append(p.Owners, []uint16{uint16(i)})
	}
	pid, err := c.store.PutBlob(context.Background(), "plans", p.Encode())
	if err != nil {
		c.t.Fatal(err)
	}
	return pid
}

// A worker that is drained takes nothing new, in its next life neither; what was
// promised before is kept, and reads are right and store nothing.
func TestDrainedWorkerTakesNothingNew(t *testing.T) {
	c := newCluster(t, 1, 1<<30)
	want := c.fillUFS(3, 60, 9<<20)
	id, other := c.freeze(), stoker.ID{}
	ctx := t.Context()
	n := c.nodes[0].cache
	promised := c.plan(id)
	if _, err := n.Reserve(ctx, api.ReserveRequest{Plan: promised}); err != nil {
		t.Fatal(err)
	}
	since := time.Now().UTC().Round(time.Second)
	for _, by := range []string{"ann", "bob"} { // the second time it is the same drain
		if err := n.Drain(api.Drain{Since: since, By: by, Drop: by == "bob"}); err != nil {
			t.Fatal(err)
		}
	}
	if d := n.Draining(); d == nil || d.By != "ann" || !d.Drop || !d.Since.Equal(since) {
		t.Fatalf("it is drained as %+v", d)
	}
	c.ufs.Put("more", make([]byte, 1<<20))
	want["more"], other = make([]byte, 1<<20), c.freeze()
	plan := c.plan(other)
	if _, err := n.Reserve(ctx, api.ReserveRequest{Plan: plan}); stoker.KindOf(err) != stoker.KindTransient {
		t.Errorf("a new promise: %v", err)
	}
	if err := n.Load(ctx, plan, 0); stoker.KindOf(err) != stoker.KindTransient {
		t.Errorf("a new load: %v", err)
	}
	c.readAll(0, other, want)
	if got := len(c.nodes[0].store.Shards()); got != 0 {
		t.Errorf("reads stored %d shards", got)
	}
	c.load(0, promised)
	if done, err := n.Drained(ctx); done || err != nil {
		t.Errorf("with data it is drained: %v, %v", done, err)
	}
	if err := n.Undrain(); err != nil || n.Draining() != nil {
		t.Fatal(err)
	}
	c.load(0, plan)
}

func TestDrainOutlivesTheWorker(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cache")
	since := time.Now().UTC().Round(0)
	for life := range 3 {
		st, err := store.Open(store.Options{Dir: dir, CapacityBytes: 64 << 20})
		if err != nil {
			t.Fatal(err)
		}
		c, err := New(Options{Store: st})
		if err != nil {
			t.Fatal(err)
		}
		d := c.Draining()
		switch life {
		case 0:
			err = c.Drain(api.Drain{Since: since, By: "ann"})
		case 1:
			if d == nil || d.By != "ann" || !d.Since.Equal(since) {
				t.Errorf("in its next life it is drained as %+v", d)
			}
			if done, err := c.Drained(t.Context()); !done || err != nil {
				t.Errorf("an empty worker: %v, %v", done, err)
			}
			err = c.Undrain()
		case 2:
			if d != nil {
				t.Errorf("after an undrain it is drained as %+v", d)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		if err := st.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// Copies come from workers that have the shards, and cost the store nothing; what
// no worker has stays away, and is no failure of the dataset's. What others have
// then goes although it is held, but not under a view, and not while another held
// dataset needs it.
func TestCopiesAndDrops(t *testing.T) {
	c := newCluster(t, 2, 1<<30)
	want := c.fillUFS(4, 80, 70<<20)
	id := c.freeze()
	c.load(0, c.onto(id, 0))
	from, to := c.nodes[0].cache, c.nodes[1].cache
	put(t, from, api.LeaseRequest{Leases: []api.Lease{{Holder: "j", Owner: "ann", Manifest: id, TTLSeconds: 60}}})
	c.ufs.Put("late", []byte("only the store has it"))
	second := c.freezeAfter(id) // shares the extents
	put(t, from, api.LeaseRequest{Leases: []api.Lease{{Holder: "k", Owner: "ann", Manifest: second, TTLSeconds: 60}}, Partial: true})
	before, _ := c.ufs.counted()

	copies := func(plan stoker.ID) (last api.LoadProgress) {
		t.Helper()
		if _, err := to.Reserve(t.Context(), api.ReserveRequest{Plan: plan, Part: 1, Copies: true}); err != nil {
			t.Fatal(err)
		}
		if err := to.LoadCopies(t.Context(), plan, 1); err != nil {
			t.Fatal(err)
		}
		if err := to.WatchLoad(t.Context(), plan, 1, time.Millisecond, func(p api.LoadProgress) error { last = p; return nil }); err != nil {
			t.Fatal(err)
		}
		return last
	}
	if p := copies(c.onto(id, 1)); p.UFSBytes != 0 || p.FailedObjects != 0 || p.Bytes != p.TotalBytes {
		t.Errorf("the copies: %+v", p)
	}
	if p := copies(c.onto(second, 1)); p.UFSBytes != 0 || p.FailedObjects == 0 || len(to.Failures(second, "", 10).Failed) != 0 {
		t.Errorf("of what no worker has: %+v", p)
	}
	if after, _ := c.ufs.counted(); after != before {
		t.Errorf("%d requests to the store", after-before)
	}
	drop := func(of stoker.ID, shards ...uint32) int {
		t.Helper()
		r, err := from.DropCopies(t.Context(), of, shards)
		if err != nil {
			t.Fatal(err)
		}
		return r.Shards
	}
	m, err := c.store.Load(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	var all []uint32
	for n := range uint32(m.Shards()) {
		all = append(all, n)
	}
	if err := from.Mounted(id, "test", 1); err != nil {
		t.Fatal(err)
	}
	if got := drop(id, all...); got != 0 {
		t.Errorf("under a view %d shards went", got)
	}
	if err := from.Mounted(id, "test", -1); err != nil {
		t.Fatal(err)
	}
	shared := 0
	m2, err := c.store.Load(t.Context(), second)
	if err != nil {
		t.Fatal(err)
	}
	defer m2.Close()
	var theirs []uint32
	for n := range uint32(m2.Shards()) {
		for k := range uint32(m.Shards()) {
			if m2.Shard(n).ID == m.Shard(k).ID {
				shared++
				theirs = append(theirs, n)
			}
		}
	}
	if got := drop(id, all...); shared == 0 || got != len(all)-shared {
		t.Errorf("%d of %d shards went, %d are another held dataset's", got, len(all), shared)
	}
	if got := drop(second, theirs...); got != shared {
		t.Errorf("of both, %d of %d shards went", got, shared)
	}
	if got := len(c.nodes[0].store.Shards()); got != 0 {
		t.Errorf("%d shards are left", got)
	}
	c.readAll(0, id, want)
}

// A promise for copies ends with the life that gave it, one for a load does not; giving
// back ends both.
func TestPromisesOfCopies(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cache")
	c := newCluster(t, 0, 0)
	c.add(0, dir, 1<<30)
	c.fillUFS(5, 40, 9<<20)
	plan := c.plan(c.freeze())
	n := c.nodes[0]
	reserve := func(copies bool) int {
		t.Helper()
		if _, err := n.cache.Reserve(t.Context(), api.ReserveRequest{Plan: plan, Copies: copies}); err != nil {
			t.Fatal(err)
		}
		return len(n.store.Reservations())
	}
	if got := reserve(false) + reserve(true); got != 3 {
		t.Errorf("promised, then also for copies: %v", n.store.Reservations())
	}
	if err := n.cache.GiveBack(plan, 0); err != nil || len(n.store.Reservations()) != 0 {
		t.Errorf("given back: %v, %v", n.store.Reservations(), err)
	}
	reserve(false)
	reserve(true)
	next, err := New(Options{Store: n.store, Manifests: c.store, Open: c.open, Directory: n.dir, Fetcher: testFetcher{}})
	if err != nil {
		t.Fatal(err)
	}
	if _, kept := n.store.Reservations()[reservationName(plan, 0)]; !kept || len(n.store.Reservations()) != 1 {
		t.Errorf("in the next life: %v", n.store.Reservations())
	}
	if err := next.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestCopyRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &pace{perSecond: 1 << 20}
		began := time.Now()
		for range 10 {
			if err := r.wait(t.Context(), 512<<10); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(began); took != 4500*time.Millisecond { // the last one begins then
			t.Errorf("5 MiB at 1 MiB/s begin within %v", took)
		}
		time.Sleep(time.Hour) // is not made up for
		began = time.Now()
		for range 3 {
			_ = r.wait(t.Context(), 1<<20)
		}
		if took := time.Since(began); took != 2*time.Second {
			t.Errorf("after a rest 3 MiB begin within %v", took)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := r.wait(ctx, 1<<30); err == nil {
			t.Error("it waits for one who has gone")
		}
	})
}
