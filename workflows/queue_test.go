package workflows

import (
	"slices"
	"strings"
	"testing"
	"time"

	"stoker.dev/activities"
	"stoker.dev/internal/api"
)

func wait(why string) activities.Admission {
	return activities.Admission{State: activities.AdmitWait, NeedBytes: 300, FreeBytes: 200, Why: why}
}

// waitingClaim is that of a job, some minutes old.
func waitingClaim(job string, age time.Duration) activities.WaitingClaim {
	return activities.WaitingClaim{Job: job, Owner: "ann", Run: "run-" + job, Submitted: start.Add(-age), Datasets: []activities.AdmitDataset{{Dataset: "d", Manifest: id(1)}}}
}

func (w *world) enqueueAs(c activities.WaitingClaim, try string) {
	w.UpdateWorkflow(enqueueUpdate, "enqueue-"+c.Run+try, &answer{t: w.t, what: "enqueue of " + c.Job}, activities.EnqueueInput{Claim: c, Why: wait("no space")})
}

func (w *world) dequeueAs(job string) {
	w.UpdateWorkflow(dequeueUpdate, "dequeue-run-"+job, &answer{t: w.t, what: "dequeue of " + job}, activities.DequeueInput{Job: job, Run: "run-" + job})
}

func (w *world) runQueue() {
	w.t.Helper()
	w.SetStartTime(start)
	w.ExecuteWorkflow(Queue, QueueInput{Cluster: "c"})
	w.finished()
}

// inOrder are the jobs that had their turn, in order.
func (w *world) inOrder() (jobs []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, l := range w.log {
		if job, ok := strings.CutPrefix(l, "turn "); ok {
			jobs = append(jobs, job)
		}
	}
	return jobs
}

// Claims have their turns by priority, then deadline, then age, one at a time,
// and none while the first does not fit.
func TestQueueOrder(t *testing.T) {
	w := newWorld(t)
	full := true
	w.admit = func(_ int, in activities.AdmitInput) (activities.Admission, error) {
		if !in.Head || full && in.Claim.Job != "urgent" {
			t.Errorf("%s is tried while another one is first", in.Claim.Job)
		}
		if full {
			return wait("held by x"), nil
		}
		return activities.Admission{State: activities.AdmitNow}, nil
	}
	running := ""
	w.onTurn = func(job string) {
		if running != "" {
			t.Errorf("%s has its turn in that of %s", job, running)
		}
		running = job
		w.at(time.Minute, func() { running = ""; w.dequeueAs(job) })
	}
	urgent, soon, later := waitingClaim("urgent", 0), waitingClaim("soon", 0), waitingClaim("later", time.Hour)
	urgent.Priority, soon.Deadline, later.Deadline = 7, start.Add(time.Hour), start.Add(2*time.Hour)
	w.at(0, func() {
		for _, c := range []activities.WaitingClaim{waitingClaim("new", 0), waitingClaim("old", time.Minute), later, soon, urgent} {
			w.enqueueAs(c, "")
		}
	})
	var s QueueState
	w.at(5*time.Minute, func() { w.query(&s); full = false })
	w.runQueue()
	if got := w.inOrder(); !slices.Equal(got, []string{"urgent", "soon", "later", "old", "new"}) {
		t.Errorf("in this order: %v", got)
	}
	if len(s.Waiting) != 5 || s.Waiting[0].Claim.Job != "urgent" || s.Waiting[0].Why.Why != "held by x" || s.Waiting[4].Claim.Job != "new" {
		t.Errorf("%+v", s)
	}
	if n := w.count("Admit"); n < 30 || n > 40 {
		t.Errorf("in 5 minutes it was tried %d times", n)
	}
}

