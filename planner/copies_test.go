package planner

import (
	"slices"
	"testing"

	"stoker.dev"
)

// Copies are added where there is room and none yet, evenly; those that are there
// stay, and what finds no room is counted.
func TestAddCopies(t *testing.T) {
	const mib = 1 << 20
	shards := make([]Shard, 40)
	has, want := make([][]int, len(shards)), make([]int, len(shards))
	for n := range shards {
		shards[n] = Shard{ID: stoker.ID{byte(n), 7}, Bytes: 64 * mib}
		has[n], want[n] = []int{n % 4}, 2
	}
	want[3] = 1 // enough
	want[5] = 4 // everywhere
	workers := make([]Worker, 4)
	for i := range workers {
		workers[i] = Worker{ID: string(rune('a' + i)), FreeBytes: 4 << 30}
	}
	load := func(added [][]int) (sum [4]int) {
		for n, ws := range added {
			for _, w := range ws {
				sum[w]++
				if slices.Contains(has[n], w) {
					t.Errorf("shard %d is put where it is", n)
				}
			}
		}
		return sum
	}
	added, short := AddCopies(shards, workers, has, want)
	if short != 0 || len(added[3]) != 0 || len(added[5]) != 3 {
		t.Errorf("%d bytes short; shard 3 gets %v, shard 5 %v", short, added[3], added[5])
	}
	for w, n := range load(added) {
		if n < 9 || n > 12 { // 41 in all
			t.Errorf("worker %d gets %d copies of %v", w, n, load(added))
		}
	}
	again, _ := AddCopies(shards, workers, has, want)
	if !slices.EqualFunc(added, again, slices.Equal[[]int]) {
		t.Error("the same input gives another plan")
	}
	for i := range workers {
		workers[i].FreeBytes = 5 * 64 * mib
	}
	added, short = AddCopies(shards, workers, has, want)
	if got := load(added); got != [4]int{5, 5, 5, 5} || short != 21*64*mib {
		t.Errorf("with room for 20: %v, %d MiB short", got, short/mib)
	}
}
