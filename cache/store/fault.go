package store

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"stoker.dev"
)

// State of a cache folder.
type State string

// States of folders. Only those in service count as capacity.
const (
	InService State = "ok"
	Full      State = "full"     // in service; others fill its disk, so less is left than its limit says
	Readonly  State = "readonly" // out: it refused a write. Sealed shards are served while they read right
	Failed    State = "failed"   // out: it is gone, or gave no, or wrong, bytes. Its shards are given up
)

// A disk that gives no bytes for faultsMost of its files, or wrong ones for
// wrongMost, is not trusted again before the next start. One that was away or
// refused writes comes back when it has taken goodProbes in a row, but not
// more than outsMost times.
const (
	faultsMost = 3
	wrongMost  = 8
	goodProbes = 3
	outsMost   = 3
)

// FolderInfo is what the store knows of one folder.
type FolderInfo struct {
	Dir           string
	State         State
	Reason        string // why it is not, or not fully, in service
	Since         time.Time
	CapacityBytes int64 // as configured
	LimitBytes    int64 // of that, in service
	UsedBytes     int64
	Shards        int
}

// Folders lists the folders in the order of Options.
func (s *Store) Folders() []FolderInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	count := map[*folder]int{}
	for _, sh := range s.shards {
		count[sh.f]++
	}
	out := make([]FolderInfo, len(s.folders))
	for i, f := range s.folders {
		out[i] = FolderInfo{f.dir, f.state, f.why, f.since, f.capacity, f.limit, f.usedLocked(), count[f]}
		if f.state == "" {
			out[i].State = InService
		}
		if f.out() {
			out[i].LimitBytes = 0
		}
	}
	return out
}

// OnRetired sets what is told of shards that were given up with their disk.
// It is called with the store locked: it may neither block nor call back.
func (s *Store) OnRetired(f func([]*Shard)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.retired = f
}

// OnFreed sets what is told when space may have become free. It is called as
// that of OnRetired.
func (s *Store) OnFreed(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.freed = f
}

func (s *Store) freedLocked() {
	if s.freed != nil {
		s.freed()
	}
}

// Retire gives a shard up whose file was found bad: why is the error that was
// met. It is unlinked, and counts against its disk.
func (s *Store) Retire(id stoker.ID, why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sh := s.shards[id]
	if sh == nil {
		return
	}
	f := sh.f
	if errors.Is(why, unix.EIO) {
		f.faults++
	} else {
		f.wrong++
	}
	s.retireLocked(sh)
	if f.state != Failed && (f.faults >= faultsMost || f.wrong >= wrongMost) {
		f.final = true
		f.outLocked(Failed, "too many of its files could not be read, or had wrong bytes: "+why.Error())
	}
}

// retireLocked gives one shard up. Who has it open keeps the file.
func (s *Store) retireLocked(sh *Shard) {
	if sh.dead.Swap(true) {
		return
	}
	if !sh.f.out() {
		if err := sh.f.unlink(sh.spec.ID); err != nil {
			s.noteLocked(sh.f, err)
		}
	}
	s.dropLocked(sh)
}

// refused is called, without locks, when a shard's disk refused a change. It
// gives the shard up, which cannot be finished there; keep says that for want
// of space it may stay as it is if no other folder would take it.
func (s *Store) refused(sh *Shard, err error, keep bool) {
	if err == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.noteLocked(sh.f, err) {
		return
	}
	if keep && sh.f.state == Full && s.pickLocked(sh.charge()) == nil {
		return
	}
	if !sh.dead.Load() {
		s.retireLocked(sh)
		s.tellLocked([]*Shard{sh})
		if sh.f.state == Full && sh.refs > 0 { // what it takes is given back to the others, too
			sh.f.limit = min(sh.f.limit, sh.f.usedLocked()-sh.charge())
		}
	}
}

func (s *Store) tellLocked(gone []*Shard) {
	if s.retired != nil && len(gone) > 0 {
		s.retired(gone)
	}
}

// judge says what an error of the file system means for its folder; false if
// it says nothing of the disk.
func judge(err error) (State, bool) {
	var errno unix.Errno
	if !errors.As(err, &errno) {
		return "", false
	}
	switch errno {
	case unix.ENOSPC, unix.EDQUOT:
		return Full, true
	case unix.EIO, unix.EROFS, unix.EPERM, unix.EACCES, unix.EUCLEAN, unix.EBADMSG:
		return Readonly, true
	case unix.ENOENT, unix.ENOTDIR, unix.ENXIO, unix.ENODEV, unix.ESTALE, unix.ENOTCONN, unix.ESHUTDOWN, unix.EREMOTEIO, unix.ETIMEDOUT:
		return Failed, true
	}
	return "", false
}

// noteLocked takes note of an error that a folder gave, and reports whether it
// was the disk's: then the folder takes no new shard for now.
func (s *Store) noteLocked(f *folder, err error) bool {
	state, bad := judge(err)
	if !bad || s.closed {
		return false
	}
	if errors.Is(err, fs.ErrNotExist) && f.there() == nil {
		return true // one file is missing, not the folder
	}
	switch {
	case f.out() && state != Failed, f.state == Failed:
	case state == Full:
		f.fullLocked(err)
	default:
		f.outLocked(state, err.Error())
	}
	return true
}

