// Package evict decides which data that nobody holds stays on a worker, and
// nothing else: it does no I/O, knows no clock, and never hears of data that is
// leased, pinned or mounted. The unit is a shard, its weight is what the disk
// is charged for it.
//
// Training reads every sample once in each epoch. For that no policy without
// knowledge of the order does better than to keep what is here: with room for a
// fraction f of a dataset f of the reads hit, in whatever order each epoch
// comes, while LRU gives f + (1-f)ln(1-f) in shuffled epochs and nothing in
// repeated ones. Keep is therefore what datasets get unless their reads are
// seen to be of another kind; see Pattern. For those LFU is W-TinyLFU
// (Einziger, Friedman, Manes: TinyLFU, ACM Transactions on Storage 13(4), 2017).
package evict

import (
	"strings"

	"stoker.dev"
)

// Mode is how the data of a dataset is treated while nobody holds it.
type Mode string

const (
	Auto      Mode = "auto" // LFU if the reads are skewed, else Keep
	KeepMode  Mode = "keep" // see Keep
	LFUMode   Mode = "lfu"  // see LFU
	modeNames      = "auto, keep or lfu"
)

// ParseMode reads a mode; "" is Auto. Anything else is Invalid.
func ParseMode(s string) (Mode, error) {
	switch m := Mode(s); m {
	case Auto, KeepMode, LFUMode:
		return m, nil
	case "":
		return Auto, nil
	}
	return "", stoker.Errorf(stoker.KindInvalid, "evict", strings.ToValidUTF8(s, "?"), "is no way to evict: want %s", modeNames)
}

// Shard is one as a policy sees it.
type Shard struct {
	ID       stoker.ID
	Manifest stoker.ID // of a dataset that has it
	Number   uint32    // in that manifest
	Bytes    int64     // what it is charged
}

// Policy decides about shards that are read while nobody holds them.
// Implementations are not safe for concurrent use.
type Policy interface {
	// Admit is asked when a read wants a shard that is not here, and free bytes
	// are left for all such data. It says whether the shard may be stored, and
	// which others go for it.
	Admit(s Shard, free int64) (ok bool, victims []Shard)
	// Used notes a read of a shard that is here.
	Used(id stoker.ID)
	// Forget is told that a shard is not here any more, or is held.
	Forget(id stoker.ID)
}

// Keep evicts nothing for a read: what came first stays, and what does not fit
// beside it is read through.
type Keep struct{}

// Admit implements Policy.
func (Keep) Admit(s Shard, free int64) (bool, []Shard) { return s.Bytes <= free, nil }

// Used implements Policy.
func (Keep) Used(stoker.ID) {}

// Forget implements Policy.
func (Keep) Forget(stoker.ID) {}
