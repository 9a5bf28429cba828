package control

import (
	"slices"
	"testing"
	"time"

	"stoker.dev"
	"stoker.dev/cache/placement"
	"stoker.dev/internal/api"
	"stoker.dev/workflows"
)

// A hook's claim may be repeated: the same submission finds it, and it lives
// on; a later one replaces it; an earlier one, or another's, is refused.
func TestHookClaims(t *testing.T) {
	flows, address := startFlows(t)
	w := startWatched(t, address, placement.NewMem(time.Now))
	w.register(t, "pets", 1000, number(1))
	w.register(t, "cars", 4000, number(2))
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	claim := func(submitted time.Time, names ...string) api.ClaimRequest {
		req := api.ClaimRequest{Job: "17", TTLSeconds: 3600, Submitted: submitted}
		for _, n := range names {
			req.Datasets = append(req.Datasets, api.DatasetRef{Name: n})
		}
		return req
	}
	made := func(req api.ClaimRequest) *api.JobStatus {
		t.Helper()
		events := w.ask(t, watchedToken, "POST", "/v1/jobs", req).lines(t)
		st := events[len(events)-1].Job
		if st == nil || st.Job != "17" {
			t.Fatalf("%+v", events)
		}
		return st
	}
	made(claim(at, "pets"))
	in := flows.jobs["job-default-17"].Input
	if in.TTL != time.Hour || !in.Submitted.Equal(at) || in.Nonce == "" {
		t.Errorf("%+v", in)
	}
	if st := made(claim(at, "pets")); st.ExpiresAt.Before(time.Now().Add(59*time.Minute)) || !st.Submitted.Equal(at) {
		t.Errorf("repeated: %+v", st)
	}
	if want := []string{"repeat 17"}; !slices.Equal(flows.signals, want) {
		t.Errorf("the job was told %v, want %v", flows.signals, want)
	}
	w.ask(t, watchedToken, "POST", "/v1/jobs", claim(at, "cars")).wantError(t, 423, "held", "has claimed other datasets")
	w.ask(t, watchedToken, "POST", "/v1/jobs", claim(at.Add(-time.Hour), "pets")).wantError(t, 423, "held", "another claim's")
	w.ask(t, watchedToken, "POST", "/v1/jobs", claim(time.Time{}, "pets")).wantError(t, 423, "held", "another claim's")
	w.ask(t, bobsToken, "POST", "/v1/jobs", claim(at, "pets")).wantError(t, 403, "denied", "belongs to ann")
	w.ask(t, watchedToken, "POST", "/v1/jobs/17/renew", api.RenewRequest{})
	if want := []string{"repeat 17", "repeat 17"}; !slices.Equal(flows.signals, want) {
		t.Errorf("the job was told %v, want %v", flows.signals, want)
	}
	made(claim(at.Add(time.Hour), "cars"))
	if in := flows.jobs["job-default-17"].Input; !slices.Contains(flows.signals, "release 17") || in.Datasets[0].Name != "cars" {
		t.Errorf("a later submission: %v, %+v", flows.signals, in)
	}
	// A release of the first submission, which comes late, is not of this one.
	flows.signals = nil
	if a := w.ask(t, watchedToken, "DELETE", "/v1/jobs/17?submitted=2026-03-01T12:00:00Z", nil); a.status != 204 || len(flows.signals) != 0 {
		t.Errorf("%d, the job was told %v", a.status, flows.signals)
	}
	if a := w.ask(t, watchedToken, "DELETE", "/v1/jobs/17?submitted=2026-03-01T13:00:00Z", nil); a.status != 204 || !slices.Equal(flows.signals, []string{"release 17"}) {
		t.Errorf("%d, the job was told %v", a.status, flows.signals)
	}
	w.ask(t, watchedToken, "DELETE", "/v1/jobs/17?submitted=then", nil).wantError(t, 400, "invalid", "RFC 3339")
}

