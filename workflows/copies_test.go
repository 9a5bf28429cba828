package workflows

import (
	"slices"
	"testing"
	"time"

	"stoker.dev"
	"stoker.dev/activities"
	"stoker.dev/internal/api"
)

// copiesOf joins as a preload that wants so many copies.
func copiesOf(job string, n int) activities.JoinInput {
	in := joining(job)
	in.Preload, in.Replicas = true, n
	return in
}

// planned are the copies that plans were made for, in order.
func (w *world) planned() (copies []int) {
	for _, p := range inputsOf[activities.PlanInput](w, "Plan") {
		copies = append(copies, p.Replicas)
	}
	return copies
}

// Who wants more copies than a load brings that runs is served by the next one,
// which counts them; who wants fewer is served by it, or before it.
func TestJoinWithOtherCopies(t *testing.T) {
	for name, c := range map[string]struct {
		first, second int
		plans         []int
		verified      []int
		atOnce        []string // told when the first load has ended
	}{
		"more":  {1, 2, []int{1, 2, 2}, []int{1, 2}, []string{"a"}}, // the second plan only asks whether it fits
		"fewer": {2, 1, []int{2}, []int{2}, []string{"a", "b"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.takes["LoadPart"] = 10 * time.Minute
			w.at(0, func() { w.joinAs(copiesOf("a", c.first)) })
			w.at(time.Minute, func() { w.joinAs(copiesOf("b", c.second)) })
			w.at(15*time.Minute, func() {
				for _, job := range []string{"a", "b"} {
					if told := len(w.outcomes(job)) > 0; told != slices.Contains(c.atOnce, job) {
						t.Errorf("after the first load %s was told: %v", job, told)
					}
				}
			})
			w.at(time.Hour, func() { w.leaveAs("a"); w.leaveAs("b") })
			w.runDataset()
			w.wantTold("a", api.JobReady, "")
			w.wantTold("b", api.JobReady, "")
			var verified []int
			for _, v := range inputsOf[activities.VerifyInput](w, "Verify") {
				verified = append(verified, v.Copies)
			}
			if got := w.planned(); !slices.Equal(got, c.plans) || !slices.Equal(verified, c.verified) {
				t.Errorf("plans for %v copies, counted %v", got, verified)
			}
		})
	}
}

// A wish that no workers can fulfil fails the claim that has it, and no other:
// whoever came first, at once.
func TestJoinWithTooManyCopies(t *testing.T) {
	for name, jobs := range map[string][]activities.JoinInput{
		"first":  {copiesOf("greedy", 9), copiesOf("plain", 1)},
		"second": {copiesOf("plain", 1), copiesOf("greedy", 9)},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.takes["LoadPart"], w.takes["Plan"] = 10*time.Minute, 2*time.Second
			w.plan = func(int) error {
				if got := w.planned(); got[len(got)-1] > 3 {
					return stoker.Errorf(stoker.KindNoSpace, "plan", "d", "needs 9 workers, there are 3")
				}
				return nil
			}
			w.at(0, func() { w.joinAs(jobs[0]) })
			w.at(time.Second, func() { w.joinAs(jobs[1]) })
			w.at(time.Minute, func() { w.wantTold("greedy", api.JobFailed, "nospace") })
			w.at(time.Hour, func() { w.leaveAs("greedy"); w.leaveAs("plain") })
			w.runDataset()
			w.wantTold("plain", api.JobReady, "")
			w.wantTold("greedy", api.JobFailed, "nospace")
			if n := w.count("LoadPart"); n != w.parts {
				t.Errorf("%d parts were loaded for %d", n, w.parts)
			}
		})
	}
}

// A job, not a preload, whose copies do not fit now waits for them, and keeps
// nobody from being served.
func TestJoinWhoseCopiesWait(t *testing.T) {
	w := newWorld(t)
	full := true
	w.plan = func(int) error {
		if got := w.planned(); full && got[len(got)-1] > 1 {
			return noSpace()
		}
		return nil
	}
	in := joining("two")
	in.Replicas = 2
	w.at(0, func() { w.joinAs(in) })
	w.at(5*time.Minute, func() { w.joinAs(copiesOf("one", 1)) })
	w.at(6*time.Minute, func() { w.wantTold("one", api.JobReady, ""); full = false })
	w.at(time.Hour, func() { w.leaveAs("one"); w.leaveAs("two") })
	w.runDataset()
	w.wantTold("two", api.JobReady, "")
}

// Claims of other objects are served by loads of their own, one after the other,
// the one of the highest rank first; those of the same objects share one. What does not fit
// fails who wants it, and no other.
func TestJoinWithOtherObjects(t *testing.T) {
	w := newWorld(t)
	w.takes["LoadPart"] = 10 * time.Minute
	w.plan = func(int) error {
		if p := inputsOf[activities.PlanInput](w, "Plan"); p[len(p)-1].Select == "large" {
			return noSpace()
		}
		return nil
	}
	choosing := func(job, what string, priority int) activities.JoinInput {
		in := wishing(job, 0, priority)
		in.Select = what
		return in
	}
	w.at(0, func() { w.joinAs(choosing("train", "train", 0)) })
	w.at(time.Minute, func() {
		w.joinAs(choosing("all", "", 0))
		w.joinAs(choosing("val", "val", 5))
		w.joinAs(choosing("large", "large", 9))
		w.joinAs(choosing("train2", "train", 0))
	})
	jobs := []string{"train", "train2", "val", "all"}
	w.at(3*time.Hour, func() {
		for _, j := range append(jobs, "large") {
			w.leaveAs(j)
		}
	})
	w.runDataset()
	for _, j := range jobs {
		w.wantTold(j, api.JobReady, "")
	}
	w.wantTold("large", api.JobFailed, "nospace")
	var planned, verified []string
	for _, p := range inputsOf[activities.PlanInput](w, "Plan") {
		planned = append(planned, p.Select)
	}
	for _, v := range inputsOf[activities.VerifyInput](w, "Verify") {
		verified = append(verified, v.Select)
	}
	if !slices.Equal(slices.Compact(planned), []string{"train", "large", "val", ""}) || !slices.Equal(verified, []string{"train", "val", ""}) {
		t.Errorf("planned %q, counted %q", planned, verified)
	}
}

// Jobs whose objects do not fit now keep others from nothing, and are tried again.
func TestJoinWhoseObjectsWait(t *testing.T) {
	w := newWorld(t)
	full := true
	w.plan = func(int) error {
		if p := inputsOf[activities.PlanInput](w, "Plan"); full && p[len(p)-1].Select != "small" {
			return noSpace()
		}
		return nil
	}
	for _, what := range []string{"a", "b", "small"} {
		in := joining(what)
		in.Select, in.Priority = what, len(what)*-1
		w.at(0, func() { w.joinAs(in) })
	}
	w.at(5*time.Minute, func() {
		w.wantTold("small", api.JobReady, "")
		if n := w.count("Plan"); n > 100 {
			t.Errorf("it was planned %d times in five minutes", n)
		}
		full = false
	})
	w.at(time.Hour, func() { w.leaveAs("a"); w.leaveAs("b"); w.leaveAs("small") })
	w.runDataset()
	w.wantTold("a", api.JobReady, "")
	w.wantTold("b", api.JobReady, "")
}
