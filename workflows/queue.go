package workflows

import (
	"cmp"
	"slices"

	"go.temporal.io/sdk/workflow"

	"stoker.dev/activities"
)

// QueueInput is what a run of the queue begins with.
type QueueInput struct {
	Cluster string
	Waiting []Waiting `json:",omitempty"` // of the run that this one continues
}

// Waiting is a claim that waits for space.
type Waiting struct {
	Claim activities.WaitingClaim
	Why   activities.Admission
	Turn  bool `json:",omitempty"` // it was told to join its datasets
}

// QueueState is the claims that wait, the next one first.
type QueueState struct{ Waiting []Waiting }

type queue struct {
	cluster string
	s       QueueState
	changes int
	back    bool // a claim came back from its turn
}

// before orders claims: the highest priority, then the earliest deadline, then
// the oldest.
func before(a, b Waiting) int {
	x, y := &a.Claim, &b.Claim
	late := func(c *activities.WaitingClaim) int {
		if c.Deadline.IsZero() {
			return 1
		}
		return 0
	}
	return cmp.Or(cmp.Compare(y.Priority, x.Priority), cmp.Compare(late(x), late(y)), x.Deadline.Compare(y.Deadline),
		x.Submitted.Compare(y.Submitted), cmp.Compare(x.Job, y.Job))
}

func sortWaiting(w []Waiting) { slices.SortStableFunc(w, before) }

// Queue is where the cluster's claims wait that do not fit. The first one is
// tried, alone, whenever something may have changed; none passes it but those
// that need no space. It ends when nobody waits.
func Queue(ctx workflow.Context, in QueueInput) error {
	q := &queue{cluster: in.Cluster, s: QueueState{Waiting: in.Waiting}}
	if err := q.handle(ctx); err != nil {
		return err
	}
	// The claim that started this run comes after its first step.
	if err := workflow.Await(ctx, func() bool { return q.changes > 0 || len(q.s.Waiting) > 0 }); err != nil {
		return err
	}
	for {
		idle := workflow.AllHandlersFinished(ctx)
		switch {
		case len(q.s.Waiting) == 0 && idle:
			return nil
		case workflow.GetInfo(ctx).GetContinueAsNewSuggested() && idle:
			in.Waiting = q.s.Waiting
			return workflow.NewContinueAsNewError(ctx, Queue, in)
		}
		seen := q.changes
		again := q.tryFirst(ctx)
		if q.back { // that it came again is nothing new: the workers have no more space than they had
			q.back, seen = false, q.changes
		}
		if again || q.changes != seen {
			continue
		}
		if _, err := workflow.AwaitWithTimeout(ctx, queuedEvery, func() bool { return q.changes != seen }); err != nil {
			return err
		}
	}
}

func (q *queue) handle(ctx workflow.Context) error {
	if err := workflow.SetQueryHandler(ctx, statusQuery, func() (QueueState, error) { return q.s, nil }); err != nil {
		return err
	}
	if err := workflow.SetUpdateHandler(ctx, enqueueUpdate, q.enqueue); err != nil {
		return err
	}
	if err := workflow.SetUpdateHandler(ctx, changeUpdate, q.requeue); err != nil {
		return err
	}
	return workflow.SetUpdateHandler(ctx, dequeueUpdate, q.dequeue)
}

func (q *queue) find(job, run string) int {
	return slices.IndexFunc(q.s.Waiting, func(w Waiting) bool { return w.Claim.Job == job && w.Claim.Run == run })
}

// enqueue adds a claim, or puts it back after a turn that came to nothing. A
// job has one: that of an earlier run could not be taken out.
func (q *queue) enqueue(_ workflow.Context, in activities.EnqueueInput) error {
	q.s.Waiting = slices.DeleteFunc(q.s.Waiting, func(w Waiting) bool { return w.Claim.Job == in.Claim.Job })
	q.s.Waiting = append(q.s.Waiting, Waiting{Claim: in.Claim, Why: in.Why})
	sortWaiting(q.s.Waiting)
	q.changes++
	return nil
}

// dequeue takes a claim out that has its space, or has ended.
func (q *queue) dequeue(_ workflow.Context, in activities.DequeueInput) error {
	q.remove(in.Job, in.Run)
	return nil
}

func (q *queue) remove(job, run string) {
	if i := q.find(job, run); i >= 0 {
		q.s.Waiting = slices.Delete(q.s.Waiting, i, i+1)
		q.changes++
	}
}

// tryFirst asks whether the first claim fits, and gives it its turn if so. It
// reports whether there may be more to do at once.
func (q *queue) tryFirst(ctx workflow.Context) (again bool) {
	if len(q.s.Waiting) == 0 {
		return false // a handler has still to answer
	}
	first := q.s.Waiting[0].Claim
	var a activities.Admission
	if err := workflow.ExecuteActivity(working(ctx, 0, 3), do.Admit, activities.AdmitInput{Claim: first, Head: true}).Get(ctx, &a); err != nil {
		a.State, a.Why = activities.AdmitWait, errorBody(err).Message
	}
	i := q.find(first.Job, first.Run)
	switch {
	case i < 0:
		return true
	case a.State == activities.AdmitWait:
		q.s.Waiting[i].Why = a
		return false
	}
	return q.turn(ctx, first, a)
}

// turn lets a claim join its datasets, and waits until it says how that went. One
// whose workflow is gone waits for nothing.
func (q *queue) turn(ctx workflow.Context, c activities.WaitingClaim, a activities.Admission) (again bool) {
	q.s.Waiting[q.find(c.Job, c.Run)].Turn = true
	if err := workflow.SignalExternalWorkflow(ctx, JobID(q.cluster, c.Job), c.Run, turnSignal, a).Get(ctx, nil); err != nil {
		q.remove(c.Job, c.Run)
		return true
	}
	_, _ = workflow.AwaitWithTimeout(ctx, turnLimit, func() bool { // a cancelled queue ends with its next step
		i := q.find(c.Job, c.Run)
		return i < 0 || !q.s.Waiting[i].Turn
	})
	i := q.find(c.Job, c.Run)
	if i >= 0 && q.s.Waiting[i].Turn { // it hangs: others have waited for it long enough
		q.remove(c.Job, c.Run)
	}
	q.back = i >= 0 && q.find(c.Job, c.Run) >= 0
	return i < 0
}
