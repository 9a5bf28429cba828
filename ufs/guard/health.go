package guard

import (
	"math"
	"slices"
	"sync"
	"time"
)

// health is what the recent requests tell about a store.
type health struct {
	mu    sync.Mutex
	since time.Time // +checklocks:mu — of the first request without an answer after the last answer; zero: it answers

	last   time.Time          // +checklocks:mu — when the last answer began
	begun  [256]time.Duration // +checklocks:mu — how long recent answers took to begin
	n      int                // +checklocks:mu — answers so far
	p95    time.Duration      // +checklocks:mu — of begun
	hedges float64            // +checklocks:mu — hedges that may be sent now
	retry  float64            // +checklocks:mu — retries that may be sent soon
}

// The budgets: hedges are at most 5 % of requests. Retries beyond 10 % of
// requests, and some in hand, are not refused but sent slowly, MaxDelay apart:
// no read fails because others did, and a store in trouble is not stormed.
const (
	hedgeShare, hedgesInHand   = 0.05, 10
	retryShare, retriesInHand  = 0.1, 32
	fewestSamples, resampleAll = 20, 16
)

func newHealth() *health { return &health{retry: retriesInHand} }

// request notes a request that is neither a retry nor a hedge.
func (h *health) request() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.hedges = min(hedgesInHand, h.hedges+hedgeShare)
	h.retry = min(retriesInHand, h.retry+retryShare)
}

// answered notes that an answer began after d.
func (h *health) answered(d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.since, h.last = time.Time{}, time.Now()
	h.begun[h.n%len(h.begun)] = d
	h.n++
	if h.n == fewestSamples || h.n > fewestSamples && h.n%resampleAll == 0 {
		s := slices.Clone(h.begun[:min(h.n, len(h.begun))])
		slices.Sort(s)
		h.p95 = s[int(math.Ceil(0.95*float64(len(s))))-1]
	}
}

// silent notes that a request got no answer, and returns since when none does.
func (h *health) silent() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.since.IsZero() {
		h.since = time.Now()
	}
	return h.since
}

// answeredSince reports whether an answer has begun after then.
func (h *health) answeredSince(then time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.last.After(then)
}

// slow is the 95th percentile of how long answers take to begin, 0 if it is
// not known yet.
func (h *health) slow() time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.p95
}

// mayHedge takes a hedge from the budget.
func (h *health) mayHedge() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.hedges < 1 {
		return false
	}
	h.hedges--
	return true
}

// mayHurry takes a retry from the budget; without, it has to go slowly.
func (h *health) mayHurry() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.retry < 1 {
		return false
	}
	h.retry--
	return true
}
