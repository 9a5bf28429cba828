package guard

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"stoker.dev"
	"stoker.dev/ufs"
)

// request is one Open that a driver saw.
type request struct {
	key         string
	want        ufs.Version
	off, length int64
}

// driver is a file system of which a test says how each request ends; n counts
// them from 0.
type driver struct {
	stat func(ctx context.Context, n int) error
	open func(ctx context.Context, n int, r request) (io.ReadCloser, error)

	mu       sync.Mutex
	calls    int       // +checklocks:mu — of Stat and List
	requests []request // +checklocks:mu
}

func (d *driver) call() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.calls++
	return d.calls - 1
}

func (d *driver) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.calls
}

func (d *driver) Stat(ctx context.Context, key string) (ufs.Object, error) {
	return ufs.Object{Key: key}, d.stat(ctx, d.call())
}

func (d *driver) List(ctx context.Context, _ ufs.ListOptions) (ufs.Page, error) {
	return ufs.Page{Next: "next"}, d.stat(ctx, d.call())
}

func (d *driver) Open(ctx context.Context, key string, want ufs.Version, off, length int64) (io.ReadCloser, error) {
	r := request{key, want, off, length}
	d.mu.Lock()
	n := len(d.requests)
	d.requests = append(d.requests, r)
	d.mu.Unlock()
	return d.open(ctx, n, r)
}

func (d *driver) seen() []request {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.requests
}

func kind(k stoker.Kind) error { return stoker.Errorf(k, "test", "", "as told") }

// three are the requests that a guard makes, each with its own way to count tries.
var three = []struct {
	name  string
	do    func(context.Context, *FS) error
	tries func(*driver) int
}{
	{"stat", func(ctx context.Context, f *FS) error { _, err := f.Stat(ctx, "k"); return err }, (*driver).count},
	{"list", func(ctx context.Context, f *FS) error { _, err := f.List(ctx, ufs.ListOptions{}); return err }, (*driver).count},
	{"open", func(ctx context.Context, f *FS) error {
		r, err := f.Open(ctx, "k", ufs.Version{}, 0, 1)
		if err == nil {
			err = r.Close()
		}
		return err
	}, func(d *driver) int { return len(d.seen()) }},
}

// failing answers every request with what err gives for its number.
func failing(err func(ctx context.Context, n int) error) *driver {
	return &driver{stat: err, open: func(ctx context.Context, n int, _ request) (io.ReadCloser, error) {
		if err := err(ctx, n); err != nil {
			return nil, err
		}
		return &piece{body: []byte("x")}, nil
	}}
}

func TestOnlyTransientIsTriedAgain(t *testing.T) {
	for k := stoker.KindInternal; k <= stoker.KindIncomplete; k++ {
		for _, what := range three {
			synctest.Test(t, func(t *testing.T) {
				d := failing(func(context.Context, int) error { return kind(k) })
				want := 1
				if k == stoker.KindTransient {
					want = 4
				}
				start := time.Now()
				err := what.do(t.Context(), New(d, Options{Attempts: 4}))
				if got := what.tries(d); got != want || stoker.KindOf(err) != k {
					t.Errorf("%s, %v: %d tries, want %d (%v)", what.name, k, got, want, err)
				}
				if took := time.Since(start); want == 1 && took != 0 {
					t.Errorf("%s, %v: waited %v for nothing", what.name, k, took)
				}
			})
		}
	}
}

func TestSucceedsOnALaterTry(t *testing.T) {
	for _, what := range three {
		synctest.Test(t, func(t *testing.T) {
			d := failing(func(_ context.Context, n int) error {
				if n < 2 {
					return kind(stoker.KindTransient)
				}
				return nil
			})
			if err := what.do(t.Context(), New(d, Options{})); err != nil || what.tries(d) != 3 {
				t.Errorf("%s: %v", what.name, err)
			}
		})
	}
}

