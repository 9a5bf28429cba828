package cache

import (
	"stoker.dev"
	"stoker.dev/internal/api"
	"stoker.dev/planner"
)

// leastShare is the part of a load's limit of a worker that owns nothing of the
// plan, or knows none: it reads from the stores only where an owner is away.
const leastShare = 1.0 / 64

// wish takes over what is wished of loads. It stands in the manifest's document, so
// that the worker's next life knows it before it goes on with them.
func (c *Cache) wish(wishes []api.LoadWish) error {
	h := &c.holds
	var changed []stoker.ID
	h.mu.Lock()
	for _, w := range wishes {
		k := h.known[w.Manifest]
		if k == nil || k.Wish == w || k.Wish == (api.LoadWish{}) && w == (api.LoadWish{Manifest: w.Manifest}) {
			continue // nothing of it is here, nor held: a load begins with a lease
		}
		k.Wish = w
		if err := h.saveLocked(c.o.Store, k); err != nil {
			h.mu.Unlock()
			return err
		}
		changed = append(changed, w.Manifest)
	}
	h.mu.Unlock()
	for _, id := range changed {
		c.mu.Lock()
		s := c.sets[id]
		if s != nil {
			s.users++
		}
		c.mu.Unlock()
		if s == nil {
			continue
		}
		s.obey()
		s.closeOrLog()
	}
	return nil
}

// wished is what is wished of a manifest's load.
func (h *holds) wished(id stoker.ID) api.LoadWish {
	h.mu.Lock()
	defer h.mu.Unlock()
	if k := h.known[id]; k != nil {
		return k.Wish
	}
	return api.LoadWish{}
}

// obey does what is wished of the load. Of the limit this worker has the part of
// the bytes which it owns, so that all workers together keep to it without asking
// each other.
func (s *Set) obey() {
	s.obeying.Lock()
	defer s.obeying.Unlock()
	w := s.c.holds.wished(s.id)
	if w.LimitBytesPerSecond == 0 {
		s.load.Set(0, w.Rank)
		return
	}
	s.load.Set(float64(w.LimitBytesPerSecond)*ownedPart(s.plan.Load(), s.c.o.Store.WorkerID(), func(n uint32) int64 { return s.man.Shard(n).Bytes }), w.Rank)
}

// ownedPart is the part of a plan's bytes that a worker owns.
func ownedPart(p *planner.Plan, worker string, bytes func(n uint32) int64) float64 {
	if p == nil {
		return leastShare
	}
	var own, all int64
	for n, owners := range p.Owners {
		if len(owners) == 0 {
			continue // it is not of the plan
		}
		b := bytes(uint32(n))
		all += b
		if p.Workers[owners[0]].ID == worker {
			own += b
		}
	}
	if own == 0 {
		return leastShare
	}
	return float64(own) / float64(all)
}
