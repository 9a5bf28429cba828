package guard

import (
	"context"
	"io"
	"math"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"stoker.dev"
	"stoker.dev/ufs"
)

// ordered preloads with f in some streams, as the load l, until stop is called.
func ordered(ctx context.Context, f *FS, l *Load, streams int, length int64) (stop func()) {
	ctx, cancel := context.WithCancel(WithPriority(WithLoad(WithFlow(ctx, "set"), l), Preload))
	var wg sync.WaitGroup
	for range streams {
		wg.Go(func() {
			for ctx.Err() == nil {
				_ = readAll(ctx, f, length)
			}
		})
	}
	return func() { cancel(); wg.Wait() }
}

// rate is what f read in the next d, in bytes a second.
func rate(f *FS, d time.Duration) float64 {
	before := f.Total().Bytes.Load()
	<-time.After(d)
	return float64(f.Total().Bytes.Load()-before) / d.Seconds()
}

// A load keeps to its limit, whatever the sizes of its requests, and to another one
// as soon as it is set.
func TestLoadKeepsItsLimit(t *testing.T) {
	for name, length := range map[string]int64{"large": 8 << 20, "small": 10_000} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, l := New(large(), Options{}), NewLoad()
				l.Set(4e6, 0)
				stop := ordered(t.Context(), f, l, 16, length)
				for _, limit := range []float64{4e6, 1e6, 20e6} {
					l.Set(limit, 0)
					<-time.After(10 * time.Millisecond) // what is under way
					for range 3 {
						const window = 20
						if got := window * rate(f, window*time.Second); math.Abs(got-window*limit) > float64(length)+0.001*window*limit {
							t.Errorf("%.0f bytes in %d s, the limit is %.0f a second, a request has %d", got, window, limit, length)
						}
					}
				}
				l.Set(0, 0)
				if got := rate(f, 20*time.Millisecond); got < 30e6 {
					t.Errorf("without a limit %.0f bytes/s", got)
				}
				stop()
				if _, out := f.InFlight(); out != 0 {
					t.Errorf("%d are in flight in the end", out)
				}
			})
		})
	}
}

// A load that is held back keeps neither readers nor other loads from the store,
// and lets its work go on at once that a reader comes to wait for.
func TestLimitedLoadIsInNobodysWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, slow := New(large(), Options{MaxInFlight: 4}), NewLoad()
		slow.Set(1000, 0)
		stop := ordered(t.Context(), f, slow, 16, 8<<20)
		<-time.After(time.Minute)
		stopOther := ordered(t.Context(), f, NewLoad(), 4, 256<<10)
		if got := rate(f, time.Second); got < 30e6 {
			t.Errorf("another load gets %.0f bytes/s", got)
		}
		stopOther()
		u := NewUrgency(Preload)
		done := make(chan error, 1)
		go func() { done <- readAll(WithUrgency(WithLoad(t.Context(), slow), u), f, 8<<20) }()
		<-time.After(time.Minute)
		select {
		case err := <-done:
			t.Fatalf("it did not wait: %v", err)
		default:
		}
		began := time.Now()
		u.Join(Demand)
		if err := <-done; err != nil || time.Since(began) > 100*time.Millisecond {
			t.Errorf("a reader waited %v: %v", time.Since(began), err)
		}
		stop()
	})
}

// What an object that cannot be had was promised of a load's limit others get: who asks
// then waits for those alone that asked before and are served.
func TestWhatIsNotReadIsGivenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := failing(func(context.Context, int) error { return nil })
		d.open = func(_ context.Context, n int, r request) (io.ReadCloser, error) {
			if n == 0 {
				return nil, kind(stoker.KindNotExist)
			}
			return &piece{body: make([]byte, r.length)}, nil
		}
		f, l := New(d, Options{}), NewLoad()
		l.Set(1e6, 0)
		began := time.Now()
		preload := func() error {
			return readAll(WithPriority(WithLoad(t.Context(), l), Preload), f, 8e6)
		}
		missing, second := make(chan error, 1), make(chan error, 1)
		go func() { missing <- preload() }()
		synctest.Wait()
		go func() { second <- preload() }()
		if err := <-missing; stoker.KindOf(err) != stoker.KindNotExist {
			t.Fatal(err)
		}
		if err := preload(); err != nil || time.Since(began) != 16*time.Second {
			t.Errorf("who asked behind a missing object had 8 MB, as another one, after %v: %v", time.Since(began), err)
		}
		if err := <-second; err != nil {
			t.Error(err)
		}
	})
}

// A load gets back what was taken from its limit, and no more: a reader takes nothing, and
// what a preload was promised that a reader came to wait for is given back once.
func TestOnlyWhatWasTakenIsGivenBack(t *testing.T) {
	for name, first := range map[string]Priority{"a reader": Demand, "a preload that a reader waits for": Preload} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, l := New(large(), Options{}), NewLoad()
				l.Set(1e6, 0)
				began := time.Now()
				preload := func() error {
					return readAll(WithPriority(WithLoad(t.Context(), l), Preload), f, 8e6)
				}
				earlier := make(chan error, 1)
				go func() { earlier <- preload() }()
				synctest.Wait()
				u := NewUrgency(first)
				opened := make(chan io.ReadCloser, 1)
				go func() {
					r, err := f.Open(WithUrgency(WithLoad(t.Context(), l), u), "k", ufs.Version{Bytes: 8e6}, 0, 8e6)
					if err != nil {
						t.Error(err)
					}
					opened <- r
				}()
				synctest.Wait()
				u.Join(Demand)
				if r := <-opened; r != nil {
					_ = r.Close() // nothing of it is read
				}
				if err := preload(); err != nil || time.Since(began) < 16*time.Second || time.Since(began) > 17*time.Second {
					t.Errorf("16 MB at 1 MB/s were there after %v: %v", time.Since(began), err)
				}
				if err := <-earlier; err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// Of the preloads that wait for a request those of the highest rank go first.
func TestRankOrdersRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := New(large(), Options{MaxInFlight: 1})
		low, high := NewLoad(), NewLoad()
		low.Set(0, 1)
		high.Set(0, 2)
		low2, high2 := New(large(), Options{Endpoint: f.at}), New(large(), Options{Endpoint: f.at})
		stopLow := ordered(t.Context(), low2, low, 4, 256<<10)
		stopHigh := ordered(t.Context(), high2, high, 4, 256<<10)
		<-time.After(time.Second)
		if l, h := low2.Total().Requests.Load(), high2.Total().Requests.Load(); l > 5 || h < 500 {
			t.Errorf("of the higher rank %d requests ran, of the lower one %d", h, l)
		}
		stopHigh()
		if got := rate(low2, time.Second); got == 0 {
			t.Error("the lower rank does not come next")
		}
		stopLow()
	})
}
