// Package activities holds the side effects of stoker's workflows: listing,
// planning, and what is asked of the workers over HTTP. Each may run twice, on
// any controller; none carries more than a few hundred bytes in or 256 KiB out
// (plans, manifests and certificates go by hash). An Activities may be used
// from any goroutine.
package activities

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/cache/placement"
	"stoker.dev/internal/api"
	"stoker.dev/planner"
	"stoker.dev/ufs"
)

// LeaseTTL is how long a lease outlives its last renewal; controllers renew
// every LeaseEvery.
const (
	LeaseTTL   = 120 * time.Second
	LeaseEvery = 30 * time.Second
	fanOut     = 64 // workers asked at a time
)

// Options are what activities work on.
type Options struct {
	Store   *manifest.Store
	Index   placement.Index
	Open    func(context.Context, ufs.Location) (ufs.FS, string, error)
	TempDir string // for manifests in the making
	Token   string // sent to workers
	Joiner  Joiner
	// Scheduler keeps the schedules of syncs; nil = there are none.
	Scheduler Scheduler
	Log       *slog.Logger
}

// Joiner reaches the workflows of datasets, and that of the claims which wait.
type Joiner interface {
	Join(ctx context.Context, in JoinInput) error
	Leave(ctx context.Context, in LeaveInput) error
	// Granted reports whether somebody's claim has got the space of a manifest, or of
	// what is selected of it.
	Granted(ctx context.Context, manifest stoker.ID, selected string) (bool, error)
	// FirstWaiting is the job whose claim waits first; "" = none waits.
	FirstWaiting(ctx context.Context) (string, error)
	Enqueue(ctx context.Context, in EnqueueInput) error
	Dequeue(ctx context.Context, in DequeueInput) error
	Requeue(ctx context.Context, in WaitingClaim) error
	Wish(ctx context.Context, in WishInput) error
}

// Activities are registered with Temporal as a whole.
type Activities struct {
	o Options

	refused atomic.Int64 // times that a worker did not take leases

	plans     plans
	addresses addresses

	mu      sync.Mutex
	clients map[string]*api.WorkerClient // +checklocks:mu — by address
	seen    map[string]seenWorker        // +checklocks:mu — last known, by id
}

// seenWorker is a worker and when it was last live.
type seenWorker struct {
	placement.Worker
	at     time.Time
	silent bool // it was asked since and did not answer
}

const (
	lostFor     = time.Hour        // a worker that is not live any more is still spoken of
	forgotFor   = 15 * time.Second // an index that was emptied may not know a worker yet
	answersSoon = time.Second      // when it lives
)

// New makes them.
func New(o Options) *Activities {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Activities{o: o, clients: map[string]*api.WorkerClient{}, seen: map[string]seenWorker{}}
}

// Worker returns the client of the worker at an address.
func (a *Activities) Worker(address string) (*api.WorkerClient, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if c := a.clients[address]; c != nil {
		return c, nil
	}
	c, err := api.NewWorkerClient(address, a.o.Token)
	if err == nil {
		a.clients[address] = c
	}
	return c, err
}

// Workers returns the live workers, and those that were seen and are not
// live now. While the index does not answer, the last ones seen are taken for
// live; those of which it knows nothing any more are asked themselves, for it may
// have been emptied.
func (a *Activities) Workers(ctx context.Context) (live, lost []placement.Worker, err error) {
	live, err = a.o.Index.Workers(ctx)
	var forgotten []placement.Worker
	if err == nil {
		forgotten = a.forgotten(ctx, live)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if err != nil {
		for _, w := range a.seen {
			live = append(live, w.Worker)
		}
		if len(live) == 0 {
			return nil, nil, err
		}
		return live, nil, nil
	}
	now, at := map[string]bool{}, time.Now()
	for _, w := range live {
		a.seen[w.ID], now[w.ID] = seenWorker{Worker: w, at: at}, true
	}
	for _, w := range forgotten {
		if !now[w.ID] {
			live, now[w.ID] = append(live, w), true
		}
	}
	slices.SortFunc(live, func(a, b placement.Worker) int { return strings.Compare(a.ID, b.ID) })
	for id, w := range a.seen {
		if time.Since(w.at) > lostFor {
			delete(a.seen, id)
		} else if !now[id] {
			lost = append(lost, w.Worker)
		}
	}
	return live, lost, nil
}

// forgotten are the workers that the index knew a moment ago, does not know now,
// and that live all the same. Who does not answer is not asked again.
func (a *Activities) forgotten(ctx context.Context, live []placement.Worker) (found []placement.Worker) {
	var ask []placement.Worker
	a.mu.Lock()
	for id, w := range a.seen {
		known := slices.ContainsFunc(live, func(l placement.Worker) bool { return l.ID == id })
		if !known && !w.silent && time.Since(w.at) < forgotFor {
			ask = append(ask, w.Worker)
		}
	}
	a.mu.Unlock()
	answers := make([]bool, len(ask))
	_ = a.EachWorker(ctx, addressesOf(ask), func(ctx context.Context, i int, w *api.WorkerClient) error {
		ctx, cancel := context.WithTimeout(ctx, answersSoon)
		defer cancel()
		st, err := w.Status(ctx)
		answers[i] = err == nil && st.Incarnation == ask[i].Incarnation
		return nil
	})
	a.mu.Lock()
	defer a.mu.Unlock()
	for i, w := range ask {
		if answers[i] {
			found = append(found, w)
		} else if last := a.seen[w.ID]; last.Incarnation == w.Incarnation && ctx.Err() == nil {
			last.silent = true
			a.seen[w.ID] = last
		}
	}
	return found
}

// AnyAway reports whether a worker that was live within that time is not now. One
// that was drained was to go.
func (a *Activities) AnyAway(within time.Duration) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	var last time.Time // when the index was read
	for _, w := range a.seen {
		if w.at.After(last) {
			last = w.at
		}
	}
	for _, w := range a.seen {
		if w.at.Before(last) && !w.Draining && w.CapacityBytes > 0 && time.Since(w.at) < within {
			return true
		}
	}
	return false
}

// EachWorker calls do for every address, some at a time, and returns the first
// error after all have ended.
func (a *Activities) EachWorker(ctx context.Context, addresses []string, do func(ctx context.Context, i int, w *api.WorkerClient) error) error {
	var g errgroup.Group
	g.SetLimit(fanOut)
	for i, address := range addresses {
		g.Go(func() error {
			w, err := a.Worker(address)
			if err != nil {
				return err
			}
			return do(ctx, i, w)
		})
	}
	return g.Wait()
}

func addressesOf(ws []placement.Worker) []string {
	out := make([]string, len(ws))
	for i, w := range ws {
		out[i] = w.Address
	}
	return out
}

// eachPart calls do for every worker that has something to load by a plan.
func (a *Activities) eachPart(ctx context.Context, p *planner.Plan, do func(ctx context.Context, part int, w *api.WorkerClient) error) error {
	parts := p.Parts()
	addresses := make([]string, len(parts))
	for i, part := range parts {
		addresses[i] = a.addressOf(ctx, p.Workers[part])
	}
	return a.EachWorker(ctx, addresses, func(ctx context.Context, i int, w *api.WorkerClient) error { return do(ctx, parts[i], w) })
}
