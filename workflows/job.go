package workflows

import (
	"cmp"
	"time"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"stoker.dev"
	"stoker.dev/activities"
	"stoker.dev/internal/api"
)

// What a job does when its data is not there in time.
const (
	OnMissStart = "start"
	OnMissWait  = "wait"
	OnMissFail  = "fail"
)

// JobDataset is one dataset that a job claims, resolved.
type JobDataset struct {
	Name       string
	Generation int `json:",omitempty"` // 0: a URI, registered nowhere
	Manifest   stoker.ID
	Bytes      int64
	ListedAt   time.Time
	Dir        string `json:",omitempty"`
	Replicas   int    `json:",omitempty"` // of a claim that does not say
	Select     string `json:",omitempty"` // of its objects, which Bytes counts; see api.Selection
	Private    bool   `json:",omitempty"` // not everybody may read it
}

// JobInput is a claim.
type JobInput struct {
	Cluster, Job, Owner string
	Datasets            []JobDataset
	OnMiss              string
	Submitted           time.Time
	Deadline            time.Time `json:",omitzero"`  // zero: none
	Preload             bool      `json:",omitempty"` // released at Ready, refused if it does not fit
	Replicas            int       `json:",omitempty"`
	Nonce               string    `json:",omitempty"` // of the request
	Searchable          bool      `json:",omitempty"` // the namespace knows the attributes of search.go
	// TTL makes it a hook's claim, which nobody renews all the time: it lives
	// for so long after it was made or repeated. 0 = it has a life line.
	TTL time.Duration `json:",omitempty"`
	// Grace is how long after its end the job may come again; see api.Lease.
	Grace time.Duration `json:",omitempty"`
	// Deep: it is Ready when every byte was read again.
	Deep bool `json:",omitempty"`
	// Priority is that among the claims that wait for space, and of its loads among
	// others; the highest is first.
	Priority int `json:",omitempty"`
	// LimitBytes is what the loads of its datasets may read in a second; see api.LoadWish.
	LimitBytes int64 `json:",omitempty"`
	// Nodes are workers that are to have all of the data; none: it is spread. Auto:
	// spread will do if they have no room.
	Nodes []string `json:",omitempty"`
	Auto  bool     `json:",omitempty"`
	// Sampler is the order in which the job reads; "" = not known.
	Sampler string `json:",omitempty"`
}

func (in *JobInput) names() (names []string) {
	for _, d := range in.Datasets {
		names = append(names, d.Name)
	}
	return names
}

// Outcome is what has become of one dataset of a job.
type Outcome struct {
	State       string         // "" until known, then api.JobReady or api.JobFailed
	Certificate stoker.ID      `json:",omitzero"`
	Error       *api.ErrorBody `json:",omitempty"`
}

// JobState is a job as its workflow knows it.
type JobState struct {
	Input     JobInput
	State     string // api.JobPlanned until its datasets are settled
	Outcomes  []Outcome
	Cancelled bool           `json:",omitempty"` // released before its data was there
	Error     *api.ErrorBody `json:",omitempty"` // why it is Failed or Degraded
	Renewed   time.Time      `json:",omitzero"`  // a hook's claim: when it was made or repeated
	Ended     time.Time      `json:",omitzero"`  // when it was Released or Failed
	Queued    bool           `json:",omitempty"` // it holds nothing, and waits for space
}

// news is the signal by which a dataset's workflow tells a job.
type news struct {
	Manifest stoker.ID
	Run      string `json:",omitempty"` // of the join that it answers; "" = of any
	Left     bool   `json:",omitempty"` // the job holds the data no more
	Outcome
}

// holdSilence is how long a claim lives unrenewed, and again after that: one
// missed renewal alone may be an outage of ours. Both together end within the
// 60 s of the contract.
const holdSilence = 20 * time.Second

// hookVersion guards what an older release does not know: where one made the
// first step of a hook's claim, as in a rolling update, it has a life line.
const hookVersion = "hook-claim"

// holdID names the activity to renew.
const holdID = "hold"

func runOf(ctx workflow.Context) string { return workflow.GetInfo(ctx).WorkflowExecution.RunID }

type job struct {
	s        JobState
	changed  bool
	released bool
	started  bool
	late     bool
	over     bool
	left     map[stoker.ID]bool // manifests that it holds no more
	running  workflow.Context   // ends with the claim
	turns
}

