package prefetch

import (
	"math/rand/v2"
	"testing"

	"stoker.dev/planner/order"
)

// loader reads an epoch of one rank as a DataLoader does: each worker a batch, one
// sample after the other.
type loader struct {
	list    []uint32
	batch   int
	workers [][2]int // from, to of what each still has of its batch
	next    int
}

func newLoader(s order.Sampler, samples, rank int, epoch uint64, workers, batch int) *loader {
	l := &loader{batch: batch, workers: make([][2]int, workers)}
	all := s.Permutation(samples, epoch)
	for step := range s.Steps(samples) {
		l.list = append(l.list, s.At(all, rank, step))
	}
	return l
}

// read returns what some worker reads next.
func (l *loader) read(r *rand.Rand) (sample uint32, ok bool) {
	var busy []int
	for i := range l.workers {
		w := &l.workers[i]
		if w[0] == w[1] && l.next < len(l.list) {
			*w = [2]int{l.next, min(l.next+l.batch, len(l.list))}
			l.next = w[1]
		}
		if w[0] < w[1] {
			busy = append(busy, i)
		}
	}
	if len(busy) == 0 {
		return 0, false
	}
	w := &l.workers[busy[r.IntN(len(busy))]]
	w[0]++
	return l.list[w[0]-1], true
}

// job reads epochs through one mount, and counts what of it had come ahead.
type job struct {
	e    *Epochs
	here []bool
	r    *rand.Rand
	late int // reads that go on while Think thinks, at most
	due  int // of them, until it has thought; 0: it does not

	reads, ahead, brought int
}

func newJob(s order.Sampler, samples int, bytes int64) *job {
	e := NewEpochs(s, samples, bytes)
	e.work = 1 << 20
	return &job{e: e, here: make([]bool, samples), r: rand.New(rand.NewPCG(1, 2))}
}

func never() bool { return false }

func (j *job) read(sample uint32) {
	waited := !j.here[sample]
	j.reads++
	if !waited {
		j.ahead++
	}
	j.here[sample] = true
	t, think := j.e.Note(sample, waited)
	if think {
		j.due = 1
		if j.late > 0 {
			j.due += j.r.IntN(j.late)
		}
	}
	if j.due > 0 {
		if j.due--; j.due == 0 {
			j.e.Think(never)
		}
	}
	for i, s := range t.Samples[:t.N] {
		if i == 20 { // no more run at a time
			j.e.Return(t, i)
			break
		}
		if !j.here[s] {
			j.brought++
		}
		j.here[s] = true
	}
}

// run reads an epoch of some loaders, until they are through.
func (j *job) run(loaders ...*loader) {
	for len(loaders) > 0 {
		i := j.r.IntN(len(loaders))
		if s, ok := loaders[i].read(j.r); ok {
			j.read(s)
		} else {
			loaders = append(loaders[:i:i], loaders[i+1:]...)
		}
	}
}

// forget makes what was read go again.
func (j *job) forget() {
	clear(j.here)
	j.reads, j.ahead, j.brought = 0, 0, 0
}

func TestEpochsAreFollowed(t *testing.T) {
	for _, c := range []struct {
		name           string
		samples, world int
		ranks          []int
		workers, batch int
		epoch          uint64
		least          float64 // of the reads come ahead
	}{
		{"one process", 5000, 1, []int{0}, 1, 32, 0, .98},
		{"one rank with workers", 20000, 1, []int{0}, 8, 64, 0, .95},
		{"a rank of many", 60000, 16, []int{11}, 4, 32, 3, .95},
		{"all ranks of a node", 60000, 16, []int{8, 9, 10, 11, 12, 13, 14, 15}, 4, 32, 0, .95},
		{"resumed at a late epoch", 40000, 8, []int{0}, 4, 32, 100, .93},
		{"single samples", 10000, 2, []int{1}, 8, 1, 0, .97},
		{"few samples", 600, 1, []int{0}, 2, 8, 0, .7},
		{"large samples", 2000, 2, []int{0}, 4, 2, 0, .85},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := order.Sampler{Seed: 42, World: c.world}
			each := int64(100_000)
			if c.name == "large samples" {
				each = 140_000_000
			}
			j := newJob(s, c.samples, int64(c.samples)*each)
			for epoch := c.epoch; epoch < c.epoch+3; epoch++ {
				j.forget()
				var all []*loader
				mine := map[uint32]bool{}
				for _, r := range c.ranks {
					l := newLoader(s, c.samples, r, epoch, c.workers, c.batch)
					for _, s := range l.list {
						mine[s] = true
					}
					all = append(all, l)
				}
				j.run(all...)
				if share := float64(j.ahead) / float64(j.reads); share < c.least {
					t.Errorf("epoch %d: %d of %d reads had come ahead", epoch, j.ahead, j.reads)
				}
				others := -j.e.most * len(c.ranks) // of the next epoch
				for s, here := range j.here {
					if here && !mine[uint32(s)] {
						others++
					}
				}
				if others > 0 {
					t.Errorf("epoch %d: %d samples more of other ranks came than the next epoch's window", epoch, others)
				}
			}
		})
	}
}

