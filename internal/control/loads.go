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

// loads asks workers how much of a manifest is resident, once for all who look
// at the same one. What is on the disks is counted, not what a load says of
// itself: that stays true when a worker goes away and others take over.
type loads struct {
	acts *activities.Activities

	mu    sync.Mutex
	known map[stoker.ID]*progress // +checklocks:mu — by manifest
}

// progress is how far one manifest's load is.
type progress struct {
	mu      sync.Mutex
	samples []sample  // +checklocks:mu — of the last rateWindow
	used    time.Time // guarded by loads.mu
}

type sample struct {
	at      time.Time
	bytes   int64
	waiting time.Time // since then the UFS does not answer a worker; zero: it does
}

func newLoads(acts *activities.Activities) *loads {
	return &loads{acts: acts, known: map[stoker.ID]*progress{}}
}

// progress returns how many object bytes of a manifest are resident, copies
// counted each, and how fast that grows in bytes per second, and since when the
// UFS does not answer; ok is false if nobody can say.
func (l *loads) progress(ctx context.Context, id stoker.ID) (bytes int64, rate float64, waiting time.Time, ok bool) {
	p := l.of(id)
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.samples); n == 0 || time.Since(p.samples[n-1].at) > progressAge {
		if s, err := l.ask(ctx, id); err == nil {
			p.samples = append(p.samples, s)
		}
	}
	for len(p.samples) > 2 && time.Since(p.samples[0].at) > rateWindow {
		p.samples = p.samples[1:]
	}
	if len(p.samples) == 0 {
		return 0, 0, waiting, false
	}
	first, last := p.samples[0], p.samples[len(p.samples)-1]
	if d := last.at.Sub(first.at).Seconds(); d > 0 {
		rate = max(0, float64(last.bytes-first.bytes)/d)
	}
	return last.bytes, rate, last.waiting, true
}

// of finds or makes a manifest's entry; the one that was not looked at for the
// longest time makes room.
func (l *loads) of(id stoker.ID) *progress {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.known[id]
	if p == nil {
		if len(l.known) >= loadsKept {
			var oldest stoker.ID
			for other, q := range l.known {
				if o := l.known[oldest]; o == nil || q.used.Before(o.used) {
					oldest = other
				}
			}
			delete(l.known, oldest)
		}
		p = &progress{}
		l.known[id] = p
	}
	p.used = time.Now()
	return p
}

// ask adds up what the workers say. One that does not answer has nothing that
// could be counted on now.
func (l *loads) ask(ctx context.Context, id stoker.ID) (sample, error) {
	live, _, err := l.acts.Workers(ctx)
	if err != nil {
		return sample{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, askWorker)
	defer cancel()
	addresses, held := make([]string, len(live)), make([]api.ManifestHolding, len(live))
	for i, w := range live {
		addresses[i] = w.Address
	}
	_ = l.acts.EachWorker(ctx, addresses, func(ctx context.Context, i int, w *api.WorkerClient) error { // see above
		st, err := w.Status(ctx)
		for _, h := range st.Manifests {
			if err == nil && h.Manifest == id {
				held[i] = h
			}
		}
		return err
	})
	s := sample{at: time.Now()}
	for _, h := range held {
		s.bytes += h.Bytes
		if t := h.WaitingSince; !t.IsZero() && (s.waiting.IsZero() || t.Before(s.waiting)) {
			s.waiting = t
		}
	}
	return s, ctx.Err()
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
