package planner

import (
	"cmp"
	"math"
	"slices"

	"stoker.dev"
)

// placer keeps each worker's room while shards are placed.
type placer struct {
	workers []Worker
	seeds   []uint64
	weights []float64
	free    []int64
	share   []float64 // bytes; see setShares
	load    []float64
	scores  []float64 // of the shard in hand
	class   []int     // of each worker's weight
	tops    []top     // the best of each class, for the shard in hand
	need    int64
	total   int64

	replicas int
	bound    float64 // see PlaceOptions
}

// top is a worker and its hash with a shard.
type top struct {
	hash   uint64
	worker int
}

func newPlacer(shards []Shard, workers []Worker, replicas int) *placer {
	p := &placer{workers: workers, replicas: replicas, share: make([]float64, len(workers)), load: make([]float64, len(workers)), scores: make([]float64, len(workers))}
	for _, w := range workers {
		p.seeds = append(p.seeds, seed(w.ID))
		p.weights = append(p.weights, weightOf(w))
		p.free = append(p.free, max(0, w.FreeBytes))
		p.total += max(0, w.FreeBytes)
	}
	classes := map[float64]int{}
	for _, w := range p.weights {
		if _, known := classes[w]; !known {
			classes[w] = len(classes)
		}
		p.class = append(p.class, classes[w])
	}
	p.tops = make([]top, len(classes))
	for _, s := range shards {
		p.need += s.Bytes * int64(replicas)
	}
	p.setShares(replicas)
	return p
}

// setShares divides what is needed by weight. No share is more than the worker
// has free, or than one replica of everything: what is cut off there is
// divided among the others.
func (p *placer) setShares(replicas int) {
	open := make([]int, len(p.workers))
	for i := range open {
		open[i] = i
	}
	slices.SortFunc(open, func(a, b int) int { return cmp.Compare(p.workers[a].ID, p.workers[b].ID) }) // sums depend on the order
	left := float64(p.need)
	for len(open) > 0 {
		var weights float64
		for _, i := range open {
			weights += p.weights[i]
		}
		level, rest := left/weights, open[:0:0]
		for _, i := range open {
			most := min(float64(p.free[i]), float64(p.need)/float64(replicas))
			if p.share[i] = level * p.weights[i]; p.share[i] < most {
				rest = append(rest, i)
				continue
			}
			p.share[i], left = most, left-most
		}
		if len(rest) == len(open) {
			return
		}
		open = rest
	}
}

func (p *placer) score(s Shard) {
	for i := range p.workers {
		p.scores[i] = score(&s.ID, p.seeds[i], p.weights[i])
	}
}

// compare orders workers by their claims on the shard in hand, the best first.
func (p *placer) compare(a, b int) int {
	return cmp.Or(cmp.Compare(p.scores[b], p.scores[a]), cmp.Compare(p.workers[a].ID, p.workers[b].ID))
}

func (p *placer) before(a, b int) bool { return p.compare(a, b) < 0 }

// filled is a worker's load as a multiple of its share, with more bytes.
func (p *placer) filled(i int, more int64) float64 {
	if p.share[i] <= 0 {
		return math.Inf(1)
	}
	return (p.load[i] + float64(more)) / p.share[i]
}

func (p *placer) take(i int, bytes int64) {
	p.free[i] -= bytes
	p.load[i] += float64(bytes)
}

// keep leaves a shard on those that have it: of more than there need be, on those
// whose shares it fits.
func (p *placer) keep(s Shard, has []int, replicas int) []int {
	if len(has) == 0 {
		return nil
	}
	for _, i := range has {
		p.scores[i] = score(&s.ID, p.seeds[i], p.weights[i])
	}
	full := func(i int) int {
		if p.filled(i, s.Bytes) > p.bound {
			return 1
		}
		return 0
	}
	has = slices.Clone(has)
	slices.SortFunc(has, func(a, b int) int { return cmp.Or(cmp.Compare(full(a), full(b)), p.compare(a, b)) })
	var kept []int
	for _, i := range slices.Compact(has) {
		if len(kept) < replicas && p.free[i] >= s.Bytes {
			p.take(i, s.Bytes)
			kept = append(kept, i)
		}
	}
	return kept
}

// place completes the workers of one shard; nil if it cannot.
func (p *placer) place(s Shard, chosen []int, replicas int) []int {
	if len(chosen) == replicas {
		return chosen
	}
	for len(chosen) < replicas {
		best := p.best(s, chosen)
		if best < 0 {
			return nil
		}
		p.take(best, s.Bytes)
		chosen = append(chosen, best)
	}
	return chosen
}

// best is the worker with the highest score whose share has room; else, of
// those that have space, the one that would pass its share by the least; -1 if
// none has. Among equal weights scores are ordered as the hashes are, so the
// logarithm is taken once for each weight: a plan of a million shards on a
// thousand workers asks a billion times.
func (p *placer) best(s Shard, taken []int) int {
	for k := range p.tops {
		p.tops[k] = top{worker: -1}
	}
	bytes := float64(s.Bytes)
	for i := range p.workers {
		if p.load[i]+bytes > p.share[i] || p.free[i] < s.Bytes {
			continue
		}
		h, t := hash64(&s.ID, p.seeds[i])>>11, &p.tops[p.class[i]]
		if t.worker >= 0 && (h < t.hash || h == t.hash && p.workers[i].ID > p.workers[t.worker].ID) || slices.Contains(taken, i) {
			continue
		}
		*t = top{h, i}
	}
	best := -1
	for _, t := range p.tops {
		if t.worker < 0 {
			continue
		}
		p.scores[t.worker] = score(&s.ID, p.seeds[t.worker], p.weights[t.worker])
		if best < 0 || p.before(t.worker, best) {
			best = t.worker
		}
	}
	if best >= 0 {
		return best
	}
	return p.leastFilled(s, taken)
}

// leastFilled is the worker with space that would pass its share by the least.
func (p *placer) leastFilled(s Shard, taken []int) int {
	p.score(s)
	least, over := -1, 0.0
	for i := range p.workers {
		if p.free[i] < s.Bytes || slices.Contains(taken, i) {
			continue
		}
		if f := p.filled(i, s.Bytes); least < 0 || f < over || f == over && p.before(i, least) {
			least, over = i, f
		}
	}
	return least
}

func (p *placer) noFit() error {
	return &stoker.Error{Op: "plan", Kind: stoker.KindNoSpace, Err: &NoFit{NeedBytes: p.need, FreeBytes: p.total, Workers: len(p.workers), Replicas: p.replicas}}
}
