package workflows

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/workflow"

	"stoker.dev"
	"stoker.dev/activities"
	"stoker.dev/internal/api"
)

const (
	anything = "mock.Anything" // any argument of a fake
	forever  = 400 * 24 * time.Hour
)

// world is a Temporal in memory, with fake activities. Time passes only while
// nothing else can happen.
type world struct {
	*testsuite.TestWorkflowEnvironment
	t    testing.TB
	slow []func() // makes activities take their time; after all are registered

	mu       sync.Mutex
	log      []string                 // +checklocks:mu — what was asked of the world, in order
	inputs   map[string][]any         // +checklocks:mu — by activity; of those that ended
	largest  map[string]int           // +checklocks:mu — JSON bytes of an input or a result
	takes    map[string]time.Duration // +checklocks:mu — how long an activity takes
	told     map[string][]Outcome     // +checklocks:mu — by job
	left     map[string]int           // +checklocks:mu — how often a job was told that it has left
	gone     map[string]bool          // +checklocks:mu — jobs whose workflows have ended
	attempts map[string]int           // +checklocks:mu

	parts  int // of each plan
	plan   func(n int) error
	unfit  func(in activities.PlanInput) []activities.Unfit
	space  func(n int, in activities.ReserveInput) error
	load   func(n int, in activities.PartInput) (activities.PartLoaded, error)
	mend   func(n int, in activities.MendInput) (activities.Mended, error)
	back   func(n int, in activities.AwaitInput) (bool, error)
	check  func(n int, in activities.VerifyInput) (activities.Verified, error)
	join   func(n int) error
	leave  func(n int) error
	list   func(n int) error
	admit  func(n int, in activities.AdmitInput) (activities.Admission, error)
	copies func(n int, in activities.CopiesInput) (activities.CopiesPlanned, error)
	drop   func(n int, in activities.DropInput) (activities.Dropped, error)
	turns  map[string][]activities.Admission // +checklocks:mu — by job
	onTurn func(job string)                  // a claim has its turn
	holds  func() time.Duration              // until a claim's next silence; nil = it is renewed for ever
}

func newWorld(t testing.TB) *world {
	var suite testsuite.WorkflowTestSuite
	suite.SetLogger(silent{})
	w := &world{
		TestWorkflowEnvironment: suite.NewTestWorkflowEnvironment(), t: t, parts: 3,
		inputs: map[string][]any{}, largest: map[string]int{}, told: map[string][]Outcome{}, left: map[string]int{}, gone: map[string]bool{}, attempts: map[string]int{},
		takes: map[string]time.Duration{"Hold": forever},
		plan:  func(int) error { return nil },
		space: func(int, activities.ReserveInput) error { return nil },
		load: func(int, activities.PartInput) (activities.PartLoaded, error) {
			return activities.PartLoaded{UFSRequests: 2, UFSBytes: 100, Refetched: api.Refetched{Retry: 5}}, nil
		},
		check: func(int, activities.VerifyInput) (activities.Verified, error) {
			return activities.Verified{State: api.CertificateReady, Certificate: id(200)}, nil
		},
		admit: func(int, activities.AdmitInput) (activities.Admission, error) {
			return activities.Admission{State: activities.AdmitNow}, nil
		},
		turns: map[string][]activities.Admission{}, onTurn: func(string) {},
		join: func(int) error { return nil }, leave: func(int) error { return nil }, list: func(int) error { return nil },
	}
	w.SetTestTimeout(20 * time.Second)
	registerWorkflows(w)
	w.serveCatalog()
	w.serve()
	for _, f := range w.slow {
		f()
	}
	w.OnSignalExternalWorkflow(anything, anything, anything, anything, anything).Return(
		func(_, workflowID, _, signal string, arg any) error { return w.signalled(workflowID, signal, arg) })
	return w
}

func (w *world) serve() {
	serve(w, "Plan", func(n int, in activities.PlanInput) (activities.Planned, error) {
		p := activities.Planned{Plan: id(byte(n)), Parts: w.parts, Bytes: 1 << 30}
		if w.unfit != nil {
			p.Unfit = w.unfit(in)
		}
		if len(in.Locals) > 0 && len(in.Locals) == len(p.Unfit) {
			p.Plan, p.Parts = stoker.ID{}, 0
		}
		return p, w.plan(n)
	})
	serve(w, "Reserve", func(n int, in activities.ReserveInput) (struct{}, error) { return struct{}{}, w.space(n, in) })
	serve(w, "LoadPart", func(n int, in activities.PartInput) (activities.PartLoaded, error) { return w.load(n, in) })
	serve(w, "Mend", func(n int, in activities.MendInput) (activities.Mended, error) { return w.mend(n, in) })
	serve(w, "AwaitReturn", func(n int, in activities.AwaitInput) (bool, error) { return w.back(n, in) })
	serve(w, "Verify", func(n int, in activities.VerifyInput) (activities.Verified, error) { return w.check(n, in) })
	serve(w, "PlanCopies", func(n int, in activities.CopiesInput) (activities.CopiesPlanned, error) { return w.copies(n, in) })
	serve(w, "DropCopies", func(n int, in activities.DropInput) (activities.Dropped, error) { return w.drop(n, in) })
	serve(w, "GiveBack", func(int, stoker.ID) (struct{}, error) { return struct{}{}, nil })
	serve(w, "PutLeases", func(int, activities.LeaseInput) (struct{}, error) { return struct{}{}, nil })
	serve(w, "Join", func(n int, _ activities.JoinInput) (struct{}, error) { return struct{}{}, w.join(n) })
	serve(w, "Leave", func(n int, _ activities.LeaveInput) (struct{}, error) { return struct{}{}, w.leave(n) })
	serve(w, "Wish", func(int, activities.WishInput) (struct{}, error) { return struct{}{}, nil })
	serve(w, "Requeue", func(int, activities.WaitingClaim) (struct{}, error) { return struct{}{}, nil })
	serve(w, "Admit", func(n int, in activities.AdmitInput) (activities.Admission, error) { return w.admit(n, in) })
	serve(w, "Enqueue", func(int, activities.EnqueueInput) (struct{}, error) { return struct{}{}, nil })
	serve(w, "Dequeue", func(int, activities.DequeueInput) (struct{}, error) { return struct{}{}, nil })
	hold := func(context.Context) error { return stoker.Errorf(stoker.KindTransient, "hold", "", "silence") }
	w.RegisterActivityWithOptions(hold, activity.RegisterOptions{Name: "Hold"})
	w.OnActivity("Hold", anything).Return(hold).AfterFn(func() time.Duration {
		if d := w.began("Hold"); w.holds == nil {
			return d
		}
		return w.holds()
	})
}

