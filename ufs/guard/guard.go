// Package guard stands in front of a driver: it retries what may succeed on
// another try, resumes bodies that broke off, hedges reads that somebody waits
// for, checks whole objects against the store's checksum, bounds the requests
// in flight by what the store can take, keeps to the cluster's budget, ends
// what hangs, and counts. It is the
// one place where requests to an under file system are retried. A guard may be
// used from any goroutine.
package guard

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"time"

	"golang.org/x/sync/semaphore"

	"stoker.dev"
	"stoker.dev/ufs"
)

var _ ufs.FS = (*FS)(nil)

// Options tune a guard; the zero value is useful.
type Options struct {
	Name        string        // of the store, for errors; "" = "the store"
	Attempts    int           // tries of one request that the store answers, the first included; 0 = 5
	BaseDelay   time.Duration // before the second try, doubled each time; 0 = 100 ms
	MaxDelay    time.Duration // the longest wait; 0 = 5 s
	MaxInFlight int           // data requests at a time, at most; 0 = 128
	HeaderWait  time.Duration // for an answer to begin; 0 = 30 s
	Stall       time.Duration // a Read that gets no byte for so long breaks its body off; 0 = 30 s
	HedgeAfter  time.Duration // a read that is waited for is not hedged sooner; 0 = 20 ms
	DemandWait  time.Duration // how long such a read tries a store that does not answer at all; 0 = 60 s
	Patience    time.Duration // the same for preloads and repairs; 0 = 1 h
	Endpoint    *Endpoint     // shared with other stores of the same host; nil = its own, without a budget
}

func (o Options) withDefaults() Options {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	if o.Name == "" {
		o.Name = "the store"
	}
	if o.Attempts <= 0 {
		o.Attempts = 5
	}
	if o.MaxInFlight <= 0 {
		o.MaxInFlight = 128
	}
	def(&o.BaseDelay, 100*time.Millisecond)
	def(&o.MaxDelay, 5*time.Second)
	def(&o.HeaderWait, 30*time.Second)
	def(&o.Stall, 30*time.Second)
	def(&o.HedgeAfter, 20*time.Millisecond)
	def(&o.DemandWait, time.Minute)
	def(&o.Patience, time.Hour)
	return o
}

// heldBytes bounds what all reads of a store hold back until it is checked.
const heldBytes = 128 << 20

// FS is a guarded file system.
type FS struct {
	fs     ufs.FS
	o      Options
	at     *Endpoint
	health *health
	held   *semaphore.Weighted // bytes
	total  Count
}

// New guards fs.
func New(fs ufs.FS, o Options) *FS {
	o = o.withDefaults()
	if o.Endpoint == nil {
		o.Endpoint = NewEndpoint(o.MaxInFlight, nil)
	}
	return &FS{fs: fs, o: o, at: o.Endpoint, health: newHealth(), held: semaphore.NewWeighted(heldBytes)}
}

// Total returns the live counters of all requests.
func (f *FS) Total() *Count { return &f.total }

// InFlight returns how many data requests may be in flight at present, and how
// many are.
func (f *FS) InFlight() (limit, now int) { return f.at.limit.now() }

// What an error of a driver may say about a store, besides its kind.
type (
	retryAfter interface{ RetryAfter() time.Duration } // when to come back
	throttled  interface{ Throttled() bool }           // it has too much to do
	noAnswer   interface{ NoAnswer() bool }            // the store was not reached, or did not answer
)

// errHangs ends requests whose answer does not begin; errStalls is what a body
// that stops coming ends with.
var (
	errHangs  = errors.New("no answer came in time")
	errStalls = errors.New("nothing more came in time")
)

func isThrottled(err error) bool {
	var t throttled
	return errors.As(err, &t) && t.Throttled()
}

// silent reports whether err says nothing about the object, but that its store
// is not to be had at present: it throttles, or nobody had an answer since then.
func (f *FS) silent(err error, then time.Time) bool {
	var n noAnswer
	return isThrottled(err) || (errors.Is(err, errHangs) || errors.As(err, &n) && n.NoAnswer()) && !f.health.answeredSince(then)
}

