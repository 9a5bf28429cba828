package cache

import (
	"context"

	"stoker.dev"
	"stoker.dev/internal/api"
)

// Verify compares what this worker truly has of a dataset with the manifest:
// that the shard's file is there and as long as it must be, and which blocks
// have a recorded checksum. deep reads every byte and checks it. Blocks found
// bad are taken out of use and reported.
func (c *Cache) Verify(ctx context.Context, id stoker.ID, deep bool) (api.VerifyReport, error) {
	r := api.VerifyReport{Worker: c.o.Store.WorkerID(), Shards: []api.ShardReport{}, Failed: c.holds.failures(id)}
	s, err := c.Open(ctx, id)
	if err != nil {
		return r, err
	}
	defer func() { _ = s.Close() }()
	for n := range s.slots {
		if ctx.Err() != nil {
			return r, ctx.Err()
		}
		if rep, ok := s.verifyShard(ctx, uint32(n), deep); ok {
			r.Shards = append(r.Shards, rep)
		}
	}
	return r, nil
}

// verifyShard reports on one shard; false if nothing of it is here.
func (s *Set) verifyShard(ctx context.Context, n uint32, deep bool) (api.ShardReport, bool) {
	d := s.man.Shard(n)
	if err := s.c.o.Store.Check(d.ID); stoker.KindOf(err) == stoker.KindNotExist {
		return api.ShardReport{}, false
	} else if err != nil {
		s.log().Error("shard file is not what was written", "shard", n, "error", err)
		s.discard(n, err)
		return api.ShardReport{}, false
	}
	rep := api.ShardReport{Shard: n}
	if deep {
		var why error
		rep.Corrupt, why = s.readAll(ctx, n)
		for _, b := range rep.Corrupt {
			s.c.counters.Corrupt.Add(1)
			s.retire(n, b, why)
		}
	}
	sl := s.shard(n)
	defer sl.mu.RUnlock()
	if sl.sh == nil {
		return rep, len(rep.Corrupt) > 0
	}
	if sl.sh.Present() < int(d.Blocks) || len(rep.Corrupt) > 0 {
		rep.Present = sl.sh.Bitmap()
	}
	return rep, true
}

// readAll reads every present block and returns those with wrong bytes, and
// what was wrong with the last.
func (s *Set) readAll(ctx context.Context, n uint32) (bad []int, why error) {
	b := blockPool.Get().(*[]byte)
	defer blockPool.Put(b)
	sl := s.shard(n)
	defer sl.mu.RUnlock()
	if sl.sh == nil {
		return nil, nil
	}
	for block := range int(s.man.Shard(n).Blocks) {
		if ctx.Err() != nil {
			return bad, why
		}
		if !sl.sh.Has(block) {
			continue
		}
		off, _, length := blockOf(memberOf(sl.members, block), block)
		if err := sl.sh.ReadBlock(block, off, (*b)[:length]); err != nil && sl.sh.Has(block) {
			bad, why = append(bad, block), err
		}
	}
	return bad, why
}
