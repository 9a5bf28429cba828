package activities

import (
	"context"
	"slices"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/cache/placement"
	"stoker.dev/planner"
)

const (
	olderLooked  = 4 // generations along the chain of bases
	olderSamples = 8 // objects looked up in each, for a shard
)

// havingOld completes who has what: a shard that nobody has goes where the old
// generation's shard is that has most of its objects, so that they are copied
// on one disk. has is what having returned.
func (a *Activities) havingOld(ctx context.Context, m *manifest.Manifest, has [][]int, live []placement.Worker, workers []planner.Worker) [][]int {
	at := m.Header().Base
	for looked := 0; looked < olderLooked && !at.IsZero() && at != m.ID() && lacksAny(has, m.Shards()); looked++ {
		old, err := a.o.Store.Load(ctx, at)
		if err != nil {
			a.o.Log.Warn("an older generation cannot be opened; the plan does not regard it", "manifest", m.ID().Short(), "base", at.Short(), "error", err)
			break
		}
		if has == nil {
			has = make([][]int, m.Shards())
		}
		a.placeAsOld(m, old, has, a.having(ctx, at, old.Shards(), live, workers))
		at = old.Header().Base
		_ = old.Close()
	}
	return has
}

func lacksAny(has [][]int, shards int) bool {
	return len(has) < shards || slices.ContainsFunc(has, func(ws []int) bool { return len(ws) == 0 })
}

// hasLikes tells of which shards, in order, a worker was said to have the like of
// an older generation: it copies them when it is back, and others would have to
// fetch them.
func (a *Activities) hasLikes(ctx context.Context, m *manifest.Manifest, worker string, shards []uint32) map[uint32]bool {
	has := map[uint32]bool{}
	at := m.Header().Base
	for looked := 0; looked < olderLooked && !at.IsZero() && at != m.ID() && len(has) < len(shards); looked++ {
		old, err := a.o.Store.Load(ctx, at)
		if err != nil {
			a.o.Log.Warn("an older generation cannot be opened; what a lost worker has of it is not waited for", "manifest", m.ID().Short(), "base", at.Short(), "error", err)
			break
		}
		likes := likesOf(m, old, shards)
		var asked []uint32
		for _, like := range likes {
			asked = append(asked, like)
		}
		slices.Sort(asked)
		asked = slices.Compact(asked)
		begun, known, err := a.o.Index.Begun(ctx, worker, at, asked)
		for n, like := range likes {
			if i, _ := slices.BinarySearch(asked, like); err == nil && known && begun[i] {
				has[n] = true
			}
		}
		at = old.Header().Base
		_ = old.Close()
	}
	return has
}

// likesOf finds for shards of m the old one that has most of their objects.
func likesOf(m, old *manifest.Manifest, shards []uint32) map[uint32]uint32 {
	likes := map[uint32]uint32{}
	twins, common := manifest.NewTwins(m, old)
	if !common {
		return likes
	}
	same := map[stoker.ID]uint32{}
	for n := range uint32(old.Shards()) {
		same[old.Shard(n).ID] = n
	}
	for _, n := range shards {
		like, ok := same[m.Shard(n).ID]
		if !ok {
			like, ok = mostOf(m, old, twins, n)
		}
		if ok {
			likes[n] = like
		}
	}
	return likes
}

// placeAsOld gives each shard that nobody has to those that have its like.
func (a *Activities) placeAsOld(m, old *manifest.Manifest, has, hadOld [][]int) {
	if hadOld == nil {
		return
	}
	var lacking []uint32
	for n := range has {
		if len(has[n]) == 0 {
			lacking = append(lacking, uint32(n))
		}
	}
	for n, like := range likesOf(m, old, lacking) {
		has[n] = hadOld[like]
	}
}

// mostOf is the old shard that most of some objects of shard n lie in.
func mostOf(m, old *manifest.Manifest, twins *manifest.Twins, n uint32) (like uint32, ok bool) {
	s := m.Shard(n)
	count := map[uint32]int{}
	step := max(1, s.Rows/olderSamples)
	for at := uint32(0); at < s.Rows; at += step {
		row := s.FirstRow + manifest.Row(at)
		if e := m.Entry(row); e.Shard != n || s.Extent >= 0 {
			continue
		}
		twin, found := twins.Row(row)
		if !found {
			continue
		}
		if k, _, found := old.Part(twin, 0); found {
			count[k]++
			if !ok || count[k] > count[like] || count[k] == count[like] && k < like {
				like, ok = k, true
			}
		}
	}
	return like, ok
}
