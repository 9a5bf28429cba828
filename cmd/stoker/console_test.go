package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"stoker.dev"
	"stoker.dev/internal/api"
	"stoker.dev/internal/testenv"
)

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "plain text": "plain text", "é 日本": "é 日本", "\x1b[31mred": `\x1b[31mred`, "a\nb\tc\r": `a\x0ab\x09c\x0d`,
		"\xff": `\xff`, "é\xff": `é\xff`, "\u202e": `\xe2\x80\xae`, "\u009b31m": `\xc2\x9b31m`, "\x00": `\x00`, "\x7f": `\x7f`, "\ufffd": "\ufffd", `\x41`: `\x41`,
	} {
		if got := printable(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// Whatever is in an error, its message is one line that a terminal only shows.
func TestMessagesAreOneLine(t *testing.T) {
	for text, want := range map[string]string{
		"why": "stoker: why\n", "one\ntwo\n": "stoker: one; two\n", "\x1b]0;title\a": "stoker: \\x1b]0;title\\x07\n", "usage: no flag: see": "stoker: no flag: see\n",
	} {
		var b strings.Builder
		c := &console{w: &b}
		c.Fail(errors.New(text))
		if b.String() != want {
			t.Errorf("%q: %q, want %q", text, b.String(), want)
		}
	}
	var b strings.Builder
	c := &console{w: &b}
	c.Note("%s: a note", "x\n\x1b")
	c.Line("job %s", "j\rk")
	if want := "stoker: x; \\x1b: a note\njob j\\x0dk\n"; b.String() != want {
		t.Errorf("%q, want %q", b.String(), want)
	}
}

// terminal opens a pseudo-terminal and returns the program's side and what it
// shows.
func terminal(t *testing.T) (*os.File, func() string) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		testenv.Lacks(t, "no pseudo-terminals here: %v", err)
	}
	t.Cleanup(func() { _ = master.Close() })
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		testenv.Lacks(t, "no pseudo-terminals here: %v", err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		testenv.Lacks(t, "no pseudo-terminals here: %v", err)
	}
	return slave, func() string {
		_ = slave.Close() // then the master reads to the end: EIO
		got, _ := io.ReadAll(master)
		return string(got)
	}
}

func TestColorOnATerminal(t *testing.T) {
	for _, c := range []struct {
		environ []string
		color   bool
	}{{nil, true}, {[]string{"NO_COLOR="}, true}, {[]string{"NO_COLOR=1"}, false}, {[]string{"A=b", "NO_COLOR=x"}, false}, {[]string{"TERM=dumb"}, false}, {[]string{"TERM=xterm"}, true}} {
		f, shown := terminal(t)
		con := newConsole(f, c.environ)
		con.Fail(errors.New("why"))
		p := newProgress(con, "loading", "")
		p.Job(api.JobStatus{State: api.JobWarming, Bytes: 100, ResidentBytes: 50, ETASeconds: 5})
		p.Done()
		got := shown()
		if strings.Contains(got, "\x1b[31m") != c.color || strings.Contains(got, "\x1b[32m") != c.color {
			t.Errorf("%v: shown %q", c.environ, got)
		}
		if !strings.Contains(got, "stoker:") || !strings.Contains(got, "warming: [") || !strings.Contains(got, "50 %, 50 B of 100 B, ready in 5 s") || !strings.HasSuffix(got, "\r\x1b[K") {
			t.Errorf("%v: shown %q", c.environ, got)
		}
	}
}

// Elsewhere there is no color, nothing is drawn over, and a line is printed
// every 10 % at most.
func TestPlainProgress(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c := newConsole(f, nil)
	p := newProgress(c, "loading", "")
	p.Event(api.Event{Listing: &api.ListProgress{Objects: 5, Bytes: 10}})
	for i := range int64(1001) {
		p.Job(api.JobStatus{State: api.JobWarming, Bytes: 1000, ResidentBytes: i, ETASeconds: -1})
	}
	p.Done()
	c.Fail(stoker.Errorf(stoker.KindHeld, "x", "", "y"))
	got, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	n := strings.Count(string(got), "\n")
	if strings.ContainsAny(string(got), "\x1b\r[") || n < 11 || n > 14 || !strings.Contains(string(got), "warming: 100 %, 1000 B of 1000 B\n") || !strings.HasSuffix(string(got), "\nstoker: x: y\n") {
		t.Errorf("%d lines: %s", n, got)
	}
}
