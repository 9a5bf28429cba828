package cache

import (
	"context"

	"stoker.dev"
	"stoker.dev/cache/peer"
	"stoker.dev/ufs/guard"
)

var _ peer.Blocks = (*Cache)(nil)

// run serves blocks of one shard to a peer.
type run struct {
	s       *Set
	n       uint32
	to      int
	through bool
	share   *share
	prio    guard.Priority // of what is read through
}

// OpenRun implements peer.Blocks.
func (c *Cache) OpenRun(ctx context.Context, id stoker.ID, n uint32, from, to int, through bool) (peer.Run, error) {
	s, err := c.Open(ctx, id)
	if err != nil {
		return nil, err
	}
	if int(n) >= len(s.slots) || to > int(s.man.Shard(n).Blocks) {
		_ = s.Close()
		return nil, stoker.Errorf(stoker.KindInvalid, "peer.serve", id.Short(), "no blocks %d to %d in shard %d", from, to, n)
	}
	if !through {
		sl := s.shard(n)
		here := sl.sh != nil
		sl.mu.RUnlock()
		if !here {
			_ = s.Close()
			return nil, stoker.Errorf(stoker.KindNotExist, "peer.serve", id.Short(), "shard %d is not here", n)
		}
	}
	share := &c.memory.serve
	if through {
		share = &c.memory.through
	}
	if err := c.memory.acquire(ctx, share, answerBytes); err != nil {
		_ = s.Close()
		return nil, err
	}
	prio := guard.Demand
	if peer.IsOrdered(ctx) {
		prio = guard.Preload
	}
	return &run{s, n, to, through, share, prio}, nil
}

// Block implements peer.Run.
func (r *run) Block(ctx context.Context, block int, buf []byte) ([]byte, error) {
	off, length := r.s.where(r.n, block)
	r.s.noteRead(r.n, block)
	err := r.s.readLocal(r.n, block, off, length, 0, buf[:length])
	switch {
	case err == nil:
		r.s.c.counters.ServedBytes.Add(int64(length))
		return buf[:length], nil
	case stoker.KindOf(err) == stoker.KindCorrupt:
		r.s.wrong(r.n, block, err)
	case stoker.KindOf(err) != stoker.KindNotExist:
		return nil, err
	}
	if !r.through {
		return nil, nil
	}
	// The asker believes that this worker owns the shard, so it asks no other.
	copied, err := r.s.fillOne(ctx, r.n, block, r.to, why{direct: true, prio: r.prio}, 0, buf)
	if err != nil || copied > 0 {
		return buf[:copied], err
	}
	if err := r.s.readLocal(r.n, block, off, length, 0, buf[:length]); err != nil {
		return nil, err
	}
	r.s.c.counters.ServedBytes.Add(int64(length))
	return buf[:length], nil
}

// Close implements peer.Run.
func (r *run) Close() error {
	r.s.c.memory.release(r.share, answerBytes)
	return r.s.Close()
}
