package guard

import (
	"context"
	"sync/atomic"
)

// Priority says who waits for a request. Requests without one rank as
// Prefetch; they are neither hedged nor patient.
type Priority int32

// The priorities, the first served first.
const (
	Demand   Priority = iota + 1 // a reader waits: hedged, and patient for DemandWait
	Prefetch                     // read ahead of a reader
	Preload                      // ordered: patient for Patience
	Repair                       // restores redundancy: patient likewise
)

// Urgency is the priority of work that several may come to wait for while it
// is under way. It may be used from any goroutine.
type Urgency struct {
	p       atomic.Int32
	patient atomic.Bool
	raised  chan struct{} // closed when it was a preload, and a reader came
}

// NewUrgency returns that of work with one waiter.
func NewUrgency(p Priority) *Urgency {
	u := &Urgency{raised: make(chan struct{})}
	u.Join(p)
	return u
}

// Join adds a waiter: the work becomes as urgent as its most urgent waiter,
// and as patient as its most patient one.
func (u *Urgency) Join(p Priority) {
	if p == 0 {
		p = Prefetch
	}
	if p >= Preload {
		u.patient.Store(true)
	}
	for {
		now := u.p.Load()
		if now != 0 && now <= int32(p) {
			return
		}
		if u.p.CompareAndSwap(now, int32(p)) {
			if now >= int32(Preload) && p < Preload {
				close(u.raised)
			}
			return
		}
	}
}

// Priority is that of the most urgent waiter so far.
func (u *Urgency) Priority() Priority {
	if u == nil || u.p.Load() == 0 {
		return Prefetch
	}
	return Priority(u.p.Load())
}

// demand reports whether a reader waits.
func (u *Urgency) demand() bool { return u.Priority() == Demand }

type urgencyKey struct{}

// WithUrgency gives the requests of a context an urgency, which may be raised
// while they run.
func WithUrgency(ctx context.Context, u *Urgency) context.Context {
	return context.WithValue(ctx, urgencyKey{}, u)
}

// WithPriority gives the requests of a context a priority.
func WithPriority(ctx context.Context, p Priority) context.Context {
	return WithUrgency(ctx, NewUrgency(p))
}

func urgencyOf(ctx context.Context) *Urgency {
	u, _ := ctx.Value(urgencyKey{}).(*Urgency)
	return u
}
