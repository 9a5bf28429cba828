package live

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"stoker.dev"
	"stoker.dev/internal/api"
)

// terminal is what a terminal makes of the bytes that it gets.
type terminal struct {
	width, height int
	mu            sync.Mutex
	raw           bytes.Buffer // +checklocks:mu
	rows          [][]rune     // +checklocks:mu
	row, col      int          // +checklocks:mu
	alternate     bool         // +checklocks:mu
	hidden        bool         // +checklocks:mu
	noWrap        bool         // +checklocks:mu
	t             *testing.T
}

func newTerminal(t *testing.T, w, h int) *terminal {
	x := &terminal{t: t, width: w, height: h}
	x.clear(0)
	return x
}

func (x *terminal) clear(from int) {
	x.rows = append(x.rows[:from:from], make([][]rune, x.height-from)...)
}

// Write understands what the view uses, and nothing else.
func (x *terminal) Write(p []byte) (int, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.raw.Write(p)
	text := string(p)
	for text != "" {
		if rest, ok := strings.CutPrefix(text, "\x1b["); ok {
			end := strings.IndexFunc(rest, func(r rune) bool { return r >= '@' && r <= '~' })
			x.sequence(rest[:end+1])
			text = rest[end+1:]
			continue
		}
		r := []rune(text)[0]
		text = text[len(string(r)):]
		x.put(r)
	}
	return len(p), nil
}

func (x *terminal) sequence(s string) {
	switch s {
	case "?1049h", "?1049l":
		x.alternate = s == "?1049h"
	case "?25h", "?25l":
		x.hidden = s == "?25l"
	case "?7h", "?7l":
		x.noWrap = s == "?7l"
	case "H":
		x.row, x.col = 0, 0
	case "2J":
		x.clear(0)
	case "2K":
		x.rows[x.row] = nil
	case "J":
		if x.col > 0 { // it begins with the cell of the cursor, the last one of a full line
			x.rows[x.row] = x.rows[x.row][:min(len(x.rows[x.row]), x.col, x.width-1)]
			x.clear(x.row + 1)
		} else {
			x.clear(x.row)
		}
	default:
		if !strings.HasSuffix(s, "m") {
			x.t.Errorf("sequence %q", s)
		}
	}
}

func (x *terminal) put(r rune) {
	switch r {
	case '\r':
		x.col = 0
	case '\n':
		if x.row++; x.row >= x.height {
			x.t.Errorf("the screen scrolls")
			x.row--
		}
	default:
		if x.col += runeWidth(r); x.col > x.width {
			x.t.Errorf("row %d is wider than %d: %q", x.row, x.width, string(x.rows[x.row]))
			x.col = x.width
			return
		}
		x.rows[x.row] = append(x.rows[x.row], r)
	}
}

func (x *terminal) text() string {
	x.mu.Lock()
	defer x.mu.Unlock()
	var b strings.Builder
	for _, r := range x.rows {
		b.WriteString(strings.TrimRight(string(r), " ") + "\n")
	}
	return strings.TrimRight(b.String(), "\n")
}

// restored fails the test if the terminal is not as it was.
func (x *terminal) restored() {
	x.t.Helper()
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.alternate || x.hidden || x.noWrap {
		x.t.Errorf("left behind: alternate screen %v, hidden cursor %v, no wrapping %v", x.alternate, x.hidden, x.noWrap)
	}
	if !strings.Contains(x.raw.String(), "\x1b[?1049h") {
		x.t.Error("the alternate screen was never taken")
	}
}

const mib = 1 << 20

func warming(n int64) api.Status {
	return api.Status{
		Jobs: []api.JobLine{
			{Job: "done-before", State: api.JobReleased, Owner: "ann", Datasets: []string{"speech"}, Bytes: 10 * mib, ResidentBytes: 10 * mib},
			{Job: "train-17", State: api.JobWarming, Owner: "bob", Datasets: []string{"imagenet"}, Bytes: 1000 * mib, ResidentBytes: n * mib, ETASeconds: 9},
		},
		Datasets: []api.DatasetInfo{
			{Name: "empty", Generation: 1, Bytes: 5 * mib},
			{Name: "imagenet", Generation: 3, Bytes: 1000 * mib, ResidentBytes: n * mib, Manifest: stoker.ID{1}},
			{Name: "speech", Generation: 1, Bytes: 10 * mib, ResidentBytes: 10 * mib, Manifest: stoker.ID{2}},
		},
		Workers: []api.WorkerInfo{
			{ID: "0123456789abcdef0123456789abcdef", Incarnation: 1, State: "live", CapacityBytes: 2048 * mib, UsedBytes: (100 + n) * mib, ReservedBytes: 512 * mib,
				Reads: &api.ReadCounters{UFSBytes: n * mib, PeerBytes: 2 * n * mib}},
			{ID: "fedcba9876543210fedcba9876543210", Incarnation: 2, State: "lost", CapacityBytes: 2048 * mib},
		},
	}
}

