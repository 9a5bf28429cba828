package guard

import (
	"context"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"stoker.dev/ufs"
	"stoker.dev/ufs/budget"
)

// limited is an endpoint with a budget that this process has for itself.
func limited(t *testing.T, inFlight int, bytes, requests float64) (*Endpoint, *budget.Budgets) {
	b := budget.New(budget.Options{Limits: budget.Limits{Bytes: budget.Rules{{PerSecond: bytes}}, Requests: budget.Rules{{PerSecond: requests}}}})
	ctx, stop := context.WithCancel(t.Context())
	var run sync.WaitGroup
	run.Go(func() { b.Run(ctx) })
	t.Cleanup(func() { stop(); run.Wait() })
	return NewEndpoint(inFlight, b.Endpoint("store")), b
}

// large answers every request with as many bytes as it asks for.
func large() *driver {
	d := failing(func(context.Context, int) error { return nil })
	d.open = func(_ context.Context, _ int, r request) (io.ReadCloser, error) {
		<-time.After(time.Millisecond)
		return &piece{body: make([]byte, r.length)}, nil
	}
	return d
}

func readAll(ctx context.Context, f *FS, length int64) error {
	r, err := f.Open(ctx, "k", ufs.Version{Bytes: length}, 0, length)
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.Copy(io.Discard, r)
	return err
}

// All stores of an endpoint share one budget: neither bytes nor requests pass
// it, and each byte and each request is counted once.
func TestBudgetIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const bytes, requests = 50e6, 100
		at, b := limited(t, 64, bytes, requests)
		one, two := New(large(), Options{Endpoint: at}), New(large(), Options{Endpoint: at})
		ctx, stop := context.WithCancel(WithPriority(WithFlow(t.Context(), "set"), Preload))
		var wg sync.WaitGroup
		for _, f := range []*FS{one, two} {
			for range 8 {
				wg.Go(func() {
					for ctx.Err() == nil {
						_ = readAll(ctx, f, 4<<20)
					}
				})
			}
		}
		<-time.After(5 * time.Second)
		before := one.Total().Bytes.Load() + two.Total().Bytes.Load()
		<-time.After(10 * time.Second)
		got := float64(one.Total().Bytes.Load()+two.Total().Bytes.Load()-before) / 10
		if got < 0.95*bytes || got > 1.05*bytes {
			t.Errorf("%.0f bytes/s, the budget has %.0f", got, float64(bytes))
		}
		stop()
		wg.Wait()
		demand := WithPriority(t.Context(), Demand)
		for range 2 * fewestSamples { // the later ones may be hedged
			if err := readAll(demand, one, 100<<10); err != nil {
				t.Fatal(err)
			}
		}
		r, err := two.Open(demand, "k", ufs.Version{Bytes: 4 << 20}, 0, 4<<20)
		if err == nil {
			_, err = io.ReadFull(r, make([]byte, 40<<10)) // the rest is not taken
			_ = r.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
		u := b.Uses()[0]
		if sum := one.Total().Bytes.Load() + two.Total().Bytes.Load(); int64(u.Taken[budget.Bytes]) != sum {
			t.Errorf("the budget counted %.0f bytes, %d came", u.Taken[budget.Bytes], sum)
		}
		if asked := one.Total().Requests.Load() + two.Total().Requests.Load(); int64(u.Taken[budget.Requests]) < asked {
			t.Errorf("the budget counted %.0f requests, %d were sent", u.Taken[budget.Requests], asked)
		}

		small := New(large(), Options{Endpoint: at})
		ctx, stop = context.WithCancel(WithPriority(WithFlow(t.Context(), "set"), Preload))
		for range 16 {
			wg.Go(func() {
				for ctx.Err() == nil {
					_ = readAll(ctx, small, 1000)
					_, _ = small.List(ctx, ufs.ListOptions{}) // counts, too
				}
			})
		}
		<-time.After(5 * time.Second)
		before = small.Total().Requests.Load() + small.Total().Lists.Load()
		<-time.After(10 * time.Second)
		got = float64(small.Total().Requests.Load()+small.Total().Lists.Load()-before) / 10
		if got < 0.95*requests || got > 1.05*requests {
			t.Errorf("%.1f requests/s, the budget has %d", got, requests)
		}
		stop()
		wg.Wait()
	})
}

// A preload that uses the whole budget, and every request that may be in
// flight, keeps no reader waiting.
func TestDemandPassesAPreloadThatIsHeldBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		at, _ := limited(t, 4, 20e6, 1000)
		f := New(large(), Options{Endpoint: at})
		ctx, stop := context.WithCancel(WithPriority(WithFlow(t.Context(), "set"), Preload))
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				for ctx.Err() == nil {
					_ = readAll(ctx, f, 32<<20)
				}
			})
		}
		<-time.After(5 * time.Second)
		demand := WithPriority(WithFlow(t.Context(), "set"), Demand)
		for range 50 {
			began := time.Now()
			if err := readAll(demand, f, 256<<10); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(began); took > time.Millisecond {
				t.Fatalf("a reader waited %v", took)
			}
			<-time.After(50 * time.Millisecond)
		}
		if _, out := f.InFlight(); out > 8 {
			t.Errorf("%d requests are in flight, 4 may be", out)
		}
		stop()
		wg.Wait()
		if _, out := at.InFlight(); out != 0 || at.limit.idle != 0 {
			t.Errorf("%d are in flight in the end, %d held back", out, at.limit.idle)
		}
	})
}
