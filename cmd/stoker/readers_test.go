package main

import (
	"encoding/json"
	"strings"
	"testing"

	"stoker.dev/internal/api"
)

func TestReadersOfADataset(t *testing.T) {
	d := api.DatasetDetail{DatasetInfo: api.DatasetInfo{Name: "data", Owner: "ann", Readers: []string{"@vision", "ann", "bob"}}}
	g := newRig(t, routes{"PUT /v1/datasets/{name}/readers": answer(&d), "POST /v1/datasets": events(api.Event{Dataset: &d}), "GET /v1/datasets/{name}": answer(&d)}, nil)
	const call = "controller PUT /v1/datasets/data/readers"
	for i, tc := range []struct{ flag, sends string }{
		{"bob, @vision", `{"readers":["bob","@vision"]}`},
		{"nobody", `{"readers":[]}`},
		{"everybody", `{"everybody":true}`},
		{"+bob,-carol,-@all", `{"add":["bob"],"remove":["carol","@all"]}`},
	} {
		g.want(0, "dataset", "set", "data", "--readers", tc.flag)
		var req api.ReadersRequest
		g.body(call, i, &req)
		if got, err := json.Marshal(req); err != nil || string(got) != tc.sends {
			t.Errorf("--readers %s sends %s, %v", tc.flag, got, err)
		}
	}
	for i, tc := range []struct {
		flags []string
		sends string
	}{
		{nil, `null`}, {[]string{"--readers", "everybody"}, `null`}, {[]string{"--readers", "nobody"}, `[]`}, {[]string{"--readers", "bob"}, `["bob"]`},
	} {
		g.want(0, append([]string{"dataset", "add", "data", "s3://b"}, tc.flags...)...)
		var add api.AddDatasetRequest
		g.body("controller POST /v1/datasets", i, &add)
		if got, err := json.Marshal(add.Readers); err != nil || string(got) != tc.sends {
			t.Errorf("add %q sends %s, %v", tc.flags, got, err)
		}
	}
	g.want(0, "dataset", "show", "data")
	if !strings.Contains(g.stdout.String(), "ann, @vision, bob\n") {
		t.Errorf("show says\n%s", g.stdout.String())
	}
	d.Readers = nil
	g.want(0, "dataset", "show", "data")
	if !strings.Contains(g.stdout.String(), "everybody\n") {
		t.Errorf("show says\n%s", g.stdout.String())
	}
	d.ReadersOf = []string{"all"}
	g.want(0, "dataset", "show", "data")
	if !strings.Contains(g.stdout.String(), "everybody who may read all, too: ") {
		t.Errorf("show says\n%s", g.stdout.String())
	}
	for _, bad := range []string{"", ",", "a,,b", "@", "+", "+a,b", "a,everybody", "-nobody"} {
		g.want(2, "dataset", "set", "data", "--readers", bad)
		g.want(2, "dataset", "add", "data", "s3://b", "--readers", bad)
	}
	if n := g.called(call); n != 4 {
		t.Errorf("%d calls", n)
	}
}
