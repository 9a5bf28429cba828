package control

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/cache/placement"
	"stoker.dev/internal/api"
	"stoker.dev/workflows"
)

// Everything that claims, pins, the registry, loads and workers name is kept; who
// does not answer might name anything.
func TestNamedNow(t *testing.T) {
	f, address := startFlows(t)
	w := startWatched(t, address, placement.NewMem(time.Now))
	id := func(n byte) stoker.ID { return stoker.ID{n} }
	current := w.freeze(t, "pets").Current().Manifest
	err := w.manifests.ChangePins(t.Context(), "pets", func(p *manifest.DatasetPins) error {
		p.Pins = []manifest.Pin{{Manifest: id(1), Until: time.Now().Add(time.Hour)}, {Manifest: id(2), Until: time.Now().Add(-time.Hour)}}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	f.add(workflows.JobState{Input: workflows.JobInput{Job: "j", Datasets: []workflows.JobDataset{{Name: "pets", Manifest: id(3)}}}, Outcomes: []workflows.Outcome{{Certificate: id(4)}}})
	f.addSet(workflows.DatasetState{Manifest: id(5), Plan: id(6)})
	w.serveAs(t, 1, api.WorkerStatus{Manifests: []api.ManifestHolding{{Manifest: id(7), Plan: id(8)}}}, nil)
	got, err := w.namedNow(t.Context())
	want := []string{}
	for _, m := range []stoker.ID{current, id(1), id(3), id(5), id(7)} {
		want = append(want, manifest.NameOf(manifest.KindManifests, m))
	}
	want = append(want, manifest.NameOf(manifest.KindPlans, id(6)), manifest.NameOf(manifest.KindPlans, id(8)), manifest.NameOf(manifest.KindCertificates, id(4)))
	slices.Sort(want)
	if names := slices.Sorted(maps.Keys(got)); err != nil || !slices.Equal(names, want) {
		t.Errorf("got  %v, %v\nwant %v", names, err, want)
	}
	if err := w.index.Register(t.Context(), placement.Worker{ID: "silent", Incarnation: 9, Address: "http://127.0.0.1:1"}, time.Hour); err != nil {
		t.Fatal(err)
	}
	if _, err := w.namedNow(t.Context()); err == nil {
		t.Error("a worker that does not answer is taken to have nothing")
	}
	w = startWatched(t, "127.0.0.1:1", placement.NewMem(time.Now))
	if _, err := w.namedNow(t.Context()); stoker.KindOf(err) != stoker.KindTransient {
		t.Errorf("without Temporal: %v", err)
	}
	w = startWatched(t, address, deadIndex{placement.NewMem(time.Now)})
	if _, err := w.namedNow(t.Context()); err == nil {
		t.Error("without the index no worker is taken to have anything")
	}
}

// A generation that somebody asks for by its number is kept from then on; one that
// was collected is said to be gone.
func TestGenerationThatIsCollected(t *testing.T) {
	_, address := startFlows(t)
	w := startWatched(t, address, placement.NewMem(time.Now))
	old, now := w.freeze(t, "pets").Current(), w.freeze(t, "dogs").Current()
	d, tag, err := w.manifests.Dataset(t.Context(), "pets")
	if err != nil {
		t.Fatal(err)
	}
	now.Number, now.Manifest = 2, stoker.ID{77}
	d.Generations = append(d.Generations, now)
	if err := w.manifests.UpdateDataset(t.Context(), d, tag); err != nil {
		t.Fatal(err)
	}
	if err := w.manifests.RemoveDataset(t.Context(), "dogs"); err != nil {
		t.Fatal(err)
	}
	marked := func() bool {
		w.collectOnce(t.Context(), 24*time.Hour)
		body, _, err := w.objects.Get(t.Context(), "collect/unnamed.json")
		if err != nil {
			t.Fatal(err)
		}
		return bytes.Contains(body, []byte(old.Manifest.String()))
	}
	if !marked() {
		t.Fatal("the old generation is not seen to be unnamed")
	}
	decode[api.DatasetDetail](t, w.ask(t, watchedToken, "GET", "/v1/datasets/pets@1", nil))
	body, _, err := w.objects.Get(t.Context(), "collect/unnamed.json")
	if err != nil || bytes.Contains(body, []byte(old.Manifest.String())) {
		t.Errorf("it is still marked: %s, %v", body, err)
	}
	if err := w.objects.Delete(t.Context(), manifest.NameOf(manifest.KindManifests, old.Manifest)); err != nil {
		t.Fatal(err)
	}
	w.ask(t, watchedToken, "GET", "/v1/datasets/pets@1", nil).wantError(t, 404, "notexist", fmt.Sprintf("generation %d was removed", 1))
}
