package guard

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"stoker.dev"
	"stoker.dev/ufs"
)

// piece is a body that gives its bytes and then err, together with the last
// ones if joined says so. hang makes it wait for the end of a context first.
type piece struct {
	body   []byte
	err    error // nil = io.EOF
	joined bool
	hang   <-chan struct{}
	closed int
}

func (p *piece) Read(b []byte) (int, error) {
	if len(p.body) == 0 && p.hang != nil {
		<-p.hang
		return 0, errors.New("connection torn down")
	}
	n := copy(b, p.body)
	p.body = p.body[n:]
	err := p.err
	if err == nil {
		err = io.EOF
	}
	if n > 0 && (len(p.body) > 0 || !p.joined) {
		err = nil
	}
	return n, err
}

func (p *piece) Close() error { p.closed++; return nil }

func numbers(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i)
	}
	return b
}

// A body that breaks off goes on at the byte where it broke, with the same
// condition; nothing is read twice, and the counters say exactly what happened.
func TestBodyResumesWhereItBroke(t *testing.T) {
	for name, broke := range map[string]piece{
		"end too early":       {},
		"unexpected EOF":      {err: io.ErrUnexpectedEOF},
		"reset":               {err: errors.New("connection reset by peer")},
		"transient":           {err: kind(stoker.KindTransient)},
		"error with the data": {err: io.ErrUnexpectedEOF, joined: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				data := numbers(100)
				cuts := []int64{30, 0, 45} // bytes that each request gives before it breaks
				var pieces []*piece
				d := &driver{open: func(_ context.Context, n int, r request) (io.ReadCloser, error) {
					p := &piece{body: data[r.off : r.off+r.length]}
					if n < len(cuts) {
						p = &piece{body: data[r.off : r.off+cuts[n]], err: broke.err, joined: broke.joined}
					}
					pieces = append(pieces, p)
					return p, nil
				}}
				v := ufs.Version{Tag: `"v1"`, Bytes: 100}
				var count Count
				f := New(d, Options{})
				r, err := f.Open(WithCount(t.Context(), &count), "a/key", v, 10, 85)
				if err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(r)
				if err != nil || !bytes.Equal(got, data[10:95]) {
					t.Fatalf("read %d bytes: %v", len(got), err)
				}
				if err := r.Close(); err != nil {
					t.Fatal(err)
				}
				want := []request{{"a/key", v, 10, 85}, {"a/key", v, 40, 55}, {"a/key", v, 40, 55}, {"a/key", v, 85, 10}}
				if s := d.seen(); len(s) != len(want) || s[0] != want[0] || s[1] != want[1] || s[2] != want[2] || s[3] != want[3] {
					t.Errorf("requests %v, want %v", s, want)
				}
				for i, p := range pieces {
					if p.closed != 1 {
						t.Errorf("body %d was closed %d times", i, p.closed)
					}
				}
				for _, c := range []*Count{&count, f.Total()} {
					if c.Requests.Load() != 4 || c.Bytes.Load() != 85 || c.RetriedBytes.Load() != 0 || c.Lists.Load() != 0 {
						t.Errorf("counted %d requests, %d bytes, %d retried, %d lists", c.Requests.Load(), c.Bytes.Load(), c.RetriedBytes.Load(), c.Lists.Load())
					}
				}
			})
		})
	}
}

// A counter belongs to the requests of its context alone; the total has all.
func TestCountersOfContexts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := failing(func(context.Context, int) error { return nil })
		f := New(d, Options{})
		var one, two Count
		for _, c := range []*Count{&one, &two, &two} {
			r, err := f.Open(WithCount(t.Context(), c), "k", ufs.Version{}, 0, 1)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadAll(r); err != nil {
				t.Fatal(err)
			}
			_ = r.Close()
			if _, err := f.List(WithCount(t.Context(), c), ufs.ListOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		for i, c := range []*Count{f.Total(), &one, &two} {
			want := []int64{3, 1, 2}[i]
			if c.Requests.Load() != want || c.Bytes.Load() != want || c.Lists.Load() != want {
				t.Errorf("counter %d: %d requests, %d bytes, %d lists, want %d each", i, c.Requests.Load(), c.Bytes.Load(), c.Lists.Load(), want)
			}
		}
	})
}

// A body of an object that changed is not resumed, and stays failed.
func TestStaleBodyIsNotResumed(t *testing.T) {
	for _, k := range []stoker.Kind{stoker.KindStale, stoker.KindNotExist, stoker.KindDenied, stoker.KindInvalid} {
		synctest.Test(t, func(t *testing.T) {
			d := &driver{open: func(_ context.Context, n int, _ request) (io.ReadCloser, error) {
				if n > 0 {
					return nil, kind(k)
				}
				return &piece{body: []byte("abc"), err: io.ErrUnexpectedEOF}, nil
			}}
			f := New(d, Options{MaxInFlight: 1})
			r, err := f.Open(t.Context(), "k", ufs.Version{}, 0, 10)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(r)
			if string(got) != "abc" || stoker.KindOf(err) != k || len(d.seen()) != 2 {
				t.Errorf("%v: %q, %v after %d requests", k, got, err, len(d.seen()))
			}
			if _, again := r.Read(make([]byte, 1)); again != err {
				t.Errorf("the next read: %v", again)
			}
			_ = r.Close()
			if r, err = f.Open(t.Context(), "k", ufs.Version{}, 0, 10); stoker.KindOf(err) != k {
				t.Errorf("its slot, or that of the Open that failed, was kept: %v %v", r, err)
			}
		})
	}
}

