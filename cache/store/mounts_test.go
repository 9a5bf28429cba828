package store

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"stoker.dev"
	"stoker.dev/internal/testenv"
)

// mountTmpfs mounts a file system of its own at a folder of the test.
func mountTmpfs(t testing.TB, dir string, options string) {
	t.Helper()
	if os.Geteuid() != 0 {
		testenv.Lacks(t, "only root can mount")
	}
	must(t, os.MkdirAll(dir, 0o700), unix.Mount("tmpfs", dir, "tmpfs", 0, options))
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
}

// A real file system that is smaller than the limit, and fills up.
func TestRealFullDisk(t *testing.T) {
	root := t.TempDir()
	mountTmpfs(t, filepath.Join(root, "a"), "size=1m")
	s := openFolders(t, root, nil, roomy, roomy)
	const shards = 12 // of 400 KiB: two fit the small one
	for n := range uint64(shards) {
		spec := specOf(n, 100)
		for try := 0; ; try++ {
			sh, err := s.Create(spec, "")
			if err != nil {
				t.Fatal(err)
			}
			for b := 0; b < spec.Blocks && err == nil; b++ {
				off, p := content(spec, b)
				_, err = sh.Write(b, off, p)
			}
			if err == nil {
				err = sh.Seal()
			}
			sh.Release()
			if err == nil {
				break
			} else if try == 1 {
				t.Fatal(err)
			}
			wantKind(t, err, stoker.KindNoSpace)
		}
	}
	f := s.Folders()
	if f[0].State != Full || f[0].Shards == 0 || f[0].Shards > 2 || f[0].Shards+f[1].Shards != shards {
		t.Errorf("%+v", f)
	}
	for n := range uint64(shards) {
		sh := get(t, s, specOf(n, 1).ID)
		for b := range 100 {
			if err := read(t, sh, b); err != nil {
				t.Fatal(err)
			}
		}
		sh.Release()
	}
	must(t, unix.Mount("tmpfs", f[0].Dir, "tmpfs", unix.MS_REMOUNT, "size=128m"))
	s.Probe()
	if f := s.Folders()[0]; f.State != InService || f.LimitBytes != roomy {
		t.Errorf("after it became larger: %+v", f)
	}
}