// steps answers with one status after the other, and the last one again; nil
// is an answer that does not come.
func steps(all ...*api.Status) func(context.Context) (api.Status, error) {
	n := 0
	return func(context.Context) (api.Status, error) {
		st := all[min(n, len(all)-1)]
		n++
		if st == nil {
			return api.Status{}, stoker.Errorf(stoker.KindTransient, "controller", "/c.sock", "nobody listens there")
		}
		return *st, nil
	}
}

func at(n int64) *api.Status { st := warming(n); return &st }

// screenOf runs a view for some seconds and returns what stands on the screen.
func screenOf(t *testing.T, x *terminal, fetch func(context.Context) (api.Status, error), seconds float64, change func(*Options)) (shown string, err error) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		o := Options{Source: "unix:///run/stoker/controller.sock", Fetch: fetch, Out: x, Every: time.Second, Screen: true, Unicode: true, Size: func() (int, int) { return x.width, x.height }}
		if change != nil {
			change(&o)
		}
		ended := make(chan error, 1)
		go func() { ended <- Run(ctx, o) }()
		<-time.After(time.Duration(seconds * float64(time.Second)))
		synctest.Wait()
		shown = x.text()
		cancel()
		err = <-ended
	})
	return shown, err
}

// A disk that is out of service stands above the tables, in red.
func TestBadDiskIsOnTheScreen(t *testing.T) {
	st := warming(1)
	st.Workers[0].Disks = []api.DiskInfo{{Dir: "/nvme0", State: "full", Reason: "r0"}, {Dir: "/nvme1", State: "failed", Reason: strings.Repeat("gone ", 30)}, {Dir: "/nvme2", State: "ok"}}
	v := &view{status: st, rates: &rates{}, color: true, glyphs: Blocks(true)}
	var found string
	for _, line := range v.Screen(80, 24) {
		if strings.Contains(line, "/nvme1") {
			found = line
		}
	}
	if !strings.Contains(found, "disks  2 disks, failed of "+ShortID(st.Workers[0].ID)) || !strings.HasPrefix(found, "\x1b[31m") || Width(found) > 80+len("\x1b[31m\x1b[0m") {
		t.Errorf("%q", found)
	}
	if all := strings.Join(v.Block(), "\n"); !strings.Contains(all, "/nvme0: r0") || strings.Contains(all, "/nvme2") {
		t.Errorf("%s", all)
	}
}

// The golden screen: 80 columns, rates from differences over the last seconds,
// ETA from those, what moves first.
func TestScreenGolden(t *testing.T) {
	x := newTerminal(t, 80, 24)
	got, err := screenOf(t, x, steps(at(100), at(150), at(200), at(250)), 3.5, nil)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("err %v", err)
	}
	x.restored()
	_, got, _ = strings.Cut(got, "\n") // the clock
	golden(t, got, "testdata/screen80.txt")
}

