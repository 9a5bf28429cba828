package workflows

import (
	"slices"

	"go.temporal.io/sdk/workflow"

	"stoker.dev"
	"stoker.dev/activities"
	"stoker.dev/internal/api"
)

// layoutVersion guards what an older release does not do: where one took a join,
// its shards are spread.
const layoutVersion = "layouts"

// nodesAtOnce bounds the nodes that claims of one plan name, each for itself:
// others are served by the load that follows.
const nodesAtOnce = 4096

// local reports whether a holder waits for all of the data on its nodes.
func (h *Holder) local() bool { return len(h.Nodes) > 0 && !h.Spread }

// nextLocals are the claims that the next load puts all of the data on the nodes
// of, and the objects that they want; none while somebody waits who is served by
// shards on any worker.
func (d *dataset) nextLocals() (locals []activities.LocalClaim, selected string) {
	nodes := 0
	for i := range d.s.Holders {
		switch h := &d.s.Holders[i]; {
		case !h.Leased || h.Served:
		case !h.local() && !h.Refused:
			return nil, ""
		case h.local() && (nodes == 0 || h.Select == selected && nodes+len(h.Nodes) <= nodesAtOnce):
			nodes, selected = nodes+len(h.Nodes), h.Select
			locals = append(locals, activities.LocalClaim{Job: h.Job, Nodes: h.Nodes, Auto: h.Auto})
		}
	}
	return locals, selected
}

// onNodes reports whether what is loaded is on all of a holder's nodes.
func (d *dataset) onNodes(h *Holder) bool {
	return !slices.ContainsFunc(h.Nodes, func(n string) bool { return !slices.Contains(d.s.Nodes, n) })
}

// begin notes what the next load is for.
func (r *round) begin(ctx workflow.Context, in *activities.PlanInput) {
	d := r.d
	d.s.Nodes, r.unfit = nil, nil
	if in.Locals, in.Select = d.nextLocals(); len(in.Locals) == 0 {
		in.Replicas, in.Select = d.next(ctx)
		d.s.Select, d.s.Copies = in.Select, max(1, in.Replicas)
		return
	}
	d.s.Select = in.Select
	for _, c := range in.Locals {
		d.s.Nodes = append(d.s.Nodes, c.Nodes...)
	}
	slices.Sort(d.s.Nodes)
	d.s.Nodes = slices.Compact(d.s.Nodes)
	d.s.Copies = len(d.s.Nodes)
}

// planned takes note of the claims whose nodes cannot have the data, and tells
// them, or spreads the data for them. It reports whether any are left.
func (r *round) planned(ctx workflow.Context, in *activities.PlanInput, p *activities.Planned) bool {
	d := r.d
	if len(in.Locals) == 0 {
		return true
	}
	d.s.Nodes = nil
	for _, c := range in.Locals {
		if i := slices.IndexFunc(p.Unfit, func(u activities.Unfit) bool { return u.Job == c.Job }); i >= 0 {
			r.doesNotFit(ctx, &p.Unfit[i])
			continue
		}
		d.s.Nodes = append(d.s.Nodes, c.Nodes...)
	}
	slices.Sort(d.s.Nodes)
	d.s.Nodes = slices.Compact(d.s.Nodes)
	d.s.Copies = max(1, len(d.s.Nodes))
	return !p.Plan.IsZero()
}

func (r *round) doesNotFit(ctx workflow.Context, u *activities.Unfit) {
	d := r.d
	i := d.find(u.Job)
	if i < 0 {
		return // it left meanwhile
	}
	h := &d.s.Holders[i]
	if u.Spread {
		workflow.GetLogger(ctx).Info("a job's nodes cannot have all of its data: it is spread", "job", u.Job, "dataset", d.s.Dataset, "manifest", d.s.Manifest.Short(), "why", u.Error.Message)
		h.Spread = true
		return
	}
	if u.Error.Kind != stoker.KindNoSpace.String() || h.Preload {
		d.tell(ctx, u.Job, Outcome{State: api.JobFailed, Error: &u.Error})
		return
	}
	r.unfit = &u.Error
	d.hint(ctx, Outcome{State: api.JobQueued, Error: &u.Error}, func(_ workflow.Context, h *Holder) bool { return h.Job == u.Job })
}

// spread gives up local copies for those of the claims that a load was for who can
// do without. A worker has less space than it said.
func (d *dataset) spread(ctx workflow.Context) (some bool) {
	for i := range d.s.Holders {
		if h := &d.s.Holders[i]; h.Leased && !h.Served && h.local() && h.Auto && h.Select == d.s.Select && d.onNodes(h) {
			h.Spread, some = true, true
		}
	}
	return some
}
