package workflows

import (
	"time"

	"go.temporal.io/sdk/workflow"

	"stoker.dev"
	"stoker.dev/activities"
	"stoker.dev/internal/api"
)

// LoadInput is some parts of a plan.
type LoadInput struct {
	Plan     stoker.ID
	From, To int
	Window   time.Duration // how long a lost worker is waited for
	Deadline time.Time     `json:",omitzero"` // by which somebody wants the data; zero: none
}

// Loaded is what came of them: what they cost stands there even if one failed.
type Loaded struct {
	activities.PartLoaded
	Error *api.ErrorBody `json:",omitempty"`
}

// maxMends bounds how often one load is mended before it begins anew.
const maxMends = 16

// loader drives parts of a plan, and of the plans that mend it.
type loader struct {
	in    LoadInput
	sum   Loaded
	mends int
	// mended are the plans whose space was reserved here; the first plan's is
	// whoever's that reserved it.
	mended []stoker.ID
	work   workflow.WaitGroup
}

// Load drives parts From to To of a plan, each by one activity. All are heard
// to their end, whatever becomes of the others. When a worker goes away, what
// it had not begun moves to others at once; the rest waits for its return as
// long as the window says, and moves then.
func Load(ctx workflow.Context, in LoadInput) (Loaded, error) {
	l := newLoader(ctx, in)
	workflow.Go(ctx, func(ctx workflow.Context) {
		for ctx.Err() == nil {
			workflow.GetSignalChannel(ctx, hurrySignal).Receive(ctx, &l.in.Deadline)
		}
	})
	err := l.run(ctx)
	return l.sum, err
}

func newLoader(ctx workflow.Context, in LoadInput) *loader {
	return &loader{in: in, work: workflow.NewWaitGroup(ctx)}
}

// run returns when all parts have ended.
func (l *loader) run(ctx workflow.Context) error {
	for part := l.in.From; part < l.in.To; part++ {
		l.start(ctx, activities.PartInput{Plan: l.in.Plan, Part: part})
	}
	l.work.Wait(ctx)
	if ctx.Err() != nil || l.sum.Error != nil {
		for _, plan := range l.mended {
			giveBack(ctx, plan, "load", l.in.Plan.Short())
		}
	}
	return ctx.Err()
}

func (l *loader) start(ctx workflow.Context, in activities.PartInput) {
	l.work.Add(1)
	workflow.Go(ctx, func(ctx workflow.Context) {
		defer l.work.Done()
		l.part(ctx, in)
	})
}

func (l *loader) fail(err error) {
	if l.sum.Error == nil {
		l.sum.Error = errorBody(err)
	}
}

// part drives one part to its end.
func (l *loader) part(ctx workflow.Context, in activities.PartInput) {
	var p activities.PartLoaded
	err := workflow.ExecuteActivity(working(ctx, loadSilence, loadTries), do.LoadPart, in).Get(ctx, &p)
	l.sum.UFSRequests += p.UFSRequests
	l.sum.UFSBytes += p.UFSBytes
	l.sum.Refetched.Add(p.Refetched)
	l.sum.Failed += p.Failed
	l.sum.Evicted += p.Evicted
	switch {
	case err != nil:
		l.fail(err)
	case p.Lost && ctx.Err() == nil:
		if err := l.lost(ctx, in, p); err != nil {
			l.fail(err)
		}
	}
}

// lost does what must be done for a part whose worker went away.
func (l *loader) lost(ctx workflow.Context, in activities.PartInput, p activities.PartLoaded) error {
	until := returnBy(workflow.Now(ctx), l.in.Window, l.in.Deadline)
	m, err := l.mend(ctx, in, false)
	kept := m.Kept
	if err != nil || kept.IsZero() {
		l.sum.Refetched.Lost += p.Had // nothing of it is waited for
		return err
	}
	var back bool
	await := activities.AwaitInput{Plan: kept, Part: in.Part, Until: until}
	if err := workflow.ExecuteActivity(working(ctx, loadSilence, loadTries), do.AwaitReturn, await).Get(ctx, &back); err != nil {
		return err
	}
	if back {
		if kept != in.Plan { // of that it has kept the promise
			// Others that have the same shards go on by the plan that they began with.
			if err := l.reserve(ctx, kept, in.Plan, in.Part); err != nil {
				return err
			}
		}
		l.part(ctx, activities.PartInput{Plan: kept, Part: in.Part, Had: p.Had, Told: p.Told})
		return nil
	}
	if m.Node != "" { // what was only there others have counted as read past it
		return stoker.Errorf(stoker.KindTransient, "load", l.in.Plan.Short(), "worker %s has to have all of the data, went away and did not come back: start it", m.Node)
	}
	l.sum.Refetched.Lost += p.Had
	m, err = l.mend(ctx, activities.PartInput{Plan: kept, Part: in.Part}, true)
	if err == nil && !m.Kept.IsZero() {
		err = stoker.Errorf(stoker.KindNoSpace, "load", l.in.Plan.Short(), "a worker went away, and the others have no space for its part")
	}
	return err
}

// waitVersion guards what an older release does not do: where one failed since
// the others have no space for what would move, it waits for the worker now.
const waitVersion = "mend-waits"

// mend moves shards of a part to other workers and starts their loads. It
// returns the plan of those that did not move.
func (l *loader) mend(ctx workflow.Context, in activities.PartInput, all bool) (m activities.Mended, err error) {
	if l.mends++; l.mends > maxMends {
		return m, stoker.Errorf(stoker.KindTransient, "load", l.in.Plan.Short(), "workers go away again and again")
	}
	err = workflow.ExecuteActivity(working(ctx, 0, 6), do.Mend, activities.MendInput{
		Plan: in.Plan, Part: in.Part, All: all, Round: workflow.Now(ctx).UnixNano(),
	}).Get(ctx, &m)
	if err != nil || len(m.Parts) == 0 {
		return m, err
	}
	err = l.reserve(ctx, m.Moved, stoker.ID{})
	if isKind(err, stoker.KindNoSpace) && workflow.GetVersion(ctx, waitVersion, workflow.DefaultVersion, 1) != workflow.DefaultVersion {
		m.Kept = in.Plan // none of it moves
		return m, nil
	}
	if err != nil {
		return m, err
	}
	for _, part := range m.Parts {
		l.start(ctx, activities.PartInput{Plan: m.Moved, Part: part})
	}
	return m, nil
}

func (l *loader) reserve(ctx workflow.Context, plan, replaces stoker.ID, parts ...int) error {
	l.mended = append(l.mended, plan)
	return workflow.ExecuteActivity(working(ctx, 0, 3), do.Reserve, activities.ReserveInput{Plan: plan, Replaces: replaces, Parts: parts}).Get(ctx, nil)
}
