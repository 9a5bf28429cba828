package manifest

import (
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"hash/crc32"

	"stoker.dev"
)

// The file (docs/adr/0001), little-endian:
//
//	header of 512 bytes, then the sections in this order:
//	roots        JSON
//	rows         48 bytes each
//	restarts     u64 each: where in names a group of 16 rows begins
//	names        front-coded: a group's first name whole, the others as what they share with the one before and the rest
//	strings      versions that are no plain ETag, link targets
//	shards       64 bytes each
//	unmountable  JSON
const (
	magic         = "STKMAN1\n"
	formatVersion = 1
	headerBytes   = 512
	rowBytes      = 48
	shardBytes    = 64
	groupRows     = 16
)

// sections of a manifest file.
const (
	secRoots = iota
	secRows
	secRestarts
	secNames
	secStrings
	secShards
	secUnmountable
	sections
)

// Flags of a row.
const (
	flagExec = 1 << iota
	flagETag // version holds the 16 bytes of a quoted ETag of 32 hex digits
	flagTag  // version holds offset and length of another tag in strings
	flagTime // mtime is set
)

// head is the decoded header.
type head struct {
	id, base            stoker.ID
	from, to            int64 // listing, unix ns
	rows, objects, dirs uint64
	bytes               int64
	offset, length      [sections]uint64
}

func (h *head) encode() []byte {
	b := make([]byte, headerBytes)
	copy(b, magic)
	le := binary.LittleEndian
	le.PutUint32(b[8:], formatVersion)
	copy(b[16:], h.id[:])
	copy(b[48:], h.base[:])
	le.PutUint64(b[80:], uint64(h.from))
	le.PutUint64(b[88:], uint64(h.to))
	le.PutUint64(b[96:], h.rows)
	le.PutUint64(b[104:], h.objects)
	le.PutUint64(b[112:], h.dirs)
	le.PutUint64(b[120:], uint64(h.bytes))
	for i := range sections {
		le.PutUint64(b[128+16*i:], h.offset[i])
		le.PutUint64(b[136+16*i:], h.length[i])
	}
	le.PutUint32(b[headerBytes-4:], crc32.Checksum(b[:headerBytes-4], crc32.MakeTable(crc32.Castagnoli)))
	return b
}

// decodeHead checks what can be checked without reading the sections. Magic,
// version and checksum lie where they do in every format to come, so that an
// older program tells a newer file (Invalid) from a damaged one (Corrupt).
func decodeHead(b []byte, fileBytes int64) (head, error) {
	var h head
	le := binary.LittleEndian
	bad := func(what string, args ...any) (head, error) {
		return head{}, stoker.Errorf(stoker.KindCorrupt, "manifest.open", "", what, args...)
	}
	if len(b) < headerBytes || string(b[:8]) != magic {
		return bad("is no manifest")
	}
	if le.Uint32(b[headerBytes-4:]) != crc32.Checksum(b[:headerBytes-4], crc32.MakeTable(crc32.Castagnoli)) {
		return bad("has a damaged header")
	}
	if v := le.Uint32(b[8:]); v != formatVersion {
		return head{}, stoker.Errorf(stoker.KindInvalid, "manifest.open", "",
			"is of format %d, this stoker reads format %d: upgrade stoker here, workers and controllers before what writes manifests", v, formatVersion)
	}
	copy(h.id[:], b[16:])
	copy(h.base[:], b[48:])
	h.from, h.to = int64(le.Uint64(b[80:])), int64(le.Uint64(b[88:]))
	h.rows, h.objects, h.dirs = le.Uint64(b[96:]), le.Uint64(b[104:]), le.Uint64(b[112:])
	h.bytes = int64(le.Uint64(b[120:]))
	at := uint64(headerBytes)
	for i := range sections {
		h.offset[i], h.length[i] = le.Uint64(b[128+16*i:]), le.Uint64(b[136+16*i:])
		if h.offset[i] != at || h.length[i] > uint64(fileBytes) || at+h.length[i] > uint64(fileBytes) {
			return bad("section %d lies outside the file", i)
		}
		at += h.length[i]
	}
	if at != uint64(fileBytes) {
		return bad("has %d bytes, its header says %d", fileBytes, at)
	}
	if h.rows == 0 || h.rows >= uint64(NoShard) || h.length[secRows] != h.rows*rowBytes ||
		h.length[secRestarts] != (h.rows+groupRows-1)/groupRows*8 || h.length[secShards]%shardBytes != 0 {
		return bad("has sections that do not fit its %d rows", h.rows)
	}
	return h, nil
}

// newIDHash begins the hash that is a manifest's id: over the format and each
// section with its length, never over times or the base generation, so that
// two listings that found the same are the same manifest.
func newIDHash() hash.Hash {
	h := sha256.New()
	h.Write([]byte(magic))
	return h
}

func hashSection(h hash.Hash, n uint64) {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], n)
	h.Write(b[:])
}

// BlocksOf returns how many blocks so many bytes of one object take.
func BlocksOf(bytes int64) int { return int((bytes + stoker.BlockBytes - 1) / stoker.BlockBytes) }
