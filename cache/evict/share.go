package evict

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"

	"stoker.dev"
)

// Share decides for the data of one dataset while no job holds it: what of it
// is stored for a read, and what of it goes for that. Its zero value is Auto.
// Its methods may be called from any goroutine.
type Share struct {
	pattern Pattern
	reads   atomic.Uint32
	skewed  atomic.Bool // by the pattern, when it was looked at last
	counts  atomic.Bool // lfu is not nil

	mu   sync.Mutex
	mode Mode // +checklocks:mu — "" is Auto
	lfu  *LFU // +checklocks:mu — nil unless in force
}

const lookEvery = 256 // reads

// Use sets the mode.
func (s *Share) Use(m Mode) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mode = m
	if m == KeepMode {
		s.dropLocked()
	}
}

// Read notes a read of a block and reports whether the shard's use counts: then
// Used wants to know of it.
func (s *Share) Read(shard uint32, block int) bool {
	s.pattern.Read(shard, block)
	if s.reads.Add(1)%lookEvery == 0 {
		s.skewed.Store(s.pattern.Skewed())
	}
	return s.counts.Load()
}

// Used notes a read of one block of a shard that is here. A shard that is read
// whole has been used once, however many blocks it has.
func (s *Share) Used(id stoker.ID, blocks int) {
	if blocks > 1 && rand.IntN(blocks) > 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lfu != nil {
		s.lfu.Used(id)
	}
}

// InForce is the mode now: KeepMode or LFUMode.
func (s *Share) InForce() Mode {
	s.mu.Lock()
	m := s.mode
	s.mu.Unlock()
	if m == LFUMode || m != KeepMode && s.skewed.Load() {
		return LFUMode
	}
	return KeepMode
}

// Admit is Policy's, by the mode in force. LFU learns from here what there is
// of the dataset when it comes into force.
func (s *Share) Admit(x Shard, free int64, here func() []Shard) (ok bool, victims []Shard) {
	mode := s.InForce()
	s.mu.Lock()
	defer s.mu.Unlock()
	if mode == KeepMode {
		s.dropLocked()
		return Keep{}.Admit(x, free)
	}
	if s.lfu == nil {
		s.beginLocked(here(), free)
	}
	return s.lfu.Admit(x, free)
}

// beginLocked puts LFU into force: it has room for what is here and what is free.
func (s *Share) beginLocked(here []Shard, free int64) {
	room := max(free, 0)
	for _, h := range here {
		room += h.Bytes
	}
	s.lfu = NewLFU(room)
	for _, h := range here {
		room -= h.Bytes
		s.lfu.Admit(h, room+h.Bytes)
	}
	s.counts.Store(true)
}

func (s *Share) dropLocked() {
	s.lfu = nil
	s.counts.Store(false)
}

// Held is told that a job holds the dataset: what is here is no policy's any more.
func (s *Share) Held() {
	if s.counts.Load() {
		s.mu.Lock()
		s.dropLocked()
		s.mu.Unlock()
	}
}

// Forget is told that a shard is not here, although it was admitted.
func (s *Share) Forget(id stoker.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lfu != nil {
		s.lfu.Forget(id)
	}
}
