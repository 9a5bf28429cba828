package workflows

import (
	"context"
	"errors"
	"time"

	"go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/workflow"

	"stoker.dev"
	"stoker.dev/activities"
	"stoker.dev/internal/api"
)

// RepairInput says how many copies of a manifest's shards there are to be.
type RepairInput struct {
	Dataset    string
	Generation int `json:",omitempty"`
	Manifest   stoker.ID
	Replicas   int
	Spare      bool `json:",omitempty"` // nobody holds the data: no space is made for it
	Drop       bool `json:",omitempty"` // make no copies
	Surplus    bool `json:",omitempty"` // drop what there is beyond Replicas, on workers that are not drained too
}

// RepairState is how far that is.
type RepairState struct {
	Input       RepairInput
	Copies      activities.CopiesPlanned
	Copying     bool               `json:",omitempty"`
	UFSBytes    int64              `json:",omitempty"` // that it cost: none
	Unavailable int                `json:",omitempty"` // objects that no worker had
	Lost        int                `json:",omitempty"` // workers that went away meanwhile
	Dropped     activities.Dropped `json:",omitzero"`
	Error       *api.ErrorBody     `json:",omitempty"` // why it did not come to its end
}

// Enough reports whether it found and left as many copies as there are to be.
func (s *RepairState) Enough() bool {
	return s.Error == nil && s.Copies.Plan.IsZero() && s.Copies.ShortBytes == 0 && s.Dropped.Shards == 0
}

// Repair looks once how often each shard of a manifest is on the workers, has those
// that are missing copied among them, and drops what is there too often, or on
// workers that are drained. It asks no under file system. There is one at a time
// for each manifest; controllers begin it again until there is nothing to do.
func Repair(ctx workflow.Context, in RepairInput) (RepairState, error) {
	s := RepairState{Input: in}
	if err := workflow.SetQueryHandler(ctx, statusQuery, func() (RepairState, error) { return s, nil }); err != nil {
		return s, err
	}
	err := error(nil)
	if !in.Drop {
		err = s.copy(ctx)
	}
	if err == nil || isKind(err, stoker.KindNoSpace) {
		drop := activities.DropInput{Dataset: in.Dataset, Manifest: in.Manifest, Replicas: in.Replicas, Spare: in.Spare, Surplus: in.Surplus}
		if derr := workflow.ExecuteActivity(working(ctx, 0, 3), do.DropCopies, drop).Get(ctx, &s.Dropped); err == nil {
			err = derr
		}
	}
	s.Error = errorBody(err)
	return s, ctx.Err()
}

// copy makes the copies that are missing.
func (s *RepairState) copy(ctx workflow.Context) (err error) {
	in := s.Input
	ask := activities.CopiesInput{Dataset: in.Dataset, Generation: in.Generation, Manifest: in.Manifest, Replicas: in.Replicas, Spare: in.Spare,
		Round: workflow.Now(ctx).UnixNano()}
	if err := workflow.ExecuteActivity(working(ctx, 0, 2), do.PlanCopies, ask).Get(ctx, &s.Copies); err != nil {
		return err
	}
	if p := s.Copies; p.ShortBytes > 0 && !in.Spare {
		err = stoker.Errorf(stoker.KindNoSpace, "copies", in.Dataset, "the other workers have no room for %s of its copies: %s free; add workers, or release what is held",
			api.HumanBytes(p.ShortBytes), api.HumanBytes(p.FreeBytes))
	}
	if s.Copies.Plan.IsZero() {
		return err
	}
	reserve := activities.ReserveInput{Plan: s.Copies.Plan, Copies: true, Spare: in.Spare}
	if rerr := workflow.ExecuteActivity(working(ctx, 0, 2), do.Reserve, reserve).Get(ctx, nil); rerr != nil {
		return rerr
	}
	s.Copying = true
	defer func() { s.Copying = false }()
	if lerr := s.load(ctx); lerr != nil {
		giveBack(ctx, s.Copies.Plan, "dataset", in.Dataset, "manifest", in.Manifest.Short())
		return lerr
	}
	return err
}

// load drives all parts. What a worker does not bring in is seen by the next
// Repair, which counts again.
func (s *RepairState) load(ctx workflow.Context) (failed error) {
	var parts []workflow.Future
	for _, part := range s.Copies.Parts {
		parts = append(parts, workflow.ExecuteActivity(working(ctx, loadSilence, loadTries), do.LoadPart, activities.PartInput{Plan: s.Copies.Plan, Part: part, Copies: true}))
	}
	for _, f := range parts {
		var p activities.PartLoaded
		if err := f.Get(ctx, &p); err != nil {
			if failed == nil {
				failed = err
			}
			continue
		}
		s.UFSBytes += p.UFSBytes
		s.Unavailable += p.Failed
		if p.Lost {
			s.Lost++
		}
	}
	if failed == nil && s.Lost > 0 {
		failed = stoker.Errorf(stoker.KindTransient, "copies", s.Input.Dataset, "%d workers went away meanwhile", s.Lost)
	}
	return failed
}

func (c *Client) repairID(id stoker.ID) string { return "repair-" + c.cluster + "-" + id.String() }

// Repair begins a Repair of a manifest, and reports whether it did: one that runs
// goes on.
func (c *Client) Repair(ctx context.Context, in RepairInput) (begun bool, err error) {
	o := c.options(c.repairID(in.Manifest))
	o.WorkflowIDConflictPolicy, o.WorkflowExecutionErrorWhenAlreadyStarted = enums.WORKFLOW_ID_CONFLICT_POLICY_FAIL, true
	o.TypedSearchAttributes = attributes(c.searchable.Load(), "", in.Dataset)
	_, err = c.temporal.ExecuteWorkflow(ctx, o, repairWorkflow, in)
	var busy *serviceerror.WorkflowExecutionAlreadyStarted
	switch {
	case c.notSearchable(err):
		return c.Repair(ctx, in)
	case errors.As(err, &busy):
		return false, nil
	}
	return err == nil, c.told(ctx, "copies", in.Dataset, err)
}

// RepairState asks the last Repair of a manifest, when it began and whether it runs yet. NotExist:
// there was none within Temporal's retention.
func (c *Client) RepairState(ctx context.Context, id stoker.ID) (s RepairState, at time.Time, running bool, err error) {
	d, err := c.temporal.DescribeWorkflowExecution(ctx, c.repairID(id), "")
	if err != nil {
		return s, at, false, c.told(ctx, "copies", id.Short(), err)
	}
	at = d.WorkflowExecutionInfo.StartTime.AsTime()
	running = d.WorkflowExecutionInfo.Status == enums.WORKFLOW_EXECUTION_STATUS_RUNNING
	v, err := c.temporal.QueryWorkflow(ctx, c.repairID(id), d.WorkflowExecutionInfo.Execution.RunId, statusQuery)
	if err == nil {
		err = v.Get(&s)
	}
	return s, at, running, c.told(ctx, "copies", id.Short(), err)
}
