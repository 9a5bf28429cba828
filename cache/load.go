package cache

import (
	"context"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"stoker.dev"
	"stoker.dev/internal/api"
	"stoker.dev/planner"
	"stoker.dev/ufs/guard"
)

// pieceBlocks and pieceObjects bound what one flight of a load brings in:
// 8 MiB of large objects, 32 small ones. Small enough to spread a shard over
// all streams, large enough that a flight's own cost does not show.
const (
	pieceBlocks  = 8 << 20 / stoker.BlockBytes
	pieceObjects = 32
	maxFailures  = 1000 // api.LoadProgress.Failed, and what is kept over restarts
)

type loadKey struct {
	plan stoker.ID
	part int
}

// load is one part of a plan being brought in. It goes on while nobody
// watches; it ends when all that can be had is here.
type load struct {
	*account
	copies bool // from other workers alone
	cancel context.CancelFunc
	done   chan struct{}

	turns  []uint32 // the part in the order of the plan
	cursor atomic.Int64
	bytes  atomic.Int64 // object bytes resident
	total  int64
	only   *api.Selector // of the objects of its shards; nil: all

	mu     sync.Mutex
	failed map[string]api.Failure // +checklocks:mu — by path
	err    error                  // +checklocks:mu

	waited  time.Duration   // in vain, for others: only the load's own goroutine looks
	took    time.Duration   // how long what was removed may still be read: the same
	open    int             // +checklocks:mu — shards under way
	ended   map[uint32]bool // +checklocks:mu — shards of which all that can be had is here
	changed chan struct{}   // +checklocks:mu — closed and replaced when one has ended
}

type loads struct {
	mu  sync.Mutex
	all map[loadKey]*load // +checklocks:mu
}

// loadsKept is how many ended loads a worker remembers, for controllers that
// ask again after a restart.
const loadsKept = 256

// Load begins the part of a plan, or attaches to it if it runs or has ended
// well here. The dataset stays held until it ends.
func (c *Cache) Load(ctx context.Context, planID stoker.ID, part int) error {
	return c.begin(ctx, loadKey{planID, part}, false)
}

func (c *Cache) begin(ctx context.Context, key loadKey, copies bool) error {
	planID, part := key.plan, key.part
	c.loads.mu.Lock()
	l := c.loads.all[key]
	c.loads.mu.Unlock()
	if l != nil && !l.again() {
		return nil
	}
	name := reservationName(planID, part)
	if copies {
		name = copiesName(planID, part)
	}
	if err := c.refuse("cache.load", name); err != nil {
		return err
	}
	plan, set, err := c.openPlan(ctx, planID, part)
	if err != nil {
		return err
	}
	if err := c.holds.know(c.o.Store, plan.Manifest, plan.Dataset); err != nil {
		_ = set.Close()
		return err
	}
	only, err := api.ParseSelection(plan.Select)
	if err != nil {
		_ = set.Close()
		return err
	}
	older := set.olderIDs(ctx)
	c.loads.mu.Lock()
	defer c.loads.mu.Unlock()
	if l := c.loads.all[key]; l != nil && !l.again() {
		return set.Close()
	}
	if c.stop.Err() != nil {
		_ = set.Close()
		return c.stopped()
	}
	c.askedFor(name)
	run, cancel := context.WithCancel(c.stop)
	l = &load{account: set.account(name, plan.Part(part), older), copies: copies,
		cancel: cancel, done: make(chan struct{}), failed: map[string]api.Failure{}, turns: plan.Turns(part, plan.Part(part)),
		ended: map[uint32]bool{}, changed: make(chan struct{})}
	if plan.Select != "" {
		l.only = only.Selector()
	}
	for _, n := range l.part {
		l.total += set.wantedBytes(l, n)
	}
	c.loads.forgetEnded()
	c.loads.all[key] = l
	c.holds.loading(plan.Manifest, 1)
	c.busy.Add(1)
	go func() {
		defer c.busy.Done()
		defer close(l.done)
		defer cancel()
		c.runLoad(run, set, l)
	}()
	return nil
}

