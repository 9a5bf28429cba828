package planner

import (
	"cmp"
	"slices"
)

// AddCopies chooses workers for more copies of shards, as many as want says beyond
// those of has, which has no copy moved. The largest shards come first; each copy
// goes to the highest score with room and no copy of it. It returns the new
// workers of each shard, and the bytes of copies that found no room: what fits is
// worth having. A shard that no worker has, or that is on all of them, gets none.
func AddCopies(shards []Shard, workers []Worker, has [][]int, want []int) (added [][]int, short int64) {
	var lacking []int
	var need []Shard
	for n := range shards {
		if want[n] > len(has[n]) {
			lacking = append(lacking, n)
			for range want[n] - len(has[n]) {
				need = append(need, shards[n])
			}
		}
	}
	slices.SortStableFunc(lacking, func(a, b int) int { return cmp.Compare(shards[b].Bytes, shards[a].Bytes) })
	added = make([][]int, len(shards))
	p := newPlacer(need, workers, 1)
	for _, n := range lacking {
		for range want[n] - len(has[n]) {
			to := p.another(shards[n], func(i int) bool { return slices.Contains(has[n], i) || slices.Contains(added[n], i) })
			if to < 0 {
				short += shards[n].Bytes
				continue
			}
			added[n] = append(added[n], to)
		}
	}
	return added, short
}
