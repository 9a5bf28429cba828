package planner

import (
	"cmp"
	"slices"
)

// leveller moves shards from one worker to another where keeping and greedy
// placement leave workers too far from their shares. It moves no more than
// that takes, and nothing where shards are too few for the bound.
type leveller struct {
	*placer
	shards   []Shard
	out      [][]int
	has      [][]int
	low      float64
	smallest int64
}

func newLeveller(p *placer, shards []Shard, out [][]int, o PlaceOptions) *leveller {
	l := &leveller{placer: p, shards: shards, out: out, has: o.Has, low: 2 - o.Bound}
	for _, s := range shards {
		if l.smallest == 0 || s.Bytes < l.smallest {
			l.smallest = s.Bytes
		}
	}
	return l
}

// shedAll takes shards off the workers that pass their shares by more than the
// bound; with fresh only such as they do not have yet.
func (l *leveller) shedAll(fresh bool) {
	for _, d := range l.workersBy(func(i int) bool { return l.filled(i, 0) > l.bound }, -1) {
		l.shed(d, fresh)
	}
}

// pullAll brings shards to the workers that are short of their shares by as
// much: those that have just joined.
func (l *leveller) pullAll(fresh bool) {
	for _, w := range l.workersBy(l.short, 1) {
		l.pull(w, fresh)
	}
}

// workersBy lists workers, by how filled they are, times sign.
func (l *leveller) workersBy(want func(i int) bool, sign float64) []int {
	var list []int
	for i := range l.workers {
		if l.share[i] > 0 && want(i) {
			list = append(list, i)
		}
	}
	slices.SortFunc(list, func(a, b int) int {
		return cmp.Or(cmp.Compare(sign*l.filled(a, 0), sign*l.filled(b, 0)), cmp.Compare(l.workers[a].ID, l.workers[b].ID))
	})
	return list
}

// short reports whether a worker is below its share, and a shard could help.
func (l *leveller) short(i int) bool { return l.filled(i, 0) < l.low && l.filled(i, l.smallest) <= 1 }

// had reports whether worker i has shard n already.
func (l *leveller) had(n, i int) bool { return n < len(l.has) && slices.Contains(l.has[n], i) }

// move gives the replica that stands at out[n][at] to worker to.
func (l *leveller) move(n, at, to int) {
	l.take(l.out[n][at], -l.shards[n].Bytes)
	l.take(to, l.shards[n].Bytes)
	l.out[n][at] = to
}

// shed takes shards off worker d until it is within the bound: the smallest
// that is enough, or the largest there is.
func (l *leveller) shed(d int, fresh bool) {
	var held []int
	for n, owners := range l.out {
		if slices.Contains(owners, d) && !(fresh && l.had(n, d)) {
			held = append(held, n)
		}
	}
	slices.SortFunc(held, func(a, b int) int {
		return cmp.Or(cmp.Compare(l.shards[a].Bytes, l.shards[b].Bytes), slices.Compare(l.shards[a].ID[:], l.shards[b].ID[:]))
	})
	for len(held) > 0 && l.filled(d, 0) > l.bound {
		at := slices.IndexFunc(held, func(n int) bool { return l.filled(d, -l.shards[n].Bytes) <= l.bound })
		if at < 0 {
			at = len(held) - 1
		}
		n := held[at]
		held = slices.Delete(held, at, at+1)
		if to := l.best(l.shards[n], l.out[n]); to >= 0 && l.filled(to, l.shards[n].Bytes) <= l.bound {
			l.move(n, slices.Index(l.out[n], d), to)
		}
	}
}

// pull brings shards to worker w until it is as near its share as the bound
// asks: those it has the highest scores for, from workers above their shares.
func (l *leveller) pull(w int, fresh bool) {
	above := func(n, d int) bool { return l.filled(d, 0) > 1 && !(fresh && l.had(n, d)) }
	var list []int
	scores := map[int]float64{}
	for n, owners := range l.out {
		if !slices.Contains(owners, w) && slices.ContainsFunc(owners, func(d int) bool { return above(n, d) }) {
			list = append(list, n)
			scores[n] = score(&l.shards[n].ID, l.seeds[w], l.weights[w])
		}
	}
	slices.SortFunc(list, func(a, b int) int {
		return cmp.Or(cmp.Compare(scores[b], scores[a]), slices.Compare(l.shards[a].ID[:], l.shards[b].ID[:]))
	})
	for _, n := range list {
		b := l.shards[n].Bytes
		if !l.short(w) {
			return
		}
		if l.free[w] < b || l.filled(w, b) > 1 {
			continue
		}
		if at := slices.IndexFunc(l.out[n], func(d int) bool { return above(n, d) && l.filled(d, -b) >= l.low }); at >= 0 {
			l.move(n, at, w)
		}
	}
}
