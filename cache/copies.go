package cache

import (
	"context"
	"sync"
	"time"

	"stoker.dev"
)

// copyRate keeps all copies that restore, raise or move replicas to a rate, so
// that they leave network and disks to readers. Its mutex is a leaf.
type copyRate struct {
	perSecond int64 // 0 = none

	mu   sync.Mutex
	next time.Time // +checklocks:mu — when the next one may begin
}

// wait waits until bytes more may be copied. Time that was not used is not made
// up for.
func (r *copyRate) wait(ctx context.Context, bytes int64) error {
	if r.perSecond <= 0 || bytes <= 0 {
		return ctx.Err()
	}
	r.mu.Lock()
	at := now()
	if r.next.Before(at) {
		r.next = at
	}
	pause := r.next.Sub(at)
	r.next = r.next.Add(time.Duration(float64(bytes) / float64(r.perSecond) * float64(time.Second)))
	r.mu.Unlock()
	if pause <= 0 {
		return ctx.Err()
	}
	return wait(ctx, pause)
}

// LoadCopies is Load for a part whose shards others have: what it brings in comes
// from them alone, at the rate of such copies. What they do not have stays away.
func (c *Cache) LoadCopies(ctx context.Context, planID stoker.ID, part int) error {
	return c.begin(ctx, loadKey{planID, part}, true)
}

// missingBytes adds up the object bytes of blocks [from, to) that are not here.
func (s *Set) missingBytes(n uint32, from, to int) (sum int64) {
	sl := s.shard(n)
	defer sl.mu.RUnlock()
	for b := from; b < to; b++ {
		if sl.sh == nil || !sl.sh.Has(b) {
			_, _, length := blockOf(memberOf(sl.members, b), b)
			sum += int64(length)
		}
	}
	return sum
}
