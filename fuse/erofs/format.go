package erofs

import (
	"encoding/binary"
	"hash/crc32"
	"syscall"
	"time"

	"stoker.dev"
	"stoker.dev/cache/manifest"
)

// The image. Names in brackets are those of fs/erofs/erofs_fs.h of Linux, which
// defines the format; all numbers are little-endian.
//
//	block 0       the superblock at 1024 [erofs_super_block], the rest zero
//	devices       128 bytes for each device [erofs_deviceslot], from block 1 on
//	inodes        from meta_blkaddr on; the number of an inode (nid) is its place there in units of 32 bytes
//	folders       blocks of those folders that are too large to lie behind their inode
const (
	blockBits  = 12
	blockBytes = 1 << blockBits

	superOffset = 1024       // [EROFS_SUPER_OFFSET]
	superMagic  = 0xE0F5E1E2 // [EROFS_SUPER_MAGIC_V1], linux/magic.h

	compatChecksum = 1 // [EROFS_FEATURE_COMPAT_SB_CHKSUM]
	compatMTime    = 2 // [EROFS_FEATURE_COMPAT_MTIME]
	needsChunks    = 4 // [EROFS_FEATURE_INCOMPAT_CHUNKED_FILE]
	needsDevices   = 8 // [EROFS_FEATURE_INCOMPAT_DEVICE_TABLE]

	slotBytes  = 128 // sizeof [erofs_deviceslot]
	tagBytes   = 64  // of its tag
	slotOffset = blockBytes

	nidBytes   = 32 // [EROFS_ISLOTBITS] = 5
	inodeBytes = 64 // sizeof [erofs_inode_extended]
	indexBytes = 8  // sizeof [erofs_inode_chunk_index]

	// Data layouts [EROFS_INODE_…].
	flatPlain  = 0 // blocks of the image from raw_blkaddr on
	flatInline = 2 // behind the inode
	chunkBased = 4 // chunk indexes behind the inode

	extended = 1 // [EROFS_INODE_LAYOUT_EXTENDED], bit 0 of i_format; the data layout is from bit 1 on

	// A chunk is as large as an extent: a file in a pack, which is smaller, has
	// one, and a larger file one for each of its shards.
	chunkFormat = 14 | 0x20 // log2(chunk ÷ block) | [EROFS_CHUNK_FORMAT_INDEXES]

	direntBytes = 12 // sizeof [erofs_dirent]
	maxName     = 255

	// firstNid is of the root: getdents(2) takes inode number 0 for an entry
	// that was removed, and root_nid has 16 bits.
	firstNid = 1

	maxDevices = 1<<16 - 1 // extra_devices has 16 bits
)

// File types of dirents: the FT_… of linux/fs_types.h.
const (
	typeFile    = 1
	typeFolder  = 2
	typeSymlink = 7
)

var _ [1]struct{} = [blockBytes << (chunkFormat & 0x1f) / stoker.ExtentBytes]struct{}{}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// super is what the superblock says.
type super struct {
	id           stoker.ID
	rows         uint64
	built        time.Time
	blocks, meta uint32 // of the image; where inodes begin
	devices      int
}

// encode makes block 0.
func (s *super) encode() []byte {
	b := make([]byte, blockBytes)
	le := binary.LittleEndian
	p := b[superOffset:]
	le.PutUint32(p[0:], superMagic)
	le.PutUint32(p[8:], compatChecksum|compatMTime)
	p[12] = blockBits
	le.PutUint16(p[14:], firstNid)
	le.PutUint64(p[16:], s.rows)
	sec, nsec := seconds(s.built)
	le.PutUint64(p[24:], sec)
	le.PutUint32(p[32:], nsec)
	le.PutUint32(p[36:], s.blocks)
	le.PutUint32(p[40:], s.meta)
	copy(p[48:64], s.id[:]) // uuid
	copy(p[64:80], "stoker")
	le.PutUint32(p[80:], needsChunks|needsDevices)
	le.PutUint16(p[86:], uint16(s.devices))
	le.PutUint16(p[88:], slotOffset/slotBytes)
	// crc32c of the block from the superblock on, its own field as zero, begun
	// with ~0 and not inverted at the end.
	le.PutUint32(p[4:], ^crc32.Checksum(p, castagnoli))
	return b
}

// appendSlot appends a device's line of the table. Devices have no place in
// the image's own range of blocks (mapped_blkaddr 0): data is found by the
// device's number alone.
func appendSlot(dst []byte, tag []byte, bytes int64) []byte {
	var b [slotBytes]byte
	copy(b[:tagBytes], tag)
	binary.LittleEndian.PutUint32(b[tagBytes:], uint32(blocksOf(bytes)))
	return append(dst, b[:]...)
}

// inode is what an inode says.
type inode struct {
	layout   uint16
	mode     uint32
	bytes    int64
	u        uint32 // i_u: the first block, or the format of chunks
	nid      uint64
	uid, gid uint32
	modified time.Time
}

func (n *inode) append(dst []byte) []byte {
	var b [inodeBytes]byte
	le := binary.LittleEndian
	le.PutUint16(b[0:], extended|n.layout<<1)
	le.PutUint16(b[4:], uint16(n.mode))
	le.PutUint64(b[8:], uint64(n.bytes))
	le.PutUint32(b[16:], n.u)
	le.PutUint32(b[20:], uint32(n.nid))
	le.PutUint32(b[24:], n.uid)
	le.PutUint32(b[28:], n.gid)
	sec, nsec := seconds(n.modified)
	le.PutUint64(b[32:], sec)
	le.PutUint32(b[40:], nsec)
	le.PutUint32(b[44:], 1) // links; of a folder it means that sub-folders are not counted
	return append(dst, b[:]...)
}

// appendIndex appends a chunk index: where on which device the chunk begins.
func appendIndex(dst []byte, device uint16, block uint32) []byte {
	dst = binary.LittleEndian.AppendUint16(dst, 0)
	dst = binary.LittleEndian.AppendUint16(dst, device)
	return binary.LittleEndian.AppendUint32(dst, block)
}

// seconds is a time as the image has it; those before 1970 are 1970, as in the
// tree view.
func seconds(t time.Time) (sec uint64, nsec uint32) {
	if t.IsZero() || t.Unix() <= 0 {
		return 0, 0
	}
	return uint64(t.Unix()), uint32(t.Nanosecond())
}

func blocksOf(bytes int64) int64 { return (bytes + blockBytes - 1) >> blockBits }

// modeOf is a row's mode; the same as in the tree view.
func modeOf(e *manifest.Entry, umask uint32) uint32 {
	switch {
	case e.Kind == manifest.Directory:
		return syscall.S_IFDIR | 0o777&^umask
	case e.Kind == manifest.Symlink:
		return syscall.S_IFLNK | 0o777
	case e.Exec:
		return syscall.S_IFREG | 0o777&^umask
	}
	return syscall.S_IFREG | 0o666&^umask
}
