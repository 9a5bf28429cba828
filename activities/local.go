package activities

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/cache/placement"
	"stoker.dev/internal/api"
	"stoker.dev/planner"
)

// LocalClaim is a job that wants every shard of a dataset on each of its nodes.
type LocalClaim struct {
	Job   string
	Nodes []string // ids of workers
	Auto  bool     `json:",omitempty"` // if they have no room, shards spread over all workers will do
}

// Unfit is a claim whose nodes cannot have the dataset now.
type Unfit struct {
	Job    string
	Spread bool          `json:",omitempty"` // its shards are to be spread
	Error  api.ErrorBody // why
}

// planLocal places every shard on the nodes of those claims that fit. If none
// does, there is no plan.
func (a *Activities) planLocal(ctx context.Context, in PlanInput, m *manifest.Manifest, live []placement.Worker) (Planned, error) {
	workers, addresses, err := a.candidates(ctx, live, in.Manifest)
	if err != nil {
		return Planned{}, err
	}
	chosen, err := Choose(m, in.Select)
	if err != nil {
		return Planned{}, err
	}
	shards := shardsOf(m)
	var needed []planner.Shard
	for n := range shards {
		if chosen.hasShard(uint32(n)) {
			needed = append(needed, shards[n])
		}
	}
	out := Planned{Bytes: m.Bytes()}
	var nodes []planner.Worker
	plan := &planner.Plan{Dataset: in.Dataset, Generation: in.Generation, Manifest: in.Manifest, Round: in.Round}
	for _, c := range in.Locals {
		theirs, err := nodesOf(c.Nodes, live, workers)
		if err == nil {
			err = planner.RoomForAll(needed, theirs)
		}
		if stoker.KindOf(err) == stoker.KindNoSpace && !c.Auto {
			err = a.heldElsewhere(ctx, err, in, live, c.Nodes)
		}
		if err != nil {
			out.Unfit = append(out.Unfit, Unfit{Job: c.Job, Spread: c.Auto, Error: *api.ErrorOf(err)})
			continue
		}
		for _, w := range theirs {
			if !slices.ContainsFunc(nodes, func(n planner.Worker) bool { return n.ID == w.ID }) {
				at := slices.IndexFunc(workers, func(x planner.Worker) bool { return x.ID == w.ID })
				plan.Nodes = append(plan.Nodes, uint16(len(nodes)))
				plan.Workers = append(plan.Workers, planner.PlanWorker{ID: w.ID, Address: addresses[at]})
				nodes = append(nodes, w)
			}
		}
	}
	if len(nodes) == 0 {
		return out, nil
	}
	plan.Replicas, plan.Select = len(nodes), in.Select
	has := a.havingOld(ctx, m, a.having(ctx, in.Manifest, len(shards), live, nodes), live, nodes)
	owners, err := eachChosen(shards, chosen, has, func(some []planner.Shard, has [][]int) ([][]int, error) {
		return planner.PlaceLocal(some, nodes, has)
	})
	if err != nil {
		return Planned{}, err
	}
	plan.SetOwners(owners)
	out.Plan, err = a.o.Store.PutBlob(ctx, "plans", plan.Encode())
	out.Parts = len(plan.Workers)
	return out, err
}

// nodesOf finds the workers of a job's nodes among those that a plan may use.
func nodesOf(ids []string, live []placement.Worker, usable []planner.Worker) (nodes []planner.Worker, err error) {
	for _, id := range ids {
		at := slices.IndexFunc(live, func(w placement.Worker) bool { return w.ID == id })
		i := slices.IndexFunc(usable, func(w planner.Worker) bool { return w.ID == id })
		switch {
		case at >= 0 && live[at].Node == "":
			return nil, stoker.Errorf(stoker.KindInvalid, "plan", id, "is a worker of an earlier release, which takes no local copies: upgrade it, or take --layout spread")
		case at >= 0 && live[at].CapacityBytes == 0:
			return nil, stoker.Errorf(stoker.KindInvalid, "plan", id, "is a worker that caches nothing: leave its node out, or take --layout spread")
		case at >= 0 && live[at].Draining:
			return nil, stoker.Errorf(stoker.KindBusy, "plan", id, "this worker is being drained: leave its node out, or 'stoker workers undrain %s'", id)
		case i < 0:
			return nil, stoker.Errorf(stoker.KindTransient, "plan", id, "this worker has to hold the data itself, and does not answer: start it, or take --layout spread")
		}
		nodes = append(nodes, usable[i])
	}
	return nodes, nil
}

