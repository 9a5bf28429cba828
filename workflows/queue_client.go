package workflows

import (
	"context"
	"fmt"

	"go.temporal.io/sdk/client"

	"stoker.dev"
	"stoker.dev/activities"
	"stoker.dev/internal/api"
)

func (c *Client) queueID() string { return "queue-" + c.cluster }

// Enqueue makes a claim wait for space; the workflow of the queue begins if need be.
func (c *Client) Enqueue(ctx context.Context, in activities.EnqueueInput) error {
	start := c.temporal.NewWithStartWorkflowOperation(c.options(c.queueID()), queueWorkflow, QueueInput{Cluster: c.cluster})
	h, err := c.temporal.UpdateWithStartWorkflow(ctx, client.UpdateWithStartWorkflowOptions{
		StartWorkflowOperation: start,
		UpdateOptions: client.UpdateWorkflowOptions{
			UpdateID: fmt.Sprintf("enqueue-%s-%d", in.Claim.Run, in.Try), UpdateName: enqueueUpdate, Args: []any{in}, WaitForStage: client.WorkflowUpdateStageCompleted,
		},
	})
	if err == nil {
		err = h.Get(ctx, nil)
	}
	if err = c.told(ctx, "enqueue", in.Claim.Job, err); err != nil {
		return stoker.Errorf(stoker.KindTransient, "enqueue", in.Claim.Job, "%w", err) // a queue that ended under it: the next try begins a new one
	}
	return nil
}

// Dequeue ends that. A queue that has ended has no claims.
func (c *Client) Dequeue(ctx context.Context, in activities.DequeueInput) error {
	h, err := c.temporal.UpdateWorkflow(ctx, client.UpdateWorkflowOptions{
		WorkflowID: c.queueID(), UpdateID: "dequeue-" + in.Run, UpdateName: dequeueUpdate, Args: []any{in}, WaitForStage: client.WorkflowUpdateStageCompleted,
	})
	if err == nil {
		err = h.Get(ctx, nil)
	}
	if err = c.told(ctx, "dequeue", in.Job, err); stoker.KindOf(err) == stoker.KindNotExist {
		return nil
	}
	return err
}

// Requeue changes a claim that waits.
func (c *Client) Requeue(ctx context.Context, in activities.WaitingClaim) error {
	return c.tellUpdate(ctx, c.queueID(), "requeue", in.Job, changeUpdate, in)
}

// Queue asks for the claims that wait, the next one first.
func (c *Client) Queue(ctx context.Context) (s QueueState, err error) {
	v, err := c.temporal.QueryWorkflow(ctx, c.queueID(), "", statusQuery)
	if err == nil {
		err = v.Get(&s)
	}
	if err = c.told(ctx, "queue", "", err); stoker.KindOf(err) == stoker.KindNotExist {
		return QueueState{}, nil
	}
	return s, err
}

// FirstWaiting is the job whose claim waits first; "" = none waits.
func (c *Client) FirstWaiting(ctx context.Context) (string, error) {
	s, err := c.Queue(ctx)
	if err != nil || len(s.Waiting) == 0 {
		return "", err
	}
	return s.Waiting[0].Claim.Job, nil
}

// Granted reports whether somebody's claim has got the space of a manifest: it is
// loaded, or held.
func (c *Client) Granted(ctx context.Context, manifest stoker.ID, selected string) (bool, error) {
	s, err := c.DatasetState(ctx, manifest)
	if stoker.KindOf(err) == stoker.KindNotExist {
		return false, nil
	}
	return err == nil && len(s.Holders) > 0 && (s.State == api.JobWarming || s.State == api.JobReady) && (s.Select == "" || s.Select == selected), err
}
