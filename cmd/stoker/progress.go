package main

import (
	"fmt"
	"strings"
	"sync"
	"time"

	"stoker.dev/internal/api"
)

const (
	drawEvery = 100 * time.Millisecond // on a terminal
	lineEvery = 5 * time.Second        // elsewhere
	lineStep  = 10                     // percent, likewise
	barCells  = 24

	patience  = 10 * time.Second // without progress; then it is said, elsewhere as often
	tickEvery = time.Second      // how often it is looked at, and redrawn on a terminal
	askStore  = "does the store answer?"
	askDoctor = "'stoker doctor' looks for the cause"
)

// progress shows how far listings and loads are: a bar on a terminal, a plain
// line every 5 s or 10 % elsewhere. Where nothing moves, it says so by itself:
// what hangs sends no events. Done ends it. Its methods may be called from any
// goroutine.
type progress struct {
	c    *console
	stop chan struct{} // closed by Done
	done chan struct{} // closed when the ticker has ended

	mu       sync.Mutex
	now      news      // +checklocks:mu
	changed  time.Time // +checklocks:mu — when what it counts changed last
	last     time.Time // +checklocks:mu — when a line was shown last
	reminded time.Time // +checklocks:mu — when it was said last that nothing changes
	percent  int       // +checklocks:mu — of the last line
	line     string    // +checklocks:mu — the last one
	why      string    // +checklocks:mu — what a queued job waits for
	stage    string    // +checklocks:mu — what percent is of; "" = the first
}

// news is what is known now.
type news struct {
	line  string // as it is shown
	plain string // without bar, rate and ETA
	count any    // comparable: another one is progress
	ask   string // what to ask where there is none; "" = that is nothing unusual

	silent time.Time // since then the store does not answer; zero: not known
}

// newProgress begins with what is going on before the first event.
func newProgress(c *console, what, ask string) *progress {
	p := &progress{c: c, percent: -lineStep, stop: make(chan struct{}), done: make(chan struct{}), changed: time.Now(), now: news{plain: what, ask: ask}}
	go p.tick()
	return p
}

// newListing begins with nothing listed.
func newListing(c *console) *progress {
	return newProgress(c, listed(api.ListProgress{}), askStore)
}

// tick looks after what sends no events, until Done.
func (p *progress) tick() {
	defer close(p.done)
	t := time.NewTicker(min(tickEvery, p.c.patient()))
	defer t.Stop()
	for {
		select {
		case <-p.stop:
			return
		case <-t.C:
			p.remind()
		}
	}
}

// remind says for how long nothing has changed, if that is long.
func (p *progress) remind() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if line, ok := p.stalledLocked(); ok && (p.c.tty || time.Since(p.reminded) > p.c.patient()-tickEvery/2) { // ticks come a little early or late
		p.reminded = time.Now()
		p.drawLocked(line)
	}
}

// stalledLocked is the line of what does not move. A queued job does not
// count: what it waits for has been said.
func (p *progress) stalledLocked() (line string, ok bool) {
	idle := time.Since(p.changed)
	if idle < p.c.patient() || p.now.ask == "" {
		return "", false
	}
	if !p.now.silent.IsZero() {
		return fmt.Sprintf("%s, the store has not answered for %s", p.now.plain, span(time.Since(p.now.silent))), true
	}
	return fmt.Sprintf("%s, no progress for %s: %s", p.now.plain, span(idle), p.now.ask), true
}

func (p *progress) drawLocked(line string) {
	p.last, p.line = time.Now(), line
	p.c.Draw(line)
}

// Event shows one line of a stream.
func (p *progress) Event(e api.Event) {
	switch {
	case e.Listing != nil:
		line := listed(*e.Listing)
		p.show(news{line: line, plain: line, count: *e.Listing, ask: askStore}, -1)
	case e.Load != nil:
		l := e.Load
		p.show(p.bar("loading", l.Bytes, l.TotalBytes, 0, -1, ""), percent(l.Bytes, l.TotalBytes))
	case e.Check != nil:
		p.check(*e.Check)
	case e.Job != nil:
		p.Job(*e.Job)
	}
}

// check shows how far a deep verification is.
func (p *progress) check(c api.CheckProgress) {
	p.show(p.bar("verifying", c.Bytes, c.TotalBytes, 0, -1, askDoctor), percent(c.Bytes, c.TotalBytes))
}

func listed(l api.ListProgress) string {
	return fmt.Sprintf("listing: %d objects, %s", l.Objects, api.HumanBytes(l.Bytes))
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
	ask := askStore
	switch st.State {
	case api.JobReleased, api.JobFailed:
		return // what follows says more
	case api.JobPlanned:
		if ask = askDoctor; p.waits(st, "") {
			ask = ""
		}
	case api.JobQueued:
		ask = ""
		p.waits(st, "is queued: ")
	}
	if st.Check != nil {
		p.percentFrom("verifying")
		p.check(*st.Check)
		return
	}
	now := p.bar(strings.ToLower(st.State), st.ResidentBytes, st.Bytes, st.BytesPerSec, st.ETASeconds, ask)
	now.silent = st.WaitingSince
	p.show(now, percent(st.ResidentBytes, st.Bytes))
}

// percentFrom begins anew with what is counted from 0 again.
func (p *progress) percentFrom(stage string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stage != stage {
		p.stage, p.percent = stage, 0
	}
}

// waits says what a job waits for, once for each answer, and reports whether that
// is known.
func (p *progress) waits(st api.JobStatus, as string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if st.Error == nil || st.Error.Message == "" {
		return false
	}
	if st.Error.Message != p.why {
		p.why = st.Error.Message
		p.c.Note("job %s %s%s", st.Job, as, p.why)
		p.line = "" // a note takes the bar away
	}
	return true
}

// bar makes the line of state: bar or nothing, %, bytes, rate, ETA.
func (p *progress) bar(state string, part, whole int64, rate, seconds float64, ask string) news {
	n := percent(part, whole)
	cells := ""
	if p.c.tty {
		full := n * barCells / 100
		cells = strings.Repeat("#", full)
		if p.c.color {
			cells = "\x1b[32m" + cells + "\x1b[0m"
		}
		cells = "[" + cells + strings.Repeat(".", barCells-full) + "] "
	}
	sizes := fmt.Sprintf("%d %%, %s of %s", n, api.HumanBytes(part), api.HumanBytes(whole))
	out := news{line: state + ": " + cells + sizes, plain: state + ": " + sizes, count: [2]any{state, part}, ask: ask}
	if rate > 0 {
		out.line += ", " + api.HumanBytes(int64(rate)) + "/s"
	}
	if seconds >= 0 && n < 100 {
		out.line += ", ready in " + eta(seconds)
	}
	return out
}

// show takes news of which n % are done (-1 = not known), and draws them if it
// is time to.
func (p *progress) show(now news, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now.count != p.now.count {
		p.changed = time.Now()
	}
	p.now = now
	if _, stalled := p.stalledLocked(); stalled {
		return // the ticker says so
	}
	since := time.Since(p.last)
	due := since >= lineEvery || n >= p.percent+lineStep || n >= 100 && p.percent < 100
	if p.c.tty {
		due = since >= drawEvery || n >= 100
	}
	if !due || now.line == p.line {
		return
	}
	if n >= 0 {
		p.percent = n
	}
	p.drawLocked(now.line)
}

// Done takes the bar away; nothing is shown after it.
func (p *progress) Done() {
	close(p.stop)
	<-p.done
	p.c.Clear()
}
