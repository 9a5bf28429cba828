package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// notifier tells systemd, or whoever set NOTIFY_SOCKET, of a daemon's states
// (sd_notify(3)). Without a socket it tells nobody. Nil is such a one.
type notifier struct {
	conn *net.UnixConn // nil: nobody listens
	log  *slog.Logger

	every time.Duration // between signs of life; 0 = none are wanted
}

// newNotifier opens the socket of the environment and takes the variables out
// of it, so that no child believes to be the one that is asked.
func newNotifier(log *slog.Logger) (*notifier, error) {
	n := &notifier{log: log}
	path := os.Getenv("NOTIFY_SOCKET")
	usec, pid := os.Getenv("WATCHDOG_USEC"), os.Getenv("WATCHDOG_PID")
	for _, v := range []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} {
		if err := os.Unsetenv(v); err != nil {
			return nil, err
		}
	}
	if path == "" {
		return n, nil
	}
	if path[0] == '@' { // of the abstract name space
		path = "\x00" + path[1:]
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, usage{fmt.Errorf("NOTIFY_SOCKET: %w", err)}
	}
	n.conn = conn
	if us, err := strconv.ParseInt(usec, 10, 64); err == nil && us > 0 && (pid == "" || pid == strconv.Itoa(os.Getpid())) {
		n.every = time.Duration(us) * time.Microsecond / 2
	}
	return n, nil
}

// tell sends one state, as lines of NAME=VALUE.
func (n *notifier) tell(lines ...string) {
	if n == nil || n.conn == nil {
		return
	}
	if _, err := n.conn.Write([]byte(strings.Join(lines, "\n"))); err != nil {
		n.log.Warn("systemd was not told", "state", lines[0], "error", err)
	}
}

// watch sends signs of life, if they are wanted, and says when ctx ends that
// the daemon stops. What it returns ends it and closes the socket.
func (n *notifier) watch(ctx context.Context) (end func()) {
	if n == nil || n.conn == nil {
		return func() {}
	}
	over := make(chan struct{})
	var tending sync.WaitGroup
	tending.Go(func() {
		var tick <-chan time.Time
		if n.every > 0 {
			t := time.NewTicker(n.every)
			defer t.Stop()
			tick = t.C
		}
		stopping := ctx.Done()
		for {
			select {
			case <-over:
				return
			case <-stopping:
				stopping = nil
				n.tell("STOPPING=1")
			case <-tick:
				n.tell("WATCHDOG=1")
			}
		}
	})
	return func() {
		close(over)
		tending.Wait()
		_ = n.conn.Close()
	}
}

// ready logs once that the daemon serves, and tells systemd.
func (s *shared) ready(role string) func() {
	var once sync.Once
	return func() {
		once.Do(func() {
			s.log.Info("ready", "role", role, "version", version)
			s.notify.tell("READY=1", "STATUS=serves")
		})
	}
}
