package cache

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"stoker.dev"
	"stoker.dev/cache/evict"
)

// Evict says how much of the capacity reads may fill, and when what nobody holds
// goes by itself.
type Evict struct {
	// HighPercent of the capacity may be taken before a read that is stored
	// starts an eviction in the background, which ends when LowPercent are.
	// Reads of data that nobody holds never fill more than HighPercent.
	HighPercent, LowPercent int           // 0 = 95 and 90
	Idle                    time.Duration // data that nobody held or read for so long goes; 0 = never
}

const (
	defaultHigh, defaultLow = 95, 90
	// restFor is how long nobody has read a dataset before it goes for reads of
	// another that nobody holds: two that are read do not drive each other out.
	restFor = 10 * time.Minute
	// sweepEvery is how often data that was idle for too long is looked for, more
	// often if there is some that may be so for less than four times that.
	sweepEvery, sweepLeast = time.Minute, time.Second / 4
)

// reason is why data was evicted.
type reason int

const (
	asked          reason = iota // a user's evict
	forReservation               // a load needed the space
	forRead                      // reads filled more than the high mark, or found no space
	byPolicy                     // another shard of the dataset is worth more
	idle                         // nobody held or read it for its time to live
	superseded                   // of an older generation, to make room for a newer one
	moved                        // others have it: the worker is drained, or replicas were lowered
	reasons
)

var reasonNames = [reasons]string{"asked", "reservation", "read", "policy", "idle", "superseded", "moved"}

// use is what is known of how a dataset is read here. It outlives its Sets.
type use struct {
	share evict.Share
	read  atomic.Int64 // Unix time of the last read; 0: none in this life
	reads Reads
}

// useLocked finds or makes it. REQUIRES: c.mu is held.
func (c *Cache) useLocked(id stoker.ID) *use {
	u := c.uses[id]
	if u == nil {
		u = &use{}
		c.uses[id] = u
	}
	return u
}

// noteRead notes a read of a block, here or not.
func (s *Set) noteRead(n uint32, block int) {
	if t := now().Unix(); s.use.read.Load() != t {
		s.use.read.Store(t)
	}
	if s.use.share.Read(n, block) {
		d := s.man.Shard(n)
		s.use.share.Used(d.ID, int(d.Blocks))
	}
}

// lastUse is when a dataset was last held or read.
func (c *Cache) lastUse(k *holding) time.Time {
	c.mu.Lock()
	u := c.uses[k.Manifest]
	c.mu.Unlock()
	if u == nil {
		return k.LastUsed
	}
	if t := time.Unix(u.read.Load(), 0); t.After(k.LastUsed) {
		return t
	}
	return k.LastUsed
}

// hold is how a dataset is held here.
type hold int

const (
	free    hold = iota
	mounted      // only by views: its own reads may take the place of its own data
	leased       // or promised, or being loaded
)

func (c *Cache) holdOf(id stoker.ID) hold {
	if c.accounts.covers(id) {
		return leased
	}
	h := &c.holds
	h.mu.Lock()
	defer h.mu.Unlock()
	who := len(h.holdersLocked(id))
	k := h.known[id]
	switch {
	case who == 0:
		return free
	case k != nil && k.mounts > 0 && who == 1:
		return mounted
	}
	return leased
}

// errNoRoom: a read is not to be stored.
var errNoRoom = &stoker.Error{Op: "cache.room", Kind: stoker.KindNoSpace}

