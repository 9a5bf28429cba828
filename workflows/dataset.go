package workflows

import (
	"slices"
	"time"

	"go.temporal.io/sdk/workflow"

	"stoker.dev"
	"stoker.dev/activities"
	"stoker.dev/internal/api"
)

// DatasetInput names the data that a workflow is about.
type DatasetInput struct {
	Cluster    string
	Dataset    string
	Generation int
	Manifest   stoker.ID
	Window     time.Duration `json:",omitempty"` // see LoadInput
	Holders    []Holder      `json:",omitempty"` // of the run that this one continues
	Searchable bool          `json:",omitempty"` // see JobInput
	PausedBy   string        `json:",omitempty"` // of the run that this one continues
}

// Holder is a job that needs the data.
type Holder struct {
	Job, Owner, Run string
	Preload         bool          `json:",omitempty"`
	Leaves          bool          `json:",omitempty"` // see JoinInput
	Replicas        int           `json:",omitempty"`
	Leased          bool          `json:",omitempty"` // the workers know
	Served          bool          `json:",omitempty"` // told Ready or Failed
	Grace           time.Duration `json:",omitempty"` // see api.Lease
	Deep            bool          `json:",omitempty"` // served when every byte was read again
	Whole           bool          `json:",omitempty"` // see JoinInput
	Hinted          bool          `json:",omitempty"` // told whether there is space
	Deadline        time.Time     `json:",omitzero"`  // see JoinInput
	Priority        int           `json:",omitempty"` // likewise
	LimitBytes      int64         `json:",omitempty"` // likewise
	Select          string        `json:",omitempty"` // likewise
	Refused         bool          `json:",omitempty"` // it did not fit when it was tried last
	Nodes           []string      `json:",omitempty"` // likewise
	Auto            bool          `json:",omitempty"` // likewise
	Spread          bool          `json:",omitempty"` // Auto: its nodes have no room
}

// wholeVersion guards what an older release does not tell: where one took the
// join, as in a rolling update, no hints follow, and version 1 took no deadlines.
const wholeVersion = "whole-claim"

// Lease is what the workers are told of a holder of a manifest.
func (h Holder) Lease(id stoker.ID) api.Lease {
	return api.Lease{Holder: h.Job, Owner: h.Owner, Manifest: id, TTLSeconds: activities.LeaseTTL.Seconds(), GraceSeconds: h.Grace.Seconds()}
}

// DatasetState is a dataset as its workflow knows it.
type DatasetState struct {
	Dataset    string
	Generation int
	Manifest   stoker.ID
	State      string    // api.JobPlanned, JobQueued, JobWarming, JobReady or JobFailed
	Plan       stoker.ID `json:",omitzero"` // of the last round
	Parts      int       `json:",omitempty"`
	Copies     int       `json:",omitempty"` // of each shard, that it brings
	Select     string    `json:",omitempty"` // of its objects, that it brings; "" = all
	Nodes      []string  `json:",omitempty"` // workers that it brings all of the data to, sorted; none: shards are spread
	Why        string    `json:",omitempty"` // Queued: what is missing
	Holders    []Holder
	PausedBy   string `json:",omitempty"` // who wants no load now; "" = nobody
	Deep       bool   `json:",omitempty"` // all is there, and is read again
}

const (
	queuedEvery = 10 * time.Second // how often a claim that did not fit is tried again
	againAfter  = 2 * time.Second  // a worker went away: look who is left
	maxRounds   = 3                // plans made for one load before it has failed
)

type dataset struct {
	cluster string
	window  time.Duration
	search  bool // the namespace knows the attributes of search.go
	s       DatasetState
	changes int // joins and leaves so far
	loading bool
	leaving int // leases are being dropped of jobs that are no holders any more

	loader   *loader                        // of the load that runs, if it has no children
	children []workflow.ChildWorkflowFuture // of the load that runs
	deadline time.Time                      // that they know of; zero: none
	wished   api.LoadWish                   // that the workers were told
}

// Dataset is the life of one manifest's data while anybody needs it. Jobs
// join and leave it; those that want the same data share one load. It ends
// when nobody holds the data; what is resident stays until its space is needed.
func Dataset(ctx workflow.Context, in DatasetInput) error {
	d := &dataset{cluster: in.Cluster, window: in.Window, search: in.Searchable, s: DatasetState{
		Dataset: in.Dataset, Generation: in.Generation, Manifest: in.Manifest, State: api.JobPlanned, Holders: in.Holders, PausedBy: in.PausedBy}}
	d.wished.Manifest = in.Manifest
	if err := d.handle(ctx); err != nil {
		return err
	}
	showPhase(ctx, d.search, func() string { return d.s.State })
	// The join that started this run comes after its first step.
	if err := workflow.Await(ctx, func() bool { return d.changes > 0 || len(d.s.Holders) > 0 }); err != nil {
		return err
	}
	for {
		seen := d.changes
		pause := time.Duration(0)
		if d.waiting() && d.s.State == api.JobQueued {
			pause = queuedEvery
		}
		if err := d.idle(ctx, pause, seen); err != nil {
			return err
		}
		idle := workflow.AllHandlersFinished(ctx)
		switch {
		case len(d.s.Holders) == 0 && idle:
			return nil
		case workflow.GetInfo(ctx).GetContinueAsNewSuggested() && idle:
			in.Holders, in.PausedBy = d.s.Holders, d.s.PausedBy
			return workflow.NewContinueAsNewError(ctx, Dataset, in)
		case d.waiting():
			d.loading = true
			d.load(ctx)
			d.loading = false
		}
		d.showPause()
	}
}

