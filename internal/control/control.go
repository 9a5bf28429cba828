// Package control is the logic of `stokerd controller`: the HTTP API that
// users and hooks call, and the renewal of leases. It decides nothing itself:
// what should happen stands in workflows, what is resident the workers say.
// Any number of controllers may run; none holds state that another needs.
package control

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"stoker.dev"
	"stoker.dev/activities"
	"stoker.dev/cache/manifest"
	"stoker.dev/cache/placement"
	"stoker.dev/internal/api"
	"stoker.dev/internal/metrics"
	"stoker.dev/ufs"
	"stoker.dev/ufs/budget"
	"stoker.dev/ufs/mounts"
	"stoker.dev/workflows"
)

// Options configure a controller. Objects, Index, Flows and one of Socket and
// Listen are needed.
type Options struct {
	Objects ufs.Objects     // the manifest store
	Index   placement.Index // where the workers are found
	Flows   *workflows.Client
	Dir     string        // for manifests in the making and copies of those in use; made 0700
	Socket  string        // path of a Unix socket; "" = none
	Listen  string        // host:port; "" = none
	Tokens  *api.Tokens   // who may come in by TCP, and the token sent to workers; nil = loopback only
	Grace   time.Duration // of claims that do not say; 0 = none
	// CollectAfter is how long nobody has named what is removed from the manifest store; 0 = nothing is.
	CollectAfter time.Duration
	Version      string
	Log          *slog.Logger
	// AllowFiles are folders that file:// datasets may lie in; none = no file://.
	AllowFiles []string
	Limits     budget.Limits // of the whole cluster, for each endpoint; none = no limits
	Claims     budget.Table  // where those are shared out; nil = this controller has them for itself
}

// Controller is a running controller. Open makes it, Run serves until its
// context ends.
type Controller struct {
	o         Options
	manifests *manifest.Store
	mounts    *mounts.Mounts
	budgets   *budget.Budgets
	acts      *activities.Activities
	loads     *loads
	phases    *phases
	waiting   *waiting
	keeper    *keeper
	draining  sync.Mutex // who drains a worker looks first who would be left
	metrics   *metrics.Registry
	renewals  renewals
	probing   chan struct{} // a token for each store that is looked at
	telling   sync.Mutex    // what ended while a renewal was made does not come back with it
	listeners []net.Listener
}

// renewals counts the rounds of renewLeases, and what ended them early.
type renewals struct{ done, temporal, index atomic.Int64 }

// Open begins to listen.
func Open(o Options) (*Controller, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Socket == "" && o.Listen == "" {
		return nil, stoker.Errorf(stoker.KindInvalid, "controller", "", "listens nowhere: give a socket or an address")
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, stoker.Errorf(stoker.KindInvalid, "controller", o.Dir, "%w", err)
	}
	budgets := budget.New(budget.Options{Limits: o.Limits, Table: o.Claims, Log: o.Log})
	c := &Controller{o: o, manifests: manifest.NewStore(o.Objects, o.Dir), budgets: budgets, probing: make(chan struct{}, probesAtOnce)}
	c.mounts = mounts.New(mounts.Options{AllowFiles: o.AllowFiles, Budgets: budgets})
	c.acts = activities.New(activities.Options{
		Store: c.manifests, Index: o.Index, Open: c.mounts.Open, TempDir: o.Dir, Token: o.Tokens.Own(), Joiner: o.Flows, Scheduler: o.Flows, Log: o.Log,
	})
	c.loads, c.phases, c.waiting = newLoads(c.acts), newPhases(o.Flows), &waiting{flows: o.Flows}
	c.keeper = newKeeper()
	c.metrics = c.watched()
	if err := c.listen(); err != nil {
		c.closeListeners()
		return nil, err
	}
	if err := manifest.ClearTemp(o.Dir); err != nil {
		o.Log.Warn("files of an earlier life stay", "dir", o.Dir, "error", err)
	}
	return c, nil
}

func (c *Controller) listen() error {
	if c.o.Socket != "" {
		l, err := api.ListenUnix(c.o.Socket)
		if err != nil {
			return err
		}
		c.listeners = append(c.listeners, l)
	}
	if c.o.Listen != "" {
		l, err := api.ListenTCP(c.o.Listen, c.o.Tokens)
		if err != nil {
			return err
		}
		c.listeners = append(c.listeners, l)
	}
	return nil
}

func (c *Controller) closeListeners() {
	for _, l := range c.listeners {
		_ = l.Close() // nothing is lost with it
	}
}

// Run serves until ctx ends. ready is called when Temporal answers too.
func (c *Controller) Run(ctx context.Context, ready func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c.beginRestrictions(ctx)
	requests, stopRequests := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stopRequests(api.ErrStopping)
	server := &http.Server{
		Handler: api.Authenticate(c.o.Tokens, c.routes()), ConnContext: api.ConnContext, ReadHeaderTimeout: 10 * time.Second,
		// Streams end with the controller; those who follow them ask again.
		BaseContext: func(net.Listener) context.Context { return requests },
	}
	failed := make(chan error, len(c.listeners)) // one for each
	for _, l := range c.listeners {
		go func() { failed <- server.Serve(l) }()
	}
	var tending sync.WaitGroup
	tending.Go(func() { c.o.Flows.Serve(ctx, c.acts, ready) })
	tending.Go(func() { c.renewLeases(ctx) })
	tending.Go(func() { c.keep(ctx) })
	tending.Go(func() { c.collect(ctx) })
	tending.Go(func() { c.budgets.Run(ctx) })
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	cancel()
	stopRequests(api.ErrStopping)
	stop, done := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer done()
	if server.Shutdown(stop) != nil {
		_ = server.Close() // whoever still follows a stream sees it break
	}
	tending.Wait()
	c.metrics.Close()
	c.closeListeners()
	if errors.Is(err, http.ErrServerClosed) {
		err = nil
	}
	return err
}

// renewLeases tells all workers, now and then, who holds what.
func (c *Controller) renewLeases(ctx context.Context) {
	tick := time.NewTicker(activities.LeaseEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			c.renewOnce(ctx)
		}
	}
}

// renewOnce tells it once. While Temporal does not answer it tells nothing,
// and no lease ends.
func (c *Controller) renewOnce(ctx context.Context) {
	sets, err := c.o.Flows.Datasets(ctx)
	if err != nil {
		c.renewals.temporal.Add(1)
		c.o.Log.Warn("leases are not renewed: Temporal does not say who holds what", "error", err)
		return
	}
	c.telling.Lock()
	defer c.telling.Unlock()
	in := activities.LeaseInput{}
	if in.Leases, err = c.pinLeases(ctx); err != nil {
		in.Partial = true
		c.o.Log.Warn("pins are not renewed, and no lease ends: the manifest store does not say who pinned what", "error", err)
	}
	for _, s := range sets {
		for _, h := range s.Holders {
			in.Leases = append(in.Leases, h.Lease(s.Manifest))
		}
		in.Wishes = append(in.Wishes, s.Wish())
	}
	if err := c.acts.PutLeases(ctx, in); err == nil {
		c.renewals.done.Add(1)
	} else if ctx.Err() == nil {
		c.renewals.index.Add(1)
		c.o.Log.Warn("leases are not renewed", "datasets", len(sets), "leases", len(in.Leases), "error", err)
	}
	c.tellRules(ctx)
}
