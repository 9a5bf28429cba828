package cache

import (
	"cmp"
	"encoding/json"
	"maps"
	"slices"
	"sync"
	"time"

	"stoker.dev"
	"stoker.dev/cache/evict"
	"stoker.dev/cache/store"
	"stoker.dev/internal/api"
)

// rules are how datasets want their data to be evicted. Controllers tell them
// whenever they renew leases; they are durable, so that a worker goes by them before one is
// heard. Its mutex is a leaf.
type rules struct {
	mu  sync.Mutex
	all []api.EvictionRule // +checklocks:mu — one for each dataset that wants other than the default
}

const rulesState = "rules"

func (r *rules) restore(st *store.Store) error {
	body, err := st.GetState(rulesState)
	if stoker.KindOf(err) == stoker.KindNotExist {
		return nil
	} else if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := json.Unmarshal(body, &r.all); err != nil {
		return stoker.Errorf(stoker.KindCorrupt, "cache.rules", rulesState, "%w", err)
	}
	return nil
}

// put takes over rules: with whole, those that are not named end.
func (r *rules) put(st *store.Store, told []api.EvictionRule, whole bool) (changed bool, err error) {
	for _, x := range told {
		if _, err := evict.ParseMode(x.Evict); err != nil {
			return false, err
		}
		if x.Dataset == "" {
			return false, stoker.Errorf(stoker.KindInvalid, "cache.rules", "", "a rule needs a dataset")
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	var next []api.EvictionRule
	if !whole {
		next = slices.DeleteFunc(slices.Clone(r.all), func(x api.EvictionRule) bool {
			return slices.ContainsFunc(told, func(y api.EvictionRule) bool { return x.Dataset == y.Dataset })
		})
	}
	for _, x := range told {
		if !x.IsDefault() {
			next = append(next, x)
		}
	}
	slices.SortFunc(next, func(a, b api.EvictionRule) int { return cmp.Compare(a.Dataset, b.Dataset) })
	if slices.EqualFunc(r.all, next, api.EvictionRule.Equal) {
		return false, nil
	}
	body, err := json.Marshal(next)
	if err == nil {
		err = st.PutState(rulesState, body)
	}
	if err == nil {
		r.all = next
	}
	return err == nil, err
}

// of is the rule of a manifest, which was loaded or mounted as a dataset's, or,
// with "", was only ever asked for by others.
func (r *rules) of(id stoker.ID, dataset string) api.EvictionRule {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, x := range r.all {
		if dataset != "" && x.Dataset == dataset || dataset == "" && slices.Contains(x.Manifests, id) {
			return x
		}
	}
	return api.EvictionRule{}
}

// sweepIn is how long after a sweep the next one is.
func (c *Cache) sweepIn() time.Duration {
	in := sweepEvery
	least := func(ttl time.Duration) {
		if ttl > 0 {
			in = min(in, max(ttl/4, sweepLeast))
		}
	}
	least(c.o.Evict.Idle)
	c.rules.mu.Lock()
	defer c.rules.mu.Unlock()
	for _, x := range c.rules.all {
		least(seconds(x.TTLSeconds))
	}
	return in
}

// ruleOf is the rule of a manifest.
func (c *Cache) ruleOf(id stoker.ID) (evict.Mode, time.Duration) {
	name := ""
	c.holds.mu.Lock()
	if k := c.holds.known[id]; k != nil {
		name = k.Dataset
	}
	c.holds.mu.Unlock()
	x := c.rules.of(id, name)
	mode, err := evict.ParseMode(x.Evict)
	if err != nil { // of a later release: put refuses others
		mode = evict.Auto
	}
	switch ttl := seconds(x.TTLSeconds); {
	case ttl < 0:
		return mode, 0
	case ttl > 0:
		return mode, ttl
	}
	return mode, c.o.Evict.Idle
}

// PutRules takes over a controller's rules and puts them into force.
func (c *Cache) PutRules(r api.RulesRequest) error {
	changed, err := c.rules.put(c.o.Store, r.Rules, r.All)
	if changed {
		c.followRules()
		c.evictor.look()
	}
	return err
}

// followRules puts the rules into force for all that is known.
func (c *Cache) followRules() {
	c.mu.Lock()
	uses := maps.Clone(c.uses)
	c.mu.Unlock()
	for id, u := range uses {
		mode, _ := c.ruleOf(id)
		u.share.Use(mode)
	}
}
