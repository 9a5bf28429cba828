package workflows

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"go.temporal.io/sdk/workflow"

	"stoker.dev"
	"stoker.dev/activities"
	"stoker.dev/internal/api"
)

// answer takes the answer to an update.
type answer struct {
	t    testing.TB
	what string
	err  error
	done bool
}

func (a *answer) Accept()          {}
func (a *answer) Reject(err error) { a.t.Errorf("%s is rejected: %v", a.what, err) }
func (a *answer) Complete(_ any, err error) {
	a.done, a.err = true, err
}

func joining(job string) activities.JoinInput {
	return activities.JoinInput{Dataset: "d", Generation: 1, Manifest: id(1), Job: job, Owner: "ann", Run: "run-" + job}
}

func (w *world) joinAs(in activities.JoinInput) *answer {
	a := &answer{t: w.t, what: "join of " + in.Job}
	w.UpdateWorkflow(joinUpdate, "join-"+in.Run, a, in)
	return a
}

func (w *world) leaveAs(job string) *answer {
	a := &answer{t: w.t, what: "leave of " + job}
	w.UpdateWorkflow(leaveUpdate, "leave-run-"+job, a, activities.LeaveInput{Manifest: id(1), Job: job, Run: "run-" + job})
	return a
}

// runDataset runs the workflow of manifest 1 to its end.
func (w *world) runDataset() {
	w.t.Helper()
	w.SetStartTime(start)
	w.ExecuteWorkflow(Dataset, DatasetInput{Cluster: "c", Dataset: "d", Generation: 1, Manifest: id(1), Window: time.Minute})
	w.finished()
}

// joinAndLeave lets jobs come at once and go after an hour.
func (w *world) joinAndLeave(jobs ...string) {
	w.at(0, func() {
		for _, j := range jobs {
			w.joinAs(joining(j))
		}
	})
	w.at(time.Hour, func() {
		for _, j := range jobs {
			w.leaveAs(j)
		}
	})
}

func (w *world) wantTold(job, state, kind string) {
	w.t.Helper()
	told := w.outcomes(job)
	if len(told) != 1 || told[0].State != state || (told[0].Error != nil) != (kind != "") || kind != "" && told[0].Error.Kind != kind {
		w.t.Errorf("job %s was told %+v, want %s %s once", job, told, state, kind)
	}
}

func TestDatasetLoads(t *testing.T) {
	w := newWorld(t)
	w.joinAndLeave("a")
	w.runDataset()
	if got := w.story(); got != "Plan Reserve LoadPart Verify tell" || w.count("LoadPart") != 3 {
		t.Errorf("%s, with %d parts", got, w.count("LoadPart"))
	}
	w.wantTold("a", api.JobReady, "")
	if w.outcomes("a")[0].Certificate != id(200) {
		t.Error("the certificate is not told")
	}
	w.checkInputs()
}

// checkInputs checks what the activities of one load by one job were told.
func (w *world) checkInputs() {
	w.t.Helper()
	lease := api.Lease{Holder: "a", Owner: "ann", Manifest: id(1), TTLSeconds: activities.LeaseTTL.Seconds()}
	leases := inputsOf[activities.LeaseInput](w, "PutLeases")
	if len(leases) != 2 || !slices.Equal(leases[0].Leases, []api.Lease{lease}) || !slices.Equal(leases[1].Drop, []string{"a"}) {
		w.t.Errorf("leases %+v", leases)
	}
	if p := inputsOf[activities.PlanInput](w, "Plan"); p[0].Manifest != id(1) || p[0].Dataset != "d" || p[0].Round == 0 {
		w.t.Errorf("plan %+v", p)
	}
	if r := inputsOf[activities.ReserveInput](w, "Reserve"); r[0].Plan != id(1) || len(r[0].Leases) != 0 { // they stand since the join
		w.t.Errorf("reserve %+v", r)
	}
	parts := map[int]bool{}
	for _, p := range inputsOf[activities.PartInput](w, "LoadPart") {
		parts[p.Part] = p.Plan == id(1)
	}
	if !parts[0] || !parts[1] || !parts[2] || len(parts) != 3 {
		w.t.Errorf("parts %v", parts)
	}
	if v := inputsOf[activities.VerifyInput](w, "Verify"); v[0].UFSRequests != 6 || v[0].UFSBytes != 300 || v[0].Refetched.Retry != 15 || v[0].Manifest != id(1) || v[0].Started.IsZero() {
		w.t.Errorf("verify %+v", v)
	}
}

