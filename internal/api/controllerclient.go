package api

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"stoker.dev"
)

// VersionInfo is GET /v1/version of both daemons.
type VersionInfo struct {
	Version string `json:"version"`
	Role    string `json:"role,omitempty"` // controller | worker
	ID      string `json:"id,omitempty"`   // of a worker
}

// Settled reports whether a job in that state waits for nothing any more: its
// data is there, or will not come. A watch ends with such a state.
func Settled(state string) bool {
	switch state {
	case JobReady, JobLeased, JobGrace, JobReleased, JobDegraded, JobFailed:
		return true
	}
	return false
}

// Controller is a client of the controller's API. Its methods may be called
// from any number of goroutines. Errors are *stoker.Error in the chain, with
// the kind that the controller named; nobody there is KindTransient.
type Controller struct{ c *caller }

// NewController makes a client; it does not connect.
func NewController(o ClientOptions) (*Controller, error) {
	c, err := newCaller("controller", o)
	if err != nil {
		return nil, err
	}
	return &Controller{c}, nil
}

// segment makes name one segment of a path. What HTTP servers would clean
// away is refused.
func segment(what, name string) (string, error) {
	if name == "" || name == "." || name == ".." {
		return "", stoker.Errorf(stoker.KindInvalid, what, name, "is no name")
	}
	return url.PathEscape(name), nil
}

// Version asks what runs there.
func (c *Controller) Version(ctx context.Context) (VersionInfo, error) {
	return get[VersionInfo](ctx, c.c, answerTimeout, http.MethodGet, "/v1/version", nil)
}

// AddDataset registers a dataset and lists its first generation. each, if not
// nil, gets every line of the stream. When it is Lost it may be repeated with the
// same request, if that has a nonce, and follows the same listing.
func (c *Controller) AddDataset(ctx context.Context, req AddDatasetRequest, each func(Event)) (*DatasetDetail, error) {
	e, err := c.c.stream(ctx, http.MethodPost, "/v1/datasets", req, each, func(e Event) bool { return e.Dataset != nil })
	return e.Dataset, err
}

// SyncDataset lists a dataset again; what changed is its new generation. When it
// is Lost it may be repeated with what its stream said it followed.
func (c *Controller) SyncDataset(ctx context.Context, name string, req SyncRequest, each func(Event)) (*DatasetDetail, error) {
	seg, err := segment("dataset", name)
	if err != nil {
		return nil, err
	}
	e, err := c.c.stream(ctx, http.MethodPost, "/v1/datasets/"+seg+"/sync", req, each, func(e Event) bool { return e.Dataset != nil })
	return e.Dataset, err
}

// Schedule sets how often a dataset is synced; 0 ends it.
func (c *Controller) Schedule(ctx context.Context, name string, every time.Duration) (*DatasetDetail, error) {
	seg, err := segment("dataset", name)
	if err != nil {
		return nil, err
	}
	d, err := get[DatasetDetail](ctx, c.c, workTimeout, http.MethodPut, "/v1/datasets/"+seg+"/schedule", ScheduleRequest{SyncEverySeconds: every.Seconds()})
	return &d, err
}

// SetEviction changes how a dataset's data is evicted.
func (c *Controller) SetEviction(ctx context.Context, name string, req EvictionRequest) (*DatasetDetail, error) {
	seg, err := segment("dataset", name)
	if err != nil {
		return nil, err
	}
	d, err := get[DatasetDetail](ctx, c.c, workTimeout, http.MethodPut, "/v1/datasets/"+seg+"/eviction", req)
	return &d, err
}

// SetReplicas says how many workers are to have each shard of a dataset.
func (c *Controller) SetReplicas(ctx context.Context, name string, req ReplicasRequest) (*DatasetDetail, error) {
	seg, err := segment("dataset", name)
	if err != nil {
		return nil, err
	}
	d, err := get[DatasetDetail](ctx, c.c, workTimeout, http.MethodPut, "/v1/datasets/"+seg+"/replicas", req)
	return &d, err
}

// SetReaders changes who may read a dataset.
func (c *Controller) SetReaders(ctx context.Context, name string, req ReadersRequest) (*DatasetDetail, error) {
	seg, err := segment("dataset", name)
	if err != nil {
		return nil, err
	}
	d, err := get[DatasetDetail](ctx, c.c, workTimeout, http.MethodPut, "/v1/datasets/"+seg+"/readers", req)
	return &d, err
}

