package workflows

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"go.temporal.io/api/common/v1"
	"go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/converter"
	sdklog "go.temporal.io/sdk/log"
	"go.temporal.io/sdk/temporal"

	"stoker.dev"
	"stoker.dev/activities"
	"stoker.dev/cache/manifest"
	"stoker.dev/internal/api"
)

var _ activities.Joiner = (*Client)(nil)

// ClientOptions say where Temporal is. Several clusters may share one.
type ClientOptions struct {
	Address   string // host:port
	Namespace string // "" = default
	Cluster   string // part of all workflow ids and of the task queue
	// ReturnWindow is how long a load waits for a worker that went away before
	// others fetch again what it had.
	ReturnWindow time.Duration
	TLS          *tls.Config // nil = none, or the system's CAs with an APIKey
	// APIKey is asked for each request; nil = none. It may be called from any
	// goroutine.
	APIKey func(context.Context) (string, error)
	Log    *slog.Logger
}

// Client starts, asks and tells workflows. Its methods may be called from any
// goroutine. A Temporal that does not answer is Transient.
type Client struct {
	temporal  client.Client
	address   string
	namespace string
	cluster   string
	window    time.Duration
	log       *slog.Logger

	searchable atomic.Bool // the namespace knows the attributes: see search.go
}

// NewClient makes a client; it does not connect.
func NewClient(o ClientOptions) (*Client, error) {
	if _, _, err := net.SplitHostPort(strings.TrimPrefix(o.Address, "dns:///")); err != nil {
		return nil, stoker.Errorf(stoker.KindInvalid, "temporal", o.Address, "is no address: write host:port")
	}
	co := client.Options{
		HostPort: o.Address, Namespace: o.Namespace, Logger: quiet{sdklog.NewStructuredLogger(o.Log)},
		ConnectionOptions: client.ConnectionOptions{TLS: o.TLS},
	}
	if o.APIKey != nil {
		co.Credentials = client.NewAPIKeyDynamicCredentials(o.APIKey)
	}
	t, err := client.NewLazyClient(co)
	if err != nil {
		return nil, stoker.Errorf(stoker.KindInvalid, "temporal", o.Address, "%w", err)
	}
	return &Client{temporal: t, address: o.Address, namespace: cmp.Or(o.Namespace, client.DefaultNamespace), cluster: o.Cluster, window: o.ReturnWindow, log: o.Log}, nil
}

// quiet logs what the SDK thinks worth a warning or more: its other lines
// tell of each workflow task.
type quiet struct{ sdklog.Logger }

func (quiet) Debug(string, ...any) {}
func (quiet) Info(string, ...any)  {}

// ReturnWindow is ClientOptions.ReturnWindow.
func (c *Client) ReturnWindow() time.Duration { return c.window }

// Close closes the connection.
func (c *Client) Close() { c.temporal.Close() }

func (c *Client) queue() string { return "stoker-" + c.cluster }

// JobID is the id of a job's workflow.
func JobID(cluster, job string) string { return "job-" + cluster + "-" + job }

func (c *Client) datasetID(id stoker.ID) string { return "dataset-" + c.cluster + "-" + id.String() }

// options are those of every start: what runs already is joined, what has
// ended may begin anew.
func (c *Client) options(id string) client.StartWorkflowOptions {
	return client.StartWorkflowOptions{
		ID: id, TaskQueue: c.queue(),
		WorkflowIDConflictPolicy: enums.WORKFLOW_ID_CONFLICT_POLICY_USE_EXISTING,
		WorkflowIDReusePolicy:    enums.WORKFLOW_ID_REUSE_POLICY_ALLOW_DUPLICATE,
	}
}

// told gives an error of the client its kind. A Temporal that is being stopped
// ends calls with errors of no type, such as its own "context canceled": while
// the caller waits, that is no more than a service away.
func (c *Client) told(ctx context.Context, op, key string, err error) error {
	var missing *serviceerror.NotFound
	var invalid *serviceerror.InvalidArgument
	var denied *serviceerror.PermissionDenied
	switch {
	case err == nil:
		return nil
	case errors.As(err, &missing):
		return stoker.Errorf(stoker.KindNotExist, op, key, "is not known, or has ended")
	case errors.As(err, &invalid), errors.As(err, &denied):
		return stoker.Errorf(stoker.KindInternal, op, key, "%w", err)
	case errors.Is(ctx.Err(), context.Canceled) && (errors.Is(err, context.Canceled) || !ofWorkflow(err)):
		return context.Canceled // what the call came to is nobody's concern any more
	}
	var service serviceerror.ServiceError
	if errors.As(err, &service) || errors.Is(err, context.DeadlineExceeded) {
		return stoker.Errorf(stoker.KindTransient, op, key, "Temporal at %s does not answer as it should: %w", c.address, err)
	}
	if ctx.Err() == nil && !ofWorkflow(err) {
		return stoker.Errorf(stoker.KindTransient, op, key, "Temporal at %s does not answer: %v", c.address, err)
	}
	return activities.FromTemporal(op, key, err)
}

