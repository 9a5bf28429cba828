package guard

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"stoker.dev/ufs/budget"
)

// Load is what is wished of the preloads of one dataset: a limit of what they read
// from their stores, and which of several goes first. It may change while they
// run; what a reader waits for is not held up by it. A Load may be used from any
// goroutine; nil wishes nothing.
type Load struct {
	rank atomic.Int64

	mu      sync.Mutex
	rate    float64       // +checklocks:mu — bytes in a second; 0 = no limit
	next    time.Time     // +checklocks:mu — when all that was promised may have been read
	changed chan struct{} // +checklocks:mu — closed and replaced when the rate changes
}

// NewLoad makes one without wishes.
func NewLoad() *Load { return &Load{changed: make(chan struct{})} }

// Set changes the limit, in bytes a second, 0 for none, and the rank: loads of a
// higher one are served first.
func (l *Load) Set(perSecond float64, rank int64) {
	l.rank.Store(rank)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rate == perSecond {
		return
	}
	l.rate, l.next = perSecond, time.Time{} // those who wait ask again
	close(l.changed)
	l.changed = make(chan struct{})
}

type loadKey struct{}

// WithLoad says what is wished of the load that a context's requests are for.
func WithLoad(ctx context.Context, l *Load) context.Context {
	return context.WithValue(ctx, loadKey{}, l)
}

func loadOf(ctx context.Context) *Load {
	l, _ := ctx.Value(loadKey{}).(*Load)
	return l
}

// take waits until n bytes more may be read on behalf of u: no request is sent, and
// no ticket held, for what has to wait. It returns how many of them it took: none where
// there is no limit, or a reader waits.
func (l *Load) take(ctx context.Context, u *Urgency, n int64) (int64, error) {
	if l == nil {
		return 0, nil
	}
	for u.Priority() >= Preload {
		wait, changed := l.reserve(n)
		if changed == nil {
			return 0, nil
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
			return n, nil
		case <-changed: // with what was promised at the old rate
		case <-u.raised:
			l.giveBack(n)
		case <-ctx.Done():
			l.giveBack(n)
		}
		timer.Stop()
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
	}
	return 0, nil
}

// reserve promises n bytes, after all that was promised before; changed is nil if
// there is no limit.
func (l *Load) reserve(n int64) (wait time.Duration, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rate <= 0 {
		return 0, nil
	}
	now := time.Now()
	if l.next.Before(now) {
		l.next = now // what was not used is not made up for
	}
	l.payLocked(n)
	return l.next.Sub(now), l.changed
}

func (l *Load) payLocked(n int64) {
	l.next = l.next.Add(time.Duration(float64(n) / l.rate * float64(time.Second)))
}

// giveBack returns what was promised and not read.
func (l *Load) giveBack(n int64) {
	if l == nil || n == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rate > 0 {
		l.payLocked(-n)
	}
}

// rankFor is the rank of work with that urgency: readers have none.
func (l *Load) rankFor(u *Urgency) int64 {
	if l == nil || u.Priority() < Preload {
		return 0
	}
	return l.rank.Load()
}

// claimant is work as budgets know it.
type claimant struct {
	u    *Urgency
	load *Load
}

var _ budget.Ranked = claimant{}

// Class is the priority as budgets know it.
func (c claimant) Class() budget.Class { return budget.Class(c.u.Priority()) }

// Rank implements budget.Ranked.
func (c claimant) Rank() int64 { return c.load.rankFor(c.u) }
