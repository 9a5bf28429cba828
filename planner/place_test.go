package planner

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"stoker.dev"
)

const mib = 1 << 20

func randomID(r *rand.Rand) (id stoker.ID) {
	for i := range id {
		id[i] = byte(r.Uint32())
	}
	return id
}

// extents are shards of 64 MiB, packs of 16 to 128 MiB.
func extents(*rand.Rand) int64 { return 64 * mib }
func packs(r *rand.Rand) int64 { return 16*mib + r.Int64N(112*mib+1) }

func someShards(r *rand.Rand, n int, size func(*rand.Rand) int64) []Shard {
	out := make([]Shard, n)
	for i := range out {
		out[i] = Shard{ID: randomID(r), Bytes: size(r)}
	}
	return out
}

// someWorkers makes workers that all have space, with weights from 1 to heaviest.
func someWorkers(r *rand.Rand, n int, heaviest float64) []Worker {
	out := make([]Worker, n)
	for i := range out {
		out[i] = Worker{ID: fmt.Sprintf("%016x", r.Uint64()), FreeBytes: 1 << 50, Weight: 1 + r.Float64()*(heaviest-1)}
	}
	return out
}

func mustPlace(t testing.TB, shards []Shard, workers []Worker, o PlaceOptions) [][]int {
	t.Helper()
	out, err := Place(shards, workers, o)
	if err != nil {
		t.Fatal(err)
	}
	checkPlaced(t, shards, workers, out, max(1, o.Replicas))
	return out
}

// checkPlaced checks what must hold of every answer.
func checkPlaced(t testing.TB, shards []Shard, workers []Worker, out [][]int, replicas int) {
	t.Helper()
	load := make([]int64, len(workers))
	for n, owners := range out {
		for at, w := range owners {
			load[w] += shards[n].Bytes
			if slices.Contains(owners[:at], w) {
				t.Fatalf("shard %d is twice on worker %d: %v", n, w, owners)
			}
		}
		if len(owners) != replicas {
			t.Fatalf("shard %d has workers %v, want %d", n, owners, replicas)
		}
	}
	for w, b := range load {
		if b > workers[w].FreeBytes {
			t.Fatalf("worker %d got %d bytes and has %d free", w, b, workers[w].FreeBytes)
		}
	}
}

// fairShares is what each worker should get: by weight, but no more than one
// replica of everything. It is computed otherwise than in Place: by bisection.
func fairShares(shards []Shard, workers []Worker, replicas int) []float64 {
	var total float64
	for _, s := range shards {
		total += float64(s.Bytes)
	}
	out := make([]float64, len(workers))
	low, high := 0.0, total*float64(replicas)
	for range 200 {
		mid, sum := (low+high)/2, 0.0
		for i, w := range workers {
			out[i] = min(total, mid*w.Weight)
			sum += out[i]
		}
		if sum < total*float64(replicas) {
			low = mid
		} else {
			high = mid
		}
	}
	return out
}

// spread is the least and the most load, as multiples of the fair share, and
// what the largest shard adds to the smallest share.
func spread(shards []Shard, workers []Worker, out [][]int, replicas int) (least, most, shard float64) {
	load := make([]float64, len(workers))
	var largest float64
	for n, owners := range out {
		for _, w := range owners {
			load[w] += float64(shards[n].Bytes)
		}
		largest = max(largest, float64(shards[n].Bytes))
	}
	least = 1e9
	for i, fair := range fairShares(shards, workers, replicas) {
		least, most, shard = min(least, load[i]/fair), max(most, load[i]/fair), max(shard, largest/fair)
	}
	return least, most, shard
}

// shape is one size of the problem that the promises are about: at least 20
// shards for the lightest worker.
type shape struct {
	workers, replicas, each int
	heaviest                float64
	size                    func(*rand.Rand) int64
}

func eachShape(t *testing.T, workers []int, check func(t *testing.T, r *rand.Rand, s shape)) {
	for _, n := range workers {
		for name, s := range map[string]shape{
			"extents":                     {each: 20, heaviest: 1, size: extents},
			"packs":                       {each: 20, heaviest: 1, size: packs},
			"packs, weights":              {each: 20, heaviest: 4, size: packs},
			"extents, weights":            {each: 23, heaviest: 3, size: extents},
			"two replicas":                {each: 20, heaviest: 1, size: packs},
			"three replicas, weights":     {each: 21, heaviest: 2, size: packs},
			"three replicas of extents":   {each: 20, heaviest: 1, size: extents},
			"many packs, weights":         {each: 60, heaviest: 3, size: packs},
			"two replicas of many shards": {each: 80, heaviest: 1, size: packs},
		} {
			s.workers, s.replicas = n, 1
			switch {
			case strings.HasPrefix(name, "two"):
				s.replicas = 2
			case strings.HasPrefix(name, "three"):
				s.replicas = 3
			}
			if s.replicas > n || s.each > 30 && n > 50 {
				continue
			}
			t.Run(fmt.Sprintf("%d workers, %s", n, name), func(t *testing.T) {
				for seed := range uint64(max(1, min(3, 40/n))) {
					check(t, rand.New(rand.NewPCG(seed, 5)), s)
				}
			})
		}
	}
}