// ofWorkflow reports whether an error is what a workflow or an update came to,
// as opposed to that of a call.
func ofWorkflow(err error) bool {
	var (
		execution *temporal.WorkflowExecutionError
		app       *temporal.ApplicationError
		canceled  *temporal.CanceledError
		timeout   *temporal.TimeoutError
		ended     *temporal.TerminatedError
		panicked  *temporal.PanicError
		own       *stoker.Error
	)
	return errors.As(err, &execution) || errors.As(err, &app) || errors.As(err, &canceled) || errors.As(err, &timeout) ||
		errors.As(err, &ended) || errors.As(err, &panicked) || errors.As(err, &own)
}

// StartJob begins a job, or finds it running.
func (c *Client) StartJob(ctx context.Context, in JobInput) error {
	in.Cluster, in.Searchable = c.cluster, c.searchable.Load()
	o := c.options(JobID(c.cluster, in.Job))
	o.TypedSearchAttributes = attributes(in.Searchable, in.Job, in.names()...)
	o.EnableEagerStart = true // its first step is taken here, without a poll
	_, err := c.temporal.ExecuteWorkflow(ctx, o, jobWorkflow, in)
	if c.notSearchable(err) {
		return c.StartJob(ctx, in)
	}
	return c.told(ctx, "job", in.Job, err)
}

// JobState asks a job, running or ended within Temporal's retention.
func (c *Client) JobState(ctx context.Context, job string) (JobState, error) {
	return c.jobState(ctx, JobID(c.cluster, job), "")
}

func (c *Client) jobState(ctx context.Context, id, run string) (s JobState, err error) {
	job := id[len(JobID(c.cluster, "")):]
	v, err := c.temporal.QueryWorkflow(ctx, id, run, statusQuery)
	if err != nil {
		return s, c.told(ctx, "job", job, err)
	}
	return s, activities.FromTemporal("job", job, v.Get(&s))
}

// Release ends a claim. One that has ended is fine.
func (c *Client) Release(ctx context.Context, job string) error {
	err := c.told(ctx, "job", job, c.temporal.SignalWorkflow(ctx, JobID(c.cluster, job), "", releaseSignal, nil))
	if stoker.KindOf(err) == stoker.KindNotExist {
		return nil
	}
	return err
}

// Wait returns when a job's workflow has ended, with all it held let go.
func (c *Client) Wait(ctx context.Context, job string) error {
	return c.told(ctx, "job", job, c.temporal.GetWorkflow(ctx, JobID(c.cluster, job), "").Get(ctx, nil))
}

// Started tells a job that its command runs.
func (c *Client) Started(ctx context.Context, job string) error {
	return c.told(ctx, "job", job, c.temporal.SignalWorkflow(ctx, JobID(c.cluster, job), "", startedSignal, nil))
}

// Repeat tells a hook's claim that it was made again: its time to live begins
// anew. NotExist says that it has ended.
func (c *Client) Repeat(ctx context.Context, job string) error {
	return c.told(ctx, "job", job, c.temporal.SignalWorkflow(ctx, JobID(c.cluster, job), "", repeatSignal, nil))
}

// Renew keeps a claim alive; NotExist says that it has ended.
func (c *Client) Renew(ctx context.Context, job string) error {
	id := JobID(c.cluster, job)
	err := c.temporal.RecordActivityHeartbeatByID(ctx, c.namespace, id, "", holdID)
	var missing *serviceerror.NotFound
	if !errors.As(err, &missing) {
		return c.told(ctx, "job", job, err)
	}
	// Between two tries of the activity there is none to renew.
	d, err := c.temporal.DescribeWorkflowExecution(ctx, id, "")
	if err != nil {
		return c.told(ctx, "job", job, err)
	}
	if d.WorkflowExecutionInfo.Status != enums.WORKFLOW_EXECUTION_STATUS_RUNNING {
		return stoker.Errorf(stoker.KindNotExist, "job", job, "its claim has ended")
	}
	return nil
}

