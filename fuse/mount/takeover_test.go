package mount

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"stoker.dev"
	"stoker.dev/internal/testenv"
)

// oneFile is a file system with a file "f" whose bytes tell where they are.
// From stuckAt on READs are not answered, which is said on stdout; they fail once
// left is closed, and are answered once answer is.
type oneFile struct {
	gofuse.RawFileSystem
	stuckAt      uint64 // 0 = nowhere
	left, answer chan struct{}
}

const oneFileBytes = 2 << 20

func (f oneFile) attr(node uint64, a *gofuse.Attr) {
	*a = gofuse.Attr{Ino: node, Mode: syscall.S_IFDIR | 0o755, Nlink: 2}
	if node == 2 {
		*a = gofuse.Attr{Ino: node, Mode: syscall.S_IFREG | 0o444, Nlink: 1, Size: oneFileBytes}
	}
}

func (f oneFile) GetAttr(_ <-chan struct{}, in *gofuse.GetAttrIn, out *gofuse.AttrOut) gofuse.Status {
	out.AttrValid = 3600
	f.attr(in.NodeId, &out.Attr)
	return gofuse.OK
}

func (f oneFile) Lookup(_ <-chan struct{}, _ *gofuse.InHeader, name string, out *gofuse.EntryOut) gofuse.Status {
	if name != "f" {
		return gofuse.ENOENT
	}
	out.NodeId, out.EntryValid, out.AttrValid = 2, 3600, 3600
	f.attr(2, &out.Attr)
	return gofuse.OK
}

func (f oneFile) Open(<-chan struct{}, *gofuse.OpenIn, *gofuse.OpenOut) gofuse.Status {
	return gofuse.ENOSYS
}

func (f oneFile) Read(_ <-chan struct{}, in *gofuse.ReadIn, buf []byte) (gofuse.ReadResult, gofuse.Status) {
	if f.stuckAt > 0 && in.Offset+uint64(len(buf)) > f.stuckAt {
		fmt.Println("stuck")
		select {
		case <-f.left:
			fmt.Println("failed")
			return nil, gofuse.EIO
		case <-f.answer:
		}
	}
	at := min(in.Offset, oneFileBytes)
	return gofuse.ReadResultData(buf[:copy(buf, oneBody[at:])]), gofuse.OK
}

var oneBody = func() []byte {
	b := make([]byte, 0, oneFileBytes)
	for i := uint64(0); i < oneFileBytes; i += 8 {
		b = binary.LittleEndian.AppendUint64(b, i)
	}
	return b
}()

