// Package worker is the logic of `stokerd worker`, the one daemon of a node:
// it puts together the shard store, the cache, the node's views and the HTTP
// API, and keeps the worker registered in the placement index. It never talks
// to Temporal and never touches files inside its own mounts.
package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"stoker.dev"
	"stoker.dev/cache"
	"stoker.dev/cache/manifest"
	"stoker.dev/cache/peer"
	"stoker.dev/cache/placement"
	"stoker.dev/cache/store"
	"stoker.dev/fuse/hold"
	"stoker.dev/internal/api"
	"stoker.dev/internal/metrics"
	"stoker.dev/ufs"
	"stoker.dev/ufs/budget"
	"stoker.dev/ufs/mounts"
)

// Options configure a worker. Dir and CapacityBytes, or Folders, and Objects,
// Index and Socket are needed.
type Options struct {
	Dir           string          // cache folder, made 0700
	CapacityBytes int64           // hard limit of what lies below Dir
	Folders       []store.Folder  // several cache folders, instead of Dir
	Objects       ufs.Objects     // the manifest store
	Index         placement.Index // where the others are found
	Socket        string          // path of the Unix socket
	Listen        string          // host:port of the TCP API; "" = 127.0.0.1:0
	Advertise     string          // base URL by which others reach Listen; "" = made from it
	Tokens        *api.Tokens     // who may come in by TCP, and this worker's own token; nil = loopback only
	Streams       int             // UFS streams of one load; 0 = 16
	CopyRate      int64           // bytes/s of replicas that are restored, raised or moved to this worker; 0 = no limit
	MemoryBytes   int64           // of the process; fills and answers to peers take half of it at most; 0 = AutoMemory
	Evict         cache.Evict     // how full reads make the cache, and what goes by itself; 0 = 95, 90 percent, nothing
	// ReadAheadBytes is the most that is brought in ahead of one reader; 0 = 64 MiB,
	// less than that = nothing.
	ReadAheadBytes int64
	ScrubRate      int64         // bytes/s that a scrub of sealed shards reads; 0 = none
	AllowFiles     []string      // folders that file:// datasets may lie in; none = no file://
	Limits         budget.Limits // of the whole cluster, for each endpoint; none = no limits
	Claims         budget.Table  // where those are shared out; nil = this worker has them for itself
	Node           string        // what the scheduler calls this node; "" = the host's name
	Hold           HoldFunc      // who keeps the mounts' descriptors when this life ends; nil = nobody
	Version        string
	Log            *slog.Logger
}

// HoldFunc begins a life of a worker at its holder.
type HoldFunc func(worker string) (hold.Holder, error)

// Worker is a running worker. Open makes it, Run serves until its context
// ends, and leaves nothing behind.
type Worker struct {
	o           Options
	incarnation stoker.Incarnation
	store       *store.Store
	manifests   *manifest.Store
	mounts      *mounts.Mounts
	budgets     *budget.Budgets
	peers       *peer.Client
	cache       *cache.Cache
	directory   *directory
	views       *views
	holder      hold.Holder
	metrics     *metrics.Registry
	unix, tcp   net.Listener
	address     string
}

// Open opens the cache folder, recovers what it holds and begins to listen.
func Open(o Options) (*Worker, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.MemoryBytes <= 0 {
		o.MemoryBytes = AutoMemory()
	}
	if o.Node == "" {
		host, err := os.Hostname()
		if err != nil {
			return nil, stoker.Errorf(stoker.KindInvalid, "worker", "", "the host has no name: set --node-name: %w", err)
		}
		o.Node = host
	}
	w := &Worker{o: o, incarnation: stoker.NewIncarnation()}
	if err := w.open(); err != nil {
		w.close()
		return nil, err
	}
	return w, nil
}