// Job is one claim's life: it joins the workflows of its datasets, waits for
// them or for the deadline, holds the data while somebody renews the claim,
// and lets go whatever happens. It is the only thing that decides a job's state.
func Job(ctx workflow.Context, in JobInput) (JobState, error) {
	j := &job{s: JobState{Input: in, State: api.JobPlanned, Outcomes: make([]Outcome, len(in.Datasets))}, changed: true, left: map[stoker.ID]bool{}}
	if in.TTL > 0 {
		j.s.Renewed = workflow.Now(ctx)
	}
	err := workflow.SetQueryHandler(ctx, statusQuery, func() (JobState, error) { return j.s, nil })
	if err != nil {
		return j.s, err
	}
	showPhase(ctx, in.Searchable, func() string { return j.s.State })
	running, cancel := workflow.WithCancel(ctx)
	defer cancel()
	j.running = running
	if err := workflow.SetUpdateHandler(ctx, changeUpdate, j.change); err != nil {
		return j.s, err
	}
	j.listen(running)
	j.claim(running)
	for !j.over {
		if err := workflow.Await(ctx, func() bool { return j.changed }); err != nil {
			j.released = true // cancelled from outside
		}
		j.changed = false
		j.step()
	}
	j.s.Ended = workflow.Now(ctx)
	cancel()
	j.leave(ctx)
	return j.s, nil
}

// listen turns signals, the deadline and the lost life line into changes.
func (j *job) listen(ctx workflow.Context) {
	workflow.Go(ctx, func(ctx workflow.Context) {
		for {
			var n news
			workflow.GetSignalChannel(ctx, newsSignal).Receive(ctx, &n)
			if ctx.Err() != nil {
				return
			}
			j.hear(ctx, n)
		}
	})
	j.onSignal(ctx, releaseSignal, &j.released)
	j.onSignal(ctx, startedSignal, &j.started)
	switch {
	case j.s.Input.TTL > 0 && workflow.GetVersion(ctx, hookVersion, workflow.DefaultVersion, 1) != workflow.DefaultVersion:
		workflow.Go(ctx, j.repeated)
		workflow.Go(ctx, j.expire)
	case !j.s.Input.Preload:
		workflow.Go(ctx, j.hold)
	}
	if !j.s.Input.Deadline.IsZero() {
		workflow.Go(ctx, j.await)
	}
}

func (j *job) onSignal(ctx workflow.Context, name string, flag *bool) {
	workflow.Go(ctx, func(ctx workflow.Context) {
		workflow.GetSignalChannel(ctx, name).Receive(ctx, nil)
		if ctx.Err() == nil {
			*flag, j.changed = true, true
		}
	})
}

// repeated hears that a hook's claim was made again.
func (j *job) repeated(ctx workflow.Context) {
	for {
		workflow.GetSignalChannel(ctx, repeatSignal).Receive(ctx, nil)
		if ctx.Err() != nil {
			return
		}
		j.s.Renewed = workflow.Now(ctx)
	}
}

// expire ends a hook's claim that was not repeated for its time to live.
func (j *job) expire(ctx workflow.Context) {
	for {
		left := j.s.Renewed.Add(j.s.Input.TTL).Sub(workflow.Now(ctx))
		if left <= 0 {
			break
		}
		if workflow.Sleep(ctx, left) != nil {
			return
		}
	}
	j.released, j.changed = true, true
}

// hold keeps an activity open whose heartbeats are the claim's renewals. A
// silence that follows a long life may have been an outage of Temporal or of
// the controllers: it gets a second chance.
func (j *job) hold(ctx workflow.Context) {
	ctx = workflow.WithActivityOptions(ctx, workflow.ActivityOptions{
		ActivityID: holdID, StartToCloseTimeout: 365 * 24 * time.Hour, HeartbeatTimeout: holdSilence,
		RetryPolicy: &temporal.RetryPolicy{MaximumAttempts: 1},
	})
	for silent := 0; silent < 2 && ctx.Err() == nil; silent++ {
		began := workflow.Now(ctx)
		_ = workflow.ExecuteActivity(ctx, do.Hold).Get(ctx, nil) // it ends by silence alone
		if workflow.Now(ctx).Sub(began) > 2*holdSilence {
			silent = 0
		}
	}
	if ctx.Err() == nil {
		j.released, j.changed = true, true
	}
}

