package cache

import (
	"cmp"
	"context"
	"slices"
	"time"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/cache/store"
)

// yielding are the shards of older generations that make room for a new one,
// one by one as they are no longer needed to copy from: so a cache that has
// room for little more than a dataset takes its next generation, and fetches
// only what changed (docs/adr/0009).
type yielding struct {
	listed bool
	list   []oldShard // the farthest generation first, each in the order of its rows
	held   []stoker.ID
	used   map[stoker.ID]bool // shards of the held manifests and of the new one
	whole  map[stoker.ID]bool // shards here that are whole
}

// oldShard is a shard here that the new generation does not have.
type oldShard struct {
	id      stoker.ID
	charge  int64
	nearest int        // of the generations that have it
	at      []oldPlace // in each manifest that has it, the nearest first
	known   bool
	needed  []uint32  // shards of the new generation that copy from it, once known
	asked   time.Time // when others last had not copied all of it
}

type oldPlace struct {
	man   *manifest.Manifest
	shard uint32
}

const (
	askAgain = time.Second      // how long it is believed that others still copy from a shard
	waitMost = 30 * time.Second // how long one load waits for others to have copied, in all
)

// settled says of a shard of the new generation whether this worker brings it
// in, and whether it has ended doing so.
type settled func(n uint32) (mine, ended bool)

// listOld looks for what is here of older generations. REQUIRES: Cache.room is held.
func (s *Set) listOld(ctx context.Context) error {
	y := &s.bases.old
	y.list, y.whole, y.listed = nil, map[stoker.ID]bool{}, true
	here, index := map[stoker.ID]store.ShardState{}, map[stoker.ID]int{}
	for _, sh := range s.c.o.Store.Shards() {
		here[sh.ID], y.whole[sh.ID] = sh, sh.Present == sh.Blocks
	}
	for gen, m := range s.older(ctx) {
		for n := range uint32(m.Shards()) {
			id := m.Shard(n).ID
			sh, ok := here[id]
			if !ok {
				continue
			}
			i, known := index[id]
			if !known {
				i = len(y.list)
				index[id] = i
				y.list = append(y.list, oldShard{id: id, nearest: gen, charge: s.c.o.Store.ChargeBytes(sh.Bytes, sh.Blocks)})
			}
			y.list[i].at = append(y.list[i].at, oldPlace{m, n})
		}
	}
	slices.SortStableFunc(y.list, func(a, b oldShard) int { return cmp.Compare(b.nearest, a.nearest) })
	y.used = nil
	return s.protect(ctx)
}

// protect learns which shards may not go: those of the new generation, and of
// what is held. It looks again when others are held than the last time.
// REQUIRES: Cache.room is held.
func (s *Set) protect(ctx context.Context) error {
	y := &s.bases.old
	held := s.c.heldNow()
	if y.used != nil && slices.Equal(held, y.held) {
		return nil
	}
	used, err := s.c.inUse(ctx, stoker.ID{})
	if err != nil {
		return err
	}
	for n := range s.slots {
		used[s.man.Shard(uint32(n)).ID] = true
	}
	y.held, y.used = held, used
	return nil
}

