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
