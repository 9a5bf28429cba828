package activities

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/log"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/worker"

	"stoker.dev"
	"stoker.dev/cache/placement"
	"stoker.dev/internal/api"
)

// loadPart runs the activity as Temporal does; told is what an earlier try's
// heartbeats carried.
func (c *cluster) loadPart(ctx context.Context, in PartInput, told *partTally) (p PartLoaded, err error) {
	var suite testsuite.WorkflowTestSuite
	suite.SetLogger(log.NewStructuredLogger(slog.New(slog.DiscardHandler)))
	env := suite.NewTestActivityEnvironment()
	env.SetWorkerOptions(worker.Options{BackgroundActivityContext: ctx})
	env.RegisterActivity(c.LoadPart)
	if told != nil {
		env.SetHeartbeatDetails(*told)
	}
	v, err := env.ExecuteActivity(c.LoadPart, in)
	if err == nil {
		err = v.Get(&p)
	}
	return p, FromTemporal("", "", err)
}

// send makes a load that sends some lines; one without Done ends in a hang-up.
func send(lines ...api.LoadProgress) func(*api.Stream) bool {
	return func(s *api.Stream) bool {
		for _, l := range lines {
			if s.Send(api.Event{Load: &l}) != nil {
				return false
			}
		}
		return lines[len(lines)-1].Done
	}
}

func TestLoadPart(t *testing.T) {
	first := api.LoadProgress{Run: "1", StartBytes: 5, UFSRequests: 2, UFSBytes: 100, Refetched: api.Refetched{Retry: 10}}
	again := first
	again.UFSBytes, again.Done = 150, true
	restarted := api.LoadProgress{Run: "2", StartBytes: 60, UFSRequests: 1, UFSBytes: 40, FailedObjects: 2, Done: true}
	spent := api.LoadSpent{Run: "1", UFSRequests: 2, UFSBytes: 100, Refetched: api.Refetched{Retry: 10}} // by the first
	resumed := restarted                                                                                 // and had brought in 30 bytes more; 5+130-10 bytes were there, 60 are
	resumed.Earlier = &api.LoadSpent{Run: "1", UFSRequests: 3, UFSBytes: 130, Refetched: api.Refetched{Retry: 10, Lost: 65}, Died: 65}
	evicted := resumed
	evicted.Refetched.Lost = 7
	for name, c := range map[string]struct {
		runs  []func(*api.Stream) bool // the last one again and again
		in    PartInput
		told  *partTally
		want  PartLoaded
		kind  stoker.Kind
		fails bool
		tries int
	}{
		"at once": {
			runs: []func(*api.Stream) bool{send(again)}, tries: 1,
			want: PartLoaded{UFSRequests: 2, UFSBytes: 150, Refetched: api.Refetched{Retry: 10}},
		},
		"the stream broke, the load went on": {
			runs: []func(*api.Stream) bool{send(first), send(again)}, tries: 2,
			want: PartLoaded{UFSRequests: 2, UFSBytes: 150, Refetched: api.Refetched{Retry: 10}},
		},
		"it broke often, and went on each time": {
			runs: []func(*api.Stream) bool{send(first), send(first), send(first), send(first), send(first), send(again)}, tries: 6,
			want: PartLoaded{UFSRequests: 2, UFSBytes: 150, Refetched: api.Refetched{Retry: 10}},
		},
		"the worker came back with less": { // 5+100-10 bytes were there, 60 are
			runs: []func(*api.Stream) bool{send(first), send(restarted)}, tries: 2,
			want: PartLoaded{UFSRequests: 3, UFSBytes: 140, Refetched: api.Refetched{Retry: 10, Lost: 35}, Failed: 2},
		},
		"another controller had begun": {
			runs: []func(*api.Stream) bool{send(restarted)}, tries: 1, told: &partTally{Last: first},
			want: PartLoaded{UFSRequests: 3, UFSBytes: 140, Refetched: api.Refetched{Retry: 10, Lost: 35}, Failed: 2},
		},
		"the worker was killed, and knows what it had spent": {
			runs: []func(*api.Stream) bool{send(first), send(resumed)}, tries: 2,
			want: PartLoaded{UFSRequests: 4, UFSBytes: 170, Refetched: api.Refetched{Retry: 10, Lost: 65}, Failed: 2},
		},
		"so was the controller": {
			runs: []func(*api.Stream) bool{send(resumed)}, tries: 1, told: &partTally{Last: first},
			want: PartLoaded{UFSRequests: 4, UFSBytes: 170, Refetched: api.Refetched{Retry: 10, Lost: 65}, Failed: 2},
		},
		"and before it had told anybody": {
			runs: []func(*api.Stream) bool{send(resumed)}, tries: 1,
			want: PartLoaded{UFSRequests: 4, UFSBytes: 170, Refetched: api.Refetched{Retry: 10, Lost: 65}, Failed: 2},
		},
		"it was away, and knows what it had spent": {
			runs: []func(*api.Stream) bool{send(resumed)}, tries: 1, in: PartInput{Had: 95, Told: spent},
			want: PartLoaded{UFSRequests: 2, UFSBytes: 70, Refetched: api.Refetched{Lost: 65}, Failed: 2},
		},
		"it was away, and what was evicted since is no death": {
			runs: []func(*api.Stream) bool{send(evicted)}, tries: 1, in: PartInput{Had: 95, Told: spent},
			want: PartLoaded{UFSRequests: 2, UFSBytes: 70, Refetched: api.Refetched{Lost: 72}, Failed: 2, Evicted: 7},
		},
		"it was away, and goes away again": {
			runs: []func(*api.Stream) bool{func(*api.Stream) bool { return false }}, tries: lostTries, in: PartInput{Had: 95, Told: spent},
			want: PartLoaded{Lost: true, Had: 95, Told: spent},
		},
		"it was away, and knows nothing": {
			runs: []func(*api.Stream) bool{send(restarted)}, tries: 1, in: PartInput{Had: 95, Told: spent},
			want: PartLoaded{UFSRequests: 1, UFSBytes: 40, Refetched: api.Refetched{Lost: 35}, Failed: 2},
		},
		"it was away, and has it all": {
			runs: []func(*api.Stream) bool{send(restarted)}, tries: 1, in: PartInput{Had: 60},
			want: PartLoaded{UFSRequests: 1, UFSBytes: 40, Failed: 2},
		},
		"it was away, and lost some": {
			runs: []func(*api.Stream) bool{send(restarted)}, tries: 1, in: PartInput{Had: 100},
			want: PartLoaded{UFSRequests: 1, UFSBytes: 40, Refetched: api.Refetched{Lost: 40}, Failed: 2},
		},
		"it goes away": {
			runs: []func(*api.Stream) bool{send(first), func(*api.Stream) bool { return false }}, tries: lostTries,
			want: PartLoaded{UFSRequests: 2, UFSBytes: 100, Refetched: api.Refetched{Retry: 10}, Lost: true, Had: 95, Told: spent},
		},
		"it was never there": {
			runs: []func(*api.Stream) bool{func(*api.Stream) bool { return false }}, tries: lostTries, in: PartInput{Had: 42},
			want: PartLoaded{Lost: true, Had: 42},
		},
		"it refuses": {
			runs: []func(*api.Stream) bool{func(s *api.Stream) bool {
				s.Fail(context.Background(), stoker.Errorf(stoker.KindNoSpace, "load", "", "the space was given back"))
				return true
			}}, tries: 1, fails: true, kind: stoker.KindNoSpace,
		},
		"no such part": {in: PartInput{Part: 99}, fails: true, kind: stoker.KindInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			x := newCluster(t, 1)
			id, _ := x.planned(t, PlanInput{})
			c.in.Plan = id
			x.workers[0].load = func(n int, s *api.Stream) bool { return c.runs[min(n, len(c.runs))-1](s) }
			got, err := x.loadPart(t.Context(), c.in, c.told)
			if (err != nil) != c.fails || err != nil && stoker.KindOf(err) != c.kind {
				t.Fatalf("%v", err)
			}
			if got != c.want || x.workers[0].count("load") != c.tries {
				t.Errorf("got  %+v in %d tries\nwant %+v in %d", got, x.workers[0].count("load"), c.want, c.tries)
			}
		})
	}
}

