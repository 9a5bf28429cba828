package workflows

import (
	"slices"
	"testing"
	"time"

	"stoker.dev/activities"
	"stoker.dev/internal/api"
)

// wishes are what the workers were told, without what was told again.
func (w *world) wishes() (out []api.LoadWish) {
	for _, in := range inputsOf[activities.LeaseInput](w, "PutLeases") {
		out = append(out, in.Wishes...)
	}
	return slices.Compact(out)
}

func wishing(job string, limit int64, priority int) activities.JoinInput {
	in := joining(job)
	in.Preload, in.LimitBytes, in.Priority = true, limit, priority
	return in
}

func (w *world) wishAs(in activities.WishInput) {
	in.Manifest, in.Run = id(1), "run-"+in.Job
	w.UpdateWorkflow(wishUpdate, "wish-"+in.Job+w.Now().String(), &answer{t: w.t, what: "wish of " + in.Job}, in)
}

// The workers hear what those who wait wish together, at each join, change and
// leave: the highest limit, none if one has none, and the highest rank.
func TestWishesOfAllWhoWait(t *testing.T) {
	w := newWorld(t)
	w.takes["LoadPart"] = time.Hour
	soon := start.Add(30 * time.Minute)
	w.at(0, func() { w.joinAs(wishing("a", 5<<20, 0)) })
	w.at(1*time.Minute, func() { w.joinAs(wishing("b", 9<<20, -3)) })
	w.at(2*time.Minute, func() { w.joinAs(wishing("c", 0, 7)) })
	w.at(3*time.Minute, func() { w.leaveAs("c") })
	w.at(4*time.Minute, func() {
		w.wishAs(activities.WishInput{Job: "b", LimitBytes: 2 << 20, Priority: 4, Deadline: soon})
	})
	w.at(5*time.Minute, func() { w.wishAs(activities.WishInput{Job: "gone", LimitBytes: 1}) })
	w.at(3*time.Hour, func() { w.leaveAs("a"); w.leaveAs("b") })
	w.runDataset()
	w.wantTold("a", api.JobReady, "")
	wish := func(limit int64, priority int, deadline time.Time) api.LoadWish {
		return api.LoadWish{Manifest: id(1), LimitBytesPerSecond: limit, Rank: rank(priority, deadline)}
	}
	none := time.Time{}
	want := []api.LoadWish{wish(5<<20, 0, none), wish(9<<20, 0, none), wish(0, 7, none), wish(9<<20, 0, none), wish(5<<20, 4, soon), wish(0, 0, none)}
	if got := w.wishes(); !slices.Equal(got, want) {
		t.Errorf("told\n%+v, want\n%+v", got, want)
	}
	if r := rank(0, soon); r <= rank(0, soon.Add(time.Second)) || rank(0, soon.AddDate(90, 0, 0)) <= 0 || r >= rank(1, none) {
		t.Error("ranks are not in order")
	}
}

// One who is served wishes nothing any more: the load that follows for others has
// their wish.
func TestWishesOfThoseWhoWaitOn(t *testing.T) {
	w := newWorld(t)
	w.takes["LoadPart"] = 10 * time.Minute
	a, b := wishing("a", 0, 0), wishing("b", 3<<20, 0)
	b.Replicas = 2
	w.at(0, func() { w.joinAs(a) })
	w.at(time.Minute, func() { w.joinAs(b) }) // together they could be one load
	w.at(time.Hour, func() { w.leaveAs("a"); w.leaveAs("b") })
	w.runDataset()
	got := w.wishes()
	if len(got) < 2 || got[0].LimitBytesPerSecond != 0 || !slices.ContainsFunc(got, func(x api.LoadWish) bool { return x.LimitBytesPerSecond == 3<<20 }) {
		t.Errorf("told %+v", got)
	}
}

func (w *world) changeAs(c Change) (a *answer) {
	a = &answer{t: w.t, what: "change"}
	w.UpdateWorkflow(changeUpdate, "change"+w.Now().String(), a, c)
	return a
}