// golden compares with a file; STOKER_GOLDEN=1 writes it anew.
func golden(t *testing.T, got, path string) {
	t.Helper()
	if os.Getenv("STOKER_GOLDEN") != "" {
		if err := os.WriteFile(path, []byte(got+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != strings.TrimRight(string(want), "\n") {
		t.Errorf("%s differs; got\n%s", path, got)
	}
}

// On no terminal, however small, is a line too wide or a row too much, whatever
// names there are; the terminal itself checks.
func TestScreenFitsEveryTerminal(t *testing.T) {
	st := warming(300)
	for i := range 30 {
		st.Datasets = append(st.Datasets, api.DatasetInfo{Name: fmt.Sprintf("%s\x1b[2J\n-データ-%d", strings.Repeat("long", i), i), Generation: i, Bytes: 1 << 62, ResidentBytes: int64(i) << 55})
		st.Jobs = append(st.Jobs, api.JobLine{Job: strings.Repeat("j", i+1), State: api.JobQueued, Owner: "o\u0301wner\xff", Datasets: []string{"a", "b\r\n"}, ETASeconds: 1e12})
		st.Workers = append(st.Workers, api.WorkerInfo{ID: fmt.Sprint(i, "\x9b2J"), State: "odd", CapacityBytes: -1})
	}
	for _, size := range [][2]int{{80, 24}, {80, 5}, {80, 1}, {20, 24}, {33, 11}, {132, 50}, {300, 100}} {
		for _, color := range []bool{false, true} {
			x := newTerminal(t, size[0], size[1])
			got, _ := screenOf(t, x, steps(&st), 1.5, func(o *Options) { o.Color = color })
			x.restored()
			if size[1] >= 24 && !strings.Contains(got, "more") {
				t.Errorf("%v: what was left out is not counted:\n%s", size, got)
			}
			if size == [2]int{80, 24} && !color && (strings.Count(got, "\n") != 23 || strings.Count(got, "… and ") != 3) {
				t.Errorf("80x24 is not used well:\n%s", got)
			}
			if strings.Contains(x.raw.String(), "\x1b[3") && !color {
				t.Errorf("%v: colours without being asked", size)
			}
		}
	}
}

// The view follows the terminal's size.
func TestResize(t *testing.T) {
	x := newTerminal(t, 80, 24)
	var width atomic.Int64
	width.Store(80)
	var after string
	_, _ = screenOf(t, x, steps(at(100)), 0.2, func(o *Options) {
		resized := make(chan os.Signal, 1)
		o.Every, o.Resized = time.Hour, resized
		o.Size = func() (int, int) { return int(width.Load()), 24 }
		time.AfterFunc(100*time.Millisecond, func() { width.Store(30); resized <- os.Interrupt })
		time.AfterFunc(150*time.Millisecond, func() { after = x.text() })
	})
	for line := range strings.SplitSeq(after, "\n") {
		if Width(line) > 30 {
			t.Errorf("still wide: %q", line)
		}
	}
	if after == "" {
		t.Error("nothing shown")
	}
}

// A controller that goes away is told and waited for; what it said last stays.
func TestControllerGoesAway(t *testing.T) {
	x := newTerminal(t, 80, 24)
	got, err := screenOf(t, x, steps(at(100), nil), 5.5, nil)
	if !strings.Contains(got, "no news for 5 s: controller /c.sock: nobody listens there") || !strings.Contains(got, "imagenet@3") || !errors.Is(err, context.Canceled) {
		t.Errorf("%v\n%s", err, got)
	}
	x = newTerminal(t, 80, 24)
	if got, _ = screenOf(t, x, steps(at(100), nil, nil, at(900)), 4.5, nil); strings.Contains(got, "no news") || !strings.Contains(got, "90 %") {
		t.Errorf("it is back, but:\n%s", got)
	}
	// At the start there is nothing to show, and no screen to take.
	x = newTerminal(t, 80, 24)
	if _, err = screenOf(t, x, steps(nil), 0.5, nil); stoker.KindOf(err) != stoker.KindTransient || x.raw.Len() != 0 {
		t.Errorf("%v, %q", err, x.raw.String())
	}
}

// Whatever ends the view, the terminal is as it was.
func TestTerminalIsRestored(t *testing.T) {
	denied := stoker.Errorf(stoker.KindDenied, "status", "", "not you")
	for name, second := range map[string]func() (api.Status, error){
		"an error that stays": func() (api.Status, error) { return api.Status{}, denied },
		"a panic":             func() (api.Status, error) { panic("boom") },
	} {
		x := newTerminal(t, 80, 24)
		n := 0
		var err error
		func() {
			defer func() {
				if p := recover(); p != nil {
					err = fmt.Errorf("%v", p)
				}
			}()
			err = Run(t.Context(), Options{Out: x, Every: time.Millisecond, Screen: true, Size: func() (int, int) { return 80, 24 }, Fetch: func(context.Context) (api.Status, error) {
				if n++; n > 1 {
					return second()
				}
				return warming(1), nil
			}})
		}()
		if err == nil || n != 2 {
			t.Errorf("%s: %v after %d questions", name, err, n)
		}
		x.restored()
	}
}

// Ctrl-Z gives the terminal back until the user returns.
func TestSuspend(t *testing.T) {
	x := newTerminal(t, 80, 24)
	stopped := 0
	got, _ := screenOf(t, x, steps(at(100)), 0.5, func(o *Options) {
		suspend := make(chan os.Signal, 1)
		suspend <- os.Interrupt
		o.Suspend = suspend
		o.Stop = func() { stopped++; x.restored() }
	})
	if stopped != 1 || !strings.Contains(got, "imagenet@3") {
		t.Errorf("stopped %d times, then:\n%s", stopped, got)
	}
	x.restored()
}

// Elsewhere a block comes when something changed, and only then.
func TestBlocks(t *testing.T) {
	var out bytes.Buffer
	var notes []error
	plainly := func(o *Options) {
		o.Screen, o.Out = false, &out
		o.Note = func(err error) { notes = append(notes, err) }
	}
	same := warming(0)
	same.Workers[0].Reads = nil
	other := warming(0)
	other.Workers[0].Reads, other.Workers[0].UsedBytes = nil, 7*mib
	x := newTerminal(t, 80, 24)
	_, _ = screenOf(t, x, steps(&same, &same, &same, nil, nil, &other, &other), 9.5, plainly)
	if n := strings.Count(out.String(), "DATASET "); n != 2 {
		t.Errorf("%d blocks, want 2:\n%s", n, out.String())
	}
	if strings.Contains(out.String(), "\x1b") || len(notes) != 1 || !strings.Contains(out.String(), "7.0 MiB") {
		t.Errorf("notes %v, output:\n%s", notes, out.String())
	}
	out.Reset()
	_, _ = screenOf(t, x, steps(&same, &same, &other), 5.5, func(o *Options) {
		plainly(o)
		o.Encode = func(st api.Status) ([]byte, error) { b, err := json.Marshal(st); return append(b, '\n'), err }
	})
	if n := strings.Count(out.String(), "\n"); n != 2 {
		t.Errorf("%d lines of JSON, want 2:\n%s", n, out.String())
	}
}

func TestRates(t *testing.T) {
	r := &rates{}
	start := time.Unix(1000, 0)
	note := func(second int, key string, v int64) {
		r.Note(start.Add(time.Duration(second)*time.Second), map[string]int64{key: v})
	}
	note(0, "a", 1000)
	if r.PerSecond("a") != 0 {
		t.Error("a rate of one reading")
	}
	note(1, "a", 1100)
	note(3, "a", 1300)
	if got := r.PerSecond("a"); got != 100 {
		t.Errorf("rate %v, want 100", got)
	}
	for s := 4; s < 30; s++ {
		note(s, "a", 1300)
	}
	if got := r.PerSecond("a"); got != 0 {
		t.Errorf("rate %v long after it stopped", got)
	}
	if n := len(r.marks["a"]); n > 8 {
		t.Errorf("%d readings kept", n)
	}
	note(30, "a", 10) // evicted
	note(31, "a", 20)
	if got := r.PerSecond("a"); got != 10 {
		t.Errorf("rate %v after it went back, want 10", got)
	}
	note(32, "b", 1)
	if len(r.marks) != 1 {
		t.Error("a counter that is gone is kept")
	}
}

// A worker that restarted counts from 0: no rate falls out of that.
func TestRestartedWorker(t *testing.T) {
	before, after := warming(500), warming(500)
	after.Workers[0].Incarnation, after.Workers[0].Reads = 99, &api.ReadCounters{UFSBytes: 3 * mib}
	x := newTerminal(t, 80, 24)
	got, _ := screenOf(t, x, steps(&before, &after), 1.5, nil)
	if !strings.Contains(got, "UFS    3.0 MiB read, 0 B/s") {
		t.Errorf("%s", got)
	}
}

func TestOnly(t *testing.T) {
	st := warming(1)
	for _, c := range []struct {
		name, jobs, datasets string
		ok                   bool
	}{
		{"train-17", "train-17", "imagenet", true}, {"speech", "done-before", "speech", true}, {"empty", "", "empty", true}, {"nothing", "", "", false},
	} {
		got, ok := Only(st, c.name)
		var jobs, datasets []string
		for _, j := range got.Jobs {
			jobs = append(jobs, j.Job)
		}
		for _, d := range got.Datasets {
			datasets = append(datasets, d.Name)
		}
		if ok != c.ok || strings.Join(jobs, ",") != c.jobs || strings.Join(datasets, ",") != c.datasets || !slices.EqualFunc(got.Workers, st.Workers, func(a, b api.WorkerInfo) bool { return a.ID == b.ID }) {
			t.Errorf("%s: %v %v %v", c.name, ok, jobs, datasets)
		}
	}
}

// The last cell of a full line stays, whether or not something is below it.
func TestLastCellStays(t *testing.T) {
	first, second := warming(100), warming(150)
	first.Workers, second.Workers = first.Workers[:1], second.Workers[:1]
	for _, height := range []int{15, 24} { // all of it, and room to spare
		x := newTerminal(t, 79, height)
		got, _ := screenOf(t, x, steps(&first, &second), 1.5, nil)
		last := got[strings.LastIndexByte(got, '\n')+1:]
		if Width(last) != 79 || !strings.HasSuffix(last, "50.0 MiB/s") {
			t.Errorf("height %d: %q", height, last)
		}
	}
}
