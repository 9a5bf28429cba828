package cache

import (
	"context"
	"maps"
	"slices"
	"time"

	"stoker.dev"
	"stoker.dev/internal/api"
)

// A shard may be in several manifests that are known here: generations of a
// dataset have most of them in common. It was announced for each, so it is
// withdrawn from each when it goes, and each lets go of its file.

// place is where a manifest has a shard.
type place struct {
	id stoker.ID
	n  uint32
}

type places map[stoker.ID][]place // by shard

// placesOf finds shards in all manifests that are known or open here.
func (c *Cache) placesOf(ctx context.Context, wanted func(shard stoker.ID) bool) (places, error) {
	at := places{}
	for _, id := range c.knownNow() {
		err := c.eachShard(ctx, id, func(n uint32, shard stoker.ID) {
			if wanted(shard) {
				at[shard] = append(at[shard], place{id, n})
			}
		})
		if err != nil && stoker.KindOf(err) != stoker.KindNotExist { // its manifest is gone: nobody asks for it
			return nil, err
		}
	}
	return at, nil
}

// knownNow lists the manifests that are known or open here, sorted.
func (c *Cache) knownNow() []stoker.ID {
	all := map[stoker.ID]bool{}
	c.holds.mu.Lock()
	for id := range c.holds.known {
		all[id] = true
	}
	c.holds.mu.Unlock()
	c.mu.Lock()
	for id := range c.sets {
		all[id] = true
	}
	c.mu.Unlock()
	return slices.SortedFunc(maps.Keys(all), func(a, b stoker.ID) int { return slices.Compare(a[:], b[:]) })
}

// remove evicts a shard.
func (c *Cache) remove(shard stoker.ID, at []place) error {
	if err := c.o.Store.Remove(shard); err != nil {
		return err
	}
	c.letGo(shard, at)
	return nil
}

// letGo is told that a shard is not here any more.
func (c *Cache) letGo(shard stoker.ID, at []place) {
	for _, p := range at {
		c.mu.Lock()
		u := c.uses[p.id]
		c.mu.Unlock()
		if u != nil {
			u.share.Forget(shard)
		}
		s := c.opened(p.id)
		if s == nil {
			c.o.Directory.Withdraw(p.id, []uint32{p.n})
			continue
		}
		s.release(p.n)
		s.withdraw(p.n)
		s.closeOrLog()
	}
}

// withdraw says that shards are not here any more, unless they were made anew
// meanwhile.
func (s *Set) withdraw(shards ...uint32) {
	s.c.o.Directory.Withdraw(s.id, shards)
	for _, n := range shards {
		sl := s.shard(n) // lets go of a file that was given up
		here := sl.sh != nil
		sl.mu.RUnlock()
		if here {
			s.c.o.Directory.Announce(s.id, n, false)
			s.seal(n)
		}
	}
}

// own tells the shards that are here of a dataset apart: those that only it, or
// what nobody holds, has, with their bytes; and those that others use, too.
func (s *Set) own(used map[stoker.ID]bool) (own map[stoker.ID]int64, shared []uint32) {
	here := map[stoker.ID]int64{}
	for _, sh := range s.c.o.Store.Shards() {
		here[sh.ID] = sh.Bytes
	}
	own = map[stoker.ID]int64{}
	for n := range s.slots {
		shard := s.man.Shard(uint32(n)).ID
		switch bytes, there := here[shard]; {
		case there && used[shard]:
			shared = append(shared, uint32(n))
		case there:
			own[shard] = bytes
		}
	}
	return own, shared
}

// drop removes what only this manifest needs, or, if enough is not nil, shard
// after shard until enough was removed.
func (c *Cache) drop(ctx context.Context, id stoker.ID, why reason, enough func() bool) (r api.EvictReport, err error) {
	used, err := c.inUse(ctx, id)
	if err != nil {
		return r, err
	}
	s, err := c.Open(ctx, id)
	if err != nil {
		return r, err
	}
	defer func() {
		if cerr := s.Close(); err == nil {
			err = cerr
		}
	}()
	own, shared := s.own(used)
	at, err := c.placesOf(ctx, func(shard stoker.ID) bool { _, ok := own[shard]; return ok })
	if err != nil {
		return r, err
	}
	partly := false
	for n := range s.slots {
		shard := s.man.Shard(uint32(n)).ID
		bytes, here := own[shard]
		if !here {
			continue
		}
		if partly = enough != nil && enough(); partly {
			break
		}
		s.lose(uint32(n))
		if err = c.remove(shard, at[shard]); err != nil {
			break
		}
		r.Shards, r.Bytes = r.Shards+1, r.Bytes+bytes
	}
	c.evicted(s, why, r.Shards, r.Bytes)
	if err != nil || partly {
		return r, err
	}
	c.mu.Lock()
	delete(c.sums, id)
	c.mu.Unlock()
	gone, err := c.holds.forget(c.o.Store, id)
	if gone { // what stays for others is not followed for this one any more
		c.o.Directory.Withdraw(id, shared)
	}
	return r, err
}

// orphansEvery is how often shards are looked for that no manifest known here has.
const orphansEvery = time.Hour

// dropOrphans removes shards that no manifest known here has: a folder that was out of
// service brings what was evicted meanwhile, a worker may be killed between two steps.
// Nobody could find them, and they would keep their space. What somebody has open
// stays for now.
func (c *Cache) dropOrphans(ctx context.Context) {
	c.room.Lock()
	defer c.room.Unlock()
	orphans := map[stoker.ID]int64{} // what is made from here on belongs to a manifest that is known
	for _, sh := range c.o.Store.Shards() {
		orphans[sh.ID] = sh.Bytes
	}
	for _, id := range c.knownNow() {
		if err := c.eachShard(ctx, id, func(_ uint32, shard stoker.ID) { delete(orphans, shard) }); err != nil {
			if !canceled(err) {
				c.logOf(id).Warn("shards that belong to no dataset are not looked for: this one does not say which are its own", "error", err)
			}
			return
		}
	}
	var shards int
	var bytes int64
	for id, n := range orphans {
		if c.o.Store.Users(id) > 0 {
			continue
		}
		if err := c.o.Store.Remove(id); err != nil {
			c.o.Log.Error("a shard of no dataset cannot be removed", "error", err)
			continue
		}
		shards, bytes = shards+1, bytes+n
	}
	if shards > 0 {
		c.o.Log.Info("removed shards that belong to no dataset known here", "shards", shards, "bytes", bytes)
	}
}
