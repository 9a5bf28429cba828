package workflows

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"stoker.dev"
	"stoker.dev/activities"
	"stoker.dev/internal/api"
)

// onNodes joins as a job that wants all of the data on some workers.
func onNodes(job string, auto bool, nodes ...string) activities.JoinInput {
	in := joining(job)
	in.Nodes, in.Auto = nodes, auto
	return in
}

// rounds says for each plan whom it puts all of the data to, in order.
func (w *world) rounds() (out []string) {
	for _, p := range inputsOf[activities.PlanInput](w, "Plan") {
		var jobs []string
		for _, c := range p.Locals {
			jobs = append(jobs, c.Job+":"+strings.Join(c.Nodes, "+"))
		}
		out = append(out, strings.Join(jobs, " "))
	}
	return out
}

// Claims that want all of the data on their nodes share a load, which is shown with
// these nodes. Who wants less is served before; who comes with other nodes while a
// load runs is served by the next one.
func TestLocalClaims(t *testing.T) {
	local, plain := onNodes, joining
	type jobs []activities.JoinInput
	for name, c := range map[string]struct {
		first, second jobs // while a load runs for somebody else, and while the next one runs
		plans         string
		atOnce        string // told when the second load has ended
	}{
		"together":            {first: jobs{local("a", false, "w1"), local("b", true, "w2", "w1")}, plans: "[ a:w1 b:w2+w1]", atOnce: "ab"},
		"with one of any":     {first: jobs{local("a", false, "w1"), plain("b")}, plans: "[ a:w1]", atOnce: "ab"},
		"another node later":  {first: jobs{local("a", false, "w1")}, second: jobs{local("b", false, "w2")}, plans: "[ a:w1 b:w2]", atOnce: "a"},
		"the same node later": {first: jobs{local("a", false, "w1", "w2")}, second: jobs{local("b", false, "w2")}, plans: "[ a:w1+w2]", atOnce: "ab"},
		"any worker will do":  {first: jobs{local("a", false, "w1")}, second: jobs{plain("b")}, plans: "[ a:w1]", atOnce: "ab"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.takes["LoadPart"] = 10 * time.Minute
			join := func(all jobs) func() {
				return func() {
					for _, in := range all {
						w.joinAs(in)
					}
				}
			}
			w.at(0, join(jobs{joining("x")}))
			w.at(time.Minute, join(c.first))
			w.at(11*time.Minute, join(c.second))
			w.at(25*time.Minute, func() {
				for _, job := range []string{"a", "b"} {
					if told := len(w.outcomes(job)) > 0; told != strings.Contains(c.atOnce, job) {
						t.Errorf("after the second load %s was told: %v", job, told)
					}
				}
			})
			w.at(2*time.Hour, func() { w.leaveAs("x"); w.leaveAs("a"); w.leaveAs("b") })
			w.runDataset()
			w.wantTold("a", api.JobReady, "")
			w.wantTold("b", api.JobReady, "")
			if got := fmt.Sprint(w.rounds()); got != c.plans {
				t.Errorf("plans for %s, want %s", got, c.plans)
			}
		})
	}
}

// A load is shown with the workers that it brings all of the data to.
func TestLocalLoadIsShown(t *testing.T) {
	w := newWorld(t)
	w.takes["LoadPart"] = 10 * time.Minute
	w.at(0, func() { w.joinAs(onNodes("a", false, "w2", "w1")) })
	w.at(time.Minute, func() {
		var s DatasetState
		if w.query(&s); s.Copies != 2 || fmt.Sprint(s.Nodes) != "[w1 w2]" || s.State != api.JobWarming {
			t.Errorf("%+v", s)
		}
	})
	w.at(time.Hour, func() { w.leaveAs("a") })
	w.runDataset()
}

