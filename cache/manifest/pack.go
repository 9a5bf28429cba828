package manifest

import (
	"crypto/sha256"
	"encoding/binary"
	"hash"
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

// packer cuts files into shards, in row order. Lines of the shard table are
// written as they come; those of packs, which are complete later, twice: the
// table has a gap for each, which the next line of packs fills.
type packer struct {
	roots []rootPlace
	table spool // extents, and gaps for packs
	packs spool
	count uint64 // shards in the table

	open bool
	cur  Shard // the pack that is being filled, if open
	at   uint32
	sum  hash.Hash // of the open pack's members
	buf  []byte
}

// add puts a file into the shards and returns where it begins.
func (p *packer) add(row Row, o *object) (shard uint32, off int64, block uint32, err error) {
	switch n := o.bytes; {
	case n <= 0:
		return NoShard, 0, 0, nil
	case n >= stoker.ExtentBytes:
		shard = uint32(p.count)
		return shard, 0, 0, p.extents(row, o)
	}
	padded := (o.bytes + stoker.AlignBytes - 1) / stoker.AlignBytes * stoker.AlignBytes
	if p.open && p.cur.Bytes+padded > packMax {
		if err := p.close(); err != nil {
			return 0, 0, 0, err
		}
	}
	if !p.open {
		p.open, p.at, p.sum = true, uint32(p.count), newShardHash()
		p.cur = Shard{FirstRow: row, Extent: -1}
		if err := p.line(&p.table, &p.cur); err != nil {
			return 0, 0, 0, err
		}
		p.count++
	}
	s := &p.cur
	off, block, shard = s.Bytes, s.Blocks, p.at
	s.Bytes += padded
	s.Blocks += uint32(BlocksOf(o.bytes))
	s.Rows = uint32(row-s.FirstRow) + 1
	p.member(p.sum, o, 0, o.bytes)
	if s.Bytes >= packMin && cutAfter(o.path, padded) {
		err = p.close()
	}
	return shard, off, block, err
}

// cutAfter decides from path and size alone, so that it decides the same in
// every listing.
func cutAfter(path []byte, padded int64) bool {
	h := uint64(0xcbf29ce484222325) // FNV-1a
	for _, c := range path {
		h = (h ^ uint64(c)) * 0x100000001b3
	}
	// FNV mixes its last bytes badly; a multiply spreads them over the word.
	mixed := h * 0x9e3779b97f4a7c15
	mixed ^= mixed >> 32
	mixed *= 0xd6e8feb86659fd93
	limit, _ := bits.Div64(uint64(min(padded, packTarget-1)), 0, packTarget)
	return mixed < limit
}

// close ends the open pack.
func (p *packer) close() error {
	if !p.open {
		return nil
	}
	p.open = false
	p.sum.Sum(p.cur.ID[:0])
	return p.line(&p.packs, &p.cur)
}

// extents cuts a large object.
func (p *packer) extents(row Row, o *object) error {
	for off := int64(0); off < o.bytes; off += stoker.ExtentBytes {
		n := min(o.bytes-off, stoker.ExtentBytes)
		h := newShardHash()
		p.member(h, o, off, n)
		s := Shard{FirstRow: row, Rows: 1, Extent: int32(off / stoker.ExtentBytes), Blocks: uint32(BlocksOf(n)), Bytes: n}
		h.Sum(s.ID[:0])
		if err := p.line(&p.table, &s); err != nil {
			return err
		}
		p.count++
	}
	return nil
}

func newShardHash() hash.Hash {
	h := sha256.New()
	h.Write([]byte("stoker shard 1\n"))
	return h
}

// member adds one part to a shard's identity: which bytes of which version of
// which object. Row numbers and credentials have no say.
func (p *packer) member(h hash.Hash, o *object, off, n int64) {
	le, b := binary.LittleEndian, p.buf[:0]
	uri := p.roots[o.root].uri
	b = append(le.AppendUint64(b, uint64(len(uri))), uri...)
	b = append(le.AppendUint64(b, uint64(len(o.key))), o.key...)
	b = append(le.AppendUint64(b, uint64(len(o.tag))), o.tag...)
	mod := int64(0)
	if o.timed {
		mod = o.time
	}
	for _, v := range [...]int64{mod, o.bytes, off, n} {
		b = le.AppendUint64(b, uint64(v))
	}
	h.Write(b)
	p.buf = b
}

// line writes one line of the shard table.
func (p *packer) line(to *spool, s *Shard) error {
	if p.count >= uint64(NoShard) {
		return stoker.Errorf(stoker.KindInvalid, "manifest.build", "", "more than %d shards: split the dataset", p.count)
	}
	if err := to.room(); err != nil {
		return err
	}
	le := binary.LittleEndian
	b := append(to.buf, s.ID[:]...)
	b = le.AppendUint32(b, uint32(s.FirstRow))
	b = le.AppendUint32(b, s.Rows)
	b = le.AppendUint32(b, uint32(s.Extent))
	b = le.AppendUint32(b, s.Blocks)
	b = le.AppendUint64(b, uint64(s.Bytes))
	to.buf = le.AppendUint64(b, 0)
	return nil
}

// isGap reports whether a line of the table is to be taken from packs.
func isGap(line []byte) bool { return int32(binary.LittleEndian.Uint32(line[40:])) < 0 }
