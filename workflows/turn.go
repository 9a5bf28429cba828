package workflows

import (
	"fmt"
	"time"

	"go.temporal.io/sdk/workflow"

	"stoker.dev"
	"stoker.dev/activities"
	"stoker.dev/internal/api"
)

// queueVersion guards what an older release does not do: where one began a
// claim, it joins its datasets at once, and each waits for its own space.
const queueVersion = "claim-queue"

// turnLimit is how long a claim may take to hear whether it got its space: its
// datasets are planned meanwhile. After that it is taken for one that did.
const turnLimit = 2 * time.Minute

// turns is how a job gets the space of all its datasets or of none.
type turns struct {
	whole   bool
	try     int
	joining int
	spread  bool // its nodes have no room for all of its datasets
	granted map[stoker.ID]bool
	refused *api.ErrorBody // by one of them
}

// run names a try to join: what an earlier one is told late is not for this one.
func (j *job) run(ctx workflow.Context) string {
	if j.try == 0 {
		return runOf(ctx)
	}
	return fmt.Sprintf("%s/%d", runOf(ctx), j.try)
}

// claim joins the datasets, when there is space for all of them. A plain preload
// does not wait for that: it is refused by whichever does not fit.
func (j *job) claim(ctx workflow.Context) {
	j.granted = map[stoker.ID]bool{}
	if j.s.Input.Preload || workflow.GetVersion(ctx, queueVersion, workflow.DefaultVersion, 1) == workflow.DefaultVersion {
		j.join(ctx)
		return
	}
	j.whole = true
	workflow.Go(ctx, j.takeTurns)
}

// takeTurns tries until all datasets have their space. Between two tries the job
// holds none of them, so no two claims ever wait for each other.
func (j *job) takeTurns(ctx workflow.Context) {
	in := activities.AdmitInput{Claim: j.waiting(ctx)}
	var a activities.Admission
	if err := workflow.ExecuteActivity(working(ctx, 0, 3), do.Admit, in).Get(ctx, &a); err != nil {
		a = activities.Admission{State: activities.AdmitNow} // whoever plans finds the same, and says so
	}
	for ctx.Err() == nil {
		switch {
		case a.State == activities.AdmitNever:
			j.never(a)
			return
		case a.State == activities.AdmitNow:
			j.spread = a.Spread
			j.join(ctx)
			if j.settles(ctx) {
				if j.s.Queued {
					j.dequeue(ctx)
					j.s.Queued, j.changed = false, true
				}
				return
			}
			a = activities.Admission{State: activities.AdmitWait, NeedBytes: a.NeedBytes, FreeBytes: a.FreeBytes, Why: j.refused.Message}
			j.letGo(ctx)
			j.nextTry()
		}
		j.s.Queued, j.changed = true, true
		in.Claim = j.waiting(ctx) // it may have been changed
		enter := activities.EnqueueInput{Claim: in.Claim, Why: a, Try: j.try}
		if workflow.ExecuteActivity(insisting(ctx), do.Enqueue, enter).Get(ctx, nil) != nil {
			return // it has ended; or Temporal did not take it in a day
		}
		workflow.GetSignalChannel(ctx, turnSignal).Receive(ctx, &a)
	}
}

func (j *job) waiting(ctx workflow.Context) activities.WaitingClaim {
	in := &j.s.Input
	w := activities.WaitingClaim{Job: in.Job, Owner: in.Owner, Run: runOf(ctx), Replicas: in.Replicas, Priority: in.Priority, Deadline: in.Deadline, Submitted: in.Submitted,
		Nodes: in.Nodes, Auto: in.Auto}
	for _, d := range in.Datasets {
		if in.Replicas == 0 {
			w.Replicas = max(w.Replicas, d.Replicas)
		}
		w.Datasets = append(w.Datasets, activities.AdmitDataset{Dataset: d.Name, Manifest: d.Manifest, Select: d.Select})
	}
	return w
}

// settles reports whether all datasets have got their space: it waits for that,
// or for one that has not.
func (j *job) settles(ctx workflow.Context) bool {
	_, err := workflow.AwaitWithTimeout(ctx, turnLimit, func() bool {
		if j.refused != nil {
			return true
		}
		for i, d := range j.s.Input.Datasets {
			if !j.granted[d.Manifest] && j.s.Outcomes[i].State == "" {
				return false
			}
		}
		return true
	})
	if j.refused != nil && err == nil {
		err = workflow.Await(ctx, func() bool { return j.joining == 0 })
	}
	return err != nil || j.refused == nil
}

// nextTry forgets what this one was told.
func (j *job) nextTry() {
	j.try++
	j.refused = nil
	clear(j.granted)
	for i := range j.s.Outcomes {
		j.s.Outcomes[i] = Outcome{}
	}
}

// never ends the hope for space.
func (j *job) never(a activities.Admission) {
	why := &api.ErrorBody{Kind: stoker.KindNoSpace.String(), Message: a.Why}
	for i := range j.s.Outcomes {
		j.s.Outcomes[i] = Outcome{State: api.JobFailed, Error: why}
	}
	j.changed = true
}

func (j *job) dequeue(ctx workflow.Context) {
	in := activities.DequeueInput{Job: j.s.Input.Job, Run: runOf(ctx)}
	if err := workflow.ExecuteActivity(insisting(ctx), do.Dequeue, in).Get(ctx, nil); err != nil && ctx.Err() == nil {
		workflow.GetLogger(ctx).Warn("a claim stays in the queue until its turn", "job", in.Job, "error", err)
	}
}
