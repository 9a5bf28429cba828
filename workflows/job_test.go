package workflows

import (
	"slices"
	"testing"
	"time"

	"go.temporal.io/sdk/temporal"

	"stoker.dev"
	"stoker.dev/activities"
	"stoker.dev/internal/api"
)

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func claim(onMiss string, deadline time.Duration, datasets ...byte) JobInput {
	in := JobInput{Cluster: "c", Job: "j", Owner: "ann", OnMiss: onMiss, Submitted: start}
	if deadline >= 0 {
		in.Deadline = start.Add(deadline)
	}
	if len(datasets) == 0 {
		datasets = []byte{1}
	}
	for _, n := range datasets {
		in.Datasets = append(in.Datasets, JobDataset{Name: "d", Generation: 1, Manifest: id(n)})
	}
	return in
}

const never = -1 // no deadline

func (w *world) news(state string, why *api.ErrorBody) {
	w.SignalWorkflow(newsSignal, news{Manifest: id(1), Outcome: Outcome{State: state, Error: why}})
}

// runJob runs a claim to its end, and checks that it left each of its datasets.
func (w *world) runJob(in JobInput) JobState {
	w.t.Helper()
	s := w.runJobOf(in)
	var left []stoker.ID
	for _, l := range inputsOf[activities.LeaveInput](w, "Leave") {
		if l.Job != "j" || l.Run == "" {
			w.t.Errorf("left with %+v", l)
		}
		if !slices.Contains(left, l.Manifest) {
			left = append(left, l.Manifest)
		}
	}
	if len(left) != len(in.Datasets) {
		w.t.Errorf("the job left %d of %d datasets", len(left), len(in.Datasets))
	}
	return s
}

// runJobOf runs a claim to its end.
func (w *world) runJobOf(in JobInput) (s JobState) {
	w.t.Helper()
	w.SetStartTime(start)
	w.ExecuteWorkflow(Job, in)
	w.finished()
	if err := w.GetWorkflowResult(&s); err != nil {
		w.t.Fatal(err)
	}
	return s
}

func TestJobLives(t *testing.T) {
	w := newWorld(t)
	states := map[time.Duration]string{}
	look := func(after time.Duration) {
		w.at(after, func() {
			var s JobState
			w.query(&s)
			states[after] = s.State
		})
	}
	look(time.Minute)
	w.at(2*time.Minute, func() { w.news(api.JobReady, nil) })
	look(3 * time.Minute)
	w.at(4*time.Minute, func() { w.SignalWorkflow(startedSignal, nil) })
	look(5 * time.Minute)
	w.at(time.Hour, func() { w.SignalWorkflow(releaseSignal, nil) })
	s := w.runJob(claim(OnMissStart, never))
	if s.State != api.JobReleased || s.Cancelled || s.Error != nil {
		t.Errorf("%+v", s)
	}
	for after, want := range map[time.Duration]string{time.Minute: api.JobPlanned, 3 * time.Minute: api.JobReady, 5 * time.Minute: api.JobLeased} {
		if states[after] != want {
			t.Errorf("after %s it is %q, want %s", after, states[after], want)
		}
	}
	joins := inputsOf[activities.JoinInput](w, "Join")
	if len(joins) != 1 || joins[0].Manifest != id(1) || joins[0].Job != "j" || joins[0].Owner != "ann" || joins[0].Run == "" || joins[0].Preload {
		t.Errorf("joined with %+v", joins)
	}
}

