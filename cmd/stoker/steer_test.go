package main

import (
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
