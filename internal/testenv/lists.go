package testenv

import (
	"net/http"
	"slices"
	"strings"
	"sync"
)

// List is one request for a page of a listing.
type List struct {
	After    string // start-after; "" = from the beginning of the prefix, or by token
	Token    string // continuation-token; "" = the first page of a range of keys
	Folders  bool   // it asks for what lies in one folder
	Answered bool   // it was passed on to the store
	Ended    bool   // and the store's answer has been passed back
}

// lists are the requests of one bucket, and the gate before the store.
type lists struct {
	log  []List
	gate *listGate
}

type listGate struct {
	from     int // the first request to wait, by its place in the log
	reached  chan struct{}
	once     sync.Once
	one, all chan struct{}
}

// HoldLists lets n more requests for pages of a bucket's listing pass. Those
// that follow wait: reached is closed at the first of them, pass lets one go on
// and returns once it has, release all. A caller that goes away takes its
// request with it.
func (p *Proxy) HoldLists(bucket string, n int) (reached <-chan struct{}, pass, release func()) {
	g := &listGate{reached: make(chan struct{}), one: make(chan struct{}), all: make(chan struct{})}
	p.mu.Lock()
	defer p.mu.Unlock()
	of := p.listsOf(bucket)
	g.from, of.gate = len(of.log)+n, g
	return g.reached, func() { g.one <- struct{}{} }, sync.OnceFunc(func() { close(g.all) })
}

// Lists returns the requests for pages of a bucket's listing so far, in order.
func (p *Proxy) Lists(bucket string) []List {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.listsOf(bucket).log)
}

// listsOf is called with mu held.
func (p *Proxy) listsOf(bucket string) *lists {
	if p.lists[bucket] == nil {
		p.lists[bucket] = &lists{}
	}
	return p.lists[bucket]
}

// listed enters a request, if it is for a page of a listing, and reports whether
// it is to be passed on; ended is called when it was.
func (p *Proxy) listed(r *http.Request) (ended func(), ok bool) {
	q := r.URL.Query()
	if r.Method != http.MethodGet || q.Get("list-type") != "2" {
		return func() {}, true
	}
	p.mu.Lock()
	of := p.listsOf(strings.Trim(r.URL.Path, "/"))
	at, g := len(of.log), of.gate
	of.log = append(of.log, List{After: q.Get("start-after"), Token: q.Get("continuation-token"), Folders: q.Get("delimiter") != ""})
	p.mu.Unlock()
	if g != nil && at >= g.from {
		g.once.Do(func() { close(g.reached) })
		select {
		case <-g.one:
		case <-g.all:
		case <-r.Context().Done():
			return func() {}, false
		}
	}
	p.mu.Lock()
	of.log[at].Answered = true
	p.mu.Unlock()
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		of.log[at].Ended = true
	}, true
}
