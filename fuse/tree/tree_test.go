package tree

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/fuse/mount"
	"stoker.dev/ufs"
	"stoker.dev/ufs/memufs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// source reads straight from memory; hook may fail or delay a read.
type source struct {
	m     *manifest.Manifest
	files map[string][]byte
	mu    sync.Mutex
	hook  func(ctx context.Context, path string) error
}

func (s *source) ReadAt(ctx context.Context, row manifest.Row, p []byte, off int64) (int, error) {
	path := s.m.Path(row)
	s.mu.Lock()
	hook := s.hook
	s.mu.Unlock()
	if hook != nil {
		if err := hook(ctx, path); err != nil {
			return 0, err
		}
	}
	return bytes.NewReader(s.files[path]).ReadAt(p, off)
}

type view struct {
	*source
	fs  *FS
	dir string
	m   *mount.Mounted
}

func newView(t *testing.T, files map[string][]byte, umask uint32) *view {
	t.Helper()
	return newViewOf(t, files, Options{Umask: umask})
}

// newViewOf is newView with more options.
func newViewOf(t *testing.T, files map[string][]byte, o Options) *view {
	t.Helper()
	mem := memufs.New()
	for k, b := range files {
		mem.PutObject(ufs.Object{Key: k, Exec: strings.HasSuffix(k, ".sh"), Version: ufs.Version{ModTime: time.Unix(1700000000, 0)}}, b)
	}
	b, err := manifest.Build(t.Context(), manifest.BuildOptions{
		Roots: []manifest.Root{{Location: ufs.Location{URI: "mem://b"}}}, TempDir: t.TempDir(),
		Open: func(context.Context, ufs.Location) (ufs.FS, string, error) { return mem, "", nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	m, err := manifest.Open(b.Path)
	if err != nil {
		t.Fatal(err)
	}
	v := &view{source: &source{m: m, files: files}, dir: t.TempDir()}
	o.Manifest, o.Reader, o.UID, o.GID = m, v.source, 1234, 5678
	v.fs = New(o)
	if v.m, err = mount.Mount(v.fs, mount.Options{Dir: v.dir, Name: "tree-test"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := v.m.Unmount(true); err != nil {
			t.Error(err)
		}
		<-v.m.Done()
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	noPoll(t, v.dir, files)
	return v
}

// noPoll teaches the kernel that this file system has no POLL. Go's runtime
// polls each file that it opens without telling its scheduler; in a process
// that serves the file system itself, that would block for ever.
func noPoll(t *testing.T, dir string, files map[string][]byte) {
	t.Helper()
	for name := range files {
		fd, err := unix.Open(filepath.Join(dir, name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		if cerr := unix.Close(fd); err != nil || cerr != nil {
			t.Fatal(err, cerr)
		}
		return
	}
}

func someFiles(n int) map[string][]byte {
	r := rand.New(rand.NewPCG(1, 2))
	files := map[string][]byte{"empty": {}, "run.sh": []byte("#!/bin/sh\n"), "odd/ü\nname": []byte("x"), "odd/" + strings.Repeat("n", 255): []byte("long")}
	for i := range n {
		b := make([]byte, r.IntN(40_000))
		for j := range b {
			b[j] = byte(r.Uint32())
		}
		files[fmt.Sprintf("d%02d/s%d/f%04d.bin", i%17, i%3, i)] = b
	}
	big := make([]byte, 3<<20+123)
	for j := range big {
		big[j] = byte(r.Uint32())
	}
	files["big"] = big
	return files
}

func walk(t *testing.T, dir string) []string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			names = append(names, strings.TrimPrefix(p, dir+"/"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	return names
}

// Names, attributes and bytes are those of the source; what was read once
// is not asked for again.
func TestViewIsTheSource(t *testing.T) {
	files := someFiles(500)
	v := newView(t, files, 0o022)
	if got, want := walk(t, v.dir), slices.Sorted(maps.Keys(files)); !slices.Equal(got, want) {
		t.Fatalf("%d names, want %d", len(got), len(want))
	}
	readAll := func() {
		for name, want := range files {
			got, err := os.ReadFile(filepath.Join(v.dir, name))
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("%q: %d bytes of %d, %v", name, len(got), len(want), err)
			}
			fi, err := os.Stat(filepath.Join(v.dir, name))
			if err != nil || fi.Size() != int64(len(want)) || fi.ModTime().Unix() != 1700000000 {
				t.Fatalf("%q: %+v, %v", name, fi, err)
			}
		}
	}
	readAll()
	// Some machines drop pages of their own accord (virtual machines whose host
	// wants memory back), hence one pass of three.
	var cost [3]int64
	for i := range cost {
		before := v.fs.Requests()
		readAll()
		walk(t, v.dir)
		if cost[i] = v.fs.Requests() - before; cost[i] == 0 {
			return
		}
	}
	t.Errorf("hot passes over %d files cost %v requests", len(files), cost)
}

func TestModesAndOwners(t *testing.T) {
	for umask, want := range map[uint32][3]uint32{
		0o022: {0o755, 0o644, 0o755}, 0: {0o777, 0o666, 0o777}, 0o077: {0o700, 0o600, 0o700},
	} {
		v := newView(t, map[string][]byte{"d/f": []byte("1"), "d/x.sh": []byte("2")}, umask)
		for i, name := range []string{"d", "d/f", "d/x.sh"} {
			var st unix.Stat_t
			if err := unix.Stat(filepath.Join(v.dir, name), &st); err != nil || st.Mode&0o777 != want[i] || st.Uid != 1234 || st.Gid != 5678 {
				t.Errorf("umask %03o: %s has mode %o, owner %d:%d (%v)", umask, name, st.Mode, st.Uid, st.Gid, err)
			}
		}
	}
}

func TestErrnos(t *testing.T) {
	v := newView(t, map[string][]byte{"d/f": []byte("1234")}, 0o022)
	at := func(name string) string { return filepath.Join(v.dir, name) }
	rdonly := func(name string) error { _, err := os.Open(at(name)); return err }
	for what, c := range map[string]struct {
		err  error
		want syscall.Errno
	}{
		"open nothing":   {rdonly("none"), syscall.ENOENT},
		"long name":      {rdonly(strings.Repeat("n", 256)), syscall.ENAMETOOLONG},
		"through a file": {rdonly("d/f/x"), syscall.ENOTDIR},
		"create":         {os.WriteFile(at("d/new"), nil, 0o644), syscall.EROFS},
		"write":          {os.WriteFile(at("d/f"), nil, 0o644), syscall.EROFS},
		"truncate":       {os.Truncate(at("d/f"), 0), syscall.EROFS},
		"remove":         {os.Remove(at("d/f")), syscall.EROFS},
		"rename":         {os.Rename(at("d/f"), at("d/g")), syscall.EROFS},
		"mkdir":          {os.Mkdir(at("e"), 0o755), syscall.EROFS},
		"link":           {os.Link(at("d/f"), at("d/g")), syscall.EROFS},
		"symlink":        {os.Symlink("x", at("d/g")), syscall.EROFS},
		"chmod":          {os.Chmod(at("d/f"), 0o777), syscall.EROFS},
		"chtimes":        {os.Chtimes(at("d/f"), time.Now(), time.Now()), syscall.EROFS},
		"mkfifo":         {unix.Mkfifo(at("p"), 0o644), syscall.EROFS},
		"setxattr":       {unix.Setxattr(at("d/f"), "user.x", []byte("1"), 0), syscall.EROFS},
		"read a folder": {func() error {
			f, err := os.Open(at("d"))
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = f.Read(make([]byte, 1))
			return err
		}(), syscall.EISDIR},
	} {
		if !errors.Is(c.err, c.want) {
			t.Errorf("%s: %v, want %v", what, c.err, c.want)
		}
	}
	var st unix.Statfs_t
	if err := unix.Statfs(v.dir, &st); err != nil || st.Namelen != 255 || st.Files != 3 || st.Bfree != 0 || st.Blocks != 1 || st.Flags&unix.ST_RDONLY == 0 {
		t.Errorf("statfs %+v, %v", st, err)
	}
	f, err := os.Open(at("d/f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if n, err := f.ReadAt(make([]byte, 10), 2); n != 2 || !errors.Is(err, io.EOF) {
		t.Errorf("over the end: %d, %v", n, err)
	}
	if n, err := f.ReadAt(make([]byte, 10), 100); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("behind the end: %d, %v", n, err)
	}
}

// A read that fails once succeeds the next time.
func TestReadErrorPasses(t *testing.T) {
	v := newView(t, map[string][]byte{"a": []byte("aaa"), "gone": []byte("g"), "no": []byte("n")}, 0o022)
	v.mu.Lock()
	v.hook = func(_ context.Context, path string) error {
		return stoker.Errorf(map[string]stoker.Kind{"a": stoker.KindTransient, "gone": stoker.KindNotExist, "no": stoker.KindDenied}[path], "test", path, "not now")
	}
	v.mu.Unlock()
	for name, want := range map[string]syscall.Errno{"a": syscall.EIO, "gone": syscall.ESTALE, "no": syscall.EACCES} {
		if _, err := os.ReadFile(filepath.Join(v.dir, name)); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
	v.mu.Lock()
	v.hook = nil
	v.mu.Unlock()
	if b, err := os.ReadFile(filepath.Join(v.dir, "a")); err != nil || string(b) != "aaa" {
		t.Errorf("afterwards: %q, %v", b, err)
	}
}

// A fill that hangs does not hang its reader for ever: EIO at the deadline, and
// the next read is right.
func TestReadDeadline(t *testing.T) {
	v := newViewOf(t, map[string][]byte{"a": []byte("aaa")}, Options{Umask: 0o022, Deadline: time.Millisecond})
	v.mu.Lock()
	v.hook = func(ctx context.Context, _ string) error {
		<-ctx.Done()
		return ctx.Err()
	}
	v.mu.Unlock()
	if _, err := os.ReadFile(filepath.Join(v.dir, "a")); !errors.Is(err, syscall.EIO) {
		t.Errorf("%v, want EIO", err)
	}
	v.mu.Lock()
	v.hook = nil
	v.mu.Unlock()
	if b, err := os.ReadFile(filepath.Join(v.dir, "a")); err != nil || string(b) != "aaa" {
		t.Errorf("afterwards: %q, %v", b, err)
	}
}

// A reader that waits for a fill can be killed; harmless signals do not
// disturb it.
func TestSignals(t *testing.T) {
	v := newView(t, map[string][]byte{"slow": []byte("slow")}, 0o022)
	waiting, release := make(chan struct{}, 10), make(chan struct{})
	v.mu.Lock()
	v.hook = func(context.Context, string) error {
		waiting <- struct{}{}
		<-release
		return nil
	}
	v.mu.Unlock()
	defer close(release)
	cat := func() *exec.Cmd {
		cmd := exec.Command("cat", filepath.Join(v.dir, "slow"))
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	killed, patient := cat(), cat()
	<-waiting
	if err := patient.Process.Signal(syscall.SIGWINCH); err != nil {
		t.Fatal(err)
	}
	if err := killed.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := killed.Wait(); killed.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("the killed reader ended with %v", err)
	}
	release <- struct{}{}
	if err := patient.Wait(); err != nil {
		t.Errorf("the reader that got a harmless signal ended with %v", err)
	}
}

func TestManyReaders(t *testing.T) {
	files := someFiles(200)
	v := newView(t, files, 0o022)
	names := slices.Sorted(maps.Keys(files))
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(3, uint64(i)))
			for range 400 {
				name := names[r.IntN(len(names))]
				if b, err := os.ReadFile(filepath.Join(v.dir, name)); err != nil || !bytes.Equal(b, files[name]) {
					t.Errorf("%q: %v", name, err)
					return
				}
			}
		})
	}
	wg.Wait()
}
