package store

import (
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"stoker.dev"
)

const (
	dataSuffix  = ".shard"
	indexSuffix = ".idx"
)

// Shard is one shard's file. A reference (from Create or Get) keeps its files
// open until Release.
type Shard struct {
	st     *Store
	f      *folder
	spec   Spec
	placed bool        // its place on the disk is taken, written or not
	dead   atomic.Bool // given up: has no block any more, takes none
	seen   atomic.Bool // Mourn was called

	refs int  // guarded by Store.mu
	gone bool // guarded by Store.mu: unlinked

	mu    sync.Mutex
	data  *os.File         // nil while nobody has a reference; set before acquire returns
	index *os.File         // nil once sealed
	entry [entryBytes]byte // of the index, being written

	// What is present is read without a lock: a bit is set after the block's
	// bytes and checksum are in place.
	bits    []atomic.Uint32
	crcs    []uint32
	present atomic.Int64
	sealed  atomic.Bool
	checked checks
	used    atomic.Int64 // unix seconds of the last use
}

func (sh *Shard) charge() int64 { return sh.st.ChargeBytes(sh.spec.Bytes, sh.spec.Blocks) }

func (sh *Shard) state() ShardState {
	return ShardState{sh.spec, int(sh.present.Load()), sh.sealed.Load(), time.Unix(sh.used.Load(), 0)}
}

// createShard makes the files of a new shard. REQUIRES: Store.mu is held.
func (s *Store) createShard(f *folder, spec Spec) (*Shard, error) {
	dataPath := f.path(spec.ID, dataSuffix)
	err := f.there()
	if err == nil {
		err = f.settle()
	}
	if err == nil {
		err = s.disk.makeOneDir(filepath.Dir(dataPath))
	}
	placed := false
	if err == nil {
		err = s.disk.makeFile(dataPath, roundUp(spec.Bytes), func(data *os.File) (err error) {
			placed, err = s.disk.allocate(data, roundUp(spec.Bytes))
			return err
		})
	}
	if err == nil {
		err = s.disk.makeFile(f.path(spec.ID, indexSuffix), indexBytes(spec.Blocks), func(index *os.File) error {
			return s.disk.writeAt(index, encodeHeader(spec, 0), 0)
		})
	}
	if err != nil {
		_ = s.disk.remove(dataPath)
		_ = s.disk.remove(f.path(spec.ID, indexSuffix))
		return nil, failed("store.create", spec.ID.Short(), err)
	}
	sh := &Shard{
		st: s, f: f, spec: spec, placed: placed, bits: make([]atomic.Uint32, (spec.Blocks+31)/32), crcs: make([]uint32, spec.Blocks), checked: newChecks(spec.Blocks),
	}
	sh.used.Store(time.Now().Unix())
	return sh, nil
}

