package cache

import (
	"cmp"
	"context"
	"slices"
	"time"

	"stoker.dev"
	"stoker.dev/cache/evict"
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
	used   map[stoker.ID]bool // shards of the other held manifests, and what the new one has to have here
	whole  map[stoker.ID]bool // shards here that are whole
	known  []stoker.ID        // manifests in which at was looked for
	at     places
}

// oldShard is a shard here that the new generation does not have.
type oldShard struct {
	id      stoker.ID
	charge  int64
	nearest int        // of the generations that have it
	at      []oldPlace // in each manifest that has it, the nearest first
	known   bool
	needed  []uint32         // shards of the new generation that copy from it, once known
	asked   time.Time        // when others last had not copied all of it
	lacks   map[string]int64 // object bytes that each worker's part of the plan has of it, once known
}

type oldPlace struct {
	man   *manifest.Manifest
	shard uint32
}

const (
	askAgain = time.Second      // how long it is believed that others still copy from a shard
	waitMost = 30 * time.Second // how long a load waits for others in vain
	goneTook = 3                // times askAgain that readers of a removed shard take to let go of it
	hardly   = 50               // a fiftieth of a shard is hardly anything of it
)

// loss is what a load accepts to fetch again to get on.
type loss int

const (
	noLoss loss = iota
	hardlyAny
	anyLoss
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
	y.used, y.known = nil, nil
	return s.protect(ctx)
}

// ours reports whether the plan has a shard of the new generation here. Others
// that are here are copies, made for reads; without a plan nobody knows.
func (s *Set) ours(n int) bool {
	plan := s.plan.Load()
	return plan == nil || slices.ContainsFunc(plan.Owners[n], func(w uint16) bool { return plan.Workers[w].ID == s.c.o.Store.WorkerID() })
}

