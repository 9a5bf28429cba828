package activities

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/cache/placement"
	"stoker.dev/internal/api"
	"stoker.dev/planner"
)

// Workers that cache nothing, or do not answer, get no part of a plan.
func TestPlanUsesWhoCanHold(t *testing.T) {
	c := newCluster(t, 4)
	c.workers[1].CapacityBytes = 0 // a client-only node
	c.register(t, c.workers[1])
	c.workers[2].server.Close()
	id, plan := c.planned(t, PlanInput{Round: 5, Replicas: 2, Generation: 7})
	var ids []string
	for _, w := range plan.Workers {
		ids = append(ids, w.ID)
	}
	slices.Sort(ids)
	if !slices.Equal(ids, []string{"w0", "w3"}) || plan.Manifest != c.manifest || plan.Replicas != 2 || plan.Round != 5 || plan.Generation != 7 || plan.Dataset != "d" {
		t.Errorf("workers %v; %+v", ids, plan)
	}
	for n, owners := range plan.Owners {
		if len(owners) != 2 || owners[0] == owners[1] {
			t.Errorf("shard %d is on %v", n, owners)
		}
	}
	if other, _ := c.planned(t, PlanInput{Round: 6, Replicas: 2, Generation: 7}); other == id {
		t.Error("two rounds have one plan: what they cost would be mixed up")
	}
}

func TestNoWorkers(t *testing.T) {
	c := newCluster(t, 1)
	c.workers[0].server.Close()
	_, err := c.Plan(t.Context(), PlanInput{Dataset: "d", Manifest: c.manifest})
	if err = FromTemporal("", "", err); stoker.KindOf(err) != stoker.KindTransient {
		t.Errorf("no worker answers: %v", err)
	}
	_, err = c.Plan(t.Context(), PlanInput{Dataset: "d", Manifest: stoker.ID{1}})
	if err = FromTemporal("", "", err); stoker.KindOf(err) != stoker.KindNotExist {
		t.Errorf("no such manifest: %v", err)
	}
}

// A worker can take what is free, what nobody holds, and what it has of the
// same data.
func TestPlanCountsFreeBytes(t *testing.T) {
	need := int64(0)
	for _, s := range shardsOf(newCluster(t, 0).m) {
		need += s.Bytes
	}
	for name, c := range map[string]struct {
		status func(id stoker.ID) api.WorkerStatus
		fits   bool
	}{
		"just enough": {func(stoker.ID) api.WorkerStatus {
			return api.WorkerStatus{WorkerInfo: api.WorkerInfo{CapacityBytes: need + 30, UsedBytes: 10, ReservedBytes: 20}}
		}, true},
		"used": {func(stoker.ID) api.WorkerStatus {
			return api.WorkerStatus{WorkerInfo: api.WorkerInfo{CapacityBytes: need, UsedBytes: 1}}
		}, false},
		"promised": {func(stoker.ID) api.WorkerStatus {
			return api.WorkerStatus{WorkerInfo: api.WorkerInfo{CapacityBytes: need, ReservedBytes: 1}}
		}, false},
		"held by nobody": {func(stoker.ID) api.WorkerStatus {
			return api.WorkerStatus{WorkerInfo: api.WorkerInfo{CapacityBytes: need, UsedBytes: need, FreeableBytes: need}}
		}, true},
		"held, and the same data": {func(id stoker.ID) api.WorkerStatus {
			return api.WorkerStatus{WorkerInfo: api.WorkerInfo{CapacityBytes: need, UsedBytes: need},
				Manifests: []api.ManifestHolding{{Manifest: id, Bytes: need, Holders: []string{"j"}}}}
		}, true},
		"the same data, counted once": {func(id stoker.ID) api.WorkerStatus {
			return api.WorkerStatus{WorkerInfo: api.WorkerInfo{CapacityBytes: need - 1, UsedBytes: need / 2, FreeableBytes: need / 2},
				Manifests: []api.ManifestHolding{{Manifest: id, Bytes: need / 2}}}
		}, false},
		"held, and other data": {func(stoker.ID) api.WorkerStatus {
			return api.WorkerStatus{WorkerInfo: api.WorkerInfo{CapacityBytes: need, UsedBytes: need},
				Manifests: []api.ManifestHolding{{Manifest: stoker.ID{1}, Bytes: need, Holders: []string{"j"}}}}
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			x := newCluster(t, 1)
			x.workers[0].status = c.status(x.manifest)
			_, err := x.Plan(t.Context(), PlanInput{Dataset: "d", Manifest: x.manifest})
			if (err == nil) != c.fits {
				t.Fatalf("%v", err)
			}
			if err != nil && stoker.KindOf(FromTemporal("", "", err)) != stoker.KindNoSpace {
				t.Errorf("%v", err)
			}
		})
	}
}

