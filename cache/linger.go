package cache

import (
	"sync/atomic"
	"time"
)

// lingersFor is how long a dataset stays open behind the last request of another worker.
const lingersFor = 30 * time.Second

// lingering is what keeps a Set open that other workers ask for, and nobody reads here. To
// open it for each request would read its plan from the manifest store each time.
type lingering struct {
	asked  atomic.Int64    // when another worker asked last, unix ns
	timer  *time.Timer     // guarded by Cache.mu; nil = nothing keeps it
	shards map[uint32]bool // guarded by Cache.mu; that others asked for and that are open, perhaps
}

// linger has a Set stay open for a while, of which another worker asks for a shard.
func (s *Set) linger(shard uint32) {
	s.lingering.asked.Store(time.Now().UnixNano())
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if s.lingering.timer == nil && s.c.stop.Err() == nil {
		s.users++
		s.lingering.timer = time.AfterFunc(lingersFor, s.endLingering)
		s.lingering.shards = map[uint32]bool{}
	}
	if s.lingering.timer != nil {
		s.lingering.shards[shard] = true
	}
}

// closeServed is Close for who served another worker. A Set that nothing but its
// lingering keeps holds no shard: whoever makes room finds it unused.
func (s *Set) closeServed() error {
	s.c.mu.Lock()
	if s.users != 2 || s.lingering.timer == nil {
		s.c.mu.Unlock()
		return s.Close()
	}
	defer s.c.mu.Unlock() // nobody opens it meanwhile
	for n := range s.lingering.shards {
		s.release(n)
	}
	clear(s.lingering.shards)
	s.users--
	return nil
}

// endLingering ends that, unless somebody asked meanwhile.
func (s *Set) endLingering() {
	s.c.mu.Lock()
	t := s.lingering.timer
	left := lingersFor - time.Since(time.Unix(0, s.lingering.asked.Load()))
	switch {
	case t == nil: // the cache has ended first
		s.c.mu.Unlock()
		return
	case left > 0:
		t.Reset(left)
		s.c.mu.Unlock()
		return
	}
	s.lingering.timer = nil
	s.c.mu.Unlock()
	s.closeOrLog()
}

// endAllLingering ends it of all, with the cache.
func (c *Cache) endAllLingering() {
	var all []*Set
	c.mu.Lock()
	for _, s := range c.sets {
		if s.lingering.timer != nil {
			s.lingering.timer.Stop()
			s.lingering.timer = nil
			all = append(all, s)
		}
	}
	c.mu.Unlock()
	for _, s := range all {
		s.closeOrLog()
	}
}
