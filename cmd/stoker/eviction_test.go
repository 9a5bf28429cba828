package main

import (
	"fmt"
	"strings"
	"testing"

	"stoker.dev/internal/api"
)

func TestEvictionOfADataset(t *testing.T) {
	d := api.DatasetDetail{DatasetInfo: api.DatasetInfo{Name: "data", Eviction: api.Eviction{Evict: "lfu", TTLSeconds: 259200}}}
	g := newRig(t, routes{"PUT /v1/datasets/{name}/eviction": answer(d), "POST /v1/datasets": events(api.Event{Dataset: &d}), "GET /v1/datasets/{name}": answer(d)}, nil)
	const call = "controller PUT /v1/datasets/data/eviction"
	g.want(0, "dataset", "set", "data", "--evict", "lfu")
	g.want(0, "dataset", "set", "data", "--ttl", "72h")
	g.want(0, "dataset", "set", "data", "--ttl", "never")
	g.want(0, "dataset", "set", "data", "--ttl", "default", "--evict", "auto")
	for i, want := range []string{"lfu -", "- 259200", "- -1", "auto 0"} {
		var req api.EvictionRequest
		g.body(call, i, &req)
		got := []string{"-", "-"}
		if req.Evict != nil {
			got[0] = *req.Evict
		}
		if req.TTLSeconds != nil {
			got[1] = fmt.Sprint(*req.TTLSeconds)
		}
		if s := strings.Join(got, " "); s != want {
			t.Errorf("call %d sends %s, want %s", i, s, want)
		}
	}
	g.want(0, "dataset", "add", "data", "s3://b", "--evict", "keep", "--ttl", "10m")
	var add api.AddDatasetRequest
	if g.body("controller POST /v1/datasets", 0, &add); add.Evict != "keep" || add.TTLSeconds != 600 {
		t.Errorf("add sends %+v", add)
	}
	g.want(0, "dataset", "show", "data")
	if !strings.Contains(g.stdout.String(), "lfu, after 3 d without use") {
		t.Errorf("show says\n%s", g.stdout.String())
	}
	for _, args := range [][]string{{"data"}, {"data", "--ttl", "soon"}, {"data", "--ttl", "10ms"}, {"data", "--ttl", "-1h"}, {"data", "--evict", "lru"}, {"data", "--evict", ""}, {"--ttl", "1h"}} {
		g.want(2, append([]string{"dataset", "set"}, args...)...)
	}
	if n := g.called(call); n != 4 {
		t.Errorf("%d calls", n)
	}
}

func TestReplicasOfADataset(t *testing.T) {
	d := api.DatasetDetail{DatasetInfo: api.DatasetInfo{Name: "data", Replicas: 2}}
	g := newRig(t, routes{"PUT /v1/datasets/{name}/eviction": answer(d), "PUT /v1/datasets/{name}/replicas": answer(&d), "GET /v1/datasets/{name}": answer(&d)}, nil)
	g.want(0, "dataset", "set", "data", "--replicas", "2")
	g.want(0, "dataset", "set", "data", "--replicas", "3", "--evict", "keep")
	for i, want := range []int{2, 3} {
		var req api.ReplicasRequest
		if g.body("controller PUT /v1/datasets/data/replicas", i, &req); req.Replicas != want {
			t.Errorf("it asks for %+v", req)
		}
	}
	if g.called("controller PUT /v1/datasets/data/eviction") != 1 {
		t.Error("the eviction is set with what was not said")
	}
	for says, c := range map[string]*api.CopiesStatus{
		"2":                           nil,
		"2, 3.0 MiB are being copied": {Running: true, Bytes: 3 << 20},
		"2: no worker answers":        {Error: &api.ErrorBody{Message: "no worker answers"}},
		"2, no room for 1.0 MiB":      {ShortBytes: 1 << 20},
	} {
		d.Copies = c
		g.stdout.b.Reset()
		g.want(0, "dataset", "show", "data")
		if !strings.Contains(g.stdout.String(), says) {
			t.Errorf("no %q in\n%s", says, g.stdout.String())
		}
	}
	for _, n := range []string{"0", "17", "-1", "two"} {
		g.want(2, "dataset", "set", "data", "--replicas", n)
	}
}
