package workflows

import (
	"fmt"
	"slices"

	"go.temporal.io/sdk/workflow"

	"stoker.dev"
	"stoker.dev/activities"
	"stoker.dev/internal/api"
)

// partsPerChild is how many workers one child drives: its history stays
// within a few hundred events.
const partsPerChild = 64

// load serves those who wait: plan, reserve, load, verify, and again if a
// worker went away meanwhile. It stops when nobody holds the data any more.
func (d *dataset) load(ctx workflow.Context) {
	ctx, cancel := workflow.WithCancel(ctx)
	defer cancel()
	workflow.Go(ctx, func(ctx workflow.Context) {
		if workflow.Await(ctx, func() bool { return len(d.s.Holders) == 0 || d.s.PausedBy != "" }) == nil {
			cancel()
		}
	})
	r := &round{d: d, verify: activities.VerifyInput{
		Dataset: d.s.Dataset, Generation: d.s.Generation, Manifest: d.s.Manifest, Started: workflow.Now(ctx)}}
	for n := 1; ; n++ {
		v, err := r.run(ctx)
		if deep := d.deep(r.serving); err == nil && v.State == api.CertificateReady && len(deep) > 0 {
			v, err = r.readAgain(ctx, v, deep)
		}
		again := n < maxRounds && ctx.Err() == nil && (err == nil && v.Again || isKind(err, stoker.KindTransient) || r.replans(ctx, err))
		if again && workflow.Sleep(ctx, againAfter) == nil {
			continue
		}
		switch {
		case ctx.Err() != nil:
			d.s.State = api.JobPlanned
		case err == nil && r.nobody:
			if r.unfit != nil {
				d.s.State, d.s.Why = api.JobQueued, r.unfit.Message
			}
		case isKind(err, stoker.KindNoSpace):
			if r.broken != nil { // which says what has less space, and why
				err = r.broken
			}
			d.refuse(ctx, err)
		case err != nil:
			d.settle(ctx, d.unserved(ctx, d.wanted), Outcome{State: api.JobFailed, Error: errorBody(err)})
		case v.State != api.CertificateReady:
			d.settle(ctx, r.serving, Outcome{State: api.JobFailed, Certificate: v.Certificate, Error: &api.ErrorBody{Kind: v.Kind, Message: v.Message}})
		default:
			d.settle(ctx, r.serving, Outcome{State: api.JobReady, Certificate: v.Certificate})
		}
		return
	}
}

// unserved lists the jobs that wait to be told, of those that are meant.
func (d *dataset) unserved(ctx workflow.Context, whose func(workflow.Context, *Holder) bool) []string {
	var jobs []string
	for i := range d.s.Holders {
		if h := &d.s.Holders[i]; h.Leased && !h.Served && whose(ctx, h) {
			jobs = append(jobs, h.Job)
		}
	}
	return jobs
}

// settle tells jobs their outcome. Those that need the data no more once it is
// Ready hold it no more when they hear of that.
func (d *dataset) settle(ctx workflow.Context, jobs []string, o Outcome) {
	d.s.State, d.s.Why = o.State, ""
	if o.State == api.JobReady {
		jobs = d.dismiss(ctx, jobs, o)
	}
	for _, job := range jobs {
		d.tell(ctx, job, o)
	}
}

