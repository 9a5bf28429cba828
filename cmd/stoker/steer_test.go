package main

import (
	"encoding/json"
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

// What is changed is sent, and nothing else.
func TestChange(t *testing.T) {
	st := job(api.JobWarming)
	st.Datasets = []api.JobDataset{{Load: &api.LoadStatus{State: api.JobWarming, LimitBytesPerSecond: 100 << 20}}}
	g := newRig(t, routes{"PATCH /v1/jobs/{job}": answer(st)}, nil)
	for i, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--bandwidth", "100MiB/s"}, `{"limitBytesPerSecond":104857600}`},
		{[]string{"--bandwidth", "none", "--priority", "-5"}, `{"priority":-5,"limitBytesPerSecond":0}`},
		{[]string{"--deadline", "10m"}, `{"deadlineSeconds":600}`},
		{[]string{"--deadline", "none"}, `{"deadlineSeconds":-1}`},
	} {
		g.want(0, append([]string{"change", "j"}, c.args...)...)
		var req api.JobChange
		g.body("controller PATCH /v1/jobs/j", i, &req)
		if got, err := json.Marshal(req); err != nil || string(got) != c.want {
			t.Errorf("%v sends %s, want %s (%v)", c.args, got, c.want, err)
		}
	}
	if !strings.Contains(g.stdout.String(), "at most 100.0 MiB/s from the store") {
		t.Errorf("it says\n%s", g.stdout.String())
	}
	for _, args := range [][]string{{}, {"--bandwidth", "10"}, {"--bandwidth", "fast"}, {"--priority", "1001"}, {"--deadline", "-1s"}, {"--deadline", "soon"}} {
		g.want(2, append([]string{"change", "j"}, args...)...)
	}
	g = newRig(t, routes{"POST /v1/jobs": events(lines(job(api.JobPlanned))...)}, nil)
	g.want(0, "preload", "data", "--bandwidth", "1GB/s", "--priority", "7", "--deadline", "1h")
	var claim api.ClaimRequest
	g.body("controller POST /v1/jobs", 0, &claim)
	if claim.LimitBytesPerSecond != 1e9 || claim.Priority != 7 || claim.DeadlineSeconds == nil || *claim.DeadlineSeconds != 3600 {
		t.Errorf("preload sends %+v", claim)
	}
	g.want(2, "preload", "data", "--pause", "--bandwidth", "1GB/s")
}

// A selection is sent as it was written; one that is wrong is not.
func TestSelectionFlags(t *testing.T) {
	cert := api.Event{Certificate: &api.Certificate{State: api.CertificateReady, Selection: &api.Selection{Paths: []string{"train"}, Exclude: []string{"*.tmp"}}}}
	g := newRig(t, routes{"POST /v1/jobs": events(lines(job(api.JobPlanned))...), "POST /v1/datasets/{name}/verify": events(cert)}, nil)
	sel := []string{"--path", "train", "--exclude", "*.tmp", "--exclude", "*,b"}
	g.want(0, append([]string{"preload", "data"}, sel...)...)
	g.want(0, append([]string{"claim", "--job-id", "j", "--dataset", "data"}, sel...)...)
	for i := range 2 {
		var req api.ClaimRequest
		g.body("controller POST /v1/jobs", i, &req)
		if s := req.Selection; s == nil || strings.Join(s.Paths, " ") != "train" || strings.Join(s.Exclude, " ") != "*.tmp *,b" {
			t.Errorf("sent %+v", req.Selection)
		}
	}
	g.want(0, append([]string{"verify", "data"}, sel...)...)
	if g.called("controller POST /v1/datasets/data/verify?deep=false&exclude=%2A.tmp&exclude=%2A%2Cb&path=train") != 1 || !strings.Contains(g.stdout.String(), "--path train --exclude *.tmp") {
		t.Errorf("calls %v, it says\n%s", g.calls, g.stdout.String())
	}
	for _, command := range [][]string{{"preload", "data"}, {"verify", "data"}, {"claim", "--job-id", "j", "--dataset", "data"}} {
		g.want(2, append(command, "--include", "[")...)
	}
	g.want(2, "preload", "data", "--pause", "--path", "x")
}
