package activities

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.temporal.io/sdk/activity"

	"stoker.dev"
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
	Run        string // of the job's workflow: job ids are used again
	Preload    bool   `json:",omitempty"`
	Replicas   int    `json:",omitempty"`
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
	Leases []api.Lease `json:",omitempty"`
	Drop   []string    `json:",omitempty"`
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
		return w.PutLeases(ctx, api.LeaseRequest{Leases: in.Leases, Drop: in.Drop})
	})
	if err != nil && ctx.Err() == nil {
		a.o.Log.Warn("a worker did not take leases; it gets them with the next renewal", "error", err)
		return nil
	}
	return ToTemporal(err)
}

// PlanInput says what to place.
type PlanInput struct {
	Dataset    string
	Generation int
	Manifest   stoker.ID
	Replicas   int
	Round      int64 // no two rounds have one plan
}

// Planned is a stored plan.
type Planned struct {
	Plan  stoker.ID
	Parts int
	Bytes int64 // of the dataset
}

// Plan places the shards of a manifest on the live workers and stores the
// plan. NoSpace if they cannot hold it, whatever is evicted.
func (a *Activities) Plan(ctx context.Context, in PlanInput) (Planned, error) {
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
	plan := &planner.Plan{Dataset: in.Dataset, Generation: in.Generation, Manifest: in.Manifest, Replicas: max(1, in.Replicas), Round: in.Round}
	var workers []planner.Worker
	free, err := a.freeBytes(ctx, live, in.Manifest)
	if err != nil {
		return Planned{}, err
	}
	for i, w := range live {
		if free[i] < 0 || w.CapacityBytes == 0 {
			continue // does not answer, or is a client only
		}
		plan.Workers = append(plan.Workers, planner.PlanWorker{ID: w.ID, Address: w.Address})
		workers = append(workers, planner.Worker{ID: w.ID, FreeBytes: free[i], Weight: float64(w.CapacityBytes)})
	}
	if len(workers) == 0 {
		return Planned{}, stoker.Errorf(stoker.KindTransient, "plan", in.Dataset, "no cache worker is live: start 'stokerd worker' on a node")
	}
	shards := make([]planner.Shard, m.Shards())
	for n := range shards {
		s := m.Shard(uint32(n))
		shards[n] = planner.Shard{ID: s.ID, Bytes: s.Bytes}
	}
	owners, err := planner.Place(shards, workers, planner.PlaceOptions{Replicas: plan.Replicas})
	if err != nil {
		return Planned{}, err
	}
	plan.Owners = make([][]uint16, len(owners))
	for n, ws := range owners {
		for _, w := range ws {
			plan.Owners[n] = append(plan.Owners[n], uint16(w))
		}
	}
	id, err := a.o.Store.PutBlob(ctx, "plans", plan.Encode())
	return Planned{Plan: id, Parts: len(plan.Workers), Bytes: m.Bytes()}, err
}

// freeBytes asks each worker what it could take of a manifest: free space,
// what nobody holds, and what it has of the manifest already. -1: no answer.
func (a *Activities) freeBytes(ctx context.Context, live []placement.Worker, id stoker.ID) ([]int64, error) {
	free := make([]int64, len(live))
	err := a.EachWorker(ctx, addressesOf(live), func(ctx context.Context, i int, w *api.WorkerClient) error {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		st, err := w.Status(ctx)
		if err != nil {
			free[i] = -1
			a.o.Log.Warn("a worker does not say what it could take", "worker", live[i].ID, "error", err)
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
	Plan   stoker.ID
	Leases []api.Lease `json:",omitempty"`
}

// Reserve asks every worker of the plan for its part: all or nothing.
func (a *Activities) Reserve(ctx context.Context, in ReserveInput) error {
	plan, err := a.LoadPlan(ctx, in.Plan)
	if err != nil {
		return ToTemporal(err)
	}
	err = a.EachWorker(ctx, planAddresses(plan), func(ctx context.Context, i int, w *api.WorkerClient) error {
		_, err := w.Reserve(ctx, api.ReserveRequest{Plan: in.Plan, Part: i, Leases: in.Leases})
		return err
	})
	if err != nil {
		if gerr := a.giveBack(context.WithoutCancel(ctx), in.Plan, plan); gerr != nil {
			a.o.Log.Warn("a reservation was not given back", "plan", in.Plan.Short(), "error", gerr)
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
	return a.EachWorker(ctx, planAddresses(plan), func(ctx context.Context, i int, w *api.WorkerClient) error {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		return errors.Join(w.StopLoad(ctx, id, i), w.GiveBack(ctx, id, i))
	})
}

// PartInput is one worker's part of a plan.
type PartInput struct {
	Plan stoker.ID
	Part int
}

// PartLoaded is what loading it cost.
type PartLoaded struct {
	UFSRequests int64 `json:",omitempty"`
	UFSBytes    int64 `json:",omitempty"`
	Refetched   api.Refetched
	Failed      int `json:",omitempty"` // objects
}

// LoadPart drives one worker's load to its end. Its heartbeats carry the
// progress. It may be repeated: the worker goes on from what is on its disk.
func (a *Activities) LoadPart(ctx context.Context, in PartInput) (PartLoaded, error) {
	plan, err := a.LoadPlan(ctx, in.Plan)
	if err != nil {
		return PartLoaded{}, ToTemporal(err)
	}
	if in.Part < 0 || in.Part >= len(plan.Workers) {
		return PartLoaded{}, ToTemporal(stoker.Errorf(stoker.KindInvalid, "load", in.Plan.Short(), "no part %d", in.Part))
	}
	w, err := a.Worker(plan.Workers[in.Part].Address)
	if err != nil {
		return PartLoaded{}, ToTemporal(err)
	}
	p, err := w.Load(ctx, in.Plan, in.Part, func(p api.LoadProgress) {
		p.Failed = nil
		activity.RecordHeartbeat(ctx, p)
	})
	if err != nil {
		if ctx.Err() != nil { // cancelled: nobody needs it any more
			stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer cancel()
			_ = w.StopLoad(stop, in.Plan, in.Part) // GiveBack does it again
			return PartLoaded{}, ctx.Err()
		}
		return PartLoaded{}, ToTemporal(fmt.Errorf("worker %s: %w", plan.Workers[in.Part].ID, err))
	}
	return PartLoaded{UFSRequests: p.UFSRequests, UFSBytes: p.UFSBytes, Refetched: p.Refetched, Failed: p.FailedObjects}, nil
}
