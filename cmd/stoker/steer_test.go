package main

import (
	"strings"
	"testing"

	"stoker.dev"
	"stoker.dev/internal/api"
)

func TestPreloadIsSteered(t *testing.T) {
	g := newRig(t, routes{"POST /v1/datasets/{name}/load": answer(api.SteerReport{Dataset: "data", State: "paused", Jobs: []string{"j"}})}, nil)
	const call = "controller POST /v1/datasets/data@3/load"
	for i, action := range []string{"pause", "resume", "stop"} {
		g.want(0, "preload", "data@3", "--"+action)
		var req api.SteerRequest
		if g.body(call, i, &req); req.Action != action {
			t.Errorf("--%s sends %+v", action, req)
		}
	}
	for _, args := range [][]string{{"data", "--pause", "--stop"}, {"data", "--pause", "--wait"}, {"data", "--stop", "--replicas", "2"}, {"s3://b/p", "--pause"}} {
		g.want(2, append([]string{"preload"}, args...)...)
	}
	if g.called("controller POST /v1/jobs") != 0 {
		t.Errorf("calls %v", g.calls)
	}
	newRig(t, routes{"POST /v1/datasets/{name}/load": fail(stoker.KindDenied)}, nil).want(10, "preload", "data", "--pause")
}

func TestSyncOnSchedule(t *testing.T) {
	d := api.DatasetDetail{DatasetInfo: api.DatasetInfo{Name: "data", SyncEverySeconds: 5400, LastSync: &api.SyncResult{Error: &api.ErrorBody{Kind: "denied", Message: "no key"}}}}
	g := newRig(t, routes{
		"PUT /v1/datasets/{name}/schedule": answer(d), "POST /v1/datasets/{name}/sync": events(api.Event{Dataset: &d}),
		"POST /v1/datasets": events(api.Event{Dataset: &d}), "GET /v1/datasets": answer([]api.DatasetInfo{d.DatasetInfo}),
	}, nil)
	g.want(0, "dataset", "sync", "data", "--every", "90m")
	g.want(0, "dataset", "sync", "data", "--every", "off")
	g.want(0, "dataset", "add", "data", "s3://b", "--every", "24h")
	var req api.ScheduleRequest
	if g.body("controller PUT /v1/datasets/data/schedule", 0, &req); req.SyncEverySeconds != 5400 {
		t.Errorf("90m sends %+v", req)
	}
	if g.body("controller PUT /v1/datasets/data/schedule", 1, &req); req.SyncEverySeconds != 0 || g.called("controller POST /v1/datasets/data/sync") != 1 {
		t.Errorf("off sends %+v, calls %v", req, g.calls)
	}
	var add api.AddDatasetRequest
	if g.body("controller POST /v1/datasets", 0, &add); add.SyncEverySeconds != 86400 {
		t.Errorf("add sends %+v", add)
	}
	for _, part := range []string{"every 1h30m", "failed", "no key"} {
		if !strings.Contains(g.stdout.String(), part) {
			t.Errorf("no %q in\n%s", part, g.stdout.String())
		}
	}
	g.want(0, "dataset", "ls")
	if !strings.Contains(g.stdout.String(), "1h30m failed") {
		t.Errorf("ls says\n%s", g.stdout.String())
	}
	for _, every := range []string{"10s", "-1h", "9000h", "soon", ""} {
		g.want(2, "dataset", "sync", "data", "--every", every)
	}
}
