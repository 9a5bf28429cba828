package posixufs

import (
	"errors"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stoker.dev"
	"stoker.dev/ufs"
	"stoker.dev/ufs/ufstest"
)

// tree is an FS over an empty folder that is allowed, and the folder.
func tree(t testing.TB) (*FS, string) {
	t.Helper()
	dir := t.TempDir()
	return openTree(t, Options{Folder: dir, Allow: []string{dir}}), dir
}

func openTree(t testing.TB, o Options) *FS {
	t.Helper()
	f, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// put replaces a file as a careful writer does: its inode is another.
func put(t testing.TB, path string, body []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	tmp := filepath.Join(filepath.Dir(path), ".new")
	if err := os.WriteFile(tmp, body, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tmp, path); err != nil {
		t.Fatal(err)
	}
}

func TestConformance(t *testing.T) {
	ufstest.Run(t, func(t *testing.T) ufstest.Env {
		f, dir := tree(t)
		return ufstest.Env{
			FS:  f,
			Put: func(key string, body []byte) { put(t, filepath.Join(dir, key), body) },
			Delete: func(key string) {
				if err := os.Remove(filepath.Join(dir, key)); err != nil {
					t.Fatal(err)
				}
			},
		}
	})
}

// all lists everything, page by page.
func all(t testing.TB, f *FS, o ufs.ListOptions) (objects []ufs.Object, prefixes []string) {
	t.Helper()
	for {
		p, err := f.List(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		objects, prefixes = append(objects, p.Objects...), append(prefixes, p.Prefixes...)
		if o.Token = p.Next; o.Token == "" {
			return objects, prefixes
		}
	}
}

func keysOf(objects []ufs.Object) (keys []string) {
	for _, o := range objects {
		keys = append(keys, o.Key)
	}
	return keys
}

// read reads a whole object at a version.
func read(t testing.TB, f *FS, key string, v ufs.Version) (string, error) {
	r, err := f.Open(t.Context(), key, v, 0, v.Bytes)
	if err != nil {
		return "", err
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	return string(b), err
}

func wantKind(t testing.TB, err error, kind stoker.Kind, says string) {
	t.Helper()
	if err == nil || stoker.KindOf(err) != kind || !strings.Contains(err.Error(), says) {
		t.Errorf("%v (kind %v), want kind %v and %q", err, stoker.KindOf(err), kind, says)
	}
}

func must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// Only what lies in an allowed folder, by a name that says so, is opened.
func TestOnlyAllowedFolders(t *testing.T) {
	for _, c := range []struct {
		folder string
		allow  []string
		kind   stoker.Kind // 0 and no text: it may
		says   string
	}{
		{"/data/a", []string{"/data"}, 0, ""},
		{"/data", []string{"/data"}, 0, ""},
		{"/data/a/b", []string{"/x", "/data/a"}, 0, ""},
		{"/etc", []string{"/"}, 0, ""},
		{"/etc", nil, stoker.KindDenied, "--allow-file"},
		{"/etc", []string{"/data"}, stoker.KindDenied, "allowed now: /data"},
		{"/database", []string{"/data"}, stoker.KindDenied, "STOKER_ALLOW_FILE"},
		{"/", []string{"/data"}, stoker.KindDenied, "--allow-file"},
		{"/data/../etc", []string{"/data"}, stoker.KindInvalid, ""},
		{"/data/./a", []string{"/data"}, stoker.KindInvalid, ""},
		{"/data//a", []string{"/data"}, stoker.KindInvalid, ""},
		{"data", []string{"/"}, stoker.KindInvalid, "absolute"},
		{"", []string{"/"}, stoker.KindInvalid, ""},
		{"/data", []string{"data"}, stoker.KindInvalid, "allow-file"},
		{"/data", []string{"/data/../etc"}, stoker.KindInvalid, ""},
	} {
		_, err := Open(Options{Folder: c.folder, Allow: c.allow})
		if c.kind == 0 && c.says == "" {
			must(t, err)
			continue
		}
		wantKind(t, err, c.kind, c.says)
	}
}

// Links are rows, and nothing is reached through one, nor by "..".
func TestLinksAreNeverFollowed(t *testing.T) {
	f, dir := tree(t)
	outside := t.TempDir()
	put(t, filepath.Join(outside, "secret"), []byte("secret"))
	put(t, filepath.Join(dir, "in/file"), []byte("inside"))
	must(t, os.Symlink(outside, filepath.Join(dir, "away")), os.Symlink("in", filepath.Join(dir, "near")),
		os.Symlink(filepath.Join(outside, "secret"), filepath.Join(dir, "secret")), os.Symlink("../../etc/passwd", filepath.Join(dir, "in/up")))
	objects, _ := all(t, f, ufs.ListOptions{})
	links := map[string]string{}
	for _, o := range objects {
		links[o.Key] = o.Link
	}
	want := map[string]string{"away": outside, "near": "in", "secret": filepath.Join(outside, "secret"), "in/up": "../../etc/passwd", "in/file": ""}
	if !maps.Equal(links, want) {
		t.Errorf("listed %v, want %v", links, want)
	}
	if o, err := f.Stat(t.Context(), "secret"); err != nil || o.Link != want["secret"] {
		t.Errorf("%+v, %v", o, err)
	}
	six := ufs.Version{Bytes: 6}
	for _, key := range []string{"secret", "away/secret", "near/file", "in/up"} {
		_, err := read(t, f, key, six)
		wantKind(t, err, stoker.KindStale, "link")
	}
	for _, key := range []string{"../secret", "in/../in/file", "/etc/passwd", "in//file", "./in/file", "", "in/", "x\x00y"} {
		_, err := read(t, f, key, six)
		wantKind(t, err, stoker.KindInvalid, "")
		if _, err = f.Stat(t.Context(), key); stoker.KindOf(err) != stoker.KindInvalid || err == nil {
			t.Errorf("stat %q: %v", key, err)
		}
	}
	for _, prefix := range []string{"away/", "near/", "secret/"} {
		if o, p := all(t, f, ufs.ListOptions{Prefix: prefix}); len(o)+len(p) > 0 {
			t.Errorf("%s lists %v, %v", prefix, o, p)
		}
	}
	for _, prefix := range []string{"../", "in/../", "/", "in//", "./"} {
		_, err := f.List(t.Context(), ufs.ListOptions{Prefix: prefix})
		wantKind(t, err, stoker.KindInvalid, "")
	}
}

// A folder that is swapped for a link out of the tree all the time never shows
// what is behind it.
func TestASwappedFolderLeadsNowhere(t *testing.T) {
	f, dir := tree(t)
	outside := t.TempDir()
	put(t, filepath.Join(outside, "k"), []byte("secret"))
	put(t, filepath.Join(outside, "more"), []byte("secret"))
	put(t, filepath.Join(dir, "real/k"), []byte("public"))
	must(t, os.Symlink(outside, filepath.Join(dir, "link")))
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default: // exchanged: at each moment one of them is at "real"
				_ = unix.Renameat2(unix.AT_FDCWD, filepath.Join(dir, "real"), unix.AT_FDCWD, filepath.Join(dir, "link"), unix.RENAME_EXCHANGE)
			}
		}
	}()
	seen := 0
	for range 3000 {
		if s, err := read(t, f, "real/k", ufs.Version{Bytes: 6}); err == nil {
			if seen++; s != "public" {
				t.Fatalf("read %q", s)
			}
		}
		objects, _ := all(t, f, ufs.ListOptions{Prefix: "real/"})
		if keys := keysOf(objects); len(keys) > 1 || len(keys) == 1 && keys[0] != "real/k" {
			t.Fatalf("listed %v", keys)
		}
	}
	close(stop)
	<-stopped
	if seen == 0 {
		t.Error("it was never read: the test shows nothing")
	}
}

