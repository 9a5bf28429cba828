package cache

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/semaphore"

	"stoker.dev"
)

// memory is the budget of what fills, and answers to peers, hold in memory:
// nothing of it begins before its part is granted. It is cut into shares so
// that no one waits for somebody who waits for him, on this worker or another:
//
//	flights, blocks            of reads and loads here; may wait for another worker's next two
//	ownerFlights, ownerBlocks  of shards that this worker owns; wait for the UFS, and for the last share of others
//	through                    answers that are filled on the way; wait for the two before
//	serve                      answers from the disk; wait for nobody
//
// Blocks are held by flights for which no disk has the space; a flight gets its
// blocks at once or waits without any.
type memory struct {
	limit                                               int64
	flights, blocks, ownerFlights, ownerBlocks, through share
	serve                                               share

	used, waits, blocked atomic.Int64
}

// share is a part of the budget.
type share struct {
	sem  *semaphore.Weighted
	size int64
}

const (
	flightBytes   = 640 << 10 // of one flight: a block's buffer for the UFS, one for a peer, and what HTTP needs
	answerBytes   = 384 << 10 // of one answer to a peer: the same, once
	memoryWindow  = 16        // blocks that one flight holds in memory at most: as many as demandWindow
	defaultMemory = 256 << 20
	pooledBytes   = 64 << 10 // smaller blocks are made to measure
)

// newMemory cuts half of limit into shares: the other half is for what is not
// counted, as the buffers of the kernel's READs, indexes, and garbage.
func newMemory(limit int64) *memory {
	if limit <= 0 {
		limit = defaultMemory
	}
	of := func(percent int64) share {
		n := max(limit/2*percent/100, memoryWindow*stoker.BlockBytes)
		return share{semaphore.NewWeighted(n), n}
	}
	return &memory{limit: limit, flights: of(25), blocks: of(25), ownerFlights: of(15), ownerBlocks: of(15), through: of(10), serve: of(10)}
}

// acquire waits for n bytes of a share. Its error is ctx's.
func (m *memory) acquire(ctx context.Context, s *share, n int64) error {
	if !s.sem.TryAcquire(n) {
		m.waits.Add(1)
		if err := s.sem.Acquire(ctx, n); err != nil {
			return err
		}
	}
	m.used.Add(n)
	return nil
}

func (m *memory) try(s *share, n int64) bool {
	ok := s.sem.TryAcquire(n)
	if ok {
		m.used.Add(n)
	}
	return ok
}

func (m *memory) release(s *share, n int64) {
	m.used.Add(-n)
	s.sem.Release(n)
}

// MemoryUse tells of the budget of fills and answers: bytes granted, the
// limit that it was made for, and how often somebody had to wait.
func (c *Cache) MemoryUse() (used, limit, waits int64) {
	return c.memory.used.Load(), c.memory.limit, c.memory.waits.Load()
}

// owns reports whether this worker fills shard n from the UFS for the others.
func (s *Set) owns(ctx context.Context, n uint32, w why) bool {
	if w.direct {
		return true
	}
	ask, self, _ := s.c.o.Directory.Owners(ctx, s.plan.Load(), s.man.Shard(n).ID, n)
	return self && len(ask) == 0
}

// admit waits until the flight may begin. nil: it may not, since all who
// waited for it have left, or since it is only ahead of demand.
func (s *Set) admit(ctx context.Context, n uint32, w why) *share {
	m := s.c.memory
	if !w.direct && m.try(&m.flights, flightBytes) {
		return &m.flights
	}
	if w.ahead || w.early {
		return nil
	}
	sh := &m.flights
	if s.owns(ctx, n, w) {
		sh = &m.ownerFlights
	}
	if m.acquire(ctx, sh, flightBytes) != nil {
		return nil
	}
	return sh
}

