package workflows

import (
	"go.temporal.io/sdk/workflow"

	"stoker.dev"
	"stoker.dev/activities"
	"stoker.dev/internal/api"
)

// copiesVersion guards what an older release does not do: where one ran a load, all
// who waited when it had ended were served, however many copies they wanted.
const copiesVersion = "copies"

// copies is how many workers are to have each shard for a holder.
func (h *Holder) copies() int { return max(1, h.Replicas) }

// byCopies reports whether holders are served by the copies that they want: if
// anybody wants more than one.
func (d *dataset) byCopies(ctx workflow.Context) bool {
	for i := range d.s.Holders {
		if d.s.Holders[i].copies() > 1 {
			return workflow.GetVersion(ctx, copiesVersion, workflow.DefaultVersion, 1) != workflow.DefaultVersion
		}
	}
	return false
}

// nextCopies is how many copies the next load brings: as few as somebody waits
// for. Who wants more is served by a load that follows, and keeps nobody waiting.
func (d *dataset) nextCopies(ctx workflow.Context) (n int) {
	if !d.byCopies(ctx) {
		for i := range d.s.Holders {
			n = max(n, d.s.Holders[i].Replicas)
		}
		return n
	}
	for i := range d.s.Holders {
		if h := &d.s.Holders[i]; h.Leased && !h.Served && (n == 0 || h.copies() < n) {
			n = h.copies()
		}
	}
	return n
}

// met reports whether what is loaded is enough for a holder.
func (d *dataset) met(ctx workflow.Context, h *Holder) bool {
	return !d.byCopies(ctx) || h.copies() <= d.s.Copies
}

// wanted reports whether a holder wants as much as is loaded: where that cannot be
// had, nor can what the holder wants.
func (d *dataset) wanted(ctx workflow.Context, h *Holder) bool {
	return !d.byCopies(ctx) || h.copies() >= d.s.Copies
}

// judge refuses, while a load runs, preloads that come and want more copies than
// the workers can hold: they need not wait for it to hear that.
func (r *round) judge(ctx workflow.Context) {
	d, fits := r.d, r.d.s.Copies
	most := func() (n int) {
		for i := range d.s.Holders {
			if h := &d.s.Holders[i]; h.Leased && !h.Served && h.Preload && h.copies() > fits {
				n = max(n, h.copies())
			}
		}
		return n
	}
	for workflow.Await(ctx, func() bool { return most() > 0 }) == nil && d.byCopies(ctx) {
		n := most()
		in := activities.PlanInput{Dataset: d.s.Dataset, Generation: d.s.Generation, Manifest: d.s.Manifest, Replicas: n, Round: workflow.Now(ctx).UnixNano()}
		err := workflow.ExecuteActivity(working(ctx, 0, 6), do.Plan, in).Get(ctx, nil)
		switch {
		case ctx.Err() != nil:
			return
		case !isKind(err, stoker.KindNoSpace):
			fits = n // or it is not known now: its own load finds out
			continue
		}
		refused := func(_ workflow.Context, h *Holder) bool { return h.Preload && h.copies() >= n }
		for _, job := range d.unserved(ctx, refused) {
			d.tell(ctx, job, Outcome{State: api.JobFailed, Error: errorBody(err)})
		}
	}
}