// dismiss ends the holds of those jobs that leave when they are served, tells
// them, and returns the others. It goes on when nobody is left for whom to load.
func (d *dataset) dismiss(ctx workflow.Context, jobs []string, o Outcome) (others []string) {
	ctx, cancel := workflow.NewDisconnectedContext(ctx)
	defer cancel()
	var leaving []Holder
	var names []string
	for _, job := range jobs {
		if i := d.find(job); i >= 0 && d.s.Holders[i].Leaves {
			leaving, names = append(leaving, d.s.Holders[i]), append(names, job)
			d.s.Holders = slices.Delete(d.s.Holders, i, i+1)
			continue
		}
		others = append(others, job)
	}
	if len(leaving) == 0 {
		return others
	}
	d.changes++
	d.leaving++
	err := d.drop(ctx, names...)
	d.leaving--
	if err != nil { // they leave by themselves
		d.s.Holders = append(d.s.Holders, leaving...)
		return jobs
	}
	var told []workflow.Future
	for _, h := range leaving {
		n := news{Manifest: d.s.Manifest, Run: h.Run, Outcome: o, Left: true}
		told = append(told, workflow.SignalExternalWorkflow(ctx, JobID(d.cluster, h.Job), "", newsSignal, n))
	}
	for _, f := range told {
		_ = f.Get(ctx, nil) // one that is gone needs to hear nothing
	}
	return others
}

// refuse tells those who only preload that it does not fit; the others queue.
// Who asked for fewer copies, or other objects, is tried next, and at once.
func (d *dataset) refuse(ctx workflow.Context, err error) {
	if d.spread(ctx) { // the others are tried without them
		d.s.State, d.s.Why = api.JobPlanned, ""
		return
	}
	body := errorBody(err)
	d.s.State, d.s.Why = api.JobQueued, body.Message
	d.hint(ctx, Outcome{State: api.JobQueued, Error: body}, d.wanted)
	refused := d.unserved(ctx, d.wanted)
	for _, job := range refused {
		if i := d.find(job); i >= 0 && d.s.Holders[i].Preload {
			d.tell(ctx, job, Outcome{State: api.JobFailed, Error: body})
		}
	}
	for _, job := range refused {
		if i := d.find(job); i >= 0 {
			d.s.Holders[i].Refused = true
		}
	}
	if slices.ContainsFunc(d.s.Holders, func(h Holder) bool { return h.Leased && !h.Served && !h.Refused && !d.wanted(ctx, &h) }) {
		d.s.State, d.s.Why = api.JobPlanned, ""
		return
	}
	for i := range d.s.Holders {
		d.s.Holders[i].Refused = false
	}
}

// round is one try to make the data resident. What several tries cost is
// counted together.
type round struct {
	d       *dataset
	verify  activities.VerifyInput
	serving []string       // whose leases stood before the count began
	evicted int64          // bytes that went in mid-load, and are counted as lost
	nobody  bool           // it has no plan: the nodes of none of its claims can have the data
	unfit   *api.ErrorBody // why that of the last one is that does not fit
	broken  error          // a load found less space than its worker had promised
}

// replanVersion guards what an older release does not do: it refused at once what a worker
// had promised more space for than it has.
const replanVersion = "replan-broken-promise"

// replans reports whether there was space for all when it was promised, and a worker has
// less now: a new plan goes by what each has, which the index hears of within seconds.
func (r *round) replans(ctx workflow.Context, err error) bool {
	return isKind(err, stoker.KindNoSpace) && r.broken != nil && workflow.GetVersion(ctx, replanVersion, workflow.DefaultVersion, 1) != workflow.DefaultVersion
}

