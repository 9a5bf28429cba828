package hold

import (
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"stoker.dev"
	"stoker.dev/internal/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// holder runs a server until the test, or stop, ends it.
func holder(t *testing.T, o ServerOptions) (stop func()) {
	t.Helper()
	s, err := Listen(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	return stop
}

func dial(t *testing.T, socket, owner string) *Client {
	t.Helper()
	c, err := Dial(t.Context(), socket, owner, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// openPipe returns a pipe: its reader sees the end once nobody has the writer.
func openPipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close(); _ = w.Close() })
	return r, w
}

// take writes a word to each descriptor that the last life left, and lets go.
func take(t *testing.T, c *Client) (names []string) {
	t.Helper()
	for name, f := range c.Taken() {
		if _, err := f.WriteString(name + "!"); err != nil {
			t.Error(err)
		}
		flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0)
		if err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("%s: children would have it (%v)", name, err)
		}
		_ = f.Close()
		names = append(names, name)
	}
	return names
}

// A descriptor lives on when the process that put it ends, for one next life of
// the same owner; once dropped, nobody has it.
func TestHolderKeepsOverALife(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "sub", "hold.sock")
	holder(t, ServerOptions{Socket: socket})
	r, w := openPipe(t)
	first := dial(t, socket, "a")
	if err := first.Put("one", w); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	if _, err := Listen(ServerOptions{Socket: socket}); stoker.KindOf(err) != stoker.KindHeld {
		t.Errorf("a second holder on the socket: %v", err)
	}
	if names := take(t, dial(t, socket, "b")); len(names) != 0 {
		t.Errorf("another owner got %v", names)
	}
	_ = first.Close()
	second := dial(t, socket, "a") // waits until the end of the first is noticed
	if names := take(t, second); len(names) != 1 {
		t.Fatalf("the next life got %v", names)
	}
	if err := second.Drop("one"); err != nil {
		t.Fatal(err)
	}
	if body, err := io.ReadAll(r); err != nil || string(body) != "one!" { // the end: nobody has it
		t.Errorf("%q, %v", body, err)
	}
	if err := second.Drop("one"); err != nil {
		t.Error(err)
	}
	if err := second.Put("a b", r); stoker.KindOf(err) != stoker.KindInvalid {
		t.Errorf("an odd name: %v", err)
	}
}

// While an owner lives nobody else gets its descriptors.
func TestHolderHasOneLife(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "hold.sock")
	holder(t, ServerOptions{Socket: socket})
	_, w := openPipe(t)
	first := dial(t, socket, "a")
	if err := first.Put("one", w); err != nil {
		t.Fatal(err)
	}
	other := &Client{socket: socket, owner: "a", files: map[string]*os.File{}}
	files, err := other.connectLocked()
	if stoker.KindOf(err) != stoker.KindBusy || len(files) != 0 {
		t.Errorf("got %v, %v", files, err)
	}
	other.tending.Wait()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if c, err := Dial(ctx, socket, "a", nil); err == nil {
		_ = c.Close()
		t.Error("a second life began")
	}
}

// A new holder gets from the life what the last one had; meanwhile nothing is
// held, and that is said.
func TestHolderRestarts(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "hold.sock")
	c := dial(t, socket, "a") // before there is a holder at all
	r, w := openPipe(t)
	if err := c.Put("one", w); stoker.KindOf(err) != stoker.KindTransient {
		t.Fatalf("without a holder: %v", err)
	}
	_ = w.Close()
	for range 2 {
		stop := holder(t, ServerOptions{Socket: socket})
		for c.Drop("none") != nil { // it has everything once it answers
			runtime.Gosched()
		}
		stop()
	}
	holder(t, ServerOptions{Socket: socket})
	for c.Drop("none") != nil {
		runtime.Gosched()
	}
	_ = c.Close()
	next := dial(t, socket, "a")
	if names := take(t, next); len(names) != 1 {
		t.Errorf("the next life got %v", names)
	}
	if b := make([]byte, 4); true {
		if _, err := io.ReadFull(r, b); err != nil || string(b) != "one!" {
			t.Errorf("%q, %v", b, err)
		}
	}
}

// What no next life comes for is let go of, and what nobody can use any more;
// a holder that stops lets go of all.
func TestHolderLetsGo(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "hold.sock")
	stop := holder(t, ServerOptions{Socket: socket, Keep: time.Nanosecond})
	r, w := openPipe(t)
	c := dial(t, socket, "a")
	if err := c.Put("one", w); err != nil {
		t.Fatal(err)
	}
	_, _ = w.Close(), c.Close()
	if b, err := io.ReadAll(r); err != nil || len(b) > 0 {
		t.Errorf("%q, %v", b, err)
	}
	stop()
	stop = holder(t, ServerOptions{Socket: socket})
	r, w = openPipe(t)
	broken, end := openPipe(t)
	c = dial(t, socket, "a")
	for name, f := range map[string]*os.File{"one": w, "ended": end} {
		if err := c.Put(name, f); err != nil {
			t.Fatal(err)
		}
	}
	_, _, _ = w.Close(), end.Close(), c.Close()
	_ = broken.Close() // the writer of a pipe without a reader says so, as an unmounted FUSE does
	c = dial(t, socket, "a")
	if names := take(t, c); len(names) != 1 || names[0] != "one" {
		t.Errorf("the next life got %v", names)
	}
	_ = c.Close()
	stop()
	if b, err := io.ReadAll(r); err != nil || string(b) != "one!" {
		t.Errorf("%q, %v", b, err)
	}
}