func TestTimesOfAClaim(t *testing.T) {
	number := func(f float64) *float64 { return &f }
	for name, c := range map[string]struct {
		req api.ClaimRequest
		ok  bool
	}{
		"hook":             {api.ClaimRequest{TTLSeconds: 1, Submitted: time.Now()}, true},
		"a month":          {api.ClaimRequest{TTLSeconds: maxTTL.Seconds()}, true},
		"longer":           {api.ClaimRequest{TTLSeconds: maxTTL.Seconds() + 1}, false},
		"shorter":          {api.ClaimRequest{TTLSeconds: 0.5}, false},
		"negative":         {api.ClaimRequest{TTLSeconds: -1}, false},
		"preload":          {api.ClaimRequest{TTLSeconds: 60, Preload: true}, false},
		"no ttl":           {api.ClaimRequest{Submitted: time.Now()}, false},
		"tomorrow":         {api.ClaimRequest{TTLSeconds: 60, Submitted: time.Now().Add(24 * time.Hour)}, false},
		"grace":            {api.ClaimRequest{GraceSeconds: number(0)}, true},
		"grace of a week":  {api.ClaimRequest{GraceSeconds: number(7 * 86400)}, false},
		"grace before all": {api.ClaimRequest{GraceSeconds: number(-1)}, false},
	} {
		if err := checkTimes(&c.req); (err == nil) != c.ok || err != nil && stoker.KindOf(err) != stoker.KindInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A released job is in Grace for its time, unless there is nothing to come back
// for.
func TestGraceIsShown(t *testing.T) {
	now := time.Now()
	job := func(state string, ended time.Time, change func(*workflows.JobState)) *workflows.JobState {
		s := &workflows.JobState{State: state, Ended: ended, Input: workflows.JobInput{Grace: 5 * time.Minute}}
		if change != nil {
			change(s)
		}
		return s
	}
	for name, c := range map[string]struct {
		s    *workflows.JobState
		want string
	}{
		"just released": {job(api.JobReleased, now.Add(-4*time.Minute), nil), api.JobGrace},
		"long ago":      {job(api.JobReleased, now.Add(-6*time.Minute), nil), api.JobReleased},
		"cancelled":     {job(api.JobReleased, now, func(s *workflows.JobState) { s.Cancelled = true }), api.JobReleased},
		"preload":       {job(api.JobReleased, now, func(s *workflows.JobState) { s.Input.Preload = true }), api.JobReleased},
		"no grace":      {job(api.JobReleased, now, func(s *workflows.JobState) { s.Input.Grace = 0 }), api.JobReleased},
		"failed":        {job(api.JobFailed, now, nil), api.JobFailed},
		"running":       {job(api.JobLeased, time.Time{}, nil), api.JobLeased},
	} {
		st := &api.JobStatus{State: c.s.State}
		if lifetime(st, c.s); st.State != c.want {
			t.Errorf("%s: %s, want %s", name, st.State, c.want)
		}
	}
}

// An admin's hook claims for a user, whose claim it is; nobody else may.
func TestClaimForAnother(t *testing.T) {
	flows, address := startFlows(t)
	w := startWatched(t, address, placement.NewMem(time.Now))
	w.register(t, "pets", 1000, number(1))
	req := api.ClaimRequest{Job: "17", TTLSeconds: 3600, For: "bob", Datasets: []api.DatasetRef{{Name: "pets"}}}
	w.ask(t, watchedToken, "POST", "/v1/jobs", req).wantError(t, 403, "denied", "may not claim for another")
	once := req
	once.TTLSeconds = 0 // no hook's claim: nobody could renew it
	w.ask(t, daemonToken, "POST", "/v1/jobs", once).wantError(t, 403, "denied", "may not claim for another")
	odd := req
	odd.For = "bob\nroot"
	w.ask(t, daemonToken, "POST", "/v1/jobs", odd).wantError(t, 400, "invalid", "is no user's name")
	events := w.ask(t, daemonToken, "POST", "/v1/jobs", req).lines(t)
	if st := events[len(events)-1].Job; st == nil || st.Owner != "bob" || flows.jobs["job-default-17"].Input.Owner != "bob" {
		t.Fatalf("%+v", events)
	}
	w.ask(t, watchedToken, "DELETE", "/v1/jobs/17", nil).wantError(t, 403, "denied", "belongs to bob")
	own := req
	own.Job, own.For = "18", "ann"
	events = w.ask(t, watchedToken, "POST", "/v1/jobs", own).lines(t)
	if st := events[len(events)-1].Job; st == nil || st.Owner != "ann" {
		t.Fatalf("for himself: %+v", events)
	}
}

// A dataset's own selection goes before the claim's, and a hook's claim is the same
// again only with the same ones. Whoever asks first is told what they have.
func TestSelectionsOfAClaim(t *testing.T) {
	_, address := startFlows(t)
	w := startWatched(t, address, placement.NewMem(time.Now))
	w.freeze(t, "pets")
	w.freeze(t, "cars")
	own := func(pattern string) *api.Selection { return &api.Selection{Include: []string{pattern}} }
	req := api.ClaimRequest{Job: "17", TTLSeconds: 3600, Selection: own("file[0-3]"), Datasets: []api.DatasetRef{{Name: "pets"}, {Name: "cars", Selection: own("file7")}}}
	for range 2 {
		events := w.ask(t, daemonToken, "POST", "/v1/jobs", req).lines(t)
		st := events[len(events)-1].Job
		if st == nil || st.Datasets[0].Bytes != 400 || st.Datasets[1].Bytes != 100 || st.Datasets[1].Selection.Include[0] != "file7" {
			t.Fatalf("%+v", events)
		}
	}
	other := req
	other.Datasets = []api.DatasetRef{{Name: "pets"}, {Name: "cars"}}
	w.ask(t, daemonToken, "POST", "/v1/jobs", other).wantError(t, 423, "held", "has claimed other datasets")
	other.Datasets = []api.DatasetRef{{Name: "pets", Selection: own("[")}, {Name: "cars"}}
	w.ask(t, daemonToken, "POST", "/v1/jobs", other).wantError(t, 400, "invalid", "is no pattern")

	for query, want := range map[string]*api.Tally{"": nil, "?path=folder&exclude=*9": {Objects: 9, Bytes: 900}, "?path=nothing": {}} {
		got := decode[api.DatasetDetail](t, w.ask(t, watchedToken, "GET", "/v1/datasets/pets"+query, nil))
		if got.Objects != 10 || (want == nil) != (got.Selected == nil) || want != nil && *got.Selected != *want {
			t.Errorf("%q: %+v of %d, want %+v", query, got.Selected, got.Objects, want)
		}
	}
	w.ask(t, watchedToken, "GET", "/v1/datasets/pets?path=..", nil).wantError(t, 400, "invalid", "is no path below")
}
