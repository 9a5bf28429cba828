package cache

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/cache/store"
	"stoker.dev/ufs/guard"
)

// A load is a delta fill: scattered changes touch nearly every pack, so that
// hardly a shard of a new generation is one of the old; but an object with the
// same root, key and version has the same bytes in the same blocks. What an
// older generation has of a shard is therefore copied, from this worker's own
// shards first, then from other workers', before the UFS is asked.

const (
	// maxBases bounds the generations looked at along the chain of bases, and
	// again those that are merely known here: each costs a look-up of the path
	// for every object that the nearer ones do not have.
	maxBases = 4
	// gapBlocks is how many blocks that are not needed one request to a worker
	// may span: 2 MiB at most, which cost less than another request.
	gapBlocks = 8
	// lookAgain is long enough that work does not wait all the time for a store that does
	// not answer.
	lookAgain = time.Minute
	maxAsked  = 3 // workers asked for a run that is said to be there
)

// bases are the older manifests that a Set copies from.
type bases struct {
	mu     sync.Mutex
	looked bool                 // +checklocks:mu
	again  time.Time            // +checklocks:mu — when to look for those whose store did not answer; zero: for none
	all    []*manifest.Manifest // +checklocks:mu — the nearest first; open until close

	old yielding // guarded by Cache.room
}

// close gives the manifests back. REQUIRES: nobody uses the Set any more.
func (b *bases) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, m := range b.all {
		_ = m.Close()
	}
	b.all = nil
}

// older returns the manifests that may share objects with this one, the nearest
// first: those along the chain of bases, then those that are known here. They
// are looked for once, and a minute later again if their store did not answer.
func (s *Set) older(ctx context.Context) []*manifest.Manifest {
	s.bases.mu.Lock()
	defer s.bases.mu.Unlock()
	had := s.bases.all // somebody copies from them: they stay open
	if s.bases.looked && (s.bases.again.IsZero() || time.Now().Before(s.bases.again)) {
		return had
	}
	var all []*manifest.Manifest
	lacks, seen := false, map[stoker.ID]bool{s.id: true}
	add := func(id stoker.ID) (base stoker.ID, ok bool) {
		seen[id] = true
		if i := slices.IndexFunc(had, func(m *manifest.Manifest) bool { return m.ID() == id }); i >= 0 {
			all = append(all, had[i])
			return had[i].Header().Base, true
		}
		m, err := s.c.o.Manifests.Load(ctx, id)
		if err != nil {
			lacks = lacks || stoker.KindOf(err) == stoker.KindTransient
			if stoker.KindOf(err) != stoker.KindNotExist && !canceled(err) {
				s.log().Warn("an older generation cannot be opened: nothing is copied from it", "base", id.Short(), "error", err)
			}
			return stoker.ID{}, false
		}
		base = m.Header().Base
		if _, common := manifest.NewTwins(s.man, m); !common {
			_ = m.Close()
			return base, true
		}
		all = append(all, m)
		return base, true
	}
	at := s.man.Header().Base
	for n, ok := 0, true; n < maxBases && ok && !at.IsZero() && !seen[at]; n++ {
		at, ok = add(at)
	}
	chained := len(all)
	for _, m := range had {
		if !seen[m.ID()] {
			add(m.ID())
		}
	}
	for _, id := range s.c.holds.lastUsed() {
		if !seen[id] && len(all) < chained+maxBases {
			add(id)
		}
	}
	if ctx.Err() != nil {
		for _, m := range all {
			if !slices.Contains(had, m) {
				_ = m.Close()
			}
		}
		return had
	}
	s.bases.looked, s.bases.again, s.bases.all = true, time.Time{}, all
	if lacks {
		s.bases.again = time.Now().Add(lookAgain)
	}
	return all
}

// olderIDs names them.
func (s *Set) olderIDs(ctx context.Context) []stoker.ID {
	var ids []stoker.ID
	for _, m := range s.older(ctx) {
		ids = append(ids, m.ID())
	}
	return ids
}