// heldElsewhere adds to a refusal who holds the space of the nodes.
func (a *Activities) heldElsewhere(ctx context.Context, err error, in PlanInput, live []placement.Worker, nodes []string) error {
	theirs := slices.DeleteFunc(slices.Clone(live), func(w placement.Worker) bool { return !slices.Contains(nodes, w.ID) })
	_, why, rerr := a.rooms(ctx, theirs, []AdmitDataset{{Dataset: in.Dataset, Manifest: in.Manifest}})
	var no *planner.NoRoom
	if rerr != nil || !errors.As(err, &no) {
		return err
	}
	return stoker.Errorf(stoker.KindNoSpace, "plan", in.Dataset, "%w; %s", no, why)
}

// admitLocal tells whether a claim's nodes have room for all its datasets, each
// for all of them. What they have of it already is counted as room.
func (a *Activities) admitLocal(ctx context.Context, c *WaitingClaim, live, lost []placement.Worker) (out Admission, err error) {
	shards, err := a.shardsOf(ctx, c.Datasets)
	if err != nil {
		return out, err
	}
	var need int64
	for _, s := range shards {
		need += s.Bytes
	}
	mine := func(all []placement.Worker) []placement.Worker {
		return slices.DeleteFunc(slices.Clone(all), func(w placement.Worker) bool { return !slices.Contains(c.Nodes, w.ID) })
	}
	out.NeedBytes = need * int64(len(c.Nodes))
	for _, w := range capacity(mine(live), mine(lost)) {
		if w.FreeBytes < need {
			out.State, out.Why = AdmitNever, fmt.Sprintf("needs %s on each of its nodes, worker %s holds %s in all: claim less, or take --layout spread",
				api.HumanBytes(need), w.ID, api.HumanBytes(w.FreeBytes))
			return out, nil
		}
	}
	rooms, why, err := a.rooms(ctx, mine(live), c.Datasets)
	if err != nil {
		return out, err
	}
	for _, w := range rooms {
		out.FreeBytes += w.FreeBytes
	}
	if len(rooms) > 0 {
		var no *planner.NoRoom
		if errors.As(planner.RoomForAll(shards, rooms), &no) {
			out.State, out.Why = AdmitWait, no.Error()+"; "+why
			return out, nil
		}
	}
	out.State = AdmitNow // a node that does not answer is missed by whoever plans
	return out, nil
}

// onNodes is what the workers have that have to hold every shard.
type onNodes struct {
	ids  []string
	have []map[uint32][]byte // of each, by shard: nil = all of it, not there = nothing
}

func (o *onNodes) want(ids []string) {
	for _, id := range ids {
		o.ids, o.have = append(o.ids, id), append(o.have, map[uint32][]byte{})
	}
}

// add enters what a worker has of a shard, if it is one of them.
func (o *onNodes) add(worker string, n uint32, have []byte, blocks int) {
	k := slices.Index(o.ids, worker)
	if k < 0 {
		return
	}
	if full(have, blocks) {
		have = nil
	}
	o.have[k][n] = have
}

// lacks calls fn for each object that a node lacks part of, with the node; of
// several nodes with the first one.
func (o *onNodes) lacks(m *manifest.Manifest, only *Chosen, fn func(row manifest.Row, node string)) {
	var members []manifest.Member
	for k, id := range o.ids {
		for n := range uint32(m.Shards()) {
			have, some := o.have[k][n]
			if some && have == nil || !only.hasShard(n) {
				continue // its files need not be looked at
			}
			members = m.Members(n, members[:0])
			for _, mem := range members {
				for b := int(mem.FirstBlock); only.Has(mem.Row) && b < int(mem.FirstBlock)+manifest.BlocksOf(mem.Bytes); b++ {
					if b/8 >= len(have) || have[b/8]&(1<<(b%8)) == 0 {
						fn(mem.Row, id)
						break
					}
				}
			}
		}
	}
}

// nodesOfPlan are the workers that have to hold every shard by a plan.
func (a *Activities) nodesOfPlan(ctx context.Context, id stoker.ID) (ids []string, err error) {
	if id.IsZero() {
		return nil, nil
	}
	plan, err := a.LoadPlan(ctx, id)
	if err != nil {
		return nil, err
	}
	for _, w := range plan.Nodes {
		ids = append(ids, plan.Workers[w].ID)
	}
	slices.Sort(ids)
	return ids, nil
}