// idle returns when there is something to do: a holder to serve, none left,
// or the time to try again.
func (d *dataset) idle(ctx workflow.Context, pause time.Duration, seen int) error {
	if pause > 0 {
		_, err := workflow.AwaitWithTimeout(ctx, pause, func() bool { return d.changes != seen })
		return err
	}
	return workflow.Await(ctx, func() bool {
		return d.waiting() || workflow.AllHandlersFinished(ctx) &&
			(len(d.s.Holders) == 0 || workflow.GetInfo(ctx).GetContinueAsNewSuggested())
	})
}

// waiting reports whether there is something to load: a holder waits to be told,
// and nobody wants a pause.
func (d *dataset) waiting() bool { return d.s.PausedBy == "" && d.unsettled() }

// unsettled reports whether a holder waits to be told.
func (d *dataset) unsettled() bool {
	return slices.ContainsFunc(d.s.Holders, func(h Holder) bool { return h.Leased && !h.Served })
}

func (d *dataset) handle(ctx workflow.Context) error {
	if err := workflow.SetQueryHandler(ctx, statusQuery, func() (DatasetState, error) { return d.s, nil }); err != nil {
		return err
	}
	if err := workflow.SetUpdateHandler(ctx, joinUpdate, d.join); err != nil {
		return err
	}
	if err := workflow.SetUpdateHandler(ctx, wishUpdate, d.wish); err != nil {
		return err
	}
	if err := workflow.SetUpdateHandler(ctx, pauseUpdate, d.pause); err != nil {
		return err
	}
	return workflow.SetUpdateHandler(ctx, leaveUpdate, d.leave)
}

// pause stops the load until it is resumed, with by "", or another job joins: who
// comes later did not agree to wait. When it answers, the load has stopped. What
// is resident stays, and stays leased.
func (d *dataset) pause(ctx workflow.Context, by string) (DatasetState, error) {
	d.changes++
	if by == "" {
		d.resume()
	} else {
		d.s.PausedBy = by
		d.showPause()
		if err := workflow.Await(ctx, func() bool { return !d.loading || d.s.PausedBy != by }); err != nil {
			return d.s, err
		}
		d.showPause()
	}
	return d.s, nil
}

func (d *dataset) resume() {
	if d.s.PausedBy != "" {
		d.s.PausedBy, d.s.State, d.s.Why = "", api.JobPlanned, ""
	}
}

// showPause lets users see why nothing moves.
func (d *dataset) showPause() {
	if d.s.PausedBy != "" && d.unsettled() {
		d.s.State, d.s.Why = api.JobQueued, "paused by "+d.s.PausedBy+": 'stoker preload "+d.s.Dataset+" --resume' goes on"
	}
}

func (d *dataset) find(job string) int {
	return slices.IndexFunc(d.s.Holders, func(h Holder) bool { return h.Job == job })
}

// join adds a holder. Its lease stands on the workers before a round counts
// what is resident for it: from then on nothing of that is evicted.
func (d *dataset) join(ctx workflow.Context, in activities.JoinInput) (string, error) {
	if i := d.find(in.Job); i >= 0 {
		d.s.Holders = slices.Delete(d.s.Holders, i, i+1) // an earlier run of the job that could not leave
	}
	h := Holder{Job: in.Job, Owner: in.Owner, Run: in.Run, Preload: in.Preload, Leaves: in.Leaves, Replicas: in.Replicas, Grace: in.Grace, Deep: in.Deep,
		Priority: in.Priority, LimitBytes: in.LimitBytes, Select: in.Select}
	if in.Preload && !in.Deadline.IsZero() && workflow.GetVersion(ctx, wishVersion, workflow.DefaultVersion, 1) != workflow.DefaultVersion {
		h.Deadline = in.Deadline
	}
	if in.Whole {
		v := workflow.GetVersion(ctx, wholeVersion, workflow.DefaultVersion, 2)
		if h.Whole = v != workflow.DefaultVersion; v >= 2 {
			h.Deadline = in.Deadline
		}
	}
	if len(in.Nodes) > 0 && workflow.GetVersion(ctx, layoutVersion, workflow.DefaultVersion, 1) != workflow.DefaultVersion {
		h.Nodes, h.Auto = in.Nodes, in.Auto
	}
	d.s.Holders = append(d.s.Holders, h)
	d.resume()
	d.changes++
	d.wished = d.s.Wish()
	lease := activities.LeaseInput{Leases: []api.Lease{h.Lease(d.s.Manifest)}, Partial: true, Wishes: []api.LoadWish{d.wished}}
	err := workflow.ExecuteActivity(briefly(ctx, 30*time.Second, 6), do.PutLeases, lease).Get(ctx, nil)
	i := d.find(in.Job)
	d.changes++
	switch {
	case i < 0: // it left meanwhile: what leave dropped may have come again
		return d.s.State, d.drop(ctx, in.Job)
	case err != nil:
		d.s.Holders = slices.Delete(d.s.Holders, i, i+1)
		return "", err
	}
	d.s.Holders[i].Leased = true
	if d.s.State == api.JobWarming {
		d.hint(ctx, Outcome{State: api.JobWarming}, d.met)
	}
	d.hurry(ctx)
	return d.s.State, nil
}