// place makes sure that shard n has a file here, if it may have one: NoSpace says
// that it is read through memory. It waits for no eviction; what should make room
// for reads like this one does so in the background.
func (s *Set) place(n uint32, f *flight, w why) error {
	sl := s.shard(n)
	have := sl.sh != nil
	sl.mu.RUnlock()
	if have {
		return nil
	}
	if s.c.Draining() != nil {
		return errNoRoom
	}
	d, st := s.man.Shard(n), s.c.o.Store
	x := evict.Shard{ID: d.ID, Manifest: s.id, Number: n, Bytes: st.ChargeBytes(d.Bytes, int(d.Blocks))}
	below := st.FreeBytes(x.Bytes) - s.c.above(s.c.o.Evict.HighPercent)
	if w.early && below < x.Bytes { // nothing goes for what nobody waits for
		return errNoRoom
	}
	how, mode := s.c.holdOf(s.id), s.use.share.InForce()
	if how == leased || how == mounted && mode == evict.KeepMode {
		s.use.share.Held()
		err := s.create(n)
		if below < x.Bytes && (err == nil || stoker.KindOf(err) == stoker.KindNoSpace) {
			s.c.evictor.want(s, n)
		}
		return err
	}
	f.once = mode == evict.LFUMode
	ok, victims := s.use.share.Admit(x, below, s.here)
	s.c.evictor.drop(s, victims)
	if !ok {
		s.c.evictor.want(s, n)
		return errNoRoom
	}
	if err := s.c.holds.know(st, s.id, ""); err != nil {
		return err
	}
	err := s.create(n)
	if err != nil {
		s.use.share.Forget(d.ID)
	}
	return err
}

// passed notes that a read of shard n was served from memory. If that was kept
// before LFU came into force, the next read asks the policy.
func (s *Set) passed(n uint32) {
	if s.use.share.InForce() == evict.LFUMode {
		s.c.fills.forget(s.c.memory, s.man.Shard(n).ID)
	}
}

// above is what lies above a percentage of the capacity.
func (c *Cache) above(percent int) int64 {
	return c.o.Store.Usage().CapacityBytes / 100 * int64(100-percent)
}

// here lists what is here of the dataset.
func (s *Set) here() []evict.Shard {
	all := map[stoker.ID]bool{}
	for _, sh := range s.c.o.Store.Shards() {
		all[sh.ID] = true
	}
	var out []evict.Shard
	for n := range s.slots {
		if d := s.man.Shard(uint32(n)); all[d.ID] {
			out = append(out, evict.Shard{ID: d.ID, Manifest: s.id, Number: uint32(n), Bytes: s.c.o.Store.ChargeBytes(d.Bytes, int(d.Blocks))})
		}
	}
	return out
}

// evictor is what is to be evicted in the background. Its mutex is a leaf.
type evictor struct {
	some chan struct{} // holds a signal while there is work

	mu      sync.Mutex
	wants   map[*Set]uint32   // +checklocks:mu — reads that want room, by dataset: for which shard
	victims map[*Set][]uint32 // +checklocks:mu — what policies gave up
	rests   chan struct{}     // +checklocks:mu — not nil while there is work, closed at its end
}

// want asks for room for reads of the dataset.
func (e *evictor) want(s *Set, n uint32) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.wants == nil {
		e.wants = map[*Set]uint32{}
	}
	if _, there := e.wants[s]; !there {
		s.retain()
	}
	e.wants[s] = n
	e.signalLocked()
}

// drop hands over what a policy gave up.
func (e *evictor) drop(s *Set, victims []evict.Shard) {
	if len(victims) == 0 {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.victims == nil {
		e.victims = map[*Set][]uint32{}
	}
	if len(e.victims[s]) == 0 {
		s.retain()
	}
	for _, v := range victims {
		e.victims[s] = append(e.victims[s], v.Number)
	}
	e.signalLocked()
}

// look makes the evictor look when it has to sweep.
func (e *evictor) look() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.signalLocked()
}

func (e *evictor) signalLocked() {
	if e.rests == nil {
		e.rests = make(chan struct{})
	}
	select {
	case e.some <- struct{}{}:
	default:
	}
}

// take empties the lists.
func (e *evictor) take() (wants map[*Set]uint32, victims map[*Set][]uint32) {
	e.mu.Lock()
	defer e.mu.Unlock()
	wants, victims = e.wants, e.victims
	e.wants, e.victims = nil, nil
	if len(wants)+len(victims) == 0 && e.rests != nil {
		close(e.rests)
		e.rests = nil
	}
	return wants, victims
}

