package control

import (
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	"stoker.dev"
	"stoker.dev/cache/placement"
	"stoker.dev/internal/api"
	"stoker.dev/workflows"
)

// drainable is a worker that can be drained.
type drainable struct {
	mu     sync.Mutex
	status api.WorkerStatus // +checklocks:mu
}

func (w *watchedController) addDrainable(t *testing.T, id string, st api.WorkerStatus) *drainable {
	t.Helper()
	d := &drainable{status: st}
	d.status.ID, d.status.State, d.status.CapacityBytes = id, api.WorkerLive, 1<<30
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(rw http.ResponseWriter, _ *http.Request) {
		d.mu.Lock()
		defer d.mu.Unlock()
		api.WriteJSON(rw, http.StatusOK, d.status)
	})
	mux.HandleFunc("PUT /v1/drain", func(rw http.ResponseWriter, r *http.Request) {
		var req api.Drain
		if err := api.ReadJSON(rw, r, &req); err != nil {
			t.Error(err)
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		d.status.State, d.status.Drain = api.WorkerDraining, &req
		rw.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("DELETE /v1/drain", func(rw http.ResponseWriter, _ *http.Request) {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.status.State, d.status.Drain = api.WorkerLive, nil
		rw.WriteHeader(http.StatusNoContent)
	})
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	d.status.Address = srv.URL
	if err := w.index.Register(t.Context(), placement.Worker{ID: id, Incarnation: stoker.NewIncarnation(), Address: srv.URL, CapacityBytes: 1 << 30}, time.Hour); err != nil {
		t.Fatal(err)
	}
	return d
}

// Only operators drain workers, by what their ids begin with; the last one whose
// data is held stays; an undrain puts one into service again.
func TestDrainWorkers(t *testing.T) {
	_, address := startFlows(t)
	w := startWatched(t, address, placement.NewMem(time.Now))
	uid := uint32(7)
	has := api.WorkerStatus{
		Manifests: []api.ManifestHolding{{Manifest: number(1), Dataset: "pets", Bytes: 100, Holders: []string{"job j"}}, {Manifest: number(2), Dataset: "cars", Bytes: 10}},
		Leases:    []api.Lease{{Holder: "j", Manifest: number(1)}},
		Mounts:    []api.MountInfo{{MountRequest: api.MountRequest{Dir: "/x", Dataset: "pets", Manifest: number(1), Holder: "j", UID: &uid}}},
	}
	w.addDrainable(t, "aa01", has)
	for _, verb := range []string{"PUT", "DELETE"} {
		w.ask(t, watchedToken, verb, "/v1/workers/aa01/drain", api.Drain{}).wantError(t, 403, "denied", "operators may drain workers, not ann")
	}
	w.ask(t, daemonToken, "PUT", "/v1/workers/aa01/drain", api.Drain{}).wantError(t, 423, "held", "has 100 B that is held (pets by job j), and no other worker is in service")
	second := w.addDrainable(t, "aa02", api.WorkerStatus{})
	w.ask(t, daemonToken, "PUT", "/v1/workers/aa/drain", api.Drain{}).wantError(t, 400, "invalid", "is the beginning of 2 ids")
	w.ask(t, daemonToken, "PUT", "/v1/workers/b/drain", api.Drain{}).wantError(t, 404, "notexist", "'stoker workers'")
	st := decode[api.DrainStatus](t, w.ask(t, daemonToken, "PUT", "/v1/workers/aa01/drain", api.Drain{Drop: true, By: "somebody else"}))
	if st.Worker != "aa01" || st.State != api.WorkerDraining || st.By != "stoker" || !st.Drop || st.Since.IsZero() || st.Bytes != 110 || st.HeldBytes != 100 || len(st.Datasets) != 2 ||
		!slices.Equal(st.Views, []api.DrainView{{Dir: "/x", Dataset: "pets", Job: "j", UID: 7}}) {
		t.Errorf("it is drained as %+v", st)
	}
	if all := decode[[]api.WorkerInfo](t, w.ask(t, watchedToken, "GET", "/v1/workers", nil)); all[0].State != api.WorkerDraining || all[0].Drain == nil || all[1].State != api.WorkerLive {
		t.Errorf("listed are %+v", all)
	}
	if a := w.ask(t, daemonToken, "PUT", "/v1/workers/aa01/drain", api.Drain{}); a.status != http.StatusOK { // again, though nobody needs to be left for that
		t.Errorf("%d %s", a.status, a.body)
	}
	second.mu.Lock()
	second.status.Manifests = []api.ManifestHolding{{Manifest: number(1), Dataset: "pets", Bytes: 1, Holders: []string{"job j"}}}
	second.mu.Unlock()
	w.ask(t, daemonToken, "PUT", "/v1/workers/aa02/drain", api.Drain{}).wantError(t, 423, "held", "no other worker is in service")
	if st := decode[api.DrainStatus](t, w.ask(t, daemonToken, "DELETE", "/v1/workers/aa01/drain", nil)); st.State != api.WorkerLive || !st.Since.IsZero() {
		t.Errorf("in service again it is %+v", st)
	}
	if st := decode[api.DrainStatus](t, w.ask(t, watchedToken, "GET", "/v1/workers/aa01/drain", nil)); st.State != api.WorkerLive || st.Bytes != 110 {
		t.Errorf("anybody sees %+v", st)
	}
}

// What a drained worker has is moved if somebody holds it anywhere, in as many copies as its
// holders want, and is spare else; a load that runs there is let come to its end.
func TestToMove(t *testing.T) {
	drained := worker{info: api.WorkerInfo{ID: "a", State: api.WorkerDraining, Drain: &api.Drain{Drop: true}}}
	drained.status.Manifests = []api.ManifestHolding{
		{Manifest: number(1), Dataset: "leased", Bytes: 1}, {Manifest: number(2), Dataset: "seen", Bytes: 1}, {Manifest: number(3), Dataset: "idle", Bytes: 1},
		{Manifest: number(4), Dataset: "empty"}, {Manifest: number(5), Dataset: "loading", Bytes: 1, Load: &api.HoldingLoad{}}, {Manifest: number(6), Bytes: 1},
	}
	drained.status.Leases = []api.Lease{{Manifest: number(1)}}
	other := worker{info: api.WorkerInfo{ID: "b", State: api.WorkerLive}}
	other.status.Mounts = []api.MountInfo{{MountRequest: api.MountRequest{Manifest: number(2)}}}
	other.status.Manifests = []api.ManifestHolding{{Manifest: number(7), Dataset: "elsewhere", Bytes: 1}}
	sets := []workflows.DatasetState{{Manifest: number(1), Holders: []workflows.Holder{{Replicas: 3}, {}}}}
	moves := []workflows.RepairInput{
		{Dataset: "leased", Manifest: number(1), Replicas: 3}, {Dataset: "seen", Manifest: number(2), Replicas: 2},
		{Dataset: "idle", Manifest: number(3), Replicas: 1, Spare: true, Drop: true}, {Dataset: number(6).Short(), Manifest: number(6), Replicas: 1, Spare: true, Drop: true},
	}
	if got := toMove([]worker{drained, other}, sets, map[stoker.ID]want{number(2): {replicas: 2}}); !slices.Equal(got, moves) {
		t.Errorf("%+v", got)
	}
	drained.info.State = api.WorkerDrained
	if got := toMove([]worker{drained, other}, sets, map[stoker.ID]want{number(2): {replicas: 2}}); len(got) != 0 {
		t.Errorf("of one that is drained: %+v", got)
	}
}
