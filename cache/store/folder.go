package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"stoker.dev"
)

// folder is one cache folder of the store. Its fields but s, dir and capacity
// are guarded by Store.mu.
type folder struct {
	s        *Store
	dir      string
	capacity int64 // hard limit
	limit    int64 // of that, what there is: less while others fill the disk
	data     int64 // charged to shards
	lock     *os.File
	unsynced map[string]bool // see settle

	state  State
	why    string // not in service, or not in full
	since  time.Time
	outs   int  // times that it was taken out of service
	good   int  // probes in a row that went well
	faults int  // files that could not be read
	wrong  int  // files with wrong bytes
	stale  bool // its documents are older than those of another folder
	final  bool // out until the next start
}

// usedLocked is what is charged to the folder.
func (f *folder) usedLocked() int64 { return baseOverhead + f.s.docs + f.data }

// out reports whether the folder is out of service: nothing is written to it.
func (f *folder) out() bool { return f.state == Readonly || f.state == Failed }

func (f *folder) path(id stoker.ID, suffix string) string {
	name := id.String()
	return filepath.Join(f.dir, "shards", name[:2], name+suffix)
}

// take makes the folder and locks it.
func (f *folder) take() error {
	if err := f.mayTake(); err != nil {
		return err
	}
	for _, d := range []string{"", "shards", "state"} {
		if err := f.s.disk.makeDir(filepath.Join(f.dir, d)); err != nil {
			return failed("store.open", f.dir, err)
		}
		f.unsynced[filepath.Join(f.dir, d)] = true // see recoverFolder
	}
	if err := os.Chmod(f.dir, 0o700); err != nil {
		return failed("store.open", f.dir, err)
	}
	if err := f.takeLock(); err != nil {
		return err
	}
	return f.checkFormat()
}

// mayTake refuses a folder that holds what is not of a cache: it would get
// another mode, and mixed up.
func (f *folder) mayTake() error {
	entries, err := os.ReadDir(f.dir)
	if err != nil { // makeDir makes it, or says why not
		return nil
	}
	for _, e := range entries {
		switch e.Name() {
		case "shards", "state", "lock", "id", reservationsFile:
			return nil
		}
	}
	for _, e := range entries {
		if e.Name() != "lost+found" { // of a new file system
			return stoker.Errorf(stoker.KindInvalid, "store.open", f.dir, "holds %s and no cache: name an empty folder, or one that is not there yet", e.Name())
		}
	}
	return nil
}

