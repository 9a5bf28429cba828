package cache

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"stoker.dev"
	"stoker.dev/cache/store"
	"stoker.dev/internal/api"
)

// holds knows which datasets this worker has data of, and who holds them:
// leases of jobs, mounted views, loads in progress. It is durable: what a
// worker said yes to it knows after a restart.
type holds struct {
	mu     sync.Mutex
	known  map[stoker.ID]*holding // +checklocks:mu
	leases map[leaseKey]*lease    // +checklocks:mu
}

// holding is what is known of one manifest with data here.
type holding struct {
	Manifest stoker.ID     `json:"manifest"`
	Dataset  string        `json:"dataset"`
	Plan     stoker.ID     `json:"plan,omitzero"` // of its last load here
	LastUsed time.Time     `json:"lastUsed"`
	Failed   []api.Failure `json:"failed,omitempty"` // of its last loads here
	// GraceUntil is until when its last lease's end is so near that the job may
	// come again: nothing is held by it, but the data goes last.
	GraceUntil time.Time `json:"graceUntil,omitzero"`
	// Wish is that of those who wait for it.
	Wish api.LoadWish `json:"wish,omitzero"`

	mounts, loads int           // not durable: a new life has none
	more          []api.Failure // behind Failed, which is bounded; not durable either
}

// graceAt is until when the data is evicted last; the zero time: not any more.
func (k *holding) graceAt(at time.Time) time.Time {
	if k.GraceUntil.After(at) {
		return k.GraceUntil
	}
	return time.Time{}
}

type leaseKey struct {
	holder   string
	manifest stoker.ID
}

// lease counts from its last renewal on this worker's own clock. It ends
// only when a controller has been heard that no longer renews it: while none
// answers, jobs go on, so leases do too. That of a pin ends, besides, when the
// pin does, by itself.
type lease struct {
	api.Lease
	renewed time.Time
}

const (
	holdingState = "holding-"
	leasesState  = "leases"
)

// restore reads back what the last life knew. Leases begin anew: their time
// is counted from now, since nobody can say how long the worker was gone.
func (h *holds) restore(st *store.Store) error {
	h.known, h.leases = map[stoker.ID]*holding{}, map[leaseKey]*lease{}
	names, err := st.ListState(holdingState)
	if err != nil {
		return err
	}
	for _, name := range names {
		body, err := st.GetState(name)
		if err != nil {
			return err
		}
		var k holding
		if err := json.Unmarshal(body, &k); err != nil {
			continue // half a document cannot be: writes are atomic; a foreign one is ignored
		}
		h.known[k.Manifest] = &k
	}
	body, err := st.GetState(leasesState)
	if stoker.KindOf(err) == stoker.KindNotExist {
		return nil
	} else if err != nil {
		return err
	}
	var leases []api.Lease
	if err := json.Unmarshal(body, &leases); err != nil {
		return stoker.Errorf(stoker.KindCorrupt, "cache.leases", leasesState, "%w", err)
	}
	for _, l := range leases {
		h.leases[leaseKey{l.Holder, l.Manifest}] = &lease{l, now()}
	}
	return nil
}

// saveLocked writes one manifest's document.
func (h *holds) saveLocked(st *store.Store, k *holding) error {
	body, err := json.Marshal(k)
	if err != nil {
		return err
	}
	return st.PutState(holdingState+k.Manifest.String(), body)
}

func (h *holds) saveLeasesLocked(st *store.Store) error {
	list := make([]api.Lease, 0, len(h.leases))
	for _, l := range h.leases {
		list = append(list, l.Lease)
	}
	body, err := json.Marshal(list)
	if err != nil {
		return err
	}
	return st.PutState(leasesState, body)
}

// know makes sure that the manifest has a document.
func (h *holds) know(st *store.Store, id stoker.ID, dataset string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	k := h.known[id]
	if k != nil && (dataset == "" || k.Dataset == dataset) {
		k.LastUsed = now()
		return nil
	}
	if k == nil {
		k = &holding{Manifest: id}
		h.known[id] = k
	}
	k.Dataset, k.LastUsed = dataset, now()
	return h.saveLocked(st, k)
}

// planned notes the plan of a load.
func (h *holds) planned(st *store.Store, id, plan stoker.ID) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	k := h.known[id]
	if k == nil || k.Plan == plan {
		return nil
	}
	k.Plan = plan
	return h.saveLocked(st, k)
}

// plan returns the plan of the last load.
func (h *holds) plan(id stoker.ID) (stoker.ID, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if k := h.known[id]; k != nil && !k.Plan.IsZero() {
		return k.Plan, true
	}
	return stoker.ID{}, false
}

// touch notes a use, for the order of evictions.
func (h *holds) touch(st *store.Store, id stoker.ID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if k := h.known[id]; k != nil {
		k.LastUsed = now()
		_ = h.saveLocked(st, k) // only the order of evictions suffers
	}
}

