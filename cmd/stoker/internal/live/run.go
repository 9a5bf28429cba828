package live

import (
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"stoker.dev"
	"stoker.dev/internal/api"
)

// Options say what Run asks and where it draws.
type Options struct {
	Source  string // who is asked, for the title
	Fetch   func(ctx context.Context) (api.Status, error)
	Out     io.Writer
	Every   time.Duration // between two questions
	Screen  bool          // draw over the whole terminal; else print a block when something changed
	Size    func() (width, height int)
	Color   bool
	Unicode bool
	Encode  func(api.Status) ([]byte, error) // print this instead of blocks; nil = blocks
	Note    func(err error)                  // told when no answer comes any more, where there is no screen
	Resized <-chan os.Signal                 // the terminal has another size; may be nil
	Suspend <-chan os.Signal                 // the user wants the terminal for something else; may be nil
	Stop    func()                           // stops the process until the user comes back to it
}

// askTimeout is how long one question may take; what is shown gets old then.
const askTimeout = 5 * time.Second

// What a terminal is told. Lines are never wrapped: a line that is too long for
// a terminal that just shrank is cut by it.
const (
	enterScreen = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J"
	leaveScreen = "\x1b[?7h\x1b[?25h\x1b[?1049l"
	home        = "\x1b[H"
	clearLine   = "\x1b[2K"
	clearBelow  = "\x1b[J"
)

// runner is one Run.
type runner struct {
	o    Options
	v    view
	last string // what was printed last
}

// Run shows the status until ctx ends, and returns why. The first question must
// be answered; later a controller that goes away is waited for. A terminal is
// left as it was, whatever happens.
func Run(ctx context.Context, o Options) (err error) {
	r := &runner{o: o, v: view{source: o.Source, rates: &rates{}, glyphs: Blocks(o.Unicode), color: o.Color}}
	if err := r.ask(ctx); err != nil {
		return err
	}
	if o.Screen {
		if err := r.write(enterScreen); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, r.write(leaveScreen)) }()
	}
	return r.loop(ctx)
}

func (r *runner) loop(ctx context.Context) error {
	tick := time.NewTicker(r.o.Every)
	defer tick.Stop()
	for {
		if err := r.draw(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-r.o.Resized:
			continue // the same, in the new size
		case <-r.o.Suspend:
			if err := r.suspend(); err != nil {
				return err
			}
			continue
		case <-tick.C:
		}
		if err := r.asked(ctx, r.ask(ctx)); err != nil {
			return err
		}
	}
}

// ask gets the status of now.
func (r *runner) ask(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	st, err := r.o.Fetch(ctx)
	if err != nil {
		return err
	}
	now := time.Now()
	r.v.status, r.v.at, r.v.since, r.v.stale = st, now, now, nil
	r.v.rates.Note(now, readings(st))
	return nil
}

// asked takes the error of a question that was not the first: what may pass is
// shown, the rest ends the run.
func (r *runner) asked(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err == nil:
		return nil
	case !errors.Is(err, context.DeadlineExceeded) && stoker.KindOf(err) != stoker.KindTransient && stoker.KindOf(err) != stoker.KindBusy:
		return err
	}
	if r.v.stale == nil && !r.o.Screen && r.o.Note != nil {
		r.o.Note(err)
	}
	r.v.stale, r.v.at = err, time.Now()
	return nil
}

func (r *runner) draw() error {
	if r.o.Screen {
		w, h := r.o.Size()
		lines := r.v.Screen(w, h)
		text := home + clearLine + strings.Join(lines, "\r\n"+clearLine)
		if len(lines) < h {
			text += "\r\n" + clearBelow // not right behind a full line: it would take its last cell
		}
		return r.write(text)
	}
	if r.v.stale != nil {
		return nil // it is the last block still
	}
	text, stamp := strings.Join(r.v.Block(), "\n")+"\n", r.v.at.UTC().Format(time.RFC3339)+"\n"
	if r.o.Encode != nil {
		body, err := r.o.Encode(r.v.status)
		if err != nil {
			return err
		}
		text, stamp = string(body), ""
	} else if r.last != "" {
		stamp = "\n" + stamp
	}
	if text == r.last {
		return nil
	}
	r.last = text
	return r.write(stamp + text)
}

// suspend gives the terminal back, stops, and takes it again.
func (r *runner) suspend() error {
	if !r.o.Screen || r.o.Stop == nil {
		return nil
	}
	if err := r.write(leaveScreen); err != nil {
		return err
	}
	r.o.Stop()
	return r.write(enterScreen)
}

func (r *runner) write(s string) error {
	if _, err := io.WriteString(r.o.Out, s); err != nil {
		return stoker.Errorf(stoker.KindInternal, "print", "", "%w", err)
	}
	return nil
}

// Only keeps of a status what concerns the job or dataset of that name; ok is
// false if there is none. Workers stay: they hold all of it.
func Only(st api.Status, name string) (_ api.Status, ok bool) {
	dataset := slices.ContainsFunc(st.Datasets, func(d api.DatasetInfo) bool { return d.Name == name })
	used := map[string]bool{name: dataset}
	out := api.Status{Workers: st.Workers}
	for _, j := range st.Jobs {
		if j.Job == name || dataset && slices.Contains(j.Datasets, name) {
			out.Jobs = append(out.Jobs, j)
			for _, d := range j.Datasets {
				used[d] = used[d] || j.Job == name
			}
		}
	}
	for _, d := range st.Datasets {
		if used[d.Name] {
			out.Datasets = append(out.Datasets, d)
		}
	}
	return out, len(out.Jobs)+len(out.Datasets) > 0
}
