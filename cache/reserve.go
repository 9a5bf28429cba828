package cache

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"stoker.dev"
	"stoker.dev/cache/store"
	"stoker.dev/internal/api"
)

func reservationName(plan stoker.ID, part int) string { return fmt.Sprintf("%s-%d", plan, part) }

// copiesName is that of copies. Their promises end with this life: whoever repairs
// counts again, and asks for what is missing then.
func copiesName(plan stoker.ID, part int) string { return reservationName(plan, part) + copiesSuffix }

const copiesSuffix = "-copies"

// Reserve promises the space of a plan's part, or refuses with KindNoSpace
// and numbers. To make room it evicts the datasets that nobody holds, the
// one used longest ago first, and those in grace last. The leases of the plan's jobs come into force
// with it, so that nothing falls between promise and load. Asking again is
// fine.
func (c *Cache) Reserve(ctx context.Context, r api.ReserveRequest) (api.ReserveReport, error) {
	name := reservationName(r.Plan, r.Part)
	if r.Copies {
		name = copiesName(r.Plan, r.Part)
	}
	if err := c.refuse("reserve", name); err != nil {
		return api.ReserveReport{}, err
	}
	plan, s, err := c.openPlan(ctx, r.Plan, r.Part)
	if err != nil {
		return api.ReserveReport{}, err
	}
	defer func() { _ = s.Close() }()
	if err := c.holds.know(c.o.Store, plan.Manifest, plan.Dataset); err != nil {
		return api.ReserveReport{}, err
	}
	if err := c.holds.planned(c.o.Store, plan.Manifest, r.Plan); err != nil {
		return api.ReserveReport{}, err
	}
	// From here on no eviction in the background takes what is counted as here.
	c.holds.loading(plan.Manifest, 1)
	defer c.holds.loading(plan.Manifest, -1)
	var rep api.ReserveReport
	var largest int64
	c.room.Lock()
	rep.NeededBytes, largest, rep.ResidentBytes = s.needed(plan.Part(r.Part))
	c.room.Unlock()
	if !r.Replaces.IsZero() {
		if err := c.GiveBack(r.Replaces, r.Part); err != nil {
			return rep, err
		}
		c.accounts.carry(reservationName(r.Replaces, r.Part), name)
	}
	c.askedFor(name)
	err = c.o.Store.ReserveFor(name, rep.NeededBytes, largest)
	older := s.olderIDs(ctx)
	if stoker.KindOf(err) == stoker.KindNoSpace && !r.Spare {
		if err := c.makeRoom(ctx, rep.NeededBytes, largest, append(older, plan.Manifest)...); err != nil {
			return rep, err
		}
		err = c.o.Store.ReserveFor(name, rep.NeededBytes, largest)
	}
	if stoker.KindOf(err) == stoker.KindNoSpace && !r.Spare {
		// What is copied from goes last, and piece by piece: see placeFor.
		pledged, yerr := s.yieldable(ctx)
		if yerr != nil {
			return rep, yerr
		}
		err = c.o.Store.ReserveAgainst(name, rep.NeededBytes, largest, pledged)
	}
	if err != nil {
		return rep, c.explainNoSpace("reserve", err, rep.NeededBytes, largest, plan.Manifest)
	}
	s.account(name, plan.Part(r.Part), older)
	return rep, c.PutLeases(api.LeaseRequest{Leases: r.Leases})
}

// needed adds up what the shards of a part that are not here would be charged
// with, and says the most of one, and how large those are that are here.
func (s *Set) needed(part []uint32) (charges, largest, resident int64) {
	here := map[stoker.ID]bool{}
	for _, sh := range s.c.o.Store.Shards() {
		here[sh.ID] = true
	}
	for _, n := range part {
		d := s.man.Shard(n)
		if here[d.ID] {
			resident += d.Bytes
			continue
		}
		charge := s.c.o.Store.ChargeBytes(d.Bytes, int(d.Blocks))
		charges, largest = charges+charge, max(largest, charge)
	}
	return charges, largest, resident
}

// askedFor notes that somebody still counts on a promise of the last life.
func (c *Cache) askedFor(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.restored, name)
}

// isRestored reports whether a promise is of the last life, and nobody has asked for
// it since.
func (c *Cache) isRestored(name string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.restored[name]
	return ok
}

