package main

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"stoker.dev/internal/api"
)

// --changes asks for the generations that it names, and prints counts, bytes
// and the first paths.
func TestShowChanges(t *testing.T) {
	found := api.DatasetChanges{Name: "data", ChangeCounts: api.ChangeCounts{From: 2, To: 3, Added: api.Tally{Objects: 30, Bytes: 1 << 20},
		Changed: api.Tally{Objects: 1, Bytes: 5}}, Paths: []api.PathChange{{Path: "a/odd\x1b[31m", Change: "changed", Bytes: 5, OldBytes: 4}}}
	for i := range 30 {
		found.Paths = append(found.Paths, api.PathChange{Path: fmt.Sprintf("new/%02d", i), Change: "added", Bytes: 7})
	}
	for line, asks := range map[string]string{
		"data --changes":        "/v1/datasets/data/changes",
		"data@3 --changes":      "/v1/datasets/data@3/changes",
		"data --changes=1":      "/v1/datasets/data/changes?from=1",
		"data --changes=1..2":   "/v1/datasets/data@2/changes?from=1",
		"data@2 --changes=1..2": "/v1/datasets/data@2/changes?from=1",
	} {
		g := newRig(t, routes{"GET /v1/datasets/{name}/changes": answer(found)}, nil)
		g.want(0, append([]string{"dataset", "show"}, strings.Fields(line)...)...)
		if g.called("controller GET "+asks) != 1 {
			t.Errorf("%s: calls %v, want %s", line, g.calls, asks)
		}
		for _, part := range []string{"2..3", "30 (1.0 MiB)", "1 (5 B)", "0 (0 B)", "changed", "new/18", "and more"} {
			if !strings.Contains(g.stdout.String(), part) {
				t.Errorf("%s: no %q in\n%s", line, part, g.stdout.String())
			}
		}
		if strings.Contains(g.stdout.String(), "\x1b") || strings.Contains(g.stdout.String(), "new/19") {
			t.Errorf("%s printed\n%q", line, g.stdout.String())
		}
	}
	g := newRig(t, routes{"GET /v1/datasets/{name}/changes": answer(found)}, nil)
	var got api.DatasetChanges
	g.json(&got, 0, "dataset", "show", "data", "--changes")
	if got.Added != found.Added || len(got.Paths) != 31 || got.Paths[0] != found.Paths[0] {
		t.Errorf("JSON %+v", got)
	}
}

// A sync says how much it has found.
func TestSyncSaysWhatChanged(t *testing.T) {
	d := api.DatasetDetail{DatasetInfo: api.DatasetInfo{Name: "data", Generation: 3}, Changes: &api.ChangeCounts{From: 2, To: 3,
		Added: api.Tally{Objects: 4, Bytes: 2048}, Removed: api.Tally{Objects: 1, Bytes: 9}}}
	g := newRig(t, routes{"POST /v1/datasets/{name}/sync": func(w http.ResponseWriter, r *http.Request) { events(api.Event{Dataset: &d})(w, r) }}, nil)
	g.want(0, "dataset", "sync", "data")
	g.says("generation 3: 4 (2.0 KiB) added, 0 (0 B) changed, 1 (9 B) removed since generation 2")
}
