package guard

import (
	"context"
	"errors"
	"hash"
	"hash/crc32"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"stoker.dev"
	"stoker.dev/ufs"
)

// downError is a connection refused.
type downError struct{ error }

func (downError) NoAnswer() bool  { return true }
func (e downError) Unwrap() error { return e.error }

func down() error { return downError{kind(stoker.KindTransient)} }

// downUntil is a store that is down, in the way err says, until then.
func downUntil(d time.Duration, err func() error) *driver {
	up := time.Now().Add(d)
	return &driver{open: func(context.Context, int, request) (io.ReadCloser, error) {
		if time.Now().Before(up) {
			return nil, err()
		}
		return &piece{body: numbers(10)}, nil
	}}
}

// A preload waits for a store that is down, for minutes, says since when, and
// goes on when it is back; its context ends the wait. The tries are few.
func TestPreloadWaitsForTheStore(t *testing.T) {
	for name, err := range map[string]func() error{"refused": down, "busy": busy} {
		synctest.Test(t, func(t *testing.T) {
			d := downUntil(10*time.Minute, err)
			f := New(d, Options{})
			start := time.Now()
			var c Count
			done := make(chan error, 1)
			go func() { done <- read(WithCount(WithPriority(t.Context(), Preload), &c), f) }()
			<-time.After(time.Minute)
			if since := c.WaitingSince(); !since.Equal(start) {
				t.Errorf("%s: waits since %v, want %v", name, since, start)
			}
			if err := <-done; err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if took := time.Since(start); took < 10*time.Minute || took > 10*time.Minute+5*time.Second {
				t.Errorf("%s: went on after %v", name, took)
			}
			if since := c.WaitingSince(); !since.IsZero() {
				t.Errorf("%s: still waits, since %v", name, since)
			}
			if n := len(d.seen()); n > 250 {
				t.Errorf("%s: %d tries in 10 minutes", name, n)
			}
		})
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
			defer cancel()
			start := time.Now()
			err := read(WithPriority(ctx, Preload), New(downUntil(time.Hour, err), Options{}))
			if took := time.Since(start); !errors.Is(err, context.DeadlineExceeded) || took != 90*time.Second {
				t.Errorf("%s: %v after %v", name, err, took)
			}
		})
	}
}

// Patience is bounded: a reader waits a minute, a preload an hour, others try
// as often as the options say; a later read succeeds.
func TestPatienceEnds(t *testing.T) {
	for _, c := range []struct {
		p           Priority
		least, most time.Duration
	}{
		{Demand, time.Minute, 70 * time.Second}, {Preload, time.Hour, time.Hour + 10*time.Second},
		{Repair, time.Hour, time.Hour + 10*time.Second}, {Prefetch, 0, 10 * time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			f := New(downUntil(2*time.Hour, down), Options{})
			start := time.Now()
			err := read(WithPriority(t.Context(), c.p), f)
			if took := time.Since(start); stoker.KindOf(err) != stoker.KindTransient || took < c.least || took > c.most {
				t.Errorf("priority %d: %v after %v", c.p, err, took)
			}
			<-time.After(2 * time.Hour)
			if err := read(WithPriority(t.Context(), c.p), f); err != nil {
				t.Errorf("priority %d: a later read: %v", c.p, err)
			}
		})
	}
}

// An object that fails while the store answers others is not waited for.
func TestOneBadObjectIsNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &driver{open: func(_ context.Context, _ int, r request) (io.ReadCloser, error) {
			if r.key == "bad" {
				<-time.After(time.Second)
				return nil, down()
			}
			return &piece{body: numbers(10)}, nil
		}}
		f := New(d, Options{})
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			for ctx.Err() == nil {
				if err := read(ctx, f); err != nil && ctx.Err() == nil {
					t.Error(err)
				}
				<-time.After(100 * time.Millisecond)
			}
		}()
		start := time.Now()
		_, err := f.Open(WithPriority(t.Context(), Preload), "bad", ufs.Version{}, 0, 1)
		if took := time.Since(start); stoker.KindOf(err) != stoker.KindTransient || took > time.Minute {
			t.Errorf("%v after %v", err, took)
		}
		stop()
		<-ended
	})
}