// fullLocked lowers the limit to what is used: others have the rest.
func (f *folder) fullLocked(err error) {
	f.limit = min(f.limit, f.usedLocked())
	if f.state != Full {
		f.state, f.why, f.since = Full, err.Error(), time.Now()
		f.s.log.Warn("a cache folder is full before its limit: others use its disk", "folder", f.dir, "limit", f.capacity, "used", f.usedLocked(), "error", err)
	}
}

// outLocked takes a folder out of service: with Readonly the shards that are
// not whole are given up, with Failed all.
func (f *folder) outLocked(state State, why string) {
	s := f.s
	if !f.out() {
		f.outs++
	}
	f.state, f.why, f.since, f.good = state, why, time.Now(), 0
	var gone []*Shard
	for _, sh := range s.shards {
		if sh.f == f && (state == Failed || !sh.sealed.Load()) {
			gone = append(gone, sh)
		}
	}
	for _, sh := range gone {
		sh.dead.Store(true)
		s.dropLocked(sh)
	}
	s.log.Error("a cache folder is out of service", "folder", f.dir, "state", string(state), "why", why, "shardsLost", len(gone))
	s.tellLocked(gone)
}

// Probe tries each folder: writes, syncs, reads and removes a small file. It
// finds a disk that has failed unnoticed, how much others leave of one that is
// full, and one that works again. Call it every few seconds.
func (s *Store) Probe() {
	for _, f := range s.folders {
		s.mu.Lock()
		skip := s.closed || f.final
		s.mu.Unlock()
		if skip {
			continue
		}
		err := f.try() // without the lock: a sick disk is slow
		s.mu.Lock()
		if !s.closed {
			f.probedLocked(err)
		}
		s.mu.Unlock()
	}
}

// try writes to the folder.
func (f *folder) try() error {
	if id, err := f.readID(); err != nil {
		return err
	} else if id != f.s.id {
		return &fs.PathError{Op: "probe", Path: f.dir, Err: unix.ENOENT}
	}
	d := f.s.disk
	file, err := d.createTemp(f.dir)
	if err != nil {
		return err
	}
	defer file.Close()
	want, got := make([]byte, pageBytes), make([]byte, pageBytes)
	copy(want, f.s.id)
	err = d.writeAt(file, want, 0)
	if err == nil {
		err = d.sync(file)
	}
	if err == nil {
		err = d.readAt(file, got, 0)
	}
	if err == nil && string(got) != string(want) {
		err = &fs.PathError{Op: "probe", Path: f.dir, Err: unix.EBADMSG}
	}
	return errors.Join(err, d.remove(file.Name()))
}

// probedLocked draws the consequences of a probe.
func (f *folder) probedLocked(err error) {
	s := f.s
	if err == nil && !f.out() {
		err = f.there()
	}
	if err != nil {
		f.good = 0
		s.noteLocked(f, err)
		return
	}
	f.good++
	if f.state == Full {
		f.makeoutLocked()
	}
	if f.good < goodProbes {
		return
	}
	if f.out() && f.outs <= outsMost || f.stale {
		if err := f.returnLocked(); err != nil {
			f.good = 0
			s.log.Warn("a cache folder stays out of service", "folder", f.dir, "error", err)
		}
	}
}

// makeoutLocked sets the limit of a full folder to what its disk has.
func (f *folder) makeoutLocked() {
	var st unix.Statfs_t
	if unix.Statfs(f.dir, &st) != nil {
		return
	}
	margin := min(f.capacity/16, 64<<20) // for the others that write there
	free := int64(st.Bavail)*st.Bsize - f.unplacedLocked() - margin
	was := f.limit
	f.limit = min(f.capacity, f.usedLocked()+max(0, free))
	if f.limit > was {
		f.s.freedLocked()
	}
	if f.limit == f.capacity {
		f.state, f.why = InService, ""
		f.s.log.Info("a cache folder has its space again", "folder", f.dir)
	}
}

// unplacedLocked is what is charged, and not yet taken from the disk.
func (f *folder) unplacedLocked() (sum int64) {
	for _, sh := range f.s.shards {
		if sh.f == f && !sh.placed && !sh.sealed.Load() {
			sum += sh.spec.Bytes - sh.spec.Bytes*sh.present.Load()/int64(sh.spec.Blocks)
		}
	}
	return sum
}

// returnLocked takes a folder into service again: locks it, makes its
// documents like those of the others, and takes in the shards that were whole.
func (f *folder) returnLocked() error {
	s := f.s
	if f.lock == nil || f.there() != nil {
		if f.lock != nil {
			_ = f.lock.Close()
			f.lock = nil
		}
		if err := f.takeLock(); err != nil {
			return err
		}
	}
	if f.stale {
		from := s.newestLocked()
		if from == nil {
			return stoker.Errorf(stoker.KindTransient, "store.probe", f.dir, "no folder has newer documents that can be read")
		}
		if err := f.likeLocked(from); err != nil {
			return err
		}
	}
	if f.out() {
		if err := f.recoverLocked(); err != nil {
			return err
		}
		if err := f.settle(); err != nil {
			return err
		}
		f.limit = f.capacity
		f.state, f.why = InService, ""
		s.freedLocked()
	}
	f.stale = false
	s.log.Info("a cache folder is in service again", "folder", f.dir)
	return s.bumpLocked()
}

// newestLocked returns a folder with new documents, best one in service.
func (s *Store) newestLocked() (from *folder) {
	for _, f := range s.folders {
		if f.stale {
			continue
		}
		if _, err := os.Stat(filepath.Join(f.dir, membersFile)); err == nil && (from == nil || from.out() && !f.out()) {
			from = f
		}
	}
	return from
}