// lastUsed lists the manifests known here: those in grace, then the one used
// last first.
func (h *holds) lastUsed() []stoker.ID {
	h.mu.Lock()
	defer h.mu.Unlock()
	all, at := make([]*holding, 0, len(h.known)), now()
	for _, k := range h.known {
		all = append(all, k)
	}
	slices.SortFunc(all, func(a, b *holding) int {
		return cmp.Or(b.graceAt(at).Compare(a.graceAt(at)), b.LastUsed.Compare(a.LastUsed), slices.Compare(a.Manifest[:], b.Manifest[:]))
	})
	ids := make([]stoker.ID, len(all))
	for i, k := range all {
		ids[i] = k.Manifest
	}
	return ids
}

// origin is an object of a flight as an older generation has it.
type origin struct {
	member manifest.Member // in the shard that is filled
	base   *manifest.Manifest
	shard  uint32          // of base
	was    manifest.Member // in that
}

// block returns the number and the offset of one of the object's blocks there.
func (o *origin) block(b int) (int, int64) {
	rel := b - int(o.member.FirstBlock)
	return int(o.was.FirstBlock) + rel, o.was.Off + int64(rel)*stoker.BlockBytes
}

// origins finds the objects of a run in the older generations, generation by
// generation. It may be the same shard there, under another number: then it is
// not here, but another worker may have said of that generation that it has it.
func (s *Set) origins(ctx context.Context, n uint32, f *flight) []origin {
	older := s.older(ctx)
	if len(older) == 0 {
		return nil
	}
	var out []origin
	members := s.membersIn(n, f.from, f.to)
	for _, base := range older {
		twins, _ := manifest.NewTwins(s.man, base)
		for _, m := range members {
			row, ok := twins.Row(m.Row)
			if !ok {
				continue
			}
			if shard, was, ok := base.Part(row, m.ObjectOff); ok && was.Bytes == m.Bytes {
				out = append(out, origin{m, base, shard, was})
			}
		}
	}
	return out
}

// eachMissing calls fn for the blocks of an object that the run lacks, until
// it returns false.
func (s *Set) eachMissing(n uint32, f *flight, m manifest.Member, fn func(block int) bool) {
	end := min(f.to, int(m.FirstBlock)+manifest.BlocksOf(m.Bytes))
	for b := max(f.from, int(m.FirstBlock)); b < end; b++ {
		if !s.arrived(n, f, b) && !fn(b) {
			return
		}
	}
}

// copyHere copies what this worker has of the run in shards of older
// generations, each block checked against the checksum it was written with.
func (s *Set) copyHere(ctx context.Context, n uint32, f *flight, from []origin) {
	buf := blockPool.Get().(*[]byte)
	defer blockPool.Put(buf)
	var sh *store.Shard
	var open stoker.ID
	release := func() {
		if sh != nil {
			sh.Release()
		}
	}
	defer func() { release() }()
	for i := range from {
		o := &from[i]
		if id := o.base.Shard(o.shard).ID; id != open {
			release()
			sh, open = nil, id
			if id != s.man.Shard(n).ID {
				sh, _ = s.c.o.Store.Get(id)
			}
		}
		if sh == nil {
			continue
		}
		s.eachMissing(n, f, o.member, func(b int) bool { return s.copyBlock(n, f, o, sh, b, *buf) })
		if ctx.Err() != nil {
			return
		}
	}
}

// copyBlock copies one block and reports whether to go on with the object.
func (s *Set) copyBlock(n uint32, f *flight, o *origin, sh *store.Shard, b int, buf []byte) bool {
	was, off := o.block(b)
	to, _, length := blockOf(o.member, b)
	buf = buf[:length]
	err := sh.ReadBlock(was, off, buf)
	switch stoker.KindOf(err) {
	case stoker.KindCorrupt:
		s.c.counters.Corrupt.Add(1)
		s.log().Error("block does not match its checksum", "base", o.base.ID().Short(), "shard", o.shard, "block", was)
		return true // its good blocks are still of use; who reads that generation retires it
	case stoker.KindNotExist:
		return true
	}
	if err == nil {
		err = s.deliver(n, f, b, to, buf)
	}
	if err != nil {
		s.log().Debug("a block was not copied", "shard", n, "block", b, "error", err)
		return false
	}
	s.copied(n, length)
	return true
}