// tries are those of one request.
type tries struct {
	began time.Time
	last  time.Time // when the last one began
	all   int       // that failed
	spent int       // of these, those of a store that answers
}

// again waits before the next try, or returns err if there is none. A try that
// failed because the store as a whole does not answer does not count while the
// caller has patience.
func (f *FS) again(ctx context.Context, t *tries, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if stoker.KindOf(err) != stoker.KindTransient {
		return err
	}
	patience, attempts := time.Duration(0), f.o.Attempts
	switch u := urgencyOf(ctx); {
	case u != nil && u.patient.Load():
		patience, attempts = f.o.Patience, 2*f.o.Attempts
	case u.demand():
		patience = f.o.DemandWait
	}
	if !f.silent(err, t.last) {
		if t.spent++; t.spent >= attempts || t.all+1 >= attempts && patience == 0 {
			return err
		}
		return f.pause(ctx, t, err)
	}
	since := f.health.silent().UnixNano()
	f.count(ctx, func(c *Count) { c.waiting.Store(since) })
	if t.all+1 >= attempts && time.Since(t.began) >= patience {
		return err
	}
	return f.pause(ctx, t, err)
}

// pause waits before the next try.
func (f *FS) pause(ctx context.Context, t *tries, err error) error {
	delay := min(f.o.MaxDelay, f.o.BaseDelay<<min(t.all, 20))
	if t.all++; !f.health.mayHurry() {
		delay = f.o.MaxDelay
	}
	delay = delay/2 + rand.N(delay/2+1) // half of it fixed, half by chance: callers spread out
	var r retryAfter
	if errors.As(err, &r) {
		delay = max(delay, min(r.RetryAfter(), 60*time.Second))
	}
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Stat implements ufs.FS.
func (f *FS) Stat(ctx context.Context, key string) (ufs.Object, error) {
	return retry(ctx, f, func(ctx context.Context) (ufs.Object, error) { return f.fs.Stat(ctx, key) })
}

// List implements ufs.FS.
func (f *FS) List(ctx context.Context, o ufs.ListOptions) (ufs.Page, error) {
	return retry(ctx, f, func(ctx context.Context) (ufs.Page, error) {
		f.count(ctx, func(c *Count) { c.Lists.Add(1) })
		return f.fs.List(ctx, o)
	})
}

func retry[T any](ctx context.Context, f *FS, do func(context.Context) (T, error)) (T, error) {
	for t := (tries{began: time.Now()}); ; {
		if err := f.mayAsk(ctx, claimant{urgencyOf(ctx), loadOf(ctx)}, flowOf(ctx)); err != nil {
			var none T
			return none, err
		}
		t.last = time.Now()
		v, err := within(ctx, f, do)
		if err == nil {
			return v, nil
		}
		if err := f.again(ctx, &t, err); err != nil {
			return v, err
		}
	}
}

// within runs do with a time limit whose end is Transient.
func within[T any](ctx context.Context, f *FS, do func(context.Context) (T, error)) (T, error) {
	c, cancel := context.WithTimeoutCause(ctx, f.o.HeaderWait, errHangs)
	defer cancel()
	v, err := do(c)
	if err != nil && ctx.Err() == nil && context.Cause(c) == errHangs {
		err = f.hangs("ufs", "")
	}
	return v, err
}

// hangs is the error of a request whose answer did not begin in time.
func (f *FS) hangs(op, key string) error {
	return stoker.Errorf(stoker.KindTransient, op, key, "%s: %w (%v)", f.o.Name, errHangs, f.o.HeaderWait)
}

// Open implements ufs.FS. The reader resumes by itself where a body broke off.
// The bytes of a whole object up to 8 MiB for which the store has a checksum
// are handed out once they were found right.
func (f *FS) Open(ctx context.Context, key string, want ufs.Version, off, length int64) (io.ReadCloser, error) {
	b := &body{f: f, ctx: ctx, u: urgencyOf(ctx), load: loadOf(ctx), flow: flowOf(ctx), key: key, want: want, start: off, off: off, left: length, t: tries{began: time.Now()}}
	if err := b.open(); err != nil {
		b.repay()
		b.losers.Wait()
		return nil, err
	}
	return b, nil
}