// TestHelperLife is no test: it is a life of a worker, which mounts, sends the
// descriptor and the handle over a socket, does what it is told on stdin, and is
// killed.
func TestHelperLife(t *testing.T) {
	dir := os.Getenv("STOKER_TEST_MOUNT")
	if dir == "" {
		t.Skip("the other tests start it")
	}
	fs := oneFile{gofuse.NewDefaultRawFileSystem(), oneFileBytes / 2, make(chan struct{}), make(chan struct{})}
	if os.Getenv("STOKER_TEST_FLOWS") != "" {
		fs.stuckAt = 0
	}
	m, err := Mount(fs, Options{Dir: dir, Name: "test", ReadAheadBytes: 128 << 10})
	if err != nil {
		t.Fatal(err)
	}
	body, err := json.Marshal(m.Handle())
	if err != nil {
		t.Fatal(err)
	}
	dev, err := m.Dup()
	if err == nil {
		err = unix.Sendmsg(3, body, unix.UnixRights(int(dev.Fd())), nil, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	_ = dev.Close()
	for told := bufio.NewScanner(os.Stdin); told.Scan(); {
		switch told.Text() {
		case "leave":
			m.Leave()
			close(fs.left)
		case "answer":
			close(fs.answer)
		case "drain", "drain at once":
			ctx, cancel := context.WithCancel(t.Context())
			if told.Text() == "drain at once" {
				cancel()
			}
			err := Drain(ctx, []*Mounted{m})
			cancel()
			fmt.Println("drained", m.Handle().Drained, err)
		}
	}
	<-m.Done()
}

// life is a process that serves a mount.
type life struct {
	cmd    *exec.Cmd
	dev    *os.File
	handle Handle
	said   *bufio.Reader
	asked  io.Writer
}

func live(t *testing.T, dir string, env ...string) life {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs := os.NewFile(uintptr(fds[0]), "socket")
	defer theirs.Close()
	defer unix.Close(fds[1])
	l := life{cmd: exec.Command(os.Args[0], "-test.run=^TestHelperLife$")}
	l.cmd.Env, l.cmd.ExtraFiles = append(append(os.Environ(), "STOKER_TEST_MOUNT="+dir), env...), []*os.File{theirs}
	said, err := l.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	l.said = bufio.NewReader(said)
	if l.asked, err = l.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := l.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	hangs := time.AfterFunc(time.Minute, func() { // with the last descriptor the mount goes, and what waits fails
		_ = l.cmd.Process.Kill()
		_ = l.dev.Close()
	})
	t.Cleanup(func() {
		hangs.Stop()
		_ = l.cmd.Process.Kill()
		_ = l.cmd.Wait()
		_ = unix.Unmount(dir, unix.MNT_DETACH)
	})
	body, oob := make([]byte, 4096), make([]byte, 64)
	n, oobn, _, _, err := unix.Recvmsg(fds[1], body, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil || json.Unmarshal(body[:n], &l.handle) != nil {
		t.Fatalf("%v: %s", err, body[:max(n, 0)])
	}
	control, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(control) != 1 {
		t.Fatal("no descriptor came", err)
	}
	rights, err := unix.ParseUnixRights(&control[0])
	if err != nil || len(rights) != 1 {
		t.Fatal("no descriptor came", err)
	}
	l.dev = os.NewFile(uintptr(rights[0]), "/dev/fuse")
	return l
}

func (l life) tell(t *testing.T, what string) {
	t.Helper()
	if _, err := io.WriteString(l.asked, what+"\n"); err != nil {
		t.Fatal(err)
	}
}

// hears waits until the life says a line.
func (l life) hears(t *testing.T, line string) {
	t.Helper()
	for {
		switch said, err := l.said.ReadString('\n'); {
		case err != nil:
			t.Fatalf("the life ended without saying %q", line)
		case said == line:
			return
		}
	}
}

func (l life) kill(t *testing.T) {
	t.Helper()
	if err := l.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = l.cmd.Wait()
}

type bytesRead struct {
	body []byte
	err  error
}

// reading reads a file from beginning to end.
func reading(path string) <-chan bytesRead {
	out := make(chan bytesRead, 1)
	go func() {
		body, err := os.ReadFile(path)
		out <- bytesRead{body, err}
	}()
	return out
}

// A server is killed with requests that it has read: its successor gets them
// again, and who reads gets all bytes, and no error.
func TestTakeOver(t *testing.T) {
	dir := t.TempDir()
	l := live(t, dir)
	if !l.handle.Resends() {
		testenv.Lacks(t, "Linux 6.9 and later can do it")
	}
	got := reading(filepath.Join(dir, "f"))
	l.hears(t, "stuck\n")
	l.kill(t)
	m, err := TakeOver(oneFile{RawFileSystem: gofuse.NewDefaultRawFileSystem()}, l.dev, l.handle)
	if err != nil {
		t.Fatal(err)
	}
	if r := <-got; r.err != nil || !bytes.Equal(r.body, oneBody) {
		t.Errorf("read %d bytes, %v", len(r.body), r.err)
	}
	if again := m.Handle(); !bytes.Equal(again.Answer, l.handle.Answer) || again.Device != l.handle.Device {
		t.Errorf("the successor's handle is %+v, want %+v", again, l.handle)
	}
	if err := m.Unmount(false); err != nil {
		t.Error(err)
	}
	<-m.Done()
	if find(t, dir) != nil {
		t.Error("is mounted still")
	}
}

// What cannot be taken over is refused with its reason, and once the descriptor
// is closed who waits gets an error: an older kernel (its INIT is forced), a
// release with other settings, a mount that has gone.
func TestTakeOverIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*life, string)
		kind   stoker.Kind
		says   string
	}{
		"an older kernel": {func(l *life, _ string) { l.handle.Init[initFlags2At] &^= hasResend }, stoker.KindInvalid, "6.9"},
		"other settings":  {func(l *life, _ string) { l.handle.Answer[outHeaderBytes+8] ^= 1 }, stoker.KindInvalid, "settings"},
		"unknown":         {func(l *life, _ string) { l.handle.Init = nil }, stoker.KindInvalid, "not known"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			l := live(t, dir)
			got := reading(filepath.Join(dir, "f"))
			l.hears(t, "stuck\n")
			l.kill(t)
			c.change(&l, dir)
			m, err := TakeOver(newEmpty(), l.dev, l.handle)
			if m != nil || stoker.KindOf(err) != c.kind || !strings.Contains(err.Error(), c.says) {
				t.Fatalf("%v", err)
			}
			if err := l.dev.Close(); err != nil {
				t.Fatal(err)
			}
			if r := <-got; r.err == nil {
				t.Errorf("%d bytes were read", len(r.body))
			}
		})
	}
	t.Run("it has gone", func(t *testing.T) {
		dir := t.TempDir()
		l := live(t, dir)
		l.kill(t)
		if err := unix.Unmount(dir, 0); err != nil {
			t.Fatal(err)
		}
		if _, err := TakeOver(newEmpty(), l.dev, l.handle); stoker.KindOf(err) != stoker.KindNotExist {
			t.Errorf("%v", err)
		}
		_ = l.dev.Close()
	})
}

// A life that has left answers no read with the errors of its end: its successor
// answers it.
func TestLeave(t *testing.T) {
	dir := t.TempDir()
	l := live(t, dir)
	if !l.handle.Resends() {
		testenv.Lacks(t, "Linux 6.9 and later can do it")
	}
	got := reading(filepath.Join(dir, "f"))
	l.hears(t, "stuck\n")
	l.tell(t, "leave")
	l.hears(t, "failed\n") // and its answer is on its way, if it gives one
	l.kill(t)
	m, err := TakeOver(oneFile{RawFileSystem: gofuse.NewDefaultRawFileSystem()}, l.dev, l.handle)
	if err != nil {
		t.Fatal(err)
	}
	if r := <-got; r.err != nil || !bytes.Equal(r.body, oneBody) {
		t.Errorf("read %d bytes, %v", len(r.body), r.err)
	}
	if err := m.Unmount(false); err != nil {
		t.Error(err)
	}
	<-m.Done()
}
