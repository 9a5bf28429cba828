package cache

import (
	"context"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"stoker.dev"
	"stoker.dev/internal/api"
)

// Verify compares what this worker truly has of a dataset with the manifest:
// that the shard's file is there and as long as it must be, and which blocks
// have a recorded checksum. deep reads every byte from the disk and checks it;
// Holdings tell how far that is. Blocks found bad are taken out of use and
// reported.
func (c *Cache) Verify(ctx context.Context, id stoker.ID, deep bool) (api.VerifyReport, error) {
	r := api.VerifyReport{Worker: c.o.Store.WorkerID(), Shards: []api.ShardReport{}, Failed: c.holds.failures(id)}
	s, err := c.Open(ctx, id)
	if err != nil {
		return r, err
	}
	defer func() { _ = s.Close() }()
	var reading *check
	if deep {
		reading = c.checks.begin(s)
		defer c.checks.end(id, reading)
	}
	for n := range s.slots {
		if ctx.Err() != nil {
			return r, ctx.Err()
		}
		if rep, ok := s.verifyShard(ctx, uint32(n), reading); ok {
			r.Shards = append(r.Shards, rep)
		}
	}
	if deep {
		r.ReadBlocks, r.ReadBytes = reading.blocks, reading.bytes.Load()
	}
	return r, ctx.Err()
}

// check is a deep verification that runs: what it has read and found right.
type check struct {
	total  int64 // object bytes that were here when it began
	blocks int64 // of its own goroutine
	bytes  atomic.Int64
}

// checks are those that run, by manifest; of several of one the last.
type checks struct {
	mu  sync.Mutex
	all map[stoker.ID]*check // +checklocks:mu
}

func (cs *checks) begin(s *Set) *check {
	k := &check{}
	for n := range uint32(len(s.slots)) {
		k.total += s.residentBytes(n, 0, int(s.man.Shard(n).Blocks))
	}
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if cs.all == nil {
		cs.all = map[stoker.ID]*check{}
	}
	cs.all[s.id] = k
	return k
}

func (cs *checks) end(id stoker.ID, k *check) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if cs.all[id] == k {
		delete(cs.all, id)
	}
}

// of says how far the one of a manifest is; nil: none runs.
func (cs *checks) of(id stoker.ID) *api.CheckProgress {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if k := cs.all[id]; k != nil {
		return &api.CheckProgress{Bytes: k.bytes.Load(), TotalBytes: k.total}
	}
	return nil
}

// verifyShard reports on one shard; false if nothing of it is here. reading is
// nil unless every byte is to be read.
func (s *Set) verifyShard(ctx context.Context, n uint32, reading *check) (api.ShardReport, bool) {
	d := s.man.Shard(n)
	if err := s.c.o.Store.Check(d.ID); stoker.KindOf(err) == stoker.KindNotExist {
		return api.ShardReport{}, false
	} else if err != nil {
		s.log().Error("shard file is not what was written", "shard", n, "error", err)
		s.discard(n, err)
		return api.ShardReport{}, false
	}
	rep := api.ShardReport{Shard: n}
	if reading != nil {
		var why error
		rep.Corrupt, why = s.readAll(ctx, n, reading)
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
// what was wrong with the last. It reads past the page cache: what the kernel
// has in memory says nothing of the disk.
func (s *Set) readAll(ctx context.Context, n uint32, reading *check) (bad []int, why error) {
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
		if sl.sh.Sealed() {
			_ = unix.Fadvise(int(sl.sh.File().Fd()), off, int64(length), unix.FADV_DONTNEED) // pages that are mapped stay
		}
		err := sl.sh.ReadBlock(block, off, (*b)[:length])
		switch {
		case err == nil:
			reading.blocks++
			reading.bytes.Add(int64(length))
		case sl.sh.Has(block):
			bad, why = append(bad, block), err
		}
	}
	return bad, why
}