// Drain has a worker, named by its id or the beginning of it, give up what it has.
func (c *Controller) Drain(ctx context.Context, worker string, req Drain) (*DrainStatus, error) {
	return c.drain(ctx, http.MethodPut, worker, req)
}

// Undrain puts it into service again.
func (c *Controller) Undrain(ctx context.Context, worker string) (*DrainStatus, error) {
	return c.drain(ctx, http.MethodDelete, worker, nil)
}

// DrainStatus asks how far the drain of a worker is.
func (c *Controller) DrainStatus(ctx context.Context, worker string) (*DrainStatus, error) {
	return c.drain(ctx, http.MethodGet, worker, nil)
}

func (c *Controller) drain(ctx context.Context, method, worker string, body any) (*DrainStatus, error) {
	seg, err := segment("worker", worker)
	if err != nil {
		return nil, err
	}
	st, err := get[DrainStatus](ctx, c.c, workTimeout, method, "/v1/workers/"+seg+"/drain", body)
	return &st, err
}

// RemoveDataset frees a dataset's space and takes its name out of the registry.
func (c *Controller) RemoveDataset(ctx context.Context, name string) (EvictReport, error) {
	seg, err := segment("dataset", name)
	if err != nil {
		return EvictReport{}, err
	}
	return get[EvictReport](ctx, c.c, workTimeout, http.MethodDelete, "/v1/datasets/"+seg, nil)
}

// Datasets lists what is registered.
func (c *Controller) Datasets(ctx context.Context) ([]DatasetInfo, error) {
	return get[[]DatasetInfo](ctx, c.c, answerTimeout, http.MethodGet, "/v1/datasets", nil)
}

// Changes compares a dataset's generation, the current one unless name ends in
// @GEN, with generation from, 0: the one before it.
func (c *Controller) Changes(ctx context.Context, name string, from int) (*DatasetChanges, error) {
	seg, err := segment("dataset", name)
	if err != nil {
		return nil, err
	}
	path := "/v1/datasets/" + seg + "/changes"
	if from != 0 {
		path += "?from=" + strconv.Itoa(from)
	}
	v, err := get[DatasetChanges](ctx, c.c, workTimeout, http.MethodGet, path, nil)
	if err != nil {
		return nil, err
	}
	return &v, nil
}

// Dataset shows one dataset; name may end in @GEN.
func (c *Controller) Dataset(ctx context.Context, name string) (*DatasetDetail, error) {
	return c.DatasetFor(ctx, name, "")
}

// DatasetFor asks for a generation of a dataset, and is denied it if a reader may not read
// it: of others than who asks only admins may ask, else it is who asks himself. Without a
// reader all see it, but not all what is in it.
func (c *Controller) DatasetFor(ctx context.Context, name, reader string) (*DatasetDetail, error) {
	return c.SelectedFor(ctx, name, reader, Selection{})
}

// Selected asks for a generation of a dataset, and how much of it a selection has.
func (c *Controller) Selected(ctx context.Context, name string, s Selection) (*DatasetDetail, error) {
	return c.SelectedFor(ctx, name, "", s)
}

// SelectedFor is Selected for a reader, as with DatasetFor.
func (c *Controller) SelectedFor(ctx context.Context, name, reader string, s Selection) (*DatasetDetail, error) {
	seg, err := segment("dataset", name)
	if err != nil {
		return nil, err
	}
	q := s.query()
	if reader != "" {
		q.Set("reader", reader)
	}
	if asked := q.Encode(); asked != "" {
		seg += "?" + asked
	}
	v, err := get[DatasetDetail](ctx, c.c, answerTimeout, http.MethodGet, "/v1/datasets/"+seg, nil)
	if err != nil {
		return nil, err
	}
	return &v, nil
}

// query asks about a selection; SelectionOf reads it.
func (s Selection) query() url.Values {
	return url.Values{"path": s.Paths, "include": s.Include, "exclude": s.Exclude}
}

// SelectionOf is the selection that a request's query asks about.
func SelectionOf(q url.Values) Selection {
	return Selection{Paths: q["path"], Include: q["include"], Exclude: q["exclude"]}
}