// When nobody needs it any more, the load is stopped on its worker. When Temporal
// is away, or the controller stops, it goes on, and the next try follows it.
func TestCancelledLoadPart(t *testing.T) {
	for _, c := range []struct {
		cause error
		stops int
		kind  stoker.Kind
	}{
		{temporal.NewCanceledError(), 1, stoker.KindInternal},
		{context.Canceled, 0, stoker.KindTransient},
		{serviceerror.NewUnavailable("away"), 0, stoker.KindTransient},
	} {
		x := newCluster(t, 1)
		id, _ := x.planned(t, PlanInput{})
		ctx, cancel := context.WithCancelCause(t.Context())
		served, stop := context.WithCancel(context.Background())
		x.workers[0].load = func(_ int, s *api.Stream) bool {
			_ = s.Send(api.Event{Load: &api.LoadProgress{Run: "1"}})
			cancel(c.cause)
			<-served.Done()
			return false
		}
		_, err := x.loadPart(ctx, PartInput{Plan: id}, nil)
		if cancelled := err != nil && err.Error() == context.Canceled.Error(); cancelled != (c.stops > 0) || stoker.KindOf(err) != c.kind {
			t.Errorf("%v: %v", c.cause, err)
		}
		if x.workers[0].count("stop 0") != c.stops {
			t.Errorf("%v: the worker was asked %v", c.cause, x.workers[0].asked)
		}
		stop()
	}
}