// announce says in the index who has which shards by a plan.
func (c *cluster) announce(t testing.TB, plan *planner.Plan, whole bool) {
	t.Helper()
	for part, w := range plan.Workers {
		i := slices.IndexFunc(c.workers, func(f *fakeWorker) bool { return f.ID == w.ID })
		var marks []placement.Mark
		for _, n := range plan.Part(part) {
			marks = append(marks, placement.Mark{Shard: n, Whole: whole})
		}
		if err := c.index.Announce(t.Context(), c.workers[i].Incarnation, c.manifest, marks); err != nil {
			t.Fatal(err)
		}
	}
}

// owners maps each shard to the ids of its workers.
func owners(p *planner.Plan) []string {
	out := make([]string, len(p.Owners))
	for n, ws := range p.Owners {
		for _, w := range ws {
			out[n] += p.Workers[w].ID + " "
		}
	}
	return out
}

// What workers have they keep when another one joins, which gets its share of
// the shards and no more. Without the index the plan is made all the same.
func TestPlanKeepsWhatIsThere(t *testing.T) {
	for name, whole := range map[string]bool{"whole shards": true, "parts of shards": false} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, 3)
			_, first := c.planned(t, PlanInput{})
			c.announce(t, first, whole)
			c.addWorker(t)
			_, second := c.planned(t, PlanInput{})
			moved := 0
			for n, was := range owners(first) {
				if now := owners(second)[n]; now != was {
					moved++
					if now != "w3 " {
						t.Errorf("shard %d moved from %sto %s", n, was, now)
					}
				}
			}
			if moved == 0 || moved > len(first.Owners)/3 {
				t.Errorf("%d of %d shards moved to the fourth worker", moved, len(first.Owners))
			}
			c.index.err = stoker.Errorf(stoker.KindTransient, "index", "", "nobody listens there")
			if _, plan := c.planned(t, PlanInput{}); len(plan.Workers) != 4 {
				t.Errorf("without the index %d workers are known", len(plan.Workers))
			}
		})
	}
}

// Who has all of a shard goes before those that have some of it.
func TestWholeShardsGoFirst(t *testing.T) {
	c := newCluster(t, 3)
	for n := range uint32(c.m.Shards()) {
		for i, f := range c.workers {
			mark := []placement.Mark{{Shard: n, Whole: int(n)%3 == i}}
			if err := c.index.Announce(t.Context(), f.Incarnation, c.manifest, mark); err != nil {
				t.Fatal(err)
			}
		}
	}
	has := c.having(t.Context(), c.manifest, c.m.Shards(), []placement.Worker{c.workers[2].Worker, c.workers[0].Worker, c.workers[1].Worker},
		[]planner.Worker{{ID: "w0"}, {ID: "w2"}})
	for n, ws := range has {
		want := [][]int{{0}, {0, 1}, {1}}[n%3] // w1 is no candidate: what it has does not count
		if slices.Sort(ws); !slices.Equal(ws, want) {
			t.Errorf("shard %d is at %v, want %v", n, ws, want)
		}
	}
}