// earliest is the first deadline to come of those who wait to be told; zero: none.
func (d *dataset) earliest(now time.Time) (first time.Time) {
	for _, h := range d.s.Holders {
		if !h.Served && h.Deadline.After(now) && (first.IsZero() || h.Deadline.Before(first)) {
			first = h.Deadline
		}
	}
	return first
}

// hurry tells a load that runs of an earlier deadline than it was begun with.
func (d *dataset) hurry(ctx workflow.Context) {
	first := d.earliest(workflow.Now(ctx))
	if d.loader == nil && len(d.children) == 0 || first.IsZero() || !d.deadline.IsZero() && !first.Before(d.deadline) {
		return
	}
	d.deadline = first
	if d.loader != nil {
		d.loader.in.Deadline = first
	}
	for _, c := range d.children {
		if err := c.SignalChildWorkflow(ctx, hurrySignal, first).Get(ctx, nil); err != nil && !isCanceled(err) {
			workflow.GetLogger(ctx).Info("a load ended before it heard of a deadline", "dataset", d.s.Dataset, "manifest", d.s.Manifest.Short(), "error", err)
		}
	}
}

// returnBy is how long a lost worker is waited for: its window, or less if a
// deadline needs that. One that has passed needs nothing more.
func returnBy(now time.Time, window time.Duration, deadline time.Time) time.Time {
	if until := now.Add(window); !deadline.After(now) || deadline.After(until) {
		return until
	}
	return deadline
}

// hint tells claims of several datasets whether this one has its space, once.
// They wait for that no longer than for a turn: one that is lost does no harm.
func (d *dataset) hint(ctx workflow.Context, o Outcome, whose func(workflow.Context, *Holder) bool) {
	var told []workflow.Future
	for i := range d.s.Holders {
		if h := &d.s.Holders[i]; h.Whole && !h.Hinted && !h.Served && whose(ctx, h) {
			h.Hinted = true
			told = append(told, workflow.SignalExternalWorkflow(ctx, JobID(d.cluster, h.Job), "", newsSignal, news{Manifest: d.s.Manifest, Run: h.Run, Outcome: o}))
		}
	}
	for _, f := range told {
		_ = f.Get(ctx, nil) // a holder that is gone is noticed when it is served
	}
}

// leave removes a holder; when it answers, the workers have dropped its leases.
func (d *dataset) leave(ctx workflow.Context, in activities.LeaveInput) error {
	i := d.find(in.Job)
	if i < 0 {
		return workflow.Await(ctx, func() bool { return d.leaving == 0 })
	}
	if d.s.Holders[i].Run != in.Run {
		return nil
	}
	d.s.Holders = slices.Delete(d.s.Holders, i, i+1)
	d.changes++
	return d.drop(ctx, in.Job)
}

func (d *dataset) drop(ctx workflow.Context, jobs ...string) error {
	d.wished = d.s.Wish()
	in := activities.LeaseInput{Drop: jobs, Partial: true, Wishes: []api.LoadWish{d.wished}}
	return workflow.ExecuteActivity(briefly(ctx, 30*time.Second, 6), do.PutLeases, in).Get(ctx, nil)
}

// tell gives its outcome to a job. One whose workflow is gone holds nothing.
func (d *dataset) tell(ctx workflow.Context, job string, o Outcome) {
	n := news{Manifest: d.s.Manifest, Outcome: o}
	if i := d.find(job); i >= 0 && d.s.Holders[i].Whole {
		n.Run = d.s.Holders[i].Run
	}
	err := workflow.SignalExternalWorkflow(ctx, JobID(d.cluster, job), "", newsSignal, n).Get(ctx, nil)
	i := d.find(job)
	switch {
	case i < 0 || isCanceled(err):
	case err != nil:
		workflow.GetLogger(ctx).Warn("a holder is gone", "job", job, "dataset", d.s.Dataset, "manifest", d.s.Manifest.Short(), "error", err)
		d.s.Holders = slices.Delete(d.s.Holders, i, i+1)
		d.changes++
		_ = d.drop(ctx, job) // else its leases run out
	default:
		d.s.Holders[i].Served = true
	}
}
