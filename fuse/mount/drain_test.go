package mount

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"stoker.dev/internal/testenv"
)

// before69 is a life whose kernel does not resend.
func before69(t *testing.T, dir string, env ...string) life {
	t.Helper()
	l := live(t, dir, append(env, "STOKER_TEST_LINUX_6_8=1")...)
	if l.handle.Resends() {
		t.Fatal("the kernel resends")
	}
	return l
}

// readPast reads the file again and again, past the page cache, through one
// descriptor, until stop is closed. It returns how often, and says after each time
// that it did, while somebody listens.
func readPast(f *os.File, did chan<- struct{}, stop <-chan struct{}) (n int, err error) {
	for ; ; n++ {
		select {
		case <-stop:
			return n, nil
		case did <- struct{}{}:
		default:
		}
		if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
			return n, err
		}
		body, err := io.ReadAll(io.NewSectionReader(f, 0, oneFileBytes))
		if err != nil {
			return n, err
		}
		if !bytes.Equal(body, oneBody) {
			return n, errors.New("wrong bytes")
		}
	}
}

// A life that drains, beneath processes that read all the while, leaves nothing
// that it has read unanswered: the next one goes on without the kernel's help, and
// no reader misses an answer, gets an error, or a wrong byte.
func TestDrain(t *testing.T) {
	const readers = 6
	for range 5 {
		dir := t.TempDir()
		l := before69(t, dir, "STOKER_TEST_FLOWS=1")
		type ended struct {
			n   int
			err error
		}
		stop, did, ends, files := make(chan struct{}), make(chan struct{}), make(chan ended, readers), []*os.File{}
		for range readers {
			f, err := os.Open(filepath.Join(dir, "f"))
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, f)
			go func() {
				n, err := readPast(f, did, stop)
				ends <- ended{n, err}
			}()
		}
		for range readers { // all are at it
			<-did
		}
		l.tell(t, "drain")
		l.hears(t, "drained true <nil>\n")
		l.kill(t)
		l.handle.Drained = true
		m, err := TakeOver(oneFile{RawFileSystem: gofuse.NewDefaultRawFileSystem()}, l.dev, l.handle)
		if err != nil {
			t.Fatal(err)
		}
		if m.Handle().Drained {
			t.Error("the next life is drained")
		}
		close(stop)
		hangs := time.AfterFunc(20*time.Second, func() {
			t.Error("a reader waits for an answer that never comes")
			_ = unix.Unmount(dir, unix.MNT_FORCE) // who waits gets an error
		})
		for range readers {
			if e := <-ends; e.err != nil {
				t.Errorf("after %d passes: %v", e.n, e.err)
			}
		}
		hangs.Stop()
		for _, f := range files {
			_ = f.Close()
		}
		if err := m.Unmount(false); err != nil {
			t.Error(err)
		}
		<-m.Done()
	}
}

// What is not answered yet keeps a life from being drained. What is asked meanwhile
// is answered by either life, what is asked later by the next.
func TestDrainWaits(t *testing.T) {
	dir := t.TempDir()
	l := before69(t, dir)
	got := reading(filepath.Join(dir, "f"))
	l.hears(t, "stuck\n")
	l.tell(t, "drain at once")
	l.hears(t, "drained false context canceled\n")
	asked := make(chan error, 2)
	ask := func() { // never cached
		_, err := os.Stat(filepath.Join(dir, "no such file"))
		asked <- err
	}
	go ask() // a loop that is just waking up may still read this
	l.tell(t, "answer")
	l.tell(t, "drain")
	l.hears(t, "drained true <nil>\n")
	go ask()
	l.kill(t)
	l.handle.Drained = true
	m, err := TakeOver(oneFile{RawFileSystem: gofuse.NewDefaultRawFileSystem()}, l.dev, l.handle)
	if err != nil {
		t.Fatal(err)
	}
	if r := <-got; r.err != nil || !bytes.Equal(r.body, oneBody) {
		t.Errorf("read %d bytes, %v", len(r.body), r.err)
	}
	for range 2 {
		if err := <-asked; !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
	}
	if err := m.Unmount(false); err != nil {
		t.Error(err)
	}
	<-m.Done()
}

// An abort reaches who waits though somebody else has the descriptor still.
func TestAbort(t *testing.T) {
	const control = "/sys/fs/fuse/connections"
	switch err := unix.Mount("none", control, "fusectl", 0, ""); {
	case err == nil:
		defer func() {
			if err := unix.Unmount(control, 0); err != nil {
				t.Error(err)
			}
		}()
	case !errors.Is(err, unix.EBUSY): // it is mounted
		testenv.Lacks(t, "no fusectl here: %v", err)
	}
	dir := t.TempDir()
	l := before69(t, dir)
	got := reading(filepath.Join(dir, "f"))
	l.hears(t, "stuck\n")
	l.kill(t)
	fd, err := unix.FcntlInt(l.dev.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	other := os.NewFile(uintptr(fd), "another's")
	Abort(l.dev, l.handle)
	hangs := time.AfterFunc(20*time.Second, func() { _ = unix.Unmount(dir, unix.MNT_FORCE) })
	if r := <-got; r.err == nil {
		t.Errorf("%d bytes were read", len(r.body))
	}
	if !hangs.Stop() || !Ended(other) {
		t.Error("its connection lived")
	}
	_ = other.Close()
}

func TestKernelSince69(t *testing.T) {
	for release, want := range map[string]bool{
		"6.9.0": true, "6.10-rc1": true, "7.0.1-generic": true, "6.18.44-fc-v857": true, "6.8.12": false, "5.14.0-503.el9": false, "4.18.0": false, "": false, "x": false,
	} {
		if got := since69(release); got != want {
			t.Errorf("%q: %v", release, got)
		}
	}
}