// Join makes a job a holder of a dataset, whose workflow begins if need be.
func (c *Client) Join(ctx context.Context, in activities.JoinInput) error {
	o, searchable := c.options(c.datasetID(in.Manifest)), c.searchable.Load()
	o.TypedSearchAttributes = attributes(searchable, "", in.Dataset)
	start := c.temporal.NewWithStartWorkflowOperation(o, datasetWorkflow,
		DatasetInput{Cluster: c.cluster, Dataset: in.Dataset, Generation: in.Generation, Manifest: in.Manifest, Window: c.window, Searchable: searchable})
	h, err := c.temporal.UpdateWithStartWorkflow(ctx, client.UpdateWithStartWorkflowOptions{
		StartWorkflowOperation: start,
		UpdateOptions: client.UpdateWorkflowOptions{
			UpdateID: "join-" + in.Run, UpdateName: joinUpdate, Args: []any{in}, WaitForStage: client.WorkflowUpdateStageCompleted,
		},
	})
	if err == nil {
		err = h.Get(ctx, nil)
	}
	if c.notSearchable(err) {
		return c.Join(ctx, in)
	}
	return c.updated(ctx, "join", in.Dataset, err)
}

// Leave ends that. A dataset's workflow that has ended has no holders.
func (c *Client) Leave(ctx context.Context, in activities.LeaveInput) error {
	h, err := c.temporal.UpdateWorkflow(ctx, client.UpdateWorkflowOptions{
		WorkflowID: c.datasetID(in.Manifest), UpdateID: "leave-" + in.Run, UpdateName: leaveUpdate, Args: []any{in},
		WaitForStage: client.WorkflowUpdateStageCompleted,
	})
	if err == nil {
		err = h.Get(ctx, nil)
	}
	if err = c.updated(ctx, "leave", in.Manifest.Short(), err); stoker.KindOf(err) == stoker.KindNotExist {
		return nil
	}
	return err
}

// updated is told for updates: a workflow that ended under one is no reason
// to give up, the next try begins a new one.
func (c *Client) updated(ctx context.Context, op, key string, err error) error {
	err = c.told(ctx, op, key, err)
	if err != nil && op == "join" && stoker.KindOf(err) != stoker.KindInvalid {
		return stoker.Errorf(stoker.KindTransient, op, key, "%w", err)
	}
	return err
}

// Pause stops the load of a manifest until it is resumed, by "", or another job
// joins. NotExist if nobody holds the data.
func (c *Client) Pause(ctx context.Context, id stoker.ID, by string) (s DatasetState, err error) {
	h, err := c.temporal.UpdateWorkflow(ctx, client.UpdateWorkflowOptions{
		WorkflowID: c.datasetID(id), UpdateName: pauseUpdate, Args: []any{by}, WaitForStage: client.WorkflowUpdateStageCompleted,
	})
	if err == nil {
		err = h.Get(ctx, &s)
	}
	return s, c.updated(ctx, "pause", id.Short(), err)
}

// DatasetState asks a dataset's workflow; NotExist if nobody holds the data.
func (c *Client) DatasetState(ctx context.Context, id stoker.ID) (DatasetState, error) {
	return c.datasetState(ctx, c.datasetID(id))
}

func (c *Client) datasetState(ctx context.Context, id string) (s DatasetState, err error) {
	v, err := c.temporal.QueryWorkflow(ctx, id, "", statusQuery)
	if err != nil {
		return s, c.told(ctx, "dataset", id, err)
	}
	return s, activities.FromTemporal("dataset", id, v.Get(&s))
}

// maxListed bounds one list of workflows.
const maxListed = 1000

// list names the workflows of a kind, the newest first.
func (c *Client) list(ctx context.Context, name, more string, limit int, each func(id, run string, running bool)) error {
	query := fmt.Sprintf("WorkflowType = '%s' AND TaskQueue = '%s' AND %s", name, c.queue(), more)
	var next []byte
	for n := 0; n < limit; {
		page, err := c.temporal.ListWorkflow(ctx, &workflowservice.ListWorkflowExecutionsRequest{
			Query: query, PageSize: int32(min(limit-n, 200)), NextPageToken: next,
		})
		if err != nil {
			return c.told(ctx, "list", name, err)
		}
		for _, e := range page.Executions {
			each(e.Execution.WorkflowId, e.Execution.RunId, e.Status == enums.WORKFLOW_EXECUTION_STATUS_RUNNING)
		}
		n += len(page.Executions)
		if next = page.NextPageToken; len(next) == 0 || len(page.Executions) == 0 {
			break
		}
	}
	return nil
}

