package guard

import (
	"context"
	"sync/atomic"
	"time"
)

// Count counts data requests. Bytes are counted as they come, so a resumed
// body counts each byte once. RetriedBytes and HedgedBytes are those of them
// that were of no use: they came with a try that was given up, or with the
// slower of two requests.
type Count struct {
	Requests, Bytes, RetriedBytes, HedgedBytes, Lists atomic.Int64

	Retries, Hedges, Throttled atomic.Int64 // of the requests: later tries, second requests, answers 503 and the like

	waiting atomic.Int64 // unix ns since when the store gives no answer; 0: it does
}

// WaitingSince is the time since when the store has not answered these
// requests; zero while it answers.
func (c *Count) WaitingSince() time.Time {
	if ns := c.waiting.Load(); ns != 0 {
		return time.Unix(0, ns)
	}
	return time.Time{}
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

type turnKey struct{}

// WithTurn has begin called when a request of this context begins to wait for its
// turn, as the limits say, and what it returns when its turn has come. A body may
// wait again while it is read.
func WithTurn(ctx context.Context, begin func() (end func())) context.Context {
	return context.WithValue(ctx, turnKey{}, begin)
}

// turn is WithTurn's begin.
func turn(ctx context.Context) (end func()) {
	if begin, ok := ctx.Value(turnKey{}).(func() func()); ok {
		return begin()
	}
	return func() {}
}

// Wasted counts bytes that came for this context and were of no use.
func Wasted(ctx context.Context, n int64) {
	c, _ := ctx.Value(countKey{}).(*counts)
	for ; c != nil; c = c.outer {
		c.c.RetriedBytes.Add(n)
	}
}

func (f *FS) count(ctx context.Context, add func(*Count)) {
	add(&f.total)
	c, _ := ctx.Value(countKey{}).(*counts)
	for ; c != nil; c = c.outer {
		add(c.c)
	}
}
