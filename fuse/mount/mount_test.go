package mount

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"stoker.dev"
)

// empty is a file system with nothing but its root.
type empty struct{ gofuse.RawFileSystem }

func (empty) GetAttr(_ <-chan struct{}, _ *gofuse.GetAttrIn, out *gofuse.AttrOut) gofuse.Status {
	out.Attr = gofuse.Attr{Ino: 1, Mode: syscall.S_IFDIR | 0o755, Nlink: 2}
	return gofuse.OK
}

func newEmpty() empty { return empty{gofuse.NewDefaultRawFileSystem()} }

func mounted(t *testing.T, name, dir string) *Mounted {
	t.Helper()
	m, err := Mount(newEmpty(), Options{Dir: dir, Name: name})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Unmount(true); err != nil {
			t.Error(err)
		}
		<-m.Done()
	})
	return m
}

func find(t *testing.T, dir string) *entry {
	t.Helper()
	all, err := table()
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		if e.dir == dir {
			return &e
		}
	}
	return nil
}

func TestMountAndUnmount(t *testing.T) {
	dir := t.TempDir()
	m := mounted(t, "test:a b", dir)
	e := find(t, dir)
	if e == nil || e.fsType != fsType || e.source != "test:a_b" {
		t.Fatalf("in the table: %+v", e)
	}
	if err := unix.Access(dir, unix.W_OK); !errors.Is(err, syscall.EROFS) {
		t.Errorf("writable: %v", err)
	}
	open, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Unmount(false); stoker.KindOf(err) != stoker.KindHeld {
		t.Errorf("unmount in use: %v", err)
	}
	_ = open.Close()
	for range 2 {
		if err := m.Unmount(false); err != nil {
			t.Error(err)
		}
	}
	<-m.Done()
	if e := find(t, dir); e != nil {
		t.Errorf("still in the table: %+v", e)
	}
}

func TestLazyUnmountInUse(t *testing.T) {
	dir := t.TempDir()
	m := mounted(t, "test", dir)
	open, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Unmount(true); err != nil {
		t.Fatal(err)
	}
	if find(t, dir) != nil {
		t.Error("the folder is not free")
	}
	if _, err := open.Stat(); err != nil {
		t.Errorf("what is open works no more: %v", err)
	}
	_ = open.Close()
	<-m.Done()
}

// Somebody else may unmount it.
func TestUnmountedFromOutside(t *testing.T) {
	dir := t.TempDir()
	m := mounted(t, "test", dir)
	if err := unix.Unmount(dir, 0); err != nil {
		t.Fatal(err)
	}
	<-m.Done()
	if err := m.Unmount(false); err != nil {
		t.Error(err)
	}
}

func TestFoldersThatAreRefused(t *testing.T) {
	base := t.TempDir()
	full := filepath.Join(base, "full")
	file := filepath.Join(full, "file")
	link := filepath.Join(base, "link")
	inner := filepath.Join(base, "link", "inner")
	for _, err := range []error{os.Mkdir(full, 0o755), os.WriteFile(file, nil, 0o644), os.Symlink(full, link), os.Mkdir(filepath.Join(full, "inner"), 0o755)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for dir, kind := range map[string]stoker.Kind{
		full: stoker.KindInvalid, file: stoker.KindInvalid, link: stoker.KindInvalid, inner: stoker.KindInvalid,
		filepath.Join(base, "none"): stoker.KindNotExist, "relative": stoker.KindInvalid, "/": stoker.KindInvalid, base + "/../x": stoker.KindInvalid, "": stoker.KindInvalid,
	} {
		if m, err := Mount(newEmpty(), Options{Dir: dir, Name: "test"}); stoker.KindOf(err) != kind {
			t.Errorf("%q: %v, want kind %v", dir, err, kind)
			if m != nil {
				_ = m.Unmount(true)
			}
		}
	}
	mine := stoker.Errorf(stoker.KindDenied, "check", "", "not yours")
	if _, err := Mount(newEmpty(), Options{Dir: t.TempDir(), Name: "test", Check: func(*unix.Stat_t) error { return mine }}); !errors.Is(err, mine) {
		t.Errorf("check: %v", err)
	}
}

// Leftovers are what a dead life left, and nothing else.
func TestLeftovers(t *testing.T) {
	mine, other := t.TempDir(), t.TempDir()
	mounted(t, "worker-a:data", mine)
	mounted(t, "worker-b:data", other)
	left, err := Leftovers("worker-a")
	if err != nil || len(left) != 1 || left[0].Dir != mine || left[0].Alive {
		t.Fatalf("left %v, %v", left, err)
	}
	if err := left[0].Unmount(); err != nil {
		t.Error(err)
	}
	if find(t, mine) != nil || find(t, other) == nil {
		t.Error("the wrong mount is gone")
	}
}

func TestParse(t *testing.T) {
	got := parse(strings.Join([]string{
		`36 35 0:50 / /mnt/a\040b ro,nosuid - fuse.stoker stoker-1:x rw,user_id=0`,
		`garbage`,
		`37 35 0:51 / /mnt/opt rw shared:1 master:2 - ext4 /dev/root rw`,
	}, "\n"))
	if len(got) != 2 || got[0] != (entry{"0:50", "/mnt/a b", "fuse.stoker", "stoker-1:x"}) || got[1].fsType != "ext4" {
		t.Errorf("%+v", got)
	}
}
