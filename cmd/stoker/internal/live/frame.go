package live

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"stoker.dev/internal/api"
)

// view is what one drawing shows.
type view struct {
	source string // who was asked
	at     time.Time
	status api.Status
	rates  *rates
	stale  error     // why status is not of now
	since  time.Time // when status was of now
	glyphs Glyphs
	color  bool
	cells  int // of a bar
}

const (
	leastBar   = 4
	mostBar    = 24
	datasetMin = 12 // cells that a name keeps, however narrow it gets
	minWidth   = 20
)

// How wide numbers get: columns do not move while they grow.
const (
	bytesRoom   = 9  // 999.9 MiB
	rateRoom    = 11 // 999.9 MiB/s
	percentRoom = 5  // 100 %
	etaRoom     = 6  // 59 min
	stateRoom   = 8  // resident
)

// section is a table with a hint for when it is empty.
type section struct {
	table *Table
	rows  int
	empty string
}

// Screen draws the view for a terminal: at most width cells wide and height
// lines high. What does not fit is counted.
func (v *view) Screen(width, height int) []string {
	width = max(width, minWidth)
	v.cells = min(max(width/6-1, leastBar), mostBar)
	lines := v.head(width)
	sections := []section{v.datasets(), v.jobs(), v.workers()}
	room := height - len(lines) - 3*len(sections) // a blank, a head and one line each
	shares := share(room+len(sections), sections)
	for i, s := range sections {
		lines = append(lines, "")
		lines = append(lines, v.section(s, width, shares[i])...)
	}
	if len(lines) > height {
		lines = lines[:max(height, 0)]
	}
	return lines
}

// Block draws the view for a log or a pipe: all of it, as wide as it is.
func (v *view) Block() []string {
	v.cells = 12
	var lines []string
	for i, s := range []section{v.datasets(), v.jobs(), v.workers()} {
		if i > 0 {
			lines = append(lines, "")
		}
		lines = append(lines, s.table.Lines(0, false)...)
	}
	lines = append(lines, "", v.totals())
	for _, text := range v.badDisks() {
		lines = append(lines, "disks  "+text)
	}
	return lines
}

// share gives each section the lines it needs, as far as there are any: those
// that need little get it all, the others the same.
func share(room int, sections []section) []int {
	out := make([]int, len(sections))
	for ; room > 0; room-- {
		least := -1
		for i, s := range sections {
			if out[i] < max(1, s.rows) && (least < 0 || out[i] < out[least]) {
				least = i
			}
		}
		if least < 0 {
			break
		}
		out[least]++
	}
	return out
}

// section draws the head and at most n lines.
func (v *view) section(s section, width, n int) []string {
	if s.rows == 0 {
		text := Cut(s.empty, width)
		if v.color {
			text = Dim(text)
		}
		return []string{text}
	}
	all := s.table.Lines(width, v.color)
	if s.rows <= n {
		return all
	}
	shown := max(0, n-1)
	more := Cut(fmt.Sprintf("… and %d more", s.rows-shown), width)
	if v.color {
		more = Dim(more)
	}
	return append(all[:1+shown:1+shown], more)
}

// head is what stands above the tables.
func (v *view) head(width int) []string {
	clock := v.at.Format("15:04:05")
	title := "stoker status"
	if room := width - Width(title) - len(clock) - 4; room >= 8 {
		source := Cut(Printable(v.source), room)
		title += "  " + source
	}
	title += strings.Repeat(" ", max(1, width-Width(title)-len(clock))) + clock
	title = Cut(title, width)
	if v.color {
		title = Bold(title)
	}
	lines := []string{title}
	if v.stale != nil {
		text := Cut(fmt.Sprintf("no news for %s: %s", Span(v.at.Sub(v.since)), Printable(v.stale.Error())), width)
		if v.color {
			text = Yellow(text)
		}
		lines = append(lines, text)
	}
	lines = append(lines, v.cache(width), Cut(v.totals(), width))
	if bad := v.badDisks(); len(bad) > 0 {
		more := ""
		if len(bad) > 1 {
			more = fmt.Sprintf("%d disks, ", len(bad))
		}
		text := Cut("disks  "+more+bad[0], width)
		if v.color {
			text = Red(text)
		}
		lines = append(lines, text)
	}
	return lines
}

// cache sums the workers' space up.
func (v *view) cache(width int) string {
	var used, reserved, capacity int64
	count := map[string]int{}
	for _, w := range v.status.Workers {
		if count[w.State]++; w.State == api.WorkerLive {
			used, reserved, capacity = used+w.UsedBytes, reserved+w.ReservedBytes, capacity+w.CapacityBytes
		}
	}
	workers := fmt.Sprintf("%d live", count[api.WorkerLive])
	for _, state := range []string{api.WorkerDraining, api.WorkerDrained, api.WorkerLost} {
		if count[state] > 0 {
			workers += fmt.Sprintf(", %d %s", count[state], state)
		}
	}
	t := Table{Columns: []Column{{Head: "cache"}, {Head: ""}, {Head: ""}, {Head: "", Min: 1}}}
	t.Row("cache", v.glyphs.Bar(used, reserved, capacity, v.cells),
		fmt.Sprintf("%s of %s", api.HumanBytes(used), api.HumanBytes(capacity)), "workers  "+workers)
	return t.Lines(width, v.color)[1]
}

