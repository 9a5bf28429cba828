package workflows

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"time"

	"go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"stoker.dev"
	"stoker.dev/activities"
	"stoker.dev/cache/manifest"
)

var _ activities.Scheduler = (*Client)(nil)

// What a schedule may ask for: a listing costs requests, and Temporal counts in
// seconds.
const (
	MinSyncEvery = time.Minute
	MaxSyncEvery = 366 * 24 * time.Hour
)

// Schedule sets how often a dataset is synced: in the registry, which says it to
// people, then in Temporal, which does it. It runs as the one workflow that may
// change the entry.
func Schedule(ctx workflow.Context, in activities.ScheduleInput) (activities.Frozen, error) {
	err := workflow.ExecuteActivity(working(ctx, 0, 6), do.SetSyncEvery, in).Get(ctx, nil)
	if err == nil {
		err = workflow.ExecuteActivity(working(ctx, 0, 6), do.PutSchedule, in.Name).Get(ctx, nil)
	}
	return activities.Frozen{}, err
}

// ScheduledSync is what a schedule starts: a sync like everybody's. If one runs
// already, or the entry is being changed, that will do until the next time. A
// schedule whose dataset is gone ends itself.
func ScheduledSync(ctx workflow.Context, in activities.ScheduleInput, cluster string) error {
	var target activities.SyncTarget
	if err := workflow.ExecuteActivity(working(ctx, 0, 6), do.SyncTarget, in).Get(ctx, &target); err != nil {
		return err
	}
	if target.Gone {
		return workflow.ExecuteActivity(working(ctx, 0, 6), do.PutSchedule, in.Name).Get(ctx, nil)
	}
	child := workflow.WithChildOptions(ctx, workflow.ChildWorkflowOptions{
		WorkflowID: catalogID(cluster, in.Name), WaitForCancellation: true,
		WorkflowIDReusePolicy: enums.WORKFLOW_ID_REUSE_POLICY_ALLOW_DUPLICATE,
	})
	err := workflow.ExecuteChildWorkflow(child, syncWorkflow, SyncInput{Name: in.Name, Roots: target.Roots, Base: target.Base}).Get(ctx, nil)
	if temporal.IsWorkflowExecutionAlreadyStartedError(err) {
		return nil
	}
	return err
}

// scheduleID names a dataset's schedule; Temporal adds the time of each run.
func (c *Client) scheduleID(name string) string { return "sync-" + c.cluster + "-" + name }

// schedule is how often, and what. Datasets have their turns at different times
// of the interval, and always the same ones.
func (c *Client) schedule(name string, created time.Time, every time.Duration) client.ScheduleOptions {
	h := fnv.New64a()
	_, _ = h.Write([]byte(name)) // it never fails
	return client.ScheduleOptions{
		ID: c.scheduleID(name),
		Spec: client.ScheduleSpec{Intervals: []client.ScheduleIntervalSpec{{
			Every: every, Offset: (time.Duration(h.Sum64()%uint64(every)) / time.Second) * time.Second,
		}}},
		Action: &client.ScheduleWorkflowAction{
			ID: c.scheduleID(name), Workflow: scheduledWorkflow, TaskQueue: c.queue(),
			Args: []any{activities.ScheduleInput{Name: name, Created: created, Every: every}, c.cluster},
		},
		Overlap: enums.SCHEDULE_OVERLAP_POLICY_SKIP,
		// After an outage of Temporal one sync makes up for all that were missed.
		CatchupWindow: every,
	}
}

// PutSchedule implements activities.Scheduler.
func (c *Client) PutSchedule(ctx context.Context, name string, created time.Time, every time.Duration) error {
	s := c.temporal.ScheduleClient()
	h := s.GetHandle(ctx, c.scheduleID(name))
	if every == 0 {
		return c.gone(c.told(ctx, "schedule", name, h.Delete(ctx)))
	}
	o := c.schedule(name, created, every)
	_, err := s.Create(ctx, o)
	if !errors.Is(err, temporal.ErrScheduleAlreadyRunning) {
		return c.told(ctx, "schedule", name, err)
	}
	return c.told(ctx, "schedule", name, h.Update(ctx, client.ScheduleUpdateOptions{DoUpdate: func(client.ScheduleUpdateInput) (*client.ScheduleUpdate, error) {
		return &client.ScheduleUpdate{Schedule: &client.Schedule{
			Action: o.Action, Spec: &o.Spec, State: &client.ScheduleState{},
			Policy: &client.SchedulePolicies{Overlap: o.Overlap, CatchupWindow: o.CatchupWindow},
		}}, nil
	}}))
}

