// Package placement knows which live worker has which shard. It is an index,
// not the truth: the truth is on the workers' disks, and an index that lost
// everything is filled again by announcements. Placements belong to an
// incarnation; those of one without a lease are void at once, without a scan.
// Mem is the index of one process, redisplace the one that a cluster shares;
// both pass the suite in placementtest and may be used from any goroutine.
package placement

import (
	"context"
	"slices"
	"sync"
	"time"

	"stoker.dev"
)

// Worker is a live worker as it registered.
type Worker struct {
	ID            string             `json:"id"`
	Incarnation   stoker.Incarnation `json:"incarnation"`
	Address       string             `json:"address"`
	Socket        string             `json:"socket"`
	PID           int                `json:"pid"`
	CapacityBytes int64              `json:"capacityBytes"`
	UsedBytes     int64              `json:"usedBytes"`
	ReservedBytes int64              `json:"reservedBytes"`
	Draining      bool               `json:"draining,omitempty"` // takes nothing new
	Node          string             `json:"node,omitempty"`     // its node, as its scheduler calls it; "" = of an earlier release
}

// Holder is a live incarnation that has a shard.
type Holder struct {
	Incarnation stoker.Incarnation
	Whole       bool // all of it; else some blocks
}

// Mark announces one shard.
type Mark struct {
	Shard uint32
	Whole bool
}

// GroupShards is how many shards that follow each other the index keeps together: from a
// multiple of it on.
const GroupShards = 32

// Index is the placement index. An index that does not answer gives errors of
// kind Transient, quickly.
type Index interface {
	// Register enters a worker, whose lease ends after ttl unless renewed.
	Register(ctx context.Context, w Worker, ttl time.Duration) error
	// Renew prolongs the lease and updates the figures. known is false if the
	// index has no memory of the incarnation: register and announce again.
	Renew(ctx context.Context, w Worker, ttl time.Duration) (known bool, err error)
	// Leave ends a lease at once.
	Leave(ctx context.Context, n stoker.Incarnation) error
	// Workers returns the workers whose lease is in force, of each its last life.
	Workers(ctx context.Context) ([]Worker, error)
	// Announce says that the incarnation has shards of a manifest.
	Announce(ctx context.Context, n stoker.Incarnation, manifest stoker.ID, marks []Mark) error
	// Withdraw says that it has them no more.
	Withdraw(ctx context.Context, n stoker.Incarnation, manifest stoker.ID, shards []uint32) error
	// Holders returns for each of the shards the live holders, in no order. Shards of one
	// group, see GroupShards, cost no more than one of them.
	Holders(ctx context.Context, manifest stoker.ID, shards []uint32) ([][]Holder, error)
	// Begun returns for each of the shards whether a worker was said to have
	// some of it, in any life that the index remembers, lease or none. known is
	// false if it remembers none: then nothing can be said.
	Begun(ctx context.Context, worker string, manifest stoker.ID, shards []uint32) (begun []bool, known bool, err error)
}

var _ Index = (*Mem)(nil)

// Mem is an index in memory.
type Mem struct {
	now func() time.Time

	mu      sync.Mutex
	workers map[stoker.Incarnation]leased         // +checklocks:mu
	places  map[place]map[stoker.Incarnation]bool // +checklocks:mu — true: whole
}

type leased struct {
	Worker
	until time.Time
}

type place struct {
	manifest stoker.ID
	shard    uint32
}

// NewMem makes an empty index that reads the time from now.
func NewMem(now func() time.Time) *Mem {
	return &Mem{now: now, workers: map[stoker.Incarnation]leased{}, places: map[place]map[stoker.Incarnation]bool{}}
}

// Register implements Index.
func (m *Mem) Register(_ context.Context, w Worker, ttl time.Duration) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.workers[w.Incarnation] = leased{w, m.now().Add(ttl)}
	return nil
}

// Renew implements Index.
func (m *Mem) Renew(ctx context.Context, w Worker, ttl time.Duration) (bool, error) {
	m.mu.Lock()
	l, known := m.workers[w.Incarnation]
	known = known && m.now().Before(l.until)
	m.mu.Unlock()
	if !known {
		return false, nil
	}
	return true, m.Register(ctx, w, ttl)
}

// Leave implements Index.
func (m *Mem) Leave(_ context.Context, n stoker.Incarnation) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.workers, n)
	return nil
}

// Workers implements Index.
func (m *Mem) Workers(context.Context) ([]Worker, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	last := map[string]leased{} // of each worker's lives the one with the latest lease
	for _, l := range m.workers {
		if m.now().Before(l.until) && l.until.After(last[l.ID].until) {
			last[l.ID] = l
		}
	}
	out := []Worker{}
	for _, l := range last {
		out = append(out, l.Worker)
	}
	slices.SortFunc(out, func(a, b Worker) int { return slices.Compare([]byte(a.ID), []byte(b.ID)) })
	return out, nil
}

// Announce implements Index.
func (m *Mem) Announce(_ context.Context, n stoker.Incarnation, manifest stoker.ID, marks []Mark) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, k := range marks {
		p := place{manifest, k.Shard}
		if m.places[p] == nil {
			m.places[p] = map[stoker.Incarnation]bool{}
		}
		m.places[p][n] = k.Whole
	}
	return nil
}

// Withdraw implements Index.
func (m *Mem) Withdraw(_ context.Context, n stoker.Incarnation, manifest stoker.ID, shards []uint32) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range shards {
		delete(m.places[place{manifest, s}], n)
	}
	return nil
}

// Holders implements Index.
func (m *Mem) Holders(_ context.Context, manifest stoker.ID, shards []uint32) ([][]Holder, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([][]Holder, len(shards))
	for i, s := range shards {
		for n, whole := range m.places[place{manifest, s}] {
			if l, ok := m.workers[n]; ok && m.now().Before(l.until) {
				out[i] = append(out[i], Holder{n, whole})
			}
		}
	}
	return out, nil
}

// Begun implements Index.
func (m *Mem) Begun(_ context.Context, worker string, manifest stoker.ID, shards []uint32) ([]bool, bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	out, known := make([]bool, len(shards)), false
	for n, l := range m.workers {
		if l.ID != worker {
			continue
		}
		known = true
		for i, s := range shards {
			if _, said := m.places[place{manifest, s}][n]; said {
				out[i] = true
			}
		}
	}
	return out, known, nil
}
