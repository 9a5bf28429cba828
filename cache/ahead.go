package cache

import (
	"sync"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/cache/prefetch"
	"stoker.dev/ufs/guard"
)

const (
	aheadMost   = 32               // fills ahead of readers run at a time, of all datasets
	aheadWindow = 2 * demandWindow // of a stream that is read ahead by more than that, at a time: half the requests
)

// note tells of a read of blocks [from, to) of shard n, which lie in m, and begins to bring in what will be read next. waited: for bytes that were
// not here.
func (s *Set) note(n uint32, m manifest.Member, from, to int, waited bool) {
	at := int(m.ObjectOff/stoker.BlockBytes) - int(m.FirstBlock) // of the shard's block 0 in the object
	if s.c.o.ReadAheadBytes < 0 {
		return
	}
	r := prefetch.Read{At: prefetch.Pos{Shard: n, Block: from}, After: s.behind(n, to), Blocks: to - from,
		Object: uint32(m.Row), Left: manifest.BlocksOf(s.man.Entry(m.Row).Bytes) - at - to, First: at+from == 0, Waited: waited}
	if ahead := s.tracker.Note(r); ahead > 0 && !s.steps.Follows(r.Object) {
		s.bringAhead(r.After, ahead)
	}
}

// behind is the position of a block of shard n, or of what follows its last one.
func (s *Set) behind(n uint32, block int) prefetch.Pos {
	if block >= int(s.man.Shard(n).Blocks) {
		return prefetch.Pos{Shard: n + 1}
	}
	return prefetch.Pos{Shard: n, Block: block}
}

func (s *Set) memberAt(n uint32, block int) manifest.Member {
	sl := s.shard(n)
	defer sl.mu.RUnlock()
	return memberOf(sl.members, block)
}

// bringAhead begins fills of what is missing of some blocks, each of one
// object and no larger than a window, until as many run as may.
func (s *Set) bringAhead(at prefetch.Pos, blocks int) {
	window := demandWindow
	if blocks > aheadWindow {
		window = aheadWindow
	}
	for blocks > 0 && int(at.Shard) < len(s.slots) {
		m := s.memberAt(at.Shard, at.Block)
		first := int(m.FirstBlock)
		end := min(first+manifest.BlocksOf(m.Bytes), first+((at.Block-first)/window+1)*window)
		var counts func(*Reads)
		if at.Block == first && m.ObjectOff == 0 {
			counts = func(r *Reads) { r.Files.Add(1) }
		}
		if more := s.fillAhead(at.Shard, at.Block, end, counts); !more {
			return
		}
		blocks -= end - at.Block
		at = s.behind(at.Shard, end)
	}
}

// fillAhead begins one, unless all is here or on its way. more: others may begin
// now. counts, unless nil, is called once if it has brought something in.
func (s *Set) fillAhead(n uint32, from, to int, counts func(*Reads)) (more bool) {
	c := s.c
	c.fills.mu.Lock()
	defer c.fills.mu.Unlock()
	first, end, there := s.gapLocked(n, from, to)
	if first == to || there != nil {
		return true
	}
	if c.stop.Err() != nil {
		return false
	}
	select {
	case c.ahead <- struct{}{}: // given back when the flight has ended
	default:
		return false
	}
	s.count(func(r *Reads) { r.AheadBlocks.Add(int64(end - first)) })
	w := why{early: true, prio: guard.Prefetch}
	if counts != nil {
		w.brought = sync.OnceFunc(func() { s.count(counts) })
	}
	s.startLocked(n, first, end, w)
	return true
}
