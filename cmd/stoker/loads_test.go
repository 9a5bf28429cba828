package main

import (
	"strings"
	"testing"
	"time"

	"stoker.dev/internal/api"
)

func TestFailedObjectsAreListed(t *testing.T) {
	page := api.FailurePage{Failed: []api.Failure{{Path: "a/b", Kind: "stale", Reason: "it changed"}}, Next: "a/b", Total: 7}
	g := newRig(t, routes{"GET /v1/datasets/{name}/failed": answer(page)}, nil)
	g.want(0, "status", "data@2", "--failed", "--limit", "1", "--after", "a/a&x")
	if g.called("controller GET /v1/datasets/data@2/failed?after=a%2Fa%26x&limit=1") != 1 {
		t.Errorf("calls %v", g.calls)
	}
	if out := g.stdout.String(); !strings.Contains(out, "a/b") || !strings.Contains(out, "it changed") {
		t.Errorf("stdout %q", out)
	}
	g.says(`1 of 7; more: --after "a/b"`)
	for _, args := range [][]string{{"--failed"}, {"data", "--after", "x"}, {"data", "--failed", "--watch"}, {"data", "--failed", "--limit", "0"}} {
		g.want(2, append([]string{"status"}, args...)...)
	}
}

// A job's deadline is shown with what the load makes of it.
func TestDeadlineIsShown(t *testing.T) {
	now := time.Now()
	for want, c := range map[string]struct {
		in  time.Duration
		eta float64
	}{
		"in 10 min, ready 5 min before": {10 * time.Minute, 290},
		"in 10 min, ready 10 min late":  {10 * time.Minute, 1210},
		"in 10 min":                     {10 * time.Minute, -1},
		"passed 2 min ago":              {-2 * time.Minute, 60},
	} {
		st := job(api.JobWarming)
		st.Deadline, st.ETASeconds = now.Add(c.in), c.eta
		if got := deadline(&st, now); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// Who loads what stands in the status of a job, and a verification that it waits
// for in the bar.
func TestLoadIsShownByWorker(t *testing.T) {
	st := job(api.JobWarming)
	st.Datasets[0].Load = &api.LoadStatus{State: api.JobWarming, Objects: 9, ResidentObjects: 3, FailedObjects: 2, Check: &api.CheckProgress{Bytes: 1, TotalBytes: 4},
		Workers: []api.LoadWorker{{Worker: "0123456789abcdef", Objects: 3, ResidentBytes: 100, LoadedBytes: 50, LoadBytes: 200, BytesPerSec: 10, FailedObjects: 2}}}
	checking := job(api.JobWarming, func(st *api.JobStatus) { st.Check = &api.CheckProgress{Bytes: 50, TotalBytes: 200} })
	g := newRig(t, routes{"GET /v1/jobs/{job}": answer(st), "GET /v1/jobs/{job}/watch": events(lines(job(api.JobWarming), checking, job(api.JobReady))...)}, nil)
	g.want(0, "status", "j")
	for _, part := range []string{"3 of 9 objects", "2 objects failed", "(25 %)", "loading 50 B of 200 B (25 %)", "10 B/s"} {
		if !strings.Contains(g.stdout.String(), part) {
			t.Errorf("no %q in\n%s", part, g.stdout.String())
		}
	}
	g.want(0, "wait", "j")
	g.says("verifying: 25 %, 50 B of 200 B")
}

func TestEndedJobs(t *testing.T) {
	line := api.JobLine{Job: "train", State: api.JobReleased, Owner: "me", Datasets: []string{"a", "b"}, Bytes: 300, Ended: time.Now().Add(-5 * time.Minute),
		Certificates: []api.CertificateLine{{Objects: 7, ResidentObjects: 7, UFSBytes: 100, UFSRequests: 3, Seconds: 61}, {Objects: 5, ResidentObjects: 4, FailedObjects: 1, UFSBytes: 100, UFSRequests: 4}}}
	none := api.JobLine{Job: "early", State: api.JobFailed, Error: &api.ErrorBody{Message: "no space"}}
	g := newRig(t, routes{"GET /v1/jobs": answer([]api.JobLine{line, none})}, nil)
	g.want(0, "jobs", "--ended", "--limit", "7", "--wide")
	if g.called("controller GET /v1/jobs?ended=7") != 1 {
		t.Errorf("calls %v", g.calls)
	}
	for _, part := range []string{"11/12", "200 B", "5 min", "1 min", "no space"} {
		if !strings.Contains(g.stdout.String(), part) {
			t.Errorf("no %q in\n%s", part, g.stdout.String())
		}
	}
	for _, args := range [][]string{{"--limit", "3"}, {"--ended", "--limit", "0"}, {"--ended", "--limit", "1001"}} {
		g.want(2, append([]string{"jobs"}, args...)...)
	}
}

// A job that waits for space shows its place, and what it waits for.
func TestPlaceInTheQueue(t *testing.T) {
	place := &api.QueuePlace{Place: 2, Of: 3, Priority: 5, NeededBytes: 3 << 40, FreeBytes: 2 << 40}
	st := job(api.JobQueued, func(st *api.JobStatus) { st.Queue = place })
	g := newRig(t, routes{"GET /v1/jobs": answer([]api.JobLine{{Job: "j", State: api.JobQueued, Queue: place}}), "GET /v1/jobs/{job}": answer(st)}, nil)
	if g.want(0, "jobs"); !strings.Contains(g.stdout.String(), "Queued 2/3") {
		t.Errorf("%s", g.stdout.String())
	}
	if g.want(0, "status", "j"); !strings.Contains(g.stdout.String(), "place 2 of 3, priority 5, needs 3.0 TiB, 2.0 TiB free") {
		t.Errorf("%s", g.stdout.String())
	}
}
