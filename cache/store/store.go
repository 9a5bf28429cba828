// Package store keeps a worker's shards on its disks: one file per shard,
// written once, sealed when whole, freed only by unlink, with a presence mark
// and a CRC32C for each block in an index beside it (docs/adr/0002). It never
// exceeds the byte limit of a folder, survives kill -9 without losing what was
// written, and power loss without ever claiming a block whose bytes were not
// synced. Several folders are one store (docs/adr/0010): each shard lies in
// one of them, each document in all; one that fails is taken out of service.
// It knows nothing of objects or manifests. All methods may be called from
// any goroutine; one process owns a folder at a time.
package store

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"stoker.dev"
)

// Folder is a cache folder, best on a disk of its own.
type Folder struct {
	Dir           string // made 0700
	CapacityBytes int64  // hard limit of allocated bytes below Dir
}

// Options of Open.
type Options struct {
	Dir           string   // the only folder
	CapacityBytes int64    // its limit
	Folders       []Folder // or several, instead of Dir
	Log           *slog.Logger

	watch func(change)                // for tests of power loss: see disk.go
	epoch uint32                      // for the same: another boot than this one
	fail  func(op, path string) error // for tests of failing disks
}

// Overheads are charged beside the data, so that allocated bytes stay below
// the limit: what a file system needs for two files' extents and entries in
// their folder. A page of ext4's extent tree holds 340 extents, and half of
// that after splits; blocks that are written in any order give up to one
// extent a page.
const (
	pageBytes     = 4096
	shardOverhead = 3 * pageBytes
	extentsAPage  = 170
	baseOverhead  = 2 << 20 // lock, id, format, reservations, 256 folders of shards
	stateOverhead = 2 * pageBytes
)

// Usage is a snapshot of the space of the folders in service.
type Usage struct {
	CapacityBytes int64
	UsedBytes     int64 // charged to shards and documents that exist
	ReservedBytes int64 // promised and not yet drawn
}

// Spec describes a shard file.
type Spec struct {
	ID     stoker.ID
	Bytes  int64 // length of the file
	Blocks int
}

// isLength reports whether a data file may be so long: whole pages, for the
// kernel reads whole ones, or, from releases before kernel views, the shard's
// own length.
func (s Spec) isLength(bytes int64) bool { return bytes == roundUp(s.Bytes) || bytes == s.Bytes }

// ShardState is what the store knows of one shard.
type ShardState struct {
	Spec
	Present  int // blocks
	Sealed   bool
	LastUsed time.Time
}

// Store is the open cache folders of a worker.
//
// Lock order: Store.mu before Shard.mu.
type Store struct {
	id      string
	disk    disk
	log     *slog.Logger
	epoch   uint32 // of this boot: see index.go
	folders []*folder

	mu         sync.Mutex
	reserved   map[string]promise   // +checklocks:mu — by name, what is left
	shards     map[stoker.ID]*Shard // +checklocks:mu
	states     map[string]int64     // +checklocks:mu — charged bytes of documents
	docs       int64                // +checklocks:mu — their sum: what they take of each folder
	generation int64                // +checklocks:mu — see documents
	closed     bool                 // +checklocks:mu
	retired    func([]*Shard)       // +checklocks:mu — see OnRetired
	freed      func()               // +checklocks:mu — see OnFreed
}

// Open takes the cache folders and recovers what is in them. Busy: another
// process has one. Invalid: they belong to different workers, or two are one.
// Of several, one that cannot be used stays out of service and is named; the
// only one, or the last, ends the start.
func Open(o Options) (*Store, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if len(o.Folders) == 0 {
		o.Folders = []Folder{{o.Dir, o.CapacityBytes}}
	}
	s := &Store{disk: disk{o.watch, o.fail}, epoch: o.epoch, log: o.Log,
		reserved: map[string]promise{}, shards: map[stoker.ID]*Shard{}, states: map[string]int64{}}
	for _, f := range o.Folders {
		if f.CapacityBytes <= 0 {
			return nil, stoker.Errorf(stoker.KindInvalid, "store.open", f.Dir, "capacity of %d bytes", f.CapacityBytes)
		}
		s.folders = append(s.folders, &folder{s: s, dir: filepath.Clean(f.Dir), capacity: f.CapacityBytes, limit: f.CapacityBytes, unsynced: map[string]bool{}})
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.openLocked(); err != nil {
		s.unlock()
		return nil, err
	}
	return s, nil
}

// openLocked takes the folders, settles whose they are and what stands in
// their documents, and recovers the shards.
func (s *Store) openLocked() (err error) {
	if s.epoch == 0 {
		if s.epoch, err = bootEpoch(); err != nil {
			return err
		}
	}
	if err := s.takeAll(); err != nil {
		return err
	}
	if err := s.joinLocked(); err != nil {
		return err
	}
	for _, f := range s.folders {
		if f.out() {
			continue
		}
		err := f.recoverLocked()
		if err == nil {
			err = f.settle()
		}
		if err = s.survive(f, err); err != nil {
			return err
		}
	}
	return nil
}

// Dir returns the first cache folder in service, or else the first one.
func (s *Store) Dir() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.folders {
		if !f.out() {
			return f.dir
		}
	}
	return s.folders[0].dir
}