// totals sums up what was read from where. The counters are the workers' own,
// of their present life.
func (v *view) totals() string {
	var ufs, peer int64
	var ufsRate, peerRate float64
	for _, w := range v.status.Workers {
		r := reads(w)
		ufs, peer = ufs+r.UFSBytes, peer+r.PeerBytes
		ufsRate += v.rates.PerSecond(ufsKey(w))
		peerRate += v.rates.PerSecond(peerKey(w))
	}
	return fmt.Sprintf("UFS    %s read, %s    peers  %s read, %s",
		api.HumanBytes(ufs), cmp.Or(rate(ufsRate), "0 B/s"), api.HumanBytes(peer), cmp.Or(rate(peerRate), "0 B/s"))
}

// badDisks says in a line each what is wrong with disks.
func (v *view) badDisks() []string {
	var out []string
	for _, d := range BadDisks(v.status.Workers) {
		out = append(out, Printable(fmt.Sprintf("%s of %s: %s: %s", d.State, ShortID(d.Worker), d.Dir, d.Reason)))
	}
	return out
}

func (v *view) datasets() section {
	t := &Table{Columns: []Column{
		{Head: "DATASET", Min: datasetMin}, {Head: "RESIDENT"}, {Head: "BYTES", Right: true, Room: bytesRoom}, {Head: "%", Right: true, Room: percentRoom},
		{Head: "STATE", Min: 5, Room: stateRoom}, {Head: "RATE", Right: true, Room: rateRoom}, {Head: "ETA", Right: true, Room: etaRoom},
	}}
	list := slices.Clone(v.status.Datasets)
	states := map[string]string{}
	for _, d := range list {
		states[d.Name] = datasetState(d, v.status.Jobs)
	}
	slices.SortStableFunc(list, func(a, b api.DatasetInfo) int { return urgency(states[a.Name]) - urgency(states[b.Name]) })
	for _, d := range list {
		perSecond := v.rates.PerSecond(residentKey(d))
		left, eta := d.Bytes-d.ResidentBytes, ""
		if left <= 0 {
			perSecond = 0 // what it was is of no use any more
		} else if perSecond >= 1 {
			eta = ETA(float64(left) / perSecond)
		}
		t.Row(Generation(d.Name, d.Generation), v.glyphs.Bar(d.ResidentBytes, 0, d.Bytes, v.cells), api.HumanBytes(d.Bytes),
			percentCell(d.ResidentBytes, d.Bytes), State(states[d.Name]), rate(perSecond), eta)
	}
	return section{t, len(list), "no datasets: 'stoker dataset add NAME URI' registers one"}
}

// datasetState says what goes on with a dataset: what a job does with it, else
// how much of it is there.
func datasetState(d api.DatasetInfo, jobs []api.JobLine) string {
	state := ""
	switch {
	case d.ResidentBytes >= d.Bytes:
		state = "resident"
	case d.ResidentBytes > 0:
		state = "partial"
	}
	for _, j := range jobs {
		active := j.State == api.JobWarming || j.State == api.JobQueued || j.State == api.JobPlanned
		if active && slices.Contains(j.Datasets, d.Name) && state != "resident" && urgency(j.State) < urgency(state) {
			state = j.State
		}
	}
	return state
}

// urgency sorts states: what moves first, what has ended last.
func urgency(state string) int {
	order := []string{api.JobWarming, api.JobQueued, api.JobPlanned, api.JobDegraded, api.JobLeased, api.JobReady, api.JobGrace,
		"partial", "resident", "", api.JobFailed, api.JobReleased}
	if i := slices.Index(order, state); i >= 0 {
		return i
	}
	return len(order)
}

func (v *view) jobs() section {
	t := &Table{Columns: []Column{
		{Head: "JOB", Min: 12}, {Head: "STATE", Min: 5, Room: stateRoom}, {Head: "OWNER", Min: 4}, {Head: "DATASETS", Min: datasetMin},
		{Head: "RESIDENT"}, {Head: "%", Right: true, Room: percentRoom}, {Head: "ETA", Right: true, Room: etaRoom},
	}}
	list := slices.Clone(v.status.Jobs)
	slices.SortStableFunc(list, func(a, b api.JobLine) int { return urgency(a.State) - urgency(b.State) })
	for _, j := range list {
		eta := ""
		if !api.Settled(j.State) {
			eta = ETA(j.ETASeconds)
		}
		t.Row(j.Job, State(j.State), j.Owner, strings.Join(j.Datasets, ","),
			v.glyphs.Bar(j.ResidentBytes, 0, j.Bytes, v.cells), percentCell(j.ResidentBytes, j.Bytes), eta)
	}
	return section{t, len(list), "no jobs: 'stoker submit' and 'stoker preload' make some"}
}

func (v *view) workers() section {
	t := &Table{Columns: []Column{
		{Head: "WORKER", Min: 8}, {Head: "STATE", Room: 5}, {Head: "SPACE"}, {Head: "USED", Right: true, Room: bytesRoom}, {Head: "RESERVED", Right: true, Room: bytesRoom},
		{Head: "CAPACITY", Right: true, Room: bytesRoom}, {Head: "UFS/S", Right: true, Room: rateRoom},
	}}
	for _, w := range v.status.Workers {
		t.Row(ShortID(w.ID), State(w.State), v.glyphs.Bar(w.UsedBytes, w.ReservedBytes, w.CapacityBytes, v.cells),
			api.HumanBytes(w.UsedBytes), api.HumanBytes(w.ReservedBytes), api.HumanBytes(w.CapacityBytes), rate(v.rates.PerSecond(ufsKey(w))))
	}
	return section{t, len(v.status.Workers), "no workers: start 'stokerd worker' on the nodes"}
}