// Jobs asks all running jobs, and the last ended ones.
func (c *Client) Jobs(ctx context.Context, ended int) ([]JobState, error) {
	type execution struct{ id, run string }
	var all []execution
	add := func(id, run string, _ bool) { all = append(all, execution{id, run}) }
	if err := c.list(ctx, jobWorkflow, "ExecutionStatus = 'Running'", maxListed, add); err != nil {
		return nil, err
	}
	if err := c.list(ctx, jobWorkflow, "ExecutionStatus != 'Running'", ended, add); err != nil {
		return nil, err
	}
	var out []JobState
	seen := map[string]bool{} // a job's last run hides those before
	for _, e := range all {
		if seen[e.id] {
			continue
		}
		seen[e.id] = true
		s, err := c.jobState(ctx, e.id, e.run)
		if stoker.KindOf(err) == stoker.KindTransient {
			return nil, err
		} else if err == nil { // else it is just ending, or too old
			out = append(out, s)
		}
	}
	return out, nil
}

// Ended asks the jobs that ended last, each run of them, the newest first: as long
// as Temporal keeps them.
func (c *Client) Ended(ctx context.Context, limit int) (out []JobState, err error) {
	type execution struct{ id, run string }
	var all []execution
	err = c.list(ctx, jobWorkflow, "ExecutionStatus != 'Running'", limit, func(id, run string, _ bool) { all = append(all, execution{id, run}) })
	for _, e := range all {
		s, serr := c.jobState(ctx, e.id, e.run)
		if serr != nil && stoker.KindOf(serr) == stoker.KindTransient {
			return nil, serr
		} else if serr == nil { // else its retention has just ended
			out = append(out, s)
		}
	}
	return out, err
}

// Datasets asks all datasets that are held.
func (c *Client) Datasets(ctx context.Context) ([]DatasetState, error) {
	var ids []string
	err := c.list(ctx, datasetWorkflow, "ExecutionStatus = 'Running'", maxListed, func(id, _ string, _ bool) { ids = append(ids, id) })
	if err != nil {
		return nil, err
	}
	var out []DatasetState
	for _, id := range ids {
		s, err := c.datasetState(ctx, id)
		if stoker.KindOf(err) == stoker.KindTransient {
			return nil, err
		} else if err == nil {
			out = append(out, s)
		}
	}
	return out, nil
}

// Follow is told of a listing that somebody waits for.
type Follow struct {
	Begun    func(run string) // before anything else; may be nil
	Progress func(api.ListProgress)
}

// AddDataset lists and registers a dataset, or follows an add of the same name
// that runs, whosever it is: the registry says who has the name then. The add of
// this very request, by its nonce, is cancelled with ctx, unless ctx ends because this process is being
// stopped: whoever asked asks another one, which goes on with it. If whoever
// began it cancels it, who joined it begins it anew.
func (c *Client) AddDataset(ctx context.Context, d manifest.Dataset, progress func(api.ListProgress)) (f activities.Frozen, err error) {
	o := c.options(c.catalogID(d.Name))
	o.Memo = map[string]any{nonceMemo: d.Nonce}
	for range 2 {
		run, err := c.beginWith(ctx, o, catalogWorkflow, d.Name, d, true)
		if err != nil {
			return f, err
		}
		own, err := c.hasNonce(ctx, run, d.Name, d.Nonce)
		if err != nil {
			return f, err
		}
		f, err = c.follow(ctx, run, d.Name, own, Follow{Progress: progress})
		if err == nil || ctx.Err() != nil || !errors.Is(err, context.Canceled) {
			return f, err
		}
	}
	return f, stoker.Errorf(stoker.KindTransient, "dataset", d.Name, "its listing was cancelled by others: add it again")
}

// nonceMemo says which request began an add.
const nonceMemo = "nonce"

func (c *Client) hasNonce(ctx context.Context, run client.WorkflowRun, key, nonce string) (bool, error) {
	d, err := c.temporal.DescribeWorkflowExecution(ctx, run.GetID(), run.GetRunID())
	if err != nil {
		return false, c.told(ctx, "dataset", key, err)
	}
	var there string
	p := d.WorkflowExecutionInfo.GetMemo().GetFields()[nonceMemo]
	return p != nil && converter.GetDefaultDataConverter().FromPayload(p, &there) == nil && there == nonce, nil
}

// Added waits for the rest of an add whose entry is there already.
func (c *Client) Added(ctx context.Context, name string) error {
	d, err := c.temporal.DescribeWorkflowExecution(ctx, c.catalogID(name), "")
	if err != nil {
		return c.gone(c.told(ctx, "dataset", name, err))
	}
	if e := d.WorkflowExecutionInfo; e.GetType().GetName() == catalogWorkflow {
		err = c.temporal.GetWorkflow(ctx, c.catalogID(name), e.GetExecution().GetRunId()).Get(ctx, nil)
	}
	return c.told(ctx, "dataset", name, err)
}