// WorkerID returns the random id that all folders bear.
func (s *Store) WorkerID() string { return s.id }

// Usage returns what is used and promised. With a folder out of service more
// may be promised than there is: what is beyond is refused when it is drawn.
func (s *Store) Usage() (u Usage) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.folders {
		if !f.out() {
			u.CapacityBytes += f.limit
			u.UsedBytes += f.usedLocked()
		}
	}
	u.ReservedBytes = s.reservedLocked()
	return u
}

// FreeBytes is how much can still be promised for shards of which the largest
// is charged with so many bytes.
func (s *Store) FreeBytes(largest int64) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.freeLocked(largest)
}

// freeLocked leaves aside what several folders may waste: a shard lies in one
// folder, so all but the last byte of a shard can be free in each and be of no
// use. With that aside, what fits the sum always fits a folder.
func (s *Store) freeLocked(largest int64) int64 {
	free, in := int64(0), int64(0)
	for _, f := range s.folders {
		if !f.out() {
			free += max(0, f.limit-f.usedLocked())
			in++
		}
	}
	for _, p := range s.reserved {
		free -= p.Bytes
		if p.Bytes > 0 {
			largest = max(largest, p.Largest)
		}
	}
	return free - max(0, in-1)*largest
}

func (s *Store) reservedLocked() (sum int64) {
	for _, p := range s.reserved {
		sum += p.Bytes
	}
	return sum
}

// pickLocked returns the folder that is, with need more bytes, the least full
// for its size; nil if none has the space.
func (s *Store) pickLocked(need int64) (best *folder) {
	var least float64
	for _, f := range s.folders {
		used := f.usedLocked() + need
		if f.out() || used > f.limit {
			continue
		}
		if fill := float64(used) / float64(f.capacity); best == nil || fill < least {
			best, least = f, fill
		}
	}
	return best
}

// ChargeBytes is what a shard of this size takes of the capacity.
func (s *Store) ChargeBytes(bytes int64, blocks int) int64 {
	return roundUp(bytes) + roundUp(bytes/extentsAPage) + roundUp(indexBytes(blocks)) + shardOverhead
}

func roundUp(n int64) int64 { return (n + pageBytes - 1) / pageBytes * pageBytes }

// Create opens the shard's file and makes it if it is not there, in the folder
// that is the least full for its size. Its full size is charged at once:
// against what is left of the named reservation, or, with "", against free
// space. NoSpace names the numbers. The caller releases the shard.
func (s *Store) Create(spec Spec, reservation string) (*Shard, error) {
	if spec.Bytes <= 0 || spec.Blocks <= 0 || int64(spec.Blocks)*stoker.BlockBytes < spec.Bytes/2 && spec.Bytes > stoker.BlockBytes*int64(spec.Blocks) {
		return nil, stoker.Errorf(stoker.KindInvalid, "store.create", spec.ID.Short(), "%d bytes in %d blocks", spec.Bytes, spec.Blocks)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, stoker.Errorf(stoker.KindTransient, "store.create", s.folders[0].dir, "the store is closed")
	}
	if sh := s.shards[spec.ID]; sh != nil {
		if sh.spec != spec {
			return nil, stoker.Errorf(stoker.KindInvalid, "store.create", spec.ID.Short(), "exists with %d bytes in %d blocks", sh.spec.Bytes, sh.spec.Blocks)
		}
		if err := s.acquireLocked(sh); err == nil || !sh.dead.Load() {
			return sh, err
		}
	}
	need := s.ChargeBytes(spec.Bytes, spec.Blocks)
	p := s.reserved[reservation]
	drawn := min(need, p.Bytes)
	// What the reservation covers needs no other space. After a restart it may
	// cover too much: draws are not written down.
	if free := s.freeLocked(need); need > drawn && need-drawn > free {
		return nil, stoker.Errorf(stoker.KindNoSpace, "store.create", spec.ID.Short(), "needs %d bytes, %d free", need-drawn, max(0, free))
	}
	sh, err := s.placeLocked(spec, need)
	if err != nil {
		return nil, err
	}
	if drawn > 0 {
		p.Bytes -= drawn
		s.reserved[reservation] = p
	}
	return sh, s.acquireLocked(sh)
}

