// Package store keeps a worker's shards on its disk: one file per shard,
// written once, sealed when whole, freed only by unlink, with a presence mark
// and a CRC32C for each block in an index beside it (docs/adr/0002). It never
// exceeds its byte limit, survives kill -9 without losing what was written,
// and power loss without ever claiming a block whose bytes were not synced.
// It knows nothing of objects or manifests. All methods may be called from
// any goroutine; one process owns a folder at a time.
package store

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"stoker.dev"
)

// Options of Open.
type Options struct {
	Dir           string // the cache folder, made 0700
	CapacityBytes int64  // hard limit of allocated bytes below Dir
	Log           *slog.Logger

	watch func(change) // for tests of power loss: see disk.go
	epoch uint32       // for the same: another boot than this one
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
	baseOverhead  = 2 << 20 // lock, id, reservations, 256 folders of shards
	stateOverhead = 2 * pageBytes
)

// Usage is a snapshot of the space.
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

// ShardState is what the store knows of one shard.
type ShardState struct {
	Spec
	Present  int // blocks
	Sealed   bool
	LastUsed time.Time
}

// Store is an open cache folder.
type Store struct {
	dir, id string
	disk    disk
	log     *slog.Logger
	lock    *os.File
	epoch   uint32 // of this boot: see index.go

	mu       sync.Mutex
	capacity int64
	used     int64                // +checklocks:mu
	reserved map[string]int64     // +checklocks:mu — by name, what is left
	shards   map[stoker.ID]*Shard // +checklocks:mu
	states   map[string]int64     // +checklocks:mu — charged bytes of documents
	closed   bool                 // +checklocks:mu
	unsynced map[string]bool      // +checklocks:mu — folders: see settleLocked
}

// Open takes a cache folder and recovers what is in it. Busy: another process
// has it.
func Open(o Options) (*Store, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.CapacityBytes <= 0 {
		return nil, stoker.Errorf(stoker.KindInvalid, "store.open", o.Dir, "capacity of %d bytes", o.CapacityBytes)
	}
	s := &Store{dir: o.Dir, disk: disk{o.watch}, epoch: o.epoch, log: o.Log, capacity: o.CapacityBytes, used: baseOverhead,
		reserved: map[string]int64{}, shards: map[stoker.ID]*Shard{}, states: map[string]int64{}, unsynced: map[string]bool{}}
	if err := s.take(); err != nil {
		return nil, err
	}
	err := s.recover()
	if err == nil {
		s.mu.Lock()
		err = s.settleLocked()
		s.mu.Unlock()
	}
	if err != nil {
		_ = s.lock.Close()
		return nil, err
	}
	return s, nil
}

// take makes the folder, locks it and reads its id.
func (s *Store) take() error {
	for _, d := range []string{"", "shards", "state"} {
		if err := s.disk.makeDir(filepath.Join(s.dir, d)); err != nil {
			return failed("store.open", s.dir, err)
		}
		s.unsynced[filepath.Join(s.dir, d)] = true // see recoverFolder
	}
	if err := os.Chmod(s.dir, 0o700); err != nil {
		return failed("store.open", s.dir, err)
	}
	lock, err := os.OpenFile(filepath.Join(s.dir, "lock"), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return failed("store.open", s.dir, err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		pid, _ := os.ReadFile(lock.Name())
		_ = lock.Close()
		return stoker.Errorf(stoker.KindBusy, "store.open", s.dir, "is in use by process %s", strings.TrimSpace(string(pid)))
	}
	s.lock = lock
	if err := lock.Truncate(0); err == nil {
		_, err = lock.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0)
		if err != nil {
			s.log.Warn("lock file has no pid", "error", err)
		}
	}
	if s.epoch == 0 {
		if s.epoch, err = bootEpoch(); err != nil {
			return err
		}
	}
	return s.readID()
}