// Pipes, sockets and devices are named and never opened: not even a writer
// that waits for somebody to open its pipe is let go.
func TestSpecialFilesAreNotOpened(t *testing.T) {
	f, dir := tree(t)
	put(t, filepath.Join(dir, "d/file"), []byte("x"))
	l, err := net.Listen("unix", filepath.Join(dir, "d/sock"))
	must(t, err, unix.Mkfifo(filepath.Join(dir, "d/pipe"), 0o666))
	defer l.Close()
	objects, _ := all(t, f, ufs.ListOptions{Prefix: "d/", Delimiter: "/"})
	why := map[string]string{}
	for _, o := range objects {
		why[o.Key] = o.Unmountable
	}
	if want := map[string]string{"d/file": "", "d/pipe": "a named pipe", "d/sock": "a socket"}; !maps.Equal(why, want) {
		t.Errorf("listed %v, want %v", why, want)
	}
	if o, err := f.Stat(t.Context(), "d/pipe"); err != nil || o.Unmountable != "a named pipe" {
		t.Errorf("%+v, %v", o, err)
	}
	_, err = read(t, f, "d/pipe", ufs.Version{Bytes: 1})
	wantKind(t, err, stoker.KindStale, "a named pipe")
	_, err = read(t, f, "d/sock", ufs.Version{Bytes: 1})
	wantKind(t, err, stoker.KindStale, "a socket")
	_, err = read(t, f, "d", ufs.Version{Bytes: 1})
	wantKind(t, err, stoker.KindStale, "a folder")
	_, err = f.Stat(t.Context(), "d")
	wantKind(t, err, stoker.KindNotExist, "a folder")
}

