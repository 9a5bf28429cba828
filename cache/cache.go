// Package cache is one worker's cache: it reads datasets block by block from
// its own disk, fills what is missing from peers, the shard's owner or the
// under file system in one flight per block, loads the parts of a plan, and
// decides what may be evicted. It never talks to a kernel, a workflow or
// Redis; those are reached through the small interfaces declared here. All
// methods may be called from any goroutine.
package cache

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/cache/prefetch"
	"stoker.dev/cache/store"
	"stoker.dev/planner"
	"stoker.dev/ufs"
	"stoker.dev/ufs/guard"
)

// Peer is another worker, as far as a fetch needs to know it.
type Peer struct {
	ID          string
	Incarnation stoker.Incarnation
	Address     string // base URL
	Whole       bool   // it is said to hold the whole shard
}

// Directory knows which workers hold, or own, a shard. Answers may be old:
// a wrong one costs one refused request.
type Directory interface {
	// Holders returns the other live workers said to hold shard n of the
	// manifest, those with all of it first.
	Holders(ctx context.Context, id stoker.ID, n uint32) []Peer
	// Owners returns the live workers that read shard n through for this one, by
	// the plan if there is one (may be nil). self: this worker is next in turn,
	// and asks the UFS if all of them are silent. lost are the ids of those that
	// the plan has before and that are not live.
	Owners(ctx context.Context, plan *planner.Plan, shard stoker.ID, n uint32) (ask []Peer, self bool, lost []string)
	// Begun reports whether one of some workers, live or not, may have some of
	// shard n on its disk.
	Begun(ctx context.Context, workers []string, id stoker.ID, n uint32) bool
	// Announce tells the others that this worker has part, or all, of a
	// shard; Withdraw that it has it no more. Both only queue.
	Announce(id stoker.ID, n uint32, whole bool)
	Withdraw(id stoker.ID, shards []uint32)
	// Flush returns when what was announced before can be found by others.
	Flush(ctx context.Context)
}

// Fetcher reads runs of blocks from a peer.
type Fetcher interface {
	// Fetch asks p for blocks [from, to) of shard n and calls got for each one
	// that it has, in order, with verified bytes that are only valid during
	// the call. With through, the peer fills what it lacks itself. Blocks that
	// the peer does not have are left out without an error.
	Fetch(ctx context.Context, p Peer, id stoker.ID, n uint32, from, to int, through bool,
		got func(block int, data []byte) error) error
}

// Options wires a Cache. All fields up to Fetcher are needed.
type Options struct {
	Store     *store.Store
	Manifests *manifest.Store
	Open      func(context.Context, ufs.Location) (ufs.FS, string, error)
	Directory Directory
	Fetcher   Fetcher
	Streams   int // UFS streams that one load keeps busy; 0 = 16
	// MemoryBytes is what the whole process may use. Fills, and answers to
	// peers, hold at most half of it; those beyond wait. 0 = 256 MiB.
	MemoryBytes int64
	Evict       Evict
	// ReadAheadBytes is the most that is brought in ahead of one reader; 0 = 64 MiB,
	// less than that = nothing, footers included.
	ReadAheadBytes int64
	// CopyRate is how many bytes/s of replicas are brought in to restore, raise
	// or move them; 0 = without a limit.
	CopyRate int64
	Log      *slog.Logger
}

// Counters say what was read, brought in and served of all datasets.
type Counters struct {
	Reads
	ServedBytes                atomic.Int64 // to other workers
	CopiedBytes                atomic.Int64 // from older generations, here or at a peer
	Corrupt                    atomic.Int64 // blocks that could not be read, or whose checksum did not match
	LostBytes                  atomic.Int64 // of objects that were here and went with their disk
	ScrubbedBytes, ScrubPasses atomic.Int64 // read by scrubs; passes that came to their end
	Bypass                     guard.Count  // of the data requests: those past an owner that did not answer

	evictions [reasons]evictions
}