// Jobs that want the same data share one load, whenever they come.
func TestTwentyJoinsOnePreload(t *testing.T) {
	w := newWorld(t)
	w.takes["LoadPart"] = 10 * time.Minute
	var answers []*answer
	for n := range 20 {
		w.at(time.Duration(n)*20*time.Second, func() {
			in := joining(fmt.Sprint("job", n))
			in.Replicas = n % 2
			answers = append(answers, w.joinAs(in))
		})
		w.at(time.Hour+time.Duration(n)*time.Second, func() { answers = append(answers, w.leaveAs(fmt.Sprint("job", n))) })
	}
	w.runDataset()
	if w.count("Plan") != 1 || w.count("Reserve") != 1 || w.count("LoadPart") != w.parts || w.count("Verify") != 1 {
		t.Errorf("the load was: %s, %d parts", w.story(), w.count("LoadPart"))
	}
	for n := range 20 {
		w.wantTold(fmt.Sprint("job", n), api.JobReady, "")
	}
	for _, a := range answers {
		if !a.done || a.err != nil {
			t.Errorf("%s: done %v, %v", a.what, a.done, a.err)
		}
	}
	if len(answers) != 40 || w.count("PutLeases") != 40 {
		t.Errorf("%d answers, %d times leases", len(answers), w.count("PutLeases"))
	}
}

// One that comes when all is resident has it counted again, with its lease.
func TestLateJoin(t *testing.T) {
	w := newWorld(t)
	w.joinAndLeave("a")
	w.at(30*time.Minute, func() { w.joinAs(joining("b")) })
	var between DatasetState
	w.at(40*time.Minute, func() { w.query(&between) })
	w.at(2*time.Hour, func() { w.leaveAs("b") })
	w.runDataset()
	w.wantTold("a", api.JobReady, "")
	w.wantTold("b", api.JobReady, "")
	if w.count("Plan") != 2 || between.State != api.JobReady || len(between.Holders) != 2 || !between.Holders[1].Served {
		t.Errorf("%s; %+v", w.story(), between)
	}
	if l := inputsOf[activities.LeaseInput](w, "PutLeases"); len(l) < 2 || len(l[1].Leases) != 1 && len(l[2].Leases) != 1 {
		t.Errorf("leases %+v", l)
	}
}

// Who needs the data no more once it is Ready has left, and the workers know,
// when it hears of that; one that leaves meanwhile has left when it is answered.
func TestServedPreloadHasLeft(t *testing.T) {
	w := newWorld(t)
	w.takes["Verify"] = 2 * time.Minute
	alone, other := joining("a"), joining("b")
	alone.Preload, alone.Leaves = true, true
	var left *answer
	early := true
	w.takes["Plan"] = time.Millisecond // both join before it
	w.at(0, func() { w.joinAs(other); w.joinAs(alone) })
	w.at(time.Minute, func() { w.takes["PutLeases"] = time.Second })
	w.at(2*time.Minute+300*time.Millisecond, func() { left = w.leaveAs("a") })
	w.at(2*time.Minute+600*time.Millisecond, func() { early = left.done || w.leftBy("a") > 0 })
	w.at(time.Hour, func() { w.leaveAs("b") })
	w.runDataset()
	w.wantTold("a", api.JobReady, "")
	w.wantTold("b", api.JobReady, "")
	if w.leftBy("a") != 1 || w.leftBy("b") != 0 || early || !left.done || left.err != nil {
		t.Errorf("a was told %d times that it has left, b %d times; its leave: %+v, before the workers knew: %t", w.leftBy("a"), w.leftBy("b"), left, early)
	}
	var dropped [][]string
	for _, l := range inputsOf[activities.LeaseInput](w, "PutLeases") {
		if len(l.Drop) > 0 {
			dropped = append(dropped, l.Drop)
		}
	}
	if !reflect.DeepEqual(dropped, [][]string{{"a"}, {"b"}}) {
		t.Errorf("dropped %v", dropped)
	}
}