// tendRoom evicts until the cache is closed.
func (c *Cache) tendRoom() {
	swept, orphans := now(), now()
	for {
		next := time.NewTimer(swept.Add(c.sweepIn()).Sub(now()))
		select {
		case <-c.stop.Done():
			next.Stop()
			c.evictSome() // gives the Sets back
			return
		case <-c.evictor.some:
			for c.evictSome() {
			}
		case <-next.C:
			c.sweep()
			if swept = now(); swept.Sub(orphans) >= orphansEvery {
				c.dropOrphans(c.stop)
				orphans = swept
			}
		}
		next.Stop()
	}
}

// evictSome does what was asked for and reports whether there was anything.
func (c *Cache) evictSome() bool {
	wants, victims := c.evictor.take()
	for s, list := range victims {
		c.dropVictims(c.stop, s, list)
		s.closeOrLog()
	}
	for s, n := range wants {
		s.makeRoom(c.stop, n)
		s.closeOrLog()
	}
	return len(wants)+len(victims) > 0
}

// dropVictims removes shards that the dataset's policy gave up, but those that
// somebody holds by now, or has mapped into a kernel view.
func (c *Cache) dropVictims(ctx context.Context, s *Set, list []uint32) {
	c.room.Lock()
	defer c.room.Unlock()
	if c.holdOf(s.id) == leased || ctx.Err() != nil {
		return
	}
	used, err := c.inUse(ctx, s.id)
	if err != nil {
		s.log().Error("cannot tell what is held", "error", err)
		return
	}
	given := map[stoker.ID]bool{}
	for _, n := range list {
		given[s.man.Shard(n).ID] = true
	}
	at, err := c.placesOf(ctx, func(shard stoker.ID) bool { return given[shard] })
	if err != nil {
		s.log().Error("cannot tell what else has the shards", "error", err)
		return
	}
	var gone int
	var bytes int64
	for _, n := range list {
		d := s.man.Shard(n)
		if used[d.ID] || s.otherUsers(n) {
			continue
		}
		if err := c.remove(d.ID, at[d.ID]); err != nil {
			s.log().Error("cannot evict a shard", "shard", n, "error", err)
			continue
		}
		gone, bytes = gone+1, bytes+d.Bytes
	}
	c.evicted(s, byPolicy, gone, bytes)
}

// otherUsers reports whether others than this Set have the shard open.
func (s *Set) otherUsers(n uint32) bool {
	sl := &s.slots[n]
	sl.mu.RLock()
	defer sl.mu.RUnlock()
	own := 0
	if sl.sh != nil {
		own = 1
	}
	return s.c.o.Store.Users(s.man.Shard(n).ID) > own
}

// evicted counts shards that have gone, and tells the reads that wait.
func (c *Cache) evicted(s *Set, why reason, gone int, bytes int64) {
	if gone == 0 {
		return
	}
	c.fills.forget(c.memory, stoker.ID{})
	c.counters.evictions[why].note(s.use.share.InForce(), gone, bytes)
}

// makeRoom evicts, for reads like that of shard n, what nobody holds until no
// more than the low mark is taken; what nobody reads, either, if nobody holds
// this dataset: else two datasets that are merely read would drive each other
// out. If that is not enough for held data, shards of older generations go.
func (s *Set) makeRoom(ctx context.Context, n uint32) {
	c := s.c
	c.room.Lock()
	defer c.room.Unlock()
	d := s.man.Shard(n)
	charge := c.o.Store.ChargeBytes(d.Bytes, int(d.Blocks))
	left := func() int64 { return c.o.Store.FreeBytes(charge) }
	if left() >= c.above(c.o.Evict.HighPercent)+charge || ctx.Err() != nil {
		return
	}
	held := c.holdOf(s.id) != free
	enough := func() bool { return left() >= c.above(c.o.Evict.LowPercent) && left() >= charge }
	for _, id := range c.unheld(append(s.olderIDs(ctx), s.id)) {
		if enough() {
			return
		}
		if !held && c.unusedFor(id) < restFor {
			continue
		}
		log := c.logOf(id) // its name is forgotten with it
		r, err := c.drop(ctx, id, forRead, enough)
		if err != nil {
			log.Error("cannot make room for reads", "error", err)
			return
		}
		if r.Shards > 0 {
			log.Info("evicted to make room for reads", "for", s.id.Short(), "shards", r.Shards, "bytes", r.Bytes)
		}
	}
	before := left()
	for made := held; made && !enough(); {
		made, _ = s.yield(ctx, unsettled, noLoss)
	}
	// What a load copies from is worth more than a read's copy.
	for made := held && !c.accounts.covers(s.id); made && left() < charge; {
		made, _ = s.yield(ctx, unsettled, anyLoss)
	}
	if left() > before {
		c.fills.forget(c.memory, stoker.ID{})
	}
}

