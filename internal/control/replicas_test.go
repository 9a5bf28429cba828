package control

import (
	"slices"
	"testing"
	"time"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/cache/placement"
	"stoker.dev/internal/api"
	"stoker.dev/ufs"
	"stoker.dev/workflows"
)

// begun takes the repairs that were begun so far.
func (f *flowServer) begun() []workflows.RepairInput {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := f.repairs
	f.repairs = nil
	return out
}

// quiet keeps the controller's own looks from coming between those of a test.
func (k *keeper) quiet(t *testing.T) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.began = time.Now().Add(-time.Hour)
}

// A dataset may be added with its replicas; another add with others is another one.
func TestAddedWithReplicas(t *testing.T) {
	entry := func(n int) (manifest.Dataset, error) {
		return newDataset("ann", &api.AddDatasetRequest{Name: "pets", Replicas: n, Roots: []api.AddRoot{{Location: ufs.Location{URI: "s3://pets"}}}})
	}
	for n, want := range map[int]int{0: 0, 1: 0, 3: 3, 16: 16} {
		if d, err := entry(n); err != nil || d.Replicas != want {
			t.Errorf("%d: %d, %v", n, d.Replicas, err)
		}
	}
	for _, n := range []int{-1, 17} {
		if _, err := entry(n); stoker.KindOf(err) != stoker.KindInvalid {
			t.Errorf("%d: %v", n, err)
		}
	}
	one, _ := entry(1)
	three, _ := entry(3)
	if equals(&one, &three) || !equals(&three, &three) {
		t.Error("replicas make no difference")
	}
}

// How many replicas a dataset has stands in the registry, for claims that say none
// and for what is there: what is too much goes at once, but not below what those
// want who hold it; what is missing is copied soon. Only its owner and admins set it.
func TestReplicasOfADataset(t *testing.T) {
	flows, address := startFlows(t)
	w := startWatched(t, address, placement.NewMem(time.Now))
	w.keeper.quiet(t)
	id := w.freeze(t, "pets").Current().Manifest
	worker := w.addDrainable(t, "aa01", api.WorkerStatus{Manifests: []api.ManifestHolding{{Manifest: id, Dataset: "pets", Bytes: 100}}})
	set := func(n int) api.DatasetDetail {
		t.Helper()
		return decode[api.DatasetDetail](t, w.ask(t, watchedToken, "PUT", "/v1/datasets/pets/replicas", api.ReplicasRequest{Replicas: n}))
	}
	if d := set(3); d.Replicas != 3 {
		t.Errorf("it is %+v", d.DatasetInfo)
	}
	want := workflows.RepairInput{Dataset: "pets", Generation: 1, Manifest: id, Replicas: 3, Spare: true, Surplus: true}
	if got := flows.begun(); len(got) == 0 || got[0] != want {
		t.Errorf("raised, repairs are %+v", got)
	}
	a := w.ask(t, watchedToken, "POST", "/v1/jobs", api.ClaimRequest{Job: "j", Datasets: []api.DatasetRef{{Name: "pets"}}})
	if lines := a.lines(t); len(lines) == 0 {
		t.Fatal("a claim is not answered")
	}
	flows.mu.Lock()
	claimed := flows.jobs["job-default-j"].Input
	flows.mu.Unlock()
	if claimed.Replicas != 0 || claimed.Datasets[0].Replicas != 3 {
		t.Errorf("claimed is %+v", claimed)
	}
	flows.addSet(workflows.DatasetState{Dataset: "pets", Generation: 1, Manifest: id, State: api.JobReady, Holders: []workflows.Holder{{Job: "k", Replicas: 2}}})
	worker.mu.Lock()
	worker.status.Leases = []api.Lease{{Holder: "k", Manifest: id}}
	worker.mu.Unlock()
	flows.begun()
	if d := set(1); d.Replicas != 0 {
		t.Errorf("lowered it is %+v", d.DatasetInfo)
	}
	want.Replicas, want.Spare = 2, false
	if got := flows.begun(); len(got) == 0 || got[0] != want {
		t.Errorf("lowered below what a job wants, repairs are %+v", got)
	}
	flows.mu.Lock()
	flows.repaired["repair-default-"+id.String()] = workflows.RepairState{Input: want, Copying: true, Error: &api.ErrorBody{Kind: "nospace", Message: "no room"}}
	flows.mu.Unlock()
	if d := decode[api.DatasetDetail](t, w.ask(t, watchedToken, "GET", "/v1/datasets/pets", nil)); d.Copies == nil || !d.Copies.Running || d.Copies.Error.Message != "no room" || d.Copies.Replicas != 2 {
		t.Errorf("its copies are %+v", d.Copies)
	}
	for _, n := range []int{0, 17} {
		w.ask(t, watchedToken, "PUT", "/v1/datasets/pets/replicas", api.ReplicasRequest{Replicas: n}).wantError(t, 400, "invalid", "want 1 to 16")
	}
	w.ask(t, watchedToken, "PUT", "/v1/datasets/pets@1/replicas", api.ReplicasRequest{Replicas: 2}).wantError(t, 400, "invalid", "leave @1 out")
	w.ask(t, bobsToken, "PUT", "/v1/datasets/pets/replicas", api.ReplicasRequest{Replicas: 2}).wantError(t, 403, "denied", "ann")
}

