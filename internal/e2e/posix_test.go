package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"
	"golang.org/x/sys/unix"
)

// The cases of go-fuse's posixtest write and read in one go. Here each of those
// that read runs as it is on the source folder, which keeps what it wrote, and
// the half of it that reads runs on a view of that.
var posixReads = map[string]func(t *testing.T, worker int, mnt string){
	"FileBasic":           readFileBasic,
	"FileLarge":           readFileLarge,
	"FdLeak":              readFdLeak,
	"ParallelFileOpen":    readParallelFileOpen,
	"DirectIO":            readDirectIO,
	"SymlinkReadlink":     readSymlinkReadlink,
	"ReadDirBasic":        readReadDirBasic,
	"ReadDirConsistency":  func(t *testing.T, _ int, mnt string) { posixtest.ReadDirConsistency(t, mnt) },
	"DirSeek":             readDirSeek,
	"OpenAt":              readOpenAt,
	"LseekHoleSeeksToEOF": readLseekHole,
	"LseekEnxioCheck":     readLseekEnxio,
	"FcntlFlockSetLk":     readLocks,
	"FcntlFlockLocksFile": readFlock,
}

// posixRefused are the cases that test writing: of each, its first change of
// the tree must fail with EROFS. "file" and "dir" are there, "none" is not.
var posixRefused = map[string]func(mnt string) error{
	"AppendWrite":       func(mnt string) error { return openFor(mnt+"/file", os.O_APPEND|os.O_WRONLY) },
	"Fallocate":         func(mnt string) error { return openFor(mnt+"/none", os.O_CREATE|os.O_WRONLY|os.O_TRUNC) },
	"FallocateKeepSize": func(mnt string) error { return openFor(mnt+"/file", os.O_RDWR) },
	"FstatDeleted":      func(mnt string) error { return unix.Unlink(mnt + "/file") },
	"Link":              func(mnt string) error { return unix.Link(mnt+"/file", mnt+"/none") },
	"LinkUnlinkRename":  func(mnt string) error { return unix.Unlink(mnt + "/dir/below") },
	"MkdirRmdir": func(mnt string) error {
		return errors.Join(unix.Mkdir(mnt+"/none", 0o777), not(unix.Rmdir(mnt+"/dir")))
	},
	"NlinkZero":                  func(mnt string) error { return unix.Rename(mnt+"/file", mnt+"/dir/below") },
	"OpenSymlinkRace":            func(mnt string) error { return unix.Symlink("/etc/passwd", mnt+"/none") },
	"RenameOpenDir":              func(mnt string) error { return unix.Rename(mnt+"/dir", mnt+"/none") },
	"RenameOverwriteDestExist":   func(mnt string) error { return unix.Rename(mnt+"/file", mnt+"/link") },
	"RenameOverwriteDestNoExist": func(mnt string) error { return unix.Rename(mnt+"/file", mnt+"/none") },
	"SetattrSymlink":             func(mnt string) error { return unix.Lutimes(mnt+"/link", make([]unix.Timeval, 2)) },
	"Tmpfile":                    func(mnt string) error { return openFor(mnt, unix.O_TMPFILE|os.O_RDWR) },
	"TruncateFile":               func(mnt string) error { return unix.Truncate(mnt+"/file", 1) },
	"TruncateNoFile":             func(mnt string) error { return openFor(mnt+"/file", os.O_TRUNC|os.O_WRONLY) },
	"XAttr":                      func(mnt string) error { return unix.Setxattr(mnt+"/file", "user.attr", []byte("x"), 0) },
	"XAttrLarge":                 func(mnt string) error { return unix.Removexattr(mnt+"/file", "user.large") },
}

// not is nil for the error that is wanted.
func not(err error) error {
	if errors.Is(err, unix.EROFS) {
		return nil
	}
	return fmt.Errorf("%w, want EROFS", err)
}

func openFor(path string, flags int) error {
	f, err := os.OpenFile(path, flags, 0o644)
	if err == nil {
		_ = f.Close()
	}
	return err
}