func (w *Worker) open() (err error) {
	raiseFileLimit(w.o.Log)
	if w.store, err = store.Open(store.Options{Dir: w.o.Dir, CapacityBytes: w.o.CapacityBytes, Folders: w.o.Folders, Log: w.o.Log}); err != nil {
		return err
	}
	if w.o.Hold != nil { // the store is this life's alone from here on, and so is what the last one left
		if w.holder, err = w.o.Hold(w.store.WorkerID()); err != nil {
			return err
		}
	}
	if err := dropImagePromises(w.store); err != nil {
		return err
	}
	if c := w.checkSpace(); c.State != api.CheckOK {
		w.o.Log.Warn("the cache folder has less space than was promised", "found", c.Detail, "hint", c.Hint)
	}
	manifestDir := filepath.Join(w.store.Dir(), "manifests")
	if err := os.MkdirAll(manifestDir, 0o700); err != nil {
		return stoker.Errorf(stoker.KindInternal, "worker", manifestDir, "%w", err)
	}
	w.manifests = manifest.NewStore(w.o.Objects, manifestDir)
	w.budgets = budget.New(budget.Options{
		Limits: w.o.Limits, Table: w.o.Claims, Member: w.incarnation, Count: func() int { return len(w.directory.live()) }, Log: w.o.Log,
	})
	w.mounts = mounts.New(mounts.Options{AllowFiles: w.o.AllowFiles, Budgets: w.budgets})
	token := ""
	if w.o.Tokens != nil {
		token = w.o.Tokens.Own()
	}
	w.peers = peer.New(peer.Options{Token: token})
	w.directory = newDirectory(w.o.Index, w.self, w.o.Log)
	w.cache, err = cache.New(cache.Options{
		Store: w.store, Manifests: w.manifests, Open: w.mounts.Open,
		Directory: w.directory, Fetcher: fetcher{w.peers}, Streams: w.o.Streams, MemoryBytes: w.o.MemoryBytes, Evict: w.o.Evict, CopyRate: w.o.CopyRate, ReadAheadBytes: w.o.ReadAheadBytes, Log: w.o.Log,
	})
	if err != nil {
		return err
	}
	w.directory.held = w.cache.EachHeld
	answers, giveUp := context.WithCancel(context.Background())
	w.views = &views{
		cache: w.cache, manifests: w.manifests, store: w.store, kernel: newKernel(w.store.Dir()),
		holder: w.holder, source: "stoker-" + w.store.WorkerID()[:12], log: w.o.Log,
		open: map[string]*view{}, making: map[string]chan struct{}{}, held: map[string]*view{}, stop: make(chan struct{}),
		answers: answers, giveUp: giveUp,
	}
	w.metrics = w.watched()
	return w.listen()
}

// fetcher is peer.Client as the cache wants it.
type fetcher struct{ c *peer.Client }

// Fetch implements cache.Fetcher.
func (f fetcher) Fetch(ctx context.Context, p cache.Peer, id stoker.ID, n uint32, from, to int, through bool,
	got func(int, []byte) error) error {
	return f.c.Fetch(ctx, p.Address, p.Incarnation, id, n, from, to, through, got)
}

// listen opens both listeners.
func (w *Worker) listen() (err error) {
	if w.unix, err = api.ListenUnix(w.o.Socket); err != nil {
		return err
	}
	addr := w.o.Listen
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	if w.tcp, err = api.ListenTCP(addr, w.o.Tokens); err != nil {
		return err
	}
	w.address = w.o.Advertise
	if w.address == "" {
		w.address = "http://" + w.tcp.Addr().String()
	}
	return nil
}

// Run serves until ctx ends. ready is called when the worker answers and is
// registered.
func (w *Worker) Run(ctx context.Context, ready func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	local := &http.Server{Handler: w.routes(true), ConnContext: api.ConnContext, ReadHeaderTimeout: 10 * time.Second}
	remote := &http.Server{Handler: api.Authenticate(w.o.Tokens, w.routes(false)), ConnContext: api.ConnContext, ReadHeaderTimeout: 10 * time.Second}
	failed := make(chan error, 2) // one for each server
	go func() { failed <- local.Serve(w.unix) }()
	go func() { failed <- remote.Serve(w.tcp) }()
	var tending sync.WaitGroup
	tending.Go(func() {
		w.views.restore(ctx)
		w.directory.run(ctx, ready)
	})
	tending.Go(func() { w.endViews(ctx) })
	tending.Go(func() { w.tryDisks(ctx) })
	tending.Go(func() { w.budgets.Run(ctx) })
	if w.o.ScrubRate > 0 {
		tending.Go(func() { w.cache.Scrub(ctx, cache.ScrubOptions{BytesPerSecond: w.o.ScrubRate, Every: scrubEvery}) })
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	cancel()
	tending.Wait()
	w.views.Close()
	stop, done := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer done()
	for _, s := range []*http.Server{local, remote} {
		if s.Shutdown(stop) != nil {
			_ = s.Close() // streams of loads end with their worker
		}
	}
	w.close()
	if errors.Is(err, http.ErrServerClosed) {
		err = nil
	}
	return err
}

// endViews unmounts, now and then, the views of jobs without a lease. A view
// may be some seconds older than its job's first lease here.
func (w *Worker) endViews(ctx context.Context) {
	tick := time.NewTicker(viewGrace)
	defer tick.Stop()
	missing := map[string]bool{} // without a lease at the last look
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		leased := map[string]bool{}
		for _, l := range w.cache.Leases() {
			leased[l.Holder] = true
		}
		now := map[string]bool{}
		w.views.EndOf(func(holder string) bool {
			now[holder] = !leased[holder]
			return leased[holder] || !missing[holder]
		})
		missing = now
	}
}

