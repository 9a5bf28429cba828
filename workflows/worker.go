package workflows

import (
	"context"
	"sync"
	"time"

	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"stoker.dev/activities"
)

// startAgain is how long a controller waits before it tries again to reach
// a Temporal that does not answer.
const startAgain = 2 * time.Second

// Serve runs workflows and activities of the cluster until ctx ends. While
// Temporal does not answer it tries again; ready is called once it does.
func (c *Client) Serve(ctx context.Context, acts *activities.Activities, ready func()) {
	for ctx.Err() == nil {
		w := worker.New(c.temporal, c.queue(), worker.Options{
			MaxHeartbeatThrottleInterval: time.Second, // progress is seen by people
			WorkerStopTimeout:            2 * time.Second,
		})
		register(w, acts)
		err := w.Start()
		if err == nil {
			c.serve(ctx, ready)
			w.Stop()
			return
		}
		c.log.Warn("Temporal does not answer; trying again", "address", c.address, "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(startAgain):
		}
	}
}

// serve waits for the end of ctx. What the namespace knows at the start is
// known before anybody is told that this controller is ready.
func (c *Client) serve(ctx context.Context, ready func()) {
	var searching sync.WaitGroup
	defer searching.Wait()
	soon, cancel := context.WithTimeout(ctx, startAgain)
	defer cancel()
	if c.addAttributes(soon) == nil {
		c.searchable.Store(true)
	} else {
		searching.Go(func() { c.makeSearchable(ctx) })
	}
	ready()
	<-ctx.Done()
}

// register enters workflows and activities under their names.
func register(w worker.Registry, acts *activities.Activities) {
	for _, f := range []any{
		acts.Hold, acts.Join, acts.Leave, acts.PutLeases, acts.Plan, acts.Reserve, acts.GiveBack, acts.LoadPart, acts.AwaitReturn, acts.Mend, acts.Verify,
		acts.Freeze, acts.Register, acts.Renew, acts.Unregister, acts.SetSyncEvery, acts.PutSchedule, acts.SyncTarget, acts.SyncFailed,
		acts.Admit, acts.Enqueue, acts.Dequeue, acts.Requeue, acts.Wish, acts.PlanCopies, acts.DropCopies,
	} {
		w.RegisterActivity(f)
	}
	registerWorkflows(w)
}

func registerWorkflows(w worker.WorkflowRegistry) {
	for name, f := range map[string]any{
		jobWorkflow: Job, datasetWorkflow: Dataset, loadWorkflow: Load, catalogWorkflow: Catalog, listWorkflow: List, syncWorkflow: Sync, removeWorkflow: Remove,
		scheduleWorkflow: Schedule, scheduledWorkflow: ScheduledSync,
		queueWorkflow: Queue, repairWorkflow: Repair,
	} {
		w.RegisterWorkflowWithOptions(f, workflow.RegisterOptions{Name: name})
	}
}