// narrow cuts a flight for which no disk has the space down to what it may
// hold in memory, and waits for that. false: it shall not begin.
func (s *Set) narrow(ctx context.Context, n uint32, f *flight, w why) bool {
	if w.ahead || w.early {
		return false
	}
	s.c.fills.mu.Lock()
	f.to = min(f.to, f.from+memoryWindow)
	s.c.fills.mu.Unlock()
	var need int64
	for b := f.from; b < f.to; b++ {
		_, length := s.where(n, b)
		need += blockCost(length)
	}
	m := s.c.memory
	if f.share = &m.blocks; s.owns(ctx, n, w) {
		f.share = &m.ownerBlocks
	}
	if !s.c.fills.room(m, f.share, need) {
		defer f.phases.turn()()
		defer m.blocked.Add(-1)
		if m.acquire(ctx, f.share, need) != nil {
			return false
		}
	}
	f.granted = need
	return true
}

// An ended flight that holds all its blocks in memory is kept while nobody
// waits for what it holds: who reads on finds the next block there. Else a
// reader in small pieces would fetch the rest of an object for each of them.

// room takes need bytes of a share, from kept flights if it must. false: the
// caller has to wait for them, and is counted as blocked.
func (fs *fills) room(m *memory, s *share, need int64) bool {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for !m.try(s, need) {
		if len(fs.kept) == 0 {
			m.blocked.Add(1)
			return false
		}
		fs.dropLocked(m, 0)
	}
	return true
}

// keepLocked decides whether a flight that has just ended is kept.
func (fs *fills) keepLocked(m *memory, id stoker.ID, f *flight) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.memory || f.once || len(f.failed) > 0 || len(f.mem) != f.to-f.from || m.blocked.Load() > 0 {
		return false
	}
	f.kept, f.id = true, id
	fs.kept = append(fs.kept, f)
	return true
}

// dropLocked ends the keeping of the i-th kept flight.
func (fs *fills) dropLocked(m *memory, i int) {
	f := fs.kept[i]
	fs.kept = slices.Delete(fs.kept, i, i+1)
	f.kept = false
	fs.removeLocked(f.id, f)
	if f.waiters == 0 {
		m.letGo(f)
	}
}

// forget drops what is kept of a shard that has got a file; of all shards, with
// the zero id, when there may be space that there was not before.
func (fs *fills) forget(m *memory, id stoker.ID) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for i := len(fs.kept) - 1; i >= 0; i-- {
		if id.IsZero() || fs.kept[i].id == id {
			fs.dropLocked(m, i)
		}
	}
}

// blockCost is what a block takes in memory.
func blockCost(length int) int64 {
	if length > pooledBytes {
		return stoker.BlockBytes
	}
	return int64(length)
}

// keep puts a block into the flight's memory; false if there is none left.
func (s *Set) keep(f *flight, block int, data []byte) bool {
	m, cost := s.c.memory, blockCost(len(data))
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.mem[block] != nil {
		return true
	}
	if f.share == nil { // its disk took the blocks before
		f.share = &m.blocks
	}
	if f.held+cost > f.granted {
		if !m.try(f.share, cost) {
			return false
		}
		f.granted += cost
	}
	f.held += cost
	if f.mem == nil {
		f.mem = map[int][]byte{}
	}
	if len(data) > pooledBytes {
		f.mem[block] = append((*blockPool.Get().(*[]byte))[:0], data...)
	} else {
		f.mem[block] = append(make([]byte, 0, len(data)), data...)
	}
	return true
}

// letGo gives back what an ended flight without waiters held. REQUIRES:
// nobody looks at the flight any more.
func (m *memory) letGo(f *flight) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, b := range f.mem {
		if cap(b) == stoker.BlockBytes {
			b = b[:stoker.BlockBytes]
			blockPool.Put(&b)
		}
	}
	f.mem = nil
	if f.granted > 0 {
		m.release(f.share, f.granted)
		f.granted = 0
	}
}

var blockPool = sync.Pool{New: func() any { b := make([]byte, stoker.BlockBytes); return &b }}