// A preload of one dataset leaves it when it is served, if the dataset's workflow
// knows how; one of several holds all of them until the last is Ready.
func TestPreloadLeavesOnce(t *testing.T) {
	for name, c := range map[string]struct {
		datasets []byte
		left     bool // so the dataset's workflow says
		leaves   int
	}{
		"it has left":      {[]byte{1}, true, 0},
		"an older release": {[]byte{1}, false, 1},
		"several datasets": {[]byte{1, 2}, false, 2},
		"one of two left":  {[]byte{1, 2}, true, 1},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			in := claim(OnMissWait, never, c.datasets...)
			in.Preload = true
			for _, n := range c.datasets {
				w.at(time.Minute, func() {
					w.SignalWorkflow(newsSignal, news{Manifest: id(n), Left: c.left && n == 1, Outcome: Outcome{State: api.JobReady}})
				})
			}
			if s := w.runJobOf(in); s.State != api.JobReleased {
				t.Errorf("%+v", s)
			}
			joins, leaves := inputsOf[activities.JoinInput](w, "Join"), inputsOf[activities.LeaveInput](w, "Leave")
			if len(leaves) != c.leaves || joins[0].Leaves != (len(c.datasets) == 1) {
				t.Errorf("left %+v, joined %+v", leaves, joins)
			}
		})
	}
}

// What happens at the deadline, and to a load that has failed, is the user's
// choice.
func TestOnMiss(t *testing.T) {
	failed := &api.ErrorBody{Kind: "incomplete", Message: "1 of 2 objects are not resident"}
	for name, c := range map[string]struct {
		onMiss          string
		deadline, ready time.Duration // ready 0: the load fails after 10 minutes
		preload         bool
		after           time.Duration // when it is looked at
		want            string
		kind            string
		ends            bool // by itself
	}{
		"start, late":           {onMiss: OnMissStart, deadline: time.Minute, ready: time.Hour, after: 2 * time.Minute, want: api.JobDegraded},
		"start, at once":        {onMiss: OnMissStart, deadline: 0, ready: time.Hour, after: time.Second, want: api.JobDegraded},
		"start, ready too late": {onMiss: OnMissStart, deadline: time.Minute, ready: time.Hour, after: 2 * time.Hour, want: api.JobDegraded},
		"start, in time":        {onMiss: OnMissStart, deadline: time.Hour, ready: time.Minute, after: 2 * time.Hour, want: api.JobReady},
		"start, failed":         {onMiss: OnMissStart, deadline: never, after: 20 * time.Minute, want: api.JobDegraded, kind: "incomplete"},
		"wait, late":            {onMiss: OnMissWait, deadline: time.Minute, ready: time.Hour, after: 30 * time.Minute, want: api.JobPlanned},
		"wait, then ready":      {onMiss: OnMissWait, deadline: time.Minute, ready: time.Hour, after: 2 * time.Hour, want: api.JobReady},
		"wait, failed":          {onMiss: OnMissWait, deadline: never, want: api.JobFailed, kind: "incomplete", ends: true},
		"fail, late":            {onMiss: OnMissFail, deadline: time.Minute, ready: time.Hour, want: api.JobFailed, kind: "deadline", ends: true},
		"fail, in time":         {onMiss: OnMissFail, deadline: time.Hour, ready: time.Minute, after: 2 * time.Hour, want: api.JobReady},
		"fail, failed":          {onMiss: OnMissFail, deadline: never, want: api.JobFailed, kind: "incomplete", ends: true},
		"preload":               {onMiss: OnMissStart, preload: true, deadline: never, ready: time.Hour, want: api.JobReleased, ends: true},
		"preload, failed":       {onMiss: OnMissStart, preload: true, deadline: never, want: api.JobFailed, kind: "incomplete", ends: true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			if c.ready > 0 {
				w.at(c.ready, func() { w.news(api.JobReady, nil) })
			} else {
				w.at(10*time.Minute, func() { w.news(api.JobFailed, failed) })
			}
			var s JobState
			if !c.ends {
				w.at(c.after, func() { w.query(&s) })
				w.at(3*time.Hour, func() { w.SignalWorkflow(releaseSignal, nil) })
			}
			in := claim(c.onMiss, c.deadline)
			in.Preload = c.preload
			if end := w.runJob(in); c.ends {
				s = end
			} else if end.State != api.JobReleased {
				t.Errorf("released it is %s", end.State)
			}
			kind := ""
			if s.Error != nil {
				kind = s.Error.Kind
			}
			if s.State != c.want || kind != c.kind {
				t.Errorf("it is %s (%q), want %s (%q)", s.State, kind, c.want, c.kind)
			}
		})
	}
}

