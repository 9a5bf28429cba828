package budget

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"
)

// Ranked is work whose class, and rank within it, may change while it waits: the
// highest rank is served first.
type Ranked interface {
	Class() Class
	Rank() int64
}

const (
	burst = 100 * time.Millisecond // of its rate, what a meter that was not used has at once
	lend  = 200 * time.Millisecond // of an equal share, what demand may take before it is there
)

// meter gives out one kind at a rate: the most urgent first, within a class the
// highest rank, within that to the datasets by their parts, within a dataset in order of arrival. What is
// taken may exceed what is there; then the next one waits until it is paid.
type meter struct {
	kick func() // called when somebody has to wait, which was not so when last looked

	mu     sync.Mutex
	rate   float64            // +checklocks:mu — in a second
	lent   float64            // +checklocks:mu — how far demand may go below nothing
	tokens float64            // +checklocks:mu — at time at
	at     time.Time          // +checklocks:mu
	queue  []*waiter          // +checklocks:mu — in order of arrival
	flows  map[flowKey]*flow  // +checklocks:mu
	served map[string]float64 // +checklocks:mu — by dataset, divided by its weight: the least is next
	weight map[string]float64 // +checklocks:mu — of datasets
	common float64            // +checklocks:mu — weight of those that are not there: the mean, else 1
	clock  float64            // +checklocks:mu — served of the dataset that was served last
	wake   *time.Timer        // +checklocks:mu
	taken  float64            // +checklocks:mu — of all time
	waited time.Duration      // +checklocks:mu — of all time and all who waited
}

type flowKey struct {
	class Class
	name  string
}

// flow counts since the last look.
type flow struct {
	used    float64
	waiters int
	since   time.Time     // when there was the first of them
	busy    time.Duration // with one
	rate    float64       // used in a second, slowly forgotten
	hot     bool          // it waited for most of the time before the last look
	idle    int           // looks without use
	rank    int64         // of its last work
}

type waiter struct {
	who   Ranked
	key   flowKey // class as it was when it came
	n     float64
	since time.Time
	ready chan struct{}
}

func newMeter(kick func()) *meter {
	return &meter{kick: kick, at: time.Now(), flows: map[flowKey]*flow{}, served: map[string]float64{}, weight: map[string]float64{}, common: 1}
}

// set changes the rate, how far demand may go, and the weights of datasets.
func (m *meter) set(rate, lent float64, weight map[string]float64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.refillLocked(time.Now())
	m.rate, m.lent = rate, lent
	if weight != nil {
		m.weight, m.common = weight, 1
		sum, n := 0.0, 0
		for _, w := range weight {
			if w > 0 {
				sum, n = sum+w, n+1
			}
		}
		if n > 0 {
			m.common = sum / float64(n)
		}
	}
	m.grantLocked()
}

func (m *meter) refillLocked(now time.Time) {
	if d := now.Sub(m.at); d > 0 {
		m.tokens = min(m.tokens+m.rate*d.Seconds(), max(1, m.rate*burst.Seconds()))
		m.at = now
	}
}

// leastLocked is what must be there for a class to take.
func (m *meter) leastLocked(c Class) float64 {
	if c == Demand {
		return -m.lent
	}
	return 0
}

// try takes n if nobody waits and there is some.
func (m *meter) try(who Ranked, name string, n float64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.refillLocked(time.Now())
	c := who.Class()
	if len(m.queue) > 0 || m.tokens <= m.leastLocked(c) {
		return false
	}
	key := flowKey{c, name}
	m.flowLocked(key).rank = who.Rank()
	m.payLocked(key, n)
	return true
}