// scanShard reads a shard's index at start.
func (f *folder) scanShard(id stoker.ID) (*Shard, error) {
	s := f.s
	fi, err := os.Lstat(f.path(id, dataSuffix))
	if err != nil {
		return nil, err
	}
	index, err := os.OpenFile(f.path(id, indexSuffix), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer index.Close()
	ii, err := index.Stat()
	if err != nil {
		return nil, err
	}
	if !ii.Mode().IsRegular() || ii.Size() < headerBytes || ii.Size() > indexBytes(1<<20) {
		return nil, fmt.Errorf("index of %d bytes", ii.Size())
	}
	b := make([]byte, ii.Size())
	if err := s.disk.readAt(index, b, 0); err != nil {
		return nil, err
	}
	spec, flags, ok := decodeHeader(b)
	if !ok || spec.ID != id || indexBytes(spec.Blocks) != ii.Size() || !fi.Mode().IsRegular() || !spec.isLength(fi.Size()) {
		return nil, fmt.Errorf("index and data disagree: %d bytes of data", fi.Size())
	}
	sh := &Shard{
		st: s, f: f, spec: spec, placed: fi.Sys().(*syscall.Stat_t).Blocks*512 >= spec.Bytes, bits: make([]atomic.Uint32, (spec.Blocks+31)/32), crcs: make([]uint32, spec.Blocks), checked: newChecks(spec.Blocks),
	}
	for block := range spec.Blocks {
		crc, ok := validEntry(b[headerBytes+entryBytes*block:], &id, block, s.epoch)
		if ok {
			sh.crcs[block] = crc
			sh.setBit(block)
		}
	}
	sh.sealed.Store(flags&flagSealed != 0 && int(sh.present.Load()) == spec.Blocks)
	sh.used.Store(fi.ModTime().Unix())
	// A crash while it was sealed, or a damaged mark, leaves a read-only file
	// that has to be written again.
	if !sh.sealed.Load() && fi.Mode().Perm() != 0o600 {
		return sh, os.Chmod(f.path(id, dataSuffix), 0o600) // lost by power loss, it is done again
	}
	return sh, nil
}

func (sh *Shard) setBit(block int) {
	if sh.bits[block/32].Or(1<<(block%32))&(1<<(block%32)) == 0 {
		sh.present.Add(1)
	}
}

// acquire opens the files for a new reference. REQUIRES: Store.mu is held.
func (sh *Shard) acquire() error {
	if sh.refs > 0 { // its files are open; who seals it has mu for as long as the disk takes
		sh.refs++
		sh.used.Store(time.Now().Unix())
		return nil
	}
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.data == nil {
		mode := os.O_RDWR
		if sh.sealed.Load() {
			mode = os.O_RDONLY
		}
		data, err := os.OpenFile(sh.path(dataSuffix), mode|unix.O_NOFOLLOW, 0)
		if err != nil {
			return failed("store.open", sh.spec.ID.Short(), err)
		}
		if !sh.sealed.Load() {
			sh.index, err = os.OpenFile(sh.path(indexSuffix), os.O_RDWR|unix.O_NOFOLLOW, 0)
			if err != nil {
				_ = data.Close()
				return failed("store.open", sh.spec.ID.Short(), err)
			}
		}
		sh.data = data
	}
	sh.refs++
	sh.used.Store(time.Now().Unix())
	return nil
}

// Release gives a reference back. The shard must not be used after.
func (sh *Shard) Release() {
	s := sh.st
	s.mu.Lock()
	defer s.mu.Unlock()
	sh.refs--
	if sh.refs > 0 {
		return
	}
	sh.closeFiles()
	if sh.gone {
		sh.f.data -= sh.charge()
		s.freedLocked()
	}
}

func (sh *Shard) path(suffix string) string { return sh.f.path(sh.spec.ID, suffix) }

func (sh *Shard) closeFiles() {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	for _, f := range []**os.File{&sh.data, &sh.index} {
		if *f != nil {
			_ = (*f).Close() // nothing is buffered
			*f = nil
		}
	}
}

// shut closes the files and keeps the fields: who still reads gets an error.
func (sh *Shard) shut() {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	for _, f := range []*os.File{sh.data, sh.index} {
		if f != nil {
			_ = f.Close() // nothing is buffered
		}
	}
}

// ID returns the shard's id.
func (sh *Shard) ID() stoker.ID { return sh.spec.ID }

// Spec returns the shard's description.
func (sh *Shard) Spec() Spec { return sh.spec }

// Has reports whether a block is present.
func (sh *Shard) Has(block int) bool { return sh.Had(block) && !sh.dead.Load() }

// Had reports the same, of a retired shard as it was when it was given up.
func (sh *Shard) Had(block int) bool {
	return block >= 0 && block < sh.spec.Blocks && sh.bits[block/32].Load()&(1<<(block%32)) != 0
}

// HasAll reports whether n blocks from one on are present.
func (sh *Shard) HasAll(from, n int) bool {
	for b := from; b < from+n; b++ {
		if !sh.Has(b) {
			return false
		}
	}
	return true
}

// Present returns how many blocks are present.
func (sh *Shard) Present() int {
	if sh.dead.Load() {
		return 0
	}
	return int(sh.present.Load())
}

// Retired reports whether the shard was given up: its file went bad, or its
// disk. Release it, and Create makes another one.
func (sh *Shard) Retired() bool { return sh.dead.Load() }

// Mourn is true for the first one who asks: the loss is counted once.
func (sh *Shard) Mourn() bool { return !sh.seen.Swap(true) }

// CRC returns the CRC32C of a present block.
func (sh *Shard) CRC(block int) uint32 { return sh.crcs[block] }

// Bitmap returns a bit for each block, least bit first.
func (sh *Shard) Bitmap() []byte {
	out := make([]byte, (sh.spec.Blocks+7)/8)
	for b := range sh.spec.Blocks {
		if sh.Has(b) {
			out[b/8] |= 1 << (b % 8)
		}
	}
	return out
}

// DropPages lets go of what the page cache has of the file from off on, n bytes of it,
// as far as it is clean and nobody maps it. REQUIRES: a reference.
func (sh *Shard) DropPages(off, n int64) {
	_ = unix.Fadvise(int(sh.data.Fd()), off, n, unix.FADV_DONTNEED) // advice: what stays costs memory, no more
}

// File returns the data file, valid until Release.
func (sh *Shard) File() *os.File { return sh.data }

// Reopen opens the data file anew, for an offset of its own. Who reads from it keeps
// the shard, and closes it before Release.
func (sh *Shard) Reopen() (*os.File, error) {
	f, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", sh.data.Fd()))
	if err != nil {
		return nil, failed("store.open", sh.spec.ID.Short(), err)
	}
	return f, nil
}

// Sealed reports whether the shard is whole and read-only.
func (sh *Shard) Sealed() bool { return sh.sealed.Load() }

// Write writes a block at its offset and marks it: first the bytes, then the
// mark. A block that is present is not written again. If the disk refuses, the
// shard is retired, except for want of space where no other folder has it.
func (sh *Shard) Write(block int, off int64, p []byte) (uint32, error) {
	if block < 0 || block >= sh.spec.Blocks || off < 0 || off+int64(len(p)) > sh.spec.Bytes || len(p) == 0 || len(p) > stoker.BlockBytes {
		return 0, stoker.Errorf(stoker.KindInvalid, "store.write", sh.spec.ID.Short(), "block %d: %d bytes at %d", block, len(p), off)
	}
	crc := crc32.Checksum(p, castagnoli)
	if sh.dead.Load() {
		return 0, stoker.Errorf(stoker.KindNotExist, "store.write", sh.spec.ID.Short(), "the shard was retired")
	}
	if sh.Had(block) {
		return sh.crcs[block], nil
	}
	if err := sh.write(block, off, p, crc); err != nil {
		sh.st.refused(sh, err, true)
		return 0, failed("store.write", sh.spec.ID.Short(), err)
	}
	return crc, nil
}

func (sh *Shard) write(block int, off int64, p []byte, crc uint32) error {
	// Two writers of one block write the same bytes; only marks are ordered.
	if err := sh.st.disk.writeAt(sh.data, p, off); err != nil {
		return err
	}
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.Had(block) || sh.index == nil {
		return nil
	}
	putEntry(sh.entry[:], &sh.spec.ID, block, crc, sh.st.epoch)
	if err := sh.st.disk.writeAt(sh.index, sh.entry[:], headerBytes+entryBytes*int64(block)); err != nil {
		return err
	}
	sh.crcs[block] = crc
	sh.checked.add(block)
	sh.setBit(block)
	return nil
}

// ReadAt reads raw bytes of the file, without checking.
func (sh *Shard) ReadAt(p []byte, off int64) (int, error) { return sh.data.ReadAt(p, off) }

// ReadBlock reads a whole block into p, which must have its length, and
// checks it: Corrupt if the bytes are not those that were written, NotExist
// if the block is not present.
func (sh *Shard) ReadBlock(block int, off int64, p []byte) error {
	if !sh.Has(block) {
		return stoker.Errorf(stoker.KindNotExist, "store.read", sh.spec.ID.Short(), "no block %d", block)
	}
	if err := sh.st.disk.readAt(sh.data, p, off); errors.Is(err, os.ErrClosed) {
		return stoker.Errorf(stoker.KindTransient, "store.read", sh.spec.ID.Short(), "the store is closed")
	} else if err != nil {
		return stoker.Errorf(stoker.KindCorrupt, "store.read", sh.spec.ID.Short(), "block %d: %w", block, err)
	}
	if got := crc32.Checksum(p, castagnoli); got != sh.crcs[block] {
		return stoker.Errorf(stoker.KindCorrupt, "store.read", sh.spec.ID.Short(), "block %d has checksum %08x, was written with %08x", block, got, sh.crcs[block])
	}
	sh.checked.add(block)
	return nil
}

// Drop forgets blocks that were found corrupt, so that they can be written
// again. A sealed shard is never written again: Retire it instead.
func (sh *Shard) Drop(blocks ...int) error {
	err := sh.drop(blocks)
	sh.st.refused(sh, err, false)
	return err
}

func (sh *Shard) drop(blocks []int) error {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.sealed.Load() || sh.index == nil {
		return stoker.Errorf(stoker.KindInvalid, "store.drop", sh.spec.ID.Short(), "the shard is sealed")
	}
	for _, b := range blocks {
		if !sh.Has(b) {
			continue
		}
		if err := sh.st.disk.writeAt(sh.index, make([]byte, entryBytes), headerBytes+entryBytes*int64(b)); err != nil {
			return failed("store.drop", sh.spec.ID.Short(), err)
		}
		sh.bits[b/32].And(^uint32(1 << (b % 32)))
		sh.present.Add(-1)
		sh.checked.remove(b)
	}
	return nil
}

// Seal makes a whole shard durable and read-only: bytes are synced, then
// every mark is written anew as durable. Sealing again is fine.
func (sh *Shard) Seal() error {
	err := sh.seal()
	sh.st.refused(sh, err, false)
	return err
}

func (sh *Shard) seal() error {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.sealed.Load() {
		return nil
	}
	if sh.dead.Load() {
		return stoker.Errorf(stoker.KindNotExist, "store.seal", sh.spec.ID.Short(), "the shard was retired")
	}
	if int(sh.present.Load()) != sh.spec.Blocks || sh.index == nil {
		return stoker.Errorf(stoker.KindInvalid, "store.seal", sh.spec.ID.Short(), "%d of %d blocks are present", sh.present.Load(), sh.spec.Blocks)
	}
	if err := sh.st.disk.chmod(sh.data, 0o400); err != nil {
		return failed("store.seal", sh.spec.ID.Short(), err)
	}
	if err := sh.st.disk.sync(sh.data); err != nil {
		return failed("store.seal", sh.spec.ID.Short(), err)
	}
	b := make([]byte, indexBytes(sh.spec.Blocks))
	copy(b, encodeHeader(sh.spec, flagSealed))
	for block := range sh.spec.Blocks {
		putEntry(b[headerBytes+entryBytes*block:], &sh.spec.ID, block, sh.crcs[block], durable)
	}
	// The entries first, then the header that says so: a crash in between
	// leaves an unsealed shard with durable marks.
	if err := sh.st.disk.writeAt(sh.index, b[headerBytes:], headerBytes); err != nil {
		return failed("store.seal", sh.spec.ID.Short(), err)
	}
	if err := sh.st.disk.writeAt(sh.index, b[:headerBytes], 0); err != nil {
		return failed("store.seal", sh.spec.ID.Short(), err)
	}
	if err := sh.st.disk.sync(sh.index); err != nil {
		return failed("store.seal", sh.spec.ID.Short(), err)
	}
	if err := sh.st.disk.syncDir(filepath.Dir(sh.path(indexSuffix))); err != nil {
		return failed("store.seal", sh.spec.ID.Short(), err)
	}
	sh.sealed.Store(true)
	_ = sh.index.Close()
	sh.index = nil
	return nil
}

// Flush makes what is here of a shard durable: its bytes are synced, then their
// marks are written anew as durable. It may go on being written.
func (sh *Shard) Flush() error {
	err := sh.flush()
	sh.st.refused(sh, err, false)
	return err
}

func (sh *Shard) flush() error {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.sealed.Load() {
		return nil
	}
	if sh.dead.Load() || sh.index == nil {
		return stoker.Errorf(stoker.KindNotExist, "store.flush", sh.spec.ID.Short(), "the shard was retired")
	}
	if err := sh.st.disk.sync(sh.data); err != nil {
		return failed("store.flush", sh.spec.ID.Short(), err)
	}
	for block := range sh.spec.Blocks { // a block is marked behind its bytes, with mu held
		if !sh.Had(block) {
			continue
		}
		putEntry(sh.entry[:], &sh.spec.ID, block, sh.crcs[block], durable)
		if err := sh.st.disk.writeAt(sh.index, sh.entry[:], headerBytes+entryBytes*int64(block)); err != nil {
			return failed("store.flush", sh.spec.ID.Short(), err)
		}
	}
	if err := sh.st.disk.sync(sh.index); err != nil {
		return failed("store.flush", sh.spec.ID.Short(), err)
	}
	if err := sh.st.disk.syncDir(filepath.Dir(sh.path(indexSuffix))); err != nil {
		return failed("store.flush", sh.spec.ID.Short(), err)
	}
	return nil
}
