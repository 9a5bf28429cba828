package workflows

import (
	"context"
	"fmt"
	"testing"
	"time"

	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"

	"stoker.dev"
	"stoker.dev/activities"
	"stoker.dev/internal/api"
)

// slowly does what ended does, but loads no part before it is told to.
type slowly struct {
	ended
	begun  chan stoker.ID // a load of each plan has begun
	finish chan struct{}  // closed when loads may end
}

func (s *slowly) Plan(_ context.Context, in activities.PlanInput) (activities.Planned, error) {
	return activities.Planned{Plan: in.Manifest, Parts: 1, Bytes: 1 << 20}, nil
}

func (s *slowly) LoadPart(ctx context.Context, in activities.PartInput) (activities.PartLoaded, error) {
	s.begun <- in.Plan
	select {
	case <-s.finish:
	case <-ctx.Done():
	}
	return activities.PartLoaded{}, ctx.Err()
}

// changed is Dataset as a later release may have it: what is new stands behind
// GetVersion.
func changed(ctx workflow.Context, in DatasetInput) error {
	if workflow.GetVersion(ctx, "changed", workflow.DefaultVersion, 1) != workflow.DefaultVersion {
		workflow.Go(ctx, func(ctx workflow.Context) { _ = workflow.Sleep(ctx, time.Millisecond) })
	}
	return Dataset(ctx, in) // its handlers are there before the first update comes
}

// An old release of the controller and a new one run side by side, as in a
// rolling update: loads that the old one began are ended by either, what the
// new one began goes on when the old one has gone, and every job is served.
func TestOldAndNewSideBySide(t *testing.T) {
	c := realClient(t)
	acts := &slowly{begun: make(chan stoker.ID, 100), finish: make(chan struct{})}
	start := func(dataset any) worker.Worker {
		w := worker.New(c.temporal, c.queue(), worker.Options{})
		for name, f := range map[string]any{jobWorkflow: Job, datasetWorkflow: dataset, loadWorkflow: Load} {
			w.RegisterWorkflowWithOptions(f, workflow.RegisterOptions{Name: name})
		}
		w.RegisterActivity(acts)
		if err := w.Start(); err != nil {
			t.Fatal(err)
		}
		return w
	}
	join := func(n byte) {
		in := activities.JoinInput{Dataset: fmt.Sprintf("data-%d", n), Manifest: id(n), Job: "job", Owner: "uid:0", Run: fmt.Sprintf("run-%d", n)}
		if err := c.Join(t.Context(), in); err != nil {
			t.Fatal(err)
		}
	}
	older := start(Dataset)
	for n := byte(1); n <= 4; n++ {
		join(n)
		<-acts.begun
	}
	newer := start(changed)
	defer newer.Stop()
	for n := byte(5); n <= 8; n++ {
		join(n)
		<-acts.begun
	}
	older.Stop()
	close(acts.finish)
	for n := byte(1); n <= 8; n++ {
		waitReady(t, c, id(n))
		if err := c.Leave(t.Context(), activities.LeaveInput{Manifest: id(n), Job: "job", Run: fmt.Sprintf("run-%d", n)}); err != nil {
			t.Error(err)
		}
	}
}

// waitReady waits for what another process decides.
func waitReady(t *testing.T, c *Client, manifest stoker.ID) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; {
		s, err := c.DatasetState(t.Context(), manifest)
		if err == nil && s.State == api.JobReady {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the dataset is %+v (%v)", s, err)
		}
		<-time.After(100 * time.Millisecond)
	}
}