// unusedFor is for how long nobody has held or read a dataset.
func (c *Cache) unusedFor(id stoker.ID) time.Duration {
	c.holds.mu.Lock()
	defer c.holds.mu.Unlock()
	k := c.holds.known[id]
	if k == nil {
		return 0
	}
	return now().Sub(c.lastUse(k))
}

// sweep evicts what nobody has held or read for its time to live, and forgets
// how datasets were read that are not here.
func (c *Cache) sweep() {
	c.followRules()
	for _, id := range c.unheld(nil) {
		_, ttl := c.ruleOf(id)
		if ttl <= 0 || !c.restsSince(id, ttl) || c.accounts.covers(id) {
			continue
		}
		log := c.logOf(id) // its name is forgotten with it
		c.room.Lock()
		r, err := c.drop(c.stop, id, idle, func() bool { return c.holdOf(id) != free })
		c.room.Unlock()
		if err != nil && !canceled(err) {
			log.Error("cannot evict what nobody uses", "error", err)
		}
		if r.Shards > 0 {
			log.Info("evicted: nobody used it", "for", ttl, "shards", r.Shards, "bytes", r.Bytes)
		}
	}
	c.holds.mu.Lock()
	known := func(id stoker.ID) bool { return c.holds.known[id] != nil }
	c.mu.Lock()
	for id := range c.uses {
		if c.sets[id] == nil && !known(id) {
			delete(c.uses, id)
		}
	}
	c.mu.Unlock()
	c.holds.mu.Unlock()
}

// restsSince reports whether nobody has held or read a dataset for so long. A
// read that was seen is written down first, so that the next life knows of it.
func (c *Cache) restsSince(id stoker.ID, ttl time.Duration) bool {
	h := &c.holds
	h.mu.Lock()
	defer h.mu.Unlock()
	k := h.known[id]
	if k == nil {
		return false
	}
	if last := c.lastUse(k); last.Sub(k.LastUsed) >= sweepEvery {
		k.LastUsed = last
		_ = h.saveLocked(c.o.Store, k) // it goes earlier, if this worker starts again now
	}
	return now().Sub(c.lastUse(k)) >= ttl && k.graceAt(now()).IsZero()
}

// evictions counts what was evicted for one reason, under keep and under lfu.
type evictions [2]struct{ shards, bytes atomic.Int64 }

var policies = [2]evict.Mode{evict.KeepMode, evict.LFUMode}

func (e *evictions) note(policy evict.Mode, shards int, bytes int64) {
	for i := range e {
		if policies[i] == policy {
			e[i].shards.Add(int64(shards))
			e[i].bytes.Add(bytes)
		}
	}
}

// shards is the sum of both.
func (e *evictions) shards() int64 { return e[0].shards.Load() + e[1].shards.Load() }

// Evicted calls f for what was evicted in this life, by why and by the policy in
// force: shards, and their bytes.
func (c *Counters) Evicted(f func(reason, policy string, shards, bytes int64)) {
	for why := range c.evictions {
		for i := range policies {
			e := &c.evictions[why][i]
			f(reasonNames[why], string(policies[i]), e.shards.Load(), e.bytes.Load())
		}
	}
}