// The socket is its owner's alone, and who gets past its mode is refused all
// the same.
func TestHolderIsOnesOwn(t *testing.T) {
	if os.Geteuid() != 0 {
		testenv.Lacks(t, "only root can be somebody else")
	}
	dir := t.TempDir()
	socket := filepath.Join(dir, "hold.sock")
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	holder(t, ServerOptions{Socket: socket})
	if fi, err := os.Stat(socket); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
	if err := os.Chmod(socket, 0o666); err != nil {
		t.Fatal(err)
	}
	refused := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for ever: the thread ends with the goroutine
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, 65534, 65534, 65534); errno != 0 {
			refused <- errno
			return
		}
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			err = unix.Connect(fd, &unix.SockaddrUnix{Name: socket})
		}
		b := make([]byte, maxPacket)
		n := 0
		if err == nil {
			n, err = unix.Read(fd, b)
			_ = unix.Close(fd)
		}
		if err == nil {
			err = stoker.Errorf(stoker.KindDenied, "test", "", "%s", b[:n])
		}
		refused <- err
	}()
	if err := <-refused; !strings.Contains(err.Error(), "65534 may not") {
		t.Errorf("another uid: %v", err)
	}
}

// A holder of another release, or something else on the socket, is refused, and
// no descriptor that was sent along leaks.
func TestStrangersAreRefused(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "hold.sock")
	holder(t, ServerOptions{Socket: socket})
	for _, hello := range []request{{Op: opHello, Protocol: protocol + 1, Owner: "a"}, {Op: opPut, Name: "a"}, {Op: opHello, Protocol: protocol, Owner: "a b"}} {
		conn, err := net.DialUnix(socketType, nil, &net.UnixAddr{Name: socket, Net: socketType})
		if err != nil {
			t.Fatal(err)
		}
		r, w := openPipe(t)
		var a answer
		if err := send(conn, hello, w); err != nil {
			t.Fatal(err)
		}
		if _, err := receive(conn, &a); err != nil || a.Kind != stoker.KindInvalid || a.Error == "" {
			t.Errorf("%+v: %+v, %v", hello, a, err)
		}
		_, _ = w.Close(), conn.Close()
		if b, err := io.ReadAll(r); err != nil || len(b) > 0 {
			t.Errorf("%q, %v", b, err)
		}
	}
}

// systemd is told by name, with the descriptor; what it passes is found by name,
// and no child has it or looks for it.
func TestSystemd(t *testing.T) {
	at := &net.UnixAddr{Name: filepath.Join(t.TempDir(), "notify"), Net: "unixgram"}
	manager, err := net.ListenUnixgram("unixgram", at)
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	conn, err := net.DialUnix("unixgram", nil, at)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	r, w := openPipe(t)
	s := NewSystemd(conn, nil)
	if err := s.Put("fuse-1", w); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	body, oob := make([]byte, 100), make([]byte, 100)
	n, oobn, _, _, err := manager.ReadMsgUnix(body, oob)
	if err != nil || string(body[:n]) != "FDSTORE=1\nFDNAME=fuse-1" {
		t.Fatalf("%q, %v", body[:n], err)
	}
	kept, err := filesOf(oob[:oobn])
	if err != nil || len(kept) != 1 {
		t.Fatal(kept, err)
	}
	if err := s.Drop("fuse-1"); err != nil {
		t.Fatal(err)
	}
	if n, err = manager.Read(body); err != nil || string(body[:n]) != "FDSTOREREMOVE=1\nFDNAME=fuse-1" {
		t.Errorf("%q, %v", body[:n], err)
	}
	if err := s.Put("a:b", r); stoker.KindOf(err) != stoker.KindInvalid {
		t.Errorf("an odd name: %v", err)
	}
	const at0 = 700 // numbers that nothing has
	if err := unix.Dup2(int(kept[0].Fd()), at0); err != nil {
		t.Fatal(err)
	}
	_ = kept[0].Close()
	next := NewSystemd(conn, passed(at0, 1, []string{"fuse-1"}))
	for name, f := range next.Taken() {
		flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0)
		if _, werr := f.WriteString("x"); name != "fuse-1" || werr != nil || err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("%s: %v, %v, flags %x", name, err, werr, flags)
		}
		_ = f.Close()
	}
	if b, err := io.ReadAll(r); err != nil || string(b) != "x" {
		t.Errorf("%q, %v", b, err)
	}
	if len(next.Taken()) != 0 || next.Close() != nil {
		t.Error("taken twice")
	}
	for pid, n := range map[int]string{os.Getpid(): "0", 1: "5", 2: "x"} {
		t.Setenv("LISTEN_PID", strconv.Itoa(pid))
		t.Setenv("LISTEN_FDS", n)
		t.Setenv("LISTEN_FDNAMES", "a:b")
		if files := Passed(); len(files) != 0 || os.Getenv("LISTEN_FDS") != "" || os.Getenv("LISTEN_PID") != "" || os.Getenv("LISTEN_FDNAMES") != "" {
			t.Errorf("%d: %v", pid, files)
		}
	}
}
