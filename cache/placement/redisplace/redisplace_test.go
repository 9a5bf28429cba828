package redisplace

import (
	"context"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"

	"stoker.dev"
	"stoker.dev/cache/placement"
	"stoker.dev/cache/placement/placementtest"
	"stoker.dev/internal/testenv"
)

func open(t *testing.T, address string) *Index {
	t.Helper()
	x, err := Open(Options{Address: address, Prefix: "t" + stoker.NewToken()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = x.Close() })
	return x
}

func TestRedisServer(t *testing.T) {
	address := testenv.StartRedis(t)
	placementtest.Run(t, func(t *testing.T) (placement.Index, func(time.Duration)) {
		return open(t, address), func(d time.Duration) { <-time.After(d) } // its clock is another process's
	})
}

func TestInProcessRedis(t *testing.T) {
	placementtest.Run(t, func(t *testing.T) (placement.Index, func(time.Duration)) {
		m := miniredis.RunT(t)
		now := time.Now()
		m.SetTime(now)
		return open(t, m.Addr()), func(d time.Duration) { now = now.Add(d); m.SetTime(now) }
	})
}

// A Redis that lost everything says so at the next renewal, and is filled
// again by registering and announcing.
func TestFlushIsNoticed(t *testing.T) {
	x := open(t, testenv.StartRedis(t))
	ctx := t.Context()
	w := placement.Worker{ID: "w", Incarnation: 7}
	marks := []placement.Mark{{Shard: 1, Whole: true}}
	for _, err := range []error{x.Register(ctx, w, time.Hour), x.Announce(ctx, 7, stoker.ID{1}, marks), x.c.FlushAll(ctx).Err()} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if known, err := x.Renew(ctx, w, time.Hour); known || err != nil {
		t.Fatalf("after FLUSHALL: %v, %v", known, err)
	}
	if err := x.Register(ctx, w, time.Hour); err != nil {
		t.Fatal(err)
	}
	if err := x.Announce(ctx, 7, stoker.ID{1}, marks); err != nil {
		t.Fatal(err)
	}
	if hs, err := x.Holders(ctx, stoker.ID{1}, []uint32{1}); err != nil || len(hs[0]) != 1 {
		t.Errorf("%v, %v", hs, err)
	}
}

// Placements of a worker that was forgotten are deleted by whoever reads past
// them.
func TestForgottenPlacementsAreSwept(t *testing.T) {
	x := open(t, testenv.StartRedis(t))
	ctx := t.Context()
	if err := x.Announce(ctx, 9, stoker.ID{1}, []placement.Mark{{Shard: 1, Whole: true}}); err != nil {
		t.Fatal(err)
	}
	if hs, err := x.Holders(ctx, stoker.ID{1}, []uint32{1}); err != nil || len(hs[0]) != 0 {
		t.Fatalf("%v, %v", hs, err)
	}
	if n, err := x.c.Exists(ctx, x.group(stoker.ID{1}, 0)).Result(); err != nil || n != 0 {
		t.Errorf("the placement is still there (%d, %v)", n, err)
	}
}

// A million placements stay as compact as docs say.
func TestBytesPerPlacement(t *testing.T) {
	x := open(t, testenv.StartRedis(t))
	ctx := t.Context()
	const shards, holders = 32_000, 2
	marks := make([]placement.Mark, shards)
	for i := range marks {
		marks[i] = placement.Mark{Shard: uint32(i), Whole: true}
	}
	for n := range holders {
		if err := x.Announce(ctx, stoker.NewIncarnation(), stoker.ID{byte(n)}, marks); err != nil {
			t.Fatal(err)
		}
	}
	if enc, err := x.c.ObjectEncoding(ctx, x.group(stoker.ID{0}, 7)).Result(); err != nil || enc != "listpack" {
		t.Errorf("a group is kept as %q (%v), not as a listpack", enc, err)
	}
}

func TestNoServer(t *testing.T) {
	x := open(t, "127.0.0.1:1")
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, err := x.Workers(ctx); stoker.KindOf(err) != stoker.KindTransient {
		t.Errorf("workers: %v", err)
	}
	if _, err := Open(Options{Address: "nonsense"}); stoker.KindOf(err) != stoker.KindInvalid {
		t.Errorf("open: %v", err)
	}
}