// The tries of one body are bounded, however often it breaks.
func TestBodyGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &driver{open: func(context.Context, int, request) (io.ReadCloser, error) {
			return &piece{body: []byte("x"), err: io.ErrUnexpectedEOF}, nil
		}}
		r, err := New(d, Options{Attempts: 3}).Open(t.Context(), "k", ufs.Version{}, 0, 10)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		got, err := io.ReadAll(r)
		if len(got) != 3 || stoker.KindOf(err) != stoker.KindTransient || !errors.Is(err, io.ErrUnexpectedEOF) || len(d.seen()) != 3 {
			t.Errorf("%d bytes of %d requests: %v", len(got), len(d.seen()), err)
		}
	})
}

// A driver that gives more than was asked for does not spill over.
func TestBodyIsNeverLongerThanAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &driver{open: func(context.Context, int, request) (io.ReadCloser, error) { return &piece{body: numbers(50)}, nil }}
		r, err := New(d, Options{}).Open(t.Context(), "k", ufs.Version{}, 0, 20)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if got, err := io.ReadAll(r); err != nil || len(got) != 20 {
			t.Errorf("%d bytes, %v", len(got), err)
		}
	})
}

// A body that stops coming is broken off after Stall, and goes on by a new request.
func TestStalledBodyResumes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &driver{open: func(ctx context.Context, n int, r request) (io.ReadCloser, error) {
			if n == 0 {
				return &piece{body: []byte("abc"), hang: ctx.Done()}, nil
			}
			return &piece{body: []byte("defghij")}, nil
		}}
		r, err := New(d, Options{Stall: 20 * time.Second, HeaderWait: time.Second}).Open(t.Context(), "k", ufs.Version{}, 0, 10)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		start := time.Now()
		got, err := io.ReadAll(r)
		if took := time.Since(start); string(got) != "abcdefghij" || err != nil || took < 20*time.Second || took > 21*time.Second {
			t.Errorf("%q, %v after %v", got, err, took)
		}
		if s := d.seen(); len(s) != 2 || s[1].off != 3 || s[1].length != 7 {
			t.Errorf("requests %v", s)
		}
	})
}

// Stall is about the store: a caller that takes longer between two reads (its
// disk is slow) breaks nothing off.
func TestSlowCallerBreaksNothingOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &driver{open: func(ctx context.Context, _ int, r request) (io.ReadCloser, error) {
			return &watched{piece{body: numbers(int(r.length))}, ctx}, nil
		}}
		r, err := New(d, Options{Stall: time.Second, HeaderWait: time.Second}).Open(t.Context(), "k", ufs.Version{}, 0, 10)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		for range 10 {
			<-time.After(time.Minute)
			if n, err := r.Read(make([]byte, 1)); n != 1 || err != nil {
				t.Fatalf("%d, %v", n, err)
			}
		}
		if n := len(d.seen()); n != 1 {
			t.Errorf("%d requests", n)
		}
	})
}

// watched is a body that ends with its request's context, as HTTP's do.
type watched struct {
	piece
	ctx context.Context
}

func (w *watched) Read(b []byte) (int, error) {
	if err := w.ctx.Err(); err != nil {
		return 0, err
	}
	return w.piece.Read(b)
}

func TestCancelEndsAHangingRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &driver{open: func(ctx context.Context, n int, _ request) (io.ReadCloser, error) {
			return &piece{hang: ctx.Done()}, nil
		}}
		ctx, cancel := context.WithCancel(t.Context())
		r, err := New(d, Options{}).Open(ctx, "k", ufs.Version{}, 0, 10)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		time.AfterFunc(time.Second, cancel)
		start := time.Now()
		_, err = r.Read(make([]byte, 1))
		if took := time.Since(start); !errors.Is(err, context.Canceled) || took != time.Second || len(d.seen()) != 1 {
			t.Errorf("%v after %v, %d requests", err, took, len(d.seen()))
		}
	})
}

// No more bodies than MaxInFlight are open at a time; each gives its slot back
// once, however often it is closed; who waits for one can give up.
func TestRequestsInFlightAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := failing(func(context.Context, int) error { return nil })
		f := New(d, Options{MaxInFlight: 2})
		open := func(ctx context.Context) (io.ReadCloser, error) { return f.Open(ctx, "k", ufs.Version{}, 0, 1) }
		var held []io.ReadCloser
		for range 2 {
			r, err := open(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			held = append(held, r)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := open(ctx); !errors.Is(err, context.DeadlineExceeded) || len(d.seen()) != 2 {
			t.Fatalf("a third: %v, %d requests", err, len(d.seen()))
		}
		third, got := make(chan io.ReadCloser, 2), atomic.Int64{} // as many as may come
		for range 2 {
			go func() {
				r, err := open(t.Context())
				if err != nil {
					t.Error(err)
				}
				got.Add(1)
				third <- r
			}()
		}
		synctest.Wait()
		if n := got.Load(); n != 0 {
			t.Fatalf("%d more are open", n)
		}
		for range 3 {
			_ = held[0].Close()
		}
		synctest.Wait()
		if n := got.Load(); n != 1 {
			t.Fatalf("%d more are open after one was closed thrice", n)
		}
		_ = held[1].Close()
		for range 2 {
			_ = (<-third).Close()
		}
	})
}

func TestReadAfterCloseFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := failing(func(context.Context, int) error { return nil })
		r, err := New(d, Options{}).Open(t.Context(), "k", ufs.Version{}, 0, 1)
		if err != nil {
			t.Fatal(err)
		}
		_ = r.Close()
		if _, err := r.Read(make([]byte, 1)); stoker.KindOf(err) != stoker.KindInvalid || err == nil {
			t.Errorf("read after close: %v", err)
		}
	})
}