// readID reads the worker's id, made once for a folder.
func (s *Store) readID() error {
	path := filepath.Join(s.dir, "id")
	body, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		body = []byte(stoker.NewToken() + "\n")
		err = s.disk.writeAtomic(path, body)
	}
	if err != nil {
		return failed("store.open", path, err)
	}
	s.id = strings.TrimSpace(string(body))
	if len(s.id) != 32 || strings.Trim(s.id, "0123456789abcdef") != "" {
		return stoker.Errorf(stoker.KindCorrupt, "store.open", path, "holds no worker id; remove it to become a new worker")
	}
	return nil
}

// recover reads the folder: shards, documents, reservations. What is none of
// these is removed: it would take space that nobody counts.
func (s *Store) recover() error {
	halves, err := filepath.Glob(filepath.Join(s.dir, tempPrefix+"*"))
	if err != nil {
		return failed("store.open", s.dir, err)
	}
	for _, path := range halves {
		s.removeJunk(path, errors.New("half of a write that a crash ended"))
	}
	if err := s.recoverStates(); err != nil {
		return err
	}
	folders, err := os.ReadDir(filepath.Join(s.dir, "shards"))
	if err != nil {
		return failed("store.open", s.dir, err)
	}
	for _, d := range folders {
		dir := filepath.Join(s.dir, "shards", d.Name())
		if !d.IsDir() {
			s.removeJunk(dir, errors.New("is no folder"))
		} else if err := s.recoverFolder(dir); err != nil {
			return err
		}
	}
	return s.recoverReservations()
}

// recoverFolder takes in the shards of one folder.
func (s *Store) recoverFolder(dir string) error {
	files, err := os.ReadDir(dir)
	if err != nil {
		return failed("store.open", dir, err)
	}
	s.unsynced[dir] = true // what a process removed that was killed, perhaps
	seen := map[stoker.ID]bool{}
	for _, f := range files {
		id, ok := idOf(f.Name())
		if !ok || filepath.Base(dir) != id.String()[:2] {
			s.removeJunk(filepath.Join(dir, f.Name()), errors.New("is not named as a shard's file here"))
			continue
		}
		if seen[id] {
			continue
		}
		seen[id] = true
		sh, err := s.scanShard(id)
		if ours(err) {
			return failed("store.open", id.Short(), err)
		} else if err != nil {
			s.removeJunk(s.path(id, indexSuffix), err)
			s.removeJunk(s.path(id, dataSuffix), err)
			continue
		}
		s.shards[id] = sh
		s.used += sh.charge()
	}
	return nil
}

// idOf returns the shard that a file's name belongs to.
func idOf(name string) (stoker.ID, bool) {
	hex, data := strings.CutSuffix(name, dataSuffix)
	hex, index := strings.CutSuffix(hex, indexSuffix)
	id, err := stoker.ParseID(hex)
	return id, err == nil && data != index && id.String() == hex
}

// ours reports whether an error says more of this process than of a file: it
// is no reason to remove anything.
func ours(err error) bool {
	return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOMEM) || errors.Is(err, fs.ErrPermission)
}

func (s *Store) removeJunk(path string, why error) {
	err := s.disk.removeAll(path)
	s.unsynced[filepath.Dir(path)] = true
	s.log.Warn("removed what is no shard", "path", path, "why", why, "error", err)
}

// Dir returns the cache folder.
func (s *Store) Dir() string { return s.dir }

// WorkerID returns the random id of this folder.
func (s *Store) WorkerID() string { return s.id }

// Usage returns what is used and promised.
func (s *Store) Usage() Usage {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Usage{s.capacity, s.used, s.reservedLocked()}
}

func (s *Store) reservedLocked() (sum int64) {
	for _, n := range s.reserved {
		sum += n
	}
	return sum
}

// ChargeBytes is what a shard of this size takes of the capacity.
func (s *Store) ChargeBytes(bytes int64, blocks int) int64 {
	return roundUp(bytes) + roundUp(bytes/extentsAPage) + roundUp(indexBytes(blocks)) + shardOverhead
}

func roundUp(n int64) int64 { return (n + pageBytes - 1) / pageBytes * pageBytes }

