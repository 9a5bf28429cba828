package guard

import (
	"bytes"
	"context"
	"io"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"stoker.dev"
	"stoker.dev/ufs"
)

// lateStore answers each request after what late says for its number.
type lateStore struct {
	n    atomic.Int64
	late func(n int) time.Duration
	body func(ctx context.Context, n int, r request) io.ReadCloser // nil = the bytes asked for
	open atomic.Int64                                              // bodies not closed
	gone atomic.Int64                                              // requests that were cancelled before their answer
}

func (s *lateStore) Stat(context.Context, string) (ufs.Object, error) { return ufs.Object{}, nil }

func (s *lateStore) List(context.Context, ufs.ListOptions) (ufs.Page, error) {
	return ufs.Page{}, nil
}

func (s *lateStore) Open(ctx context.Context, key string, want ufs.Version, off, length int64) (io.ReadCloser, error) {
	n := int(s.n.Add(1) - 1)
	select {
	case <-time.After(s.late(n)):
	case <-ctx.Done():
		s.gone.Add(1)
		return nil, ctx.Err()
	}
	s.open.Add(1)
	if s.body != nil {
		return &closing{s.body(ctx, n, request{key, want, off, length}), s}, nil
	}
	return &closing{&piece{body: numbers(1000)[off : off+length]}, s}, nil
}

type closing struct {
	io.ReadCloser
	s *lateStore
}

func (c *closing) Close() error { c.s.open.Add(-1); return c.ReadCloser.Close() }

// warm lets the guard learn that answers begin after 10 ms.
func warm(t *testing.T, f *FS, requests int) {
	t.Helper()
	for range requests {
		if err := read(t.Context(), f); err != nil {
			t.Fatal(err)
		}
	}
}

// A read that is waited for and gets no answer within the 95th percentile is
// asked for again; the first good answer wins, the other one is cancelled.
func TestDemandIsHedged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &lateStore{late: func(n int) time.Duration {
			if n == 100 {
				return 20 * time.Second
			}
			return 40 * time.Millisecond
		}}
		f := New(s, Options{})
		warm(t, f, 100)
		var c Count
		start := time.Now()
		if err := read(WithCount(WithPriority(t.Context(), Demand), &c), f); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took != 80*time.Millisecond {
			t.Errorf("took %v, want the percentile and an answer, 40 ms each", took)
		}
		if c.Requests.Load() != 2 || c.Hedges.Load() != 1 || c.Bytes.Load() != 10 || c.HedgedBytes.Load() != 0 || s.gone.Load() != 1 || s.open.Load() != 0 {
			t.Errorf("%d requests, %d hedges, %d bytes, %d of losers; %d cancelled, %d open",
				c.Requests.Load(), c.Hedges.Load(), c.Bytes.Load(), c.HedgedBytes.Load(), s.gone.Load(), s.open.Load())
		}
		if _, out := f.InFlight(); out != 0 {
			t.Errorf("%d slots are kept", out)
		}
	})
}

// What the slower request has brought counts as hedged.
func TestLosersBytesAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &lateStore{late: func(int) time.Duration { return 10 * time.Millisecond }}
		s.body = func(_ context.Context, n int, r request) io.ReadCloser {
			p := &piece{body: numbers(1000)[r.off : r.off+r.length]}
			if n >= 100 { // both bring their bytes at the same moment
				return &waits{p, time.Second}
			}
			return p
		}
		f := New(s, Options{})
		warm(t, f, 100)
		f.health.p95 = 10 * time.Millisecond
		s.late = func(n int) time.Duration { return []time.Duration{20 * time.Millisecond, 0}[n-100] }
		var c Count
		if err := read(WithCount(WithPriority(t.Context(), Demand), &c), f); err != nil {
			t.Fatal(err)
		}
		if c.Hedges.Load() != 1 || c.HedgedBytes.Load() != 10 || c.Bytes.Load() != 20 || s.open.Load() != 0 {
			t.Errorf("%d hedges, %d bytes, %d of them hedged, %d open", c.Hedges.Load(), c.Bytes.Load(), c.HedgedBytes.Load(), s.open.Load())
		}
	})
}

// waits gives its bytes after a while, whatever becomes of its request.
type waits struct {
	*piece
	d time.Duration
}

func (w *waits) Read(p []byte) (int, error) {
	time.Sleep(w.d) // of the bubble's clock
	w.d = 0
	return w.piece.Read(p)
}