// Each wait is between half and all of BaseDelay, doubled each time up to MaxDelay.
func TestBackOffDoublesUpToItsLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var at []time.Duration
		start := time.Now()
		d := failing(func(context.Context, int) error {
			at = append(at, time.Since(start))
			return kind(stoker.KindTransient)
		})
		_ = three[0].do(t.Context(), New(d, Options{Attempts: 8, BaseDelay: time.Second, MaxDelay: 5 * time.Second}))
		if len(at) != 8 {
			t.Fatalf("%d tries", len(at))
		}
		for i, full := range []time.Duration{1, 2, 4, 5, 5, 5, 5} {
			full *= time.Second
			if wait := at[i+1] - at[i]; wait < full/2 || wait > full {
				t.Errorf("wait %d is %v, want %v to %v", i+1, wait, full/2, full)
			}
		}
	})
}

type later struct{ d time.Duration }

func (l later) Error() string             { return "slow down" }
func (l later) RetryAfter() time.Duration { return l.d }

func TestRetryAfterIsHonouredUpToAMinute(t *testing.T) {
	for _, c := range []struct{ asked, least, most time.Duration }{
		{7 * time.Second, 7 * time.Second, 7 * time.Second},
		{24 * time.Hour, time.Minute, time.Minute},
		{time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond}, // sooner than the guard's own wait
	} {
		synctest.Test(t, func(t *testing.T) {
			d := failing(func(_ context.Context, n int) error {
				if n == 0 {
					return &stoker.Error{Op: "test", Kind: stoker.KindTransient, Err: later{c.asked}}
				}
				return nil
			})
			start := time.Now()
			if err := three[2].do(t.Context(), New(d, Options{})); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(start); took < c.least || took > c.most {
				t.Errorf("asked to wait %v: waited %v", c.asked, took)
			}
		})
	}
}

func TestCancelStopsTheWaitAtOnce(t *testing.T) {
	for _, what := range three {
		synctest.Test(t, func(t *testing.T) {
			d := failing(func(context.Context, int) error {
				return &stoker.Error{Op: "test", Kind: stoker.KindTransient, Err: later{30 * time.Second}}
			})
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(time.Second, cancel)
			start := time.Now()
			err := what.do(ctx, New(d, Options{}))
			if took := time.Since(start); took != time.Second || !errors.Is(err, context.Canceled) || what.tries(d) != 1 {
				t.Errorf("%s: %v after %v", what.name, err, took)
			}
		})
	}
}

// A driver's error that comes because the caller gave up is not tried again.
func TestCanceledRequestIsNotTriedAgain(t *testing.T) {
	for _, what := range three {
		synctest.Test(t, func(t *testing.T) {
			d := failing(func(ctx context.Context, _ int) error {
				<-ctx.Done()
				return kind(stoker.KindTransient)
			})
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(time.Second, cancel)
			if err := what.do(ctx, New(d, Options{})); !errors.Is(err, context.Canceled) || what.tries(d) != 1 {
				t.Errorf("%s: %v", what.name, err)
			}
		})
	}
}

// A request that hangs before its answer is ended and tried again.
func TestHangIsTransient(t *testing.T) {
	for _, what := range three {
		synctest.Test(t, func(t *testing.T) {
			d := failing(func(ctx context.Context, _ int) error {
				<-ctx.Done()
				return ctx.Err()
			})
			start := time.Now()
			err := what.do(t.Context(), New(d, Options{Name: "http://far", Attempts: 3, HeaderWait: 10 * time.Second}))
			if err == nil || !strings.Contains(err.Error(), "http://far: no answer came in time (10s)") {
				t.Errorf("%s: the error names neither the store nor the time: %v", what.name, err)
			}
			if took := time.Since(start); stoker.KindOf(err) != stoker.KindTransient || what.tries(d) != 3 || took < 30*time.Second || took > 31*time.Second {
				t.Errorf("%s: %v after %v, %d tries", what.name, err, took, what.tries(d))
			}
		})
	}
}