// gone makes what is not there no error.
func (c *Client) gone(err error) error {
	if stoker.KindOf(err) == stoker.KindNotExist {
		return nil
	}
	return err
}

// NextSync is when a dataset's schedule has its next turn; zero: it has none.
func (c *Client) NextSync(ctx context.Context, name string) (time.Time, error) {
	d, err := c.temporal.ScheduleClient().GetHandle(ctx, c.scheduleID(name)).Describe(ctx)
	if err != nil {
		return time.Time{}, c.gone(c.told(ctx, "schedule", name, err))
	}
	if d.Schedule.State != nil && d.Schedule.State.Paused || len(d.Info.NextActionTimes) == 0 {
		return time.Time{}, nil // somebody paused it in Temporal
	}
	return d.Info.NextActionTimes[0].UTC(), nil
}

// SetSchedule sets how often a registered dataset is synced; 0 ends it.
func (c *Client) SetSchedule(ctx context.Context, d *manifest.Dataset, every time.Duration) error {
	return c.alone(ctx, d.Name, scheduleWorkflow, activities.ScheduleInput{Name: d.Name, Created: d.Created, Every: every})
}

// alone runs a workflow that changes a dataset's entry to its end.
func (c *Client) alone(ctx context.Context, name, kind string, in any) error {
	run, err := c.begin(ctx, c.catalogID(name), kind, name, in, false)
	if err != nil {
		return err
	}
	return c.told(ctx, "dataset", name, run.Get(ctx, nil))
}

// takeTurns bounds how often a change of the registry waits for another one.
const takeTurns = 20

// begin starts a workflow whose id others may have. One of the same kind is
// joined, if share says so; any other is waited for, a sync of a dataset that
// is to go is cancelled.
func (c *Client) begin(ctx context.Context, id, kind, key string, in any, share bool) (client.WorkflowRun, error) {
	return c.beginWith(ctx, c.options(id), kind, key, in, share)
}

func (c *Client) beginWith(ctx context.Context, o client.StartWorkflowOptions, kind, key string, in any, share bool) (client.WorkflowRun, error) {
	id := o.ID
	o.WorkflowIDConflictPolicy, o.WorkflowExecutionErrorWhenAlreadyStarted = enums.WORKFLOW_ID_CONFLICT_POLICY_FAIL, true
	for range takeTurns {
		o.TypedSearchAttributes = attributes(c.searchable.Load(), "", key)
		run, err := c.temporal.ExecuteWorkflow(ctx, o, kind, in)
		var busy *serviceerror.WorkflowExecutionAlreadyStarted
		switch {
		case c.notSearchable(err):
			continue
		case !errors.As(err, &busy):
			return run, c.told(ctx, "dataset", key, err)
		}
		there, err := c.temporal.DescribeWorkflowExecution(ctx, id, busy.RunId)
		if err != nil {
			return nil, c.told(ctx, "dataset", key, err)
		}
		now := there.WorkflowExecutionInfo.GetType().GetName()
		if share && now == kind {
			return c.temporal.GetWorkflow(ctx, id, busy.RunId), nil
		}
		if kind == removeWorkflow && now == syncWorkflow {
			if err := c.gone(c.told(ctx, "dataset", key, c.temporal.CancelWorkflow(ctx, id, busy.RunId))); err != nil {
				return nil, err
			}
		}
		_ = c.temporal.GetWorkflow(ctx, id, busy.RunId).Get(ctx, nil) // how it ended is for whoever began it
		if ctx.Err() != nil {
			return nil, stoker.Errorf(stoker.KindBusy, "dataset", key, "is being listed or changed, and was not free in time: try again (%w)", context.Cause(ctx))
		}
	}
	return nil, stoker.Errorf(stoker.KindBusy, "dataset", key, "is changed by others all the time: try again")
}

func catalogID(cluster, name string) string { return fmt.Sprintf("catalog-%s-%s", cluster, name) }
