package cache

import (
	"testing"
	"testing/synctest"
	"time"

	"stoker.dev"
	"stoker.dev/cache/evict"
	"stoker.dev/internal/api"
)

func rule(name string, ids []stoker.ID, mode string, ttl time.Duration) api.EvictionRule {
	return api.EvictionRule{Dataset: name, Manifests: ids, Eviction: api.Eviction{Evict: mode, TTLSeconds: ttl.Seconds()}}
}

// A dataset's rule goes before the worker's; it is known to the next life, and
// ends when a whole list has it no more.
func TestRulesOfDatasets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := replayFor(t, 10, 20, time.Hour)
		b := a.another(3)
		if err := a.n.Mounted(b.id, "b", 1); err != nil { // so that its name is known
			t.Fatal(err)
		}
		if err := a.n.Mounted(b.id, "b", -1); err != nil {
			t.Fatal(err)
		}
		tell := func(whole bool, rs ...api.EvictionRule) {
			t.Helper()
			if err := a.n.PutRules(api.RulesRequest{Rules: rs, All: whole}); err != nil {
				t.Fatal(err)
			}
		}
		here := func(when string, wantA, wantB int) {
			t.Helper()
			synctest.Wait()
			if na, nb := len(a.set.here()), len(b.set.here()); na != wantA || nb != wantB {
				t.Fatalf("%s %d shards of the first are here, want %d; of the second %d, want %d", when, na, wantA, nb, wantB)
			}
		}
		read := func() {
			a.hits(epochsOf(10, 1, false), 0)
			b.hits(epochsOf(3, 1, false), 0)
		}
		tell(false, rule("a", []stoker.ID{a.id}, "lfu", 4*time.Second), rule("b", nil, "", -time.Second))
		read()
		here("at first", 10, 3)
		if m, n := a.set.use.share.InForce(), b.set.use.share.InForce(); m != evict.LFUMode || n != evict.KeepMode {
			t.Errorf("in force are %s and %s", m, n)
		}
		time.Sleep(6 * time.Second) // of the bubble
		here("after 6 s", 0, 3)
		time.Sleep(100 * time.Hour)
		here("after 100 h", 0, 3)

		var next rules
		if err := next.restore(a.n.o.Store); err != nil {
			t.Fatal(err)
		}
		if x := next.of(a.id, ""); x.Evict != "lfu" || x.TTLSeconds != 4 {
			t.Errorf("the next life knows %+v", x)
		}
		if x := next.of(a.id, "another name"); !x.IsDefault() {
			t.Errorf("data of another dataset goes by %+v", x)
		}
		tell(false, rule("a", []stoker.ID{a.id}, "auto", 0)) // the default: only this one ends
		if _, ttl := a.n.ruleOf(b.id); ttl != 0 || a.set.use.share.InForce() != evict.KeepMode {
			t.Errorf("after another one's rule has ended the time to live is %v", ttl)
		}
		tell(true)
		read()
		if _, ttl := a.n.ruleOf(b.id); ttl != time.Hour {
			t.Errorf("after all rules have ended the time to live is %v", ttl)
		}
		time.Sleep(59 * time.Minute)
		here("after 59 min", 10, 3)
		time.Sleep(3 * time.Minute)
		here("after 62 min", 0, 0)

		for _, bad := range []api.EvictionRule{rule("a", nil, "lru", 0), rule("", nil, "lfu", 0)} {
			if err := a.n.PutRules(api.RulesRequest{Rules: []api.EvictionRule{bad}}); stoker.KindOf(err) != stoker.KindInvalid {
				t.Errorf("%+v: %v", bad, err)
			}
		}
	})
}
