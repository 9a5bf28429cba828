package cache

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"sync"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/cache/store"
	"stoker.dev/internal/api"
)

// drain is whether this worker gives up what it has, which stands on its own disk.
// It then takes nothing new; others copy what somebody holds, and what they have
// is dropped here. Its mutex is a leaf.
type drain struct {
	mu  sync.Mutex
	now *api.Drain // +checklocks:mu — nil: it does not
	// given are the shards of each manifest that others were seen to have: one of
	// several held manifests goes when that was seen for all of them.
	given map[stoker.ID]map[stoker.ID]bool // +checklocks:mu
}

const drainState = "drain"

func (d *drain) restore(st *store.Store) error {
	body, err := st.GetState(drainState)
	if stoker.KindOf(err) == stoker.KindNotExist {
		return nil
	} else if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := json.Unmarshal(body, &d.now); err != nil {
		return stoker.Errorf(stoker.KindCorrupt, "cache.drain", drainState, "%w", err)
	}
	return nil
}

// Draining is since when, and by whom, this worker is drained; nil if it is not.
func (c *Cache) Draining() *api.Drain {
	c.drain.mu.Lock()
	defer c.drain.mu.Unlock()
	return c.drain.now
}

// Drain makes the worker take nothing new, over restarts, until Undrain. One that
// is drained already keeps the time and name of the first, and what the last says
// of data that nobody holds.
func (c *Cache) Drain(r api.Drain) error {
	d := &c.drain
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.now != nil {
		r.Since, r.By = d.now.Since, d.now.By
	}
	body, err := json.Marshal(r)
	if err == nil {
		err = c.o.Store.PutState(drainState, body)
	}
	if err == nil {
		d.now = &r
	}
	return err
}

// Undrain ends that. A worker that is not drained is fine.
func (c *Cache) Undrain() error {
	d := &c.drain
	d.mu.Lock()
	defer d.mu.Unlock()
	err := c.o.Store.DeleteState(drainState)
	if err == nil {
		d.now, d.given = nil, nil
	}
	return err
}

// refuse says no to what would bring new data here while the worker is drained.
// What was promised before goes on.
func (c *Cache) refuse(op, reservation string) error {
	d := c.Draining()
	if d == nil {
		return nil
	}
	if _, promised := c.o.Store.Reservations()[reservation]; promised {
		return nil
	}
	return stoker.Errorf(stoker.KindTransient, op, "worker "+c.o.Store.WorkerID()[:8], "is being drained by %s: it takes nothing new", d.By)
}

// Drained reports whether a worker that is drained has given up all: no dataset
// has data here, nothing is promised or loaded, no view is mounted.
func (c *Cache) Drained(ctx context.Context) (bool, error) {
	if c.Draining() == nil || len(c.o.Store.Reservations()) > 0 {
		return false, nil
	}
	c.holds.mu.Lock()
	ids, used := slices.Collect(maps.Keys(c.holds.known)), false
	for _, k := range c.holds.known {
		used = used || k.mounts > 0 || k.loads > 0
	}
	c.holds.mu.Unlock()
	if used {
		return false, nil
	}
	here := map[stoker.ID]bool{}
	for _, sh := range c.o.Store.Shards() {
		here[sh.ID] = true
	}
	for _, id := range ids {
		if len(here) == 0 {
			break
		}
		some := false
		err := c.eachShard(ctx, id, func(_ uint32, shard stoker.ID) { some = some || here[shard] })
		if some || err != nil && stoker.KindOf(err) != stoker.KindNotExist {
			return false, err
		}
	}
	return true, nil
}

// DropCopies removes shards of a dataset that others were seen to have, though
// somebody holds it. Those stay that a view here shows or a load brings in, and
// those of other held datasets of which it was not seen.
func (c *Cache) DropCopies(ctx context.Context, id stoker.ID, shards []uint32) (r api.EvictReport, err error) {
	s, err := c.Open(ctx, id)
	if err != nil {
		return r, err
	}
	defer func() { _ = s.Close() }()
	c.room.Lock()
	defer c.room.Unlock()
	given := c.give(s.man, shards)
	if c.busyWith(id) {
		return r, nil
	}
	used, err := c.notGiven(ctx, id)
	if err != nil {
		return r, err
	}
	at, err := c.placesOf(ctx, func(shard stoker.ID) bool { return given[shard] })
	if err != nil {
		return r, err
	}
	for _, n := range shards {
		if int(n) >= len(s.slots) {
			continue
		}
		d := s.man.Shard(n)
		sl := s.shard(n)
		here := sl.sh != nil
		sl.mu.RUnlock()
		if !here || used[d.ID] || s.otherUsers(n) {
			continue
		}
		if err = c.remove(d.ID, at[d.ID]); err != nil {
			break
		}
		r.Shards, r.Bytes = r.Shards+1, r.Bytes+d.Bytes
	}
	c.evicted(s, moved, r.Shards, r.Bytes)
	return r, err
}

// give notes which shards of a manifest others have now, and returns them.
func (c *Cache) give(m *manifest.Manifest, shards []uint32) map[stoker.ID]bool {
	given := map[stoker.ID]bool{}
	for _, n := range shards {
		if int(n) < m.Shards() {
			given[m.Shard(n).ID] = true
		}
	}
	c.drain.mu.Lock()
	defer c.drain.mu.Unlock()
	if c.drain.given == nil {
		c.drain.given = map[stoker.ID]map[stoker.ID]bool{}
	}
	c.drain.given[m.ID()] = given
	return given
}

// busyWith reports whether a view here shows a manifest, or a load brings it in.
func (c *Cache) busyWith(id stoker.ID) bool {
	if c.accounts.covers(id) {
		return true
	}
	c.holds.mu.Lock()
	defer c.holds.mu.Unlock()
	k := c.holds.known[id]
	return k != nil && (k.mounts > 0 || k.loads > 0)
}

// notGiven returns the shards that other held manifests need here.
func (c *Cache) notGiven(ctx context.Context, except stoker.ID) (map[stoker.ID]bool, error) {
	c.holds.mu.Lock()
	var held []stoker.ID
	for id := range c.holds.known {
		if id != except && len(c.holds.holdersLocked(id)) > 0 {
			held = append(held, id)
		}
	}
	c.holds.mu.Unlock()
	used := map[stoker.ID]bool{}
	for _, id := range held {
		busy := c.busyWith(id)
		c.drain.mu.Lock()
		given := maps.Clone(c.drain.given[id])
		c.drain.mu.Unlock()
		if err := c.eachShard(ctx, id, func(_ uint32, shard stoker.ID) { used[shard] = used[shard] || busy || !given[shard] }); err != nil {
			return nil, err
		}
	}
	return used, nil
}
