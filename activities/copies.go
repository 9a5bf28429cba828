package activities

import (
	"context"
	"slices"
	"time"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/cache/placement"
	"stoker.dev/internal/api"
	"stoker.dev/planner"
)

// CopiesInput says how many workers are to have each shard of a manifest that some
// worker has, those that are drained not among them.
type CopiesInput struct {
	Dataset    string
	Generation int
	Manifest   stoker.ID
	Replicas   int
	Spare      bool  `json:",omitempty"` // nobody holds the data: nothing is evicted for it
	Round      int64 `json:",omitempty"` // see PlanInput
}

// CopiesPlanned is a stored plan of copies. Plan is zero if none is to be made.
type CopiesPlanned struct {
	Plan       stoker.ID `json:",omitzero"`
	Parts      []int     `json:",omitempty"`
	Bytes      int64     `json:",omitempty"` // of all copies
	ShortBytes int64     `json:",omitempty"` // of those for which no worker has room
	FreeBytes  int64     `json:",omitempty"` // that the workers could take
}

// PlanCopies counts on the workers' disks how often each shard is there, and plans
// the copies that are missing. A worker that does not answer is Transient: it may
// have what would be copied in vain.
func (a *Activities) PlanCopies(ctx context.Context, in CopiesInput) (CopiesPlanned, error) {
	defer alive(ctx)()
	p, err := a.planCopies(ctx, in)
	return p, ToTemporal(err)
}

func (a *Activities) planCopies(ctx context.Context, in CopiesInput) (out CopiesPlanned, err error) {
	c, err := a.count(ctx, in.Manifest, in.Spare)
	if err != nil {
		return out, err
	}
	defer c.m.Close()
	shards, want := shardsOf(c.m), make([]int, c.m.Shards())
	has, most := c.whole(), min(max(1, in.Replicas), len(c.stays))
	for n := range shards {
		switch {
		case len(has[n]) > 0 || c.leavesWhole(n):
			want[n] = most
		case c.leavesMore(n):
			want[n] = min(1, most)
		}
	}
	added, short := planner.AddCopies(shards, c.workers(), has, want)
	out.ShortBytes = short
	for _, w := range c.stays {
		out.FreeBytes += max(0, w.free)
	}
	plan := &planner.Plan{Dataset: in.Dataset, Generation: in.Generation, Manifest: in.Manifest, Replicas: max(1, in.Replicas), Round: in.Round, Mended: []uint32{}}
	for _, w := range c.stays {
		plan.Workers = append(plan.Workers, planner.PlanWorker{ID: w.ID, Address: w.Address})
	}
	for n := range shards {
		if len(added[n]) > 0 {
			plan.Mended = append(plan.Mended, uint32(n))
			out.Bytes += shards[n].Bytes * int64(len(added[n]))
			has[n] = slices.Concat(has[n], added[n])
		}
	}
	if len(plan.Mended) == 0 {
		return out, nil
	}
	plan.SetOwners(has)
	out.Parts = plan.Parts()
	out.Plan, err = a.o.Store.PutBlob(ctx, "plans", plan.Encode())
	return out, err
}

// copies are the workers of a manifest: those that stay, and those that are drained.
type copies struct {
	m             *manifest.Manifest
	stays, leaves []copyHolder
}

// copyHolder is a worker and what it has of a manifest.
type copyHolder struct {
	placement.Worker
	free int64
	has  map[uint32]*api.ShardReport
}

// count asks each worker what it could take, and what it truly has. spare counts
// only space that nobody uses. The caller closes the manifest of what it returns.
func (a *Activities) count(ctx context.Context, id stoker.ID, spare bool) (c *copies, err error) {
	m, err := a.o.Store.Load(ctx, id)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = m.Close() // it was only read
		}
	}()
	live, _, err := a.Workers(ctx)
	if err != nil {
		return nil, err
	}
	live = slices.DeleteFunc(slices.Clone(live), func(w placement.Worker) bool { return w.CapacityBytes == 0 })
	all, leaves := make([]copyHolder, len(live)), make([]bool, len(live))
	err = a.EachWorker(ctx, addressesOf(live), func(ctx context.Context, i int, w *api.WorkerClient) error {
		asking, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		st, err := w.Status(asking)
		if err != nil {
			return err
		}
		r, err := w.Verify(ctx, api.VerifyRequest{Manifest: m.ID()})
		if err != nil {
			return err
		}
		all[i] = copyHolder{Worker: live[i], free: takes(&st, m.ID(), spare), has: map[uint32]*api.ShardReport{}}
		leaves[i] = st.Drain != nil
		for k := range r.Shards {
			if s := &r.Shards[k]; int(s.Shard) < m.Shards() {
				all[i].has[s.Shard] = s
			}
		}
		return nil
	})
	if err != nil {
		return nil, stoker.Errorf(stoker.KindTransient, "copies", m.ID().Short(), "not all workers say what they have: %w", err)
	}
	c = &copies{m: m}
	for i, h := range all {
		if leaves[i] {
			c.leaves = append(c.leaves, h)
		} else {
			c.stays = append(c.stays, h)
		}
	}
	return c, nil
}

// takes is what a worker could take of copies of a manifest.
func takes(st *api.WorkerStatus, id stoker.ID, spare bool) int64 {
	free := st.CapacityBytes - st.ReservedBytes - st.UsedBytes
	if spare {
		return max(0, free)
	}
	free += st.FreeableBytes
	for _, h := range st.Manifests {
		if h.Manifest == id && len(h.Holders) == 0 { // among the freeable, and not to be freed
			free -= h.Bytes
		}
	}
	return max(0, free)
}