// All or nothing: one refusal gives everything back, with its reason.
func TestReserveIsAllOrNothing(t *testing.T) {
	c := newCluster(t, 3)
	id, plan := c.planned(t, PlanInput{})
	in := ReserveInput{Plan: id, Leases: []api.Lease{{Holder: "j", Owner: "ann", Manifest: c.manifest, TTLSeconds: 120}}, Replaces: stoker.ID{9}}
	if err := c.Reserve(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	for part, w := range plan.Workers {
		f := c.worker(w.ID)
		if len(f.reserved) != 1 || f.reserved[0].Part != part || f.reserved[0].Plan != id || f.reserved[0].Replaces != in.Replaces || !slices.Equal(f.reserved[0].Leases, in.Leases) {
			t.Errorf("%s was asked %+v", w.ID, f.reserved)
		}
		if f.count("give back") != 0 {
			t.Errorf("%s was asked to give back", w.ID)
		}
	}
	c.workers[1].refuses = stoker.Errorf(stoker.KindNoSpace, "reserve", "w1", "needs 3.1 TiB, 2.4 free, 0.9 held by job 41")
	err := FromTemporal("", "", c.Reserve(t.Context(), in))
	if stoker.KindOf(err) != stoker.KindNoSpace || err.Error() != "reserve w1: needs 3.1 TiB, 2.4 free, 0.9 held by job 41" {
		t.Errorf("%v", err)
	}
	for part, w := range plan.Workers {
		f := c.worker(w.ID)
		if f.count("reserve") != 2 || f.count(fmt.Sprint("give back ", part)) != 1 || f.count(fmt.Sprint("stop ", part)) != 1 {
			t.Errorf("%s was asked %v", w.ID, f.asked)
		}
	}
}

func (c *cluster) worker(id string) *fakeWorker {
	return c.workers[slices.IndexFunc(c.workers, func(f *fakeWorker) bool { return f.ID == id })]
}

// A worker that is gone does not keep the others from giving back.
func TestGiveBackReachesAll(t *testing.T) {
	c := newCluster(t, 3)
	id, _ := c.planned(t, PlanInput{})
	c.workers[0].server.Close()
	if err := FromTemporal("", "", c.GiveBack(t.Context(), id)); stoker.KindOf(err) != stoker.KindTransient {
		t.Errorf("%v", err)
	}
	for _, f := range c.workers[1:] {
		if f.count("give back") != 1 || f.count("stop") != 1 {
			t.Errorf("%s was asked %v", f.ID, f.asked)
		}
	}
	if err := FromTemporal("", "", c.GiveBack(t.Context(), stoker.ID{1})); stoker.KindOf(err) != stoker.KindNotExist {
		t.Errorf("a plan that was never made: %v", err)
	}
}

// Leases go to all live workers; one that does not answer is counted, and is
// no reason to fail: it gets them with the next renewal.
func TestPutLeases(t *testing.T) {
	c := newCluster(t, 3)
	in := LeaseInput{Leases: []api.Lease{{Holder: "j", Owner: "ann", Manifest: c.manifest, TTLSeconds: 120}}, Drop: []string{"k"}}
	c.workers[1].fails = stoker.Errorf(stoker.KindBusy, "leases", "", "later")
	if err := c.PutLeases(t.Context(), in); err != nil || c.LeasesRefused() != 1 {
		t.Errorf("%v, %d refused", err, c.LeasesRefused())
	}
	for _, f := range []*fakeWorker{c.workers[0], c.workers[2]} {
		if len(f.leases) != 1 || !slices.Equal(f.leases[0].Leases, in.Leases) || !slices.Equal(f.leases[0].Drop, in.Drop) {
			t.Errorf("%s was told %+v", f.ID, f.leases)
		}
	}
}

// Rules go to all live workers. One that does not answer is counted; one of an
// earlier release has none to know.
func TestPutRules(t *testing.T) {
	c := newCluster(t, 3)
	c.workers[0].before = true
	c.workers[1].fails = stoker.Errorf(stoker.KindBusy, "rules", "", "later")
	req := api.RulesRequest{Rules: []api.EvictionRule{{Dataset: "d", Manifests: []stoker.ID{c.manifest}, Eviction: api.Eviction{Evict: "lfu", TTLSeconds: 60}}}, All: true}
	if missed, err := c.PutRules(t.Context(), req); err != nil || missed != 1 {
		t.Errorf("%d missed, %v", missed, err)
	}
	if f := c.workers[2]; len(f.rules) != 1 || !f.rules[0].All || !f.rules[0].Rules[0].Equal(req.Rules[0]) {
		t.Errorf("%s was told %+v", f.ID, f.rules)
	}
}

// The workers last seen are taken for live while the index does not answer;
// while it does, those that are missing are lost.
func TestWorkersWithoutIndex(t *testing.T) {
	c := newCluster(t, 3)
	c.index.err = stoker.Errorf(stoker.KindTransient, "index", "", "nobody listens there")
	if _, _, err := c.Workers(t.Context()); stoker.KindOf(err) != stoker.KindTransient || err == nil {
		t.Errorf("nothing was ever seen: %v", err)
	}
	c.index.err = nil
	if live, lost, err := c.Workers(t.Context()); len(live) != 3 || len(lost) != 0 || err != nil {
		t.Errorf("%v, %v, %v", live, lost, err)
	}
	if err := c.index.Leave(t.Context(), c.workers[1].Incarnation); err != nil {
		t.Fatal(err)
	}
	if live, lost, err := c.Workers(t.Context()); len(live) != 2 || len(lost) != 1 || lost[0].ID != "w1" || err != nil {
		t.Errorf("%v, %v, %v", live, lost, err)
	}
	c.index.err = stoker.Errorf(stoker.KindTransient, "index", "", "nobody listens there")
	if live, _, err := c.Workers(t.Context()); len(live) != 3 || err != nil {
		t.Errorf("without the index: %v, %v", live, err)
	}
}

// After the index was emptied, workers that have not registered again yet are
// asked themselves: those that answer live, in the life that was known, and those
// that do not are asked once.
func TestIndexThatWasEmptied(t *testing.T) {
	c := newCluster(t, 4)
	for _, f := range c.workers[:3] {
		f.status.Incarnation = f.Incarnation
	}
	c.workers[2].fails = stoker.Errorf(stoker.KindTransient, "worker", "", "is being stopped")
	c.workers[3].status.Incarnation = stoker.NewIncarnation() // it has begun anew since
	if live, _, err := c.Workers(t.Context()); len(live) != 4 || err != nil {
		t.Fatalf("%v, %v", live, err)
	}
	for _, f := range c.workers {
		if err := c.index.Leave(t.Context(), f.Incarnation); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		live, lost, err := c.Workers(t.Context())
		if len(live) != 2 || live[0].ID != "w0" || live[1].ID != "w1" || len(lost) != 2 || err != nil {
			t.Errorf("%v, %v, %v", live, lost, err)
		}
	}
	if n := c.workers[2].count("status"); n != 1 {
		t.Errorf("it did not answer, and was asked %d times", n)
	}
	// What ends now is told to them.
	if err := c.PutLeases(t.Context(), LeaseInput{Drop: []string{"pin/me/d"}, Partial: true}); err != nil {
		t.Fatal(err)
	}
	if f := c.workers[0]; len(f.leases) != 1 || len(f.leases[0].Drop) != 1 {
		t.Errorf("%s was told %+v", f.ID, f.leases)
	}
}

// A worker that moved to another address is found there.
func TestWorkerThatMoved(t *testing.T) {
	c := newCluster(t, 1)
	id, _ := c.planned(t, PlanInput{})
	moved := c.addWorker(t)
	if err := c.index.Leave(t.Context(), c.workers[0].Incarnation); err != nil {
		t.Fatal(err)
	}
	if err := c.index.Leave(t.Context(), moved.Incarnation); err != nil {
		t.Fatal(err)
	}
	moved.ID, moved.Incarnation = "w0", stoker.NewIncarnation()
	c.register(t, moved)
	if err := c.Reserve(t.Context(), ReserveInput{Plan: id}); err != nil || moved.count("reserve") != 1 {
		t.Errorf("%v, asked %v", err, moved.asked)
	}
}

// A registration that is repeated finds its own entry; another one's name is
// taken.
func TestRegister(t *testing.T) {
	c := newCluster(t, 0)
	d := manifest.Dataset{Name: "d", Owner: "ann", Roots: someRoots, Created: time.Now().UTC(), Generations: []manifest.Generation{{Number: 1, Manifest: c.manifest}}}
	for range 2 {
		if err := c.Register(t.Context(), d); err != nil {
			t.Fatal(err)
		}
	}
	for name, change := range map[string]func(*manifest.Dataset){
		"another owner":   func(d *manifest.Dataset) { d.Owner = "bob" },
		"another time":    func(d *manifest.Dataset) { d.Created = d.Created.Add(time.Second) },
		"another content": func(d *manifest.Dataset) { d.Generations = []manifest.Generation{{Number: 1}} },
	} {
		other := d
		change(&other)
		if err := FromTemporal("", "", c.Register(t.Context(), other)); stoker.KindOf(err) != stoker.KindInvalid || err == nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A sync adds a generation if something has changed; else the current one gets
// younger. It may be repeated. What was made anew is not removed for the old.
func TestRenewAndUnregister(t *testing.T) {
	c := newCluster(t, 0)
	made := time.Now().UTC().Truncate(time.Second)
	d := manifest.Dataset{Name: "d", Owner: "ann", Roots: someRoots, Created: made,
		Generations: []manifest.Generation{{Number: 1, Manifest: c.manifest, ListedAt: made}}}
	if err := c.Register(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	entry := func() *manifest.Dataset {
		t.Helper()
		d, _, err := c.o.Store.Dataset(t.Context(), "d")
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	same := RenewInput{"d", Frozen{Manifest: c.manifest, ListedAt: made.Add(time.Hour)}}
	if f, err := c.Renew(t.Context(), same); err != nil || !f.Unchanged {
		t.Errorf("nothing changed: %+v, %v", f, err)
	}
	if got := entry(); len(got.Generations) != 1 || !got.Current().ListedAt.Equal(made.Add(time.Hour)) {
		t.Errorf("%+v", got.Generations)
	}
	changed := RenewInput{"d", Frozen{Manifest: stoker.ID{7}, Objects: 3, Bytes: 9, ListedAt: made.Add(2 * time.Hour)}}
	for range 2 {
		if _, err := c.Renew(t.Context(), changed); err != nil {
			t.Fatal(err)
		}
	}
	if got := entry().Generations; len(got) != 2 || got[1].Number != 2 || got[1].Manifest != changed.Manifest || got[1].Bytes != 9 || got[0].Manifest != c.manifest {
		t.Errorf("%+v", got)
	}
	if err := c.Unregister(t.Context(), UnregisterInput{"d", made.Add(time.Second)}); err != nil || entry().Name != "d" {
		t.Errorf("another entry of the name: %v", err)
	}
	for range 2 {
		if err := c.Unregister(t.Context(), UnregisterInput{"d", made}); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := c.o.Store.Dataset(t.Context(), "d"); stoker.KindOf(err) != stoker.KindNotExist {
		t.Errorf("after the removal: %v", err)
	}
}
