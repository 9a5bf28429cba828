package worker

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"stoker.dev/fuse/hold"
	"stoker.dev/internal/api"
	"stoker.dev/internal/testenv"
)

// before69 are the lives of a worker whose kernel does not resend.
func before69(t *testing.T, view string) *lives {
	t.Helper()
	if k := newKernel(t.TempDir()); view == "kernel" && k.err != nil {
		testenv.Lacks(t, "%v", k.err)
	}
	l := newLives(t)
	l.env, l.of.View = []string{"STOKER_TEST_LINUX_6_8=1"}, view
	return l
}

// next begins a life that finds the view, and says whether it is mounted anew.
func (l *lives) next(t *testing.T, device uint64, stuck bool) (anew bool) {
	t.Helper()
	l.of.Mount, l.of.Stuck = "", stuck
	if said := l.begin(t); said != "ready 1 1" {
		t.Errorf("the next life says %q", said)
	}
	return deviceOf(t, l.dir) != device
}

// again reads a file through one descriptor, past the page cache, until stop is
// closed; it says after each time that it did, while somebody listens.
func again(f *os.File, want []byte, did chan<- struct{}, stop <-chan struct{}) error {
	for {
		select {
		case <-stop:
			return nil
		case did <- struct{}{}:
		default:
		}
		if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
			return err
		}
		got, err := io.ReadAll(io.NewSectionReader(f, 0, int64(len(want))))
		if err != nil {
			return err
		}
		if !bytes.Equal(got, want) {
			return errors.New("wrong bytes")
		}
	}
}

// Before Linux 6.9 a stop in order drains: processes read all the while through
// open files, life after life, and see no error.
func TestRestartBeforeLinux69(t *testing.T) {
	for _, view := range []string{"tree", "kernel"} {
		t.Run(view, func(t *testing.T) {
			l := before69(t, view)
			l.begin(t)
			device := deviceOf(t, l.dir)
			flushed(t, l.dir)
			const readers = 4
			did, stop, ends := make(chan struct{}), make(chan struct{}), make(chan error, readers)
			for range readers {
				f, err := os.Open(filepath.Join(l.dir, "late"))
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				go func() { ends <- again(f, lateBody(), did, stop) }()
			}
			reads := func() {
				for range 2 * readers {
					select {
					case <-did:
					case err := <-ends:
						t.Fatal(err)
					}
				}
			}
			for range 2 {
				reads()
				l.end(t, syscall.SIGTERM)
				if l.next(t, device, false) {
					t.Error("it was mounted anew")
				}
				reads()
			}
			close(stop)
			for range readers {
				if err := <-ends; err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// A READ whose data does not come does not keep a worker from its end: it fails
// towards the kernel, which asks the next life again where it read ahead.
func TestRestartBeforeLinux69WithoutData(t *testing.T) {
	l := before69(t, "tree")
	l.of.Stuck = true
	l.begin(t)
	device := deviceOf(t, l.dir)
	flushed(t, l.dir)
	got := make(chan []byte, 1)
	go func() {
		body, err := os.ReadFile(filepath.Join(l.dir, "late"))
		if err != nil {
			t.Error(err)
		}
		got <- body
	}()
	l.hears(t, "stuck")
	l.end(t, syscall.SIGTERM)
	if l.next(t, device, false) {
		t.Error("it was mounted anew")
	}
	if body := <-got; !bytes.Equal(body, lateBody()) {
		t.Errorf("who waited got %d bytes", len(body))
	}
}

// Before Linux 6.9 a view whose worker crashed is aborted by the next life: who
// waits gets an error and does not wait for ever, and the view is mounted anew in
// its place. So it is if what is written of an orderly end is not whole, or is of
// an earlier end.
func TestCrashBeforeLinux69(t *testing.T) {
	for name, c := range map[string]struct {
		restart bool
		by      syscall.Signal
		damage  func(body []byte) []byte
	}{
		"killed": {by: syscall.SIGKILL}, "killed after a restart": {by: syscall.SIGKILL, restart: true},
		"half is written": {by: syscall.SIGTERM, damage: func(b []byte) []byte { return b[:len(b)-20] }},
		"nothing is":      {by: syscall.SIGTERM, damage: func([]byte) []byte { return nil }},
	} {
		t.Run(name, func(t *testing.T) {
			l := before69(t, "tree")
			stuck := c.damage == nil
			l.of.Stuck = stuck
			l.begin(t)
			device := deviceOf(t, l.dir)
			flushed(t, l.dir)
			open, err := os.Open(filepath.Join(l.dir, "early"))
			if err != nil {
				t.Fatal(err)
			}
			defer open.Close()
			if c.restart {
				l.end(t, syscall.SIGTERM)
				if l.next(t, device, stuck) {
					t.Error("a restart mounted it anew")
				}
			}
			got := make(chan error, 1)
			if stuck {
				go func() {
					_, err := os.ReadFile(filepath.Join(l.dir, "late"))
					got <- err
				}()
				l.hears(t, "stuck")
			}
			l.end(t, c.by)
			if c.damage != nil {
				l.damage(t, c.damage)
			}
			if !l.next(t, device, false) {
				t.Error("it was not mounted anew")
			}
			if stuck {
				if err := <-got; err == nil {
					t.Error("who waited got an answer")
				}
			}
			if err := unix.Fadvise(int(open.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
				t.Fatal(err)
			}
			if _, err := open.ReadAt(make([]byte, 1), 0); !errors.Is(err, unix.ENOTCONN) && !errors.Is(err, unix.ECONNABORTED) {
				t.Errorf("a file of the aborted mount: %v", err)
			}
			if body, err := os.ReadFile(filepath.Join(l.dir, "late")); err != nil || !bytes.Equal(body, lateBody()) {
				t.Errorf("mounted anew: %d bytes, %v", len(body), err)
			}
		})
	}
}

// doctor says what readers see when this worker ends.
func TestDoctorSaysWhatARestartDoes(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "hold.sock")
	dial := func() *hold.Client {
		c, err := hold.Dial(t.Context(), socket, "w", nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	alone := dial()
	h, err := hold.Listen(hold.ServerOptions{Socket: socket + "2"})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	go func() { ended <- h.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	socket += "2"
	for _, c := range []struct {
		holder  hold.Holder
		resends bool
		state   string
		says    string
	}{
		{nil, true, api.CheckOK, "nobody keeps"},
		{alone, true, api.CheckWarn, "does not answer"},
		{dial(), true, api.CheckOK, "a holder keeps its views: over a restart or a crash"},
		{hold.NewSystemd(nil, nil), true, api.CheckOK, "systemd keeps"},
		{hold.NewSystemd(nil, nil), false, api.CheckOK, "after a crash they are aborted"},
	} {
		if got := checkRestart(c.holder, c.resends); got.State != c.state || !strings.Contains(got.Detail, c.says) {
			t.Errorf("%T, %v: %+v", c.holder, c.resends, got)
		}
	}
}

// damage changes what is written of the one view.
func (l *lives) damage(t *testing.T, change func([]byte) []byte) {
	t.Helper()
	docs, err := filepath.Glob(filepath.Join(l.of.Base, "cache", "state", heldState+"*"))
	if err != nil || len(docs) != 1 {
		t.Fatal(docs, err)
	}
	body, err := os.ReadFile(docs[0])
	if err == nil && !bytes.Contains(body, []byte(`"drained":true`)) {
		t.Errorf("%s does not say that the view is drained", body)
	}
	if err == nil {
		err = os.WriteFile(docs[0], change(body), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}