// A load stops when its last holder leaves, and gives its space back.
func TestLastLeaveStopsTheLoad(t *testing.T) {
	w := newWorld(t)
	w.takes["LoadPart"] = 24 * time.Hour
	w.at(0, func() { w.joinAs(joining("a")); w.joinAs(joining("b")) })
	var afterFirst int
	w.at(time.Minute, func() { w.leaveAs("a") })
	w.at(2*time.Minute, func() { afterFirst = w.count("GiveBack"); w.leaveAs("b") })
	w.runDataset()
	if took := w.Now().Sub(start); took > 3*time.Minute {
		t.Errorf("it went on for %s", took)
	}
	if back := inputsOf[stoker.ID](w, "GiveBack"); afterFirst != 0 || !slices.Equal(back, []stoker.ID{id(1)}) {
		t.Errorf("given back: %v, %d after the first had left", back, afterFirst)
	}
	if w.count("Verify") != 0 || len(w.outcomes("a"))+len(w.outcomes("b")) != 0 {
		t.Errorf("%s", w.story())
	}
	if drop := inputsOf[activities.LeaseInput](w, "PutLeases"); len(drop) != 4 || !slices.Equal(drop[3].Drop, []string{"b"}) {
		t.Errorf("leases %+v", drop)
	}
}

// While the load for one that left is stopped, another one may come.
func TestJoinAfterTheLastLeave(t *testing.T) {
	w := newWorld(t)
	w.takes["LoadPart"] = 30 * time.Minute
	w.at(0, func() { w.joinAs(joining("a")) })
	w.at(time.Minute, func() { w.leaveAs("a"); w.joinAs(joining("b")) })
	w.at(3*time.Hour, func() { w.leaveAs("b") })
	w.runDataset()
	w.wantTold("b", api.JobReady, "")
	if len(w.outcomes("a")) != 0 {
		t.Errorf("a was told %v", w.outcomes("a"))
	}
}

// A worker that has less space than it promised, as when others fill its disk, is planned
// anew by what it has; if the others have no space either, what is said is why.
func TestBrokenPromiseIsPlannedAnew(t *testing.T) {
	less := stoker.Errorf(stoker.KindNoSpace, "load", "w", "a folder is full")
	for name, tc := range map[string]struct {
		space func(n int, in activities.ReserveInput) error
		state string
		why   string
		plans int
	}{
		"others have space":                {nil, api.JobReady, "", 2},
		"the index has not heard at once":  {func(n int, _ activities.ReserveInput) error { return map[int]error{2: noSpace()}[n] }, api.JobReady, "", 3},
		"the others have no space, either": {func(n int, _ activities.ReserveInput) error { return map[bool]error{true: noSpace()}[n > 1] }, api.JobFailed, "a folder is full", maxRounds},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.load = func(n int, _ activities.PartInput) (activities.PartLoaded, error) {
				if n == 1 {
					return activities.PartLoaded{}, less
				}
				return activities.PartLoaded{}, nil
			}
			if tc.space != nil {
				w.space = tc.space
			}
			preload := joining("p")
			preload.Preload = true
			w.at(0, func() { w.joinAs(preload) })
			w.at(time.Minute, func() { w.leaveAs("p") })
			w.runDataset()
			w.wantTold("p", tc.state, map[bool]string{true: "nospace"}[tc.why != ""])
			for _, o := range w.outcomes("p") {
				if o.Error != nil && !strings.Contains(o.Error.Message, tc.why) {
					t.Errorf("p was told %q, want %q", o.Error.Message, tc.why)
				}
			}
			if n := w.count("Plan"); n != tc.plans {
				t.Errorf("planned %d times, want %d", n, tc.plans)
			}
		})
	}
}

