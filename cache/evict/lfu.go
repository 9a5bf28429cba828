package evict

import (
	"github.com/maypok86/otter/v2"

	"stoker.dev"
)

// LFU is W-TinyLFU over the shards of all datasets that use it: a shard that is
// asked for takes the place of others only if it was asked for more often than
// they were, lately. Make it with NewLFU. It is not safe for concurrent use.
type LFU struct {
	cache *otter.Cache[stoker.ID, Shard]
	gone  []Shard // evicted by the call in progress
}

const (
	weightUnit = 4 << 10 // bytes: weights are 32 bits wide
	// The table of counters is made for this range of shards; 8 bytes each.
	fewestShards, mostShards = 1 << 10, 1 << 20
)

func weight(bytes int64) uint32 {
	return uint32(min(max((bytes+weightUnit-1)/weightUnit, 1), 1<<32-1))
}

// NewLFU makes one that remembers about as many shards as fit so many bytes.
func NewLFU(capacityBytes int64) *LFU {
	l := &LFU{}
	l.cache = otter.Must(&otter.Options[stoker.ID, Shard]{
		MaximumWeight:   uint64(max(capacityBytes/weightUnit, 1)),
		InitialCapacity: int(min(max(capacityBytes/stoker.ExtentBytes, fewestShards), mostShards)),
		Weigher:         func(_ stoker.ID, s Shard) uint32 { return weight(s.Bytes) },
		Executor:        func(do func()) { do() }, // what is evicted is known when a call returns
		OnDeletion: func(e otter.DeletionEvent[stoker.ID, Shard]) {
			if e.WasEvicted() {
				l.gone = append(l.gone, e.Value)
			}
		},
	})
	return l
}

// Admit implements Policy. The shard counts as here from then on; Forget takes
// that back.
func (l *LFU) Admit(s Shard, free int64) (bool, []Shard) {
	if _, here := l.cache.GetIfPresent(s.ID); here {
		return true, nil
	}
	gone := l.resize(free, s.Bytes)
	l.cache.Set(s.ID, s)
	gone = append(gone, l.took()...)
	_, ok := l.cache.GetEntryQuietly(s.ID)
	victims := gone[:0]
	for _, g := range gone {
		if g.ID != s.ID {
			victims = append(victims, g)
		}
	}
	return ok, victims
}

// resize lets the shards take what they have and free bytes besides. Small
// changes are left out: each begins the library's own tuning anew.
func (l *LFU) resize(free, shardBytes int64) []Shard {
	has := l.cache.GetMaximum()
	want := uint64(max(int64(l.cache.WeightedSize())+free/weightUnit, 1))
	least := max(has/64, uint64(weight(shardBytes)))
	if want > has+least || has > want+least {
		l.cache.SetMaximum(want)
	}
	return l.took()
}

func (l *LFU) took() []Shard {
	l.cache.CleanUp()
	gone := l.gone
	l.gone = nil
	return gone
}

// Used implements Policy.
func (l *LFU) Used(id stoker.ID) { l.cache.GetIfPresent(id) }

// Forget implements Policy.
func (l *LFU) Forget(id stoker.ID) { l.cache.Invalidate(id) }

// Has reports whether the policy takes a shard to be here.
func (l *LFU) Has(id stoker.ID) bool {
	_, ok := l.cache.GetEntryQuietly(id)
	return ok
}

// All lists what the policy takes to be here, in no order.
func (l *LFU) All() []Shard {
	var all []Shard
	for _, s := range l.cache.All() {
		all = append(all, s)
	}
	return all
}

// Bytes is the sum of that, in units of 4 KiB.
func (l *LFU) Bytes() int64 { return int64(l.cache.WeightedSize()) * weightUnit }