// Whoever does not use its turn does not keep the others: one that is gone, one
// that hangs, one that can never fit, one that was refused, one that left.
func TestQueueGoesOn(t *testing.T) {
	for name, c := range map[string]struct {
		first func(w *world)
		again bool // the first comes again, and is served
	}{
		"gone":  {first: func(w *world) { w.gone["first"] = true }},
		"hangs": {first: func(*world) {}},
		"never": {first: func(w *world) {
			w.admit = func(_ int, in activities.AdmitInput) (activities.Admission, error) {
				if in.Claim.Job == "first" {
					return activities.Admission{State: activities.AdmitNever, Why: "too large"}, nil
				}
				return activities.Admission{State: activities.AdmitNow}, nil
			}
		}},
		"left": {first: func(w *world) { w.at(2*time.Second, func() { w.dequeueAs("first") }) }},
		"refused": {again: true, first: func(w *world) {
			w.at(3*time.Second, func() { w.enqueueAs(waitingClaim("first", time.Hour), "-1") })
			w.at(time.Minute, func() { w.dequeueAs("first") })
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			c.first(w)
			w.at(0, func() { w.enqueueAs(waitingClaim("second", 0), ""); w.enqueueAs(waitingClaim("first", time.Hour), "") })
			w.onTurn = func(job string) {
				if job == "second" {
					w.dequeueAs(job)
				}
			}
			w.runQueue()
			turns := w.inOrder()
			if n := len(turns); n == 0 || turns[n-1] != "second" || c.again && !slices.Equal(turns, []string{"first", "first", "second"}) {
				t.Errorf("%v", turns)
			}
			if a := w.turns["first"]; name == "never" && (len(a) != 1 || a[0].State != activities.AdmitNever) {
				t.Errorf("it was told %+v", a)
			}
		})
	}
}

// whole plays the datasets of a claim: each is granted or refused.
func (w *world) whole(n byte, try int, state string) {
	run := "default-test-run-id"
	if try > 0 {
		run += "/1"
	}
	var why *api.ErrorBody
	if state == api.JobQueued {
		why = &api.ErrorBody{Kind: "nospace", Message: "the worker is full"}
	}
	w.SignalWorkflow(newsSignal, news{Manifest: id(n), Run: run, Outcome: Outcome{State: state, Error: why}})
}

// A claim of two datasets of which one gets no space lets go of both, waits for
// its turn without holding any, and joins both again then. What it is told late
// about the first try counts for nothing.
func TestAllDatasetsOrNone(t *testing.T) {
	w := newWorld(t)
	var waits, warms JobState
	held := func() (n int) { return w.count("Join") - w.count("Leave") }
	w.at(time.Second, func() { w.whole(1, 0, api.JobWarming); w.whole(1, 0, api.JobReady) })
	w.at(2*time.Second, func() { w.whole(2, 0, api.JobQueued) })
	w.at(10*time.Second, func() {
		w.query(&waits)
		if held() != 0 || w.count("Enqueue") != 1 {
			t.Errorf("it waits with %d datasets: %s", held(), w.story())
		}
		w.whole(1, 0, api.JobReady)
		w.whole(2, 0, api.JobReady)
	})
	w.at(time.Hour, func() { w.SignalWorkflow(turnSignal, activities.Admission{State: activities.AdmitNow}) })
	w.at(time.Hour+10*time.Second, func() { w.whole(1, 1, api.JobWarming); w.whole(2, 1, api.JobReady) })
	w.at(time.Hour+time.Minute, func() {
		w.query(&warms)
		if held() != 2 || w.count("Dequeue") != 1 {
			t.Errorf("after its turn: %s", w.story())
		}
		w.whole(1, 1, api.JobReady)
	})
	w.at(2*time.Hour, func() { w.SignalWorkflow(releaseSignal, nil) })
	s := w.runJobOf(claim(OnMissWait, never, 1, 2))
	if !waits.Queued || waits.State != api.JobPlanned || warms.Queued || warms.State != api.JobPlanned || s.State != api.JobReleased || s.Cancelled {
		t.Errorf("%+v\n%+v\n%+v", waits, warms, s)
	}
	for i, in := range inputsOf[activities.JoinInput](w, "Join") {
		if !in.Whole || strings.HasSuffix(in.Run, "/1") != (i >= 2) {
			t.Errorf("join %d: %+v", i, in)
		}
	}
	if e := inputsOf[activities.EnqueueInput](w, "Enqueue")[0]; len(e.Claim.Datasets) != 2 || e.Why.Why != "the worker is full" || e.Try != 1 {
		t.Errorf("it waits as %+v", e)
	}
}