// serve makes a fake activity; n counts its tries from 1. Its error crosses
// as that of a real one does.
func serve[I, O any](w *world, name string, do func(n int, in I) (O, error)) {
	f := func(_ context.Context, in I) (O, error) {
		w.mu.Lock()
		w.attempts[name]++
		n := w.attempts[name]
		w.inputs[name] = append(w.inputs[name], in)
		w.mu.Unlock()
		out, err := do(n, in)
		w.measure(name, in)
		w.measure(name, out)
		return out, activities.ToTemporal(err)
	}
	w.RegisterActivityWithOptions(f, activity.RegisterOptions{Name: name})
	w.slow = append(w.slow, func() {
		w.OnActivity(name, anything, anything).Return(f).AfterFn(func() time.Duration { return w.began(name) })
	})
}

func (w *world) measure(name string, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		w.t.Error(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.largest[name] = max(w.largest[name], len(body))
}

func (w *world) began(name string) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.log = append(w.log, name)
	return w.takes[name]
}

func (w *world) signalled(workflowID, signal string, arg any) error {
	job := strings.TrimPrefix(workflowID, JobID("c", ""))
	if a, ok := arg.(activities.Admission); ok && signal == turnSignal {
		return w.turned(job, a)
	}
	n, ok := arg.(news)
	if signal != newsSignal || !ok || n.Manifest != id(1) || job == workflowID {
		w.t.Errorf("signal %s to %s: %+v", signal, workflowID, arg)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.gone[job] {
		return fmt.Errorf("unknown external workflow %s", workflowID)
	}
	w.told[job] = append(w.told[job], n.Outcome)
	if n.Left {
		w.left[job]++
	}
	w.log = append(w.log, "tell")
	return nil
}

func (w *world) leftBy(job string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.left[job]
}

func (w *world) turned(job string, a activities.Admission) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.gone[job] {
		return fmt.Errorf("unknown external workflow of %s", job)
	}
	w.turns[job] = append(w.turns[job], a)
	w.log = append(w.log, "turn "+job)
	w.at(time.Second, func() { w.onTurn(job) })
	return nil
}

// at calls do when some time has passed.
func (w *world) at(d time.Duration, do func()) { w.RegisterDelayedCallback(do, d) }

// count is how often an activity began.
func (w *world) count(name string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for _, l := range w.log {
		if l == name {
			n++
		}
	}
	return n
}

// story is the log without leases, equal lines that follow each other once.
func (w *world) story() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(slices.Compact(slices.DeleteFunc(slices.Clone(w.log), func(l string) bool { return l == "PutLeases" })), " ")
}

func (w *world) outcomes(job string) []Outcome {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.told[job]
}

// inputsOf are the inputs that an activity ended with.
func inputsOf[I any](w *world, name string) []I {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []I
	for _, in := range w.inputs[name] {
		out = append(out, in.(I))
	}
	return out
}

func (w *world) query(v any) {
	w.t.Helper()
	got, err := w.QueryWorkflow(statusQuery)
	if err == nil {
		err = got.Get(v)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// finished checks that the workflow ended without an error.
func (w *world) finished() {
	w.t.Helper()
	if !w.IsWorkflowCompleted() {
		w.t.Fatal("the workflow does not end")
	}
	if err := w.GetWorkflowError(); err != nil {
		w.t.Fatal(err)
	}
}

func id(n byte) stoker.ID { return stoker.ID{n} }

func noSpace() error { return stoker.Errorf(stoker.KindNoSpace, "reserve", "", "no space at all") }

// silent drops the log of the tests' Temporal.
type silent struct{}

func (silent) Debug(string, ...any) {}
func (silent) Info(string, ...any)  {}
func (silent) Warn(string, ...any)  {}
func (silent) Error(string, ...any) {}

// sawChild notes the loads that are started.
func (w *world) sawChild(seen map[string]LoadInput) func(*workflow.Info, workflow.Context, converter.EncodedValues) {
	return func(info *workflow.Info, _ workflow.Context, args converter.EncodedValues) {
		var in LoadInput
		if err := args.Get(&in); err != nil {
			w.t.Error(err)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		seen[info.WorkflowExecution.ID] = in
	}
}