// restoredFor is how long promises of the last life are kept for a load that
// goes on: longer than any return window.
const restoredFor = 10 * time.Minute

// dropRestored ends them when nobody asked for them in that time, although
// controllers were heard.
func (c *Cache) dropRestored() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.restored) == 0 || now().Sub(c.started) < restoredFor {
		return nil
	}
	for name := range c.restored {
		c.accounts.close(name)
		if err := c.o.Store.Unreserve(name); err != nil {
			return err
		}
		delete(c.restored, name)
	}
	return nil
}

// GiveBack ends a promise; what was loaded under it stays.
func (c *Cache) GiveBack(plan stoker.ID, part int) error {
	for _, name := range []string{reservationName(plan, part), copiesName(plan, part)} {
		c.accounts.close(name)
		if err := c.o.Store.Unreserve(name); err != nil {
			return err
		}
	}
	return nil
}

// makeRoom evicts unheld datasets until need bytes are free for shards of at
// most that charge, or none is left.
func (c *Cache) makeRoom(ctx context.Context, need, largest int64, keep ...stoker.ID) error {
	for _, id := range c.unheld(keep) {
		if c.o.Store.FreeBytes(largest) >= need {
			return nil
		}
		log := c.logOf(id) // its name is forgotten with it
		r, err := c.drop(ctx, id, forReservation, nil)
		if err != nil {
			return err
		}
		log.Info("evicted to make room", "shards", r.Shards, "bytes", r.Bytes)
	}
	if c.o.Store.FreeBytes(largest) < need {
		c.dropOrphans(ctx)
	}
	return nil
}

// unheld lists the datasets that nobody holds, the one used longest ago first,
// without those to keep and those that a load copies from. Those in grace come
// last, the one whose grace ends first before the others.
func (c *Cache) unheld(keep []stoker.ID) []stoker.ID {
	h := &c.holds
	h.mu.Lock()
	defer h.mu.Unlock()
	var free []*holding
	for id, k := range h.known {
		if !slices.Contains(keep, id) && len(h.holdersLocked(id)) == 0 && !c.accounts.copiedFrom(id) {
			free = append(free, k)
		}
	}
	at := now()
	slices.SortFunc(free, func(a, b *holding) int {
		return cmp.Or(a.graceAt(at).Compare(b.graceAt(at)), c.lastUse(a).Compare(c.lastUse(b)))
	})
	ids := make([]stoker.ID, len(free))
	for i, k := range free {
		ids[i] = k.Manifest
	}
	return ids
}

// explainNoSpace adds to a refusal why there is no more: who holds the worker's
// space, what several folders set aside for shards of at most that charge, and
// which are out of service.
func (c *Cache) explainNoSpace(op string, err error, need, largest int64, asking stoker.ID) error {
	if stoker.KindOf(err) != stoker.KindNoSpace {
		return err
	}
	u := c.o.Store.Usage()
	unused, free := max(0, u.CapacityBytes-u.UsedBytes-u.ReservedBytes), max(0, c.o.Store.FreeBytes(largest))
	why := c.holdersExcept(asking)
	if free < unused {
		why = append(why, fmt.Sprintf("%s more are set aside, for a shard must fit into one folder", api.HumanBytes(unused-free)))
	}
	for _, f := range c.o.Store.Folders() {
		if f.State != store.InService {
			why = append(why, fmt.Sprintf("%s is %s (%s)", f.Dir, f.State, f.Reason))
		}
	}
	return stoker.Errorf(stoker.KindNoSpace, op, "worker "+c.o.Store.WorkerID()[:8], "needs %s, %s of %s free; %s",
		api.HumanBytes(need), api.HumanBytes(free), api.HumanBytes(u.CapacityBytes), strings.Join(why, "; "))
}

// holdersExcept says by whom other datasets than this one are held.
func (c *Cache) holdersExcept(asking stoker.ID) []string {
	h := &c.holds
	h.mu.Lock()
	defer h.mu.Unlock()
	var who []string
	for id, k := range h.known {
		if holders := h.holdersLocked(id); len(holders) > 0 && id != asking {
			who = append(who, fmt.Sprintf("%s by %s", cmp.Or(k.Dataset, id.Short()), strings.Join(holders, " and ")))
		}
	}
	slices.Sort(who)
	if len(who) == 0 {
		return []string{"nothing is held"}
	}
	who[0] = "held: " + who[0]
	return who
}
