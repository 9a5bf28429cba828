package cache

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"stoker.dev"
	"stoker.dev/internal/api"
	"stoker.dev/planner"
	"stoker.dev/ufs/guard"
)

// account is what bringing in one part of a plan costs, from its promise on:
// whoever is the first to need a shard of it, a load, a reader or a peer, draws
// on its reservation, and what that costs is counted here.
type account struct {
	reservation string
	run         string // random
	manifest    stoker.ID
	part        []uint32       // shards, sorted
	start       int64          // object bytes that were here when it was opened
	older       []stoker.ID    // what is copied from; it makes room for nobody else meanwhile
	earlier     *api.LoadSpent // what accounts of the part came to before this one; nil: nothing is known

	pulled pulled
	count  guard.Count
	bypass guard.Count  // of that, past an owner that did not answer
	copied atomic.Int64 // bytes of older generations
	lost   atomic.Int64 // bytes that were here and have to come again: evicted by force, or found wrong

	until atomic.Pointer[time.Time] // workers that do not answer are waited for; nil: none was met
}

// away reports whether workers that do not answer are still waited for, and
// whether this is the first one met: the time counts from there, once.
func (a *account) away(silent bool, most time.Duration) (first, left bool) {
	if silent && a.until.Load() == nil {
		until := now().Add(most)
		first = a.until.CompareAndSwap(nil, &until)
	}
	until := a.until.Load()
	return first, until != nil && now().Before(*until)
}

// accounts are the open ones. Its mutex is a leaf.
type accounts struct {
	mu    sync.Mutex
	open  map[string]*account // +checklocks:mu — by reservation
	ended []spending          // +checklocks:mu — closed ones, the last at the end; see ledger.go
	some  chan struct{}       // holds one when an account was opened
	saves ledger
}

// account opens the account of a part, or finds it open.
func (s *Set) account(reservation string, part []uint32, older []stoker.ID) *account {
	var start int64
	for _, n := range part {
		start += s.residentBytes(n, 0, int(s.man.Shard(n).Blocks))
	}
	a := &s.c.accounts
	a.mu.Lock()
	defer a.mu.Unlock()
	if x := a.open[reservation]; x != nil {
		return x
	}
	x := &account{reservation: reservation, run: stoker.NewToken()[:8], manifest: s.id, part: part, start: start, older: older,
		earlier: a.resumeLocked(reservation, start)}
	a.open[reservation] = x
	select {
	case a.some <- struct{}{}:
	default:
	}
	return x
}

// goOn opens the accounts of the last life's loads by a plan: others may read through
// this worker before its loads are begun again, and what that costs is theirs.
func (s *Set) goOn(ctx context.Context, plan *planner.Plan) {
	planID, ok := s.c.holds.plan(s.id)
	if plan == nil || !ok {
		return
	}
	for part, w := range plan.Workers {
		if name := reservationName(planID, part); w.ID == s.c.o.Store.WorkerID() && s.c.isRestored(name) {
			s.account(name, plan.Part(part), s.olderIDs(ctx))
		}
	}
}

// accountOf is the account that covers shard n; nil if there is none.
func (s *Set) accountOf(n uint32) *account {
	a := &s.c.accounts
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, x := range a.open {
		if x.manifest != s.id {
			continue
		}
		if _, covered := slices.BinarySearch(x.part, n); covered {
			return x
		}
	}
	return nil
}

// lose notes that what is here of shard n goes although an account covers it.
func (s *Set) lose(n uint32) {
	if a := s.accountOf(n); a != nil {
		a.lost.Add(s.residentBytes(n, 0, int(s.man.Shard(n).Blocks)))
	}
}

// waiting is since when the UFS does not answer the accounts of a manifest; zero
// if it does.
func (a *accounts) waiting(id stoker.ID) (since time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, x := range a.open {
		if t := x.count.WaitingSince(); x.manifest == id && !t.IsZero() && (since.IsZero() || t.Before(since)) {
			since = t
		}
	}
	return since
}

// copiedFrom reports whether an open account copies from the manifest.
func (a *accounts) copiedFrom(id stoker.ID) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, x := range a.open {
		if slices.Contains(x.older, id) {
			return true
		}
	}
	return false
}

// covers reports whether an open account brings the manifest in.
func (a *accounts) covers(manifest stoker.ID) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, x := range a.open {
		if x.manifest == manifest {
			return true
		}
	}
	return false
}

// lose notes bytes that went before an account of the manifest had copied them.
func (a *accounts) lose(manifest stoker.ID, bytes int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, x := range a.open {
		if x.manifest == manifest {
			x.lost.Add(bytes)
			return
		}
	}
}

// close ends an account; one that is not open is fine.
func (a *accounts) close(reservation string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if x := a.open[reservation]; x != nil {
		a.endedLocked(spending{reservation, x.had(), x.spent()})
	}
	delete(a.open, reservation)
}
