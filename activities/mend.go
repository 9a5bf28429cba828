package activities

import (
	"context"
	"slices"
	"time"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/cache/placement"
	"stoker.dev/planner"
)

// MendInput says which worker of a plan went away.
type MendInput struct {
	Plan  stoker.ID
	Part  int
	All   bool // it will not come back: what it had begun moves, too
	Round int64
}

// Mended is what becomes of its part.
type Mended struct {
	Moved stoker.ID `json:",omitzero"` // plan by which others load what it had not begun
	Parts []int     `json:",omitempty"`
	Kept  stoker.ID `json:",omitzero"`  // plan by which it goes on when it comes back
	Node  string    `json:",omitempty"` // the worker, if the data has to be on it: nobody takes over for it
}

// Mend gives the shards of a lost worker to live ones. Without All only those
// which it had not begun and would not copy from an older generation on its
// disk, as far as the index knows; if that knows nothing of the worker, all of
// them wait.
func (a *Activities) Mend(ctx context.Context, in MendInput) (Mended, error) {
	defer alive(ctx)()
	m, err := a.mend(ctx, in)
	return m, ToTemporal(err)
}

func (a *Activities) mend(ctx context.Context, in MendInput) (Mended, error) {
	plan, err := a.LoadPlan(ctx, in.Plan)
	if err != nil {
		return Mended{}, err
	}
	m, err := a.o.Store.Load(ctx, plan.Manifest)
	if err != nil {
		return Mended{}, err
	}
	defer m.Close()
	keep, err := a.begun(ctx, plan, m, in)
	if err != nil {
		return Mended{}, err
	}
	o := planner.MendOptions{Lost: in.Part, Keep: keep, Round: in.Round}
	if o.Workers, o.Addresses, err = a.others(ctx, plan, in.Part); err != nil {
		return Mended{}, err
	}
	mending := planner.Mend(plan, shardsOf(m), o)
	var out Mended
	if slices.Contains(plan.Nodes, uint16(in.Part)) {
		out.Node = plan.Workers[in.Part].ID
	}
	if mending.Moved != nil {
		if out.Moved, err = a.o.Store.PutBlob(ctx, "plans", mending.Moved.Encode()); err != nil {
			return Mended{}, err
		}
		out.Parts = mending.Moved.Parts()
	}
	if mending.Kept != nil {
		out.Kept, err = a.o.Store.PutBlob(ctx, "plans", mending.Kept.Encode())
	}
	a.o.Log.Info("a plan is mended", "dataset", plan.Dataset, "manifest", plan.Manifest.Short(), "plan", in.Plan.Short(),
		"worker", plan.Workers[in.Part].ID, "moved", mendedShards(mending.Moved), "kept", mendedShards(mending.Kept))
	return out, err
}

func mendedShards(p *planner.Plan) int {
	if p == nil {
		return 0
	}
	return len(p.Mended)
}

// begun says which shards wait for the worker: those it has something of, or of
// their likes in an older generation.
func (a *Activities) begun(ctx context.Context, plan *planner.Plan, m *manifest.Manifest, in MendInput) (func(uint32) bool, error) {
	if in.All {
		return func(uint32) bool { return false }, nil
	}
	part := plan.Part(in.Part)
	begun, known, err := a.o.Index.Begun(ctx, plan.Workers[in.Part].ID, plan.Manifest, part)
	if err != nil && ctx.Err() != nil {
		return nil, err
	}
	likes := a.hasLikes(ctx, m, plan.Workers[in.Part].ID, part)
	return func(n uint32) bool {
		i, found := slices.BinarySearch(part, n)
		return err != nil || !known || !found || begun[i] || likes[n]
	}, nil
}

// others are the live workers but the lost one, with what they could take beside
// what they have, and were promised, of the plan.
func (a *Activities) others(ctx context.Context, plan *planner.Plan, lost int) ([]planner.Worker, []string, error) {
	live, _, err := a.Workers(ctx)
	if err != nil {
		return nil, nil, err
	}
	live = slices.DeleteFunc(slices.Clone(live), func(w placement.Worker) bool { return w.ID == plan.Workers[lost].ID })
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return a.candidates(ctx, live, stoker.ID{})
}
