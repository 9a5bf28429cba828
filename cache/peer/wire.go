// Package peer moves blocks between workers over HTTP/1.1: one request for a
// run of blocks of one shard, one response with a checksum before each. The
// server reads through the Blocks interface; the client hands out only bytes
// whose checksum it has computed itself. Both may be used from any goroutine.
package peer

import (
	"context"
	"encoding/binary"
	"hash/crc32"
)

// The response's body is a row of frames: a header of 12 bytes (block,
// length, CRC32C of the data, each 32 bits little-endian), then the data. A
// length of 0 means that the peer does not have the block. The body ends
// after the last block that was asked for; one that ends earlier was broken
// off. docs/adr/0003 has the reasons.
const headerBytes = 12

// IncarnationHeader carries the incarnation that the asker believes it talks
// to; a worker with another one refuses, so that nobody mistakes a successor
// at the same address for the one that announced the blocks.
const IncarnationHeader = "Stoker-Incarnation"

type orderedKey struct{}

// Ordered marks what is done on behalf of a preload: no reader waits. The mark
// of a Fetch's context crosses to the context of the peer's OpenRun.
func Ordered(ctx context.Context) context.Context { return context.WithValue(ctx, orderedKey{}, true) }

// IsOrdered reports whether ctx has the mark.
func IsOrdered(ctx context.Context) bool { return ctx.Value(orderedKey{}) != nil }

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

type header struct {
	block, length, crc uint32
}

func (h header) put(b []byte) {
	binary.LittleEndian.PutUint32(b[0:], h.block)
	binary.LittleEndian.PutUint32(b[4:], h.length)
	binary.LittleEndian.PutUint32(b[8:], h.crc)
}

func parseHeader(b []byte) header {
	return header{
		block:  binary.LittleEndian.Uint32(b[0:]),
		length: binary.LittleEndian.Uint32(b[4:]),
		crc:    binary.LittleEndian.Uint32(b[8:]),
	}
}
