package control

import (
	"context"
	"sync"
	"time"

	"stoker.dev"
	"stoker.dev/activities"
	"stoker.dev/internal/api"
	"stoker.dev/workflows"
)

const (
	progressAge = 400 * time.Millisecond // how old what users see may be: many may look at one load
	rateWindow  = 8 * time.Second
	loadsKept   = 64
)

// loads asks workers how far loads are, once for all who look at the same.
type loads struct {
	acts *activities.Activities

	mu    sync.Mutex
	plans map[stoker.ID]*planProgress // +checklocks:mu
}

// planProgress is how far one plan is.
type planProgress struct {
	mu        sync.Mutex
	addresses []string  // +checklocks:mu — by part
	samples   []sample  // +checklocks:mu — of the last rateWindow
	used      time.Time // guarded by loads.mu
}

type sample struct {
	at          time.Time
	part, whole int64
}

func newLoads(acts *activities.Activities) *loads {
	return &loads{acts: acts, plans: map[stoker.ID]*planProgress{}}
}

// progress returns the share of a plan's bytes that is resident, and how fast
// that grows in bytes per second; ok is false if nobody can say.
func (l *loads) progress(ctx context.Context, plan stoker.ID) (share, rate float64, ok bool) {
	p := l.plan(plan)
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.samples); n == 0 || time.Since(p.samples[n-1].at) > progressAge {
		if s, err := l.ask(ctx, plan, p); err == nil {
			p.samples = append(p.samples, s)
		}
	}
	for len(p.samples) > 2 && time.Since(p.samples[0].at) > rateWindow {
		p.samples = p.samples[1:]
	}
	if len(p.samples) == 0 {
		return 0, 0, false
	}
	first, last := p.samples[0], p.samples[len(p.samples)-1]
	if d := last.at.Sub(first.at).Seconds(); d > 0 {
		rate = max(0, float64(last.part-first.part)/d)
	}
	if last.whole == 0 {
		return 1, rate, true
	}
	return float64(last.part) / float64(last.whole), rate, true
}

// plan finds or makes a plan's entry; the one that was not looked at for the
// longest time makes room.
func (l *loads) plan(id stoker.ID) *planProgress {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.plans[id]
	if p == nil {
		if len(l.plans) >= loadsKept {
			var oldest stoker.ID
			for other, q := range l.plans {
				if o := l.plans[oldest]; o == nil || q.used.Before(o.used) {
					oldest = other
				}
			}
			delete(l.plans, oldest)
		}
		p = &planProgress{}
		l.plans[id] = p
	}
	p.used = time.Now()
	return p
}

// ask adds up what the workers of a plan say. REQUIRES: p.mu is held.
func (l *loads) ask(ctx context.Context, plan stoker.ID, p *planProgress) (sample, error) {
	if p.addresses == nil {
		full, err := l.acts.LoadPlan(ctx, plan)
		if err != nil {
			return sample{}, err
		}
		for _, w := range full.Workers {
			p.addresses = append(p.addresses, w.Address)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, askWorker)
	defer cancel()
	parts := make([]api.LoadProgress, len(p.addresses))
	err := l.acts.EachWorker(ctx, p.addresses, func(ctx context.Context, i int, w *api.WorkerClient) (err error) {
		parts[i], err = w.LoadProgress(ctx, plan, i)
		return err
	})
	s := sample{at: time.Now()}
	for _, q := range parts {
		s.part, s.whole = s.part+q.Bytes, s.whole+q.TotalBytes
	}
	return s, err
}

// phases asks workflows of datasets for their states, once for all who look
// at the same one.
type phases struct {
	flows *workflows.Client

	mu    sync.Mutex
	known map[stoker.ID]*phase // +checklocks:mu
}

type phase struct {
	mu    sync.Mutex
	state workflows.DatasetState // +checklocks:mu
	ok    bool                   // +checklocks:mu
	asked time.Time              // +checklocks:mu
}

func newPhases(flows *workflows.Client) *phases {
	return &phases{flows: flows, known: map[stoker.ID]*phase{}}
}

// get returns a state that is at most progressAge old; ok is false if there
// is none to be had.
func (p *phases) get(ctx context.Context, id stoker.ID) (workflows.DatasetState, bool) {
	p.mu.Lock()
	e := p.known[id]
	if e == nil {
		if len(p.known) >= loadsKept {
			clear(p.known) // they are asked again
		}
		e = &phase{}
		p.known[id] = e
	}
	p.mu.Unlock()
	e.mu.Lock()
	defer e.mu.Unlock()
	if time.Since(e.asked) > progressAge {
		s, err := p.flows.DatasetState(ctx, id)
		if ctx.Err() != nil {
			return s, false
		}
		e.state, e.ok, e.asked = s, err == nil, time.Now()
	}
	return e.state, e.ok
}