// again reports whether a load of the same part has to be run anew: it was
// stopped, or something could not be had.
func (l *load) again() bool {
	select {
	case <-l.done:
	default:
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err != nil || len(l.failed) > 0
}

// forgetEnded keeps the table of loads bounded.
func (ls *loads) forgetEnded() {
	for key, l := range ls.all {
		if len(ls.all) < loadsKept {
			return
		}
		select {
		case <-l.done:
			delete(ls.all, key)
		default:
		}
	}
}

func (c *Cache) readPlan(ctx context.Context, id stoker.ID) (*planner.Plan, error) {
	body, err := c.o.Manifests.GetBlob(ctx, "plans", id)
	if err != nil {
		return nil, err
	}
	return planner.DecodePlan(body)
}

// openPlan reads a stored plan and opens its dataset.
func (c *Cache) openPlan(ctx context.Context, planID stoker.ID, part int) (*planner.Plan, *Set, error) {
	plan, err := c.readPlan(ctx, planID)
	if err != nil {
		return nil, nil, err
	}
	if part < 0 || part >= len(plan.Workers) || plan.Workers[part].ID != c.o.Store.WorkerID() {
		return nil, nil, stoker.Errorf(stoker.KindInvalid, "cache.plan", planID.Short(), "part %d is not this worker's", part)
	}
	set, err := c.Open(ctx, plan.Manifest)
	if err != nil {
		return nil, nil, err
	}
	if len(plan.Owners) != set.man.Shards() {
		_ = set.Close()
		return nil, nil, stoker.Errorf(stoker.KindInvalid, "cache.plan", planID.Short(), "plan and manifest disagree")
	}
	set.UsePlan(plan)
	return plan, set, nil
}

// runLoad brings in shard after shard, o.Streams pieces at a time.
func (c *Cache) runLoad(ctx context.Context, s *Set, l *load) {
	defer func() {
		c.accounts.close(l.reservation)
		c.saveAccounts(c.o.Store.PutState)
		c.holds.loading(s.id, -1)
		if err := c.o.Store.Unreserve(l.reservation); err != nil {
			s.log().Error("cannot give space back", "error", err)
		}
		if !l.copies { // what no worker had is no failure of the dataset's
			c.holds.noteFailures(c.o.Store, s.id, l.failures())
		}
		s.closeOrLog()
	}()
	c.holds.touch(c.o.Store, s.id)
	g, run := errgroup.WithContext(ctx)
	g.SetLimit(c.o.Streams)
	order, p := s.inOrder(l.turns), &l.pulled
	if !slices.Equal(order, l.turns) {
		p = new(pulled) // space is short: the order is what it takes
	}
	turns := newTurns(order, p)
	for n, more := turns.next(); more; n, more = turns.next() {
		pieces := s.wanted(l, n)
		if len(pieces) == 0 || run.Err() != nil {
			continue
		}
		if !l.copies {
			s.placeFor(run, l, n)
		}
		s.loadShard(run, g, l, n, pieces)
	}
	err := s.mend(ctx, l, g.Wait())
	if err == nil {
		err = ctx.Err() // what was not begun is not here
	}
	if stoker.KindOf(err) == stoker.KindNoSpace { // it was promised: a folder went
		need, largest, _ := s.needed(l.part)
		err = c.explainNoSpace("load", err, need, largest, s.id)
	}
	// Whoever hears that the load has ended finds what it brought.
	c.o.Directory.Flush(c.stop)
	l.mu.Lock()
	l.err = err
	failed := len(l.failed)
	l.mu.Unlock()
	log := s.log().With("load", l.reservation, "shards", l.cursor.Load(), "of", len(l.part), "bytes", l.bytes.Load(),
		"ufsBytes", l.count.Bytes.Load(), "copiedBytes", l.copied.Load(), "failedObjects", failed)
	if err != nil {
		log.Warn("a load was stopped", "error", err)
		return
	}
	log.Info("a load has ended")
}

// loadShard begins the pieces of a shard, and seals it behind the last one.
func (s *Set) loadShard(ctx context.Context, g *errgroup.Group, l *load, n uint32, pieces []piece) {
	left := new(atomic.Int64)
	left.Store(int64(len(pieces)))
	l.begun()
	for _, p := range pieces {
		g.Go(func() error {
			err := s.loadPiece(ctx, l, n, p.from, p.to)
			if left.Add(-1) == 0 {
				if err == nil {
					s.seal(n) // says of a shard that an older generation left here that this one has it
					if l.only != nil {
						s.flush(n)
					}
				}
				l.finished(n)
				if err == nil {
					l.cursor.Add(1)
				}
			}
			return err
		})
	}
}

// loadPiece brings in what is missing of [from, to), whoever fetches it, and
// notes the objects that cannot be had. Its error is the load's end. A second
// replica comes through the shard's owner, like a read.
func (s *Set) loadPiece(ctx context.Context, l *load, n uint32, from, to int) error {
	on := why{prio: guard.Preload, waits: true}
	if l.copies {
		on = why{prio: guard.Repair, copies: true}
		if err := s.c.copying.wait(ctx, s.missingBytes(n, from, to)); err != nil {
			return err
		}
	}
	err := s.bringRun(ctx, n, from, to, on, func(f *flight, from, to int) {
		for b := from; b < to; b++ {
			if s.firstMissing(n, b, b+1) == b && !s.slots[n].lost.Load() { // what a disk took is mended
				l.fail(s, n, b, s.failure(n, f, b))
			}
		}
	})
	if err != nil {
		return err
	}
	l.bytes.Add(s.residentBytes(n, from, to))
	return s.c.stopped()
}

// bringRun waits until each missing block of [from, to) was asked for, whoever
// asked, and calls ended with each flight and the blocks of the run that were
// its. Its error is want of space, or that ctx has ended.
func (s *Set) bringRun(ctx context.Context, n uint32, from, to int, on why, ended func(f *flight, from, to int)) error {
	if err := s.create(n); err != nil {
		return err
	}
	for at := from; at < to; {
		f := s.joinFlight(n, at, to, on)
		if f == nil {
			break
		}
		select {
		case <-f.done:
		case <-ctx.Done():
			s.c.leave(f, false)
			return ctx.Err()
		}
		s.c.leave(f, true)
		if f.away.Load() {
			if err := wait(ctx, askAgain); err != nil {
				return err
			}
			continue
		}
		if f.stopped.Load() || f.ahead && !(on.copies && f.copies) {
			continue
		}
		ended(f, max(at, f.from), min(to, f.to))
		at = f.to
	}
	return nil
}

// residentBytes adds up the object bytes of blocks [from, to) that are here,
// missingBytes those of the others.
func (s *Set) residentBytes(n uint32, from, to int) int64 { return s.bytesOf(n, from, to, true) }

func (s *Set) missingBytes(n uint32, from, to int) int64 { return s.bytesOf(n, from, to, false) }

func (s *Set) bytesOf(n uint32, from, to int, here bool) (sum int64) {
	sl := s.shard(n)
	defer sl.mu.RUnlock()
	if sl.sh == nil && here {
		return 0
	}
	for b := from; b < to; b++ {
		if (sl.sh != nil && sl.sh.Has(b)) == here {
			_, _, length := blockOf(memberOf(sl.members, b), b)
			sum += int64(length)
		}
	}
	return sum
}

func (l *load) fail(s *Set, n uint32, block int, err error) {
	row := s.memberAt(n, block).Row
	path := api.EscapePath(s.man.Path(row))
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, known := l.failed[path]; !known {
		l.failed[path] = api.Failure{Path: path, Kind: failureKind(err), Reason: err.Error()}
	}
}

// failureKind maps to the kinds of the contract's failed[].kind.
func failureKind(err error) string {
	switch k := stoker.KindOf(err); k {
	case stoker.KindNotExist, stoker.KindStale, stoker.KindCorrupt, stoker.KindDenied, stoker.KindNoSpace:
		return k.String()
	default:
		return stoker.KindTransient.String()
	}
}

func (l *load) failures() []api.Failure {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]api.Failure, 0, len(l.failed))
	for _, f := range l.failed {
		out = append(out, f)
	}
	slices.SortFunc(out, func(a, b api.Failure) int { return strings.Compare(a.Path, b.Path) })
	return out
}