// TestPosix runs what go-fuse's posixtest says of reading on both kinds of
// views, cold and resident, and sees that every change is refused. No case is
// left out: a new one must be entered above.
func TestPosix(t *testing.T) {
	for name := range posixtest.All {
		if posixReads[name] == nil && posixRefused[name] == nil {
			t.Errorf("posixtest has %s: enter it in this test", name)
		}
	}
	source := t.TempDir()
	c := up(t, 1, "1GiB", func(string) {}, "--allow-file", source)
	for name := range posixReads {
		dir := filepath.Join(source, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if name == "FcntlFlockLocksFile" { // it wants a file system that locks for another process
			if err := os.WriteFile(filepath.Join(dir, "test"), nil, 0o666); err != nil {
				t.Fatal(err)
			}
			continue
		}
		t.Run("source/"+name, func(t *testing.T) { posixtest.All[name](t, dir) })
	}
	for _, err := range []error{
		os.WriteFile(filepath.Join(source, "file"), []byte("hello"), 0o666), os.Mkdir(filepath.Join(source, "dir"), 0o777),
		os.WriteFile(filepath.Join(source, "dir/below"), nil, 0o666), os.Symlink("doesnotexist", filepath.Join(source, "link")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	c.must("dataset", "add", "posix", "file://"+source)
	worker, err := os.ReadFile(filepath.Join(c.dir, "worker-1", "worker.pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(worker)))
	if err != nil {
		t.Fatal(err)
	}
	for _, warm := range []string{"cold", "resident"} {
		if warm == "resident" {
			c.must("preload", "posix", "--wait")
		}
		for _, kind := range viewKinds(t) {
			mnt := c.mountAs(kind, "posix")
			t.Run(warm+"/"+kind, func(t *testing.T) { posixView(t, pid, mnt) })
			c.must("umount", mnt)
		}
	}
}

func posixView(t *testing.T, worker int, mnt string) {
	for _, name := range slices.Sorted(maps.Keys(posixReads)) {
		t.Run(name, func(t *testing.T) { posixReads[name](t, worker, filepath.Join(mnt, name)) })
	}
	for _, name := range slices.Sorted(maps.Keys(posixRefused)) {
		t.Run(name, func(t *testing.T) {
			if err := posixRefused[name](mnt); !errors.Is(err, unix.EROFS) {
				t.Errorf("%v, want EROFS", err)
			}
		})
	}
}

func readFileBasic(t *testing.T, _ int, mnt string) {
	f, err := os.Open(mnt + "/file")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil || fi.Size() != 11 || fi.Mode() != 0o755 {
		t.Errorf("%v, %v", fi, err)
	}
	if got, err := io.ReadAll(f); err != nil || string(got) != "hello world" {
		t.Errorf("%q, %v", got, err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

func readFileLarge(t *testing.T, _ int, mnt string) {
	want := make([]byte, 128<<10+123)
	for i := range want {
		want[i] = byte(i * 7 / 3)
	}
	f, err := os.Open(mnt + "/file")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got := make([]byte, len(want)+1000)
	if n, err := io.ReadFull(f, got); !errors.Is(err, io.ErrUnexpectedEOF) || !bytes.Equal(got[:n], want) {
		t.Errorf("%d bytes, %v", n, err)
	}
	const off = 4096 + 7
	got = make([]byte, 64<<10+5)
	if n, err := f.ReadAt(got, off); err != nil || !bytes.Equal(got, want[off:off+len(got)]) {
		t.Errorf("at %d: %d bytes, %v", off, n, err)
	}
}

func readFdLeak(t *testing.T, worker int, mnt string) {
	open := func(pid string) int {
		all, err := os.ReadDir("/proc/" + pid + "/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	ours, theirs := open("self"), open(strconv.Itoa(worker))
	for range 100 {
		if _, err := os.ReadFile(mnt + "/file"); err != nil {
			t.Fatal(err)
		}
	}
	if n := open("self"); n > ours+15 {
		t.Errorf("%d descriptors are open, %d before", n, ours)
	}
	if n := open(strconv.Itoa(worker)); n > theirs+15 {
		t.Errorf("the worker has %d descriptors open, %d before", n, theirs)
	}
}

func readParallelFileOpen(t *testing.T, _ int, mnt string) {
	var all sync.WaitGroup
	for range 10 {
		all.Go(func() {
			got, err := os.ReadFile(mnt + "/file")
			if err != nil || len(got) != 7 || string(got[:2]) != "co" || string(got[3:]) != "tent" {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
	all.Wait()
}

func readDirectIO(t *testing.T, _ int, mnt string) {
	var fs unix.Statfs_t
	if err := unix.Statfs(mnt, &fs); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(mnt+"/file.txt", unix.O_DIRECT|unix.O_RDONLY, 0)
	if fs.Type == unix.EROFS_SUPER_MAGIC_V1 { // a kernel view has no O_DIRECT (ADR 16)
		if !errors.Is(err, unix.EINVAL) {
			t.Errorf("open in a kernel view: %v, want EINVAL", err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	got, want := make([]byte, 3*4096), bytes.Repeat([]byte("bye"), 4096)
	if n, err := unix.Read(fd, got); err != nil || !bytes.Equal(got[:n], want) {
		t.Errorf("%d bytes, %v", n, err)
	}
}

func readSymlinkReadlink(t *testing.T, _ int, mnt string) {
	if to, err := os.Readlink(mnt + "/link"); err != nil || to != "/foobar" {
		t.Errorf("%q, %v", to, err)
	}
}

func readReadDirBasic(t *testing.T, _ int, mnt string) {
	f, err := os.Open(mnt)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got, err := f.Readdirnames(-1)
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(got)
	var want []string
	for i := range 110 {
		want = append(want, fmt.Sprintf("file%036x", i))
	}
	if !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

// entry is one of a folder, with the place behind it.
type entry struct {
	name string
	off  int64
}

// entriesAt reads what one getdents64(2) returns.
func entriesAt(fd int) (all []entry, err error) {
	buf := make([]byte, 4096)
	n, err := unix.ReadDirent(fd, buf)
	for buf = buf[:max(n, 0)]; len(buf) > 0; {
		length := int(buf[16]) | int(buf[17])<<8 // linux_dirent64
		var off int64
		for i := range 8 {
			off |= int64(buf[8+i]) << (8 * i)
		}
		name, _, _ := bytes.Cut(buf[19:length], []byte{0})
		all = append(all, entry{string(name), off})
		buf = buf[length:]
	}
	return all, err
}

func readDirSeek(t *testing.T, _ int, mnt string) {
	fd, err := unix.Open(mnt+"/ttt", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	var all []entry
	for {
		some, err := entriesAt(fd)
		if err != nil {
			t.Fatal(err)
		}
		if len(some) == 0 {
			break
		}
		all = append(all, some...)
	}
	if len(all) != 168+2 {
		t.Errorf("%d entries, want 168 and the dots", len(all))
	}
	for i := len(all) - 1; i >= 0; i-- {
		var to int64
		if i > 0 {
			to = all[i-1].off
		}
		if _, err := unix.Seek(fd, to, unix.SEEK_SET); err != nil {
			t.Fatal(err)
		}
		if some, err := entriesAt(fd); err != nil || len(some) == 0 || some[0] != all[i] {
			t.Errorf("entry %d, at %d: %v, %v, want %v", i, to, some, err, all[i])
		}
	}
}

func readOpenAt(t *testing.T, _ int, mnt string) {
	dir, err := unix.Open(mnt+"/dir2", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(dir)
	fd, err := unix.Openat(dir, "file1", unix.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_ = unix.Close(fd)
	if _, err := unix.Openat(dir, "file2", unix.O_RDONLY|unix.O_CREAT, 0o700); !errors.Is(err, unix.EROFS) {
		t.Errorf("made a file: %v", err)
	}
}

func readLseekHole(t *testing.T, _ int, mnt string) {
	fd, err := unix.Open(mnt+"/file.bin", unix.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	const size = 7 * 1024
	if off, err := unix.Seek(fd, size/2, unix.SEEK_HOLE); err != nil || off != size {
		t.Errorf("the hole is at %d, %v; want %d", off, err, size)
	}
}

func readLseekEnxio(t *testing.T, _ int, mnt string) {
	fd, err := unix.Open(mnt+"/file.bin", unix.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	const size = 7 * 1024
	for _, at := range []struct {
		off    int64
		whence int
	}{{size, unix.SEEK_DATA}, {size + 1, unix.SEEK_DATA}, {size + 1, unix.SEEK_HOLE}} {
		if _, err := unix.Seek(fd, at.off, at.whence); !errors.Is(err, unix.ENXIO) {
			t.Errorf("%+v: %v, want ENXIO", at, err)
		}
	}
}

// readLocks: two may lock a file for reading, none for writing, which takes a
// descriptor that can write.
func readLocks(t *testing.T, _ int, mnt string) {
	for i := range 2 {
		name := fmt.Sprintf("%s/file%d", mnt, i)
		one, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer one.Close()
		two, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer two.Close()
		if err := syscall.FcntlFlock(one.Fd(), syscall.F_SETLK, &syscall.Flock_t{Type: syscall.F_RDLCK}); err != nil {
			t.Error(err)
		}
		lock := syscall.Flock_t{Type: syscall.F_WRLCK}
		if err := syscall.FcntlFlock(two.Fd(), unix.F_OFD_GETLK, &lock); err != nil || lock.Type != syscall.F_RDLCK {
			t.Errorf("a lock of type %d is seen, want %d; %v", lock.Type, syscall.F_RDLCK, err)
		}
		if err := syscall.FcntlFlock(two.Fd(), unix.F_OFD_SETLK, &syscall.Flock_t{Type: syscall.F_RDLCK}); err != nil {
			t.Errorf("two readers: %v", err)
		}
		if err := syscall.FcntlFlock(one.Fd(), syscall.F_SETLK, &syscall.Flock_t{Type: syscall.F_WRLCK}); !errors.Is(err, unix.EBADF) {
			t.Errorf("a writer's lock: %v, want EBADF", err)
		}
	}
}

func readFlock(t *testing.T, _ int, mnt string) {
	one, err := os.Open(mnt + "/test")
	if err != nil {
		t.Fatal(err)
	}
	defer one.Close()
	two, err := os.Open(mnt + "/test")
	if err != nil {
		t.Fatal(err)
	}
	defer two.Close()
	if err := unix.Flock(int(one.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(two.Fd()), unix.LOCK_SH|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Errorf("%v, want EWOULDBLOCK", err)
	}
}