// copied counts bytes of an older generation.
func (s *Set) copied(n uint32, length int) {
	s.c.counters.CopiedBytes.Add(int64(length))
	if a := s.accountOf(n); a != nil {
		a.copied.Add(int64(length))
	}
}

// copyFromPeers asks other workers for what the run still lacks and an older
// generation has, shard by shard of that. lacks: some of it is still lacking;
// silent: a worker that may have it did not answer.
func (s *Set) copyFromPeers(ctx context.Context, n uint32, f *flight, from []origin) (lacks, silent bool) {
	all := from
	for len(from) > 0 && ctx.Err() == nil {
		same := 1
		for same < len(from) && from[same].base == from[0].base && from[same].shard == from[0].shard {
			same++
		}
		wanted := map[int]int{} // block there -> here
		for i := range from[:same] {
			s.eachMissing(n, f, from[i].member, func(b int) bool {
				was, _ := from[i].block(b)
				wanted[was] = b
				return true
			})
		}
		if len(wanted) > 0 && s.copyRuns(ctx, n, f, &from[0], wanted) {
			silent = true
		}
		from = from[same:]
	}
	for i := range all {
		s.eachMissing(n, f, all[i].member, func(int) bool { lacks = true; return false })
	}
	return lacks, silent
}

// waitsFor reports whether a load that a flight is for waits for a worker that
// may come back with what the flight lacks, instead of fetching it: for as long as
// for one that still copies, in all, unless a reader waits.
func (s *Set) waitsFor(n uint32, f *flight, silent bool) bool {
	a := s.accountOf(n)
	if a == nil || f.urgency.Priority() < guard.Preload {
		return false
	}
	first, left := a.away(silent, s.c.waitMost)
	if first {
		s.log().Info("a worker does not answer that may have what a load copies: it is waited for", "load", a.reservation, "atMost", s.c.waitMost)
	}
	return left
}

// copyRuns asks those who hold one old shard for blocks of it. silent: one of
// them did not answer.
func (s *Set) copyRuns(ctx context.Context, n uint32, f *flight, o *origin, wanted map[int]int) (silent bool) {
	blocks := make([]int, 0, len(wanted))
	for was := range wanted {
		blocks = append(blocks, was)
	}
	slices.Sort(blocks)
	for asked, p := range s.c.o.Directory.Holders(ctx, o.base.ID(), o.shard) {
		if asked == maxAsked || len(wanted) == 0 {
			break
		}
		for _, r := range runsOf(blocks) {
			var here error // not that worker's
			err := s.c.o.Fetcher.Fetch(ctx, p, o.base.ID(), o.shard, r.from, r.to, false, func(was int, data []byte) error {
				b, ok := wanted[was]
				if !ok {
					return nil
				}
				off, length := s.where(n, b)
				if len(data) != length {
					return stoker.Errorf(stoker.KindCorrupt, "cache.peer", p.ID, "block %d has %d bytes, want %d", was, len(data), length)
				}
				if here = s.deliver(n, f, b, off, data); here != nil {
					return here
				}
				delete(wanted, was)
				s.count(func(r *Reads) { r.PeerBytes.Add(int64(length)) })
				s.copied(n, length)
				return nil
			})
			if err != nil {
				if !canceled(err) {
					s.log().Debug("peer did not serve", "peer", p.ID, "base", o.base.ID().Short(), "shard", o.shard, "error", err)
				}
				silent = silent || here == nil && stoker.KindOf(err) == stoker.KindTransient
				break
			}
		}
		blocks = slices.DeleteFunc(blocks, func(was int) bool { _, lacks := wanted[was]; return !lacks })
	}
	return silent
}

// runsOf joins sorted blocks to runs that span only short gaps.
func runsOf(blocks []int) []piece {
	var out []piece
	for _, b := range blocks {
		if last := len(out) - 1; last >= 0 && b-out[last].to <= gapBlocks {
			out[last].to = b + 1
			continue
		}
		out = append(out, piece{b, b + 1})
	}
	return out
}