// Verify compares what workers have with the manifest.
func (c *Controller) Verify(ctx context.Context, name string, deep bool, s Selection, each func(Event)) (*Certificate, error) {
	seg, err := segment("dataset", name)
	if err != nil {
		return nil, err
	}
	q := s.query()
	q.Set("deep", strconv.FormatBool(deep))
	path := "/v1/datasets/" + seg + "/verify?" + q.Encode()
	e, err := c.c.stream(ctx, http.MethodPost, path, nil, each, func(e Event) bool { return e.Certificate != nil })
	return e.Certificate, err
}

// Failed asks for a page of the objects that the loads of a dataset could not
// bring in; name may end in @GEN.
func (c *Controller) Failed(ctx context.Context, name, after string, limit int) (FailurePage, error) {
	seg, err := segment("dataset", name)
	if err != nil {
		return FailurePage{}, err
	}
	return get[FailurePage](ctx, c.c, answerTimeout, http.MethodGet, "/v1/datasets/"+seg+"/failed?"+page(after, limit), nil)
}

// Evict gives the space of a dataset back.
func (c *Controller) Evict(ctx context.Context, name string, force bool) (EvictReport, error) {
	seg, err := segment("dataset", name)
	if err != nil {
		return EvictReport{}, err
	}
	return get[EvictReport](ctx, c.c, workTimeout, http.MethodPost, "/v1/datasets/"+seg+"/evict", EvictRequest{Force: force})
}

// Steer pauses, resumes or stops the load of a dataset.
func (c *Controller) Steer(ctx context.Context, name, action string) (SteerReport, error) {
	seg, err := segment("dataset", name)
	if err != nil {
		return SteerReport{}, err
	}
	return get[SteerReport](ctx, c.c, workTimeout, http.MethodPost, "/v1/datasets/"+seg+"/load", SteerRequest{Action: action})
}

// Pin holds a dataset's data for the caller; a pin that he has of the same
// generation is replaced. name may end in @GEN.
func (c *Controller) Pin(ctx context.Context, name string, req PinRequest) (Pin, error) {
	seg, err := segment("dataset", name)
	if err != nil {
		return Pin{}, err
	}
	return get[Pin](ctx, c.c, answerTimeout, http.MethodPut, "/v1/datasets/"+seg+"/pin", req)
}

// Unpin ends the caller's pins of a dataset, of one generation if name ends in
// @GEN, and returns them. Admins end everybody's, or those of owner.
func (c *Controller) Unpin(ctx context.Context, name, owner string) ([]Pin, error) {
	seg, err := segment("dataset", name)
	if err != nil {
		return nil, err
	}
	path := "/v1/datasets/" + seg + "/pin"
	if owner != "" {
		path += "?owner=" + url.QueryEscape(owner)
	}
	return get[[]Pin](ctx, c.c, answerTimeout, http.MethodDelete, path, nil)
}

// Claim submits a job; it is idempotent on req.Job. each gets the progress of
// listings that it needs.
func (c *Controller) Claim(ctx context.Context, req ClaimRequest, each func(Event)) (*JobStatus, error) {
	e, err := c.c.stream(ctx, http.MethodPost, "/v1/jobs", req, each, func(e Event) bool { return e.Job != nil })
	return e.Job, err
}

// Jobs lists jobs.
func (c *Controller) Jobs(ctx context.Context) ([]JobLine, error) {
	return get[[]JobLine](ctx, c.c, answerTimeout, http.MethodGet, "/v1/jobs", nil)
}

// EndedJobs lists the jobs that ended last, the newest first, limit at most,
// with the figures of their certificates.
func (c *Controller) EndedJobs(ctx context.Context, limit int) ([]JobLine, error) {
	return get[[]JobLine](ctx, c.c, workTimeout, http.MethodGet, "/v1/jobs?ended="+strconv.Itoa(limit), nil)
}

// Job shows one job.
func (c *Controller) Job(ctx context.Context, job string) (*JobStatus, error) {
	seg, err := segment("job", job)
	if err != nil {
		return nil, err
	}
	v, err := get[JobStatus](ctx, c.c, answerTimeout, http.MethodGet, "/v1/jobs/"+seg, nil)
	if err != nil {
		return nil, err
	}
	return &v, nil
}

