package api

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"stoker.dev"
)

// WorkerClient is a controller's client of one worker's TCP API. Its methods
// may be called from any number of goroutines; all of them may be repeated.
type WorkerClient struct{ c *caller }

// NewWorkerClient makes a client of the worker at url; it does not connect.
func NewWorkerClient(url, token string) (*WorkerClient, error) {
	c, err := newCaller("worker", ClientOptions{URL: url, Token: token, Hint: "is its node up?"})
	if err != nil {
		return nil, err
	}
	return &WorkerClient{c}, nil
}

// Close closes idle connections.
func (w *WorkerClient) Close() { w.c.http.CloseIdleConnections() }

func partPath(kind string, plan stoker.ID, part int) string {
	return fmt.Sprintf("/v1/%s/%s/%d", kind, plan, part)
}

// Reserve asks for the space of one part of a plan.
func (w *WorkerClient) Reserve(ctx context.Context, req ReserveRequest) (ReserveReport, error) {
	return get[ReserveReport](ctx, w.c, workTimeout, http.MethodPut, partPath("reservations", req.Plan, req.Part), req)
}

// GiveBack ends a reservation; what it was used for stays.
func (w *WorkerClient) GiveBack(ctx context.Context, plan stoker.ID, part int) error {
	return w.c.call(ctx, answerTimeout, http.MethodDelete, partPath("reservations", plan, part), nil, nil)
}

// How long a load's stream, which has a line twice a second, may be silent;
// before the first line the worker may have to fetch the manifest.
const (
	loadSilence = 10 * time.Second
	loadBegins  = 2 * time.Minute
)

// Load begins a load, or attaches to the one that runs, and follows it to its
// end. Hanging up does not stop it. A worker that is silent for 10 s is
// Transient.
func (w *WorkerClient) Load(ctx context.Context, plan stoker.ID, part int, each func(LoadProgress)) (LoadProgress, error) {
	return w.load(ctx, LoadRequest{Plan: plan, Part: part}, each)
}

// LoadCopies is Load for shards that others have: only from them they come.
func (w *WorkerClient) LoadCopies(ctx context.Context, plan stoker.ID, part int, each func(LoadProgress)) (LoadProgress, error) {
	return w.load(ctx, LoadRequest{Plan: plan, Part: part, Copies: true}, each)
}

func (w *WorkerClient) load(ctx context.Context, req LoadRequest, each func(LoadProgress)) (LoadProgress, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silent := stoker.Errorf(stoker.KindTransient, "load", req.Plan.Short(), "the worker is silent")
	watch := time.AfterFunc(loadBegins, func() { cancel(silent) })
	defer watch.Stop()
	e, err := w.c.stream(ctx, http.MethodPut, partPath("loads", req.Plan, req.Part), req,
		func(e Event) {
			watch.Reset(loadSilence)
			if e.Load != nil {
				each(*e.Load)
			}
		},
		func(e Event) bool { return e.Load != nil && e.Load.Done })
	if err != nil && context.Cause(ctx) == silent {
		return LoadProgress{}, silent
	}
	if err != nil {
		return LoadProgress{}, err
	}
	return *e.Load, nil
}

// LoadProgress asks how far a load is; NotExist if it never began there.
func (w *WorkerClient) LoadProgress(ctx context.Context, plan stoker.ID, part int) (LoadProgress, error) {
	return get[LoadProgress](ctx, w.c, answerTimeout, http.MethodGet, partPath("loads", plan, part), nil)
}

// StopLoad stops a load.
func (w *WorkerClient) StopLoad(ctx context.Context, plan stoker.ID, part int) error {
	return w.c.call(ctx, answerTimeout, http.MethodDelete, partPath("loads", plan, part), nil, nil)
}

// PutLeases adds, renews and drops leases.
func (w *WorkerClient) PutLeases(ctx context.Context, req LeaseRequest) error {
	return w.c.call(ctx, answerTimeout, http.MethodPut, "/v1/leases", req, nil)
}

// PutRules says how datasets want their data to be evicted. NotExist: the worker
// is of a release that knows no rules.
func (w *WorkerClient) PutRules(ctx context.Context, req RulesRequest) error {
	return w.c.call(ctx, answerTimeout, http.MethodPut, "/v1/rules", req, nil)
}

// Verify asks what the worker truly has of a manifest.
func (w *WorkerClient) Verify(ctx context.Context, req VerifyRequest) (VerifyReport, error) {
	timeout := workTimeout
	if req.Deep {
		timeout = deepTimeout
	}
	return get[VerifyReport](ctx, w.c, timeout, http.MethodPost, "/v1/verify", req)
}

// Failures asks which objects of a manifest the worker could not have.
func (w *WorkerClient) Failures(ctx context.Context, id stoker.ID, after string, limit int) (FailurePage, error) {
	return get[FailurePage](ctx, w.c, answerTimeout, http.MethodGet, "/v1/manifests/"+id.String()+"/failed?"+page(after, limit), nil)
}

// Evict frees what the worker has of a manifest; Held names the holders.
func (w *WorkerClient) Evict(ctx context.Context, req EvictRequest) (EvictReport, error) {
	return get[EvictReport](ctx, w.c, workTimeout, http.MethodPost, "/v1/evict", req)
}

// Drain makes the worker take nothing new until Undrain.
func (w *WorkerClient) Drain(ctx context.Context, req Drain) error {
	return w.c.call(ctx, answerTimeout, http.MethodPut, "/v1/drain", req, nil)
}

// Undrain ends that.
func (w *WorkerClient) Undrain(ctx context.Context) error {
	return w.c.call(ctx, answerTimeout, http.MethodDelete, "/v1/drain", nil, nil)
}

// DropCopies removes shards that others were seen to have.
func (w *WorkerClient) DropCopies(ctx context.Context, req DropRequest) (EvictReport, error) {
	return get[EvictReport](ctx, w.c, workTimeout, http.MethodPost, "/v1/drop", req)
}

// Version asks who is there.
func (w *WorkerClient) Version(ctx context.Context) (VersionInfo, error) {
	return get[VersionInfo](ctx, w.c, answerTimeout, http.MethodGet, "/v1/version", nil)
}

// Status asks what the worker holds.
func (w *WorkerClient) Status(ctx context.Context) (WorkerStatus, error) {
	return get[WorkerStatus](ctx, w.c, answerTimeout, http.MethodGet, "/v1/status", nil)
}
