package activities

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"go.temporal.io/sdk/activity"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/cache/placement"
	"stoker.dev/internal/api"
	"stoker.dev/planner"
)

// JoinInput makes a job a holder of a dataset.
type JoinInput struct {
	Dataset    string
	Generation int
	Manifest   stoker.ID
	Job, Owner string
	Run        string        // of the job's workflow: job ids are used again
	Preload    bool          `json:",omitempty"`
	Leaves     bool          `json:",omitempty"` // it needs the data no more once it is told that it is Ready
	Replicas   int           `json:",omitempty"`
	Grace      time.Duration `json:",omitempty"` // see api.Lease
	Deep       bool          `json:",omitempty"` // Ready when every byte was read again
	Whole      bool          `json:",omitempty"` // one of a claim that gets all its datasets or none
	Deadline   time.Time     `json:",omitzero"`  // by which the job wants the data; zero: none
	Priority   int           `json:",omitempty"` // of the load among others
	Select     string        `json:",omitempty"` // of its objects, as api.Selection's key; "" = all
	LimitBytes int64         `json:",omitempty"` // what the load may read in a second; see api.LoadWish
	Nodes      []string      `json:",omitempty"` // workers that are to have all of it; see LocalClaim
	Auto       bool          `json:",omitempty"` // likewise
}

// WishInput changes what a job that has joined wishes; see JoinInput.
type WishInput struct {
	Manifest   stoker.ID
	Job, Run   string
	Priority   int       `json:",omitempty"`
	Deadline   time.Time `json:",omitzero"`
	LimitBytes int64     `json:",omitempty"`
}

// Wish tells the dataset's workflow, and that the workers.
func (a *Activities) Wish(ctx context.Context, in WishInput) error {
	return ToTemporal(a.o.Joiner.Wish(ctx, in))
}

// LeaveInput ends that.
type LeaveInput struct {
	Manifest stoker.ID
	Job, Run string
}

// Join tells the dataset's workflow, and starts it if it does not run. The
// answer comes as a signal.
func (a *Activities) Join(ctx context.Context, in JoinInput) error {
	return ToTemporal(a.o.Joiner.Join(ctx, in))
}

// Leave tells it that the job needs the data no more.
func (a *Activities) Leave(ctx context.Context, in LeaveInput) error {
	return ToTemporal(a.o.Joiner.Leave(ctx, in))
}

// Hold is a claim's life line: it stays open, and ends when nobody records
// heartbeats for it.
func (a *Activities) Hold(context.Context) error { return activity.ErrResultPending }

// LeaseInput places or drops the leases of one dataset's holders.
type LeaseInput struct {
	Leases  []api.Lease    `json:",omitempty"`
	Drop    []string       `json:",omitempty"`
	Partial bool           `json:",omitempty"` // see api.LeaseRequest
	Wishes  []api.LoadWish `json:",omitempty"`
}

// PutLeases tells all live workers. A worker that does not answer gets the
// leases with the next renewal.
func (a *Activities) PutLeases(ctx context.Context, in LeaseInput) error {
	live, _, err := a.Workers(ctx)
	if err != nil {
		return ToTemporal(err)
	}
	err = a.EachWorker(ctx, addressesOf(live), func(ctx context.Context, _ int, w *api.WorkerClient) error {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		err := w.PutLeases(ctx, api.LeaseRequest{Leases: in.Leases, Drop: in.Drop, Partial: in.Partial, Wishes: in.Wishes})
		if err != nil {
			a.refused.Add(1)
		}
		return err
	})
	if err != nil && ctx.Err() == nil {
		a.o.Log.Warn("a worker did not take leases; it gets them with the next renewal", append(in.named(), "error", err)...)
		return nil
	}
	return ToTemporal(err)
}

// PutRules tells all live workers how datasets want their data to be evicted, and
// returns how many did not take it: they get it with the next renewal of leases.
// Those of an earlier release know no rules.
func (a *Activities) PutRules(ctx context.Context, req api.RulesRequest) (missed int, err error) {
	live, _, err := a.Workers(ctx)
	if err != nil {
		return 0, err
	}
	var failed atomic.Int64
	err = a.EachWorker(ctx, addressesOf(live), func(ctx context.Context, _ int, w *api.WorkerClient) error {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		if err := w.PutRules(ctx, req); err != nil && stoker.KindOf(err) != stoker.KindNotExist {
			failed.Add(1)
		}
		return nil
	})
	return int(failed.Load()), err
}

// named says in a log line whose leases they are; a renewal of all is counted.
func (in LeaseInput) named() []any {
	switch {
	case len(in.Leases) == 1:
		return []any{"job", in.Leases[0].Holder, "manifest", in.Leases[0].Manifest.Short()}
	case len(in.Leases) == 0 && len(in.Drop) == 1:
		return []any{"job", in.Drop[0]}
	}
	return []any{"leases", len(in.Leases)}
}