// make draws the workers and enough shards, for workers + more of them.
func (s shape) make(r *rand.Rand, more int) ([]Shard, []Worker) {
	workers := someWorkers(r, s.workers+more, s.heaviest)
	sum, lightest := 0.0, s.heaviest
	for _, w := range workers {
		sum, lightest = sum+w.Weight, min(lightest, w.Weight)
	}
	return someShards(r, int(sum/lightest*float64(s.each)/float64(s.replicas))+1, s.size), workers
}

func TestPlaceBalances(t *testing.T) {
	eachShape(t, []int{2, 3, 5, 10, 40, 200}, func(t *testing.T, r *rand.Rand, s shape) {
		shards, workers := s.make(r, 0)
		out := mustPlace(t, shards, workers, PlaceOptions{Replicas: s.replicas})
		if least, most, _ := spread(shards, workers, out, s.replicas); least < 0.95 || most > 1.05 {
			t.Errorf("loads are %.3f to %.3f of the fair share, want 0.95 to 1.05", least, most)
		}
	})
}

// moved is how many bytes workers must get that they do not have, if shards go
// from one placement to another.
func moved(shards []Shard, has, out [][]int) (bytes float64) {
	for n, owners := range out {
		for _, w := range owners {
			if !slices.Contains(has[n], w) {
				bytes += float64(shards[n].Bytes)
			}
		}
	}
	return bytes
}

// A worker that joins gets its share and nobody else gets anything.
func TestJoinMovesLittle(t *testing.T) {
	eachShape(t, []int{2, 3, 5, 10, 40, 200}, func(t *testing.T, r *rand.Rand, s shape) {
		shards, workers := s.make(r, 1)
		has := mustPlace(t, shards, workers[:s.workers], PlaceOptions{Replicas: s.replicas})
		out := mustPlace(t, shards, workers, PlaceOptions{Replicas: s.replicas, Has: has})
		fair := fairShares(shards, workers, s.replicas)[s.workers]
		if m := moved(shards, has, out) / fair; m > 1.1 || m < 0.9 {
			t.Errorf("a join moves %.2f of the new worker's share", m)
		}
		if least, most, _ := spread(shards, workers, out, s.replicas); least < 0.95 || most > 1.05 {
			t.Errorf("loads are %.3f to %.3f of the fair share, want 0.95 to 1.05", least, most)
		}
	})
}

// When a worker leaves, what it had moves, and nothing else does. Then a
// worker may pass the bound by a shard: who had none to give keeps his.
func TestLeaveMovesLittle(t *testing.T) {
	eachShape(t, []int{2, 5, 10, 40, 200}, func(t *testing.T, r *rand.Rand, s shape) {
		if s.replicas > 1 && s.workers < 2*s.replicas {
			t.Skip("nearly every worker has everything")
		}
		shards, workers := s.make(r, 1)
		before := mustPlace(t, shards, workers, PlaceOptions{Replicas: s.replicas})
		has, lost := make([][]int, len(shards)), 0.0
		for n, owners := range before {
			for _, w := range owners {
				if w < s.workers {
					has[n] = append(has[n], w)
				} else {
					lost += float64(shards[n].Bytes)
				}
			}
		}
		out := mustPlace(t, shards, workers[:s.workers], PlaceOptions{Replicas: s.replicas, Has: has})
		if m := moved(shards, has, out) / lost; m > 1.1 || m < 1 {
			t.Errorf("a leave moves %.2f of what the worker had", m)
		}
		if least, most, shard := spread(shards, workers[:s.workers], out, s.replicas); least < 0.94 || most > max(1.05, 1+shard) {
			t.Errorf("loads are %.3f to %.3f of the fair share, a shard is %.3f", least, most, shard)
		}
	})
}

