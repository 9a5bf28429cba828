// Package budget keeps what a cluster asks of each under file system within
// limits: bytes and requests in a second, for each endpoint (a host), over all
// workers and controllers. Every member meters what it does and tells a Table,
// about once a second, what it uses and wants; from what all told it computes
// its fair share, and takes more than before only where the table says that
// others have left as much (ADR 15). A Budgets may be used from any goroutine.
package budget

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"stoker.dev"
)

// Options say whose budgets they are.
type Options struct {
	Limits Limits
	Table  Table              // where the members meet; nil = there is only this one
	Member stoker.Incarnation // this one
	Count  func() int         // how many members there are, as far as others than the table know; nil = unknown
	Log    *slog.Logger
}

const (
	claimTTL   = 15 * time.Second // a member that is silent for longer is gone
	claimEvery = 500 * time.Millisecond
	perMember  = 4 * time.Millisecond // more between claims, for each member: a thousand of them ask 200 times a second
	askTimeout = time.Second
	unknown    = 64 // members, where nobody says how many there are
)

// Budgets are one member's, one for each endpoint.
type Budgets struct {
	o    Options
	kick chan struct{}

	mu  sync.Mutex
	all map[string]*Endpoint // +checklocks:mu — by name
}

// New makes them. Nothing is claimed before Run.
func New(o Options) *Budgets {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Table == nil {
		o.Table = NewMem()
	}
	if o.Member == 0 {
		o.Member = stoker.NewIncarnation()
	}
	if o.Count == nil {
		o.Count = func() int { return 0 }
	}
	return &Budgets{o: o, kick: make(chan struct{}, 1), all: map[string]*Endpoint{}}
}

// Endpoint returns the budget of an endpoint; nil, which takes nothing and lets
// everything pass, if it has no limit.
func (b *Budgets) Endpoint(name string) *Endpoint {
	limit := b.o.Limits.Of(name)
	if limit == (Amount{}) {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.all[name]
	if e == nil {
		e = &Endpoint{name: name, limit: limit, looked: time.Now()}
		for k := range e.meters {
			if limit[k] > 0 {
				e.meters[k] = newMeter(b.soon)
			}
		}
		e.alone(b.o.Count(), 0)
		b.all[name] = e
		b.soon()
	}
	return e
}

// soon asks for a claim before its time.
func (b *Budgets) soon() {
	select {
	case b.kick <- struct{}{}:
	default:
	}
}

// Run claims until ctx ends, and gives everything up then.
func (b *Budgets) Run(ctx context.Context) {
	for ctx.Err() == nil {
		wait := time.Duration(0)
		for _, e := range b.endpoints() {
			often := claimEvery + time.Duration(e.count())*perMember
			if !b.claim(ctx, e) {
				often /= 2 // others are about to leave some
			}
			wait = max(wait, often)
		}
		if wait == 0 {
			wait = claimEvery // nothing is limited yet
		}
		wait += rand.N(wait/10) - wait/20
		least := time.NewTimer(wait / 4)
		next := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-next.C:
		case <-least.C: // kicks do not come closer than this
			select {
			case <-ctx.Done():
			case <-next.C:
			case <-b.kick:
			}
		}
		least.Stop()
		next.Stop()
	}
	b.quit(ctx)
}

func (b *Budgets) quit(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askTimeout)
	defer cancel()
	for _, e := range b.endpoints() {
		_ = b.o.Table.Quit(ctx, e.name, b.o.Member) // its claim ends by itself
		for _, m := range e.meters {
			if m != nil {
				m.stop()
			}
		}
	}
}

func (b *Budgets) endpoints() []*Endpoint {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []*Endpoint
	for _, e := range b.all {
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b *Endpoint) int { return strings.Compare(a.name, b.name) })
	return out
}

// claim tells the table how it is, and takes what it is granted. It reports
// whether that is all that it should have.
func (b *Budgets) claim(ctx context.Context, e *Endpoint) bool {
	c := e.wants(b.o.Member)
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	entries, err := b.o.Table.Claim(ctx, e.name, c, e.limit, claimTTL)
	if err != nil {
		if e.silent(b.o.Count()) {
			b.o.Log.Warn("the budget of a store is shared equally: the index does not answer", "endpoint", e.name, "members", e.count(), "error", err)
		}
		return true
	}
	// What others told since the last claim may change the answer.
	if ask := Fair(e.limit, entries, b.o.Member).Sum; ask != c.Ask {
		c.Ask, c.Held = ask, grantOf(entries, b.o.Member)
		if again, err := b.o.Table.Claim(ctx, e.name, c, e.limit, claimTTL); err == nil {
			entries = again
		}
	}
	e.hear(entries, b.o.Member)
	got := grantOf(entries, b.o.Member)
	return got[Bytes] >= 0.99*c.Ask[Bytes] && got[Requests] >= 0.99*c.Ask[Requests]
}

func grantOf(entries []Entry, member stoker.Incarnation) Amount {
	for _, x := range entries {
		if x.Member == member {
			return x.Granted
		}
	}
	return Amount{}
}

// Uses says how much of each limited endpoint this member uses.
func (b *Budgets) Uses() []Use {
	var out []Use
	for _, e := range b.endpoints() {
		out = append(out, e.use())
	}
	return out
}