// What a worker had that is away is copied again when its return window is over, and
// not before; while a load brings the data in nothing is; what was enough is counted
// again only if something has changed.
func TestReplicasAreRestored(t *testing.T) {
	flows, address := startFlows(t)
	w := startWatched(t, address, placement.NewMem(time.Now))
	c := w.Controller
	id, wants := number(1), map[stoker.ID]want{number(1): {"pets", 1, 2}}
	one := worker{info: api.WorkerInfo{ID: "a", State: api.WorkerLive}, status: api.WorkerStatus{Manifests: []api.ManifestHolding{{Manifest: id, Bytes: 100}}}}
	ws := []worker{one}
	restore := func(away bool, sets ...workflows.DatasetState) int {
		t.Helper()
		c.restore(t.Context(), ws, sets, wants, away)
		return len(slices.DeleteFunc(flows.begun(), func(r workflows.RepairInput) bool {
			return r != workflows.RepairInput{Dataset: "pets", Generation: 1, Manifest: id, Replicas: 2, Spare: true}
		}))
	}
	c.keeper.began = time.Now().Add(time.Hour) // it has only begun: who is away it cannot know
	if n := restore(false); n != 0 {
		t.Errorf("a controller that has just begun: %d repairs", n)
	}
	c.keeper.quiet(t)
	if n := restore(true); n != 0 {
		t.Errorf("within the return window: %d repairs", n)
	}
	if n := restore(false, workflows.DatasetState{Manifest: id, State: api.JobWarming}); n != 0 {
		t.Errorf("during a load: %d repairs", n)
	}
	if n := restore(false); n != 1 {
		t.Errorf("after it: %d repairs", n)
	}
	older := func(by time.Duration) {
		c.keeper.mu.Lock()
		defer c.keeper.mu.Unlock()
		a := c.keeper.asked[id]
		a.at = a.at.Add(-by)
		c.keeper.asked[id] = a
	}
	older(keepAgain)
	if n := restore(false); n != 0 {
		t.Errorf("what was enough is repaired %d times", n)
	}
	older(keepAgain)
	if n := restore(false); n != 0 {
		t.Errorf("what was enough is repaired again %d times", n)
	}
	ws[0].status.Manifests = []api.ManifestHolding{{Manifest: id, Bytes: 90}}
	if n := restore(false); n != 1 {
		t.Errorf("when something has gone: %d repairs", n)
	}
	flows.mu.Lock()
	flows.repaired["repair-default-"+id.String()] = workflows.RepairState{Error: &api.ErrorBody{Kind: "nospace"}}
	flows.mu.Unlock()
	if n := restore(false); n != 0 {
		t.Errorf("at once again: %d repairs", n)
	}
	older(keepAgain)
	if n := restore(false); n != 1 {
		t.Errorf("what failed is repaired %d times", n)
	}
	c.keeper.urge(id)
	if n := restore(true); n != 1 {
		t.Errorf("when it is asked for: %d repairs", n)
	}
	ws[0].status.Manifests = nil
	if n := restore(false); n != 0 {
		t.Errorf("of what is nowhere: %d repairs", n)
	}
}