// What nobody asked to change does not change.
func TestPlaceKeeps(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	shards, workers := someShards(r, 600, packs), someWorkers(r, 12, 3)
	has := mustPlace(t, shards, workers, PlaceOptions{Replicas: 2})
	if again := mustPlace(t, shards, workers, PlaceOptions{Replicas: 2, Has: has}); moved(shards, has, again) != 0 {
		t.Errorf("%.0f bytes move though nothing changed", moved(shards, has, again))
	}
	t.Run("read copies everywhere", func(t *testing.T) {
		all := make([][]int, len(shards))
		for n := range all {
			all[n] = r.Perm(len(workers))
		}
		out := mustPlace(t, shards, workers, PlaceOptions{Has: all})
		if least, most, _ := spread(shards, workers, out, 1); least < 0.95 || most > 1.05 || moved(shards, all, out) != 0 {
			t.Errorf("loads are %.3f to %.3f of the fair share, %.0f bytes move", least, most, moved(shards, all, out))
		}
	})
	t.Run("one has read what the others have", func(t *testing.T) {
		owners := mustPlace(t, shards, workers, PlaceOptions{})
		for reader := range workers {
			copies := make([][]int, len(owners))
			for n, o := range owners {
				if copies[n] = slices.Clone(o); o[0] != reader {
					copies[n] = append(copies[n], reader)
				}
			}
			if out := mustPlace(t, shards, workers, PlaceOptions{Has: copies}); moved(shards, copies, out) > 128*mib {
				t.Errorf("%.0f bytes move, more than a shard, though every worker has its share", moved(shards, copies, out))
			}
		}
	})
	t.Run("one has everything", func(t *testing.T) {
		one := make([][]int, len(shards))
		for n := range one {
			one[n] = []int{3, 3}
		}
		out := mustPlace(t, shards, workers, PlaceOptions{Has: one})
		if least, most, _ := spread(shards, workers, out, 1); least < 0.95 || most > 1.05 {
			t.Errorf("loads are %.3f to %.3f of the fair share", least, most)
		}
	})
}

// Few shards, skewed weights, little space: the invariants of checkPlaced hold,
// and no worker is loaded with two shards while another one has none.
func TestPlaceOfAnything(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 9))
	fits := 0
	for range 400 {
		workers := someWorkers(r, 1+r.IntN(20), 1+10*r.Float64())
		for i := range workers {
			workers[i].FreeBytes = r.Int64N(2000*mib) - 100*mib
		}
		shards := someShards(r, r.IntN(80), packs)
		o := PlaceOptions{Replicas: 1 + r.IntN(3)}
		if r.IntN(2) == 0 {
			for range shards {
				o.Has = append(o.Has, r.Perm(len(workers))[:r.IntN(min(len(workers), 4)+1)])
			}
		}
		out, err := Place(shards, workers, o)
		if stoker.KindOf(err) == stoker.KindNoSpace && err != nil {
			continue
		} else if err != nil {
			t.Fatal(err)
		}
		fits++
		for i := range workers {
			workers[i].FreeBytes = max(0, workers[i].FreeBytes)
		}
		checkPlaced(t, shards, workers, out, o.Replicas)
	}
	if fits < 50 {
		t.Fatalf("only %d of 400 fit: the test tries nothing", fits)
	}
	workers := someWorkers(r, 10, 1)
	seen := map[int]int{}
	for _, owners := range mustPlace(t, someShards(r, 12, extents), workers, PlaceOptions{}) {
		seen[owners[0]]++
	}
	for w, n := range seen {
		if len(seen) != 10 || n > 2 {
			t.Errorf("12 shards on 10 workers: worker %d has %d, %d have any", w, n, len(seen))
		}
	}
}

// The order in which shards and workers are listed does not matter.
func TestPlaceWithoutOrder(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	shards, workers := someShards(r, 400, packs), someWorkers(r, 15, 3)
	for i := range workers {
		workers[i].FreeBytes = 3000*mib + r.Int64N(6000*mib)
	}
	start := mustPlace(t, shards, workers[:13], PlaceOptions{Replicas: 2})
	want := mustPlace(t, shards, workers, PlaceOptions{Replicas: 2, Has: start})
	for range 10 {
		ps, pw := r.Perm(len(shards)), r.Perm(len(workers))
		back := make([]int, len(workers)) // from old to new
		ws := make([]Worker, len(workers))
		for i, old := range pw {
			ws[i], back[old] = workers[old], i
		}
		ss, has := make([]Shard, len(shards)), make([][]int, len(shards))
		for i, old := range ps {
			ss[i] = shards[old]
			for _, w := range start[old] {
				has[i] = append(has[i], back[w])
			}
			slices.Reverse(has[i])
		}
		got := mustPlace(t, ss, ws, PlaceOptions{Replicas: 2, Has: has})
		for i, old := range ps {
			for at, w := range got[i] {
				if pw[w] != want[old][at] {
					t.Fatalf("shard %d: %v in one order, %v in another", old, want[old], got[i])
				}
			}
		}
	}
}

