package store

import (
	"encoding/binary"
	"hash/crc32"
	"os"
	"strings"

	"stoker.dev"
)

// The index file (docs/adr/0002): a header of 64 bytes, then 8 bytes for each
// block, all little-endian.
//
//	header  magic "STKIDX1\n" | shard id 32 | bytes u64 | blocks u32 | flags u32 | 4 zero | CRC32C of the 60 before
//	entry   CRC32C of the block u32 | check u32
//
// The check binds the entry to its shard, its block and an epoch. Epoch 0
// says that the block's bytes were synced before the entry was written: it is
// believed always. Any other epoch is a hash of the boot in which it was
// written: within that boot the kernel's page cache has the bytes, whoever
// died; after another boot it is worth nothing. A torn or foreign entry has no
// valid check and is a missing block.
const (
	magic       = "STKIDX1\n"
	headerBytes = 64
	entryBytes  = 8
	flagSealed  = 1
	durable     = 0
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func indexBytes(blocks int) int64 { return headerBytes + entryBytes*int64(blocks) }

// bootEpoch hashes the kernel's id of this boot; it is never 0.
func bootEpoch() (uint32, error) {
	body, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return 0, stoker.Errorf(stoker.KindInternal, "store.open", "boot id", "%w", err)
	}
	return max(1, crc32.Checksum([]byte(strings.TrimSpace(string(body))), castagnoli)), nil
}

func encodeHeader(spec Spec, flags uint32) []byte {
	b := make([]byte, headerBytes)
	copy(b, magic)
	copy(b[8:], spec.ID[:])
	binary.LittleEndian.PutUint64(b[40:], uint64(spec.Bytes))
	binary.LittleEndian.PutUint32(b[48:], uint32(spec.Blocks))
	binary.LittleEndian.PutUint32(b[52:], flags)
	binary.LittleEndian.PutUint32(b[60:], crc32.Checksum(b[:60], castagnoli))
	return b
}

func decodeHeader(b []byte) (spec Spec, flags uint32, ok bool) {
	if len(b) < headerBytes || string(b[:8]) != magic ||
		binary.LittleEndian.Uint32(b[60:]) != crc32.Checksum(b[:60], castagnoli) {
		return spec, 0, false
	}
	copy(spec.ID[:], b[8:])
	spec.Bytes = int64(binary.LittleEndian.Uint64(b[40:]))
	spec.Blocks = int(binary.LittleEndian.Uint32(b[48:]))
	return spec, binary.LittleEndian.Uint32(b[52:]), true
}

// check binds a block's checksum to its place and an epoch.
func check(id *stoker.ID, block int, crc, epoch uint32) uint32 {
	var b [32 + 12]byte
	copy(b[:], id[:])
	binary.LittleEndian.PutUint32(b[32:], uint32(block))
	binary.LittleEndian.PutUint32(b[36:], crc)
	binary.LittleEndian.PutUint32(b[40:], epoch)
	return crc32.Checksum(b[:], castagnoli)
}

func putEntry(b []byte, id *stoker.ID, block int, crc, epoch uint32) {
	binary.LittleEndian.PutUint32(b, crc)
	binary.LittleEndian.PutUint32(b[4:], check(id, block, crc, epoch))
}

// validEntry returns the block's checksum if the entry may be believed now.
func validEntry(b []byte, id *stoker.ID, block int, epoch uint32) (crc uint32, ok bool) {
	crc = binary.LittleEndian.Uint32(b)
	c := binary.LittleEndian.Uint32(b[4:])
	return crc, c == check(id, block, crc, durable) || c == check(id, block, crc, epoch)
}
