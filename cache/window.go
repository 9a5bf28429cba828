package cache

import (
	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/cache/prefetch"
)

// demandWindow is how much of a large object one miss brings in at most: 4 MiB, so
// that a sequential reader meets every 16th block missing, not each one.
// Objects up to this size come in whole.
const demandWindow = 4 << 20 / stoker.BlockBytes

// windowEnd returns where what a miss of a large object brings in ends: the end of the
// 4 MiB that it lies in, or, of what is read at random, the end of what was asked for; see
// prefetch.Windows. Who reads what a load brings in anyway gets the window. begins: somebody
// begins the file, and gets as much of its window as prefetch.Heads says.
func (s *Set) windowEnd(n uint32, m manifest.Member, block, asked int) (end int, begins bool) {
	first, to := int(m.FirstBlock), int(m.FirstBlock)+manifest.BlocksOf(m.Bytes)
	from := first + (block-first)/demandWindow*demandWindow
	end = min(to, from+demandWindow)
	if end == block+1 && asked == 1 || len(s.c.loads.of(s.id)) > 0 {
		return end, false
	}
	miss, coming := s.missAt(n, m, block, from, end)
	if coming > 0 {
		return min(end, coming), false
	}
	slot := &s.slots[n]
	if m.ObjectOff == 0 && block == first {
		end = min(end, first+max(asked, s.heads.Blocks()))
		s.mark(n, &slot.head, first+asked, end)
		return end, true
	}
	whole := s.windows.Missed(miss)
	if !whole {
		to = min(to, block+max(asked, miss.Run))
		s.spared(m, to, end)
		end = to
	}
	switch {
	case m.ObjectOff == 0 && from == first && miss.Run >= block-first: // on from the beginning
		s.heads.Read(uint32(m.Row), block+1-first)
		s.mark(n, &slot.head, block+asked, min(end, first+demandWindow))
	case whole && miss.Run == 0:
		s.mark(n, &slot.beside, block+asked, end)
	}
	return end, false
}

// mark puts blocks [from, to) of shard n into a set.
func (s *Set) mark(n uint32, in *blockSet, from, to int) {
	if from >= to {
		return
	}
	marks := in.made(int(s.man.Shard(n).Blocks))
	for b := from; b < to; b++ {
		marks.set(b)
	}
}

// missAt tells what lies around a missing block in its window, and right before it, also
// in the shard before. coming: where what already brings that block in ends; else 0.
func (s *Set) missAt(n uint32, m manifest.Member, block, from, end int) (miss prefetch.Miss, coming int) {
	s.c.fills.mu.Lock()
	defer s.c.fills.mu.Unlock()
	if coming = s.comesLocked(n, block); coming > 0 {
		return miss, coming
	}
	miss.Object = uint32(m.Row)
	shard, b, first := n, block, int(m.FirstBlock)
	for ; miss.Run < prefetch.FirstWindow; miss.Run++ {
		if b == first && m.ObjectOff > 0 && shard == n {
			shard, b, first = n-1, stoker.ExtentBytes/stoker.BlockBytes, 0
		}
		if b--; b < first || s.comesLocked(shard, b) == 0 {
			break
		}
	}
	for b := from; b < end && !miss.Near; b++ {
		miss.Near = s.comesLocked(n, b) > 0
	}
	return miss, 0
}

// comesLocked returns where what has brought a block in, or does so, ends as far as is
// known; 0: nothing does.
func (s *Set) comesLocked(n uint32, block int) int {
	for _, f := range s.c.fills.runs[s.man.Shard(n).ID] {
		if f.from <= block && block < f.to {
			return f.to
		}
	}
	if s.firstMissing(n, block, block+1) == block {
		return 0
	}
	return block + 1
}

// readOn notes a read of a block. The first one of what a window has brought beside
// what was asked for tells that the window was not in vain; of a file that was begun each
// one tells how far it is read.
func (s *Set) readOn(n uint32, block int) {
	if s.slots[n].head.take(block) {
		m := s.memberAt(n, block)
		s.heads.Read(uint32(m.Row), block+1-int(m.FirstBlock))
	}
	beside := &s.slots[n].beside
	if !beside.take(block) {
		return
	}
	m := s.memberAt(n, block)
	first := int(m.FirstBlock)
	from := first + (block-first)/demandWindow*demandWindow
	for b := from; b < min(from+demandWindow, first+manifest.BlocksOf(m.Bytes)); b++ {
		beside.take(b)
	}
	s.windows.Used(uint32(m.Row))
}