// The same plan on every machine and in every version: workers that are
// placed anew by a new version would move everything.
func TestPlaceIsGolden(t *testing.T) {
	r := rand.New(rand.NewPCG(2024, 7))
	shards, workers := someShards(r, 500, packs), someWorkers(r, 17, 4)
	h := sha256.New()
	for _, owners := range mustPlace(t, shards, workers, PlaceOptions{Replicas: 2}) {
		fmt.Fprintln(h, owners)
	}
	fmt.Fprintln(h, Guess(shards[0].ID, workers, 17))
	const want = "92c22093a313df64"
	if got := hex.EncodeToString(h.Sum(nil)[:8]); got != want {
		t.Errorf("placement is %s, was %s", got, want)
	}
}

// Most shards are where the plan-less guess looks for them first.
func TestGuess(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 4))
	shards, workers := someShards(r, 2000, packs), someWorkers(r, 20, 2)
	hits := 0
	for n, owners := range mustPlace(t, shards, workers, PlaceOptions{}) {
		guess := Guess(shards[n].ID, workers, 2)
		if len(guess) != 2 || guess[0] == guess[1] {
			t.Fatalf("guess %v", guess)
		}
		if slices.Contains(guess, owners[0]) {
			hits++
		}
	}
	if hits < 1800 {
		t.Errorf("%d of 2000 shards are at one of the two best guesses", hits)
	}
	if got := Guess(shards[0].ID, workers, 50); len(got) != 20 {
		t.Errorf("a guess of 50 among 20 has %d", len(got))
	}
	if got := Guess(shards[0].ID, nil, 2); len(got) != 0 {
		t.Errorf("a guess among none: %v", got)
	}
}

func TestNoFit(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 5))
	shards := someShards(r, 48, extents) // 3 GiB
	for name, c := range map[string]struct {
		workers  int
		free     int64
		replicas int
		want     NoFit
		text     string
	}{
		"no worker":             {0, 0, 1, NoFit{3 << 30, 0, 0, 1}, "no worker is live"},
		"too small":             {4, 700 * mib, 1, NoFit{3 << 30, 2800 * mib, 4, 1}, "needs 3.0 GiB on 4 workers, 2.7 GiB free"},
		"too small for two":     {4, 1 << 30, 2, NoFit{6 << 30, 4 << 30, 4, 2}, "needs 6.0 GiB on 4 workers, 4.0 GiB free"},
		"too few for replicas":  {2, 1 << 40, 3, NoFit{9 << 30, 2 << 40, 2, 3}, "needs 3 workers for as many copies of each shard, 2 can hold one: ask for at most 2 replicas, or add workers"},
		"less than none":        {2, -5, 1, NoFit{3 << 30, 0, 2, 1}, "needs 3.0 GiB on 2 workers, 0.0 B free"},
		"in total, not by each": {48, 64*mib - 1, 1, NoFit{3 << 30, 48 * (64*mib - 1), 48, 1}, "needs 3.0 GiB on 48 workers, 3.0 GiB free"},
	} {
		t.Run(name, func(t *testing.T) {
			workers := someWorkers(r, c.workers, 1)
			for i := range workers {
				workers[i].FreeBytes = c.free
			}
			_, err := Place(shards, workers, PlaceOptions{Replicas: c.replicas})
			var no *NoFit
			if stoker.KindOf(err) != stoker.KindNoSpace || !errors.As(err, &no) {
				t.Fatalf("%v", err)
			}
			if *no != c.want || !strings.HasSuffix(err.Error(), c.text) {
				t.Errorf("%+v, %q", *no, err)
			}
		})
	}
	t.Run("exactly", func(t *testing.T) {
		workers := someWorkers(r, 4, 1)
		for i := range workers {
			workers[i].FreeBytes = 12 * 64 * mib
		}
		mustPlace(t, shards, workers, PlaceOptions{})
	})
	t.Run("nothing to place", func(t *testing.T) {
		if out, err := Place(nil, someWorkers(r, 1, 1), PlaceOptions{}); err != nil || len(out) != 0 {
			t.Errorf("%v, %v", out, err)
		}
	})
}