// tryDisks tries the cache folders now and then: a disk that has failed is
// found before a job meets it, and one that works again comes back.
func (w *Worker) tryDisks(ctx context.Context) {
	tick := time.NewTicker(tryEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			w.store.Probe()
		}
	}
}

// scrubEvery is how often each shard is read at most, however fast the scrub.
const scrubEvery = 7 * 24 * time.Hour

// tryEvery is how soon a disk that has failed is found at the latest; three
// times that is how long it must work before it is used again.
const tryEvery = 10 * time.Second

// viewGrace is how long a job's view may stand without a lease, and at most
// twice that.
const viewGrace = 10 * time.Second

func (w *Worker) close() {
	for _, l := range []net.Listener{w.unix, w.tcp} {
		if l != nil {
			_ = l.Close()
		}
	}
	if w.metrics != nil {
		w.metrics.Close()
	}
	if w.cache != nil {
		_ = w.cache.Close()
	}
	if w.peers != nil {
		w.peers.Close()
	}
	if w.holder != nil {
		_ = w.holder.Close()
	}
	if w.store != nil {
		if err := w.store.Close(); err != nil {
			w.o.Log.Error("store not closed well", "error", err)
		}
	}
}

// self is this worker as the index shows it.
func (w *Worker) self() placement.Worker {
	u := w.store.Usage()
	return placement.Worker{
		ID: w.store.WorkerID(), Incarnation: w.incarnation, Address: w.address, Socket: w.o.Socket, PID: os.Getpid(),
		CapacityBytes: u.CapacityBytes, UsedBytes: u.UsedBytes, ReservedBytes: u.ReservedBytes,
		Node: w.o.Node, Draining: w.cache.Draining() != nil,
	}
}

// info is self, completed with what only the cache knows.
func (w *Worker) info(ctx context.Context) (api.WorkerInfo, error) {
	s := w.self()
	free, err := w.cache.FreeableBytes(ctx)
	if err != nil {
		return api.WorkerInfo{}, err
	}
	state, err := w.state(ctx)
	if err != nil {
		return api.WorkerInfo{}, err
	}
	return api.WorkerInfo{
		ID: s.ID, Node: s.Node, Incarnation: s.Incarnation, Address: s.Address, Socket: s.Socket, PID: s.PID, State: state,
		CapacityBytes: s.CapacityBytes, UsedBytes: s.UsedBytes, ReservedBytes: s.ReservedBytes, FreeableBytes: free,
		Disks: w.disks(), UFS: w.uses(), Drain: w.cache.Draining(),
	}, nil
}

// disks tells how the cache folders are.
func (w *Worker) disks() []api.DiskInfo {
	var out []api.DiskInfo
	for _, f := range w.store.Folders() {
		out = append(out, api.DiskInfo{Dir: f.Dir, State: string(f.State), Reason: f.Reason, CapacityBytes: f.CapacityBytes, UsedBytes: f.UsedBytes})
	}
	return out
}

// raiseFileLimit lets the worker hold as many shard files open as it may.
func raiseFileLimit(log *slog.Logger) {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return
	}
	l.Cur = l.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		log.Warn("limit of open files stays as it is", "error", fmt.Sprint(err))
	}
}