// placeLocked makes the shard's file in a folder that takes it.
func (s *Store) placeLocked(spec Spec, need int64) (*Shard, error) {
	for {
		f := s.pickLocked(need)
		if f == nil {
			return nil, stoker.Errorf(stoker.KindNoSpace, "store.create", spec.ID.Short(), "no folder has %d bytes free", need)
		}
		sh, err := s.createShard(f, spec)
		if err == nil {
			f.data += need
			s.shards[spec.ID] = sh
			return sh, nil
		}
		if !s.noteLocked(f, err) {
			return nil, err
		}
	}
}

// acquireLocked takes a reference. A shard whose file cannot be opened any
// more is retired, unless the reason lies in this process.
func (s *Store) acquireLocked(sh *Shard) error {
	err := sh.acquire()
	if err != nil && !ours(err) {
		s.noteLocked(sh.f, err)
		s.retireLocked(sh)
	}
	return err
}

// Get opens a shard that is there. The caller releases it.
func (s *Store) Get(id stoker.ID) (*Shard, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sh := s.shards[id]
	if sh == nil || s.closed {
		return nil, false
	}
	if err := s.acquireLocked(sh); err != nil {
		s.log.Error("shard cannot be opened", "shard", id.Short(), "folder", sh.f.dir, "error", err)
		return nil, false
	}
	return sh, true
}

// Users is how many have a shard open.
func (s *Store) Users(id stoker.ID) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sh := s.shards[id]; sh != nil {
		return sh.refs
	}
	return 0
}

// Check looks at a shard's files as they are on the disk now: there, of the
// right size. Corrupt if not; NotExist if the store has no such shard.
func (s *Store) Check(id stoker.ID) error {
	s.mu.Lock()
	sh := s.shards[id]
	s.mu.Unlock()
	if sh == nil {
		return stoker.Errorf(stoker.KindNotExist, "store.check", id.Short(), "no such shard")
	}
	index := indexBytes(sh.spec.Blocks)
	for path, is := range map[string]func(int64) bool{sh.path(dataSuffix): sh.spec.isLength, sh.path(indexSuffix): func(n int64) bool { return n == index }} {
		fi, err := os.Lstat(path)
		if err != nil {
			return stoker.Errorf(stoker.KindCorrupt, "store.check", path, "%w", err)
		}
		if !fi.Mode().IsRegular() || !is(fi.Size()) {
			return stoker.Errorf(stoker.KindCorrupt, "store.check", path, "is %v of %d bytes, which is not its length", fi.Mode(), fi.Size())
		}
	}
	return nil
}

// Shards lists what is there, sorted by id.
func (s *Store) Shards() []ShardState {
	s.mu.Lock()
	out := make([]ShardState, 0, len(s.shards))
	for _, sh := range s.shards {
		out = append(out, sh.state())
	}
	s.mu.Unlock()
	slices.SortFunc(out, func(a, b ShardState) int { return slices.Compare(a.ID[:], b.ID[:]) })
	return out
}

// Remove unlinks a shard. Who has it open reads on; its space counts as free
// when the last of them has released it. One that is not there is fine. If its
// disk refuses, the shard is given up all the same, with the disk.
func (s *Store) Remove(id stoker.ID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	sh := s.shards[id]
	if sh == nil {
		return nil
	}
	err := sh.f.unlink(id)
	if err != nil && !s.noteLocked(sh.f, err) {
		return failed("store.remove", id.Short(), err)
	}
	s.dropLocked(sh)
	return nil
}

// dropLocked forgets a shard; its space counts until it is released.
func (s *Store) dropLocked(sh *Shard) {
	if sh.gone {
		return
	}
	sh.gone = true
	if s.shards[sh.spec.ID] == sh {
		delete(s.shards, sh.spec.ID)
	}
	if sh.refs == 0 {
		sh.f.data -= sh.charge()
		s.freedLocked()
	}
}

// Close ends the store. Shards that are open are closed with it.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	for _, sh := range s.shards {
		sh.shut()
	}
	return s.unlock()
}

// unlock lets others have the folders.
func (s *Store) unlock() (err error) {
	for _, f := range s.folders {
		if f.lock != nil {
			err = errors.Join(err, f.lock.Close())
			f.lock = nil
		}
	}
	return err
}

// failed gives an error of the file system its kind.
func failed(op, key string, err error) error {
	kind := stoker.KindTransient
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		kind = stoker.KindNoSpace
	case errors.Is(err, fs.ErrNotExist):
		kind = stoker.KindNotExist
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS):
		kind = stoker.KindDenied
	}
	return stoker.Errorf(kind, op, key, "%w", err)
}
