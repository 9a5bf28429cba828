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
	Bound    float64 // most that a worker keeps of what it has, as a multiple of its share; 0 = 1.05
	Has      [][]int // for each shard the workers that have it, as indexes, in any order; nil: nobody has any
}

// NoFit says why shards cannot be placed.
type NoFit struct {
	NeedBytes, FreeBytes int64
	Workers              int
	Replicas             int // that were asked for
}

// Error implements error.
func (e *NoFit) Error() string {
	if e.Workers == 0 {
		return "no worker is live"
	}
	if e.Replicas > e.Workers {
		return fmt.Sprintf("needs %d workers for as many copies of each shard, %d can hold one: ask for at most %d replicas, or add workers", e.Replicas, e.Workers, e.Workers)
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

// Place puts each shard on Replicas distinct workers by bounded rendezvous.
// What workers have they keep, up to Bound times their share. Any other shard
// goes to the workers with the highest scores whose shares have room for it,
// and when none has, to those that would pass their shares by the least. The
// answer has for each shard the workers as indexes, the owner first; it does
// not depend on the order in which shards and workers are listed. If it cannot
// fit, the error is a *NoFit in a stoker.Error of kind NoSpace.
func Place(shards []Shard, workers []Worker, o PlaceOptions) ([][]int, error) {
	if o.Replicas <= 0 {
		o.Replicas = 1
	}
	if o.Bound <= 0 {
		o.Bound = 1.05
	}
	p := newPlacer(shards, workers, o.Replicas)
	p.bound = o.Bound
	if len(workers) < o.Replicas {
		return nil, p.noFit()
	}
	// The largest come first: the small ones fill what they leave.
	order := make([]int, len(shards))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int {
		return cmp.Or(cmp.Compare(shards[b].Bytes, shards[a].Bytes), slices.Compare(shards[a].ID[:], shards[b].ID[:]))
	})
	out := make([][]int, len(shards))
	l := newLeveller(p, shards, out, o)
	for _, i := range byHolders(order, o.Has) {
		out[i] = p.keep(shards[i], o.Has[i], o.Replicas)
	}
	l.shedAll(false)
	for _, i := range order {
		if out[i] = p.place(shards[i], out[i], o.Replicas); out[i] == nil {
			return nil, p.noFit()
		}
	}
	l.shedAll(true)
	l.pullAll(true)
	l.pullAll(false)
	return out, nil
}

// byHolders lists the shards that somebody has, those with the fewest holders
// first: the others have a choice.
func byHolders(order []int, has [][]int) []int {
	held := slices.DeleteFunc(slices.Clone(order), func(i int) bool { return i >= len(has) || len(has[i]) == 0 })
	slices.SortStableFunc(held, func(a, b int) int { return cmp.Compare(len(has[a]), len(has[b])) })
	return held
}
