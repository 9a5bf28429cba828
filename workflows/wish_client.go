package workflows

import (
	"context"

	"go.temporal.io/sdk/client"

	"stoker.dev"
	"stoker.dev/activities"
)

// Change makes a claim wish something else; NotExist if it has ended.
func (c *Client) Change(ctx context.Context, job string, change Change) (s JobState, err error) {
	h, err := c.temporal.UpdateWorkflow(ctx, client.UpdateWorkflowOptions{
		WorkflowID: JobID(c.cluster, job), UpdateName: changeUpdate, Args: []any{change}, WaitForStage: client.WorkflowUpdateStageCompleted,
	})
	if err == nil {
		err = h.Get(ctx, &s)
	}
	return s, c.told(ctx, "job", job, err)
}

// Wish tells a dataset's workflow what one of its holders wishes of the load. One
// that has ended has no holders.
func (c *Client) Wish(ctx context.Context, in activities.WishInput) error {
	return c.tellUpdate(ctx, c.datasetID(in.Manifest), "wish", in.Manifest.Short(), wishUpdate, in)
}

// tellUpdate updates a workflow. One that has ended needs to know nothing.
func (c *Client) tellUpdate(ctx context.Context, id, op, key, update string, in any) error {
	h, err := c.temporal.UpdateWorkflow(ctx, client.UpdateWorkflowOptions{
		WorkflowID: id, UpdateName: update, Args: []any{in}, WaitForStage: client.WorkflowUpdateStageCompleted,
	})
	if err == nil {
		err = h.Get(ctx, nil)
	}
	if err = c.updated(ctx, op, key, err); stoker.KindOf(err) == stoker.KindNotExist {
		return nil
	}
	return err
}
