package main

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"stoker.dev"
	"stoker.dev/internal/api"
)

// What hangs sends no events: after 10 s that is said all the same, on a
// terminal each second over the last line, elsewhere every 10 s.
func TestProgressSaysThatThereIsNone(t *testing.T) {
	const plain = "listing: 0 objects, 0 B, no progress for 10 s: does the store answer?\n" +
		"listing: 0 objects, 0 B, no progress for 20 s: does the store answer?\n"
	synctest.Test(t, func(t *testing.T) {
		var out buffer
		p := newListing(&console{w: &out})
		time.Sleep(patience - time.Millisecond)
		synctest.Wait()
		if got := out.String(); got != "" {
			t.Errorf("too early: %q", got)
		}
		time.Sleep(2*patience - tickEvery)
		p.Done()
		if got := out.String(); got != plain {
			t.Errorf("%q, want %q", got, plain)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		var out buffer
		p := newListing(&console{w: &out, tty: true, width: func() int { return 80 }})
		time.Sleep(patience + 2*tickEvery + time.Millisecond)
		p.Done()
		got := out.String()
		for _, part := range []string{"for 10 s: does the store answer?\r", "for 11 s: does the store answer?\r", "for 12 s: does the store answer?\r"} {
			if !strings.Contains(got, part) {
				t.Errorf("%q has no %q", got, part)
			}
		}
		if strings.Count(got, "no progress") != 3 || !strings.HasSuffix(got, "\r\x1b[K") {
			t.Errorf("%q", got)
		}
	})
}

// Progress is another count, not another event, rate or guess.
func TestEventsWithoutProgress(t *testing.T) {
	warming := func(resident int64, rate float64) api.JobStatus {
		return api.JobStatus{State: api.JobWarming, Bytes: 2 << 30, ResidentBytes: resident, BytesPerSec: rate, ETASeconds: rate}
	}
	for name, c := range map[string]struct {
		event func(p *progress, i int)
		want  string // "" = no word of it
	}{
		"the same, at other rates": {func(p *progress, i int) { p.Job(warming(1<<30, float64(90-i))) }, "warming: 50 %, 1.0 GiB of 2.0 GiB, no progress for 10 s: does the store answer?"},
		"a byte more each time":    {func(p *progress, i int) { p.Job(warming(1<<30+int64(i), 1)) }, ""},
		"the same listing":         {func(p *progress, _ int) { p.Event(api.Event{Listing: &api.ListProgress{Objects: 7, Bytes: 9}}) }, "listing: 7 objects, 9 B, no progress for 10 s"},
		"empty pages":              {func(p *progress, i int) { p.Event(api.Event{Listing: &api.ListProgress{Pages: int64(i)}}) }, ""},
		"queued":                   {func(p *progress, _ int) { p.Job(api.JobStatus{State: api.JobQueued, Bytes: 5}) }, ""},
		"a silent store": {func(p *progress, _ int) {
			st := warming(1<<30, 0)
			st.WaitingSince = time.Now().Add(-time.Minute)
			p.Job(st)
		}, "50 %, 1.0 GiB of 2.0 GiB, the store has not answered for 1 min"},
		"planned": {func(p *progress, _ int) { p.Job(api.JobStatus{State: api.JobPlanned, Bytes: 5}) }, "planned: 0 %, 0 B of 5 B, no progress for 10 s: 'stoker doctor'"},
	} {
		for _, tty := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				var out buffer
				p := newListing(&console{w: &out, tty: tty, width: func() int { return 80 }})
				for i := range 30 {
					c.event(p, i)
					time.Sleep(patience / 20)
				}
				p.Done()
				got := out.String()
				if c.want == "" && strings.Contains(got, "no progress") || !strings.Contains(got, c.want) {
					t.Errorf("%s, terminal %v: %q", name, tty, got)
				}
				if last := got[strings.LastIndex(strings.TrimSuffix(got, "\r\x1b[K"), "\r")+1:]; tty && c.want != "" && !strings.Contains(last, "no progress") && !strings.Contains(last, "not answered") {
					t.Errorf("%s: drawn over by %q", name, last)
				}
			})
		}
	}
}