// Reads ahead and preloads are never hedged, and at most one request in
// twenty is a hedge, however slow the store has become.
func TestHedgesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &lateStore{late: func(int) time.Duration { return 10 * time.Millisecond }}
		f := New(s, Options{})
		warm(t, f, 40)
		s.late = func(n int) time.Duration { return time.Duration(n%7+1) * 30 * time.Millisecond } // always late, and not alike
		for _, p := range []Priority{Prefetch, Preload, Repair} {
			for range 100 {
				if err := read(WithPriority(t.Context(), p), f); err != nil {
					t.Fatal(err)
				}
			}
		}
		if n := f.Total().Hedges.Load(); n != 0 {
			t.Fatalf("%d hedges without demand", n)
		}
		f.health.hedges = 0
		for range 1000 {
			f.health.p95 = time.Millisecond
			if err := read(WithPriority(t.Context(), Demand), f); err != nil {
				t.Fatal(err)
			}
		}
		if n := f.Total().Hedges.Load(); n < 40 || n > 50 {
			t.Errorf("%d hedges of 1000 requests", n)
		}
	})
}

// A definite answer ends the race at once; one that may pass does not.
func TestRaceOfErrors(t *testing.T) {
	for _, c := range []struct {
		kind  stoker.Kind
		fails int // number of the request that fails
		want  stoker.Kind
	}{
		{stoker.KindStale, 100, stoker.KindStale}, {stoker.KindStale, 101, stoker.KindStale},
		{stoker.KindTransient, 100, 0}, {stoker.KindTransient, 101, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			s := &lateStore{late: func(int) time.Duration { return 10 * time.Millisecond }}
			f := New(&failAt{s, c.fails, kind(c.kind)}, Options{})
			warm(t, f, 100)
			second := 2 * time.Second // after the first one has failed
			if c.fails == 101 {
				second = 100 * time.Millisecond
			}
			s.late = func(n int) time.Duration { return []time.Duration{time.Second, second}[n-100] }
			err := read(WithPriority(t.Context(), Demand), f)
			if c.want == 0 && err != nil || c.want != 0 && stoker.KindOf(err) != c.want {
				t.Errorf("%v of request %d: %v", c.kind, c.fails, err)
			}
			if n := s.n.Load(); n != 102 || s.open.Load() != 0 {
				t.Errorf("%v of request %d: %d requests, %d bodies open", c.kind, c.fails, n, s.open.Load())
			}
		})
	}
}

// failAt lets one request end in an error once its answer is due.
type failAt struct {
	*lateStore
	at  int
	err error
}

func (s *failAt) Open(ctx context.Context, key string, want ufs.Version, off, length int64) (io.ReadCloser, error) {
	n := int(s.n.Load())
	r, err := s.lateStore.Open(ctx, key, want, off, length)
	if n == s.at && err == nil {
		_ = r.Close()
		return nil, s.err
	}
	return r, err
}

// A caller that leaves in mid-race leaves nothing behind.
func TestRaceIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &lateStore{late: func(n int) time.Duration {
			if n >= 100 {
				return time.Hour
			}
			return 10 * time.Millisecond
		}}
		f := New(s, Options{HeaderWait: 2 * time.Hour})
		warm(t, f, 100)
		ctx, cancel := context.WithTimeout(WithPriority(t.Context(), Demand), time.Second)
		defer cancel()
		if err := read(ctx, f); err != context.DeadlineExceeded {
			t.Error(err)
		}
		if _, out := f.InFlight(); out != 0 || s.gone.Load() != 2 {
			t.Errorf("%d slots are kept, %d requests were cancelled", out, s.gone.Load())
		}
	})
}

// A body that stalls under a reader goes on by another connection after a
// bound that was measured, not after Stall; nothing is read twice.
func TestStalledDemandMovesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &lateStore{late: func(int) time.Duration { return 10 * time.Millisecond }}
		s.body = func(ctx context.Context, n int, r request) io.ReadCloser {
			data := numbers(1000)[r.off : r.off+r.length]
			if n >= 100 && n < 102 {
				return &piece{body: data[:3], hang: ctx.Done()}
			}
			return &piece{body: data}
		}
		f := New(s, Options{})
		warm(t, f, 100)
		var c Count
		start := time.Now()
		r, err := f.Open(WithCount(WithPriority(t.Context(), Demand), &c), "k", ufs.Version{Bytes: 10}, 0, 10)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		got, err := io.ReadAll(r)
		if took := time.Since(start); err != nil || !bytes.Equal(got, numbers(10)) || took > 4*time.Second || took < 3*time.Second {
			t.Errorf("%v, %v after %v, want about 1 + 2 s", got, err, took)
		}
		if c.Bytes.Load() != 10 || c.Requests.Load() != 3 || c.RetriedBytes.Load() != 0 {
			t.Errorf("%d bytes in %d requests, %d of no use", c.Bytes.Load(), c.Requests.Load(), c.RetriedBytes.Load())
		}
	})
}
