package cache

import (
	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/cache/prefetch"
)

// pieceSlack is by how much a piece that is read ahead may lie beside where it is
// expected.
const pieceSlack = 8 << 10

// noteSteps tells of a read of n bytes of a large object, and begins to bring in the
// pieces that a reader in steps will read next.
func (s *Set) noteSteps(row manifest.Row, e manifest.Entry, off int64, n int, waited bool) {
	if e.Bytes <= demandWindow*stoker.BlockBytes || n == 0 || s.c.o.ReadAheadBytes < 0 {
		return // it comes as a whole, or not before it is asked for
	}
	p := s.steps.Note(prefetch.Piece{Object: uint32(row), At: off, Bytes: int64(n), Waited: waited})
	for i, at := range p.At {
		if int64(i+1)*p.Bytes > s.c.o.ReadAheadBytes || at < 0 || at >= e.Bytes || !s.fillPiece(row, e, max(0, at-pieceSlack), min(at+p.Bytes+pieceSlack, e.Bytes)) {
			return
		}
	}
}

// fillPiece begins to bring in the blocks of a large object that have the bytes
// from off to end. false: no more may run now.
func (s *Set) fillPiece(row manifest.Row, e manifest.Entry, off, end int64) bool {
	for off < end {
		n := s.man.ShardOf(row, off)
		if n == manifest.NoShard || int(n) >= len(s.slots) {
			return false
		}
		in, most := off, e.Bytes // in this shard's part of the object
		if e.Bytes >= stoker.ExtentBytes {
			in, most = off%stoker.ExtentBytes, stoker.ExtentBytes
		}
		most = min(most, in+end-off)
		if more := s.fillAhead(n, int(e.FirstBlock)+int(in/stoker.BlockBytes), int(e.FirstBlock)+manifest.BlocksOf(most), nil); !more {
			return false
		}
		off += most - in
	}
	return true
}
