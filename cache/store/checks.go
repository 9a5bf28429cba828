package store

import "sync/atomic"

// checks are the blocks of a shard whose bytes are known to be right in this
// life of the store: written in it, or read in it and compared.
type checks []atomic.Uint32

func newChecks(blocks int) checks { return make(checks, (blocks+31)/32) }

func (c checks) has(block int) bool { return c[block/32].Load()&(1<<(block%32)) != 0 }

func (c checks) add(block int) {
	if !c.has(block) { // a warm read finds it set, and writes nothing
		c[block/32].Or(1 << (block % 32))
	}
}

func (c checks) remove(block int) { c[block/32].And(^uint32(1 << (block % 32))) }

// Checked reports whether the bytes of a present block were written, or read
// and found right, since the store was opened. Of others the disk may have
// anything.
func (sh *Shard) Checked(block int) bool { return sh.Has(block) && sh.checked.has(block) }
