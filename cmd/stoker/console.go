package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/term"

	"stoker.dev/cmd/stoker/internal/live"
)

// console is stderr: messages, and below them one line of progress that is
// redrawn on a terminal. Its methods may be called from any goroutine.
type console struct {
	w     io.Writer
	tty   bool
	color bool
	width func() int
	wait  time.Duration // without progress until that is said; 0 = patience

	mu    sync.Mutex
	drawn bool // +checklocks:mu
}

func newConsole(f *os.File, environ []string) *console {
	fd := int(f.Fd())
	c := &console{w: f, tty: term.IsTerminal(fd), width: func() int {
		w, _, err := term.GetSize(fd)
		if err != nil || w < 20 {
			return 80
		}
		return w
	}}
	noColor := slices.ContainsFunc(environ, func(kv string) bool {
		return kv == "TERM=dumb" || strings.HasPrefix(kv, "NO_COLOR=") && kv != "NO_COLOR="
	})
	c.color = c.tty && !noColor
	return c
}

// patient is how long it waits for progress without a word.
func (c *console) patient() time.Duration { return cmp.Or(c.wait, patience) }

// Write lets cobra print to it.
func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.clearLocked()
	return c.w.Write(p)
}

func (c *console) clearLocked() {
	if c.drawn {
		fmt.Fprint(c.w, "\r\x1b[K")
		c.drawn = false
	}
}

// Line prints one line.
func (c *console) Line(format string, args ...any) { c.print("", fmt.Sprintf(format, args...)) }

// Note prints a message in the form that all messages have.
func (c *console) Note(format string, args ...any) {
	c.print(c.prefix("\x1b[33m"), fmt.Sprintf(format, args...))
}

// Fail prints why the command failed.
func (c *console) Fail(err error) {
	c.print(c.prefix("\x1b[31m"), strings.TrimPrefix(err.Error(), "usage: "))
}

func (c *console) prefix(color string) string {
	if c.color {
		return color + "stoker:\x1b[0m "
	}
	return "stoker: "
}

func (c *console) print(prefix, text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.clearLocked()
	fmt.Fprintln(c.w, prefix+oneLine(text))
}

// Draw shows a line of progress: over the last one on a terminal, as a line of
// its own elsewhere.
func (c *console) Draw(line string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.tty {
		fmt.Fprintln(c.w, line)
		return
	}
	if w := c.width() - 1; utf8.RuneCountInString(line) > w {
		line = string([]rune(line)[:w])
	}
	fmt.Fprint(c.w, "\r\x1b[K"+line)
	c.drawn = true
}

// Clear takes the line of progress away.
func (c *console) Clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.clearLocked()
}

// oneLine keeps a message one line.
func oneLine(s string) string {
	return printable(strings.ReplaceAll(strings.TrimRight(s, "\n"), "\n", "; "))
}

// printable makes any string fit for a table or message.
func printable(s string) string { return live.Printable(s) }

func lowerFirst(s string) string {
	r, n := utf8.DecodeRuneInString(s)
	return string(unicode.ToLower(r)) + s[n:]
}
