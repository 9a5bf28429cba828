package control

import (
	"context"
	"slices"
	"strings"
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

	objects, empty int64 // +checklocks:mu — of the manifest: all, and those in no shard; 0 = not counted
}

// sample is what the workers said at one moment.
type sample struct {
	at   time.Time
	held []workerHolding // by worker id
}

// workerHolding is what a worker has of the manifest.
type workerHolding struct {
	worker string
	api.ManifestHolding
}

// bytes is what some workers have together; nil: all.
func (s *sample) bytes(of []string) (sum int64) {
	for _, h := range s.held {
		if of == nil || slices.Contains(of, h.worker) {
			sum += h.Bytes
		}
	}
	return sum
}

// of is what a worker had then.
func (s *sample) of(worker string) (bytes int64, ok bool) {
	for _, h := range s.held {
		if h.worker == worker {
			return h.Bytes, true
		}
	}
	return 0, false
}

func newLoads(acts *activities.Activities) *loads {
	return &loads{acts: acts, known: map[stoker.ID]*progress{}}
}

// progress returns what the workers have of a manifest, now and some seconds
// ago, which may be the same; ok is false if nobody can say.
func (l *loads) progress(ctx context.Context, id stoker.ID) (first, last sample, ok bool) {
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
		return sample{}, sample{}, false
	}
	return p.samples[0], p.samples[len(p.samples)-1], true
}

// status makes what users see of a load. copies is how often each byte is wanted,
// nodes are the workers that have to have all of them; nil: whichever.
func (l *loads) status(ctx context.Context, id stoker.ID, nodes []string, copies, bytes int64, st *api.LoadStatus) bool {
	first, last, ok := l.progress(ctx, id)
	if !ok {
		return false
	}
	seconds := last.at.Sub(first.at).Seconds()
	rate := func(before, now int64) float64 {
		if seconds <= 0 {
			return 0
		}
		return max(0, float64(now-before)/seconds)
	}
	var objects int64
	for _, h := range last.held {
		before, known := first.of(h.worker)
		if !known {
			before = h.Bytes
		}
		w := loadWorker(h)
		w.BytesPerSec = rate(before, h.Bytes)
		if nodes == nil || slices.Contains(nodes, h.worker) {
			objects += h.Objects
		}
		st.Workers = append(st.Workers, w)
		st.FailedObjects += w.FailedObjects
		if t := h.WaitingSince; !t.IsZero() && (st.WaitingSince.IsZero() || t.Before(st.WaitingSince)) {
			st.WaitingSince = t
		}
		if c := h.Check; c != nil {
			if st.Check == nil {
				st.Check = &api.CheckProgress{}
			}
			st.Check.Bytes, st.Check.TotalBytes = st.Check.Bytes+c.Bytes, st.Check.TotalBytes+c.TotalBytes
		}
	}
	st.Bytes, st.ResidentBytes = bytes, min(bytes, last.bytes(nodes)/copies)
	st.BytesPerSec = rate(first.bytes(nodes), last.bytes(nodes)) / float64(copies)
	st.ResidentObjects = objects / copies
	if st.ETASeconds = unknownETA; st.BytesPerSec > 0 {
		st.ETASeconds = float64(st.Bytes-st.ResidentBytes) / st.BytesPerSec
	}
	return true
}

func loadWorker(h workerHolding) api.LoadWorker {
	w := api.LoadWorker{Worker: h.worker, Objects: h.Objects, ResidentBytes: h.Bytes, WaitingSince: h.WaitingSince}
	if x := h.Load; x != nil {
		w.LoadedBytes, w.LoadBytes, w.UFSBytes, w.FailedObjects = x.Bytes, x.TotalBytes, x.UFSBytes, x.FailedObjects
	}
	if x := h.Check; x != nil {
		w.CheckedBytes, w.CheckAllBytes = x.Bytes, x.TotalBytes
	}
	return w
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
	for i, h := range held {
		if h.Bytes > 0 || h.Load != nil || h.Check != nil {
			s.held = append(s.held, workerHolding{live[i].ID, h})
		}
	}
	slices.SortFunc(s.held, func(a, b workerHolding) int { return strings.Compare(a.worker, b.worker) })
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