func (f *folder) takeLock() error {
	// For reading alone: a file open for writing would keep an administrator
	// from making the disk read-only.
	lock, err := os.OpenFile(filepath.Join(f.dir, "lock"), os.O_RDONLY|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return failed("store.open", f.dir, err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		pid, _ := os.ReadFile(lock.Name())
		_ = lock.Close()
		return stoker.Errorf(stoker.KindBusy, "store.open", f.dir, "is in use by process %s", strings.TrimSpace(string(pid)))
	}
	f.lock = lock
	if err := os.WriteFile(lock.Name(), fmt.Appendf(nil, "%d\n", os.Getpid()), 0o600); err != nil {
		f.s.log.Warn("lock file has no pid", "error", err)
	}
	return nil
}

// there reports an error if the folder is not the one that was taken: its
// file system was unmounted, perhaps, and another one shows.
func (f *folder) there() error {
	held, err := f.lock.Stat()
	if err != nil {
		return err
	}
	now, err := os.Lstat(filepath.Join(f.dir, "lock"))
	if err != nil {
		return err
	}
	if !os.SameFile(held, now) {
		return fmt.Errorf("%s: another folder shows: %w", f.dir, unix.ENOENT)
	}
	return nil
}

// recoverLocked reads the folder's shards. What is none is removed: it would
// take space that nobody counts.
func (f *folder) recoverLocked() error {
	halves, err := filepath.Glob(filepath.Join(f.dir, tempPrefix+"*"))
	if err != nil {
		return failed("store.open", f.dir, err)
	}
	for _, path := range halves {
		f.removeJunk(path, errors.New("half of a write that a crash ended"))
	}
	folders, err := os.ReadDir(filepath.Join(f.dir, "shards"))
	if err != nil {
		return failed("store.open", f.dir, err)
	}
	for _, d := range folders {
		dir := filepath.Join(f.dir, "shards", d.Name())
		if !d.IsDir() {
			f.removeJunk(dir, errors.New("is no folder"))
		} else if err := f.recoverFolder(dir); err != nil {
			return err
		}
	}
	return nil
}

// recoverFolder takes in the shards of one folder of files.
func (f *folder) recoverFolder(dir string) error {
	files, err := os.ReadDir(dir)
	if err != nil {
		return failed("store.open", dir, err)
	}
	f.unsynced[dir] = true // what a process removed that was killed, perhaps
	seen := map[stoker.ID]bool{}
	for _, file := range files {
		id, ok := idOf(file.Name())
		if !ok || filepath.Base(dir) != id.String()[:2] {
			f.removeJunk(filepath.Join(dir, file.Name()), errors.New("is not named as a shard's file here"))
			continue
		}
		if seen[id] || f.s.shards[id] != nil && f.s.shards[id].f == f {
			continue
		}
		seen[id] = true
		sh, err := f.scanShard(id)
		if ours(err) {
			return failed("store.open", id.Short(), err)
		}
		if err == nil {
			err = f.adopt(sh)
		}
		if err != nil {
			f.removeJunk(f.path(id, indexSuffix), err)
			f.removeJunk(f.path(id, dataSuffix), err)
		}
	}
	return nil
}

// adopt takes a shard in. Of two files of one shard, which a folder that comes
// back may bring, the fuller one stays.
func (f *folder) adopt(sh *Shard) error {
	s := f.s
	if f.outs > 0 && !sh.Sealed() {
		return errors.New("was not whole when its disk failed")
	}
	if other := s.shards[sh.spec.ID]; other != nil {
		if other.refs > 0 || other.Present() >= sh.Present() {
			return errors.New("is in " + other.f.dir + " as well")
		}
		if err := other.f.unlink(sh.spec.ID); err != nil {
			s.noteLocked(other.f, err)
		}
		s.dropLocked(other)
	}
	s.shards[sh.spec.ID] = sh
	f.data += sh.charge()
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

func (f *folder) removeJunk(path string, why error) {
	err := f.s.disk.removeAll(path)
	f.unsynced[filepath.Dir(path)] = true
	f.s.log.Warn("removed what is no shard", "path", path, "why", why, "error", err)
}

// unlink removes a shard's files. The index goes first: data without an index
// is removed at recovery, an index without its data would have to be
// disbelieved.
func (f *folder) unlink(id stoker.ID) error {
	for _, suffix := range []string{indexSuffix, dataSuffix} {
		path := f.path(id, suffix)
		f.unsynced[filepath.Dir(path)] = true
		if err := f.s.disk.remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// settle makes what was removed stay removed. It comes before a shard is made:
// else power loss could bring an index back that vouches for the bytes of the
// new file, or more shards than the limit allows.
func (f *folder) settle() error {
	for dir := range f.unsynced {
		if err := f.s.disk.syncDir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return failed("store.sync", dir, err)
		}
		delete(f.unsynced, dir)
	}
	return nil
}

// mountPoint returns the folder at which the file system of path is mounted;
// path need not be there.
func mountPoint(path string) string {
	at, dev := "", uint64(0)
	for p := path; ; p = filepath.Dir(p) {
		var st unix.Stat_t
		if unix.Stat(p, &st) == nil {
			if at != "" && uint64(st.Dev) != dev {
				return at
			}
			at, dev = p, uint64(st.Dev)
		}
		if p == filepath.Dir(p) {
			return at
		}
	}
}