// LeasesRefused is how often a worker did not take the leases it was told.
func (a *Activities) LeasesRefused() int64 { return a.refused.Load() }

// PlanInput says what to place.
type PlanInput struct {
	Dataset    string
	Generation int
	Manifest   stoker.ID
	Replicas   int
	Select     string `json:",omitempty"` // see JoinInput
	Round      int64  // no two rounds have one plan
	// Locals are the claims that a plan is for which puts every shard on their
	// nodes; none: it spreads the shards.
	Locals []LocalClaim `json:",omitempty"`
}

// Planned is a stored plan.
type Planned struct {
	Plan  stoker.ID
	Parts int
	Bytes int64 // of the dataset
	// Unfit are the Locals that it is not for. If none is left, there is no plan.
	Unfit []Unfit `json:",omitempty"`
}

// Plan places the shards of a manifest on the live workers and stores the
// plan. NoSpace if they cannot hold it, whatever is evicted.
func (a *Activities) Plan(ctx context.Context, in PlanInput) (Planned, error) {
	defer alive(ctx)()
	p, err := a.plan(ctx, in)
	return p, ToTemporal(err)
}

func (a *Activities) plan(ctx context.Context, in PlanInput) (Planned, error) {
	m, err := a.o.Store.Load(ctx, in.Manifest)
	if err != nil {
		return Planned{}, err
	}
	defer m.Close()
	live, _, err := a.Workers(ctx)
	if err != nil {
		return Planned{}, err
	}
	if len(in.Locals) > 0 {
		return a.planLocal(ctx, in, m, live)
	}
	plan := &planner.Plan{Dataset: in.Dataset, Generation: in.Generation, Manifest: in.Manifest, Replicas: max(1, in.Replicas), Round: in.Round}
	workers, addresses, err := a.candidates(ctx, live, in.Manifest)
	if err != nil {
		return Planned{}, err
	}
	if len(workers) == 0 {
		return Planned{}, stoker.Errorf(stoker.KindTransient, "plan", in.Dataset, "no cache worker is live: start 'stokerd worker' on a node")
	}
	for i, w := range workers {
		plan.Workers = append(plan.Workers, planner.PlanWorker{ID: w.ID, Address: addresses[i]})
	}
	chosen, err := Choose(m, in.Select)
	if err != nil {
		return Planned{}, err
	}
	has := a.havingOld(ctx, m, a.having(ctx, in.Manifest, m.Shards(), live, workers), live, workers)
	owners, err := placeChosen(shardsOf(m), chosen, workers, planner.PlaceOptions{Replicas: plan.Replicas, Has: has})
	if err != nil {
		return Planned{}, err
	}
	plan.Select = in.Select
	plan.SetOwners(owners)
	id, err := a.o.Store.PutBlob(ctx, "plans", plan.Encode())
	return Planned{Plan: id, Parts: len(plan.Workers), Bytes: m.Bytes()}, err
}

// placeChosen places the shards that are needed; the others have no workers.
func placeChosen(shards []planner.Shard, chosen *Chosen, workers []planner.Worker, o planner.PlaceOptions) ([][]int, error) {
	return eachChosen(shards, chosen, o.Has, func(some []planner.Shard, has [][]int) ([][]int, error) {
		o.Has = has
		return planner.Place(some, workers, o)
	})
}

// eachChosen has the shards placed that are needed, with what workers have of them.
func eachChosen(shards []planner.Shard, chosen *Chosen, old [][]int, place func(some []planner.Shard, has [][]int) ([][]int, error)) ([][]int, error) {
	if chosen == nil {
		return place(shards, old)
	}
	var some []planner.Shard
	var has [][]int
	for n := range shards {
		if !chosen.hasShard(uint32(n)) {
			continue
		}
		some = append(some, shards[n])
		if n < len(old) {
			has = append(has, old[n])
		}
	}
	placed, err := place(some, has)
	if err != nil {
		return nil, err
	}
	owners := make([][]int, len(shards))
	for n, at := 0, 0; n < len(shards); n++ {
		if chosen.hasShard(uint32(n)) {
			owners[n], at = placed[at], at+1
		}
	}
	return owners, nil
}

func shardsOf(m *manifest.Manifest) []planner.Shard {
	shards := make([]planner.Shard, m.Shards())
	for n := range shards {
		s := m.Shard(uint32(n))
		shards[n] = planner.Shard{ID: s.ID, Bytes: s.Bytes}
	}
	return shards
}