// What does not fit at once waits and has joined nothing; what never will is
// refused, at once or when it turns out.
func TestClaimWithoutSpace(t *testing.T) {
	never := activities.Admission{State: activities.AdmitNever, Why: "needs 3 TiB, all workers together hold 2 TiB"}
	for name, c := range map[string]struct {
		first, later activities.Admission
		release      bool
		onMiss       string
		want         string
	}{
		"never":                  {first: never, onMiss: OnMissWait, want: api.JobFailed},
		"never, starts anyway":   {first: never, onMiss: OnMissStart, release: true, want: api.JobReleased},
		"never, when it waited":  {first: wait("held"), later: never, onMiss: OnMissWait, want: api.JobFailed},
		"cancelled in the queue": {first: wait("held"), release: true, onMiss: OnMissWait, want: api.JobReleased},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.admit = func(int, activities.AdmitInput) (activities.Admission, error) { return c.first, nil }
			var before JobState
			w.at(time.Minute, func() { w.query(&before) })
			if c.later.State != "" {
				w.at(2*time.Minute, func() { w.SignalWorkflow(turnSignal, c.later) })
			}
			if c.release {
				w.at(3*time.Minute, func() { w.SignalWorkflow(releaseSignal, nil) })
			}
			s := w.runJobOf(claim(c.onMiss, -1, 1, 2))
			if s.State != c.want || w.count("Join") != 0 {
				t.Errorf("%+v: %s", s, w.story())
			}
			if waited := c.first.State == activities.AdmitWait; waited != (w.count("Enqueue") == 1) || waited != (w.count("Dequeue") == 1) {
				t.Errorf("%s", w.story())
			}
			if c.onMiss == OnMissStart && (before.State != api.JobDegraded || before.Error == nil) {
				t.Errorf("it does not start: %+v", before)
			}
			if s.State == api.JobFailed && (s.Error.Kind != "nospace" || s.Error.Message != never.Why) {
				t.Errorf("%+v", s.Error)
			}
		})
	}
}

// A dataset tells claims that want all or none whether it has its space, once.
func TestDatasetHints(t *testing.T) {
	w := newWorld(t)
	w.space = func(n int, _ activities.ReserveInput) error {
		if n == 1 {
			return noSpace()
		}
		return nil
	}
	w.takes["LoadPart"] = 10 * time.Minute
	whole := func(job string) activities.JoinInput {
		in := joining(job)
		in.Whole = true
		return in
	}
	w.at(0, func() { w.joinAs(whole("a")); w.joinAs(joining("plain")) })
	w.at(2*time.Second, func() { w.leaveAs("a") })
	w.at(time.Minute, func() { w.joinAs(whole("b")) }) // in mid-load
	w.at(time.Hour, func() { w.leaveAs("b"); w.leaveAs("plain") })
	w.runDataset()
	states := func(job string) (s []string) {
		for _, o := range w.outcomes(job) {
			s = append(s, o.State)
		}
		return s
	}
	if a, b, plain := states("a"), states("b"), states("plain"); !slices.Equal(a, []string{api.JobQueued}) ||
		!slices.Equal(b, []string{api.JobWarming, api.JobReady}) || !slices.Equal(plain, []string{api.JobReady}) {
		t.Errorf("told: %v, %v, %v", a, b, plain)
	}
}

// A claim that fits by what can be told, and is refused by the workers all the
// same, is not tried more often than one that does not fit.
func TestRefusedTurnsAreNotRepeatedAtOnce(t *testing.T) {
	w := newWorld(t)
	tries := 0
	w.onTurn = func(job string) {
		if tries++; w.Now().Sub(start) < 5*time.Minute {
			w.enqueueAs(waitingClaim(job, 0), "-"+strings.Repeat("x", tries))
			return
		}
		w.dequeueAs(job)
	}
	w.at(0, func() { w.enqueueAs(waitingClaim("j", 0), "") })
	w.runQueue()
	if tries < 20 || tries > 32 {
		t.Errorf("it had %d turns in 5 minutes", tries)
	}
}