// protect learns which shards may not go: the new generation's own, and those of
// what else is held; and which manifests have them. It looks again when others are
// held, or known, than the last time.
// REQUIRES: Cache.room is held.
func (s *Set) protect(ctx context.Context) error {
	y := &s.bases.old
	if known := s.c.knownNow(); y.known == nil || !slices.Equal(known, y.known) {
		old := map[stoker.ID]bool{}
		for i := range y.list {
			old[y.list[i].id] = true
		}
		at, err := s.c.placesOf(ctx, func(shard stoker.ID) bool { return old[shard] })
		if err != nil {
			return err
		}
		y.known, y.at = known, at
	}
	held := s.c.heldNow()
	if y.used != nil && slices.Equal(held, y.held) {
		return nil
	}
	used, err := s.c.inUse(ctx, s.id)
	if err != nil {
		return err
	}
	for n := range s.slots {
		if s.ours(n) {
			used[s.man.Shard(uint32(n)).ID] = true
		}
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
// It takes one from which nothing is to be copied any more, else one that another
// worker keeps, or whose objects it has in a nearer generation, else the one that
// costs least if that is within the loss allowed. theirs: there are others, which
// this worker itself does not need. REQUIRES: Cache.room is held.
func (s *Set) yield(ctx context.Context, is settled, most loss) (made, theirs bool) {
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
	var needed, others []int // of the list
	for i := range y.list {
		if y.used[y.list[i].id] {
			continue
		}
		mine, theirs := s.waiting(ctx, &y.list[i], is)
		if !mine && !theirs {
			return s.remove(i), false
		}
		needed = append(needed, i)
		if !mine {
			others = append(others, i)
		}
	}
	if len(needed) == 0 {
		return false, false
	}
	elsewhere := s.elsewhere(ctx)
	for _, i := range needed {
		if s.kept(ctx, &y.list[i]) || s.neededBytes(ctx, &y.list[i], elsewhere) == 0 {
			return s.remove(i), false
		}
	}
	if most == noLoss {
		return false, len(others) > 0
	}
	i, bytes := s.cheapest(ctx, needed, others, elsewhere)
	if most == hardlyAny && bytes > y.list[i].charge/hardly {
		return false, len(others) > 0
	}
	s.log().Info("a shard of an older generation made room before all of it was copied: the rest is fetched again",
		"bytes", y.list[i].charge, "lacked", bytes, "lackedHere", !slices.Contains(others, i))
	s.c.accounts.lose(s.id, bytes)
	return s.remove(i), false
}

// elsewhere tells of shards of older generations whether another worker has
// them whole. Two workers of which each has what the other needs then need no
// more space than one: what a nearer generation has elsewhere goes. The nearest
// copy does not, so that one is always left.
func (s *Set) elsewhere(ctx context.Context) has {
	type place struct {
		base  stoker.ID
		shard uint32
	}
	asked := map[place]bool{}
	return func(base *manifest.Manifest, shard uint32) bool {
		at := place{base.ID(), shard}
		whole, known := asked[at]
		if !known {
			whole = s.isWhole(ctx, at.base, at.shard)
			asked[at] = whole
		}
		return whole
	}
}

// cheapest chooses the shard to lose when nothing can make room without a loss:
// one of which hardly anything is lacked, as where the boundary between two
// shards has moved; else, of those that only others lack, else of all, the one of
// which the least is lacked.
func (s *Set) cheapest(ctx context.Context, all, others []int, elsewhere has) (at int, lacked int64) {
	y := &s.bases.old
	least := func(of []int) (at int, lacked int64) {
		at = -1
		for _, i := range of {
			if n := s.neededBytes(ctx, &y.list[i], elsewhere); at < 0 || n < lacked {
				at, lacked = i, n
			}
		}
		return at, lacked
	}
	at, lacked = least(all)
	if lacked > y.list[at].charge/hardly && len(others) > 0 {
		return least(others)
	}
	return at, lacked
}

// waiting tells who still has to copy from an old shard: this worker, others.
func (s *Set) waiting(ctx context.Context, o *oldShard, is settled) (mine, theirs bool) {
	if !o.known {
		o.needed, o.known = s.neededBy(ctx, o), true
	}
	recent := now().Sub(o.asked) < askAgain
	o.needed = slices.DeleteFunc(o.needed, func(n uint32) bool {
		here, ended := is(n)
		d := s.man.Shard(n)
		if ended || d.ID != o.id && s.firstMissing(n, 0, int(d.Blocks)) == int(d.Blocks) {
			return true
		}
		if !here && !recent && s.isWhole(ctx, s.id, n) {
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

// isWhole reports whether another worker has all of a shard.
func (s *Set) isWhole(ctx context.Context, id stoker.ID, n uint32) bool {
	return slices.ContainsFunc(s.c.o.Directory.Holders(ctx, id, n), func(p Peer) bool { return p.Whole })
}

// kept reports whether another worker keeps an old shard for all who copy from
// it. Of those who have it whole, it is the one for whose part of the plan most
// is copied from it, else the first by id: all come to the same answer, and
// one copy is left until nobody lacks anything of it.
func (s *Set) kept(ctx context.Context, o *oldShard) bool {
	self := s.c.o.Store.WorkerID()
	plan := s.plan.Load()
	if plan == nil || !s.bases.old.whole[o.id] {
		return false
	}
	if o.lacks == nil {
		o.lacks = map[string]int64{}
		s.eachNeeded(o, func(manifest.Member) bool { return false }, func(n uint32, bytes int64) {
			for _, w := range plan.Owners[n] {
				o.lacks[plan.Workers[w].ID] += bytes
			}
		})
	}
	for _, at := range o.at {
		for _, p := range s.c.o.Directory.Holders(ctx, at.man.ID(), at.shard) {
			if p.Whole && cmp.Or(cmp.Compare(o.lacks[p.ID], o.lacks[self]), cmp.Compare(self, p.ID)) > 0 {
				return true
			}
		}
	}
	return false
}

// neededBy lists the shards of the new generation that have objects of an old
// one which no nearer generation has here.
func (s *Set) neededBy(ctx context.Context, o *oldShard) []uint32 {
	var out []uint32
	s.eachNeeded(o, s.nearer(ctx, o, nowhere), func(n uint32, _ int64) {
		if !slices.Contains(out, n) {
			out = append(out, n)
		}
	})
	return out
}

// neededBytes adds up what is still to be copied from an old shard, and is in
// no nearer generation here or elsewhere.
func (s *Set) neededBytes(ctx context.Context, o *oldShard, elsewhere has) (sum int64) {
	s.eachNeeded(o, s.nearer(ctx, o, elsewhere), func(n uint32, bytes int64) {
		if slices.Contains(o.needed, n) {
			sum += bytes
		}
	})
	return sum
}

// has tells of a shard of an older generation whether somebody has it.
type has func(base *manifest.Manifest, shard uint32) bool

func nowhere(*manifest.Manifest, uint32) bool { return false }

// eachNeeded calls fn for the objects of an old shard that the new generation
// has, but those that are covered.
func (s *Set) eachNeeded(o *oldShard, covered func(manifest.Member) bool, fn func(n uint32, bytes int64)) {
	at := o.at[0] // the nearest that has it
	twins, _ := manifest.NewTwins(at.man, s.man)
	for _, m := range at.man.Members(at.shard, nil) {
		row, ok := twins.Row(m.Row)
		if !ok || covered(m) {
			continue
		}
		if n, _, ok := s.man.Part(row, m.ObjectOff); ok {
			fn(n, m.Bytes)
		}
	}
}

// nearer tells of an object of an old shard whether a nearer generation has it,
// in a shard that is whole here or is elsewhere.
func (s *Set) nearer(ctx context.Context, o *oldShard, elsewhere has) func(manifest.Member) bool {
	at, older := o.at[0], s.older(ctx)
	older = older[:max(0, slices.Index(older, at.man))]
	twins := make([]*manifest.Twins, len(older))
	for i, m := range older {
		twins[i], _ = manifest.NewTwins(at.man, m)
	}
	return func(m manifest.Member) bool {
		for i, t := range twins {
			row, ok := t.Row(m.Row)
			if !ok {
				continue
			}
			n, _, ok := older[i].Part(row, m.ObjectOff)
			if ok && (s.bases.old.whole[older[i].Shard(n).ID] || elsewhere(older[i], n)) {
				return true
			}
		}
		return false
	}
}

// remove drops number i of the list from this worker.
func (s *Set) remove(i int) bool {
	y := &s.bases.old
	o := y.list[i]
	y.list = slices.Delete(y.list, i, i+1)
	delete(y.whole, o.id)
	if err := s.c.remove(o.id, y.at[o.id]); err != nil {
		s.log().Error("cannot remove a shard of an older generation", "error", err)
		return false
	}
	for _, at := range o.at {
		if !slices.ContainsFunc(y.list, func(o oldShard) bool { return o.in(at.man) }) {
			if _, err := s.c.holds.forget(s.c.o.Store, at.man.ID()); err != nil {
				s.log().Error("cannot forget an older generation", "error", err)
			}
			s.c.mu.Lock()
			delete(s.c.sums, at.man.ID())
			s.c.mu.Unlock()
		}
	}
	s.c.counters.evictions[superseded].note(evict.KeepMode, 1, o.charge)
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

// inOrder is the order in which a part is brought in: that of its plan, or, if
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
		most := noLoss
		if !running && l.waited >= l.took { // who still reads what was removed gives its space back in a moment
			most = hardlyAny
		}
		made, theirs := s.yield(ctx, l.settled, most)
		wait := running || theirs && l.waited < s.c.waitMost || l.waited < l.took
		if !made && !wait {
			made, _ = s.yield(ctx, l.settled, anyLoss)
		}
		s.c.room.Unlock()
		if made {
			l.waited, l.took = 0, goneTook*askAgain
			continue
		}
		if !wait || !l.await(ctx, changed, !running) {
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
