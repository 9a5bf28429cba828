package workflows

import (
	"time"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"stoker.dev"
	"stoker.dev/activities"
	"stoker.dev/internal/api"
)

// wishVersion guards what an older release does not do: where one took a join, the
// workers hear of no wishes, and preloads have no deadlines.
const wishVersion = "load-wish"

// Wish is what those who still wait wish of the load together: the highest limit,
// and none if one of them has none; the highest priority, then the earliest deadline.
func (s *DatasetState) Wish() api.LoadWish {
	w := api.LoadWish{Manifest: s.Manifest}
	first, unlimited := true, false
	for i := range s.Holders {
		h := &s.Holders[i]
		if h.Served {
			continue
		}
		if r := rank(h.Priority, h.Deadline); first || r > w.Rank {
			w.Rank = r
		}
		w.LimitBytesPerSecond, unlimited = max(w.LimitBytesPerSecond, h.LimitBytes), unlimited || h.LimitBytes == 0
		first = false
	}
	if unlimited {
		w.LimitBytesPerSecond = 0
	}
	return w
}

// rank orders loads as the queue orders claims: by priority, then those with a
// deadline by that, then those without. It is exact in JSON's numbers.
func rank(priority int, deadline time.Time) int64 {
	const span = 1 << 36 // seconds
	r := int64(priority) * span
	if !deadline.IsZero() {
		r += span - min(max(deadline.Unix(), 1), span-1)
	}
	return r
}

// tellWish tells the workers what they were not told yet.
func (d *dataset) tellWish(ctx workflow.Context) error {
	w := d.s.Wish()
	if w == d.wished || workflow.GetVersion(ctx, wishVersion, workflow.DefaultVersion, 1) == workflow.DefaultVersion {
		return nil
	}
	d.wished = w
	return workflow.ExecuteActivity(briefly(ctx, 30*time.Second, 6), do.PutLeases, activities.LeaseInput{Partial: true, Wishes: []api.LoadWish{w}}).Get(ctx, nil)
}

// wish changes what a holder wishes. When it answers the workers know.
func (d *dataset) wish(ctx workflow.Context, in activities.WishInput) error {
	i := d.find(in.Job)
	if i < 0 || d.s.Holders[i].Run != in.Run {
		return nil
	}
	h := &d.s.Holders[i]
	h.Priority, h.Deadline, h.LimitBytes = in.Priority, in.Deadline, in.LimitBytes
	d.hurry(ctx)
	return d.tellWish(ctx)
}

// Change is what a claim is to wish from now on; nil: as before.
type Change struct {
	Priority   *int       `json:",omitempty"`
	Deadline   *time.Time `json:",omitempty"` // zero: none
	LimitBytes *int64     `json:",omitempty"` // in a second, 0: none
}

// change makes a claim wish something else: in the queue, and of its loads.
func (j *job) change(ctx workflow.Context, c Change) (JobState, error) {
	in := &j.s.Input
	if j.over {
		return j.s, claimEnded(in.Job)
	}
	if c.Priority != nil {
		in.Priority = *c.Priority
	}
	if c.LimitBytes != nil {
		in.LimitBytes = *c.LimitBytes
	}
	if c.Deadline != nil && !c.Deadline.Equal(in.Deadline) {
		in.Deadline, j.late = *c.Deadline, false
		workflow.Go(j.running, j.await)
	}
	if j.s.Queued {
		err := workflow.ExecuteActivity(briefly(ctx, time.Minute, 6), do.Requeue, j.waiting(ctx)).Get(ctx, nil)
		if err != nil {
			return j.s, err
		}
	}
	var told []workflow.Future
	for _, d := range in.Datasets { // of those that it does not hold nothing changes
		told = append(told, workflow.ExecuteActivity(briefly(ctx, time.Minute, 6), do.Wish, activities.WishInput{
			Manifest: d.Manifest, Job: in.Job, Run: j.run(ctx), Priority: in.Priority, Deadline: in.Deadline, LimitBytes: in.LimitBytes}))
	}
	for _, f := range told {
		if err := f.Get(ctx, nil); err != nil {
			return j.s, err
		}
	}
	return j.s, nil
}

func claimEnded(job string) error {
	err := stoker.Errorf(stoker.KindNotExist, "job", job, "its claim has ended")
	return temporal.NewNonRetryableApplicationError(err.Error(), err.Kind.String(), nil)
}

// await notes when the deadline that the claim has now is over.
func (j *job) await(ctx workflow.Context) {
	at := j.s.Input.Deadline
	if at.IsZero() {
		return
	}
	if workflow.Sleep(ctx, max(0, at.Sub(workflow.Now(ctx)))) == nil && at.Equal(j.s.Input.Deadline) {
		j.late, j.changed = true, true
	}
}

// requeue changes a claim that waits.
func (q *queue) requeue(_ workflow.Context, c activities.WaitingClaim) error {
	if i := q.find(c.Job, c.Run); i >= 0 {
		q.s.Waiting[i].Claim = c
		sortWaiting(q.s.Waiting)
		q.changes++
	}
	return nil
}