// Cache is one worker's cache. Make it with New, end it with Close.
type Cache struct {
	o        Options
	counters Counters
	fills    fills
	holds    holds
	loads    loads
	accounts accounts
	rules    rules
	drain    drain
	copying  pace // of all copies that restore, raise or move replicas
	checks   checks
	gone     mourning
	refills  refills
	memory   *memory

	mu       sync.Mutex
	sets     map[stoker.ID]*Set        // +checklocks:mu
	sums     map[stoker.ID]*[]shardSum // +checklocks:mu — by shard
	uses     map[stoker.ID]*use        // +checklocks:mu
	restored map[string]int64          // +checklocks:mu — promises of the last life that nobody has asked for since
	started  time.Time

	stop context.Context // ends every flight and load; cancelled by Close
	end  context.CancelFunc
	busy sync.WaitGroup

	room      sync.Mutex // held by who makes room for reads
	evictor   evictor
	following chan struct{} // holds one for each copy ahead of demand
	ahead     chan struct{} // and one for each fill

	orders      atomic.Int64  // bytes that the orders of samplers take
	readerWaits time.Duration // see there
	waitMost    time.Duration // see there
}

// New makes the cache and reads back what it held before.
func New(o Options) (*Cache, error) {
	if o.Streams <= 0 {
		o.Streams = 16
	}
	if o.ReadAheadBytes == 0 {
		o.ReadAheadBytes = prefetch.MostWindow * stoker.BlockBytes
	}
	if o.Evict.HighPercent == 0 {
		o.Evict.HighPercent, o.Evict.LowPercent = defaultHigh, defaultLow
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	c := &Cache{o: o, sets: map[stoker.ID]*Set{}, uses: map[stoker.ID]*use{}, sums: map[stoker.ID]*[]shardSum{}, memory: newMemory(o.MemoryBytes),
		following: make(chan struct{}, followMost), readerWaits: readerWaits, waitMost: waitMost}
	// Half of the flights' memory is left to those that somebody waits for.
	c.ahead = make(chan struct{}, min(aheadMost, c.memory.flights.size/flightBytes/2))
	// Flights and loads outlive the requests that start them; Close ends them.
	c.stop, c.end = context.WithCancel(context.Background())
	c.copying.perSecond = o.CopyRate
	c.fills.runs = map[stoker.ID][]*flight{}
	c.loads.all = map[loadKey]*load{}
	c.accounts.open = map[string]*account{}
	c.gone.some = make(chan struct{}, 1) // more of them are one signal
	c.evictor.some = make(chan struct{}, 1)
	c.accounts.some = make(chan struct{}, 1)
	if err := o.Store.UnreserveAll(func(name string) bool { return strings.HasSuffix(name, copiesSuffix) }); err != nil {
		c.end()
		return nil, err
	}
	c.restored, c.started = o.Store.Reservations(), now()
	if err := c.holds.restore(o.Store); err != nil {
		c.end()
		return nil, err
	}
	if err := c.rules.restore(o.Store); err != nil {
		c.end()
		return nil, err
	}
	if err := c.drain.restore(o.Store); err != nil {
		c.end()
		return nil, err
	}
	c.accounts.restore(o.Store)
	o.Store.OnRetired(c.gone.add)
	o.Store.OnFreed(c.refills.wake)
	c.busy.Go(c.tendDisks)
	c.busy.Go(c.tendRoom)
	c.busy.Go(c.tendAccounts)
	return c, nil
}

// Counters returns the live counters.
func (c *Cache) Counters() *Counters { return &c.counters }

// Close stops loads and fills and waits for them. Sets must be closed before.
func (c *Cache) Close() error {
	c.end()
	c.endAllLingering()
	c.busy.Wait()
	c.saveAccounts(c.o.Store.PutState)
	c.evictSome() // gives back what flights handed over at the end
	return nil
}

// Set is an open dataset: one manifest and this worker's shards of it. It is
// shared: Open of an open manifest returns the same Set with one more user.
type Set struct {
	c         *Cache
	id        stoker.ID
	man       *manifest.Manifest
	use       *use
	users     int // guarded by c.mu
	lingering lingering
	slots     []slot
	roots     []rootFS
	plan      atomic.Pointer[planner.Plan]
	load      *guard.Load // what is wished of its loads
	bases     bases

	tracker prefetch.Tracker
	steps   prefetch.Steps
	windows prefetch.Windows
	heads   prefetch.Heads
	obeying sync.Mutex // see obey

	sums atomic.Pointer[[]shardSum] // see sumOf
}

// slot is this worker's file of one shard, while it is open.
type slot struct {
	mu sync.RWMutex
	// sh is nil until the shard is first used here. Who reads it holds mu for
	// reading, so that an eviction waits for reads in progress.
	sh      *store.Shard      // +checklocks:mu
	members []manifest.Member // +checklocks:mu

	misses atomic.Int32 // demands that another worker's whole copy served
	lost   atomic.Bool  // its file went with a disk since a load last looked
	early  blockSet     // blocks that came ahead and that nobody has read
	given  blockSet     // blocks that the kernel has whole; see delivered
	beside blockSet     // blocks that came with one that was asked for and that nobody has read; see windowEnd
	head   blockSet     // likewise, of the first window of files that were begun
}

type rootFS struct {
	mu     sync.Mutex
	fs     ufs.FS // +checklocks:mu
	prefix string // +checklocks:mu
}

// Open opens the dataset frozen in a manifest. Close the Set when done.
func (c *Cache) Open(ctx context.Context, id stoker.ID) (*Set, error) {
	c.mu.Lock()
	if s := c.sets[id]; s != nil {
		s.users++
		c.mu.Unlock()
		return s, nil
	}
	c.mu.Unlock()
	m, err := c.o.Manifests.Load(ctx, id)
	if err != nil {
		return nil, err
	}
	plan := c.lastPlan(ctx, id, m.Shards())
	mode, _ := c.ruleOf(id)
	c.mu.Lock()
	if s := c.sets[id]; s != nil { // another one was faster
		s.users++
		c.mu.Unlock()
		return s, m.Close()
	}
	s := &Set{c: c, id: id, man: m, users: 1, use: c.useLocked(id),
		slots: make([]slot, m.Shards()), roots: make([]rootFS, len(m.Roots())), load: guard.NewLoad()}
	s.plan.Store(plan)
	s.tracker.Most = max(1, int(c.o.ReadAheadBytes/stoker.BlockBytes))
	s.tracker.Followed = func() { s.count(func(r *Reads) { r.Streams.Add(1) }) }
	s.steps.Followed = func() { s.count(func(r *Reads) { r.Steppers.Add(1) }) }
	s.use.share.Use(mode)
	c.sets[id] = s
	c.mu.Unlock()
	s.goOn(ctx, plan)
	s.obey() // after it is found: a wish that comes now is either heard by it, or read here
	return s, nil
}

// lastPlan reads the plan by which the dataset was last loaded here: it knows
// the owners when the placement index does not. nil if there is none.
func (c *Cache) lastPlan(ctx context.Context, id stoker.ID, shards int) *planner.Plan {
	planID, ok := c.holds.plan(id)
	if !ok {
		return nil
	}
	plan, err := c.readPlan(ctx, planID)
	if err == nil && len(plan.Owners) != shards {
		err = stoker.Errorf(stoker.KindInvalid, "cache.plan", planID.Short(), "plan and manifest disagree")
	}
	if err != nil {
		c.logOf(id).Warn("the last plan is not known any more; owners are guessed", "error", err)
		return nil
	}
	return plan
}

// Close gives the Set back; the last user's Close releases its files.
func (s *Set) Close() error {
	s.c.mu.Lock()
	s.users--
	last := s.users == 0
	switch {
	case last:
		delete(s.c.sets, s.id)
	case s.users == 1 && s.lingering.timer != nil: // it holds no shard, and nobody opens it meanwhile
		for n := range s.slots {
			s.release(uint32(n))
		}
		clear(s.lingering.shards)
	}
	s.c.mu.Unlock()
	if !last {
		return nil
	}
	for n := range s.slots {
		s.release(uint32(n))
	}
	s.bases.close()
	return s.man.Close()
}

// retain adds a user: a flight keeps its Set open.
func (s *Set) retain() {
	s.c.mu.Lock()
	s.users++
	s.c.mu.Unlock()
}

// closeOrLog is Close for who has nobody to tell of an error but the log.
func (s *Set) closeOrLog() {
	if err := s.Close(); err != nil {
		s.log().Error("cannot close a dataset", "error", err)
	}
}

// background runs f in a goroutine, and keeps the Set open meanwhile.
func (s *Set) background(f func()) {
	s.retain()
	s.c.busy.Go(func() {
		f()
		s.closeOrLog()
	})
}

// Manifest returns the dataset's manifest, valid until Close.
func (s *Set) Manifest() *manifest.Manifest { return s.man }

// UsePlan makes the plan decide who owns which shard.
func (s *Set) UsePlan(p *planner.Plan) {
	s.plan.Store(p)
	s.obey()
}

// release closes the slot's file; the next use opens it again.
func (s *Set) release(n uint32) {
	sl := &s.slots[n]
	sl.mu.Lock()
	if sl.sh != nil {
		sl.sh.Release()
		sl.sh = nil
	}
	s.wasteLocked(n, sl)
	sl.given.p.Store(nil)
	sl.beside.p.Store(nil)
	sl.head.p.Store(nil)
	sl.mu.Unlock()
}

// shard returns the slot of shard n, locked for reading, with its file open
// if this worker has one. The caller unlocks it.
func (s *Set) shard(n uint32) *slot {
	sl := &s.slots[n]
	sl.mu.RLock()
	if sl.sh != nil && !sl.sh.Retired() {
		return sl
	}
	sl.mu.RUnlock()
	sl.mu.Lock()
	s.freshen(n, sl)
	if sl.sh == nil {
		if sh, ok := s.c.o.Store.Get(s.man.Shard(n).ID); ok {
			sl.sh = sh
		}
	}
	if sl.members == nil {
		sl.members = s.man.Members(n, nil)
	}
	sl.mu.Unlock()
	sl.mu.RLock()
	return sl
}

// create makes sure that shard n has a file here, charged to the reservation
// of the account that covers it, else to free space. NoSpace: there is none.
func (s *Set) create(n uint32) error {
	sl := s.shard(n)
	have := sl.sh != nil
	sl.mu.RUnlock()
	if have {
		return nil
	}
	d := s.man.Shard(n)
	spec := store.Spec{ID: d.ID, Bytes: d.Bytes, Blocks: int(d.Blocks)}
	reservation := ""
	if a := s.accountOf(n); a != nil {
		reservation = a.reservation
	}
	sh, err := s.c.o.Store.Create(spec, reservation)
	if err != nil {
		return err
	}
	sl = &s.slots[n]
	sl.mu.Lock()
	s.freshen(n, sl)
	if sl.sh == nil {
		sl.sh = sh
	} else {
		sh.Release()
	}
	if sl.members == nil {
		sl.members = s.man.Members(n, nil)
	}
	sl.mu.Unlock()
	s.c.fills.forget(s.c.memory, d.ID)
	s.c.o.Directory.Announce(s.id, n, false)
	return nil
}

// root opens the store of root i once.
func (s *Set) root(ctx context.Context, i uint16) (ufs.FS, error) {
	if int(i) >= len(s.roots) {
		return nil, stoker.Errorf(stoker.KindCorrupt, "cache.root", s.id.Short(), "no root %d", i)
	}
	r := &s.roots[i]
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fs == nil {
		fs, prefix, err := s.c.o.Open(ctx, s.man.Roots()[i].Location)
		if err != nil {
			return nil, err
		}
		r.fs, r.prefix = fs, prefix
	}
	return r.fs, nil
}

// memberOf returns the member that block lies in. Members are in block order.
func memberOf(members []manifest.Member, block int) manifest.Member {
	lo, hi := 0, len(members)
	for hi-lo > 1 {
		if mid := (lo + hi) / 2; int(members[mid].FirstBlock) <= block {
			lo = mid
		} else {
			hi = mid
		}
	}
	return members[lo]
}

// blockOf returns where a block of m lies: in the shard, in the object, and
// how long it is.
func blockOf(m manifest.Member, block int) (off, objectOff int64, length int) {
	rel := int64(block-int(m.FirstBlock)) * stoker.BlockBytes
	return m.Off + rel, m.ObjectOff + rel, int(min(m.Bytes-rel, stoker.BlockBytes))
}

// canceled reports whether err only says that somebody gave up.
func canceled(err error) bool { return errors.Is(err, context.Canceled) }

// now is wall time; leases count elapsed time from it.
func now() time.Time { return time.Now() }