// hear takes what a dataset's workflow tells: an outcome, or whether it has its space.
func (j *job) hear(ctx workflow.Context, n news) {
	if n.Run != "" && n.Run != j.run(ctx) {
		return // of a try that was given up
	}
	for i, d := range j.s.Input.Datasets {
		switch {
		case d.Manifest != n.Manifest:
		case n.State == api.JobWarming:
			j.granted[d.Manifest] = true
		case n.State == api.JobQueued:
			j.refused = n.Error
		default:
			j.s.Outcomes[i], j.changed = n.Outcome, true
			if n.Left {
				j.left[n.Manifest] = true
			}
		}
	}
}

// join makes the job a holder of each of its datasets.
func (j *job) join(ctx workflow.Context) {
	in := &j.s.Input
	for i, d := range in.Datasets {
		j.joining++
		workflow.Go(ctx, func(ctx workflow.Context) {
			defer func() { j.joining-- }()
			err := workflow.ExecuteActivity(briefly(ctx, time.Minute, 6), do.Join, activities.JoinInput{
				Dataset: d.Name, Generation: d.Generation, Manifest: d.Manifest, Job: in.Job, Owner: in.Owner,
				Run: j.run(ctx), Preload: in.Preload, Leaves: in.Preload && len(in.Datasets) == 1, Replicas: cmp.Or(in.Replicas, d.Replicas), Grace: in.Grace, Deep: in.Deep, Whole: j.whole, Deadline: in.Deadline,
				Priority: in.Priority, LimitBytes: in.LimitBytes, Select: d.Select,
				Nodes: j.nodes(), Auto: in.Auto,
			}).Get(ctx, nil)
			if err != nil && ctx.Err() == nil {
				j.s.Outcomes[i], j.changed = Outcome{State: api.JobFailed, Error: errorBody(err)}, true
			}
		})
	}
}

// nodes are those that are to have all of the data.
func (j *job) nodes() []string {
	if j.spread {
		return nil
	}
	return j.s.Input.Nodes
}

// leave lets go, whatever became of the job. It goes on until it is done.
func (j *job) leave(ctx workflow.Context) {
	ctx, cancel := workflow.NewDisconnectedContext(ctx)
	defer cancel()
	j.letGo(ctx)
	if j.s.Queued {
		j.dequeue(ctx)
	}
}

// letGo ends the job's hold on its datasets.
func (j *job) letGo(ctx workflow.Context) {
	var leaving []workflow.Future
	var names []string
	for _, d := range j.s.Input.Datasets {
		if j.left[d.Manifest] {
			continue
		}
		names = append(names, d.Name)
		leaving = append(leaving, workflow.ExecuteActivity(insisting(ctx), do.Leave,
			activities.LeaveInput{Manifest: d.Manifest, Job: j.s.Input.Job, Run: j.run(ctx)}))
	}
	for i, f := range leaving {
		if err := f.Get(ctx, nil); err != nil {
			workflow.GetLogger(ctx).Error("a claim could not be let go; its leases run out", "job", j.s.Input.Job, "dataset", names[i], "error", err)
		}
	}
}

// step is the state machine: what is known decides the state.
func (j *job) step() {
	ready, failed := 0, -1
	for i, o := range j.s.Outcomes {
		switch o.State {
		case api.JobReady:
			ready++
		case api.JobFailed:
			failed = i
		}
	}
	in := &j.s.Input
	switch all := ready == len(j.s.Outcomes); {
	case j.released:
		j.s.Cancelled = !all && j.s.State == api.JobPlanned
		j.end(api.JobReleased, nil)
	case failed >= 0 && (in.Preload || in.OnMiss != OnMissStart && !j.started): // what runs is not stopped
		j.end(api.JobFailed, j.s.Outcomes[failed].Error)
	case failed >= 0:
		j.s.State, j.s.Error = api.JobDegraded, j.s.Outcomes[failed].Error
	case all && in.Preload:
		j.end(api.JobReleased, nil)
	case all && j.s.State != api.JobDegraded:
		j.s.State = api.JobReady
		if j.started {
			j.s.State = api.JobLeased
		}
	case !all && j.late && in.OnMiss == OnMissFail && !j.started:
		j.end(api.JobFailed, api.ErrorOf(stoker.Errorf(stoker.KindDeadline, "job", in.Job, "its data was not ready at the deadline, %s after submission",
			in.Deadline.Sub(in.Submitted).Round(time.Millisecond))))
	case !all && j.late && in.OnMiss == OnMissStart:
		j.s.State = api.JobDegraded
	}
}

func (j *job) end(state string, why *api.ErrorBody) { j.s.State, j.s.Error, j.over = state, why, true }
