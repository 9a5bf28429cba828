package main

import (
	"context"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"stoker.dev"
	"stoker.dev/internal/api"
)

const aWorker = "1f0c2a3b4d5e6f708192a3b4c5d6e7f8"

// drainSteps answers with one state after the other, and the last one for ever.
func drainSteps(steps ...api.DrainStatus) func(http.ResponseWriter, *http.Request) {
	n := new(atomic.Int64)
	return func(w http.ResponseWriter, _ *http.Request) {
		st := steps[min(int(n.Add(1)), len(steps))-1]
		if st.State == "" {
			api.WriteError(w, stoker.Errorf(stoker.KindTransient, "drain", "", "the controller is away"))
			return
		}
		st.Worker = aWorker
		api.WriteJSON(w, http.StatusOK, st)
	}
}

func TestDrain(t *testing.T) {
	draining := api.DrainStatus{State: api.WorkerDraining, Bytes: 3 << 20, HeldBytes: 2 << 20, Datasets: []api.DrainDataset{{Dataset: "pets", Bytes: 3 << 20, Holders: []string{"job 7"}, Moving: true}},
		Views: []api.DrainView{{Dir: "/mnt/x", Dataset: "pets", Job: "7"}}}
	full := draining
	full.Datasets = []api.DrainDataset{{Dataset: "pets", Error: &api.ErrorBody{Kind: "nospace", Message: "no room for 2 MiB: 1 MiB free"}}}
	for name, c := range map[string]struct {
		steps []api.DrainStatus
		args  []string
		code  int
		says  string
	}{
		"begins":                 {[]api.DrainStatus{draining}, nil, 0, ""},
		"waits":                  {[]api.DrainStatus{draining, {State: api.WorkerLost}, {}, {State: api.WorkerDrained}}, []string{"--wait"}, 0, "pets moves; waits for the view /mnt/x of pets (job 7)"},
		"no room":                {[]api.DrainStatus{draining, full}, []string{"--wait"}, 8, "1 MiB free; it stays draining"},
		"ended by somebody":      {[]api.DrainStatus{draining, {State: api.WorkerLive}}, []string{"--wait"}, 5, "was put into service again"},
		"interrupted, goes on":   {[]api.DrainStatus{draining}, []string{"--wait"}, 130, "the drain goes on: 'stoker workers drain 1f0c2a3b4d5e --wait' follows it, 'stoker workers undrain 1f0c2a3b4d5e' ends it"},
		"drained before already": {[]api.DrainStatus{{State: api.WorkerDrained}}, []string{"--wait", "--drop"}, 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			next := drainSteps(c.steps...)
			follow := func(w http.ResponseWriter, r *http.Request) {
				next(w, r)
				if c.code == 130 {
					cancel()
				}
			}
			g := newRig(t, routes{"PUT /v1/workers/{w}/drain": next, "GET /v1/workers/{w}/drain": follow}, nil)
			if got := g.runCtx(ctx, append([]string{"workers", "drain", "1f0c"}, c.args...)...); got != c.code {
				t.Errorf("exit %d, want %d\n%s", got, c.code, g.stderr.String())
			}
			g.says(c.says)
			var asked api.Drain
			g.body("controller PUT /v1/workers/1f0c/drain", 0, &asked)
			if asked.Drop != (len(c.args) > 1) || asked.By != "" {
				t.Errorf("asked for %+v", asked)
			}
		})
	}
	g := newRig(t, routes{"PUT /v1/workers/{w}/drain": drainSteps(draining), "DELETE /v1/workers/{w}/drain": drainSteps(api.DrainStatus{State: api.WorkerLive})}, nil)
	g.want(0, "workers", "drain", "1f0c")
	for _, part := range []string{aWorker, "draining", "3.0 MiB, 2.0 MiB of it held", "pets, 3.0 MiB, held by job 7: moves", "the view /mnt/x of pets (job 7)"} {
		if !strings.Contains(g.stdout.String(), part) {
			t.Errorf("no %q in\n%s", part, g.stdout.String())
		}
	}
	g.stdout.b.Reset()
	var st api.DrainStatus
	g.json(&st, 0, "workers", "undrain", "1f0c")
	if st.State != api.WorkerLive {
		t.Errorf("after an undrain %+v", st)
	}
}
