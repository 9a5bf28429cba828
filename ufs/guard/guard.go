// Package guard stands in front of a driver: it retries what may succeed on
// another try, resumes bodies that broke off, bounds the requests in flight,
// ends what hangs, and counts. It is the one place where requests to an under
// file system are retried. A guard may be used from any goroutine.
package guard

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"stoker.dev"
	"stoker.dev/ufs"
)

var _ ufs.FS = (*FS)(nil)

// Options tune a guard; the zero value is useful.
type Options struct {
	Attempts    int           // tries of one request, the first included; 0 = 5
	BaseDelay   time.Duration // before the second try, doubled each time; 0 = 100 ms
	MaxDelay    time.Duration // the longest wait; 0 = 5 s
	MaxInFlight int           // data requests at a time; 0 = 128
	HeaderWait  time.Duration // for an answer to begin; 0 = 30 s
	Stall       time.Duration // a Read that gets no byte for so long breaks its body off; 0 = 30 s
}

func (o Options) withDefaults() Options {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
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
	return o
}

// Count counts data requests. Bytes are counted as they are handed out, so a
// resumed body counts each byte once; RetriedBytes are those that came and
// were of no use.
type Count struct {
	Requests, Bytes, RetriedBytes, Lists atomic.Int64
}

type countKey struct{}

// counts are those of a context and of the contexts around it.
type counts struct {
	c     *Count
	outer *counts
}

// WithCount adds what requests of this context do to c, besides the guard's
// own total and the counts of the contexts around it.
func WithCount(ctx context.Context, c *Count) context.Context {
	outer, _ := ctx.Value(countKey{}).(*counts)
	return context.WithValue(ctx, countKey{}, &counts{c, outer})
}

// Wasted counts bytes that came for this context and were of no use.
func Wasted(ctx context.Context, n int64) {
	c, _ := ctx.Value(countKey{}).(*counts)
	for ; c != nil; c = c.outer {
		c.c.RetriedBytes.Add(n)
	}
}

// FS is a guarded file system.
type FS struct {
	fs    ufs.FS
	o     Options
	slots chan struct{} // a token for each data request in flight
	total Count
}

// New guards fs.
func New(fs ufs.FS, o Options) *FS {
	o = o.withDefaults()
	return &FS{fs: fs, o: o, slots: make(chan struct{}, o.MaxInFlight)}
}

// Total returns the live counters of all requests.
func (f *FS) Total() *Count { return &f.total }

func (f *FS) count(ctx context.Context, add func(*Count)) {
	add(&f.total)
	c, _ := ctx.Value(countKey{}).(*counts)
	for ; c != nil; c = c.outer {
		add(c.c)
	}
}

// retryAfter is what an error says about when to come back.
type retryAfter interface{ RetryAfter() time.Duration }