// dataset add, submit and preload say so: of a URI that is listed, and of a
// job whose load stands still.
func TestCommandsSayThatNothingMoves(t *testing.T) {
	hang := make(chan struct{})
	t.Cleanup(func() { close(hang) })
	silent := func(all ...api.Event) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, r *http.Request) {
			if len(all) > 0 {
				events(all...)(w, r)
			}
			select {
			case <-hang:
			case <-r.Context().Done():
			}
		}
	}
	for _, c := range []struct {
		line, want string
		rs         routes
	}{
		{"dataset add data s3://b", "listing: 0 objects, 0 B, no progress for", routes{"POST /v1/datasets": silent()}},
		{"preload s3://b --wait", "listing: 0 objects, 0 B, no progress for", routes{"POST /v1/jobs": silent()}},
		{"preload data", "claiming, no progress for", routes{"POST /v1/jobs": silent()}},
		{"preload data --wait", "warming: 50 %, 100 B of 200 B, no progress for", routes{
			"POST /v1/jobs": events(lines(job(api.JobPlanned))...), "GET /v1/jobs/{job}/watch": silent(lines(job(api.JobWarming))...)}},
	} {
		g := newRig(t, c.rs, nil)
		said := make(chan struct{})
		a := g.app()
		a.console.w, a.console.wait = &told{word: c.want, ch: said}, time.Millisecond
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		go func() {
			select {
			case <-said:
				cancel()
			case <-ctx.Done():
			}
		}()
		a.run(ctx, strings.Fields(c.line))
		cancel()
		select {
		case <-said:
		default:
			t.Errorf("%s: it was never said", c.line)
		}
	}
}

// A queued job says what it waits for: once, and again when that is another.
func TestQueuedJobSaysWhy(t *testing.T) {
	queued := func(why string) api.JobStatus {
		return job(api.JobQueued, because(stoker.KindNoSpace), func(st *api.JobStatus) { st.Error.Message = why })
	}
	all := lines(queued("needs 3 TiB"), queued("needs 3 TiB"), queued("needs 2 TiB"), job(api.JobQueued), job(api.JobWarming), queued("needs 2 TiB"), job(api.JobReady))
	for _, args := range [][]string{{"wait", "j"}, {"submit", "--dataset", "data", "--job-id", "j", "--", "true"}} {
		controller, node := submitRoutes(job(api.JobReady))
		controller["GET /v1/jobs/{job}/watch"] = events(all...)
		g := newRig(t, controller, node)
		t.Setenv("TMPDIR", g.dir)
		g.want(0, args...)
		for _, why := range []string{"stoker: job j is queued: needs 3 TiB\n", "stoker: job j is queued: needs 2 TiB\n"} {
			if n := strings.Count(g.stderr.String(), why); n != 1 {
				t.Errorf("%v: %q stands there %d times:\n%s", args, why, n, g.stderr.String())
			}
		}
	}
}

// Where it is known what a load waits for, that is said, once, and nobody is sent
// to look for it.
func TestWhatALoadWaitsFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out buffer
		p := newListing(&console{w: &out})
		st := api.JobStatus{Job: "j", State: api.JobPlanned, Bytes: 1 << 20, ETASeconds: -1, Error: &api.ErrorBody{Kind: "transient", Message: "waits for workers: none is live, 3 lost: start them"}}
		for range 3 {
			p.Job(st)
			time.Sleep(patience)
		}
		p.Done()
		if got := out.String(); strings.Count(got, "job j waits for workers: none is live, 3 lost: start them") != 1 || strings.Contains(got, "doctor") {
			t.Errorf("%q", got)
		}
	})
}
