// Package planner holds the pure decisions of stoker: which worker gets which
// shard, and what a plan is. The same input gives the same plan on every
// machine; nothing here does I/O, reads a clock or draws random numbers. All
// functions may be called concurrently.
package planner

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math"
	"slices"

	"stoker.dev"
)

// Worker is what placement needs to know of one.
type Worker struct {
	ID        string
	FreeBytes int64   // what it can take
	Weight    float64 // its share of the load; 0 = 1
}

// Shard is what placement needs to know of one.
type Shard struct {
	ID    stoker.ID
	Bytes int64
}

// PlaceOptions tune Place; the zero value is useful.
type PlaceOptions struct {
	Replicas int     // workers for each shard; 0 = 1
	Bound    float64 // most load of a worker, as a multiple of its fair share; 0 = 1.05
}

// NoFit says why shards cannot be placed.
type NoFit struct {
	NeedBytes, FreeBytes int64
	Workers              int
}

// Error implements error.
func (e *NoFit) Error() string {
	if e.Workers == 0 {
		return "no worker is live"
	}
	return fmt.Sprintf("needs %s on %d workers, %s free", human(e.NeedBytes), e.Workers, human(e.FreeBytes))
}

func human(n int64) string {
	f, unit := float64(n), "B"
	for _, u := range []string{"KiB", "MiB", "GiB", "TiB", "PiB"} {
		if f < 1024 {
			break
		}
		f, unit = f/1024, u
	}
	return fmt.Sprintf("%.1f %s", f, unit)
}

// hash64 mixes a shard's id with a worker's.
func hash64(shard *stoker.ID, worker uint64) uint64 {
	x := binary.LittleEndian.Uint64(shard[:]) ^ worker*0x9e3779b97f4a7c15
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}

// seed makes 64 bits of a worker's id (FNV-1a).
func seed(id string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(id) {
		h = (h ^ uint64(id[i])) * 1099511628211
	}
	return h
}

// score is the worker's claim on the shard in weighted rendezvous hashing
// (Thaler and Ravishankar 1998; weights after Schindelhauer and Schomaker
// 2005): the highest wins, and weights come out as shares.
func score(shard *stoker.ID, seed uint64, weight float64) float64 {
	u := (float64(hash64(shard, seed)>>11) + 0.5) / (1 << 53)
	return -weight / math.Log(u)
}

func weightOf(w Worker) float64 {
	if w.Weight <= 0 {
		return 1
	}
	return w.Weight
}

// Guess returns the n workers with the highest scores for a shard, as indexes:
// who probably owns it when no plan is at hand.
func Guess(shard stoker.ID, workers []Worker, n int) []int {
	order := make([]int, len(workers))
	scores := make([]float64, len(workers))
	for i, w := range workers {
		order[i], scores[i] = i, score(&shard, seed(w.ID), weightOf(w))
	}
	slices.SortFunc(order, func(a, b int) int {
		return cmp.Or(cmp.Compare(scores[b], scores[a]), cmp.Compare(workers[a].ID, workers[b].ID))
	})
	return order[:min(n, len(order))]
}

// Place puts each shard on Replicas distinct workers by bounded rendezvous:
// each goes to the workers with the highest scores that still have room, and
// nobody gets more than Bound times the fair share of its weight (or one
// shard more, when shards are few). The answer has for each shard the workers
// as indexes, the owner first. If it cannot fit, the error is a *NoFit in a
// stoker.Error of kind NoSpace.
func Place(shards []Shard, workers []Worker, o PlaceOptions) ([][]int, error) {
	if o.Replicas <= 0 {
		o.Replicas = 1
	}
	if o.Bound <= 0 {
		o.Bound = 1.05
	}
	p := newPlacer(shards, workers, o)
	if len(workers) < o.Replicas {
		return nil, p.noFit()
	}
	// Shards are placed in the order of their ids, so that the answer does not
	// depend on the order in which they or the workers are listed.
	order := make([]int, len(shards))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return slices.Compare(shards[a].ID[:], shards[b].ID[:]) })
	out := make([][]int, len(shards))
	for _, i := range order {
		if out[i] = p.place(shards[i], o.Replicas); out[i] == nil {
			return nil, p.noFit()
		}
	}
	return out, nil
}

// placer keeps each worker's room.
type placer struct {
	workers []Worker
	seeds   []uint64
	weights []float64
	free    []int64
	fair    []float64 // most bytes by the bound
	load    []float64
	scores  []float64
	need    int64
	total   int64
	largest int64
}

func newPlacer(shards []Shard, workers []Worker, o PlaceOptions) *placer {
	p := &placer{workers: workers}
	var weights float64
	for _, w := range workers {
		p.seeds = append(p.seeds, seed(w.ID))
		p.weights = append(p.weights, weightOf(w))
		p.free = append(p.free, max(0, w.FreeBytes))
		p.total += max(0, w.FreeBytes)
		weights += weightOf(w)
	}
	for _, s := range shards {
		p.need += s.Bytes * int64(o.Replicas)
		p.largest = max(p.largest, s.Bytes)
	}
	p.load, p.scores = make([]float64, len(workers)), make([]float64, len(workers))
	for i := range workers {
		p.fair = append(p.fair, o.Bound*float64(p.need)*p.weights[i]/weights)
	}
	return p
}

// place chooses the workers of one shard: those within their bound first,
// then, if too few of them have space, any that has.
func (p *placer) place(s Shard, replicas int) []int {
	for i := range p.workers {
		p.scores[i] = score(&s.ID, p.seeds[i], p.weights[i])
	}
	chosen := make([]int, 0, replicas)
	for _, bounded := range []bool{true, false} {
		for len(chosen) < replicas {
			best := p.best(s.Bytes, bounded, chosen)
			if best < 0 {
				break
			}
			chosen = append(chosen, best)
		}
	}
	if len(chosen) < replicas {
		return nil
	}
	for _, w := range chosen {
		p.free[w] -= s.Bytes
		p.load[w] += float64(s.Bytes)
	}
	return chosen
}

// best returns the worker with the highest score that has room, or -1. Under
// the bound a worker may pass its share by less than the shard that does it
// only while it is still empty.
func (p *placer) best(bytes int64, bounded bool, chosen []int) int {
	best := -1
	for i := range p.workers {
		if p.free[i] < bytes || slices.Contains(chosen, i) {
			continue
		}
		if bounded && p.load[i]+float64(bytes) > p.fair[i] && p.load[i] > 0 {
			continue
		}
		if best < 0 || p.scores[i] > p.scores[best] || p.scores[i] == p.scores[best] && p.workers[i].ID < p.workers[best].ID {
			best = i
		}
	}
	return best
}

func (p *placer) noFit() error {
	return &stoker.Error{Op: "plan", Kind: stoker.KindNoSpace, Err: &NoFit{NeedBytes: p.need, FreeBytes: p.total, Workers: len(p.workers)}}
}
