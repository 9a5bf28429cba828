package main

import (
	"fmt"
	"strings"
	"time"

	"stoker.dev/internal/api"
)

const (
	drawEvery = 100 * time.Millisecond // on a terminal
	lineEvery = 5 * time.Second        // elsewhere
	lineStep  = 10                     // percent, likewise
	barCells  = 24
)

// progress shows how far listings and loads are: a bar on a terminal, a plain
// line every 5 s or 10 % elsewhere. It is used by one goroutine.
type progress struct {
	c       *console
	last    time.Time
	percent int    // of the last line
	line    string // the last one
}

func newProgress(c *console) *progress { return &progress{c: c, percent: -lineStep} }

// Event shows one line of a stream.
func (p *progress) Event(e api.Event) {
	switch {
	case e.Listing != nil:
		p.show(fmt.Sprintf("listing: %d objects, %s", e.Listing.Objects, api.HumanBytes(e.Listing.Bytes)), -1)
	case e.Load != nil:
		p.show(p.bar("loading", e.Load.Bytes, e.Load.TotalBytes, 0, -1), percent(e.Load.Bytes, e.Load.TotalBytes))
	case e.Job != nil:
		p.Job(*e.Job)
	}
}

// Listing shows one line of a stream that ends with a job: whoever follows the
// job shows that.
func (p *progress) Listing(e api.Event) {
	if e.Listing != nil {
		p.Event(e)
	}
}

// Job shows the state of a job.
func (p *progress) Job(st api.JobStatus) {
	if st.State == api.JobReleased || st.State == api.JobFailed {
		return // what follows says more
	}
	p.show(p.bar(strings.ToLower(st.State), st.ResidentBytes, st.Bytes, st.BytesPerSec, st.ETASeconds), percent(st.ResidentBytes, st.Bytes))
}

// bar makes a line: state, bar or nothing, %, bytes, rate, ETA.
func (p *progress) bar(state string, part, whole int64, rate, seconds float64) string {
	n := percent(part, whole)
	line := state + ": "
	if p.c.tty {
		full := n * barCells / 100
		cells := strings.Repeat("#", full)
		if p.c.color {
			cells = "\x1b[32m" + cells + "\x1b[0m"
		}
		line += "[" + cells + strings.Repeat(".", barCells-full) + "] "
	}
	line += fmt.Sprintf("%d %%, %s of %s", n, api.HumanBytes(part), api.HumanBytes(whole))
	if rate > 0 {
		line += ", " + api.HumanBytes(int64(rate)) + "/s"
	}
	if seconds >= 0 && n < 100 {
		line += ", ready in " + eta(seconds)
	}
	return line
}

func (p *progress) show(line string, n int) {
	since := time.Since(p.last)
	due := since >= lineEvery || n >= p.percent+lineStep || n >= 100 && p.percent < 100
	if p.c.tty {
		due = since >= drawEvery || n >= 100
	}
	if !due || line == p.line {
		return
	}
	p.last, p.line = time.Now(), line
	if n >= 0 {
		p.percent = n
	}
	p.c.Draw(line)
}

// Done takes the bar away.
func (p *progress) Done() { p.c.Clear() }