// What does not fit is refused to a plain preload; claims wait for space.
func TestNoSpace(t *testing.T) {
	for name, full := range map[string]func(w *world, until time.Duration){
		"when planning": func(w *world, until time.Duration) {
			w.plan = func(int) error {
				if w.Now().Sub(start) < until {
					return noSpace()
				}
				return nil
			}
		},
		"when reserving": func(w *world, until time.Duration) {
			w.space = func(int, activities.ReserveInput) error {
				if w.Now().Sub(start) < until {
					return noSpace()
				}
				return nil
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			full(w, 10*time.Minute)
			preload := joining("p")
			preload.Preload = true
			w.at(0, func() { w.joinAs(preload); w.joinAs(joining("a")) })
			var queued DatasetState
			w.at(5*time.Minute, func() { w.query(&queued); w.leaveAs("p") })
			w.at(time.Hour, func() { w.leaveAs("a") })
			w.runDataset()
			w.wantTold("p", api.JobFailed, "nospace")
			w.wantTold("a", api.JobReady, "")
			if queued.State != api.JobQueued || !strings.Contains(queued.Why, "no space at all") {
				t.Errorf("%s: %q", queued.State, queued.Why)
			}
			if n := w.count("Plan"); n < 50 || n > 65 {
				t.Errorf("in 10 minutes it was tried %d times", n)
			}
			if w.count("LoadPart") != 3 || w.count("GiveBack") != 0 {
				t.Errorf("%s", w.story())
			}
		})
	}
}

// What is missing at the end is brought by another round, unless the store
// refused it, or three rounds did not help.
func TestIncomplete(t *testing.T) {
	short := func(again bool) activities.Verified {
		return activities.Verified{State: api.CertificateFailed, Certificate: id(99), Kind: "incomplete", Message: "1 of 2 objects are not resident", Again: again}
	}
	ready := activities.Verified{State: api.CertificateReady, Certificate: id(200)}
	for name, c := range map[string]struct {
		verified    []activities.Verified
		rounds      int
		kind        string
		certificate stoker.ID
	}{
		"refused":             {[]activities.Verified{short(false)}, 1, "incomplete", id(99)},
		"then refused":        {[]activities.Verified{short(true), short(false)}, 2, "incomplete", id(99)},
		"a worker was away":   {[]activities.Verified{short(true), ready}, 2, "", id(200)},
		"workers stay away":   {[]activities.Verified{short(true)}, maxRounds, "incomplete", id(99)},
		"it helps in the end": {[]activities.Verified{short(true), short(true), ready}, 3, "", id(200)},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.check = func(n int, _ activities.VerifyInput) (activities.Verified, error) {
				return c.verified[min(n, len(c.verified))-1], nil
			}
			w.joinAndLeave("a")
			w.runDataset()
			state := api.JobReady
			if c.kind != "" {
				state = api.JobFailed
			}
			w.wantTold("a", state, c.kind)
			if got := w.outcomes("a")[0].Certificate; got != c.certificate || w.count("Plan") != c.rounds {
				t.Errorf("certificate %s after %d rounds, want %d", got.Short(), w.count("Plan"), c.rounds)
			}
			v := inputsOf[activities.VerifyInput](w, "Verify")
			if last := v[len(v)-1]; last.UFSBytes != int64(300*c.rounds) || last.Started != v[0].Started {
				t.Errorf("%d rounds cost %d bytes since %s", c.rounds, last.UFSBytes, last.Started)
			}
		})
	}
}

