package activities

import (
	"context"
	"slices"
	"sync"
	"time"

	"stoker.dev"
	"stoker.dev/cache/placement"
	"stoker.dev/planner"
)

// keptPlans is how many plans are kept decoded. A plan of a billion files takes
// 40 MB, and a thousand activities ask for the same one at once.
const keptPlans = 2

// plans are the last ones that were read. Each is read once however many ask.
type plans struct {
	mu      sync.Mutex
	kept    []*readPlan                // +checklocks:mu — the one that was asked for last at the end
	reading map[stoker.ID]*readingPlan // +checklocks:mu
}

type readPlan struct {
	id   stoker.ID
	plan *planner.Plan
}

type readingPlan struct {
	done chan struct{}
	plan *planner.Plan // both set before done is closed
	err  error
}

// LoadPlan reads a stored plan, which others may use, too: it must not be
// changed.
func (a *Activities) LoadPlan(ctx context.Context, id stoker.ID) (*planner.Plan, error) {
	p := &a.plans
	for {
		p.mu.Lock()
		if i := slices.IndexFunc(p.kept, func(k *readPlan) bool { return k.id == id }); i >= 0 {
			k := p.kept[i]
			p.kept = append(slices.Delete(p.kept, i, i+1), k)
			p.mu.Unlock()
			return k.plan, nil
		}
		r, others := p.reading[id]
		if !others {
			r = &readingPlan{done: make(chan struct{})}
			if p.reading == nil {
				p.reading = map[stoker.ID]*readingPlan{}
			}
			p.reading[id] = r
		}
		p.mu.Unlock()
		if !others {
			return p.read(id, r, func() (*planner.Plan, error) { return a.readPlan(ctx, id) })
		}
		select {
		case <-r.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if r.err == nil {
			return r.plan, nil
		}
		// Its context may have ended, not ours: ask for ourselves.
		if stoker.KindOf(r.err) == stoker.KindNotExist || stoker.KindOf(r.err) == stoker.KindCorrupt {
			return nil, r.err
		}
	}
}

func (p *plans) read(id stoker.ID, r *readingPlan, read func() (*planner.Plan, error)) (*planner.Plan, error) {
	r.plan, r.err = read()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.reading, id)
	close(r.done)
	if r.err == nil {
		p.kept = append(p.kept[max(0, len(p.kept)+1-keptPlans):], &readPlan{id, r.plan})
	}
	return r.plan, r.err
}

func (a *Activities) readPlan(ctx context.Context, id stoker.ID) (*planner.Plan, error) {
	body, err := a.o.Store.GetBlob(ctx, "plans", id)
	if err != nil {
		return nil, err
	}
	return planner.DecodePlan(body)
}

// addressesAge is how old the list of workers may be in which their addresses
// are looked up: a thousand parts ask at once, and each list has a thousand lines.
const addressesAge = 200 * time.Millisecond

// addresses says where live workers are.
type addresses struct {
	mu sync.Mutex
	of map[string]string // +checklocks:mu — by id; nil: not known
	at time.Time         // +checklocks:mu
}

// addressOf is where a worker of a plan is now: it may have moved since.
func (a *Activities) addressOf(ctx context.Context, w planner.PlanWorker) string {
	s := &a.addresses
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.of == nil || time.Since(s.at) > addressesAge {
		live, _, err := a.Workers(ctx)
		s.of, s.at = addressesByID(live, err), time.Now()
	}
	if at, known := s.of[w.ID]; known {
		return at
	}
	return w.Address
}

func addressesByID(live []placement.Worker, err error) map[string]string {
	of := map[string]string{}
	if err == nil {
		for _, l := range live {
			of[l.ID] = l.Address
		}
	}
	return of
}