// catalogID is the id of whatever changes a registry entry: one at a time.
func (c *Client) catalogID(name string) string { return catalogID(c.cluster, name) }

// SyncDataset lists a registered dataset again. Those who ask at the same time
// share one listing. With a run that Follow.Begun was told, it follows that one,
// also if it has ended; one that is not known any more is begun anew.
func (c *Client) SyncDataset(ctx context.Context, d *manifest.Dataset, run string, w Follow) (f activities.Frozen, err error) {
	r, err := c.syncRun(ctx, d, run)
	if err != nil {
		return f, err
	}
	f, err = c.follow(ctx, r, d.Name, false, w)
	if errors.Is(err, context.Canceled) && ctx.Err() == nil {
		return f, stoker.Errorf(stoker.KindNotExist, "dataset", d.Name, "was removed while it was listed")
	}
	return f, err
}

func (c *Client) syncRun(ctx context.Context, d *manifest.Dataset, run string) (client.WorkflowRun, error) {
	id := c.catalogID(d.Name)
	if run != "" {
		there, err := c.temporal.DescribeWorkflowExecution(ctx, id, run)
		if err = c.gone(c.told(ctx, "dataset", d.Name, err)); err != nil {
			return nil, err
		}
		if there.GetWorkflowExecutionInfo().GetType().GetName() == syncWorkflow {
			return c.temporal.GetWorkflow(ctx, id, run), nil
		}
	}
	return c.begin(ctx, id, syncWorkflow, d.Name, SyncInput{Name: d.Name, Roots: d.Roots, Base: d.Current().Manifest}, true)
}

// RemoveDataset takes an entry out of the registry. A sync of it that runs is
// cancelled.
func (c *Client) RemoveDataset(ctx context.Context, d *manifest.Dataset) error {
	return c.alone(ctx, d.Name, removeWorkflow, RemoveInput{d.Name, d.Created})
}

// List freezes roots that are registered nowhere. Those who ask for the same
// at the same time share one listing, which goes on while anybody may wait.
func (c *Client) List(ctx context.Context, in activities.FreezeInput, progress func(api.ListProgress)) (activities.Frozen, error) {
	body, err := json.Marshal(in)
	if err != nil {
		return activities.Frozen{}, stoker.Errorf(stoker.KindInternal, "list", "", "%w", err)
	}
	sum := sha256.Sum256(body)
	run, err := c.begin(ctx, "list-"+c.cluster+"-"+hex.EncodeToString(sum[:8]), listWorkflow, in.Roots[0].URI, in, true)
	if err != nil {
		return activities.Frozen{}, err
	}
	return c.follow(ctx, run, in.Roots[0].URI, false, Follow{Progress: progress})
}

const askListing = 300 * time.Millisecond // how often a listing is asked how far it is

// follow waits for a listing. If it is the caller's own it is cancelled when who
// asked has gone.
func (c *Client) follow(ctx context.Context, run client.WorkflowRun, key string, own bool, w Follow) (f activities.Frozen, err error) {
	if w.Begun != nil {
		w.Begun(run.GetRunID())
	}
	done := make(chan error, 1) // one answer, also when nobody waits any more
	go func() { done <- run.Get(ctx, &f) }()
	tick := time.NewTicker(askListing)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			if ctx.Err() != nil && own && !errors.Is(context.Cause(ctx), api.ErrStopping) { // whoever asked has gone
				stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
				defer cancel()
				return f, errors.Join(ctx.Err(), c.told(ctx, "dataset", key, c.temporal.CancelWorkflow(stop, run.GetID(), run.GetRunID())))
			}
			return f, c.told(ctx, "dataset", key, err)
		case <-tick.C:
			if p, ok := c.listed(ctx, run.GetID(), run.GetRunID()); ok {
				w.Progress(p)
			}
		}
	}
}

// listed reads the last heartbeat of a listing.
func (c *Client) listed(ctx context.Context, id, run string) (p api.ListProgress, ok bool) {
	d, err := c.temporal.DescribeWorkflowExecution(ctx, id, run)
	if err != nil {
		return p, false // shown with the next tick, or the end says why not
	}
	for _, a := range d.PendingActivities {
		if a.HeartbeatDetails != nil && decode(a.HeartbeatDetails, &p) == nil {
			return p, true
		}
	}
	return p, false
}

func decode(payloads *common.Payloads, v any) error {
	return converter.GetDefaultDataConverter().FromPayloads(payloads, v)
}
