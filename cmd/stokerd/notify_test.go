package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// listen is systemd: a socket that NOTIFY_SOCKET names. next returns what was
// said, the next time something is.
func listen(t *testing.T, name string) (next func() string) {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: strings.Replace(name, "@", "\x00", 1), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	t.Setenv("NOTIFY_SOCKET", name)
	return func() string {
		t.Helper()
		b := make([]byte, 4096)
		_ = conn.SetReadDeadline(time.Now().Add(30 * time.Second))
		n, err := conn.Read(b)
		if err != nil {
			t.Fatalf("nothing was said: %v", err)
		}
		return string(b[:n])
	}
}

// A daemon says when it serves, once, that it lives, twice in the time it is
// given, and that it stops; its children are not asked.
func TestStatesAreTold(t *testing.T) {
	for name, socket := range map[string]string{"path": filepath.Join(t.TempDir(), "n"), "abstract": "@stoker-test-" + strconv.Itoa(os.Getpid())} {
		t.Run(name, func(t *testing.T) {
			next := listen(t, socket)
			t.Setenv("WATCHDOG_USEC", "100000")
			t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
			n, err := newNotifier(slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			for _, v := range []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} {
				if _, there := os.LookupEnv(v); there {
					t.Errorf("children see %s", v)
				}
			}
			s := shared{log: slog.New(slog.DiscardHandler), notify: n}
			ctx, stop := context.WithCancel(t.Context())
			var said []string
			err = s.serve(ctx, "worker", func(ctx context.Context, ready func()) error {
				began := time.Now()
				for range 2 {
					if m := next(); m != "WATCHDOG=1" {
						t.Errorf("before it serves: %q", m)
					}
				}
				if took := time.Since(began); took < 50*time.Millisecond {
					t.Errorf("two signs of life in %s", took)
				}
				ready()
				ready()
				for len(said) == 0 || said[len(said)-1] != "STOPPING=1" {
					m := next()
					said = append(said, m)
					if strings.HasPrefix(m, "READY=1") {
						stop()
					}
				}
				return nil
			})
			all := strings.Join(said, "|")
			if err != nil || strings.Count(all, "READY=1") != 1 {
				t.Errorf("%v, %q", err, said)
			}
			if _, err := n.conn.Write([]byte("x")); err == nil {
				t.Error("the socket is still open")
			}
		})
	}
}

// Without systemd nothing is told; a watchdog of another process is not
// answered; a socket that is not there is exit 2.
func TestNobodyListens(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	n, err := newNotifier(slog.New(slog.DiscardHandler))
	if err != nil || n.conn != nil {
		t.Fatalf("%+v, %v", n, err)
	}
	n.tell("READY=1")
	n.watch(t.Context())()
	listen(t, filepath.Join(t.TempDir(), "n"))
	t.Setenv("WATCHDOG_USEC", "1000000")
	t.Setenv("WATCHDOG_PID", "1")
	if n, err = newNotifier(slog.New(slog.DiscardHandler)); err != nil || n.every != 0 {
		t.Errorf("the watchdog of process 1: %+v, %v", n, err)
	}
	_ = n.conn.Close()
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "none"))
	if _, err := newNotifier(slog.New(slog.DiscardHandler)); err == nil || exitCode(err) != 2 {
		t.Errorf("no socket: %v", err)
	}
}

// Who keeps a worker's mounts: the holder that is named, else systemd, else nobody.
func TestWhoHolds(t *testing.T) {
	s := shared{log: slog.New(slog.DiscardHandler)}
	if s.holder(t.Context(), "") != nil {
		t.Error("somebody holds for a worker that nobody started")
	}
	listen(t, filepath.Join(t.TempDir(), "n"))
	var err error
	if s.notify, err = newNotifier(s.log); err != nil {
		t.Fatal(err)
	}
	defer s.notify.conn.Close()
	if h, err := s.holder(t.Context(), "")("id"); err != nil || fmt.Sprintf("%T", h) != "*hold.Systemd" {
		t.Errorf("under systemd: %T, %v", h, err)
	}
	h, err := s.holder(t.Context(), filepath.Join(t.TempDir(), "hold.sock"))("id") // which does not listen yet
	if err != nil || fmt.Sprintf("%T", h) != "*hold.Client" {
		t.Fatalf("with a holder: %T, %v", h, err)
	}
	_ = h.Close()
}