// heldNow lists the manifests that somebody holds, sorted.
func (c *Cache) heldNow() []stoker.ID {
	h := &c.holds
	h.mu.Lock()
	defer h.mu.Unlock()
	var ids []stoker.ID
	for id := range h.known {
		if len(h.holdersLocked(id)) > 0 {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, func(a, b stoker.ID) int { return slices.Compare(a[:], b[:]) })
	return ids
}

// yieldable is how many bytes older generations can give up for this one.
func (s *Set) yieldable(ctx context.Context) (sum int64, err error) {
	s.c.room.Lock()
	defer s.c.room.Unlock()
	if err := s.listOld(ctx); err != nil {
		return 0, err
	}
	for i := range s.bases.old.list {
		if o := &s.bases.old.list[i]; !s.bases.old.used[o.id] {
			sum += o.charge
		}
	}
	return sum, nil
}

// yield removes one old shard that nobody holds and reports whether it did.
// With patience it takes only one from which nothing is to be copied any more,
// and reports whether there are others that this worker itself does not need;
// without, first one of those, then the smallest. REQUIRES: Cache.room is held.
func (s *Set) yield(ctx context.Context, is settled, patient bool) (made, theirs bool) {
	y := &s.bases.old
	if !y.listed {
		if err := s.listOld(ctx); err != nil {
			s.log().Error("cannot list older generations", "error", err)
			return false, false
		}
	}
	if err := s.protect(ctx); err != nil {
		s.log().Error("cannot tell what is held", "error", err)
		return false, false
	}
	others, least := -1, -1
	for i := range y.list {
		if y.used[y.list[i].id] {
			continue
		}
		mine, theirs := s.waiting(ctx, &y.list[i], is)
		if !mine && !theirs {
			return s.remove(i), false
		}
		if !mine && others < 0 {
			others = i
		}
		if least < 0 || y.list[i].charge < y.list[least].charge {
			least = i
		}
	}
	if patient || least < 0 {
		return false, others >= 0
	}
	if others >= 0 {
		least = others
	}
	s.log().Info("a shard of an older generation made room before all of it was copied: the rest is fetched again",
		"bytes", y.list[least].charge, "lackedHere", others < 0)
	return s.remove(least), false
}

// waiting tells who still has to copy from an old shard: this worker, others.
func (s *Set) waiting(ctx context.Context, o *oldShard, is settled) (mine, theirs bool) {
	if !o.known {
		o.needed, o.known = s.neededBy(ctx, o), true
	}
	recent := now().Sub(o.asked) < askAgain
	o.needed = slices.DeleteFunc(o.needed, func(n uint32) bool {
		here, ended := is(n)
		if ended || s.firstMissing(n, 0, int(s.man.Shard(n).Blocks)) == int(s.man.Shard(n).Blocks) {
			return true
		}
		if !here && !recent && s.doneElsewhere(ctx, o, n) {
			return true
		}
		mine, theirs = mine || here, theirs || !here
		return false
	})
	if theirs && !recent {
		o.asked = now()
	}
	return mine, theirs
}

// doneElsewhere reports whether other workers need an old shard of this one no
// more to have shard n: one of them has it whole, or its owner has the old one.
func (s *Set) doneElsewhere(ctx context.Context, o *oldShard, n uint32) bool {
	holds := func(id stoker.ID, shard uint32, who func(Peer) bool) bool {
		return slices.ContainsFunc(s.c.o.Directory.Holders(ctx, id, shard), func(p Peer) bool { return p.Whole && who(p) })
	}
	if holds(s.id, n, func(Peer) bool { return true }) {
		return true
	}
	plan := s.plan.Load()
	if plan == nil || len(plan.Owners[n]) == 0 {
		return false
	}
	owner := plan.Workers[plan.Owners[n][0]].ID
	return slices.ContainsFunc(o.at, func(at oldPlace) bool {
		return holds(at.man.ID(), at.shard, func(p Peer) bool { return p.ID == owner })
	})
}

// neededBy lists the shards of the new generation that have objects of an old
// one which no nearer generation has here.
func (s *Set) neededBy(ctx context.Context, o *oldShard) []uint32 {
	var out []uint32
	at := o.at[0] // the nearest that has it
	twins, _ := manifest.NewTwins(at.man, s.man)
	var nearer []*manifest.Twins
	older := s.older(ctx)
	older = older[:max(0, slices.Index(older, at.man))]
	for _, m := range older {
		t, _ := manifest.NewTwins(at.man, m)
		nearer = append(nearer, t)
	}
	for _, m := range at.man.Members(at.shard, nil) {
		row, ok := twins.Row(m.Row)
		if !ok || s.coveredBy(older, nearer, m) {
			continue
		}
		if n, _, ok := s.man.Part(row, m.ObjectOff); ok && !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out
}

// coveredBy reports whether an object is here in one of some generations, too.
func (s *Set) coveredBy(older []*manifest.Manifest, twins []*manifest.Twins, m manifest.Member) bool {
	for i, t := range twins {
		if row, ok := t.Row(m.Row); ok {
			if n, _, ok := older[i].Part(row, m.ObjectOff); ok && s.bases.old.whole[older[i].Shard(n).ID] {
				return true
			}
		}
	}
	return false
}

// remove drops number i of the list from this worker.
func (s *Set) remove(i int) bool {
	y := &s.bases.old
	o := y.list[i]
	y.list = slices.Delete(y.list, i, i+1)
	delete(y.whole, o.id)
	if err := s.c.o.Store.Remove(o.id); err != nil {
		s.log().Error("cannot remove a shard of an older generation", "error", err)
		return false
	}
	for _, at := range o.at {
		if old := s.c.opened(at.man.ID()); old != nil {
			old.release(at.shard)
			if err := old.Close(); err != nil {
				s.log().Error("cannot close a dataset", "error", err)
			}
		}
		s.c.o.Directory.Withdraw(at.man.ID(), []uint32{at.shard})
		if !slices.ContainsFunc(y.list, func(o oldShard) bool { return o.in(at.man) }) {
			if err := s.c.holds.forget(s.c.o.Store, at.man.ID()); err != nil {
				s.log().Error("cannot forget an older generation", "error", err)
			}
			s.c.mu.Lock()
			delete(s.c.sums, at.man.ID())
			s.c.mu.Unlock()
		}
	}
	s.log().Debug("an older generation's shard made room", "bytes", o.charge)
	return true
}

func (o *oldShard) in(m *manifest.Manifest) bool {
	return slices.ContainsFunc(o.at, func(p oldPlace) bool { return p.man == m })
}

// opened returns the Set of a manifest with one more user if it is open.
func (c *Cache) opened(id stoker.ID) *Set {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.sets[id]
	if s != nil {
		s.users++
	}
	return s
}

// inOrder is the order in which a part is brought in: that of its rows, or, if
// older generations have to make room, the largest shards first. Each takes the
// place of about as much as it has, so that what is free stays about the same,
// and shrinks if the new generation is larger: then the small ones come last.
func (s *Set) inOrder(part []uint32) []uint32 {
	here := map[stoker.ID]bool{}
	for _, sh := range s.c.o.Store.Shards() {
		here[sh.ID] = true
	}
	need := int64(0)
	for _, n := range part {
		if d := s.man.Shard(n); !here[d.ID] {
			need += s.c.o.Store.ChargeBytes(d.Bytes, int(d.Blocks))
		}
	}
	if u := s.c.o.Store.Usage(); need <= u.CapacityBytes-u.UsedBytes {
		return part
	}
	part = slices.Clone(part)
	slices.SortStableFunc(part, func(a, b uint32) int { return cmp.Compare(s.man.Shard(b).Bytes, s.man.Shard(a).Bytes) })
	return part
}

// placeFor makes the file of a shard that a load is about to bring in. Where it
// does not fit beside the generations it is copied from, it waits until the
// shards before it are whole, here or where others copy from this worker, and
// takes the place of what they were copied from. What is wrong besides, the load's pieces find.
func (s *Set) placeFor(ctx context.Context, l *load, n uint32) {
	for {
		if err := s.create(n); stoker.KindOf(err) != stoker.KindNoSpace {
			return
		}
		changed, running := l.underWay()
		s.c.room.Lock()
		made, theirs := s.yield(ctx, l.settled, true)
		patient := running || l.waited < waitMost
		if !made && !(patient && theirs) && !running {
			made, _ = s.yield(ctx, l.settled, false)
		}
		s.c.room.Unlock()
		if made {
			l.took = true
			continue
		}
		// Who still reads what was removed gives its space back in a moment.
		if !running && !(patient && (theirs || l.took)) || !l.await(ctx, changed, !running) {
			return
		}
	}
}

// await waits until a shard under way has ended, or, for others, for a moment;
// false if the load has ended.
func (l *load) await(ctx context.Context, changed <-chan struct{}, others bool) bool {
	var pause <-chan time.Time
	if others {
		l.waited += askAgain
		t := time.NewTimer(askAgain)
		defer t.Stop()
		pause = t.C
	}
	select {
	case <-changed:
	case <-pause:
	case <-ctx.Done():
		return false
	}
	return true
}

// begun and ended count a shard of the part in and out.
func (l *load) begun() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open++
}

func (l *load) finished(n uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
	l.ended[n] = true
	close(l.changed)
	l.changed = make(chan struct{})
}

// underWay reports whether shards are being brought in; the channel is closed
// when one of them has ended.
func (l *load) underWay() (<-chan struct{}, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.changed, l.open > 0
}

func (l *load) settled(n uint32) (mine, ended bool) {
	if _, mine = slices.BinarySearchFunc(l.part, n, cmp.Compare[uint32]); !mine {
		return false, false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return true, l.ended[n]
}

// unsettled is what a reader knows who is no load.
func unsettled(uint32) (mine, ended bool) { return true, false }