func (r *round) run(ctx workflow.Context) (v activities.Verified, err error) {
	d := r.d
	d.s.State, d.s.Why = api.JobPlanned, ""
	in := activities.PlanInput{Dataset: d.s.Dataset, Generation: d.s.Generation, Manifest: d.s.Manifest, Round: workflow.Now(ctx).UnixNano()}
	r.begin(ctx, &in)
	var p activities.Planned
	if err := workflow.ExecuteActivity(working(ctx, 0, 6), do.Plan, in).Get(ctx, &p); err != nil {
		return v, err
	}
	if r.nobody = !r.planned(ctx, &in, &p); r.nobody {
		return v, nil
	}
	reserve := activities.ReserveInput{Plan: p.Plan} // the holders' leases stand since they joined
	if err := workflow.ExecuteActivity(working(ctx, 0, 2), do.Reserve, reserve).Get(ctx, nil); err != nil {
		return v, err // what was granted is given back already
	}
	defer func() {
		if err != nil {
			giveBack(ctx, p.Plan, "dataset", d.s.Dataset, "manifest", d.s.Manifest.Short())
		}
	}()
	d.s.Plan, d.s.Parts, d.s.State = p.Plan, p.Parts, api.JobWarming
	d.hint(ctx, Outcome{State: api.JobWarming}, d.met)
	if err := d.tellWish(ctx); err != nil {
		return v, err
	}
	judging, end := workflow.WithCancel(ctx)
	defer end()
	workflow.Go(judging, r.judge)
	if err := r.loadParts(ctx, p); err != nil {
		if isKind(err, stoker.KindNoSpace) {
			r.broken = err
		}
		return v, err
	}
	if v, err = r.count(ctx, p); err == nil && v.Again && len(v.Away) > 0 {
		if err = r.awaitAway(ctx, p, v.Away); err == nil {
			v, err = r.count(ctx, p)
		}
	}
	if err == nil && v.Again {
		r.verify.Refetched.Lost += max(0, v.Gone-r.evicted) // another round brings it again
	}
	return v, err
}

func (r *round) count(ctx workflow.Context, p activities.Planned) (v activities.Verified, err error) {
	r.serving, r.verify.Plan = r.d.unserved(ctx, r.d.met), p.Plan
	r.verify.Select = r.d.s.Select
	if r.verify.Copies = 0; r.d.byCopies(ctx) {
		r.verify.Copies = r.d.s.Copies
	}
	return v, workflow.ExecuteActivity(working(ctx, 0, 3), do.Verify, r.verify).Get(ctx, &v)
}

// deep are those of some jobs that want every byte read again.
func (d *dataset) deep(jobs []string) (deep []string) {
	for _, job := range jobs {
		if i := d.find(job); i >= 0 && d.s.Holders[i].Deep {
			deep = append(deep, job)
		}
	}
	return deep
}

// readAgain serves those who wait for no more than the data, and has every byte
// read for the others. What turns out wrong is out of use, and loaded again.
func (r *round) readAgain(ctx workflow.Context, found activities.Verified, deep []string) (activities.Verified, error) {
	d := r.d
	plain := slices.DeleteFunc(slices.Clone(r.serving), func(job string) bool { return slices.Contains(deep, job) })
	d.settle(ctx, plain, Outcome{State: api.JobReady, Certificate: found.Certificate})
	d.s.State, d.s.Deep, r.serving = api.JobWarming, true, deep
	defer func() { d.s.Deep = false }()
	in := r.verify
	in.Deep = true
	reading := workflow.ExecuteActivity(working(ctx, 0, 6), do.Verify, in)
	r.serveNewcomers(ctx, reading)
	var read activities.Verified
	err := reading.Get(ctx, &read)
	if err == nil && read.Again {
		r.verify.Refetched.Lost += read.Gone
	}
	return read, err
}

// serveNewcomers counts for those who come while all is read and did not ask for
// that. Once something is missing, they wait for the next round.
func (r *round) serveNewcomers(ctx workflow.Context, reading workflow.Future) {
	d := r.d
	newcomers := func() (jobs []string) {
		for _, h := range d.s.Holders {
			if h.Leased && !h.Served && !h.Deep && h.Replicas <= 1 && !h.local() && h.Select == d.s.Select {
				jobs = append(jobs, h.Job)
			}
		}
		return jobs
	}
	for workflow.Await(ctx, func() bool { return reading.IsReady() || len(newcomers()) > 0 }) == nil && !reading.IsReady() {
		jobs := newcomers()
		in := activities.VerifyInput{Dataset: d.s.Dataset, Generation: d.s.Generation, Manifest: d.s.Manifest, Select: d.s.Select, Started: workflow.Now(ctx)}
		var v activities.Verified
		err := workflow.ExecuteActivity(working(ctx, 0, 3), do.Verify, in).Get(ctx, &v)
		if err != nil || v.State != api.CertificateReady {
			return
		}
		d.settle(ctx, jobs, Outcome{State: api.JobReady, Certificate: v.Certificate})
		d.s.State = api.JobWarming
	}
}