// noteFailures keeps why objects are missing, for verify.
func (h *holds) noteFailures(st *store.Store, id stoker.ID, failed []api.Failure) {
	h.mu.Lock()
	defer h.mu.Unlock()
	k := h.known[id]
	if k == nil {
		return
	}
	k.Failed, k.more = failed[:min(len(failed), maxFailures)], failed[min(len(failed), maxFailures):min(len(failed), keptFailures)]
	_ = h.saveLocked(st, k) // verify then says "not resident" without the reason
}

func (h *holds) failures(id stoker.ID) []api.Failure {
	h.mu.Lock()
	defer h.mu.Unlock()
	if k := h.known[id]; k != nil {
		return slices.Concat(k.Failed, k.more)
	}
	return nil
}

// loading counts a running load in or out: what is being loaded is held.
func (h *holds) loading(id stoker.ID, delta int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if k := h.known[id]; k != nil {
		k.loads += delta
	}
}

// holdersLocked says who keeps the manifest's data from eviction.
func (h *holds) holdersLocked(id stoker.ID) []string {
	var who []string
	for key, l := range h.leases {
		if key.manifest == id && !l.expired() {
			who = append(who, l.String())
		}
	}
	if k := h.known[id]; k != nil {
		if k.mounts > 0 {
			who = append(who, counted(k.mounts, "mounted view"))
		}
		if k.loads > 0 {
			who = append(who, counted(k.loads, "running load"))
		}
	}
	slices.Sort(who)
	return who
}

