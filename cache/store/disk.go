package store

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// disk makes every change below the cache folder that may matter after power
// loss, so that a test can watch them in their order. The zero value is ready.
type disk struct {
	watch func(change)                // after each change; nil but in tests
	fail  func(op, path string) error // before each change and each read; nil but in tests
}

// allocateFrom is the length from which on a file's place on the disk is asked for.
const allocateFrom = 1 << 20

// may asks the layer of faults, if there is one.
func (d disk) may(op, path string) error {
	if d.fail == nil {
		return nil
	}
	return d.fail(op, path)
}

// change is one thing that was done to the folder. What it did not sync is
// lost by power loss, or not, or in part.
type change struct {
	op       string // the method's name
	path, to string
	file     *os.File
	n        int64 // offset, length or mode
	body     []byte
}

func (d disk) done(err error, c change) error {
	if err == nil && d.watch != nil {
		d.watch(c)
	}
	return err
}

// makeDir makes a folder and those above it; each is there for good.
func (d disk) makeDir(path string) error {
	if fi, err := os.Stat(path); err == nil && fi.IsDir() {
		return nil
	}
	parent := filepath.Dir(path)
	if parent == path {
		return os.Mkdir(path, 0o700) // says what is wrong with it
	}
	if err := d.makeDir(parent); err != nil {
		return err
	}
	return d.makeOneDir(path)
}

// makeOneDir makes a folder below one that is there: what lay above a folder
// that was unmounted is not made anew.
func (d disk) makeOneDir(path string) error {
	if err := d.may("mkdir", path); err != nil {
		return err
	}
	if err := os.Mkdir(path, 0o700); errors.Is(err, fs.ErrExist) {
		return nil
	} else if err := d.done(err, change{op: "mkdir", path: path}); err != nil {
		return err
	}
	return d.syncDir(filepath.Dir(path))
}

// create makes a new file.
func (d disk) create(path string) (*os.File, error) {
	if err := d.may("create", path); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	return f, d.done(err, change{op: "create", path: path, file: f})
}

// createTemp makes a new file for writeAtomic.
func (d disk) createTemp(dir string) (*os.File, error) {
	if err := d.may("create", dir); err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(dir, tempPrefix)
	if err != nil {
		return nil, err
	}
	return f, d.done(nil, change{op: "create", path: f.Name(), file: f})
}

func (d disk) truncate(f *os.File, n int64) error {
	return d.done(f.Truncate(n), change{op: "truncate", file: f, n: n})
}

// allocate gives a file, all of whose bytes will be written, its place on the disk: in one
// piece if there is one, and refused now if there is none. It reports false where nothing
// comes of that: of small files, on file systems that do not know it, and on tmpfs, which
// would fill pages.
func (d disk) allocate(f *os.File, n int64) (placed bool, err error) {
	var in unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &in); err != nil || n < allocateFrom || in.Type == unix.TMPFS_MAGIC {
		return false, err
	}
	if err = d.may("allocate", f.Name()); err == nil {
		err = unix.Fallocate(int(f.Fd()), 0, 0, n)
	}
	for errors.Is(err, unix.EINTR) {
		err = unix.Fallocate(int(f.Fd()), 0, 0, n)
	}
	if _, bad := judge(err); bad {
		return false, err
	}
	return err == nil, nil
}

func (d disk) writeAt(f *os.File, p []byte, off int64) error {
	if err := d.may("writeAt", f.Name()); err != nil {
		return err
	}
	_, err := f.WriteAt(p, off)
	return d.done(err, change{op: "writeAt", file: f, n: off, body: p})
}

func (d disk) chmod(f *os.File, mode fs.FileMode) error {
	return d.done(f.Chmod(mode), change{op: "chmod", file: f, n: int64(mode)})
}

// readAt reads len(p) bytes; a file that ends before is an error.
func (d disk) readAt(f *os.File, p []byte, off int64) error {
	if err := d.may("readAt", f.Name()); err != nil {
		return err
	}
	_, err := f.ReadAt(p, off)
	return err
}

func (d disk) sync(f *os.File) error {
	if err := d.may("sync", f.Name()); err != nil {
		return err
	}
	return d.done(f.Sync(), change{op: "sync", file: f})
}

func (d disk) syncDir(path string) error {
	if err := d.may("syncDir", path); err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return d.done(f.Sync(), change{op: "syncDir", path: path})
}

func (d disk) rename(from, to string) error {
	return d.done(os.Rename(from, to), change{op: "rename", path: from, to: to})
}

func (d disk) remove(path string) error {
	if err := d.may("remove", path); err != nil {
		return err
	}
	return d.done(os.Remove(path), change{op: "remove", path: path})
}

func (d disk) removeAll(path string) error {
	return d.done(os.RemoveAll(path), change{op: "removeAll", path: path})
}

// writeAtomic replaces a small file: whole, synced, or not at all.
func (d disk) writeAtomic(path string, body []byte) error {
	f, err := d.createTemp(filepath.Dir(path))
	if err != nil {
		return err
	}
	err = d.fill(f, path, body, true)
	if err != nil {
		return err
	}
	return d.syncDir(filepath.Dir(path))
}

// replace replaces a small file: whole, if the machine goes on.
func (d disk) replace(path string, body []byte) error {
	f, err := d.createTemp(filepath.Dir(path))
	if err != nil {
		return err
	}
	return d.fill(f, path, body, false)
}

// fill writes a new file and gives it its name.
func (d disk) fill(f *os.File, path string, body []byte, sync bool) error {
	err := d.writeAt(f, body, 0)
	if err == nil && sync {
		err = d.sync(f)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = d.rename(f.Name(), path)
	}
	if err != nil {
		_ = d.remove(f.Name())
	}
	return err
}

// makeFile makes a new file of that length, and has begin do the rest.
func (d disk) makeFile(path string, bytes int64, begin func(f *os.File) error) error {
	f, err := d.create(path)
	if err != nil {
		return err
	}
	err = d.truncate(f, bytes)
	if err == nil {
		err = begin(f)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// inside reports whether path lies below dir.
func inside(dir, path string) bool { return strings.HasPrefix(path, dir+string(filepath.Separator)) }