// A worker that goes away with its part loaded is waited for before anything
// is brought again; what does not come back is said to be lost, less what was
// said so already.
func TestWorkerGoesAwayWithItsPart(t *testing.T) {
	away := activities.Verified{State: api.CertificateFailed, Certificate: id(99), Kind: "incomplete", Again: true, Gone: 100, Away: []int{0, 2}}
	ready := activities.Verified{State: api.CertificateReady, Certificate: id(200)}
	for name, c := range map[string]struct {
		second  activities.Verified
		evicted int64 // by each part
		plans   int
		lost    int64
	}{
		"it comes back":    {ready, 0, 1, 0},
		"it stays away":    {away, 0, 2, 100},
		"some was evicted": {away, 20, 2, 60 + 40 + 60},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.load = func(int, activities.PartInput) (activities.PartLoaded, error) {
				return activities.PartLoaded{Evicted: c.evicted, Refetched: api.Refetched{Lost: c.evicted}}, nil
			}
			w.check = func(n int, _ activities.VerifyInput) (activities.Verified, error) {
				return []activities.Verified{away, c.second, ready}[min(n, 3)-1], nil
			}
			w.back = func(int, activities.AwaitInput) (bool, error) { return c.plans == 1, nil }
			w.joinAndLeave("a")
			w.runDataset()
			w.wantTold("a", api.JobReady, "")
			v, waits := inputsOf[activities.VerifyInput](w, "Verify"), inputsOf[activities.AwaitInput](w, "AwaitReturn")
			if w.count("Plan") != c.plans || v[len(v)-1].Refetched.Lost != c.lost || v[0].Plan != id(1) {
				t.Errorf("%s; verified %+v", w.story(), v)
			}
			if len(waits) != 2 || waits[0].Plan != id(1) || waits[0].Part+waits[1].Part != 2 || !waits[0].Until.After(start.Add(50*time.Second)) {
				t.Errorf("waited for %+v", waits)
			}
		})
	}
}

// A try that fails is repeated where it stands; a part that fails for good
// fails the load, after all others were heard, and gives the space back.
func TestPartsThatFail(t *testing.T) {
	for name, c := range map[string]struct {
		kind        stoker.Kind
		times       int // of part 1
		tries, plan int
		told        string
	}{
		"once":                          {stoker.KindTransient, 1, 4, 1, ""},
		"often, because of controllers": {stoker.KindTransient, 40, 43, 1, ""},
		"a bug":                         {stoker.KindInternal, 3, 6, 1, ""},
		"for good":                      {stoker.KindDenied, 1, 3, 1, "denied"},
		"its plan is damaged":           {stoker.KindCorrupt, 1, 3, 1, "corrupt"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			failed := 0
			w.load = func(_ int, in activities.PartInput) (activities.PartLoaded, error) {
				w.mu.Lock()
				defer w.mu.Unlock()
				if in.Part == 1 && failed < c.times {
					failed++
					return activities.PartLoaded{}, stoker.Errorf(c.kind, "load", "", "it fails")
				}
				return activities.PartLoaded{UFSBytes: 100}, nil
			}
			w.at(0, func() { w.joinAs(joining("a")) })
			w.at(24*time.Hour, func() { w.leaveAs("a") })
			w.runDataset()
			if w.count("LoadPart") != c.tries || w.count("Plan") != c.plan {
				t.Errorf("%d tries of parts, %d plans", w.count("LoadPart"), w.count("Plan"))
			}
			if c.told == "" {
				w.wantTold("a", api.JobReady, "")
				return
			}
			w.wantTold("a", api.JobFailed, c.told)
			if back := inputsOf[stoker.ID](w, "GiveBack"); !slices.Equal(back, []stoker.ID{id(1)}) || w.count("Verify") != 0 {
				t.Errorf("given back %v; %s", back, w.story())
			}
		})
	}
}