func counted(n int, what string) string {
	if n == 1 {
		return "a " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// Mounted counts a view of the dataset in (or, with -1, out): mounted data
// is held.
func (c *Cache) Mounted(id stoker.ID, dataset string, delta int) error {
	if err := c.holds.know(c.o.Store, id, dataset); err != nil {
		return err
	}
	c.holds.mu.Lock()
	defer c.holds.mu.Unlock()
	c.holds.known[id].mounts += delta
	c.fills.forget(c.memory, stoker.ID{})
	c.refills.wake() // to end, if that was the last holder
	return nil
}

// PutLeases takes over a controller's list: renews, adds, drops. A lease
// that is not in it ends once its time since the last renewal is up, unless the
// list is a partial one.
func (c *Cache) PutLeases(r api.LeaseRequest) error {
	if err := c.dropRestored(); err != nil {
		return err
	}
	for _, l := range r.Leases {
		if l.Holder == "" || l.Manifest.IsZero() || l.TTLSeconds <= 0 {
			return stoker.Errorf(stoker.KindInvalid, "cache.lease", l.Holder, "a lease needs a holder, a manifest and a time to live")
		}
		if err := c.holds.know(c.o.Store, l.Manifest, ""); err != nil {
			return err
		}
	}
	if err := c.wish(r.Wishes); err != nil {
		return err
	}
	h := &c.holds
	h.mu.Lock()
	defer h.mu.Unlock()
	changed := false
	for _, l := range r.Leases {
		key := leaseKey{l.Holder, l.Manifest}
		was := h.leases[key]
		if was == nil || was.Reason != l.Reason || !was.Until.Equal(l.Until) || was.GraceSeconds != l.GraceSeconds {
			changed = true
		}
		h.leases[key] = &lease{l, now()}
	}
	for key, l := range h.leases {
		silent := !r.Partial && now().Sub(l.renewed) > seconds(l.TTLSeconds)
		if !silent && !l.expired() && !slices.Contains(r.Drop, key.holder) {
			continue
		}
		delete(h.leases, key)
		changed = true
		if err := h.graceLocked(c.o.Store, l); err != nil {
			return err
		}
	}
	if !changed {
		return nil
	}
	c.fills.forget(c.memory, stoker.ID{})
	c.refills.wake() // to end, if that was the last holder
	return h.saveLeasesLocked(c.o.Store)
}

// Leases lists the leases in force.
func (c *Cache) Leases() []api.Lease {
	c.holds.mu.Lock()
	defer c.holds.mu.Unlock()
	out := make([]api.Lease, 0, len(c.holds.leases))
	for _, l := range c.holds.leases {
		if !l.expired() {
			out = append(out, l.Lease)
		}
	}
	slices.SortFunc(out, func(a, b api.Lease) int { return strings.Compare(a.Holder, b.Holder) })
	return out
}

// inUse returns the shards that held manifests have here, by id.
func (c *Cache) inUse(ctx context.Context, except stoker.ID) (map[stoker.ID]bool, error) {
	h := &c.holds
	h.mu.Lock()
	var held []stoker.ID
	for id := range h.known {
		if id != except && len(h.holdersLocked(id)) > 0 {
			held = append(held, id)
		}
	}
	h.mu.Unlock()
	used := map[stoker.ID]bool{}
	for _, id := range held {
		if err := c.eachShard(ctx, id, func(_ uint32, shard stoker.ID) { used[shard] = true }); err != nil {
			return nil, err
		}
	}
	return used, nil
}

// eachShard calls f for the shards of a manifest.
func (c *Cache) eachShard(ctx context.Context, id stoker.ID, f func(n uint32, shard stoker.ID)) error {
	s, err := c.Open(ctx, id)
	if err != nil {
		return err
	}
	for n := range s.slots {
		f(uint32(n), s.man.Shard(uint32(n)).ID)
	}
	return s.Close()
}

// FreeableBytes is how much an eviction of all that nobody holds would free.
func (c *Cache) FreeableBytes(ctx context.Context) (int64, error) {
	used, err := c.inUse(ctx, stoker.ID{})
	if err != nil {
		return 0, err
	}
	var sum int64
	for _, sh := range c.o.Store.Shards() {
		if !used[sh.ID] {
			sum += sh.Bytes
		}
	}
	return sum, nil
}

// Evict removes a dataset's data from this worker. Held data is refused with
// KindHeld and its holders' names, unless force, which also ends its leases;
// a mounted view then fills again what it reads. Shards that another held
// dataset shares stay.
func (c *Cache) Evict(ctx context.Context, id stoker.ID, force bool) (api.EvictReport, error) {
	h := &c.holds
	h.mu.Lock()
	who := h.holdersLocked(id)
	if len(who) > 0 && !force {
		h.mu.Unlock()
		return api.EvictReport{}, stoker.Errorf(stoker.KindHeld, "evict", id.Short(), "held by %s", strings.Join(who, ", "))
	}
	maps.DeleteFunc(h.leases, func(k leaseKey, _ *lease) bool { return k.manifest == id })
	err := h.saveLeasesLocked(c.o.Store)
	h.mu.Unlock()
	if err != nil {
		return api.EvictReport{}, err
	}
	return c.drop(ctx, id, asked, nil)
}

// forget drops the document of a manifest that has neither data of its own nor
// users, and reports whether it did.
func (h *holds) forget(st *store.Store, id stoker.ID) (gone bool, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.holdersLocked(id)) > 0 {
		return false, nil
	}
	delete(h.known, id)
	return true, st.DeleteState(holdingState + id.String())
}

// Holdings lists the datasets with data here.
func (c *Cache) Holdings(ctx context.Context) ([]api.ManifestHolding, error) {
	c.holds.mu.Lock()
	var out []api.ManifestHolding
	for id, k := range c.holds.known {
		out = append(out, api.ManifestHolding{Manifest: id, Dataset: k.Dataset, Holders: c.holds.holdersLocked(id), WaitingSince: c.accounts.waiting(id), Check: c.checks.of(id), Plan: k.Plan})
	}
	c.holds.mu.Unlock()
	for i := range out {
		out[i].Load = c.loads.running(out[i].Manifest)
	}
	states := map[stoker.ID]store.ShardState{}
	for _, sh := range c.o.Store.Shards() {
		states[sh.ID] = sh
	}
	for i := range out {
		s, err := c.Open(ctx, out[i].Manifest)
		if err != nil {
			continue // its manifest is gone from the store: nothing can be said of it
		}
		for n := range s.slots {
			st, ok := states[s.man.Shard(uint32(n)).ID]
			if !ok {
				continue
			}
			if st.Present == st.Blocks {
				out[i].Shards++
				out[i].Bytes += s.objectBytes(uint32(n))
				out[i].Objects += s.sumOf(uint32(n)).objects
			} else if st.Present > 0 {
				out[i].Bytes += s.residentBytes(uint32(n), 0, st.Blocks)
				out[i].Objects += s.residentObjects(uint32(n))
			}
		}
		if err := s.Close(); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(out, func(a, b api.ManifestHolding) int { return strings.Compare(a.Manifest.String(), b.Manifest.String()) })
	return out, nil
}

// EachHeld calls f for every shard here of every dataset that is known here:
// what a worker announces after the index forgot it.
func (c *Cache) EachHeld(ctx context.Context, f func(id stoker.ID, n uint32, whole bool)) error {
	c.holds.mu.Lock()
	ids := slices.Collect(maps.Keys(c.holds.known))
	c.holds.mu.Unlock()
	whole := map[stoker.ID]bool{}
	for _, sh := range c.o.Store.Shards() {
		whole[sh.ID] = sh.Present == sh.Blocks
	}
	for _, id := range ids {
		err := c.eachShard(ctx, id, func(n uint32, shard stoker.ID) {
			if w, here := whole[shard]; here {
				f(id, n, w)
			}
		})
		if err != nil && stoker.KindOf(err) != stoker.KindNotExist {
			return err
		}
	}
	return nil
}
