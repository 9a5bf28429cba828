package guard

import (
	"context"
	"slices"
	"sync"
)

// How the limit of requests in flight follows what the store can take: it
// begins low, grows by one with each good answer up to where it was last cut,
// from there by one a round, and is cut once a round when the store throttles.
const (
	firstLimit = 16
	cutTo      = 0.75
)

// limiter bounds the requests in flight, the most urgent first.
type limiter struct {
	most int

	mu    sync.Mutex
	limit float64   // +checklocks:mu — requests in flight, 1 to most
	calm  float64   // +checklocks:mu — below it the limit grows fast
	out   int       // +checklocks:mu — tickets given
	idle  int       // +checklocks:mu — of these, those that wait for the cluster's budget
	round uint64    // +checklocks:mu — counts the cuts
	queue []*ticket // +checklocks:mu — in order of arrival
}

// ticket lets one request run.
type ticket struct {
	u     *Urgency
	load  *Load
	ready chan struct{} // closed when the request may run
	round uint64        // in which it was given; set before ready is closed
}

func newLimiter(most int) *limiter {
	return &limiter{most: most, limit: float64(min(most, firstLimit)), calm: float64(most)}
}

// take waits for a ticket; give hands it back.
func (l *limiter) take(ctx context.Context, u *Urgency, load *Load) (*ticket, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	t := &ticket{u: u, load: load, ready: make(chan struct{})}
	l.mu.Lock()
	l.queue = append(l.queue, t)
	l.grantLocked()
	l.mu.Unlock()
	select {
	case <-t.ready:
		return t, nil
	case <-ctx.Done():
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if i := slices.Index(l.queue, t); i >= 0 {
		l.queue = slices.Delete(l.queue, i, i+1)
	} else {
		l.out--
		l.grantLocked()
	}
	return nil, ctx.Err()
}

// spare returns a ticket if one is free and nobody waits, else nil.
func (l *limiter) spare(u *Urgency) *ticket {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.queue) > 0 || !l.roomLocked(u) {
		return nil
	}
	l.out++
	return &ticket{u: u, round: l.round}
}

// before reports whether t goes before o, which came earlier.
func (t *ticket) before(o *ticket) bool {
	a, b := t.u.Priority(), o.u.Priority()
	return a < b || a == b && t.load.rankFor(t.u) > o.load.rankFor(o.u)
}

// grantLocked serves the queue: by urgency and rank as they are now, then by arrival. The
// queue is as long as there are flights, some hundreds.
func (l *limiter) grantLocked() {
	for len(l.queue) > 0 {
		first := 0
		for i, t := range l.queue {
			if t.before(l.queue[first]) {
				first = i
			}
		}
		t := l.queue[first]
		if !l.roomLocked(t.u) {
			return
		}
		l.queue = slices.Delete(l.queue, first, first+1)
		l.out++
		t.round = l.round
		close(t.ready)
	}
}

// roomLocked reports whether one more may run. Requests that wait for the
// budget ask nothing of the store, so they do not keep a reader waiting; they
// go on after him, so there may be twice as many for a while.
func (l *limiter) roomLocked(u *Urgency) bool {
	return l.out < int(l.limit) || u.demand() && l.out-l.idle < int(l.limit) && l.out < 2*l.most
}

// park notes that a request in flight waits for the budget; what it returns,
// that it goes on.
func (l *limiter) park() func() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.idle++
	l.grantLocked()
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.idle--
	}
}

func (l *limiter) give() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.out--
	l.grantLocked()
}

// good notes that a request was answered. The limit grows only while it is
// made use of: else nothing is known about what lies above it.
func (l *limiter) good() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if 2*l.out < int(l.limit) {
		return
	}
	step := 1.0
	if l.limit >= l.calm {
		step = 1 / l.limit
	}
	l.limit = min(float64(l.most), l.limit+step)
	l.grantLocked()
}

// cut notes that the store throttled a request, or let it hang. Those that ran
// when the limit was cut last say nothing about the present one.
func (l *limiter) cut(t *ticket) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if t.round != l.round {
		return
	}
	l.round++
	l.limit = max(1, l.limit*cutTo)
	l.calm = l.limit
}

// now returns the limit and how many are in flight.
func (l *limiter) now() (limit, out int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return int(l.limit), l.out
}