// A worker that cannot be reached when its space is asked for is no reason to
// fail: the next round plans with those that are left.
func TestReserveIsPlannedAnew(t *testing.T) {
	w := newWorld(t)
	w.space = func(n int, _ activities.ReserveInput) error {
		if n <= 2 {
			return stoker.Errorf(stoker.KindTransient, "reserve", "", "nobody listens there")
		}
		return nil
	}
	w.joinAndLeave("a")
	w.runDataset()
	w.wantTold("a", api.JobReady, "")
	if w.count("Plan") != 2 || w.count("Reserve") != 3 {
		t.Errorf("%s", w.story())
	}
}

// A holder whose workflow is gone holds nothing.
func TestHolderThatIsGone(t *testing.T) {
	w := newWorld(t)
	w.gone["a"] = true
	w.at(0, func() { w.joinAs(joining("a")); w.joinAs(joining("b")) })
	w.at(time.Hour, func() { w.leaveAs("b") })
	w.runDataset()
	w.wantTold("b", api.JobReady, "")
	if took := w.Now().Sub(start); took > 2*time.Hour {
		t.Errorf("it ended after %s", took)
	}
	dropped := 0
	for _, l := range inputsOf[activities.LeaseInput](w, "PutLeases") {
		if slices.Equal(l.Drop, []string{"a"}) {
			dropped++
		}
	}
	if dropped != 1 {
		t.Errorf("its leases were dropped %d times", dropped)
	}
}

// A job's second run takes the place of the first, whose leave comes late.
func TestJobComesAgain(t *testing.T) {
	w := newWorld(t)
	w.joinAndLeave("a")
	again := joining("a")
	again.Run = "second"
	var held DatasetState
	w.at(30*time.Minute, func() { w.joinAs(again) })
	w.at(2*time.Hour, func() { w.query(&held) }) // the first run has left at 1 h
	w.at(3*time.Hour, func() {
		w.UpdateWorkflow(leaveUpdate, "leave-second", &answer{t: t, what: "leave"}, activities.LeaveInput{Manifest: id(1), Job: "a", Run: "second"})
	})
	w.runDataset()
	if len(held.Holders) != 1 || held.Holders[0].Run != "second" || !held.Holders[0].Served {
		t.Errorf("after the first run has left it is held by %+v", held.Holders)
	}
	if told := w.outcomes("a"); len(told) != 2 {
		t.Errorf("the runs were told %v", told)
	}
}

// A long life goes on in a new run, which has the holders.
func TestDatasetContinues(t *testing.T) {
	w := newWorld(t)
	w.at(0, func() { w.joinAs(joining("a")) })
	w.at(time.Minute, func() { w.joinAs(joining("b")) })
	w.at(time.Hour, func() { w.SetContinueAsNewSuggested(true); w.leaveAs("nobody") })
	w.SetStartTime(start)
	w.ExecuteWorkflow(Dataset, DatasetInput{Cluster: "c", Dataset: "d", Generation: 1, Manifest: id(1)})
	var next *workflow.ContinueAsNewError
	if err := w.GetWorkflowError(); !workflow.IsContinueAsNewError(err) {
		t.Fatalf("%v", err)
	} else if !errors.As(err, &next) {
		t.Fatalf("%T", err)
	}
	var in DatasetInput
	if err := decode(next.Input, &in); err != nil || len(in.Holders) != 2 || in.Cluster != "c" || in.Manifest != id(1) {
		t.Errorf("it goes on with %+v, %v", in, err)
	}
	w = newWorld(t)
	w.at(time.Hour, func() { w.leaveAs("a"); w.leaveAs("b") })
	w.SetStartTime(start)
	w.ExecuteWorkflow(Dataset, in)
	w.finished()
	if len(w.outcomes("a")) != 0 {
		t.Errorf("a was served before, and is told again: %v", w.outcomes("a"))
	}
}
