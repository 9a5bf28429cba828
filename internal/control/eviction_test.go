package control

import (
	"testing"
	"time"

	"stoker.dev/cache/placement"
	"stoker.dev/internal/api"
)

// How a dataset is evicted stands in the registry; workers hear of it at once and
// with each renewal, until it is the default again.
func TestEvictionOfDatasets(t *testing.T) {
	_, address := startFlows(t)
	w := startWatched(t, address, placement.NewMem(time.Now))
	worker := w.takeLeases(t)
	id := w.freeze(t, "pets").Current().Manifest
	if d := decode[api.DatasetDetail](t, w.ask(t, watchedToken, "GET", "/v1/datasets/pets", nil)); d.Evict != "auto" || d.TTLSeconds != 0 {
		t.Errorf("at first %+v", d.Eviction)
	}
	set := func(mode string, ttl float64) api.Eviction {
		t.Helper()
		req := api.EvictionRequest{}
		if mode != "" {
			req.Evict = &mode
		}
		if ttl != 0 {
			req.TTLSeconds = &ttl
		}
		return decode[api.DatasetDetail](t, w.ask(t, watchedToken, "PUT", "/v1/datasets/pets/eviction", req)).Eviction
	}
	if e := set("lfu", 7200); e.Evict != "lfu" || e.TTLSeconds != 7200 {
		t.Errorf("it is %+v", e)
	}
	told, n := worker.lastRules()
	if n != 1 || told.All || len(told.Rules) != 1 || told.Rules[0].Dataset != "pets" || told.Rules[0].TTLSeconds != 7200 || told.Rules[0].Manifests[0] != id {
		t.Fatalf("the worker was told %+v", told)
	}
	if e := set("", -5); e.Evict != "lfu" || e.TTLSeconds != -1 {
		t.Errorf("with another time to live alone it is %+v", e)
	}
	w.renewOnce(t.Context())
	if told, _ = worker.lastRules(); !told.All || len(told.Rules) != 1 || told.Rules[0].Evict != "lfu" || told.Rules[0].TTLSeconds != -1 {
		t.Errorf("a renewal tells %+v", told)
	}
	none := 0.0
	d := decode[api.DatasetDetail](t, w.ask(t, watchedToken, "PUT", "/v1/datasets/pets/eviction", api.EvictionRequest{TTLSeconds: &none}))
	if d.Evict != "lfu" || d.TTLSeconds != 0 {
		t.Errorf("without a time to live of its own it is %+v", d.Eviction)
	}
	set("auto", 0)
	if told, _ = worker.lastRules(); len(told.Rules) != 1 || !told.Rules[0].IsDefault() {
		t.Errorf("of the default the worker was told %+v", told)
	}
	w.renewOnce(t.Context())
	if told, _ = worker.lastRules(); !told.All || len(told.Rules) != 0 {
		t.Errorf("without rules a renewal tells %+v", told)
	}
	lru, soon := "lru", 0.5
	w.ask(t, watchedToken, "PUT", "/v1/datasets/pets/eviction", api.EvictionRequest{Evict: &lru}).wantError(t, 400, "invalid", "want auto, keep or lfu")
	w.ask(t, watchedToken, "PUT", "/v1/datasets/pets/eviction", api.EvictionRequest{TTLSeconds: &soon}).wantError(t, 400, "invalid", "time to live")
	w.ask(t, watchedToken, "PUT", "/v1/datasets/pets@1/eviction", api.EvictionRequest{}).wantError(t, 400, "invalid", "leave @1 out")
	w.ask(t, bobsToken, "PUT", "/v1/datasets/pets/eviction", api.EvictionRequest{Evict: &lru}).wantError(t, 403, "denied", "ann")
}

// lastRules is what it was told last of rules, and how often it was told any.
func (l *leaseTaker) lastRules() (api.RulesRequest, int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.rules) == 0 {
		return api.RulesRequest{}, 0
	}
	return l.rules[len(l.rules)-1], len(l.rules)
}