// take waits for n.
func (m *meter) take(ctx context.Context, who Ranked, name string, n float64) error {
	w := &waiter{who: who, key: flowKey{who.Class(), name}, n: n, since: time.Now(), ready: make(chan struct{})}
	m.mu.Lock()
	f := m.flowLocked(w.key)
	f.rank = who.Rank()
	if f.waiters++; f.waiters == 1 {
		f.since = w.since
	}
	if !m.waitsLocked(name) { // it has saved nothing up
		m.served[name] = max(m.served[name], m.clock)
	}
	m.queue = append(m.queue, w)
	m.refillLocked(w.since)
	m.grantLocked()
	news := len(m.queue) > 0 && !f.hot
	m.mu.Unlock()
	if news {
		m.kick()
	}
	select {
	case <-w.ready:
		return nil
	case <-ctx.Done():
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if i := slices.Index(m.queue, w); i >= 0 {
		m.leaveLocked(i)
	} else {
		m.tokens += n // it was granted just now
		m.taken -= n
	}
	m.grantLocked()
	return ctx.Err()
}

func (m *meter) waitsLocked(name string) bool {
	return slices.ContainsFunc(m.queue, func(w *waiter) bool { return w.key.name == name })
}

// pay takes what was taken already, without a wait; a negative n gives back.
func (m *meter) pay(who Ranked, name string, n float64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.refillLocked(time.Now())
	key := flowKey{who.Class(), name}
	m.flowLocked(key)
	m.payLocked(key, n)
	if n < 0 {
		m.grantLocked()
	}
}

func (m *meter) flowLocked(key flowKey) *flow {
	f := m.flows[key]
	if f == nil {
		f = &flow{}
		m.flows[key] = f
	}
	return f
}

// payLocked counts for a flow that flowLocked made.
func (m *meter) payLocked(key flowKey, n float64) {
	m.tokens -= n
	m.taken += n
	m.flows[key].used += n
	w := m.weight[key.name]
	if w <= 0 {
		w = m.common
	}
	m.served[key.name] += n / w
}

// leaveLocked takes a waiter out of the queue.
func (m *meter) leaveLocked(i int) *waiter {
	w, now := m.queue[i], time.Now()
	m.queue = slices.Delete(m.queue, i, i+1)
	f := m.flows[w.key]
	if f.waiters--; f.waiters == 0 {
		f.busy += now.Sub(f.since)
	}
	m.waited += now.Sub(w.since)
	return w
}

// grantLocked serves those for whom there is something, and sees that the next
// one is woken. The queue is as long as there are requests, some hundreds.
func (m *meter) grantLocked() {
	for len(m.queue) > 0 {
		first, class, rank := 0, m.queue[0].who.Class(), m.queue[0].who.Rank()
		for i, w := range m.queue[1:] {
			c, r := w.who.Class(), w.who.Rank()
			if cmp.Or(cmp.Compare(c, class), cmp.Compare(rank, r), cmp.Compare(m.served[w.key.name], m.served[m.queue[first].key.name])) < 0 {
				first, class, rank = i+1, c, r
			}
		}
		if lacks := m.leastLocked(class) - m.tokens; lacks >= 0 {
			m.wakeLocked(lacks)
			return
		}
		w := m.leaveLocked(first)
		m.clock = m.served[w.key.name]
		m.payLocked(flowKey{class, w.key.name}, w.n)
		close(w.ready)
	}
}

// wakeLocked grants again when there is more than lacks now.
func (m *meter) wakeLocked(lacks float64) {
	wait := time.Second // a rate of nothing is changed by set
	if m.rate > 0 {
		wait = min(wait, time.Duration((lacks+1e-3)/m.rate*float64(time.Second))+time.Microsecond)
	}
	if m.wake != nil {
		m.wake.Stop()
	}
	m.wake = time.AfterFunc(wait, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.refillLocked(time.Now())
		m.grantLocked()
	})
}

// seen is what a flow did since the last look.
type seen struct {
	rate    float64 // in a second
	waiting bool    // for most of that time
	rank    int64
}

// look says what the flows did in the time d since the last look, and forgets
// those that do nothing any more.
func (m *meter) look(d time.Duration) map[flowKey]seen {
	m.mu.Lock()
	defer m.mu.Unlock()
	now, out := time.Now(), map[flowKey]seen{}
	for key, f := range m.flows {
		busy := f.busy
		if f.waiters > 0 {
			busy += now.Sub(f.since)
			f.since = now
		}
		if r := max(0, f.used) / d.Seconds(); r > f.rate {
			f.rate = r
		} else {
			f.rate = (f.rate + r) / 2
		}
		if f.idle++; f.used != 0 || f.waiters > 0 {
			f.idle = 0
		}
		f.used, f.busy, f.hot = 0, 0, busy > d/2
		if f.idle > forgetAfter {
			delete(m.flows, key)
			continue
		}
		out[key] = seen{f.rate, f.hot, f.rank}
	}
	if len(m.flows) == 0 {
		clear(m.served)
		m.clock = 0
	}
	return out
}

const forgetAfter = 10 // looks

// stop ends the timer.
func (m *meter) stop() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.wake != nil {
		m.wake.Stop()
	}
}

// sums are what was taken and waited for since the beginning.
func (m *meter) sums() (taken float64, waited time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.taken, m.waited
}