// A file that is written to while it is read is stale: the reader does not get
// to its end.
func TestChangedWhileItIsRead(t *testing.T) {
	for name, change := range map[string]func(path string) error{
		"written to, same size": func(path string) error {
			h, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err == nil {
				_, err = h.WriteAt([]byte("Y"), 1)
			}
			return errors.Join(err, h.Close(), os.Chtimes(path, time.Time{}, time.Unix(1e9, 1))) // one nanosecond later
		},
		"cut off": func(path string) error { return os.Truncate(path, 4) },
		"longer": func(path string) error {
			return errors.Join(os.WriteFile(path, make([]byte, 9), 0o644), os.Chtimes(path, time.Time{}, time.Unix(1e9, 0)))
		},
	} {
		f, dir := tree(t)
		path := filepath.Join(dir, "k")
		put(t, path, []byte("12345678"))
		must(t, os.Chtimes(path, time.Time{}, time.Unix(1e9, 0)))
		o, err := f.Stat(t.Context(), "k")
		must(t, err)
		r, err := f.Open(t.Context(), "k", o.Version, 0, 8)
		must(t, err)
		got := make([]byte, 6)
		_, err = io.ReadFull(r, got)
		must(t, err, change(path))
		n, err := r.Read(got)
		if wantKind(t, err, stoker.KindStale, "changed"); n != 0 {
			t.Errorf("%s: %d bytes are handed out", name, n)
		}
		if _, err := r.Read(got); stoker.KindOf(err) != stoker.KindStale || err == nil {
			t.Errorf("%s: the next read says %v", name, err)
		}
		must(t, r.Close())
		_, err = read(t, f, "k", o.Version)
		wantKind(t, err, stoker.KindStale, "changed")
	}
	// Replaced is another matter: what is open is of one piece.
	f, dir := tree(t)
	put(t, filepath.Join(dir, "k"), []byte("old"))
	o, err := f.Stat(t.Context(), "k")
	must(t, err)
	r, err := f.Open(t.Context(), "k", o.Version, 0, 3)
	must(t, err)
	put(t, filepath.Join(dir, "k"), []byte("new"))
	if b, err := io.ReadAll(r); err != nil || string(b) != "old" {
		t.Errorf("%q, %v", b, err)
	}
	must(t, r.Close())
}

// asNobody runs do without root's right to read everything.
func asNobody(t *testing.T, do func()) {
	t.Helper()
	if os.Getuid() != 0 {
		do()
		return
	}
	runtime.LockOSThread() // the file system's uid is the thread's
	defer runtime.UnlockOSThread()
	must(t, unix.Setfsuid(65534))
	defer func() { must(t, unix.Setfsuid(0)) }()
	do()
}

// What may not be read is named, and fails the listing: it would not be whole.
func TestWithoutPermission(t *testing.T) {
	f, dir := tree(t)
	put(t, filepath.Join(dir, "open/k"), []byte("x"))
	put(t, filepath.Join(dir, "closed/k"), []byte("x"))
	put(t, filepath.Join(dir, "file"), []byte("x"))
	must(t, os.Chmod(filepath.Join(dir, "closed"), 0), os.Chmod(filepath.Join(dir, "file"), 0), os.Chmod(filepath.Dir(dir), 0o755), os.Chmod(dir, 0o755))
	defer func() { must(t, os.Chmod(filepath.Join(dir, "closed"), 0o755)) }()
	asNobody(t, func() {
		_, err := f.List(t.Context(), ufs.ListOptions{})
		wantKind(t, err, stoker.KindDenied, "closed/")
		_, err = read(t, f, "file", ufs.Version{Bytes: 1})
		wantKind(t, err, stoker.KindDenied, "file")
		if objects, prefixes := all(t, f, ufs.ListOptions{Delimiter: "/"}); len(objects) != 1 || len(prefixes) != 2 {
			t.Errorf("%v, %v", objects, prefixes)
		}
	})
}

func TestKindsOfErrors(t *testing.T) {
	f, _ := tree(t)
	for errno, kind := range map[unix.Errno]stoker.Kind{
		unix.ESTALE: stoker.KindTransient, unix.EIO: stoker.KindTransient, unix.ETIMEDOUT: stoker.KindTransient, unix.EAGAIN: stoker.KindTransient,
		unix.EMFILE: stoker.KindTransient, unix.ENOMEM: stoker.KindTransient, unix.ENOENT: stoker.KindNotExist, unix.ENOTDIR: stoker.KindNotExist,
		unix.EACCES: stoker.KindDenied, unix.EPERM: stoker.KindDenied, unix.EXDEV: stoker.KindDenied, unix.ELOOP: stoker.KindStale,
		unix.ENAMETOOLONG: stoker.KindInvalid, unix.ENOSYS: stoker.KindInvalid,
	} {
		wantKind(t, f.failed("file.read", "the/key", errno), kind, "the/key")
	}
}