// LoadProgress tells how far a load is. Its error is the reason why a load
// ended early; NotExist if it never began here.
func (c *Cache) LoadProgress(planID stoker.ID, part int) (api.LoadProgress, error) {
	_, p, err := c.progress(planID, part)
	return p, err
}

func (c *Cache) progress(planID stoker.ID, part int) (*load, api.LoadProgress, error) {
	c.loads.mu.Lock()
	l := c.loads.all[loadKey{planID, part}]
	c.loads.mu.Unlock()
	if l == nil {
		return nil, api.LoadProgress{}, stoker.Errorf(stoker.KindNotExist, "cache.load", planID.Short(), "part %d was not begun here", part)
	}
	done := false // before the figures are read: those of an ended load are final
	select {
	case <-l.done:
		done = true
	default:
	}
	p := api.LoadProgress{
		Run: l.run, StartBytes: l.start,
		Cursor: int(l.cursor.Load()), Shards: len(l.part), Bytes: l.bytes.Load(), TotalBytes: l.total,
		UFSRequests: l.count.Requests.Load(), UFSBytes: l.count.Bytes.Load(), CopiedBytes: l.copied.Load(),
		WaitingSince: l.count.WaitingSince(),
		Refetched:    l.refetched(), Earlier: l.earlier,
	}
	if !done {
		return l, p, nil
	}
	l.mu.Lock()
	err := l.err
	l.mu.Unlock()
	if err != nil {
		return l, p, err
	}
	p.Done = true
	p.Failed = l.failures()
	p.FailedObjects = len(p.Failed)
	p.Failed = p.Failed[:min(len(p.Failed), maxFailures)]
	return l, p, nil
}

// WatchLoad calls report about every interval until the load has ended, and
// once more then. It returns the load's error, or ctx's.
func (c *Cache) WatchLoad(ctx context.Context, planID stoker.ID, part int, every time.Duration, report func(api.LoadProgress) error) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		l, p, err := c.progress(planID, part) // it may have been begun anew
		if err != nil {
			return err
		}
		if err := report(p); err != nil || p.Done {
			return err
		}
		select {
		case <-l.done:
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// StopLoad ends a load and waits until it has given its space back. Stopping
// what does not run is fine.
func (c *Cache) StopLoad(planID stoker.ID, part int) {
	c.loads.mu.Lock()
	l := c.loads.all[loadKey{planID, part}]
	c.loads.mu.Unlock()
	if l != nil {
		l.cancel()
		<-l.done
	}
}
