package main

import (
	"net/http"
	"testing"
	"time"

	"stoker.dev"
	"stoker.dev/internal/api"
)

func TestClaimAndRelease(t *testing.T) {
	g := newRig(t, routes{"POST /v1/jobs": events(lines(job(api.JobPlanned))...), "DELETE /v1/jobs/{job}": done}, nil)
	var st api.JobStatus
	g.json(&st, 0, "claim", "--job-id", "17", "--submitted", "1772366400", "--dataset", "data@3", "--dataset", "labels", "--on-miss", "fail",
		"--deadline", "30m", "--priority", "-7", "--ttl", "48h", "--grace", "1h")
	if st.State != api.JobPlanned {
		t.Errorf("printed %+v", st)
	}
	var req api.ClaimRequest
	g.body("controller POST /v1/jobs", 0, &req)
	if req.Job != "17" || !req.Submitted.Equal(time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)) || req.TTLSeconds != 48*3600 || req.OnMiss != "fail" ||
		*req.DeadlineSeconds != 1800 || *req.GraceSeconds != 3600 || len(req.Datasets) != 2 || req.Priority != -7 || req.Datasets[0].Generation != 3 || req.Preload {
		t.Errorf("%+v", req)
	}
	g.want(0, "claim", "--job-id", "18", "--dataset", "data")
	req = api.ClaimRequest{}
	g.body("controller POST /v1/jobs", 1, &req)
	if !req.Submitted.IsZero() || req.TTLSeconds != 24*3600 || req.DeadlineSeconds != nil || req.GraceSeconds != nil {
		t.Errorf("without flags: %+v", req)
	}
	g.want(0, "release", "17")
	g.want(0, "release", "17", "--submitted", "2026-03-01T12:00:00Z")
	if g.called("controller DELETE /v1/jobs/17") != 1 || g.called("controller DELETE /v1/jobs/17?submitted=2026-03-01T12%3A00%3A00Z") != 1 {
		t.Errorf("calls %v", g.calls)
	}
	// One that was never made, or has ended, is released.
	newRig(t, routes{"DELETE /v1/jobs/{job}": fail(stoker.KindNotExist)}, nil).want(0, "release", "17")
}

// What passes makes a hook's scheduler run it again; what does not, does not.
func TestCodesOfHooks(t *testing.T) {
	for kind, want := range codes {
		if kind == stoker.KindTransient || kind == stoker.KindBusy {
			want = 75
		}
		g := newRig(t, routes{"POST /v1/jobs": fail(kind), "DELETE /v1/jobs/{job}": fail(kind), "GET /v1/jobs/{job}/watch": fail(kind)}, nil)
		g.want(want, "claim", "--job-id", "17", "--dataset", "data")
		g.want(want, "wait", "17", "--timeout", "1m")
		if kind != stoker.KindNotExist {
			g.want(want, "release", "17")
		}
	}
	g := newRig(t, nil, nil)
	g.want(75, "claim", "--job-id", "17", "--dataset", "data")
	g.want(75, "release", "17")
	g.want(75, "wait", "17", "--timeout", "1m")
	g.want(5, "wait", "17")
}

// A wait that gives up says so; the job does not notice.
func TestWaitGivesUp(t *testing.T) {
	g := newRig(t, routes{"GET /v1/jobs/{job}/watch": func(w http.ResponseWriter, r *http.Request) {
		s := api.NewStream(w)
		st := job(api.JobWarming)
		_ = s.Send(api.Event{Job: &st})
		<-r.Context().Done()
	}}, nil)
	g.want(75, "wait", "j", "--timeout", "50ms")
	g.says("is not ready after 50ms: wait again")
	g.want(2, "wait", "j", "--timeout", "0s")
	g.want(2, "wait", "j", "--timeout", "-1s")
	if g.called("controller DELETE /v1/jobs/j") != 0 {
		t.Errorf("calls %v", g.calls)
	}
}

func TestClaimUsage(t *testing.T) {
	for _, more := range [][]string{
		{}, {"--job-id", "17"}, {"--dataset", "data"}, {"--job-id", "a/b", "--dataset", "data"}, {"--job-id", "17", "--dataset", "data=/mnt"},
		{"--job-id", "17", "--dataset", "data", "--on-miss", "panic"}, {"--job-id", "17", "--dataset", "data", "--ttl", "0s"},
		{"--job-id", "17", "--dataset", "data", "--ttl", "1000h"}, {"--job-id", "17", "--dataset", "data", "--deadline", "-1s"},
		{"--job-id", "17", "--dataset", "data", "--submitted", "yesterday"}, {"--job-id", "17", "--dataset", "data", "--submitted", "0"},
		{"--job-id", "17", "--dataset", "data", "--grace", "25h"}, {"--job-id", "17", "--dataset", "data", "--layout", "local"}, {"--job-id", "17", "--dataset", "data", "--nodes", "n1", "--layout", "spread"}, {"--job-id", "17", "--dataset", "data", "--nodes", "n1,,n2"}, {"--job-id", "17", "--dataset", "data", "--layout", "near"},
		{"17", "--job-id", "17", "--dataset", "data"},
	} {
		g := newRig(t, routes{}, nil)
		g.want(2, append([]string{"claim"}, more...)...)
		if g.called("controller POST /v1/jobs") != 0 {
			t.Errorf("%v: calls %v", more, g.calls)
		}
	}
	g := newRig(t, routes{}, nil)
	g.want(2, "release", "17", "--submitted", "yesterday")
	g.want(2, "release")
	g.want(2, "submit", "--dataset", "data", "--grace", "25h", "--", "true")
}
