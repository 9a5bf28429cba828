package cache

import (
	"math/bits"
	"sync/atomic"

	"stoker.dev"
)

// What a view's READ has brought to the kernel stands in the page cache twice: in the
// view's pages, which serve whoever reads it again, and in those of the shard's file,
// which nobody will look at if that view is the only one who reads the dataset. So
// when all of chunkBlocks blocks in a row were delivered, in whatever order, the file's
// pages of them are let go; see ADR 24.
const chunkBlocks = 16

// delivered notes that a READ got the whole of a block of a large object, and lets the
// pages of its chunk go if that was the last one of it.
func (s *Set) delivered(n uint32, block int) {
	given := &s.slots[n].given
	given.made(int(s.man.Shard(n).Blocks)).set(block)
	s.letPagesGo(n, block/chunkBlocks)
}

// letPagesGo does so if all of a chunk was delivered, and is on the disk for good: what
// is not is dirty, and goes when the shard is sealed.
func (s *Set) letPagesGo(n uint32, chunk int) {
	first := chunk * chunkBlocks
	end := min(first+chunkBlocks, int(s.man.Shard(n).Blocks))
	given := &s.slots[n].given
	if given.count(first, end) < end-first || !s.c.holds.onlyView(s.id) {
		return
	}
	sl := s.shard(n)
	defer sl.mu.RUnlock()
	if sl.sh == nil || !sl.sh.Sealed() {
		return
	}
	for b := first; b < end; b++ {
		given.take(b)
	}
	off, _, _ := blockOf(memberOf(sl.members, first), first)
	last, _, length := blockOf(memberOf(sl.members, end-1), end-1)
	sl.sh.DropPages(off, last+int64(length)-off)
}

// letAllPagesGo does so for all of a shard that has just become durable.
func (s *Set) letAllPagesGo(n uint32) {
	if s.slots[n].given.p.Load() == nil {
		return
	}
	for chunk := range (int(s.man.Shard(n).Blocks) + chunkBlocks - 1) / chunkBlocks {
		s.letPagesGo(n, chunk)
	}
}

// onlyView reports whether one view is all that holds a dataset: nobody else here, and
// no other worker's job, is expected to read it from this worker's disk.
func (h *holds) onlyView(id stoker.ID) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	k := h.known[id]
	return k != nil && k.mounts == 1 && len(h.holdersLocked(id)) == 1
}

// blockSet are some blocks of a shard. Most shards have none and take no memory
// for it.
type blockSet struct{ p atomic.Pointer[marks] }

type marks []atomic.Uint32

func (m marks) set(block int) {
	w, bit := &m[block/32], uint32(1)<<(block%32)
	if w.Load()&bit == 0 {
		w.Or(bit)
	}
}

// made returns the marks, for so many blocks.
func (e *blockSet) made(blocks int) marks {
	for {
		if m := e.p.Load(); m != nil {
			return *m
		}
		m := make(marks, (blocks+31)/32)
		e.p.CompareAndSwap(nil, &m)
	}
}

// take ends a block's mark, and reports whether it had one.
func (e *blockSet) take(block int) bool {
	m := e.p.Load()
	if m == nil {
		return false
	}
	w, bit := &(*m)[block/32], uint32(1)<<(block%32)
	return w.Load()&bit != 0 && w.And(^bit)&bit != 0
}

// count counts the marks of [from, to), which lie in one word.
func (e *blockSet) count(from, to int) int {
	m := e.p.Load()
	if m == nil {
		return 0
	}
	return bits.OnesCount32((*m)[from/32].Load() >> (from % 32) & (1<<(to-from) - 1))
}
