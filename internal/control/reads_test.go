package control

import (
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/cache/placement"
	"stoker.dev/internal/api"
	"stoker.dev/ufs"
)

// What was read of a dataset is asked of each worker, of all its generations or of
// one; one that is gone, or does not count by dataset, has no figures.
func TestReadsOfADataset(t *testing.T) {
	_, address := startFlows(t)
	w := startWatched(t, address, placement.NewMem(time.Now))
	d := &manifest.Dataset{Name: "pets", Owner: "ann", Created: time.Now().UTC(), Roots: []manifest.Root{{Location: ufs.Location{URI: "s3://bucket/pets"}}}}
	for n := 1; n <= 2; n++ {
		d.Generations = append(d.Generations, manifest.Generation{Number: n, Manifest: number(byte(n)), ListedAt: time.Now().UTC()})
	}
	if err := w.manifests.CreateDataset(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	join := func(id string, n stoker.Incarnation, reads func(rw http.ResponseWriter, r *http.Request)) *httptest.Server {
		srv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/v1/reads" {
				reads(rw, r)
				return
			}
			api.WriteJSON(rw, http.StatusOK, api.WorkerStatus{WorkerInfo: api.WorkerInfo{ID: id, Incarnation: n, State: "live", Address: "http://" + r.Host}})
		}))
		t.Cleanup(srv.Close)
		if err := w.index.Register(t.Context(), placement.Worker{ID: id, Incarnation: n, Address: srv.URL}, time.Hour); err != nil {
			t.Fatal(err)
		}
		return srv
	}
	asked := make(chan []stoker.ID, 1)
	join("worker-1", 1, func(rw http.ResponseWriter, r *http.Request) {
		var req api.ReadsRequest
		if err := api.ReadJSON(rw, r, &req); err != nil {
			t.Error(err)
		}
		asked <- req.Manifests
		api.WriteJSON(rw, http.StatusOK, api.ReadCounters{LocalBytes: 7, Waits: &api.ReadWaits{PeerSeconds: 1.5}})
	})
	join("worker-2", 2, http.NotFound)
	join("worker-3", 3, http.NotFound).Close()
	for name, want := range map[string][]stoker.ID{"pets": {number(2), number(1)}, "pets@2": {number(2)}} {
		all := decode[[]api.WorkerReads](t, w.ask(t, watchedToken, "GET", "/v1/datasets/"+name+"/reads", nil))
		if len(all) != 3 || all[0].Reads == nil || all[0].Reads.LocalBytes != 7 || all[0].Reads.Waits.PeerSeconds != 1.5 ||
			all[1].Reads != nil || all[1].State != "live" || all[2].Reads != nil || all[2].State != "lost" {
			t.Errorf("%s: %+v", name, all)
		}
		if got := <-asked; !slices.Equal(got, want) {
			t.Errorf("%s: asked for %v, want %v", name, got, want)
		}
	}
	w.ask(t, watchedToken, "GET", "/v1/datasets/cats/reads", nil).wantError(t, 404, "notexist", "is not registered")
}