// A real file system that becomes read-only and writable again: what is whole
// there is served all the time, and it takes shards again in the end.
func TestRealReadonlyDisk(t *testing.T) {
	root := t.TempDir()
	a := filepath.Join(root, "a")
	mountTmpfs(t, a, "size=16m")
	s := openFolders(t, root, nil, roomy, roomy)
	whole, part := specOf(1, 4), specOf(3, 4)
	put(t, s, whole, true, upTo(4)...)
	put(t, s, specOf(2, 9), true, upTo(9)...)
	put(t, s, part, false, 0)
	if where(s, whole.ID) != 0 || where(s, part.ID) != 0 {
		t.Fatal("the shards are not where the test wants them")
	}
	must(t, unix.Mount("tmpfs", a, "tmpfs", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	must(t, s.PutState("doc", []byte("new")))
	if f := s.Folders()[0]; f.State != Readonly {
		t.Fatalf("%+v", f)
	}
	put(t, s, part, true, upTo(4)...)
	sh := get(t, s, whole.ID)
	defer sh.Release()
	if err := read(t, sh, 2); err != nil || where(s, part.ID) != 1 {
		t.Errorf("%v; the unfinished shard is in folder %d", err, where(s, part.ID))
	}
	for range goodProbes {
		s.Probe()
	}
	if s.Folders()[0].State != Readonly {
		t.Error("a read-only disk is in service")
	}
	must(t, unix.Mount("tmpfs", a, "tmpfs", unix.MS_REMOUNT, ""))
	for range goodProbes {
		s.Probe()
	}
	if f := s.Folders()[0]; f.State != InService || f.Shards != 1 {
		t.Fatalf("after it became writable: %+v", f)
	}
	if body, err := os.ReadFile(filepath.Join(a, "state", "doc.json")); err != nil || string(body) != "new" {
		t.Errorf("its document is %q %v", body, err)
	}
	if got, _ := filepath.Glob(filepath.Join(a, "shards", "*", "*"+dataSuffix)); len(got) != 1 {
		t.Errorf("files left: %v", got)
	}
}

// A real file system that is unmounted under the worker: nothing is written to
// the folder beneath, and it is found at the next change. When it is mounted
// again, what was whole there is there again.
func TestRealDiskVanishes(t *testing.T) {
	root := t.TempDir()
	a, disk := filepath.Join(root, "a"), filepath.Join(root, "disk")
	mountTmpfs(t, disk, "size=16m")
	mount := func() {
		t.Helper()
		must(t, os.MkdirAll(a, 0o700), unix.Mount(disk, a, "", unix.MS_BIND, ""))
	}
	mount()
	t.Cleanup(func() { _ = unix.Unmount(a, unix.MNT_DETACH) })
	s := openFolders(t, root, nil, roomy, roomy)
	gone := watchRetired(s)
	whole := specOf(1, 4)
	put(t, s, whole, true, upTo(4)...)
	reader := get(t, s, whole.ID)
	must(t, unix.Unmount(a, unix.MNT_DETACH))
	s.Probe()
	if f := s.Folders()[0]; f.State != Failed || f.Shards != 0 || len(*gone) != 1 {
		t.Fatalf("%+v, told %d", f, len(*gone))
	}
	off, want := content(whole, 1)
	if _, err := reader.ReadAt(want, off); err != nil || !reader.Retired() {
		t.Errorf("who has the file open: %v, retired %v", err, reader.Retired())
	}
	put(t, s, specOf(2, 4), true, upTo(4)...)
	if left, err := os.ReadDir(a); err != nil || len(left) != 0 || where(s, specOf(2, 4).ID) != 1 {
		t.Errorf("beneath the mount: %v %v", left, err)
	}
	reader.Release()
	mount()
	for range goodProbes {
		s.Probe()
	}
	sh, ok := s.Get(whole.ID)
	if f := s.Folders()[0]; f.State != InService || !ok {
		t.Fatalf("after it was mounted again: %+v, the shard is there: %v", f, ok)
	}
	if err := read(t, sh, 3); err != nil {
		t.Error(err)
	}
	sh.Release()
	if _, err := Open(Options{Dir: a, CapacityBytes: roomy}); stoker.KindOf(err) != stoker.KindBusy {
		t.Errorf("it is not locked: %v", err)
	}
}

// A folder whose file system is not mounted at the start is left out, and what
// lies beneath is not written to; it joins when it is mounted.
func TestStartWithoutAMount(t *testing.T) {
	root := t.TempDir()
	a, disk := filepath.Join(root, "a"), filepath.Join(root, "disk")
	mountTmpfs(t, disk, "size=16m")
	must(t, os.MkdirAll(a, 0o700), unix.Mount(disk, a, "", unix.MS_BIND, ""))
	t.Cleanup(func() { _ = unix.Unmount(a, unix.MNT_DETACH) })
	s := openFolders(t, root, nil, roomy, roomy)
	put(t, s, specOf(1, 4), true, upTo(4)...)
	id := s.WorkerID()
	must(t, s.Close(), unix.Unmount(a, 0))
	s = openFolders(t, root, nil, roomy, roomy)
	if f := s.Folders()[0]; f.State != Failed || !strings.Contains(f.Reason, "nothing is mounted at "+a) || s.WorkerID() != id {
		t.Errorf("%+v", f)
	}
	if left, err := os.ReadDir(a); err != nil || len(left) != 0 {
		t.Errorf("beneath the mount: %v %v", left, err)
	}
	must(t, s.PutState("doc", []byte("x")), unix.Mount(disk, a, "", unix.MS_BIND, ""))
	for range goodProbes {
		s.Probe()
	}
	if f := s.Folders()[0]; f.State != InService || f.Shards != 1 {
		t.Errorf("%+v", f)
	}
	if _, err := os.Stat(filepath.Join(a, "state", "doc.json")); errors.Is(err, os.ErrNotExist) {
		t.Error("it has not the others' documents")
	}
}
