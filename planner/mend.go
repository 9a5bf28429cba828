package planner

import (
	"slices"
)

// Mending is what becomes of a plan one of whose workers went away.
type Mending struct {
	Moved *Plan // the shards that others load now; nil: none
	Kept  *Plan // those that wait for the worker's return; nil: none
}

// MendOptions say what is known of the lost worker.
type MendOptions struct {
	Lost  int                 // part of the plan
	Keep  func(n uint32) bool // the lost worker has some of it: it waits for its return
	Round int64
	// Workers are the live ones and their free bytes, the lost one not among
	// them; the plan's own keep their numbers, new ones are added.
	Workers   []Worker
	Addresses []string // of Workers
}

// Mend moves what a lost worker had not begun to live workers, each shard to
// the one with the highest score that has room and no replica of it. What
// cannot be moved is kept for the worker's return, too. Shards that the lost
// worker had to load and others own already stay theirs. Of a node of the plan
// nothing moves: it has to hold all of them itself. NoSpace is never an
// error here: the worker may come back.
func Mend(p *Plan, shards []Shard, o MendOptions) Mending {
	next := &Plan{Dataset: p.Dataset, Generation: p.Generation, Manifest: p.Manifest, Replicas: p.Replicas, Round: o.Round,
		Workers: slices.Clone(p.Workers), Owners: slices.Clone(p.Owners), Nodes: p.Nodes, Select: p.Select}
	number := make([]uint16, len(o.Workers)) // in the plan
	for i, w := range o.Workers {
		at := slices.IndexFunc(next.Workers, func(q PlanWorker) bool { return q.ID == w.ID })
		if at < 0 {
			at = len(next.Workers)
			next.Workers = append(next.Workers, PlanWorker{ID: w.ID})
		}
		next.Workers[at].Address = o.Addresses[i]
		number[i] = uint16(at)
	}
	part := p.Part(o.Lost)
	if slices.Contains(p.Nodes, uint16(o.Lost)) {
		o.Keep = func(uint32) bool { return true }
	}
	var want []Shard
	for _, n := range part {
		if !o.Keep(n) {
			want = append(want, shards[n])
		}
	}
	place := newPlacer(want, o.Workers, 1)
	moved, kept := []uint32{}, []uint32{}
	for _, n := range part {
		owners := next.Owners[n]
		to := -1
		if !o.Keep(n) {
			to = place.another(shards[n], func(i int) bool { return slices.Contains(owners, number[i]) })
		}
		if to < 0 {
			kept = append(kept, n)
			continue
		}
		next.Owners[n] = slices.Clone(owners)
		next.Owners[n][slices.Index(owners, uint16(o.Lost))] = number[to]
		moved = append(moved, n)
	}
	return Mending{Moved: next.mending(moved), Kept: next.mending(kept)}
}

// mending is the plan for some of the shards alone; nil for none.
func (p *Plan) mending(shards []uint32) *Plan {
	if len(shards) == 0 {
		return nil
	}
	q := *p
	q.Mended = shards
	return &q
}

// another chooses one more worker for a shard; -1 if none has room.
func (p *placer) another(s Shard, has func(i int) bool) int {
	var taken []int
	for i := range p.workers {
		if has(i) {
			taken = append(taken, i)
		}
	}
	best := p.best(s, taken)
	if best >= 0 {
		p.take(best, s.Bytes)
	}
	return best
}