// A preload that does not fit is refused with the kind that says so.
func TestRefusedPreload(t *testing.T) {
	w := newWorld(t)
	w.at(time.Second, func() { w.news(api.JobFailed, &api.ErrorBody{Kind: "nospace", Message: "needs 3 TiB"}) })
	in := claim(OnMissStart, never)
	in.Preload, in.Replicas = true, 2
	s := w.runJob(in)
	if s.State != api.JobFailed || s.Error == nil || s.Error.Kind != "nospace" || s.Error.Message != "needs 3 TiB" {
		t.Errorf("%+v, %+v", s, s.Error)
	}
	if j := inputsOf[activities.JoinInput](w, "Join"); len(j) != 1 || !j[0].Preload || j[0].Replicas != 2 {
		t.Errorf("joined with %+v", j)
	}
}

// A claim that does not say how many replicas it wants, wants as many as each of its
// datasets is to have.
func TestReplicasOfAClaim(t *testing.T) {
	for _, said := range []int{0, 1} {
		w := newWorld(t)
		w.at(time.Second, func() { w.news(api.JobReady, nil) })
		in := claim(OnMissStart, never)
		in.Preload, in.Replicas, in.Datasets[0].Replicas = true, said, 3
		w.runJob(in)
		want := 3
		if said != 0 {
			want = said
		}
		if j := inputsOf[activities.JoinInput](w, "Join"); len(j) != 1 || j[0].Replicas != want {
			t.Errorf("saying %d it joins with %+v", said, j)
		}
		if a := inputsOf[activities.AdmitInput](w, "Admit"); len(a) > 0 && a[0].Claim.Replicas != want {
			t.Errorf("saying %d it asks for space with %+v", said, a[0].Claim)
		}
	}
}

// All datasets must be there.
func TestJobOfTwoDatasets(t *testing.T) {
	w := newWorld(t)
	var half JobState
	w.at(time.Second, func() { w.news(api.JobReady, nil) })
	w.at(time.Minute, func() { w.query(&half) })
	w.at(2*time.Minute, func() { w.SignalWorkflow(newsSignal, news{Manifest: id(2), Outcome: Outcome{State: api.JobReady}}) })
	var all JobState
	w.at(3*time.Minute, func() { w.query(&all) })
	w.at(4*time.Minute, func() { w.SignalWorkflow(newsSignal, news{Manifest: id(77), Outcome: Outcome{State: api.JobFailed}}) }) // not one of its own
	w.at(5*time.Minute, func() { w.SignalWorkflow(releaseSignal, nil) })
	if s := w.runJob(claim(OnMissWait, never, 1, 2)); s.State != api.JobReleased {
		t.Errorf("%+v", s)
	}
	if half.State != api.JobPlanned || all.State != api.JobReady {
		t.Errorf("with one of two it is %s, with both %s", half.State, all.State)
	}
}

