package metrics

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// askEvery is how old answers may be: however many scrape, the question is
// asked once in that time.
const askEvery = time.Second

// Asked adds samples that have to be asked for, of disks or other processes.
// They are asked for when somebody scrapes, one question at a time, and its
// context ends after within. A scrape waits no longer than that, even if the
// question does not heed its context; what has not come by then is missing
// from its answer: nothing old is passed off as new.
func (r *Registry) Asked(within time.Duration, ask func(context.Context, *Samples)) {
	r.reg.MustRegister(&asked{r: r, within: within, ask: ask})
}

type asked struct {
	r      *Registry
	within time.Duration
	ask    func(context.Context, *Samples)

	mu      sync.Mutex
	last    []prometheus.Metric // +checklocks:mu — the last answer
	began   time.Time           // +checklocks:mu — when the last question was asked
	waiting chan struct{}       // +checklocks:mu — closed by its answer; nil once that is there
}

// Describe implements prometheus.Collector. What comes is known when it comes.
func (a *asked) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (a *asked) Collect(ch chan<- prometheus.Metric) {
	answered, left := a.begin()
	patience := time.NewTimer(left)
	defer patience.Stop()
	select {
	case <-answered:
	case <-patience.C:
		return
	}
	a.mu.Lock()
	last := a.last
	a.mu.Unlock()
	for _, m := range last {
		ch <- m
	}
}

// begin asks, if there is no answer that is young enough and no question under
// way. It returns what is closed with the answer, and how long to wait for it.
func (a *asked) begin() (answered <-chan struct{}, left time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.waiting != nil {
		return a.waiting, a.within - time.Since(a.began)
	}
	done := make(chan struct{})
	if !a.began.IsZero() && time.Since(a.began) < askEvery || a.r.stop.Err() != nil {
		close(done)
		return done, a.within
	}
	a.waiting, a.began = done, time.Now()
	a.r.busy.Go(func() {
		ctx, cancel := context.WithTimeout(a.r.stop, a.within)
		defer cancel()
		var s Samples
		a.ask(ctx, &s)
		a.mu.Lock()
		a.last, a.waiting = s.all, nil
		a.mu.Unlock()
		close(done)
	})
	return done, a.within
}
