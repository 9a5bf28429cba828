package budget

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"stoker.dev"
)

// Endpoint is what one member may ask of one endpoint. A nil one has no limit.
type Endpoint struct {
	name   string
	limit  Amount // of the whole cluster
	meters [kinds]*meter

	mu      sync.Mutex
	granted Amount    // +checklocks:mu — by the table
	rate    Amount    // +checklocks:mu — that is in force
	heard   time.Time // +checklocks:mu — when the table last answered; zero: never
	lost    bool      // +checklocks:mu — it did not when last asked
	members int       // +checklocks:mu — that it knew
	looked  time.Time // +checklocks:mu
	used    Amount    // +checklocks:mu — in a second, at the last look
	claims  []Entry   // +checklocks:mu — the last that were heard
}

// Use is how much of an endpoint a member uses, in a second.
type Use struct {
	Endpoint string
	Limit    Amount // of the whole cluster; 0 = none
	Share    Amount // what this member may take now
	Used     Amount // what it took lately
	Taken    Amount // since it started
	Waited   time.Duration
	Members  int  // that share it, this one included
	Alone    bool // the index does not answer: an equal share is taken
}

// Take waits until n of a kind may be taken for a dataset. blocked, if not nil,
// is called before a wait, and what it returns after it.
func (e *Endpoint) Take(ctx context.Context, kind int, who Ranked, name string, n int64, blocked func() func()) error {
	if e == nil || e.meters[kind] == nil || e.meters[kind].try(who, name, float64(n)) {
		return ctx.Err()
	}
	if blocked != nil {
		defer blocked()()
	}
	return e.meters[kind].take(ctx, who, name, float64(n))
}

// Try takes n if it may be taken at once.
func (e *Endpoint) Try(kind int, who Ranked, name string, n int64) bool {
	return e == nil || e.meters[kind] == nil || e.meters[kind].try(who, name, float64(n))
}

// Pay takes n that came unasked for; a negative n gives back what was taken
// and not used.
func (e *Endpoint) Pay(kind int, who Ranked, name string, n int64) {
	if e != nil && e.meters[kind] != nil && n != 0 {
		e.meters[kind].pay(who, name, float64(n))
	}
}

// wants makes the claim of what was seen since the last one.
func (e *Endpoint) wants(self stoker.Incarnation) Claim {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := time.Now()
	d := max(now.Sub(e.looked), time.Millisecond)
	e.looked = now
	wants, ranks := map[flowKey]Amount{}, map[flowKey]int64{}
	for k, m := range e.meters {
		if m == nil {
			continue
		}
		e.used[k] = 0
		for key, s := range m.look(d) {
			e.used[k] += s.rate
			w := wants[key]
			switch w[k] = s.rate * 1.25; {
			case s.waiting && key.class == Demand: // it is served at once: no more than it may soon use
				w[k] = min(e.limit[k], 2*s.rate+e.limit[k]/float64(2*max(1, e.members)))
			case s.waiting:
				w[k] = e.limit[k]
			}
			wants[key], ranks[key] = w, s.rank
		}
	}
	c := Claim{Member: self, Held: e.granted}
	for key, w := range wants {
		c.Flows = append(c.Flows, Flow{Class: key.class, Rank: ranks[key], Name: key.name, Want: w})
	}
	slices.SortFunc(c.Flows, func(a, b Flow) int {
		return cmp.Or(cmp.Compare(a.Class, b.Class), cmp.Compare(b.Rank, a.Rank), cmp.Compare(b.Want[Bytes], a.Want[Bytes]), cmp.Compare(a.Name, b.Name))
	})
	c.Flows = c.Flows[:min(len(c.Flows), mostFlows)]
	guess := []Entry{{Member: self, Flows: c.Flows}}
	for _, x := range e.claims {
		if x.Member != self {
			guess = append(guess, x)
		}
	}
	c.Ask = Fair(e.limit, guess, self).Sum
	return c
}

// mostFlows bounds what a claim tells; the rest is served from what these have.
const mostFlows = 64

// hear takes over what the table granted.
func (e *Endpoint) hear(entries []Entry, self stoker.Incarnation) {
	share := Fair(e.limit, entries, self)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.claims, e.members, e.heard, e.lost = entries, len(entries), time.Now(), false
	e.granted = grantOf(entries, self)
	e.rate = e.granted
	for k, m := range e.meters {
		if m == nil {
			continue
		}
		weight := map[string]float64{}
		for _, x := range entries {
			for j, f := range x.Flows {
				if x.Member == self {
					weight[f.Name] += share.Flows[j][k] / e.limit[k]
				}
			}
		}
		m.set(e.rate[k], e.limit[k]/float64(e.members)*lend.Seconds(), weight)
	}
}

// silent notes that the table did not answer, and reports whether that is new.
func (e *Endpoint) silent(count int) bool {
	e.mu.Lock()
	news, heard := !e.lost, e.heard
	e.lost = true
	e.mu.Unlock()
	since := time.Duration(0)
	if !heard.IsZero() {
		since = time.Since(heard)
	}
	e.alone(count, since)
	return news
}

// alone sets an equal share. While claims of others may be in force it is no
// more than what was granted.
func (e *Endpoint) alone(count int, since time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.members = max(e.members, count)
	members := float64(e.members)
	if e.members == 0 {
		members = unknown
	}
	for k, m := range e.meters {
		if m == nil {
			continue
		}
		e.rate[k] = e.limit[k] / members
		if !e.heard.IsZero() && since < claimTTL {
			e.rate[k] = min(e.rate[k], e.granted[k])
		} else if !e.heard.IsZero() {
			e.granted[k] = e.rate[k] // what is held when the table comes back
		}
		m.set(e.rate[k], e.limit[k]/members*lend.Seconds(), nil)
	}
}

func (e *Endpoint) count() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.members
}

func (e *Endpoint) use() Use {
	e.mu.Lock()
	defer e.mu.Unlock()
	u := Use{Endpoint: e.name, Limit: e.limit, Share: e.rate, Used: e.used, Members: e.members, Alone: e.lost}
	for k, m := range e.meters {
		if m != nil {
			taken, waited := m.sums()
			u.Taken[k], u.Waited = taken, u.Waited+waited
		}
	}
	return u
}