// again waits before try number n+1, or returns err if there is none.
func (f *FS) again(ctx context.Context, n int, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if stoker.KindOf(err) != stoker.KindTransient || n+1 >= f.o.Attempts {
		return err
	}
	delay := min(f.o.MaxDelay, f.o.BaseDelay<<min(n, 20))
	delay = delay/2 + rand.N(delay/2+1) // half of it fixed, half by chance: callers spread out
	var r retryAfter
	if errors.As(err, &r) {
		delay = max(delay, min(r.RetryAfter(), 60*time.Second))
	}
	t := time.NewTimer(delay)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Stat implements ufs.FS.
func (f *FS) Stat(ctx context.Context, key string) (ufs.Object, error) {
	for n := 0; ; n++ {
		o, err := within(ctx, f.o.HeaderWait, func(ctx context.Context) (ufs.Object, error) { return f.fs.Stat(ctx, key) })
		if err == nil {
			return o, nil
		}
		if err := f.again(ctx, n, err); err != nil {
			return o, err
		}
	}
}

// List implements ufs.FS.
func (f *FS) List(ctx context.Context, o ufs.ListOptions) (ufs.Page, error) {
	for n := 0; ; n++ {
		f.count(ctx, func(c *Count) { c.Lists.Add(1) })
		p, err := within(ctx, f.o.HeaderWait, func(ctx context.Context) (ufs.Page, error) { return f.fs.List(ctx, o) })
		if err == nil {
			return p, nil
		}
		if err := f.again(ctx, n, err); err != nil {
			return p, err
		}
	}
}

var errHangs = errors.New("no answer came in time")

// within runs do with a time limit whose end is Transient.
func within[T any](ctx context.Context, d time.Duration, do func(context.Context) (T, error)) (T, error) {
	c, cancel := context.WithTimeoutCause(ctx, d, errHangs)
	defer cancel()
	v, err := do(c)
	if err != nil && ctx.Err() == nil && context.Cause(c) == errHangs {
		err = stoker.Errorf(stoker.KindTransient, "ufs", "", "%w", errHangs)
	}
	return v, err
}

// Open implements ufs.FS. The reader resumes by itself where a body broke off.
func (f *FS) Open(ctx context.Context, key string, want ufs.Version, off, length int64) (io.ReadCloser, error) {
	select {
	case f.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	b := &body{f: f, ctx: ctx, key: key, want: want, off: off, left: length}
	if err := b.open(); err != nil {
		<-f.slots
		return nil, err
	}
	return b, nil
}

// body is a read in progress.
type body struct {
	f      *FS
	ctx    context.Context // of the Open: a reader lives in it
	key    string
	want   ufs.Version
	off    int64 // next byte
	left   int64
	r      io.ReadCloser
	cancel context.CancelCauseFunc
	watch  *time.Timer
	tries  int
	err    error
	closed bool
}

// open asks for what is left, trying as often as the options say.
func (b *body) open() error {
	for {
		ctx, cancel := context.WithCancelCause(b.ctx)
		watch := time.AfterFunc(b.f.o.HeaderWait, func() { cancel(errHangs) })
		b.f.count(b.ctx, func(c *Count) { c.Requests.Add(1) })
		r, err := b.f.fs.Open(ctx, b.key, b.want, b.off, b.left)
		if err == nil {
			watch.Stop() // Read starts it again: a caller that takes its time breaks nothing off
			b.r, b.cancel, b.watch = r, cancel, watch
			return nil
		}
		watch.Stop()
		if context.Cause(ctx) == errHangs {
			err = stoker.Errorf(stoker.KindTransient, "ufs.open", b.key, "%w", errHangs)
		}
		cancel(nil)
		if err := b.f.again(b.ctx, b.tries, err); err != nil {
			return err
		}
		b.tries++
	}
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	if b.left == 0 {
		return 0, io.EOF
	}
	for {
		b.watch.Reset(b.f.o.Stall)
		n, err := b.r.Read(p[:min(int64(len(p)), b.left)])
		b.watch.Stop()
		b.off, b.left = b.off+int64(n), b.left-int64(n)
		b.f.count(b.ctx, func(c *Count) { c.Bytes.Add(int64(n)) })
		if n > 0 {
			return n, nil
		}
		if err == nil {
			continue
		}
		if b.err = b.resume(err); b.err != nil {
			return 0, b.err
		}
	}
}

// resume opens the rest of a body that broke off.
func (b *body) resume(err error) error {
	b.drop()
	if errors.Is(err, io.EOF) || stoker.KindOf(err) == stoker.KindInternal {
		err = stoker.Errorf(stoker.KindTransient, "ufs.read", b.key, "body broke off with %d bytes left: %w", b.left, err)
	}
	if err := b.f.again(b.ctx, b.tries, err); err != nil {
		return err
	}
	b.tries++
	return b.open()
}

func (b *body) drop() {
	if b.r != nil {
		b.watch.Stop()
		_ = b.r.Close()
		b.cancel(nil)
		b.r = nil
	}
}

// Close implements io.Closer.
func (b *body) Close() error {
	if b.closed {
		return nil
	}
	b.closed = true
	if b.left > 0 && b.err == nil {
		b.err = stoker.Errorf(stoker.KindInvalid, "ufs.read", b.key, "closed")
	}
	b.drop()
	<-b.f.slots
	return nil
}
