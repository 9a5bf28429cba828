package cache

import (
	"context"
	"encoding/json"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"stoker.dev"
)

// scrubState is the document that says how far a scrub is.
const scrubState = "scrub"

// scrubSave is how often it is written at most: after a restart so much is
// read again.
const scrubSave = time.Minute

// scrubbed is how far the scrub has come: the next shard is the first one
// behind this in the order of ids.
type scrubbed struct {
	After stoker.ID `json:"after,omitzero"`
	Began time.Time `json:"began"` // this pass
	Ended time.Time `json:"ended,omitzero"`
}

// ScrubOptions of Scrub.
type ScrubOptions struct {
	BytesPerSecond int64         // read from the disk at most; > 0
	Every          time.Duration // from the begin of one pass to that of the next, at least
}

// Scrub reads every sealed shard here from its disk again and again, slowly,
// and compares each block with its checksum, until ctx ends. What has gone
// wrong at rest is retired, and filled again if somebody holds it. It goes on
// after a restart about where it was.
func (c *Cache) Scrub(ctx context.Context, o ScrubOptions) {
	at := c.scrubbed()
	for ctx.Err() == nil {
		if !at.Ended.IsZero() {
			if wait(ctx, at.Began.Add(o.Every).Sub(now())) != nil {
				return
			}
			at = scrubbed{}
		}
		if at.Began.IsZero() {
			at.Began = now()
		}
		if c.scrubPass(ctx, o, &at) != nil {
			c.saveScrubbed(at)
			return
		}
		at.Ended = now()
		c.saveScrubbed(at)
		c.counters.ScrubPasses.Add(1)
	}
}

// wait waits so long, or until ctx ends.
func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *Cache) scrubbed() (at scrubbed) {
	if body, err := c.o.Store.GetState(scrubState); err == nil {
		_ = json.Unmarshal(body, &at) // else the pass begins anew
	}
	return at
}

func (c *Cache) saveScrubbed(at scrubbed) {
	body, err := json.Marshal(at)
	if err == nil {
		err = c.o.Store.PutState(scrubState, body)
	}
	if err != nil {
		c.o.Log.Warn("a restart would scrub some shards again", "error", err)
	}
}

// target is a sealed shard, and a dataset that it is of.
type target struct {
	shard, manifest stoker.ID
	n               uint32
}

// targets lists the sealed shards behind an id, in the order of ids.
func (c *Cache) targets(ctx context.Context, after stoker.ID) (out []target) {
	here := map[stoker.ID]bool{}
	for _, sh := range c.o.Store.Shards() {
		if sh.Sealed && slices.Compare(sh.ID[:], after[:]) > 0 {
			here[sh.ID] = true
		}
	}
	c.holds.mu.Lock()
	var ids []stoker.ID
	for id := range c.holds.known {
		ids = append(ids, id)
	}
	c.holds.mu.Unlock()
	for _, id := range ids {
		err := c.eachShard(ctx, id, func(n uint32, shard stoker.ID) {
			if here[shard] {
				delete(here, shard)
				out = append(out, target{shard, id, n})
			}
		})
		if err != nil && ctx.Err() == nil {
			c.logOf(id).Warn("a dataset is not scrubbed", "error", err)
		}
	}
	slices.SortFunc(out, func(a, b target) int { return slices.Compare(a.shard[:], b.shard[:]) })
	return out
}

// scrubPass goes on with a pass to its end. Its error is ctx's.
func (c *Cache) scrubPass(ctx context.Context, o ScrubOptions, at *scrubbed) error {
	pace := &pace{perSecond: o.BytesPerSecond}
	saved := time.Now()
	for _, t := range c.targets(ctx, at.After) {
		s, err := c.Open(ctx, t.manifest)
		if err != nil {
			continue // its manifest cannot be had now; the next pass will see it
		}
		err = s.scrubShard(ctx, t.n, pace)
		s.closeOrLog()
		if err != nil {
			return err
		}
		at.After = t.shard
		if time.Since(saved) > scrubSave {
			c.saveScrubbed(*at)
			saved = time.Now()
		}
	}
	return ctx.Err()
}

// pace keeps whoever shares it to a rate. Its mutex is a leaf.
type pace struct {
	perSecond int64 // bytes; 0 = as they come

	mu   sync.Mutex
	next time.Time // +checklocks:mu — when the next ones may begin
}

// wait waits until so many bytes more may begin. Time that was not used is not made
// up for.
func (p *pace) wait(ctx context.Context, bytes int64) error {
	if p.perSecond <= 0 || bytes <= 0 {
		return ctx.Err()
	}
	p.mu.Lock()
	at := now()
	if p.next.Before(at) {
		p.next = at
	}
	pause := p.next.Sub(at)
	p.next = p.next.Add(time.Duration(float64(bytes) / float64(p.perSecond) * float64(time.Second)))
	p.mu.Unlock()
	if pause <= 0 {
		return ctx.Err()
	}
	return wait(ctx, pause)
}

// scrubShard reads one shard. A bad block retires it. Its error is ctx's.
func (s *Set) scrubShard(ctx context.Context, n uint32, p *pace) error {
	b := blockPool.Get().(*[]byte)
	defer blockPool.Put(b)
	for block := range int(s.man.Shard(n).Blocks) {
		off, length := s.where(n, block)
		if err := p.wait(ctx, int64(length)); err != nil {
			return err
		}
		err := s.readFromDisk(n, block, off, (*b)[:length])
		switch stoker.KindOf(err) {
		case stoker.KindCorrupt:
			s.c.counters.Corrupt.Add(1)
			s.c.counters.ScrubbedBytes.Add(int64(length))
			s.log().Error("the scrub found a bad block", "shard", n, "block", block, "error", err)
			s.retire(n, block, err)
			s.refill(n)
			return nil
		case stoker.KindNotExist:
			return nil // evicted meanwhile
		}
		if err == nil {
			s.c.counters.ScrubbedBytes.Add(int64(length))
		}
	}
	return nil
}

// readFromDisk reads a block past the page cache, and leaves it as it was: what
// the kernel has in memory says nothing of the disk, and a scrub must not push
// out what jobs read. Pages that are mapped or dirty stay.
func (s *Set) readFromDisk(n uint32, block int, off int64, p []byte) error {
	sl := s.shard(n)
	defer sl.mu.RUnlock()
	if sl.sh == nil || !sl.sh.Sealed() {
		return errMissing
	}
	fd := int(sl.sh.File().Fd())
	_ = unix.Fadvise(fd, off, int64(len(p)), unix.FADV_DONTNEED)
	err := sl.sh.ReadBlock(block, off, p)
	_ = unix.Fadvise(fd, off, int64(len(p)), unix.FADV_DONTNEED)
	return err
}

// refill has a shard fetched again that somebody holds.
func (s *Set) refill(n uint32) {
	s.c.holds.mu.Lock()
	held := len(s.c.holds.holdersLocked(s.id)) > 0
	s.c.holds.mu.Unlock()
	if held {
		s.c.refills.add(s, n)
	}
}
