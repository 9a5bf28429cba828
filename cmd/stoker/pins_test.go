package main

import (
	"strings"
	"testing"
	"time"

	"stoker.dev"
	"stoker.dev/internal/api"
)

func aPin(owner string, left time.Duration) api.Pin {
	now := time.Now().UTC().Truncate(time.Second)
	return api.Pin{Owner: owner, Generation: 3, Manifest: stoker.ID{7}, Reason: "a sweep", Since: now, Until: now.Add(left)}
}

func TestPinAndUnpin(t *testing.T) {
	p := aPin("ann", 2*time.Hour)
	g := newRig(t, routes{"PUT /v1/datasets/{name}/pin": answer(p), "DELETE /v1/datasets/{name}/pin": answer([]api.Pin{p})}, nil)
	var got api.Pin
	g.json(&got, 0, "pin", "data@3", "--for", "7d", "--reason", "a sweep")
	var req api.PinRequest
	g.body("controller PUT /v1/datasets/data@3/pin", 0, &req)
	if got != p || req.ForSeconds != 7*86400 || req.Reason != "a sweep" {
		t.Errorf("%+v for %+v", got, req)
	}
	g.want(0, "unpin", "data")
	g.want(0, "unpin", "data@3", "--owner", "ann")
	if g.called("controller DELETE /v1/datasets/data/pin") != 1 || g.called("controller DELETE /v1/datasets/data@3/pin?owner=ann") != 1 {
		t.Errorf("calls %v", g.calls)
	}
	if want := "pin  data@3, by ann, until " + when(p.Until) + ": a sweep\n"; !strings.HasSuffix(g.stdout.String(), want) {
		t.Errorf("printed %q", g.stdout.String())
	}
	newRig(t, routes{"DELETE /v1/datasets/{name}/pin": fail(stoker.KindDenied)}, nil).want(10, "unpin", "data")
	for _, args := range [][]string{
		{"data"}, {"data", "--for", "2h"}, {"data", "--reason", "x"}, {"data", "--for", "2h", "--reason", " "}, {"data", "--for", "0s", "--reason", "x"},
		{"data", "--for", "-2h", "--reason", "x"}, {"data", "--for", "366d", "--reason", "x"}, {"data", "--for", "ever", "--reason", "x"},
		{"--for", "2h", "--reason", "x"}, {"data=/mnt", "--for", "2h", "--reason", "x"},
	} {
		g := newRig(t, routes{}, nil)
		g.want(2, append([]string{"pin"}, args...)...)
	}
}

// Pins are seen wherever datasets are.
func TestPinsAreShown(t *testing.T) {
	st := someStatus()
	st.Datasets[0].Pins = []api.Pin{aPin("ann", 90*time.Minute), aPin("bob", 47*time.Hour)}
	detail := api.DatasetDetail{DatasetInfo: st.Datasets[0], Holders: []string{st.Datasets[0].Pins[0].String()}}
	rs := routes{"GET /v1/status": answer(st), "GET /v1/datasets": answer(st.Datasets), "GET /v1/datasets/{name}": answer(detail)}
	for line, part := range map[string]string{
		"status":             "LISTED  PINNED  URIS",
		"dataset ls":         "PINNED",
		"dataset ls --wide":  "PINNED",
		"dataset ls -o json": `"reason": "a sweep"`,
		"dataset show data":  "imagenet@3, by bob, until ",
	} {
		g := newRig(t, rs, nil)
		g.want(0, strings.Fields(line)...)
		if !strings.Contains(g.stdout.String(), part) {
			t.Errorf("stoker %s has no %q:\n%s", line, part, g.stdout.String())
		}
	}
	if got := pinned(st.Datasets[0]); got != span(47*time.Hour-time.Second) && got != span(47*time.Hour) {
		t.Errorf("pinned for %q", got)
	}
}

func TestParseSpan(t *testing.T) {
	for s, want := range map[string]time.Duration{"90m": 90 * time.Minute, "1h30m": 90 * time.Minute, "7d": 168 * time.Hour, "0d": 0, "-1h": -time.Hour} {
		if got, ok := parseSpan(s); got != want || !ok {
			t.Errorf("%q: %v, %v", s, got, ok)
		}
	}
	for _, s := range []string{"", "d", "1.5d", "-1d", "7", "7days", "999999d"} {
		if got, ok := parseSpan(s); ok {
			t.Errorf("%q: %v", s, got)
		}
	}
}
