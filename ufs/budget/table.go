package budget

import (
	"context"
	"sync"
	"time"

	"stoker.dev"
)

// Class says how urgent work is; a lower one is served first.
type Class int32

// The classes. They are those of guard.Priority.
const (
	Demand   Class = iota + 1 // a reader waits
	Prefetch                  // read ahead of a reader, and listings
	Preload                   // ordered
	Repair                    // restores redundancy
)

// Flow is what one member wants for one dataset, in one class.
type Flow struct {
	Class Class  `json:"c"`
	Rank  int64  `json:"r,omitempty"` // within it; the highest is served first
	Name  string `json:"f"`           // of the dataset's generation
	Want  Amount `json:"w"`           // in a second
}

// Claim is what a member of the cluster, a worker or a controller, tells of
// itself, and what it asks for.
type Claim struct {
	Member stoker.Incarnation
	Flows  []Flow
	Ask    Amount // that it would like to be granted
	Held   Amount // that it was granted last, and may be using
}

// Entry is what a table knows of a member whose claim is in force.
type Entry struct {
	Member  stoker.Incarnation
	Flows   []Flow
	Granted Amount
}

// Table holds the claims of an endpoint. It is soft state: members that do not
// reach it go on with an equal share. It may be used from any goroutine.
type Table interface {
	// Claim enters a claim, which ends after ttl unless it is made again, and
	// grants of what is asked as much as leaves the sum of all grants in force
	// at most total. Where the table has forgotten the member, it is granted
	// what it held and no more, and for SettleFor nobody is granted more than he
	// held. It returns all claims in force, the member's included.
	Claim(ctx context.Context, endpoint string, c Claim, total Amount, ttl time.Duration) ([]Entry, error)
	// Quit ends a claim at once.
	Quit(ctx context.Context, endpoint string, member stoker.Incarnation) error
}

// SettleFor is how long a table that was emptied hears the others before it
// grants more than was held.
const SettleFor = 3 * time.Second

// Mem is a Table of one process.
type Mem struct {
	mu     sync.Mutex
	claims map[string]map[stoker.Incarnation]memClaim // +checklocks:mu — by endpoint
	settle map[string]time.Time                       // +checklocks:mu
}

type memClaim struct {
	Entry
	until time.Time
}

var _ Table = (*Mem)(nil)

// NewMem makes an empty one.
func NewMem() *Mem {
	return &Mem{claims: map[string]map[stoker.Incarnation]memClaim{}, settle: map[string]time.Time{}}
}

// Claim implements Table.
func (m *Mem) Claim(_ context.Context, endpoint string, c Claim, total Amount, ttl time.Duration) ([]Entry, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := m.claims[endpoint]
	if all == nil {
		all = map[stoker.Incarnation]memClaim{}
		m.claims[endpoint] = all
	}
	now, free := time.Now(), total
	var out []Entry
	for n, o := range all {
		if !now.Before(o.until) {
			delete(all, n)
		} else if n != c.Member {
			out = append(out, o.Entry)
			for k := range free {
				free[k] -= o.Granted[k]
			}
		}
	}
	_, known := all[c.Member]
	if !known && c.Held != (Amount{}) {
		m.settle[endpoint] = now.Add(SettleFor)
	}
	e := Entry{Member: c.Member, Flows: c.Flows}
	for k := range e.Granted {
		e.Granted[k] = max(0, min(c.Ask[k], free[k]))
		if !known && c.Held[k] > 0 {
			e.Granted[k] = min(c.Held[k], total[k])
		} else if now.Before(m.settle[endpoint]) {
			e.Granted[k] = min(e.Granted[k], c.Held[k])
		}
	}
	all[c.Member] = memClaim{e, now.Add(ttl)}
	return append(out, e), nil
}

// Quit implements Table.
func (m *Mem) Quit(_ context.Context, endpoint string, member stoker.Incarnation) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.claims[endpoint], member)
	return nil
}
