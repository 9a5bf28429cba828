package cache

import (
	"stoker.dev/cache/manifest"
)

type piece struct{ from, to int }

// pieces cuts a shard into the runs that flights bring in.
func (s *Set) pieces(n uint32) []piece { return cut(s.man.Members(n, nil)) }

// wanted are the pieces that a load brings of a shard.
func (s *Set) wanted(l *load, n uint32) (out []piece) {
	members := s.man.Members(n, nil)
	if l.only == nil {
		return cut(members)
	}
	for len(members) > 0 {
		some := 0
		for some < len(members) && l.only.Has(s.man.Path(members[some].Row)) {
			some++
		}
		out = append(out, cut(members[:some])...)
		members = members[min(some+1, len(members)):]
	}
	return out
}

// wantedBytes are the object bytes of a shard that a load brings.
func (s *Set) wantedBytes(l *load, n uint32) (sum int64) {
	if l.only == nil {
		return s.objectBytes(n)
	}
	for _, m := range s.man.Members(n, nil) {
		if l.only.Has(s.man.Path(m.Row)) {
			sum += m.Bytes
		}
	}
	return sum
}

// cut makes pieces of members that follow each other.
func cut(members []manifest.Member) []piece {
	var out []piece
	cur, objects := piece{}, 0
	for i, m := range members {
		if i == 0 {
			cur = piece{int(m.FirstBlock), int(m.FirstBlock)}
		}
		end := int(m.FirstBlock) + manifest.BlocksOf(m.Bytes)
		for b := int(m.FirstBlock); b < end; b = cur.to {
			if cur.to-cur.from >= pieceBlocks || objects == pieceObjects {
				out, cur, objects = append(out, cur), piece{b, b}, 0
			}
			cur.to = min(end, cur.from+max(pieceBlocks, b-cur.from+1))
		}
		objects++
	}
	if cur.to > cur.from {
		out = append(out, cur)
	}
	return out
}

// flush makes durable what a load brought of a shard that it does not complete. Where
// that fails the disk is at fault, and the shard is retired: the load mends it.
func (s *Set) flush(n uint32) {
	sl := s.shard(n)
	var err error
	if sl.sh != nil && !sl.sh.Sealed() {
		err = sl.sh.Flush()
	}
	sl.mu.RUnlock()
	if err != nil {
		s.log().Error("cannot make a part of a shard durable", "shard", n, "error", err)
	}
}
