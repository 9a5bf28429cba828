// Package placementtest holds the suite that every placement index passes.
package placementtest

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"stoker.dev"
	"stoker.dev/cache/placement"
)

// Run runs the suite. fresh makes an empty index and says how its clock is
// moved on.
func Run(t *testing.T, fresh func(t *testing.T) (x placement.Index, advance func(time.Duration))) {
	for name, test := range map[string]func(*testing.T, placement.Index, func(time.Duration)){
		"Leases": testLeases, "Placements": testPlacements, "DeadPlacementsDoNotCount": testDead,
		"ForgottenRegistration": testForgotten, "Begun": testBegun, "Concurrent": testConcurrent,
	} {
		t.Run(name, func(t *testing.T) {
			x, advance := fresh(t)
			test(t, x, advance)
		})
	}
}

const ttl = 300 * time.Millisecond

func worker(i int) placement.Worker {
	return placement.Worker{
		ID: fmt.Sprintf("worker-%d", i), Incarnation: stoker.NewIncarnation(), Address: fmt.Sprintf("http://127.0.0.1:%d", 7000+i),
		Socket: "/run/stoker/worker.sock", PID: 100 + i, CapacityBytes: 1 << 40, UsedBytes: int64(i), ReservedBytes: 7,
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func ids(t *testing.T, x placement.Index) []string {
	t.Helper()
	ws, err := x.Workers(t.Context())
	must(t, err)
	out := []string{}
	for _, w := range ws {
		out = append(out, w.ID)
	}
	return out
}

func testLeases(t *testing.T, x placement.Index, advance func(time.Duration)) {
	a, b := worker(1), worker(2)
	must(t, x.Register(t.Context(), a, ttl))
	must(t, x.Register(t.Context(), b, time.Hour))
	ws, err := x.Workers(t.Context())
	must(t, err)
	if !slices.Equal(ws, []placement.Worker{a, b}) {
		t.Fatalf("workers %+v", ws)
	}
	b.UsedBytes = 1 << 30
	if known, err := x.Renew(t.Context(), b, time.Hour); err != nil || !known {
		t.Fatalf("renew: %v, %v", known, err)
	}
	advance(2 * ttl)
	if ws, err = x.Workers(t.Context()); err != nil || !slices.Equal(ws, []placement.Worker{b}) {
		t.Errorf("after a lease has ended: %+v, %v", ws, err)
	}
	if known, err := x.Renew(t.Context(), a, ttl); err != nil || known {
		t.Errorf("an ended lease is renewed: %v, %v", known, err)
	}
	must(t, x.Leave(t.Context(), b.Incarnation))
	must(t, x.Leave(t.Context(), b.Incarnation))
	if got := ids(t, x); len(got) != 0 {
		t.Errorf("after leave: %v", got)
	}
}

// holders gives "worker:whole" of each shard, sorted.
func holders(t *testing.T, x placement.Index, m stoker.ID, names map[stoker.Incarnation]string, shards ...uint32) [][]string {
	t.Helper()
	hs, err := x.Holders(t.Context(), m, shards)
	must(t, err)
	if len(hs) != len(shards) {
		t.Fatalf("%d answers for %d shards", len(hs), len(shards))
	}
	out := make([][]string, len(hs))
	for i := range hs {
		for _, h := range hs[i] {
			out[i] = append(out[i], fmt.Sprintf("%s:%v", names[h.Incarnation], h.Whole))
		}
		slices.Sort(out[i])
	}
	return out
}

func want(t *testing.T, got [][]string, wanted ...[]string) {
	t.Helper()
	if !slices.EqualFunc(got, wanted, slices.Equal) {
		t.Errorf("holders %v, want %v", got, wanted)
	}
}

func testPlacements(t *testing.T, x placement.Index, _ func(time.Duration)) {
	a, b := worker(1), worker(2)
	names := map[stoker.Incarnation]string{a.Incarnation: "a", b.Incarnation: "b"}
	must(t, x.Register(t.Context(), a, time.Hour))
	must(t, x.Register(t.Context(), b, time.Hour))
	m, other := stoker.ID{1}, stoker.ID{2}
	must(t, x.Announce(t.Context(), a.Incarnation, m, []placement.Mark{{Shard: 0, Whole: true}, {Shard: 31}, {Shard: 32, Whole: true}, {Shard: 1_000_000, Whole: true}}))
	must(t, x.Announce(t.Context(), b.Incarnation, m, []placement.Mark{{Shard: 0}, {Shard: 31, Whole: true}}))
	must(t, x.Announce(t.Context(), b.Incarnation, other, []placement.Mark{{Shard: 5, Whole: true}}))
	must(t, x.Announce(t.Context(), b.Incarnation, other, nil))
	want(t, holders(t, x, m, names, 0, 31, 32, 1_000_000, 5, 0),
		[]string{"a:true", "b:false"}, []string{"a:false", "b:true"}, []string{"a:true"}, []string{"a:true"}, nil, []string{"a:true", "b:false"})
	must(t, x.Announce(t.Context(), b.Incarnation, m, []placement.Mark{{Shard: 0, Whole: true}}))
	must(t, x.Withdraw(t.Context(), a.Incarnation, m, []uint32{0, 32, 99}))
	want(t, holders(t, x, m, names, 0, 32, 31), []string{"b:true"}, nil, []string{"a:false", "b:true"})
	want(t, holders(t, x, other, names, 5), []string{"b:true"})
	if hs, err := x.Holders(t.Context(), m, nil); err != nil || len(hs) != 0 {
		t.Errorf("no shards asked: %v, %v", hs, err)
	}
}

// The next life of a worker has another incarnation: what the dead one
// announced does not count, without anybody deleting it.
func testDead(t *testing.T, x placement.Index, advance func(time.Duration)) {
	a := worker(1)
	m := stoker.ID{1}
	must(t, x.Register(t.Context(), a, ttl))
	must(t, x.Announce(t.Context(), a.Incarnation, m, []placement.Mark{{Shard: 3, Whole: true}}))
	advance(2 * ttl)
	next := a
	next.Incarnation = stoker.NewIncarnation()
	must(t, x.Register(t.Context(), next, time.Hour))
	names := map[stoker.Incarnation]string{a.Incarnation: "old", next.Incarnation: "new"}
	want(t, holders(t, x, m, names, 3), nil)
	must(t, x.Announce(t.Context(), next.Incarnation, m, []placement.Mark{{Shard: 3}}))
	want(t, holders(t, x, m, names, 3), []string{"new:false"})
}

func testForgotten(t *testing.T, x placement.Index, _ func(time.Duration)) {
	if known, err := x.Renew(t.Context(), worker(1), time.Hour); err != nil || known {
		t.Errorf("an index that knows nobody renews: %v, %v", known, err)
	}
	if got := ids(t, x); len(got) != 0 {
		t.Errorf("a refused renewal registers %v", got)
	}
}

func testConcurrent(t *testing.T, x placement.Index, _ func(time.Duration)) {
	const n, shards = 8, 200
	m := stoker.ID{9}
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			w := worker(i)
			if err := x.Register(t.Context(), w, time.Hour); err != nil {
				t.Error(err)
			}
			for s := range uint32(shards) {
				if err := x.Announce(t.Context(), w.Incarnation, m, []placement.Mark{{Shard: s, Whole: s%2 == 0}}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for s := range uint32(shards) {
		hs, err := x.Holders(t.Context(), m, []uint32{s})
		if err != nil || len(hs[0]) != n {
			t.Fatalf("shard %d has %d holders (%v), want %d", s, len(hs[0]), err, n)
		}
	}
}

// What a worker had begun is known after its death, over all its lives; of a
// worker that was never seen, or that left, nothing is.
func testBegun(t *testing.T, x placement.Index, advance func(time.Duration)) {
	m, first, second := stoker.ID{9}, worker(1), worker(1)
	must(t, x.Register(t.Context(), first, ttl))
	must(t, x.Announce(t.Context(), first.Incarnation, m, []placement.Mark{{Shard: 3}, {Shard: 40, Whole: true}}))
	must(t, x.Register(t.Context(), second, ttl))
	must(t, x.Announce(t.Context(), second.Incarnation, m, []placement.Mark{{Shard: 70}}))
	must(t, x.Register(t.Context(), worker(2), time.Hour))
	advance(2 * ttl)
	got, known, err := x.Begun(t.Context(), "worker-1", m, []uint32{70, 2, 3, 40, 41})
	must(t, err)
	if want := []bool{true, false, true, true, false}; !known || !slices.Equal(got, want) {
		t.Errorf("begun %v (known %v), want %v", got, known, want)
	}
	if got, known, err = x.Begun(t.Context(), "worker-1", stoker.ID{8}, []uint32{3}); err != nil || !known || got[0] {
		t.Errorf("another manifest: %v, %v, %v", got, known, err)
	}
	if _, known, err = x.Begun(t.Context(), "worker-3", m, []uint32{3}); err != nil || known {
		t.Errorf("a worker that was never seen: known %v, %v", known, err)
	}
	must(t, x.Leave(t.Context(), first.Incarnation))
	must(t, x.Leave(t.Context(), second.Incarnation))
	if _, known, err = x.Begun(t.Context(), "worker-1", m, []uint32{3}); err != nil || known {
		t.Errorf("a worker that left: known %v, %v", known, err)
	}
}
