package cache

import (
	"context"
	"io"
	"os"

	"stoker.dev"
	"stoker.dev/cache/peer"
	"stoker.dev/cache/store"
	"stoker.dev/ufs/guard"
)

var _ peer.Blocks = (*Cache)(nil)

// run serves blocks of one shard to a peer.
type run struct {
	s        *Set
	n        uint32
	from, to int
	through  bool
	share    *share
	prio     guard.Priority // of what is read through
	plain    *os.File       // of its shard, which is held, too
	sh       *store.Shard
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
	s.linger(n)
	prio := guard.Demand
	if peer.IsOrdered(ctx) {
		prio = guard.Preload
	}
	return &run{s: s, n: n, from: from, to: to, through: through, share: share, prio: prio}, nil
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
	copied, _, err := r.s.fillOne(ctx, r.n, block, r.to, why{direct: true, prio: r.prio}, 0, buf[:length])
	if err != nil || copied > 0 {
		r.s.c.counters.ServedBytes.Add(int64(copied))
		return buf[:copied], err
	}
	if err := r.s.readLocal(r.n, block, off, length, 0, buf[:length]); err != nil {
		return nil, err
	}
	r.s.c.counters.ServedBytes.Add(int64(length))
	return buf[:length], nil
}

// A plain answer is worth to open the file once more from plainBytes on, and while
// gaps between small objects are no more than gapsPercent of what they have.
const (
	plainBytes  = 64 << 10
	gapsPercent = 25
)

// Plain implements peer.Run.
func (r *run) Plain() *peer.Plain {
	p := &peer.Plain{Blocks: make([]peer.Sum, 0, r.to-r.from)}
	var ok bool
	if r.sh, ok = r.s.c.o.Store.Get(r.s.man.Shard(r.n).ID); !ok || !r.sh.HasAll(r.from, r.to-r.from) {
		return nil
	}
	start, sum, ok := r.sums(p)
	if !ok || p.Bytes < plainBytes || p.Bytes*100 > sum*(100+gapsPercent) {
		return nil
	}
	var err error
	if r.plain, err = r.sh.Reopen(); err == nil {
		_, err = r.plain.Seek(start, io.SeekStart)
	}
	if err != nil {
		r.s.log().Warn("a shard's file cannot be opened once more; its blocks are copied", "shard", r.n, "error", err)
		return nil
	}
	for b := r.from; b < r.to; b++ {
		r.s.noteRead(r.n, b)
	}
	r.s.c.counters.ServedBytes.Add(sum)
	p.File = r.plain
	return p
}

// sums notes what the index has of each block and how long the run is; start is where it
// begins in the file, sum what its blocks have.
func (r *run) sums(p *peer.Plain) (start, sum int64, ok bool) {
	sl := r.s.shard(r.n)
	defer sl.mu.RUnlock()
	next := int64(0)
	for b := r.from; b < r.to; b++ {
		off, _, length := blockOf(memberOf(sl.members, b), b)
		if b == r.from {
			start = off
		} else if off != next {
			return 0, 0, false
		}
		next = off + int64(peer.Aligned(length))
		p.Blocks = append(p.Blocks, peer.Sum{Length: uint32(length), CRC: r.sh.CRC(b)})
		p.Bytes, sum = off+int64(length)-start, sum+int64(length)
	}
	return start, sum, true
}

// Close implements peer.Run.
func (r *run) Close() error {
	if r.plain != nil {
		_ = r.plain.Close()
	}
	if r.sh != nil {
		r.sh.Release()
	}
	r.s.c.memory.release(r.share, answerBytes)
	return r.s.closeServed()
}
