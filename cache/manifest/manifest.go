// Package manifest holds what a dataset is: an immutable, sorted,
// content-addressed listing of its objects at one moment, memory-mapped, with
// the layout of its shards. docs/adr/0001 describes the format byte by byte.
// A *Manifest is read-only and may be used from any goroutine until Close.
package manifest

import (
	"time"

	"stoker.dev"
	"stoker.dev/ufs"
)

// Row is the index of an entry: 0 is the root directory, the rest follow in
// breadth-first order, so that the children of a directory are one run
// sorted by name. The FUSE node id of a row is row + 1.
type Row uint32

// EntryKind tells files, directories and symbolic links apart.
type EntryKind uint8

// The kinds of entries.
const (
	File EntryKind = iota
	Directory
	Symlink
)

// NoShard is Entry.Shard of what has no bytes.
const NoShard = ^uint32(0)

// Entry is one row, decoded. Getting one does not allocate.
type Entry struct {
	Kind       EntryKind
	Exec       bool
	Root       uint16 // index into Roots
	Parent     Row
	Bytes      int64     // files: size of the object; links: of the target
	ModTime    time.Time // of the object; directories: the newest below is not tracked, listing begin
	Shard      uint32    // first shard, NoShard if Bytes is 0
	Off        int64     // offset in the shard (0 for extents)
	FirstBlock uint32    // number of its first block in the shard (0 for extents)
	FirstChild Row       // directories
	Children   uint32    // directories
}

// Root is one UFS prefix joined into the dataset.
type Root struct {
	ufs.Location
	Folder string `json:"folder,omitempty"` // where it is joined; "" = at the top
}

// Shard is one line of the shard table. Its members are the files with
// Entry.Shard == its number within rows [FirstRow, FirstRow+Rows), or, for an
// extent, bytes [Extent*ExtentBytes, +Bytes) of the one file FirstRow.
type Shard struct {
	ID       stoker.ID
	FirstRow Row
	Rows     uint32 // 1 for extents
	Extent   int32  // number of the extent in its object; -1 for packs
	Blocks   uint32
	Bytes    int64 // length of the shard file, paddings included
}

// Member is one file's part of a shard: bytes [ObjectOff, ObjectOff+Bytes) of
// the object of row Row lie at [Off, Off+Bytes) of the shard file, as blocks
// FirstBlock on, each of BlockBytes, the last one shorter.
type Member struct {
	Row        Row
	Off        int64
	ObjectOff  int64
	Bytes      int64
	FirstBlock uint32
}

// Unmountable is a key that cannot be a path (docs/semantics.md), with why.
type Unmountable struct {
	Key    string `json:"key"`
	Reason string `json:"reason"`
}

// Source names the object behind a row, for the UFS.
type Source struct {
	Root    uint16
	Key     string // full key in the root's store
	Version ufs.Version
}