// Create opens the shard's file and makes it if it is not there. Its full
// size is charged at once: against what is left of the named reservation, or,
// with "", against free space. NoSpace names the numbers. The caller releases
// the shard.
func (s *Store) Create(spec Spec, reservation string) (*Shard, error) {
	if spec.Bytes <= 0 || spec.Blocks <= 0 || int64(spec.Blocks)*stoker.BlockBytes < spec.Bytes/2 && spec.Bytes > stoker.BlockBytes*int64(spec.Blocks) {
		return nil, stoker.Errorf(stoker.KindInvalid, "store.create", spec.ID.Short(), "%d bytes in %d blocks", spec.Bytes, spec.Blocks)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, stoker.Errorf(stoker.KindTransient, "store.create", s.dir, "the store is closed")
	}
	if sh := s.shards[spec.ID]; sh != nil {
		if sh.spec != spec {
			return nil, stoker.Errorf(stoker.KindInvalid, "store.create", spec.ID.Short(), "exists with %d bytes in %d blocks", sh.spec.Bytes, sh.spec.Blocks)
		}
		return sh, sh.acquire()
	}
	need := s.ChargeBytes(spec.Bytes, spec.Blocks)
	drawn := min(need, s.reserved[reservation])
	// What the reservation covers needs no other space. After a restart it may
	// cover too much: draws are not written down.
	free := s.capacity - s.used - s.reservedLocked()
	if need > drawn && need-drawn > free || s.used+need > s.capacity {
		return nil, stoker.Errorf(stoker.KindNoSpace, "store.create", spec.ID.Short(), "needs %d bytes, %d free", need-drawn, max(0, free))
	}
	sh, err := s.createShard(spec)
	if err != nil {
		return nil, err
	}
	if drawn > 0 {
		s.reserved[reservation] -= drawn
	}
	s.used += need
	s.shards[spec.ID] = sh
	return sh, sh.acquire()
}

// Get opens a shard that is there. The caller releases it.
func (s *Store) Get(id stoker.ID) (*Shard, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sh := s.shards[id]
	if sh == nil || s.closed {
		return nil, false
	}
	if err := sh.acquire(); err != nil {
		s.log.Error("shard cannot be opened", "shard", id.Short(), "error", err)
		return nil, false
	}
	return sh, true
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
	for path, want := range map[string]int64{s.path(id, dataSuffix): sh.spec.Bytes, s.path(id, indexSuffix): indexBytes(sh.spec.Blocks)} {
		fi, err := os.Lstat(path)
		if err != nil {
			return stoker.Errorf(stoker.KindCorrupt, "store.check", path, "%w", err)
		}
		if !fi.Mode().IsRegular() || fi.Size() != want {
			return stoker.Errorf(stoker.KindCorrupt, "store.check", path, "is %v of %d bytes, want a file of %d", fi.Mode(), fi.Size(), want)
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
// when the last of them has released it. One that is not there is fine.
func (s *Store) Remove(id stoker.ID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	sh := s.shards[id]
	if sh == nil {
		return nil
	}
	// The index goes first: data without an index is removed at recovery, an
	// index without its data would have to be disbelieved.
	for _, suffix := range []string{indexSuffix, dataSuffix} {
		path := s.path(id, suffix)
		s.unsynced[filepath.Dir(path)] = true
		if err := s.disk.remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return failed("store.remove", id.Short(), err)
		}
	}
	delete(s.shards, id)
	sh.gone = true
	if sh.refs == 0 {
		s.used -= sh.charge()
	}
	return nil
}

// settleLocked makes what was removed stay removed. It comes before a shard
// is made: else power loss could bring an index back that vouches for the
// bytes of the new file, or more shards than the limit allows.
func (s *Store) settleLocked() error {
	for dir := range s.unsynced {
		if err := s.disk.syncDir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return failed("store.sync", dir, err)
		}
		delete(s.unsynced, dir)
	}
	return nil
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
	return s.lock.Close()
}

func (s *Store) path(id stoker.ID, suffix string) string {
	name := id.String()
	return filepath.Join(s.dir, "shards", name[:2], name+suffix)
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