// Whenever a claim ends, and by whatever, it leaves: also if its workflow is
// cancelled, and if the first tries fail.
func TestJobLeavesWheneverItEnds(t *testing.T) {
	release := func(w *world) { w.SignalWorkflow(releaseSignal, nil) }
	cancel := func(w *world) { w.CancelWorkflow() }
	for name, c := range map[string]struct {
		end        func(w *world)
		after      time.Duration
		cancelled  bool // the state says so
		joinsLong  bool
		leavesLate bool
	}{
		"released while it joins":           {end: release, after: time.Second, cancelled: true, joinsLong: true},
		"released before it is ready":       {end: release, after: time.Minute, cancelled: true},
		"released when it is ready":         {end: release, after: 3 * time.Minute},
		"released when it runs":             {end: release, after: 5 * time.Minute},
		"cancelled while it joins":          {end: cancel, after: time.Second, cancelled: true, joinsLong: true},
		"cancelled before it is ready":      {end: cancel, after: time.Minute, cancelled: true},
		"cancelled when it is ready":        {end: cancel, after: 3 * time.Minute},
		"cancelled when it runs":            {end: cancel, after: 5 * time.Minute},
		"cancelled, and Temporal is busy":   {end: cancel, after: 5 * time.Minute, leavesLate: true},
		"released, and the dataset is busy": {end: release, after: time.Minute, cancelled: true, leavesLate: true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			if c.joinsLong {
				w.takes["Join"] = time.Hour
			}
			if c.leavesLate {
				w.leave = func(n int) error {
					if n < 9 { // the tests' Temporal gives up after 10
						return stoker.Errorf(stoker.KindTransient, "leave", "", "busy")
					}
					return nil
				}
			}
			w.at(2*time.Minute, func() { w.news(api.JobReady, nil) })
			w.at(4*time.Minute, func() { w.SignalWorkflow(startedSignal, nil) })
			w.at(c.after, func() { c.end(w) })
			if s := w.runJob(claim(OnMissWait, never)); s.State != api.JobReleased || s.Cancelled != c.cancelled {
				t.Errorf("%s, cancelled %v", s.State, s.Cancelled)
			}
			if n := w.count("Leave"); c.leavesLate != (n == 9) {
				t.Errorf("left after %d tries", n)
			}
		})
	}
}

// A claim that nobody renews ends; one silence after a long life is forgiven.
func TestUnrenewedClaimEnds(t *testing.T) {
	for name, c := range map[string]struct {
		life  []time.Duration // of each hold
		holds int
		end   time.Duration
	}{
		"never renewed":     {[]time.Duration{holdSilence, holdSilence}, 2, 40 * time.Second},
		"lived, then ended": {[]time.Duration{time.Hour, holdSilence, holdSilence}, 2, time.Hour + 20*time.Second},
		"an outage":         {[]time.Duration{time.Hour, time.Hour, holdSilence}, 3, 2*time.Hour + 20*time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			n := 0
			w.holds = func() time.Duration { n++; return c.life[min(n, len(c.life))-1] }
			s := w.runJob(claim(OnMissWait, never))
			if s.State != api.JobReleased || n != c.holds || w.Now().Sub(start) != c.end {
				t.Errorf("%s after %s and %d holds, want %d and %s", s.State, w.Now().Sub(start), n, c.holds, c.end)
			}
		})
	}
	t.Run("a preload needs no renewal", func(t *testing.T) {
		w := newWorld(t)
		w.at(time.Hour, func() { w.news(api.JobReady, nil) })
		in := claim(OnMissStart, never)
		in.Preload = true
		if s := w.runJob(in); s.State != api.JobReleased || s.Cancelled || w.count("Hold") != 0 {
			t.Errorf("%+v, %d holds", s, w.count("Hold"))
		}
	})
}

// A dataset that cannot be joined has failed, with the kind of the reason.
func TestJobThatCannotJoin(t *testing.T) {
	w := newWorld(t)
	w.join = func(n int) error { return stoker.Errorf(stoker.KindInvalid, "join", "d", "no such thing") }
	s := w.runJob(claim(OnMissFail, never))
	if s.State != api.JobFailed || s.Error == nil || s.Error.Kind != "invalid" || s.Error.Message != "join d: no such thing" || w.count("Join") != 1 {
		t.Errorf("%s, %+v, %d tries", s.State, s.Error, w.count("Join"))
	}
	w = newWorld(t)
	w.join = func(n int) error {
		if n < 4 {
			return stoker.Errorf(stoker.KindTransient, "join", "d", "Temporal is busy")
		}
		return nil
	}
	w.at(time.Hour, func() { w.CancelWorkflow() })
	if s := w.runJob(claim(OnMissFail, never)); s.State != api.JobReleased || w.count("Join") != 4 {
		t.Errorf("%s after %d tries", s.State, w.count("Join"))
	}
	if temporal.IsCanceledError(w.GetWorkflowError()) {
		t.Error("a cancelled claim ends as one that was let go")
	}
}