// having lists for each shard the workers that have it, as far as the index
// knows: the whole of it, or else some. What they have they keep, so that a
// worker that joins or leaves moves no more than its share.
func (a *Activities) having(ctx context.Context, id stoker.ID, shards int, live []placement.Worker, workers []planner.Worker) [][]int {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second+time.Duration(shards)*20*time.Microsecond)
	defer cancel()
	all := make([]uint32, shards)
	for n := range all {
		all[n] = uint32(n)
	}
	holders, err := a.o.Index.Holders(ctx, id, all)
	if err != nil {
		a.o.Log.Warn("the index does not say who has what; the plan does not regard it", "manifest", id.Short(), "error", err)
		return nil
	}
	number := map[stoker.Incarnation]int{}
	for _, w := range live {
		if i := slices.IndexFunc(workers, func(c planner.Worker) bool { return c.ID == w.ID }); i >= 0 {
			number[w.Incarnation] = i
		}
	}
	has := make([][]int, shards)
	for n, hs := range holders {
		var some []int
		for _, h := range hs {
			switch i, known := number[h.Incarnation]; {
			case known && h.Whole:
				has[n] = append(has[n], i)
			case known:
				some = append(some, i)
			}
		}
		if has[n] == nil {
			has[n] = some
		}
	}
	return has
}

// candidates are the workers that a plan may use, and where they are: those
// that answer, and cache anything at all.
func (a *Activities) candidates(ctx context.Context, live []placement.Worker, id stoker.ID) (workers []planner.Worker, addresses []string, err error) {
	free, err := a.freeBytes(ctx, live, id)
	if err != nil {
		return nil, nil, err
	}
	for i, w := range live {
		if free[i] < 0 || w.CapacityBytes == 0 {
			continue
		}
		workers = append(workers, planner.Worker{ID: w.ID, FreeBytes: free[i], Weight: float64(w.CapacityBytes)})
		addresses = append(addresses, w.Address)
	}
	return workers, addresses, nil
}

// freeBytes asks each worker what it could take of a manifest: free space,
// what nobody holds, and what it has of the manifest already. -1: nothing, as it is drained or does
// not answer.
func (a *Activities) freeBytes(ctx context.Context, live []placement.Worker, id stoker.ID) ([]int64, error) {
	free := make([]int64, len(live))
	err := a.EachWorker(ctx, addressesOf(live), func(ctx context.Context, i int, w *api.WorkerClient) error {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		st, err := w.Status(ctx)
		if err != nil {
			free[i] = -1
			a.o.Log.Warn("a worker does not say what it could take", "manifest", id.Short(), "worker", live[i].ID, "error", err)
			return nil
		}
		if st.Drain != nil {
			free[i] = -1
			return nil
		}
		free[i] = max(0, st.CapacityBytes-st.ReservedBytes-st.UsedBytes+st.FreeableBytes)
		for _, h := range st.Manifests {
			if h.Manifest == id && len(h.Holders) > 0 { // held, therefore not among the freeable
				free[i] += h.Bytes
			}
		}
		return nil
	})
	return free, err
}

// ReserveInput asks for the space of a whole plan.
type ReserveInput struct {
	Plan     stoker.ID
	Leases   []api.Lease `json:",omitempty"`
	Copies   bool        `json:",omitempty"` // see api.ReserveRequest
	Spare    bool        `json:",omitempty"` // likewise
	Replaces stoker.ID   `json:",omitzero"`  // plan whose promises this one takes over
	Parts    []int       `json:",omitempty"` // of the plan, that are meant; none: all
}

// Reserve asks every worker of the plan for its part: all or nothing.
func (a *Activities) Reserve(ctx context.Context, in ReserveInput) error {
	defer alive(ctx)()
	plan, err := a.LoadPlan(ctx, in.Plan)
	if err != nil {
		return ToTemporal(err)
	}
	err = a.eachPart(ctx, plan, func(ctx context.Context, part int, w *api.WorkerClient) error {
		if len(in.Parts) > 0 && !slices.Contains(in.Parts, part) {
			return nil
		}
		_, err := w.Reserve(ctx, api.ReserveRequest{Plan: in.Plan, Part: part, Leases: in.Leases, Copies: in.Copies, Spare: in.Spare, Replaces: in.Replaces})
		return err
	})
	if err != nil {
		if gerr := a.giveBack(context.WithoutCancel(ctx), in.Plan, plan); gerr != nil {
			a.o.Log.Warn("a reservation was not given back", "dataset", plan.Dataset, "manifest", plan.Manifest.Short(), "plan", in.Plan.Short(), "error", gerr)
		}
	}
	return ToTemporal(err)
}

// GiveBack ends loads and reservations of a plan; what was loaded stays.
func (a *Activities) GiveBack(ctx context.Context, id stoker.ID) error {
	plan, err := a.LoadPlan(ctx, id)
	if err == nil {
		err = a.giveBack(ctx, id, plan)
	}
	return ToTemporal(err)
}

func (a *Activities) giveBack(ctx context.Context, id stoker.ID, plan *planner.Plan) error {
	return a.eachPart(ctx, plan, func(ctx context.Context, part int, w *api.WorkerClient) error {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		return errors.Join(w.StopLoad(ctx, id, part), w.GiveBack(ctx, id, part))
	})
}