// awaitAway waits until workers that went away after they had loaded their
// parts are back, or the return window is over.
func (r *round) awaitAway(ctx workflow.Context, p activities.Planned, parts []int) error {
	now := workflow.Now(ctx)
	until := returnBy(now, r.d.window, r.d.earliest(now))
	var away []workflow.Future
	for _, part := range parts {
		in := activities.AwaitInput{Plan: p.Plan, Part: part, Until: until}
		away = append(away, workflow.ExecuteActivity(working(ctx, loadSilence, loadTries), do.AwaitReturn, in))
	}
	for _, f := range away {
		if err := f.Get(ctx, nil); err != nil {
			return err
		}
	}
	return nil
}

// giveBack ends the loads of a plan and returns the space they did not use.
// named says in the log whose they are.
func giveBack(ctx workflow.Context, plan stoker.ID, named ...any) {
	ctx, cancel := workflow.NewDisconnectedContext(ctx)
	defer cancel()
	if err := workflow.ExecuteActivity(briefly(ctx, activities.LeaseTTL, 3), do.GiveBack, plan).Get(ctx, nil); err != nil {
		workflow.GetLogger(ctx).Warn("not all workers gave their space back", append(named, "plan", plan.Short(), "error", err)...)
	}
}

// partsInline is how many workers a dataset's workflow drives by itself: a child
// would cost such loads more time than it saves events.
const partsInline = 16

// inlineVersion guards what an older release does not do: where one planned,
// children drive all loads.
const inlineVersion = "load-inline"

// loadParts drives all parts and adds up what they cost.
func (r *round) loadParts(ctx workflow.Context, p activities.Planned) error {
	r.evicted = 0
	r.d.deadline = r.d.earliest(workflow.Now(ctx))
	if p.Parts <= partsInline && workflow.GetVersion(ctx, inlineVersion, workflow.DefaultVersion, 1) != workflow.DefaultVersion {
		l := newLoader(ctx, LoadInput{Plan: p.Plan, To: p.Parts, Window: r.d.window, Deadline: r.d.deadline})
		r.d.loader = l
		defer func() { r.d.loader = nil }()
		err := l.run(ctx)
		return r.loaded(p, l.sum, err)
	}
	return r.loadByChildren(ctx, p)
}

// loadByChildren has children drive the parts, some each.
func (r *round) loadByChildren(ctx workflow.Context, p activities.Planned) error {
	var children []workflow.ChildWorkflowFuture
	for from := 0; from < p.Parts; from += partsPerChild {
		child := workflow.WithChildOptions(ctx, workflow.ChildWorkflowOptions{
			WorkflowID:          fmt.Sprintf("load-%s-%s-%d", r.d.cluster, p.Plan.Short(), from/partsPerChild),
			WaitForCancellation: true, TypedSearchAttributes: attributes(r.d.search, "", r.d.s.Dataset),
		})
		in := LoadInput{Plan: p.Plan, From: from, To: min(from+partsPerChild, p.Parts), Window: r.d.window, Deadline: r.d.deadline}
		children = append(children, workflow.ExecuteChildWorkflow(child, Load, in))
	}
	r.d.children = children
	defer func() { r.d.children = nil }()
	var failed error
	for _, c := range children {
		var l Loaded
		err := c.Get(ctx, &l)
		if err = r.loaded(p, l, err); err != nil && failed == nil {
			failed = err
		}
	}
	return failed
}

// loaded counts what some parts cost, and says why they failed.
func (r *round) loaded(p activities.Planned, l Loaded, err error) error {
	r.verify.UFSRequests += l.UFSRequests
	r.verify.UFSBytes += l.UFSBytes
	r.verify.Refetched.Add(l.Refetched)
	r.evicted += l.Evicted
	if err == nil && l.Error != nil {
		err = l.Error.Err("load", p.Plan.Short())
	}
	return err
}
