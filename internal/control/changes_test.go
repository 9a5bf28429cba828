package control

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"stoker.dev/cache/manifest"
	"stoker.dev/cache/placement"
	"stoker.dev/internal/api"
	"stoker.dev/ufs"
	"stoker.dev/ufs/memufs"
)

// refreeze enters another listing of a dataset, as a sync would.
func (w *watchedController) refreeze(t testing.TB, name string, fs *memufs.FS) {
	t.Helper()
	d, tag, err := w.manifests.Dataset(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	b, err := manifest.Build(t.Context(), manifest.BuildOptions{Roots: d.Roots, TempDir: t.TempDir(),
		Open: func(context.Context, ufs.Location) (ufs.FS, string, error) { return fs, "", nil }})
	if err == nil {
		err = w.manifests.Put(t.Context(), b)
	}
	if err == nil {
		d.Generations = append(d.Generations, manifest.Generation{Number: d.Current().Number + 1, Manifest: b.ID, Objects: b.Objects, Bytes: b.Bytes, ListedAt: b.ListedTo})
		err = w.manifests.UpdateDataset(t.Context(), d, tag)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// The changes of a generation are counted in full and named up to a thousand,
// as docs/openapi.yaml says.
func TestDatasetChanges(t *testing.T) {
	_, address := startFlows(t)
	w := startWatched(t, address, placement.NewMem(time.Now))
	w.freeze(t, "pets")
	w.ask(t, watchedToken, "GET", "/v1/datasets/pets/changes", nil).wantError(t, 404, "notexist", "none before it")
	fs := memufs.New()
	for n := range 9 { // file9 is gone
		fs.Put(fmt.Sprintf("folder/file%d", n), make([]byte, 100+n/8*50)) // the others have another time, and one another size
	}
	w.refreeze(t, "pets", fs)
	for n := range 1500 {
		fs.Put(fmt.Sprintf("more/%04d\xff", n), make([]byte, 2))
	}
	w.refreeze(t, "pets", fs)
	got := decode[api.DatasetChanges](t, w.ask(t, watchedToken, "GET", "/v1/datasets/pets@2/changes", nil))
	want := api.ChangeCounts{From: 1, To: 2, Changed: api.Tally{Objects: 9, Bytes: 950}, Removed: api.Tally{Objects: 1, Bytes: 100}}
	if got.Name != "pets" || got.ChangeCounts != want || len(got.Paths) != 10 || got.More {
		t.Errorf("%+v, want %+v", got, want)
	}
	if !slices.Contains(got.Paths, api.PathChange{Path: "folder/file8", Change: "changed", Bytes: 150, OldBytes: 100}) ||
		!slices.Contains(got.Paths, api.PathChange{Path: "folder/file9", Change: "removed", OldBytes: 100}) {
		t.Errorf("paths %+v", got.Paths)
	}
	got = decode[api.DatasetChanges](t, w.ask(t, watchedToken, "GET", "/v1/datasets/pets/changes?from=2", nil))
	if got.Added != (api.Tally{Objects: 1500, Bytes: 3000}) || len(got.Paths) != maxPaths || !got.More || got.Paths[0].Path != "more/0000%FF" {
		t.Errorf("%d paths (more: %v), %+v", len(got.Paths), got.More, got.ChangeCounts)
	}
	same := decode[api.DatasetChanges](t, w.ask(t, watchedToken, "GET", "/v1/datasets/pets/changes?from=3", nil))
	if same.ChangeCounts != (api.ChangeCounts{From: 3, To: 3}) || len(same.Paths) != 0 {
		t.Errorf("against itself: %+v", same)
	}
	w.ask(t, watchedToken, "GET", "/v1/datasets/pets/changes?from=7", nil).wantError(t, 404, "notexist", "has no generation 7")
	w.ask(t, watchedToken, "GET", "/v1/datasets/pets/changes?from=x", nil).wantError(t, 400, "invalid", "number of a generation")
	s := readSpec(t)
	schema := s.response(s.operations(t)["GET /v1/datasets/{name}/changes"].Responses["200"]).Content["application/json"].Schema
	for _, bad := range s.check(t, schema, decode[any](t, w.ask(t, watchedToken, "GET", "/v1/datasets/pets@2/changes", nil)), "changes") {
		t.Error(bad)
	}
}
