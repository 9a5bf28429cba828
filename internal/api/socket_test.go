package api

import (
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"stoker.dev"
)

func listen(t testing.TB, path string) net.Listener {
	t.Helper()
	l, err := ListenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// deep makes a folder whose path is longer than a socket's address may be.
func deep(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for len(dir) < 3*maxSocketPath {
		dir = filepath.Join(dir, strings.Repeat("d", 50))
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// Sockets work at paths of any length, also at just the kernel's limit.
func TestSocketPathsOfAnyLength(t *testing.T) {
	base := t.TempDir()
	at := func(n int) string { // a path of n bytes
		dir := filepath.Join(base, strings.Repeat("x", n-len(base)-3))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		return filepath.Join(dir, "s")
	}
	for name, path := range map[string]string{
		"short": filepath.Join(base, "s"), "at the limit": at(maxSocketPath), "one more": at(maxSocketPath + 1), "long": filepath.Join(deep(t), "worker.sock"),
	} {
		l := listen(t, path)
		serve(t, l, nil, whoami)
		if got := l.Addr().String(); got != path {
			t.Errorf("%s: its address is %q", name, got)
		}
		for _, url := range []string{path, "unix://" + path} {
			n, err := NewNode(ClientOptions{URL: url})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := n.Version(t.Context()); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			n.c.http.CloseIdleConnections()
		}
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o666 {
			t.Errorf("%s: mode %v (%v)", name, st.Mode(), err)
		}
		if err := l.Close(); err != nil {
			t.Errorf("%s: close: %v", name, err)
		}
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: the file stays: %v", name, err)
		}
	}
}

// A socket whose process was killed is replaced; nothing that lives is.
func TestStaleSocketIsReplaced(t *testing.T) {
	for _, dir := range []string{t.TempDir(), deep(t)} {
		path := filepath.Join(dir, "s")
		l := listen(t, path).(*unixListener)
		_ = l.UnixListener.Close() // as kill -9 leaves it: nobody listens, the file stays
		if st, err := os.Lstat(path); err != nil || st.Mode().Type() != os.ModeSocket {
			t.Fatalf("%v, %v", st, err)
		}
		serve(t, listen(t, path), nil, whoami)
		n, err := NewNode(ClientOptions{URL: path})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := n.Version(t.Context()); err != nil {
			t.Errorf("the new one: %v", err)
		}
	}
}

func TestLiveSocketIsNotStolen(t *testing.T) {
	for _, dir := range []string{t.TempDir(), deep(t)} {
		path := filepath.Join(dir, "s")
		serve(t, listen(t, path), nil, whoami)
		_, err := ListenUnix(path)
		wantKind(t, "a second listener", err, stoker.KindHeld)
		n, err := NewNode(ClientOptions{URL: path})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := n.Version(t.Context()); err != nil {
			t.Errorf("the first one after that: %v", err)
		}
	}
}

// What is no socket is never removed.
func TestListenUnixRemovesNoFile(t *testing.T) {
	dir := t.TempDir()
	file, link, folder := filepath.Join(dir, "file"), filepath.Join(dir, "link"), filepath.Join(dir, "folder")
	if err := errors.Join(os.WriteFile(file, []byte("mine"), 0o600), os.Symlink(file, link), os.Mkdir(folder, 0o755)); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, link, folder, filepath.Join(file, "below"), filepath.Join(dir, "none", "s")} {
		_, err := ListenUnix(path)
		wantKind(t, path, err, stoker.KindInvalid)
	}
	for _, path := range []string{file, link, folder} {
		if _, err := os.Lstat(path); err != nil {
			t.Error(err)
		}
	}
}

func TestNobodyThere(t *testing.T) {
	dead := filepath.Join(t.TempDir(), "dead")
	_ = listen(t, dead).(*unixListener).UnixListener.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	for name, url := range map[string]string{
		"no file": filepath.Join(t.TempDir(), "none"), "no folder": "unix:///no/such/folder/s", "long": filepath.Join(deep(t), "none"),
		"no listener": dead, "no port": "http://" + l.Addr().String(),
	} {
		c, err := NewController(ClientOptions{URL: url, Hint: "start it"})
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.Version(t.Context())
		wantKind(t, name, err, stoker.KindTransient)
		if err != nil && err.Error() != "controller "+url+": nobody listens there: start it" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSocketThatMayNotBeUsed(t *testing.T) {
	c := &caller{what: "worker", shown: "/s", http: &http.Client{}}
	wantKind(t, "no permission", c.failed(t.Context(), unix.EACCES), stoker.KindDenied)
}

func TestAddressesThatAreNone(t *testing.T) {
	for _, url := range []string{
		"", "localhost:7070", "ftp://host", "http://", "unix://relative/s", "relative.sock", "http://user:pw@host",
		"http://host?x=1", "http://host#x", "http://ho st", "\x00",
	} {
		_, err := NewController(ClientOptions{URL: url})
		wantKind(t, url, err, stoker.KindInvalid)
	}
}