// What was heard stands in the heartbeats, and nothing large with it.
func TestTallyForgetsNames(t *testing.T) {
	var tally partTally
	tally.hear(api.LoadProgress{Run: "1", Failed: make([]api.Failure, 1000), FailedObjects: 1000})
	if tally.Last.Failed != nil || tally.sum(false).Failed != 1000 {
		t.Errorf("%+v", tally)
	}
}

// awaitReturn runs the activity as Temporal does.
func (c *cluster) awaitReturn(ctx context.Context, in AwaitInput) (back bool, err error) {
	var suite testsuite.WorkflowTestSuite
	suite.SetLogger(log.NewStructuredLogger(slog.New(slog.DiscardHandler)))
	env := suite.NewTestActivityEnvironment()
	env.SetWorkerOptions(worker.Options{BackgroundActivityContext: ctx})
	env.RegisterActivity(c.AwaitReturn)
	v, err := env.ExecuteActivity(c.AwaitReturn, in)
	if err == nil {
		err = v.Get(&back)
	}
	return back, FromTemporal("", "", err)
}

func TestAwaitReturn(t *testing.T) {
	c := newCluster(t, 1)
	id, _ := c.planned(t, PlanInput{})
	if back, err := c.awaitReturn(t.Context(), AwaitInput{Plan: id, Until: time.Now()}); !back || err != nil {
		t.Errorf("it is there: %v, %v", back, err)
	}
	c.workers[0].ID = "a stranger" // at the same address
	if back, err := c.awaitReturn(t.Context(), AwaitInput{Plan: id, Until: time.Now().Add(-time.Second)}); back || err != nil {
		t.Errorf("another one is there: %v, %v", back, err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(temporal.NewCanceledError())
	if _, err := c.awaitReturn(ctx, AwaitInput{Plan: id, Until: time.Now().Add(time.Hour)}); err == nil || err.Error() != context.Canceled.Error() {
		t.Errorf("cancelled: %v", err)
	}
}

// What a worker has, and was promised, of the plan itself is no space for more.
func TestMendCountsWhatIsPromised(t *testing.T) {
	c := newCluster(t, 3)
	id, plan := c.planned(t, PlanInput{})
	for _, w := range plan.Workers[1:] {
		st := &c.worker(w.ID).status
		st.UsedBytes, st.ReservedBytes = st.CapacityBytes/2, st.CapacityBytes/2
		st.Manifests = []api.ManifestHolding{{Manifest: c.manifest, Bytes: st.UsedBytes, Holders: []string{"job"}}}
	}
	m, err := c.Mend(t.Context(), MendInput{Plan: id, Round: 99})
	if err != nil || !m.Moved.IsZero() || m.Kept.IsZero() {
		t.Errorf("nobody has space, and it moves: %+v, %v", m, err)
	}
}

// What a lost worker had not begun, as far as the index knows, moves to live
// ones; what it had begun waits for it, or moves when it will not come.
func TestMend(t *testing.T) {
	c := newCluster(t, 4)
	id, plan := c.planned(t, PlanInput{})
	lost := c.worker(plan.Workers[0].ID)
	mine := plan.Part(0)
	if len(mine) < 3 {
		t.Fatalf("the part has %d shards: the test tries nothing", len(mine))
	}
	mended := func(in MendInput) Mended {
		t.Helper()
		in.Plan, in.Round = id, 99
		m, err := c.Mend(t.Context(), in)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	if m := mended(MendInput{}); m.Moved.IsZero() || len(m.Parts) == 0 || !m.Kept.IsZero() {
		t.Errorf("it had begun nothing: %+v", m)
	}
	c.index.err = stoker.Errorf(stoker.KindTransient, "index", "", "nobody listens there")
	if m := mended(MendInput{}); !m.Moved.IsZero() || len(m.Parts) != 0 || m.Kept.IsZero() {
		t.Errorf("nobody knows what it had begun: %+v", m)
	}
	c.index.err = nil
	marks := []placement.Mark{{Shard: mine[0], Whole: true}, {Shard: mine[1]}}
	if err := c.index.Announce(t.Context(), lost.Incarnation, c.manifest, marks); err != nil {
		t.Fatal(err)
	}
	if err := c.index.Register(t.Context(), lost.Worker, -time.Second); err != nil {
		t.Fatal(err)
	}
	lost.server.Close()
	m := mended(MendInput{})
	moved, err := c.LoadPlan(t.Context(), m.Moved)
	if err != nil {
		t.Fatal(err)
	}
	kept, err := c.LoadPlan(t.Context(), m.Kept)
	if err != nil {
		t.Fatal(err)
	}
	if len(moved.Mended) != len(mine)-2 || len(kept.Mended) != 2 || kept.Mended[0] != mine[0] || len(moved.Part(0)) != 0 || moved.Round != 99 || len(m.Parts) == 0 {
		t.Errorf("of %v moved %v, kept %v, parts %v", mine, moved.Mended, kept.Mended, m.Parts)
	}
	if m := mended(MendInput{All: true}); m.Moved.IsZero() || !m.Kept.IsZero() {
		t.Errorf("it will not come back: %+v", m)
	}
}