func TestExecutableBit(t *testing.T) {
	f, dir := tree(t)
	put(t, filepath.Join(dir, "run"), []byte("#!/bin/sh"))
	put(t, filepath.Join(dir, "text"), []byte("text"))
	must(t, os.Chmod(filepath.Join(dir, "run"), 0o710))
	objects, _ := all(t, f, ufs.ListOptions{})
	for _, o := range objects {
		if s, err := f.Stat(t.Context(), o.Key); err != nil || s.Exec != o.Exec || o.Exec != (o.Key == "run") || s != o {
			t.Errorf("listed %+v, stat %+v (%v)", o, s, err)
		}
	}
}

// A node without the folder says so, and says that it is this node.
func TestAFolderThatIsNotThere(t *testing.T) {
	dir := t.TempDir()
	host, err := os.Hostname()
	must(t, err, os.Symlink(dir, filepath.Join(dir, "link")))
	put(t, filepath.Join(dir, "file"), nil)
	for folder, c := range map[string]struct {
		kind stoker.Kind
		says string
	}{
		"missing":    {stoker.KindNotExist, "is not there on " + host},
		"missing/in": {stoker.KindNotExist, "is not there on " + host},
		"link":       {stoker.KindInvalid, "symbolic link"},
		"file":       {stoker.KindInvalid, "no folder"},
	} {
		f := openTree(t, Options{Folder: filepath.Join(dir, folder), Prefix: "p/", Allow: []string{dir}})
		for _, o := range []ufs.ListOptions{{Prefix: "p/"}, {Prefix: "p/", Delimiter: "/"}} {
			_, err := f.List(t.Context(), o)
			wantKind(t, err, c.kind, c.says)
		}
		if folder == "link" {
			continue // a key behind it is stale, as any
		}
		_, err := read(t, f, "p/k", ufs.Version{Bytes: 1})
		wantKind(t, err, c.kind, c.says)
		_, err = f.Stat(t.Context(), "p/k")
		wantKind(t, err, c.kind, c.says)
	}
	// The allowed folder may be a link itself: an administrator made it.
	must(t, os.Mkdir(filepath.Join(dir, "real"), 0o755), os.Symlink("real", filepath.Join(dir, "mnt")))
	put(t, filepath.Join(dir, "real/k"), []byte("x"))
	f := openTree(t, Options{Folder: filepath.Join(dir, "mnt"), Allow: []string{filepath.Join(dir, "mnt")}})
	if o, _ := all(t, f, ufs.ListOptions{}); len(o) != 1 {
		t.Errorf("%v", o)
	}
}

// Keys are those of a manifest: the folder's path, then theirs.
func TestKeysBeginWithThePrefix(t *testing.T) {
	dir := t.TempDir()
	put(t, filepath.Join(dir, "set/a/k"), []byte("hello"))
	put(t, filepath.Join(dir, "other"), []byte("hello"))
	f := openTree(t, Options{Folder: filepath.Join(dir, "set"), Prefix: "data/set/", Allow: []string{dir}})
	objects, prefixes := all(t, f, ufs.ListOptions{Prefix: "data/set/", Delimiter: "/"})
	if len(objects) != 0 || !slices.Equal(prefixes, []string{"data/set/a/"}) {
		t.Errorf("%v, %v", objects, prefixes)
	}
	objects, _ = all(t, f, ufs.ListOptions{Prefix: "data/set/"})
	if !slices.Equal(keysOf(objects), []string{"data/set/a/k"}) {
		t.Fatalf("%v", objects)
	}
	if s, err := read(t, f, "data/set/a/k", objects[0].Version); err != nil || s != "hello" {
		t.Errorf("%q, %v", s, err)
	}
	for _, prefix := range []string{"", "data/", "data/se", "data/other/", "data/set/../"} {
		_, err := f.List(t.Context(), ufs.ListOptions{Prefix: prefix})
		wantKind(t, err, stoker.KindInvalid, "")
	}
	for _, key := range []string{"a/k", "data/set/../other", "data/other"} {
		_, err := read(t, f, key, ufs.Version{Bytes: 5})
		wantKind(t, err, stoker.KindInvalid, "")
	}
}
