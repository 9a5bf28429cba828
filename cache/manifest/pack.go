package manifest

import (
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"hash/fnv"
	"math/bits"

	"stoker.dev"
)

// Packs are cut by content-defined chunking of the listing: after a path whose
// hash falls below the share that its size has of packTarget, so that a pack
// is packMin + packTarget bytes long on average and a change of the listing
// moves only the cuts next to it.
const (
	packMin    = 16 << 20
	packMax    = 128 << 20
	packTarget = 48 << 20
)

// packer cuts files into shards, in row order.
type packer struct {
	roots  []Root
	shards []Shard
	cur    int // shard that is being filled, if open
	open   bool
	sum    hash.Hash // of the open shard's members
}

// add puts a file into the shards and returns where it begins.
func (p *packer) add(row Row, it *item) (shard uint32, off int64, block uint32) {
	switch n := it.Version.Bytes; {
	case n <= 0:
		return NoShard, 0, 0
	case n >= stoker.ExtentBytes:
		return p.extents(row, it), 0, 0
	}
	padded := (it.Version.Bytes + stoker.AlignBytes - 1) / stoker.AlignBytes * stoker.AlignBytes
	if p.open && p.shards[p.cur].Bytes+padded > packMax {
		p.close()
	}
	if !p.open {
		p.open, p.cur, p.sum = true, len(p.shards), newShardHash()
		p.shards = append(p.shards, Shard{FirstRow: row, Extent: -1})
	}
	s := &p.shards[p.cur]
	off, block = s.Bytes, s.Blocks
	s.Bytes += padded
	s.Blocks += uint32(BlocksOf(it.Version.Bytes))
	s.Rows = uint32(row-s.FirstRow) + 1
	p.member(p.sum, it, 0, it.Version.Bytes)
	shard = uint32(p.cur)
	if s.Bytes >= packMin && cutAfter(it.path, padded) {
		p.close()
	}
	return shard, off, block
}

// cutAfter decides from path and size alone, so that it decides the same in
// every listing.
func cutAfter(path string, padded int64) bool {
	h := fnv.New64a()
	h.Write([]byte(path))
	// FNV mixes its last bytes badly; a multiply spreads them over the word.
	mixed := h.Sum64() * 0x9e3779b97f4a7c15
	mixed ^= mixed >> 32
	mixed *= 0xd6e8feb86659fd93
	limit, _ := bits.Div64(uint64(min(padded, packTarget-1)), 0, packTarget)
	return mixed < limit
}

// close ends the open pack.
func (p *packer) close() {
	if p.open {
		p.shards[p.cur].ID = stoker.ID(p.sum.Sum(nil))
		p.open = false
	}
}

// extents cuts a large object.
func (p *packer) extents(row Row, it *item) uint32 {
	first := uint32(len(p.shards))
	for off := int64(0); off < it.Version.Bytes; off += stoker.ExtentBytes {
		n := min(it.Version.Bytes-off, stoker.ExtentBytes)
		h := newShardHash()
		p.member(h, it, off, n)
		p.shards = append(p.shards, Shard{ID: stoker.ID(h.Sum(nil)), FirstRow: row, Rows: 1,
			Extent: int32(off / stoker.ExtentBytes), Blocks: uint32(BlocksOf(n)), Bytes: n})
	}
	return first
}

func newShardHash() hash.Hash {
	h := sha256.New()
	h.Write([]byte("stoker shard 1\n"))
	return h
}

// member adds one part to a shard's identity: which bytes of which version of
// which object. Row numbers and credentials have no say.
func (p *packer) member(h hash.Hash, it *item, off, n int64) {
	uri := p.roots[it.root].URI
	for _, s := range []string{uri, it.Key, it.Version.Tag} {
		hashSection(h, uint64(len(s)))
		h.Write([]byte(s))
	}
	mod := int64(0)
	if !it.Version.ModTime.IsZero() {
		mod = it.Version.ModTime.UnixNano()
	}
	for _, v := range []int64{mod, it.Version.Bytes, off, n} {
		hashSection(h, uint64(v))
	}
}

// table encodes the shard table.
func (p *packer) table() []byte {
	out := make([]byte, len(p.shards)*shardBytes)
	le := binary.LittleEndian
	for i, s := range p.shards {
		b := out[i*shardBytes:]
		copy(b, s.ID[:])
		le.PutUint32(b[32:], uint32(s.FirstRow))
		le.PutUint32(b[36:], s.Rows)
		le.PutUint32(b[40:], uint32(s.Extent))
		le.PutUint32(b[44:], s.Blocks)
		le.PutUint64(b[48:], uint64(s.Bytes))
	}
	return out
}
