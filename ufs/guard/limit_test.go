package guard

import (
	"context"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"stoker.dev"
	"stoker.dev/ufs"
)

// busyError is an answer 503.
type busyError struct{ error }

func (busyError) Throttled() bool { return true }
func (e busyError) Unwrap() error { return e.error }

func busy() error { return busyError{kind(stoker.KindTransient)} }

// narrow is a store that serves at most most requests at a time, each for
// took, and answers 503 to all beyond.
type narrow struct {
	most, in        atomic.Int64
	served, refused atomic.Int64
	took            time.Duration
}

func (s *narrow) Stat(context.Context, string) (ufs.Object, error) { return ufs.Object{}, nil }

func (s *narrow) List(context.Context, ufs.ListOptions) (ufs.Page, error) { return ufs.Page{}, nil }

func (s *narrow) Open(_ context.Context, _ string, _ ufs.Version, _, length int64) (io.ReadCloser, error) {
	if s.in.Add(1) > s.most.Load() {
		s.in.Add(-1)
		s.refused.Add(1)
		return nil, busy()
	}
	time.Sleep(s.took) // of the bubble's clock
	s.served.Add(1)
	return &served{piece: piece{body: numbers(int(length))}, s: s}, nil
}

type served struct {
	piece
	s *narrow
}

func (b *served) Close() error { b.s.in.Add(-1); return nil }

// read reads one object to its end.
func read(ctx context.Context, f *FS) error {
	r, err := f.Open(ctx, "k", ufs.Version{Bytes: 10}, 0, 10)
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.ReadAll(r)
	return err
}

// A store that serves 10 requests at a time and refuses all beyond is soon
// asked about that many at a time; few requests are refused; once it serves
// all, the limit comes back to its most.
func TestConcurrencyFollowsTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &narrow{took: 50 * time.Millisecond}
		s.most.Store(10)
		f := New(s, Options{MaxInFlight: 64})
		ctx, stop := context.WithCancel(WithPriority(t.Context(), Preload))
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				for ctx.Err() == nil {
					if err := read(ctx, f); err != nil && ctx.Err() == nil {
						t.Error(err)
					}
				}
			})
		}
		<-time.After(10 * time.Second) // it has settled
		s.served.Store(0)
		s.refused.Store(0)
		sum, samples := 0, 0
		for range 600 {
			<-time.After(97 * time.Millisecond)
			limit, _ := f.InFlight()
			sum, samples = sum+limit, samples+1
		}
		served, refused := s.served.Load(), s.refused.Load()
		if mean := float64(sum) / float64(samples); mean < 7 || mean > 11 {
			t.Errorf("the limit is %.1f in the mean, the store serves 10", mean)
		}
		if share := float64(refused) / float64(served); share > 0.05 || refused == 0 {
			t.Errorf("%d of %d requests were refused", refused, served)
		}
		if rate := float64(served) / 58.2; rate < 0.7*10/0.05 {
			t.Errorf("%.0f requests/s, the store serves 200", rate)
		}
		s.most.Store(1000)
		<-time.After(10 * time.Second)
		if limit, _ := f.InFlight(); limit != 64 {
			t.Errorf("the limit is %d after the store recovered", limit)
		}
		stop()
		wg.Wait()
	})
}

// Whoever waits in the queue is served by priority, not by arrival, also if
// the priority was raised while he waited; only what runs already is waited
// for. Who gives up leaves no gap.
func TestDemandGoesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var order []string
		d := &driver{open: func(_ context.Context, _ int, r request) (io.ReadCloser, error) {
			mu.Lock()
			defer mu.Unlock()
			order = append(order, r.key)
			return &piece{body: []byte("x")}, nil
		}}
		f := New(d, Options{MaxInFlight: 1})
		running, err := f.Open(t.Context(), "running", ufs.Version{}, 0, 1)
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wait := func(ctx context.Context, key string) {
			wg.Go(func() {
				r, err := f.Open(ctx, key, ufs.Version{}, 0, 1)
				if err == nil {
					_ = r.Close()
				} else if ctx.Err() == nil {
					t.Error(err)
				}
			})
			synctest.Wait() // it is in the queue
		}
		raised := NewUrgency(Repair)
		gone, leave := context.WithCancel(WithPriority(t.Context(), Demand))
		wait(WithPriority(t.Context(), Repair), "repair")
		wait(WithPriority(t.Context(), Preload), "preload")
		wait(WithUrgency(t.Context(), raised), "raised")
		wait(WithPriority(t.Context(), Prefetch), "prefetch")
		wait(gone, "gone")
		wait(WithPriority(t.Context(), Demand), "demand 1")
		wait(WithPriority(t.Context(), Demand), "demand 2")
		raised.Join(Demand)
		leave()
		synctest.Wait()
		if len(order) != 1 {
			t.Fatalf("%q ran beside a request that takes all", order)
		}
		_ = running.Close()
		wg.Wait()
		want := []string{"running", "raised", "demand 1", "demand 2", "prefetch", "preload", "repair"}
		for i := range want {
			if i >= len(order) || order[i] != want[i] {
				t.Fatalf("order %q, want %q", order, want)
			}
		}
	})
}

// One round of refusals cuts the limit once, however many were refused.
func TestARoundCutsOnce(t *testing.T) {
	l := newLimiter(16)
	var out []*ticket
	for range 16 {
		tk, err := l.take(t.Context(), nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, tk)
	}
	for _, tk := range out {
		l.cut(tk)
		l.give()
	}
	if limit, n := l.now(); limit != 12 || n != 0 {
		t.Errorf("limit %d, %d out", limit, n)
	}
}
