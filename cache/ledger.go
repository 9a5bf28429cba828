package cache

import (
	"bytes"
	"encoding/json"
	"slices"
	"sync"
	"time"

	"stoker.dev/cache/store"
	"stoker.dev/internal/api"
)

// What accounts come to is written down while it changes: a worker that is killed
// in mid-load goes on with what its last life spent, but for a second at most.

const (
	accountsState = "accounts"
	saveEvery     = time.Second
	// endedKept is how many closed accounts are remembered: a controller may ask for
	// the same part again, or for what is left of it by another plan.
	endedKept = 64
)

// spending is what stands of an account in the document.
type spending struct {
	Reservation string `json:"reservation"`
	Had         int64  `json:"had"` // bytes of the part that were here, or on their way
	api.LoadSpent
}

// ledger writes the document.
type ledger struct {
	mu    sync.Mutex // held while it is written
	last  []byte     // +checklocks:mu
	fails bool       // +checklocks:mu — and that has been said
}

// refetched is what came twice under the account.
func (a *account) refetched() api.Refetched {
	return api.Refetched{Retry: a.count.RetriedBytes.Load(), Hedge: a.count.HedgedBytes.Load(), Bypass: a.bypass.Bytes.Load(), Lost: a.lost.Load()}
}

// spent is what the part has cost, with the accounts before this one.
func (a *account) spent() api.LoadSpent {
	p := api.LoadProgress{Run: a.run, Earlier: a.earlier, UFSRequests: a.count.Requests.Load(), UFSBytes: a.count.Bytes.Load(), Refetched: a.refetched()}
	return p.Spent()
}

// had is what is here of the part, or was on its way.
func (a *account) had() int64 {
	r := a.refetched()
	return a.start + a.count.Bytes.Load() - r.Retry - r.Hedge - r.Lost
}

// resumeLocked returns what accounts of a part came to. What they had, and is not
// here any more, has to come again: it is lost.
func (a *accounts) resumeLocked(reservation string, start int64) *api.LoadSpent {
	i := slices.IndexFunc(a.ended, func(e spending) bool { return e.Reservation == reservation })
	if i < 0 {
		return nil
	}
	e := a.ended[i]
	a.ended = slices.Delete(a.ended, i, i+1)
	gone := max(0, e.Had-start)
	e.Refetched.Lost, e.Died = e.Refetched.Lost+gone, e.Died+gone
	return &e.LoadSpent
}

func (a *accounts) endedLocked(e spending) {
	a.ended = slices.DeleteFunc(a.ended, func(o spending) bool { return o.Reservation == e.Reservation })
	a.ended = append(a.ended[max(0, len(a.ended)+1-endedKept):], e)
}

// carry has the closed account of a part go on under the plan that replaces its own.
func (a *accounts) carry(from, to string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for i := range a.ended {
		if a.ended[i].Reservation == from {
			a.ended[i].Reservation = to
		}
	}
}

// restore reads what the last life wrote. A document that is damaged is as good as
// none: figures are missing then, no data.
func (a *accounts) restore(st *store.Store) {
	body, err := st.GetState(accountsState)
	if err != nil {
		return
	}
	var ended []spending
	if json.Unmarshal(body, &ended) == nil {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.ended = ended[max(0, len(ended)-endedKept):]
	}
}

// document is what is to be written; open reports whether an account is.
func (a *accounts) document() (body []byte, open bool, err error) {
	a.mu.Lock()
	all := slices.Clone(a.ended)
	for _, x := range a.open {
		all = append(all, spending{x.reservation, x.had(), x.spent()})
	}
	open = len(a.open) > 0
	ended := len(a.ended)
	a.mu.Unlock()
	if len(all) == 0 {
		return nil, false, nil
	}
	slices.SortFunc(all[ended:], func(a, b spending) int { return bytes.Compare([]byte(a.Reservation), []byte(b.Reservation)) })
	body, err = json.Marshal(all)
	return body, open, err
}

// saveAccounts writes the document if it has changed, and reports whether an account
// is open.
func (c *Cache) saveAccounts(put func(name string, body []byte) error) (open bool) {
	l := &c.accounts.saves
	l.mu.Lock()
	defer l.mu.Unlock()
	body, open, err := c.accounts.document()
	if err == nil && !bytes.Equal(body, l.last) {
		err = put(accountsState, body)
	}
	if err != nil && !l.fails {
		c.o.Log.Warn("what loads have cost is not written down: a restart would forget it", "error", err)
	}
	if l.fails = err != nil; !l.fails {
		l.last = body
	}
	return open
}

// tendAccounts writes the document while an account is open, until the cache closes.
func (c *Cache) tendAccounts() {
	for {
		select {
		case <-c.accounts.some:
		case <-c.stop.Done():
			return
		}
		for open := true; open; {
			if wait(c.stop, saveEvery) != nil {
				return
			}
			open = c.saveAccounts(c.o.Store.PutNote)
		}
	}
}