// A claim that is changed tells its datasets, its deadline is another, and one that
// waits in the queue stands elsewhere in it.
func TestChangedClaim(t *testing.T) {
	for name, c := range map[string]struct {
		deadline time.Duration // the new one, from the start; 0: none any more
		state    string        // after five minutes
	}{
		"later":   {10 * time.Minute, api.JobPlanned},
		"sooner":  {3 * time.Minute, api.JobDegraded},
		"no more": {0, api.JobPlanned},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			priority, limit, at := 9, int64(4<<20), time.Time{}
			if c.deadline > 0 {
				at = start.Add(c.deadline)
			}
			w.at(time.Minute, func() { w.changeAs(Change{Priority: &priority, LimitBytes: &limit, Deadline: &at}) })
			w.at(5*time.Minute, func() {
				var s JobState
				w.query(&s)
				if s.State != c.state || s.Input.Priority != 9 || s.Input.LimitBytes != limit {
					t.Errorf("%s: %+v", s.State, s.Input)
				}
			})
			w.at(20*time.Minute, func() { w.SignalWorkflow(releaseSignal, nil) })
			w.SetStartTime(start)
			in := JobInput{Cluster: "c", Job: "j", Owner: "ann", OnMiss: OnMissStart, Submitted: start, Deadline: start.Add(4 * time.Minute),
				Datasets: []JobDataset{{Name: "d", Generation: 1, Manifest: id(1)}}}
			w.ExecuteWorkflow(Job, in)
			w.finished()
			told := inputsOf[activities.WishInput](w, "Wish")
			if len(told) != 1 || told[0].Job != "j" || told[0].Manifest != id(1) || told[0].Priority != 9 || told[0].LimitBytes != limit || !told[0].Deadline.Equal(at) {
				t.Errorf("its dataset was told %+v", told)
			}
		})
	}
}

func TestChangedPlaceInTheQueue(t *testing.T) {
	w := newWorld(t)
	full := true
	w.admit = func(int, activities.AdmitInput) (activities.Admission, error) {
		if full {
			return wait("held by x"), nil
		}
		return activities.Admission{State: activities.AdmitNow}, nil
	}
	w.onTurn = w.dequeueAs
	w.at(0, func() { w.enqueueAs(waitingClaim("old", time.Hour), ""); w.enqueueAs(waitingClaim("new", 0), "") })
	w.at(time.Minute, func() {
		c := waitingClaim("new", 0)
		c.Priority = 1
		w.UpdateWorkflow(changeUpdate, "change", &answer{t: t, what: "change"}, c)
	})
	w.at(2*time.Minute, func() { full = false })
	w.runQueue()
	if got := w.inOrder(); !slices.Equal(got, []string{"new", "old"}) {
		t.Errorf("in this order: %v", got)
	}
}

// A command that began before its data was there is ended neither by the deadline nor
// by an object that cannot be had: the claim goes on, as it would without on-miss fail.
func TestStartedEarly(t *testing.T) {
	for outcome, want := range map[string]string{api.JobReady: api.JobLeased, api.JobFailed: api.JobDegraded} {
		t.Run(outcome, func(t *testing.T) {
			w := newWorld(t)
			states := map[time.Duration]*JobState{3 * time.Minute: {}, 5 * time.Minute: {}}
			for at, s := range states {
				w.at(at, func() { w.query(s) })
			}
			w.at(time.Minute, func() { w.SignalWorkflow(startedSignal, nil) })
			w.at(4*time.Minute, func() {
				o := Outcome{State: outcome}
				if outcome == api.JobFailed {
					o.Error = &api.ErrorBody{Kind: "incomplete", Message: "1 of 9 objects are not resident"}
				}
				w.SignalWorkflow(newsSignal, news{Manifest: id(1), Outcome: o})
			})
			w.at(10*time.Minute, func() { w.SignalWorkflow(releaseSignal, nil) })
			w.SetStartTime(start)
			w.ExecuteWorkflow(Job, JobInput{Cluster: "c", Job: "j", Owner: "ann", OnMiss: OnMissFail, Submitted: start, Deadline: start.Add(2 * time.Minute),
				Datasets: []JobDataset{{Name: "d", Generation: 1, Manifest: id(1)}}})
			w.finished()
			if a, b := states[3*time.Minute].State, states[5*time.Minute].State; a != api.JobPlanned || b != want {
				t.Errorf("after the deadline it is %s, then %s, want %s", a, b, want)
			}
		})
	}
}
