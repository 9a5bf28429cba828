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

// byCopies reports whether holders are served by the copies and the objects that
// they want: if anybody wants more than one, or not all.
func (d *dataset) byCopies(ctx workflow.Context) bool {
	for i := range d.s.Holders {
		if h := &d.s.Holders[i]; h.copies() > 1 || h.Select != "" {
			return workflow.GetVersion(ctx, copiesVersion, workflow.DefaultVersion, 1) != workflow.DefaultVersion
		}
	}
	return false
}

// next says what the next load brings: what somebody waits for who wants the fewest
// copies, of these the one with the highest rank. Who wants more, or other objects,
// is served by a load that follows, and keeps nobody waiting. What was refused is
// tried again after the rest.
func (d *dataset) next(ctx workflow.Context) (copies int, selected string) {
	if !d.byCopies(ctx) {
		for i := range d.s.Holders {
			copies = max(copies, d.s.Holders[i].Replicas)
		}
		return copies, ""
	}
	var first *Holder
	before := func(a, b *Holder) bool {
		if a.Refused != b.Refused {
			return b.Refused
		}
		if a.copies() != b.copies() {
			return a.copies() < b.copies()
		}
		return rank(a.Priority, a.Deadline) > rank(b.Priority, b.Deadline)
	}
	for i := range d.s.Holders {
		if h := &d.s.Holders[i]; h.Leased && !h.Served && !h.local() && (first == nil || before(h, first)) {
			first = h
		}
	}
	if first == nil {
		return 0, ""
	}
	return first.copies(), first.Select
}

// met reports whether what is loaded is what a holder wants.
func (d *dataset) met(ctx workflow.Context, h *Holder) bool {
	if h.local() {
		return h.Select == d.s.Select && d.onNodes(h)
	}
	return !d.byCopies(ctx) || h.copies() <= d.s.Copies && h.Select == d.s.Select
}

// wanted reports whether a holder wants as much as is loaded: where that cannot be
// had, nor can what the holder wants.
func (d *dataset) wanted(ctx workflow.Context, h *Holder) bool {
	if h.local() || len(d.s.Nodes) > 0 {
		return h.local() && len(d.s.Nodes) > 0 && h.Select == d.s.Select && d.onNodes(h)
	}
	return !d.byCopies(ctx) || h.copies() >= d.s.Copies && h.Select == d.s.Select
}

// judge refuses, while a load runs, preloads that come and want more copies than
// the workers can hold: they need not wait for it to hear that.
func (r *round) judge(ctx workflow.Context) {
	d, fits := r.d, r.d.s.Copies
	most := func() (first *Holder) {
		for i := range d.s.Holders {
			h := &d.s.Holders[i]
			if h.Leased && !h.Served && h.Preload && !h.local() && h.Select == d.s.Select && h.copies() > fits && (first == nil || h.copies() > first.copies()) {
				first = h
			}
		}
		return first
	}
	for workflow.Await(ctx, func() bool { return most() != nil }) == nil && d.byCopies(ctx) {
		n, selected := most().copies(), d.s.Select
		in := activities.PlanInput{Dataset: d.s.Dataset, Generation: d.s.Generation, Manifest: d.s.Manifest, Replicas: n, Select: selected, Round: workflow.Now(ctx).UnixNano()}
		err := workflow.ExecuteActivity(working(ctx, 0, 6), do.Plan, in).Get(ctx, nil)
		switch {
		case ctx.Err() != nil:
			return
		case !isKind(err, stoker.KindNoSpace):
			fits = n // or it is not known now: its own load finds out
			continue
		}
		refused := func(_ workflow.Context, h *Holder) bool { return h.Preload && h.copies() >= n && h.Select == selected }
		for _, job := range d.unserved(ctx, refused) {
			d.tell(ctx, job, Outcome{State: api.JobFailed, Error: errorBody(err)})
		}
	}
}