// Watch follows a job until its state is Settled. each, if not nil, gets every
// state on the way, the last one too.
func (c *Controller) Watch(ctx context.Context, job string, each func(JobStatus)) (*JobStatus, error) {
	seg, err := segment("job", job)
	if err != nil {
		return nil, err
	}
	e, err := c.c.stream(ctx, http.MethodGet, "/v1/jobs/"+seg+"/watch", nil, func(e Event) {
		if e.Job != nil && each != nil {
			each(*e.Job)
		}
	}, func(e Event) bool { return e.Job != nil && Settled(e.Job.State) })
	return e.Job, err
}

// Renew keeps a claim alive; NotExist says that it has ended. started tells,
// once, that the job's command runs.
func (c *Controller) Renew(ctx context.Context, job string, started bool) error {
	seg, err := segment("job", job)
	if err != nil {
		return err
	}
	return c.c.call(ctx, answerTimeout, http.MethodPost, "/v1/jobs/"+seg+"/renew", RenewRequest{Started: started}, nil)
}

// ReleaseSubmitted ends a claim if it is that of the submission at a time: a
// later one with the same job id lives on.
func (c *Controller) ReleaseSubmitted(ctx context.Context, job string, at time.Time) error {
	seg, err := segment("job", job)
	if err != nil {
		return err
	}
	return c.c.call(ctx, answerTimeout, http.MethodDelete, "/v1/jobs/"+seg+"?submitted="+url.QueryEscape(at.UTC().Format(time.RFC3339Nano)), nil, nil)
}

// Change makes a claim wish something else.
func (c *Controller) Change(ctx context.Context, job string, change JobChange) (*JobStatus, error) {
	seg, err := segment("job", job)
	if err != nil {
		return nil, err
	}
	return get[*JobStatus](ctx, c.c, answerTimeout, http.MethodPatch, "/v1/jobs/"+seg, change)
}

// Release ends a claim.
func (c *Controller) Release(ctx context.Context, job string) error {
	seg, err := segment("job", job)
	if err != nil {
		return err
	}
	return c.c.call(ctx, answerTimeout, http.MethodDelete, "/v1/jobs/"+seg, nil, nil)
}

// Workers lists workers.
func (c *Controller) Workers(ctx context.Context) ([]WorkerInfo, error) {
	return get[[]WorkerInfo](ctx, c.c, answerTimeout, http.MethodGet, "/v1/workers", nil)
}

// Status shows jobs, workers and datasets at once.
func (c *Controller) Status(ctx context.Context) (Status, error) {
	return get[Status](ctx, c.c, answerTimeout, http.MethodGet, "/v1/status", nil)
}

// Node is a client of the worker of this node, over its Unix socket. Its
// methods may be called from any number of goroutines.
type Node struct{ c *caller }

// NewNode makes a client; it does not connect.
func NewNode(o ClientOptions) (*Node, error) {
	c, err := newCaller("worker", o)
	if err != nil {
		return nil, err
	}
	return &Node{c}, nil
}

// Version asks what runs there.
func (n *Node) Version(ctx context.Context) (VersionInfo, error) {
	return get[VersionInfo](ctx, n.c, answerTimeout, http.MethodGet, "/v1/version", nil)
}

// Status shows what the worker holds, mounts and reads.
func (n *Node) Status(ctx context.Context) (WorkerStatus, error) {
	return get[WorkerStatus](ctx, n.c, answerTimeout, http.MethodGet, "/v1/status", nil)
}

// Mount mounts a view; it is readable when Mount returns.
func (n *Node) Mount(ctx context.Context, req MountRequest) (MountInfo, error) {
	return get[MountInfo](ctx, n.c, workTimeout, http.MethodPost, "/v1/mounts", req)
}

// Mounts lists mounted views.
func (n *Node) Mounts(ctx context.Context) ([]MountInfo, error) {
	return get[[]MountInfo](ctx, n.c, answerTimeout, http.MethodGet, "/v1/mounts", nil)
}

// Unmount ends the view at dir, an absolute path; lazily, even if processes
// still use it.
func (n *Node) Unmount(ctx context.Context, dir string, lazy bool) error {
	return n.c.call(ctx, workTimeout, http.MethodDelete, "/v1/mounts?dir="+url.QueryEscape(dir)+"&lazy="+strconv.FormatBool(lazy), nil, nil)
}
