package cache

import (
	"slices"
	"sync"
)

// pulled are the shards of an account that readers wait for: its load brings the
// rest of them next, since who reads one object of a shard mostly reads others.
type pulled struct {
	mu   sync.Mutex
	next []uint32 // +checklocks:mu — the one that was asked for first, first
}

// ask pulls a shard forward, if a load brings it.
func (s *Set) ask(n uint32) {
	a := s.accountOf(n)
	if a == nil {
		return
	}
	a.pulled.mu.Lock()
	defer a.pulled.mu.Unlock()
	if !slices.Contains(a.pulled.next, n) {
		a.pulled.next = append(a.pulled.next, n)
	}
}

// turns hands out the shards of a load, each once: in order, but those that
// readers asked for first. Only the load's own goroutine uses it.
type turns struct {
	order  []uint32
	begun  map[uint32]bool
	pulled *pulled
}

func newTurns(order []uint32, p *pulled) *turns {
	return &turns{order: order, begun: make(map[uint32]bool, len(order)), pulled: p}
}

func (t *turns) next() (n uint32, ok bool) {
	t.pulled.mu.Lock()
	first := t.pulled.next
	t.pulled.next = nil
	t.pulled.mu.Unlock()
	if len(first) > 0 {
		t.order = slices.Concat(first, t.order)
	}
	for len(t.order) > 0 {
		n, t.order = t.order[0], t.order[1:]
		if !t.begun[n] {
			t.begun[n] = true
			return n, true
		}
	}
	return 0, false
}