// Claims whose nodes cannot have the data keep nobody else waiting: a preload is
// refused, a job that needs space hears it, one whose nodes are gone fails, and one
// that can do without gets it spread.
func TestLocalClaimsThatDoNotFit(t *testing.T) {
	w := newWorld(t)
	full := api.ErrorBody{Kind: stoker.KindNoSpace.String(), Message: "needs 3 GiB on each of its nodes"}
	w.unfit = func(in activities.PlanInput) (out []activities.Unfit) {
		for _, c := range in.Locals {
			switch c.Job {
			case "preload", "whole":
				out = append(out, activities.Unfit{Job: c.Job, Error: full})
			case "auto":
				out = append(out, activities.Unfit{Job: c.Job, Spread: true, Error: full})
			case "gone":
				out = append(out, activities.Unfit{Job: c.Job, Error: api.ErrorBody{Kind: "transient", Message: "does not answer"}})
			}
		}
		return out
	}
	w.takes["LoadPart"] = 10 * time.Minute
	w.at(0, func() { w.joinAs(joining("x")) })
	w.at(time.Minute, func() {
		for _, job := range []string{"preload", "whole", "auto", "gone", "fits"} {
			in := onNodes(job, job == "auto", "w-"+job)
			in.Preload, in.Whole = job == "preload", job != "preload"
			w.joinAs(in)
		}
	})
	w.at(11*time.Minute, func() { w.leaveAs("whole") }) // it was told, and queues
	w.at(2*time.Hour, func() {
		for _, job := range []string{"x", "preload", "auto", "gone", "fits"} {
			w.leaveAs(job)
		}
	})
	w.runDataset()
	last := func(job string) Outcome {
		all := w.outcomes(job)
		if len(all) == 0 {
			return Outcome{}
		}
		return all[len(all)-1]
	}
	for job, want := range map[string]string{"preload": api.JobFailed, "whole": api.JobQueued, "auto": api.JobReady, "gone": api.JobFailed, "fits": api.JobReady} {
		if o := last(job); o.State != want {
			t.Errorf("%s was told %+v, want %s", job, o, want)
		}
	}
	if e := last("preload").Error; e == nil || *e != full {
		t.Errorf("the refusal is %+v", e)
	}
	if got, want := fmt.Sprint(w.rounds()), "[ preload:w-preload whole:w-whole auto:w-auto gone:w-gone fits:w-fits]"; got != want {
		t.Errorf("plans for %s, want %s: what that brings serves who can do without, too", got, want)
	}
}

// A worker that has less space than it said: who can do without local copies gets
// the data spread, who cannot is refused.
func TestLocalSpaceThatIsNotThere(t *testing.T) {
	w := newWorld(t)
	w.space = func(n int, _ activities.ReserveInput) error {
		if n == 1 {
			return noSpace()
		}
		return nil
	}
	w.at(0, func() { w.joinAs(onNodes("auto", true, "w1")) })
	w.at(time.Hour, func() { w.leaveAs("auto") })
	w.runDataset()
	w.wantTold("auto", api.JobReady, "")
	if got := fmt.Sprint(w.rounds()); got != "[auto:w1 ]" {
		t.Errorf("plans for %s", got)
	}
}

// A job whose nodes have no room for all of its datasets together joins none of
// them with its nodes.
func TestJobJoinsWithItsNodes(t *testing.T) {
	for _, spread := range []bool{false, true} {
		w := newWorld(t)
		w.admit = func(_ int, in activities.AdmitInput) (activities.Admission, error) {
			if len(in.Claim.Nodes) != 2 || !in.Claim.Auto {
				t.Errorf("admission of %+v", in.Claim)
			}
			return activities.Admission{State: activities.AdmitNow, Spread: spread}, nil
		}
		in := claim(OnMissWait, never, 1)
		in.Nodes, in.Auto = []string{"w1", "w2"}, true
		w.at(time.Second, func() { w.news(api.JobReady, nil) })
		w.at(time.Minute, func() { w.SignalWorkflow(releaseSignal, nil) })
		w.runJobOf(in)
		joins := inputsOf[activities.JoinInput](w, "Join")
		if len(joins) != 1 || (len(joins[0].Nodes) == 2) == spread || !joins[0].Auto {
			t.Errorf("spread %v: joins %+v", spread, joins)
		}
	}
}