// When many requests fail, retries beyond the budget are sent slowly.
func TestRetriesAreBudgeted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := failing(func(context.Context, int) error { return kind(stoker.KindTransient) })
		f := New(d, Options{MaxInFlight: 1000, Attempts: 1000})
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Second)
		defer cancel()
		const readers = 100
		for range readers {
			go func() { _ = read(ctx, f) }()
		}
		<-ctx.Done()
		synctest.Wait()
		// First tries, what is in hand, and one in 2.5 to 5 s for each.
		if n, most := len(d.seen()), readers+retriesInHand+readers/10+readers*40; n > most {
			t.Errorf("%d requests, want at most %d", n, most)
		}
		if n := f.health; n.mayHurry() {
			t.Error("the budget is not used up")
		}
	})
}

// summedPiece is a whole object with the store's checksum.
type summedPiece struct {
	piece
	sum []byte
}

func (s *summedPiece) Sum() (hash.Hash, []byte) { return crc32.NewIEEE(), s.sum }

// Bytes that do not match the store's checksum are asked for once more, then
// named; none of them is handed out. The sum goes on over a resumed body.
func TestWholeObjectIsChecked(t *testing.T) {
	const size = 600 << 10
	data := numbers(size)
	h := crc32.NewIEEE()
	_, _ = h.Write(data)
	bad := append([]byte(nil), data...)
	bad[size/2] ^= 1
	for _, c := range []struct {
		name    string
		bodies  [][]byte // of the first requests; nil breaks off half way
		corrupt bool
		retried int64
	}{
		{"right", nil, false, 0},
		{"wrong once", [][]byte{bad}, false, size},
		{"wrong twice", [][]byte{bad, bad}, true, 2 * size},
		{"resumed", [][]byte{nil}, false, 0},
	} {
		for _, chunk := range []int{size, 256 << 10, 1000} {
			synctest.Test(t, func(t *testing.T) {
				d := &driver{open: func(_ context.Context, n int, r request) (io.ReadCloser, error) {
					body := data
					if n < len(c.bodies) {
						if body = c.bodies[n]; body == nil {
							return &summedPiece{piece{body: data[:size/2], err: io.ErrUnexpectedEOF}, h.Sum(nil)}, nil
						}
					}
					if r.off > 0 {
						return &piece{body: body[r.off:]}, nil
					}
					return &summedPiece{piece{body: body}, h.Sum(nil)}, nil
				}}
				var count Count
				f := New(d, Options{})
				r, err := f.Open(WithCount(t.Context(), &count), "k", ufs.Version{Bytes: size}, 0, size)
				if err != nil {
					t.Fatal(err)
				}
				got, buf := []byte{}, make([]byte, chunk)
				for err == nil {
					var n int
					n, err = r.Read(buf)
					got = append(got, buf[:n]...)
				}
				if c.corrupt && (stoker.KindOf(err) != stoker.KindCorrupt || len(got) > 0) {
					t.Errorf("%s by %d: %d bytes, %v", c.name, chunk, len(got), err)
				}
				if !c.corrupt && (err != io.EOF || string(got) != string(data)) {
					t.Errorf("%s by %d: %d bytes, %v", c.name, chunk, len(got), err)
				}
				_ = r.Close()
				if count.RetriedBytes.Load() != c.retried || len(d.seen()) != 1+len(c.bodies)-map[bool]int{true: 1}[c.corrupt] {
					t.Errorf("%s by %d: %d bytes of no use, %d requests", c.name, chunk, count.RetriedBytes.Load(), len(d.seen()))
				}
				if !f.held.TryAcquire(heldBytes) {
					t.Errorf("%s by %d: memory is kept", c.name, chunk)
				}
			})
		}
	}
}

// Reads that hold bytes back wait for each other when there are too many.
func TestHeldBytesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data := numbers(mostHeld)
		h := crc32.NewIEEE()
		_, _ = h.Write(data)
		d := &driver{open: func(context.Context, int, request) (io.ReadCloser, error) {
			return &summedPiece{piece{body: data}, h.Sum(nil)}, nil
		}}
		f := New(d, Options{MaxInFlight: 100})
		begin := func() io.ReadCloser {
			r, err := f.Open(t.Context(), "k", ufs.Version{Bytes: mostHeld}, 0, mostHeld)
			if err == nil {
				_, err = r.Read(make([]byte, 1))
			}
			if err != nil {
				t.Error(err)
			}
			return r
		}
		var held []io.ReadCloser
		for range heldBytes / mostHeld {
			held = append(held, begin())
		}
		next := make(chan io.ReadCloser, 1)
		go func() { next <- begin() }()
		synctest.Wait()
		if len(next) != 0 {
			t.Error("more is held than is allowed")
		}
		_ = held[0].Close()
		_ = (<-next).Close()
		for _, r := range held[1:] {
			_ = r.Close()
		}
	})
}