// whole lists for each shard those that stay and have all of it.
func (c *copies) whole() [][]int {
	out := make([][]int, c.m.Shards())
	for i, h := range c.stays {
		for n, s := range h.has {
			if s.Present == nil {
				out[n] = append(out[n], i)
			}
		}
	}
	return out
}

func (c *copies) leavesWhole(n int) bool {
	return slices.ContainsFunc(c.leaves, func(h copyHolder) bool {
		s := h.has[uint32(n)]
		return s != nil && s.Present == nil
	})
}

// leavesMore reports whether those that are drained have blocks of a shard that
// nobody has who stays.
func (c *copies) leavesMore(n int) bool {
	return slices.ContainsFunc(c.leaves, func(h copyHolder) bool { return !c.covered(n, h.has[uint32(n)]) })
}

// covered reports whether those that stay have, together, what a report has.
func (c *copies) covered(n int, s *api.ShardReport) bool {
	if s == nil {
		return true
	}
	blocks := int(c.m.Shard(uint32(n)).Blocks)
	has := func(s *api.ShardReport, b int) bool {
		return s.Present == nil || b/8 < len(s.Present) && s.Present[b/8]&(1<<(b%8)) != 0
	}
	for b := range blocks {
		if has(s, b) && !slices.ContainsFunc(c.stays, func(h copyHolder) bool { o := h.has[uint32(n)]; return o != nil && has(o, b) }) {
			return false
		}
	}
	return true
}

func (c *copies) workers() (out []planner.Worker) {
	for _, h := range c.stays {
		out = append(out, planner.Worker{ID: h.ID, FreeBytes: h.free, Weight: float64(h.CapacityBytes)})
	}
	return out
}

// DropInput says of what there may be too much.
type DropInput struct {
	Dataset  string
	Manifest stoker.ID
	Replicas int
	Spare    bool `json:",omitempty"` // nobody holds the data: workers that are drained need not keep it
	Surplus  bool `json:",omitempty"` // drop what there is beyond Replicas, too
}

// Dropped is what went.
type Dropped struct {
	Shards int   `json:",omitempty"`
	Bytes  int64 `json:",omitempty"`
}

// DropCopies counts again, and drops on workers that are drained what those that
// stay have often enough; with Surplus, on these too what is there more often. It
// is one at a time for each manifest: its workflow sees to that.
func (a *Activities) DropCopies(ctx context.Context, in DropInput) (Dropped, error) {
	defer alive(ctx)()
	d, err := a.dropCopies(ctx, in)
	return d, ToTemporal(err)
}

func (a *Activities) dropCopies(ctx context.Context, in DropInput) (out Dropped, err error) {
	c, err := a.count(ctx, in.Manifest, in.Spare)
	if err != nil {
		return out, err
	}
	defer c.m.Close()
	log := a.o.Log.With("dataset", in.Dataset, "manifest", in.Manifest.Short())
	drop := func(h copyHolder, do func(*api.WorkerClient) (api.EvictReport, error)) error {
		w, err := a.Worker(h.Address)
		if err != nil {
			return err
		}
		r, err := do(w)
		if err != nil || r.Shards == 0 {
			return err
		}
		log.Info("a worker drops what others have, or nobody holds", "worker", h.ID, "shards", r.Shards, "bytes", r.Bytes)
		out.Shards, out.Bytes = out.Shards+r.Shards, out.Bytes+r.Bytes
		return nil
	}
	for _, h := range c.leaves {
		list := c.needless(h, in.Replicas)
		err := drop(h, func(w *api.WorkerClient) (api.EvictReport, error) {
			if in.Spare {
				return w.Evict(ctx, api.EvictRequest{Manifest: in.Manifest})
			}
			return w.DropCopies(ctx, api.DropRequest{Manifest: in.Manifest, Shards: list})
		})
		if err != nil && stoker.KindOf(err) != stoker.KindHeld { // somebody has come: then it moves
			return out, err
		}
	}
	if in.Surplus {
		for i, list := range c.surplus(max(1, in.Replicas)) {
			if len(list) == 0 {
				continue
			}
			err := drop(c.stays[i], func(w *api.WorkerClient) (api.EvictReport, error) {
				return w.DropCopies(ctx, api.DropRequest{Manifest: in.Manifest, Shards: list})
			})
			if err != nil {
				return out, err
			}
		}
	}
	return out, nil
}

// needless lists what one that is drained has and others have often enough, or as
// often as they can.
func (c *copies) needless(h copyHolder, replicas int) (list []uint32) {
	most, whole := min(max(1, replicas), len(c.stays)), c.whole()
	for n, s := range h.has {
		if most > 0 && (s.Present == nil && len(whole[n]) >= most || s.Present != nil && c.covered(int(n), s)) {
			list = append(list, n)
		}
	}
	slices.Sort(list)
	return list
}

// surplus lists for each that stays the shards that it need not have: those with
// the highest scores keep theirs.
func (c *copies) surplus(replicas int) [][]uint32 {
	out := make([][]uint32, len(c.stays))
	for n, has := range c.whole() {
		if len(has) <= replicas {
			continue
		}
		holders := make([]planner.Worker, len(has))
		for k, i := range has {
			holders[k] = planner.Worker{ID: c.stays[i].ID, Weight: float64(c.stays[i].CapacityBytes)}
		}
		for _, k := range planner.Guess(c.m.Shard(uint32(n)).ID, holders, len(holders))[replicas:] {
			out[has[k]] = append(out[has[k]], uint32(n))
		}
	}
	return out
}