// A job that does not read in the order of its sampler costs nothing.
func TestWrongOrdersAreNotFollowed(t *testing.T) {
	const samples = 20000
	said := order.Sampler{Seed: 0, World: 4}
	for name, s := range map[string]order.Sampler{"another seed": {Seed: 99999, World: 4}, "more ranks": {Seed: 0, World: 8}} {
		j := newJob(said, samples, samples*100_000)
		j.run(newLoader(s, samples, 1, 0, 4, 32))
		if j.brought > 0 {
			t.Errorf("%s: %d samples were brought in", name, j.brought)
		}
	}
	j := newJob(said, samples, samples*100_000)
	for i := range uint32(samples) {
		j.read(i)
	}
	if j.brought > 0 {
		t.Errorf("in the order of the listing: %d samples were brought in", j.brought)
	}
}

// Where few files are read, in no order that is told, many have a neighbour among the
// last ones by chance, in one epoch of a thousand more than in others.
func TestChanceIsNoOrder(t *testing.T) {
	const seeds = 3
	for _, samples := range []int{LeastSamples, 700, 1000, 1500} {
		for seed := range uint64(seeds) {
			j := newJob(order.Sampler{World: 8}, samples, int64(samples)*100_000)
			for _, sample := range rand.New(rand.NewPCG(seed, 5)).Perm(samples) {
				j.read(uint32(sample))
			}
			if j.brought > 0 {
				t.Errorf("%d samples, seed %d: %d were brought in", samples, seed, j.brought)
			}
		}
	}
	const samples = 1000
	s := order.Sampler{World: 2}
	j := newJob(s, samples, samples*100_000)
	j.run(newLoader(s, samples, 1, 3, 2, 16))
	if j.ahead < j.reads/4 {
		t.Errorf("in the order that is told %d of %d reads had come ahead", j.ahead, j.reads)
	}
}

// A job that leaves the order, and comes back to it, is left and found again.
func TestEpochsAreLeftAndFoundAgain(t *testing.T) {
	const samples = 40000
	s := order.Sampler{Seed: 1, World: 4}
	j := newJob(s, samples, samples*100_000)
	half := newLoader(s, samples, 2, 0, 2, 16)
	half.list = half.list[:len(half.list)/2]
	j.run(half)
	j.forget()
	j.run(newLoader(order.Sampler{Seed: 5000, World: 8}, samples, 3, 0, 2, 16))
	if j.brought > 2*j.e.first+looked*mostTurn {
		t.Errorf("%d samples were brought in that nobody read", j.brought)
	}
	j.forget()
	j.run(newLoader(s, samples, 2, 1, 2, 16))
	if j.ahead < j.reads*9/10 {
		t.Errorf("%d of %d reads had come ahead, once the order was right again", j.ahead, j.reads)
	}
}

// A job that forgets to say which epoch it is reads the same order again and again.
func TestTheSameEpochAgain(t *testing.T) {
	for _, tc := range []struct {
		samples, world int
		mean           int64 // bytes: a window has many samples if they are small
	}{{40_000, 4, 100_000}, {840, 2, 88_000}, {520, 2, 500_000}, {2000, 2, 4_000}, {5000, 2, 4_000}} {
		s := order.Sampler{World: tc.world}
		j := newJob(s, tc.samples, int64(tc.samples)*tc.mean)
		for i := range 4 {
			j.forget()
			j.run(newLoader(s, tc.samples, tc.world/2, 0, 2, 16))
			if j.ahead < j.reads*2/3 {
				t.Errorf("%+v, pass %d: %d of %d reads had come ahead", tc, i, j.ahead, j.reads)
			}
		}
	}
}

// A rank reads an epoch again that the others leave for the next one, whose order is not
// known at once: most of what comes is still found ahead, whatever the order of the reads.
func TestOneRankReadsTheSameEpochAgain(t *testing.T) {
	const samples, ranks = 8000, 4
	s := order.Sampler{World: ranks}
	for seed := range uint64(40) {
		j := newJob(s, samples, samples*1_000_000)
		j.r, j.late = rand.New(rand.NewPCG(seed, 7)), 200
		for pass := range uint64(4) {
			j.forget()
			all := []*loader{newLoader(s, samples, 0, 0, 2, 8)}
			for rank := range ranks - 1 {
				all = append(all, newLoader(s, samples, rank+1, pass, 2, 8))
			}
			j.run(all...)
			if j.ahead < j.reads/2 {
				t.Errorf("seed %d, pass %d: %d of %d reads had come ahead", seed, pass, j.ahead, j.reads)
			}
		}
	}
}

// Data that is all here is not looked for.
func TestNothingIsLookedForInDataThatIsHere(t *testing.T) {
	e := NewEpochs(order.Sampler{World: 1}, 1000, 1000)
	for i := range uint32(1000) {
		if n, think := e.Note(i, false); think || n.N > 0 {
			t.Fatal("a read of data that is here makes work")
		}
	}
}

func TestNotingDoesNotAllocate(t *testing.T) {
	s := order.Sampler{World: 1}
	j := newJob(s, 10000, 10000)
	l := newLoader(s, 10000, 0, 0, 1, 1)
	for range 200 {
		sample, _ := l.read(j.r)
		j.read(sample)
	}
	if j.ahead == 0 {
		t.Fatal("the epoch is not followed")
	}
	i := 200
	if n := testing.AllocsPerRun(500, func() { i++; j.e.Note(l.list[i], false) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkEpochsNote(b *testing.B) {
	s := order.Sampler{World: 8}
	j := newJob(s, 1_281_167, 1_281_167*110_000)
	l := newLoader(s, 1_281_167, 3, 0, 1, 1)
	for range 200 {
		sample, _ := l.read(j.r)
		j.read(sample)
	}
	i := 0
	for b.Loop() {
		i = (i + 1) % len(l.list)
		j.e.Note(l.list[i], false)
	}
}
