package control

import (
	"context"
	"math"
	"net/http"
	"regexp"
	"slices"
	"time"

	"stoker.dev"
	"stoker.dev/activities"
	"stoker.dev/cache/manifest"
	"stoker.dev/internal/api"
	"stoker.dev/ufs"
	"stoker.dev/workflows"
)

const (
	maxDatasets   = 64                     // of one job
	maxReplicas   = 16                     // of one preload
	maxPriority   = 1000                   // and the negative of it
	maxAhead      = 1e9                    // seconds that a deadline may be ahead, or a listing old
	endedJobs     = 50                     // of the jobs that are listed
	watchFirst    = 50 * time.Millisecond  // a watched job is asked at first, for small datasets
	watchEvery    = 500 * time.Millisecond // and later
	watchPatience = 30 * time.Second       // with a Temporal that does not answer
	refuseWithin  = 10 * time.Second       // a preload is answered when its space is granted, or after this
	refusedAfter  = 2 * time.Second        // its load was queued, if that is a refusal
	releaseIn     = 15 * time.Second       // a release is answered when all is let go, or after this
	unknownETA    = -1
)

var jobID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:@+=-]{0,127}$`)

func checkClaim(req *api.ClaimRequest) error {
	bad := func(format string, args ...any) error {
		return stoker.Errorf(stoker.KindInvalid, "job", req.Job, format, args...)
	}
	switch {
	case !jobID.MatchString(req.Job):
		return bad("is no job id: up to 128 letters, digits and . _ : @ + = -, a letter or digit first")
	case len(req.Datasets) == 0 || len(req.Datasets) > maxDatasets:
		return bad("claims %d datasets: want 1 to %d", len(req.Datasets), maxDatasets)
	case !slices.Contains([]string{workflows.OnMissStart, workflows.OnMissWait, workflows.OnMissFail}, req.OnMiss):
		return bad("on a miss %q: want start, wait or fail", req.OnMiss)
	case req.Replicas < 0 || req.Replicas > maxReplicas:
		return bad("%d replicas: want 1 to %d", req.Replicas, maxReplicas)
	case req.Priority < -maxPriority || req.Priority > maxPriority:
		return bad("priority %d: want %d to %d", req.Priority, -maxPriority, maxPriority)
	case req.LimitBytesPerSecond != 0 && req.LimitBytesPerSecond < api.LeastRate:
		return bad("a limit of %d bytes a second: want %d or more, or 0 for none", req.LimitBytesPerSecond, api.LeastRate)
	case req.Verify != "" && req.Verify != api.VerifyDeep:
		return bad("verify %q: want deep, or nothing", req.Verify)
	case req.DeadlineSeconds != nil && (*req.DeadlineSeconds < 0 || math.IsNaN(*req.DeadlineSeconds) || *req.DeadlineSeconds > maxAhead):
		return bad("a deadline %.0f seconds from now: want 0 to %.0f (31 years)", *req.DeadlineSeconds, maxAhead)
	}
	if err := checkLayout(req); err != nil {
		return err
	}
	if err := checkSampler(req); err != nil {
		return err
	}
	return checkTimes(req)
}

func (c *Controller) claim(w http.ResponseWriter, r *http.Request) error {
	var req api.ClaimRequest
	if err := api.ReadJSON(w, r, &req); err != nil {
		return err
	}
	submitted := time.Now().UTC()
	if !req.Submitted.IsZero() {
		submitted = req.Submitted.UTC()
	}
	if req.Job == "" {
		req.Job = stoker.NewToken()[:12]
	}
	if req.OnMiss == "" {
		req.OnMiss = workflows.OnMissStart
	}
	if req.Preload { // there is no command to start: it wants its data by the deadline, and later, too
		req.OnMiss = workflows.OnMissWait
	}
	if err := checkClaim(&req); err != nil {
		return err
	}
	if err := claimant(r, &req); err != nil {
		return err
	}
	if req.TTLSeconds > 0 {
		req.Nonce = hookNonce(&req)
	}
	st, err := c.standing(r, &req)
	if err != nil {
		return err
	}
	stream := api.NewStream(w)
	if st == nil {
		st, err = c.start(r.Context(), &req, submitted, stream)
	}
	if err == nil {
		err = stream.Send(api.Event{Job: st})
	}
	if err != nil {
		stream.Fail(r.Context(), err)
	}
	return nil
}

// taken refuses a job id that another claim has.
func taken(by workflows.JobInput) error {
	return stoker.Errorf(stoker.KindHeld, "job", by.Job, "is another claim's, of %s, since %s: take another job id, or 'stoker cancel %s'",
		by.Owner, by.Submitted.Format(time.RFC3339), by.Job)
}

// sameClaim reports whether a running job is what was asked for.
func sameClaim(a, b workflows.JobInput) bool {
	return a.Nonce == b.Nonce && slices.EqualFunc(a.Datasets, b.Datasets, func(x, y workflows.JobDataset) bool { return x.Manifest == y.Manifest && x.Select == y.Select })
}

// start resolves what a claim names and begins its workflow.
func (c *Controller) start(ctx context.Context, req *api.ClaimRequest, submitted time.Time, stream *api.Stream) (*api.JobStatus, error) {
	in := workflows.JobInput{Job: req.Job, Owner: req.Owner, OnMiss: req.OnMiss, Submitted: submitted, Preload: req.Preload, Replicas: req.Replicas, Nonce: req.Nonce,
		TTL: time.Duration(req.TTLSeconds * float64(time.Second)), Grace: c.grace(req), Deep: req.Verify == api.VerifyDeep, Priority: req.Priority, LimitBytes: req.LimitBytesPerSecond,
		Sampler: req.Sampler}
	if req.DeadlineSeconds != nil {
		in.Deadline = submitted.Add(time.Duration(*req.DeadlineSeconds * float64(time.Second)))
	}
	if err := c.layout(ctx, req, &in); err != nil {
		return nil, err
	}
	for _, ref := range req.Datasets {
		d, err := c.resolve(ctx, ref, req, stream)
		if err == nil {
			err = c.choose(ctx, d, selectionOf(req, &ref))
		}
		if err != nil {
			return nil, err
		}
		for _, other := range in.Datasets {
			if other.Manifest == d.Manifest {
				return nil, stoker.Errorf(stoker.KindInvalid, "job", req.Job, "%s and %s are the same data: name it once", other.Name, d.Name)
			}
		}
		in.Datasets = append(in.Datasets, *d)
	}
	if err := c.o.Flows.StartJob(ctx, in); err != nil {
		return nil, err
	}
	for _, d := range in.Datasets {
		c.o.Log.Info("claimed", "job", in.Job, "owner", in.Owner, "dataset", d.Name, "manifest", d.Manifest.Short(), "bytes", d.Bytes, "preload", in.Preload)
	}
	s, err := c.o.Flows.JobState(ctx, req.Job)
	if err == nil && !sameClaim(s.Input, in) {
		return nil, taken(s.Input) // it was faster
	}
	if req.Preload {
		return c.granted(ctx, in)
	}
	if stoker.KindOf(err) == stoker.KindTransient && err != nil { // it runs; whoever watches it will hear more
		s, err = begun(in), nil
	}
	if err != nil {
		return nil, err
	}
	return c.jobStatus(ctx, s, inBrief)
}

// begun is a job of which no more is known than what it claims.
func begun(in workflows.JobInput) workflows.JobState {
	return workflows.JobState{Input: in, State: api.JobPlanned, Outcomes: make([]workflows.Outcome, len(in.Datasets))}
}

// granted waits until a preload's space is reserved. What does not fit is
// refused here, so that its user need not wait to be told. The job runs
// already: while Temporal does not answer, what was asked for is the answer.
func (c *Controller) granted(ctx context.Context, in workflows.JobInput) (*api.JobStatus, error) {
	job, end := in.Job, time.Now().Add(refuseWithin)
	var queued time.Time // since when: a refusal follows at once, or it waits for more than space
	for wait := 20 * time.Millisecond; ; wait = min(2*wait, watchEvery) {
		s, err := c.o.Flows.JobState(ctx, job)
		if stoker.KindOf(err) == stoker.KindTransient && err != nil {
			s, err = begun(in), nil
		}
		if err != nil {
			return nil, err
		}
		st, err := c.jobStatus(ctx, s, inBrief)
		switch {
		case err != nil:
			return nil, err
		case st.State == api.JobFailed && st.Error != nil && st.Error.Kind == stoker.KindNoSpace.String():
			return nil, st.Error.Err("preload", job)
		case st.State == api.JobQueued && queued.IsZero():
			queued = time.Now()
		case st.State == api.JobQueued && time.Since(queued) < refusedAfter:
		case st.State != api.JobPlanned || time.Now().After(end) || c.waitsForWorkers(ctx) != nil:
			return st, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(wait):
		}
	}
}

// resolve turns a name that a claim has into a manifest, after a sync if that is asked
// for or due; a URI is listed now.
func (c *Controller) resolve(ctx context.Context, ref api.DatasetRef, req *api.ClaimRequest, stream *api.Stream) (*workflows.JobDataset, error) {
	who := claimReader(ctx, req)
	if !isURI(ref.Name) {
		d, err := c.find(ctx, ref.Name, ref.Generation)
		private := false
		if err == nil {
			private, err = c.check(ctx, d.entry, who)
		}
		if err == nil && req.Sync && ref.Generation != 0 {
			err = stoker.Errorf(stoker.KindInvalid, "dataset", ref.Name, "a sync makes a new generation: leave @%d out", ref.Generation)
		}
		if err == nil && ref.Generation == 0 && (req.Sync || stale(d)) {
			d, _, err = c.sync(ctx, d, "", stream)
		}
		if err != nil {
			return nil, err
		}
		return &workflows.JobDataset{Name: d.Name, Generation: d.Number, Manifest: d.Manifest, Bytes: d.Bytes, ListedAt: d.ListedAt, Dir: ref.Dir, Replicas: d.entry.Replicas, Private: private}, nil
	}
	if ref.Generation != 0 {
		return nil, stoker.Errorf(stoker.KindInvalid, "dataset", ref.Name, "a URI has no generations: leave @%d out", ref.Generation)
	}
	at := ufs.Location{URI: ref.Name}
	if _, _, err := c.mounts.Open(ctx, at); err != nil {
		return nil, err
	}
	roots := []manifest.Root{{Location: at}}
	private, err := c.check(ctx, &manifest.Dataset{Name: ref.Name, Roots: roots}, who)
	if err != nil {
		return nil, err
	}
	f, err := c.o.Flows.List(ctx, activities.FreezeInput{Roots: roots}, func(p api.ListProgress) {
		_ = stream.Send(api.Event{Listing: &p})
	})
	if err != nil {
		return nil, err
	}
	return &workflows.JobDataset{Name: ref.Name, Manifest: f.Manifest, Bytes: f.Bytes, ListedAt: f.ListedAt, Dir: ref.Dir, Private: private}, nil
}

// detail is how much is said of a job.
type detail int

const (
	inBrief   detail = iota
	withLoads        // how far they are on each worker
	inFull           // certificates besides
)

// jobStatus completes what a job's workflow knows with how far its loads are.
func (c *Controller) jobStatus(ctx context.Context, s workflows.JobState, how detail) (*api.JobStatus, error) {
	in := s.Input
	st := &api.JobStatus{Job: in.Job, State: s.State, Owner: in.Owner, Datasets: []api.JobDataset{}, Submitted: in.Submitted, Error: s.Error, ETASeconds: unknownETA, Priority: in.Priority, Sampler: in.Sampler}
	if len(in.Nodes) > 0 {
		if st.Layout, st.Nodes = layoutLocal, in.Nodes; in.Auto {
			st.Layout = layoutAuto
		}
	}
	if lifetime(st, &s); s.State == api.JobPlanned {
		st.Deadline = in.Deadline
	}
	for i, d := range in.Datasets {
		out := api.JobDataset{DatasetRef: api.DatasetRef{Name: d.Name, Generation: d.Generation, Dir: d.Dir, Selection: selection(d.Select)}, Manifest: d.Manifest, ListedAt: d.ListedAt, Bytes: d.Bytes, Private: d.Private}
		if err := c.outcome(ctx, &s, i, &out, st, how); err != nil {
			return nil, err
		}
		st.Datasets = append(st.Datasets, out)
		st.Bytes, st.ResidentBytes = st.Bytes+out.Bytes, st.ResidentBytes+out.ResidentBytes
	}
	if s.Queued {
		c.queued(ctx, &s, st)
	}
	if st.State == api.JobPlanned && how != inBrief {
		st.Error = c.waitsForWorkers(ctx)
	}
	switch left := st.Bytes - st.ResidentBytes; {
	case left == 0 && s.State != api.JobPlanned:
		st.ETASeconds = 0
	case st.BytesPerSec > 0:
		st.ETASeconds = float64(left) / st.BytesPerSec
	}
	return st, nil
}

// outcome fills in one dataset of a job.
func (c *Controller) outcome(ctx context.Context, s *workflows.JobState, i int, out *api.JobDataset, st *api.JobStatus, how detail) error {
	o := s.Outcomes[i]
	if !o.Certificate.IsZero() && (how == inFull || o.State == api.JobFailed) {
		cert, err := c.acts.Certificate(ctx, o.Certificate)
		if stoker.KindOf(err) == stoker.KindNotExist {
			cert, how = &api.Certificate{}, inBrief // it was kept for less long than the job
		} else if err != nil {
			return err
		}
		out.ResidentBytes = cert.ResidentBytes
		if how == inFull {
			// Loads are shared: the certificate names the dataset as this job does.
			cert.Dataset, cert.Generation = out.Name, out.Generation
			out.Certificate = cert
		}
	}
	switch {
	case o.State == api.JobReady:
		out.ResidentBytes = out.Bytes
		return nil
	case o.State != "" || s.State == api.JobReleased || s.State == api.JobFailed:
		return nil
	}
	d, ok := c.phases.get(ctx, out.Manifest)
	if !ok {
		return ctx.Err() // it has not begun, or just ended, or Temporal is busy: what the job knows is shown
	}
	if s.Input.Datasets[i].Select != d.Select { // the load that runs is for others: this one's comes next
		d.State, d.Select = api.JobPlanned, s.Input.Datasets[i].Select
	}
	load := c.loadStatus(ctx, d, out.Bytes, how != inBrief)
	if load == nil {
		return nil
	}
	if d.Select != "" {
		ofSelection(load, int64(max(1, d.Copies)))
	}
	if out.ResidentBytes = load.ResidentBytes; how != inBrief {
		out.Load = load
	}
	if s.State == api.JobPlanned && (d.State == api.JobQueued || d.State == api.JobWarming) {
		st.State = d.State
		if d.Why != "" {
			kind := stoker.KindNoSpace
			if d.PausedBy != "" {
				kind = stoker.KindBusy
			}
			st.Error = &api.ErrorBody{Kind: kind.String(), Message: d.Why}
		}
	}
	st.BytesPerSec += load.BytesPerSec
	if t := load.WaitingSince; !t.IsZero() && (st.WaitingSince.IsZero() || t.Before(st.WaitingSince)) {
		st.WaitingSince = t
	}
	if x := load.Check; d.Deep && x != nil {
		if st.Check == nil {
			st.Check = &api.CheckProgress{}
		}
		st.Check.Bytes, st.Check.TotalBytes = st.Check.Bytes+x.Bytes, st.Check.TotalBytes+x.TotalBytes
	}
	return nil
}

// loadStatus is how far the load of a dataset is that somebody waits for; nil if
// nobody does. objects says that these are counted, too.
func (c *Controller) loadStatus(ctx context.Context, d workflows.DatasetState, bytes int64, objects bool) *api.LoadStatus {
	if d.State != api.JobWarming && d.State != api.JobQueued && d.State != api.JobPlanned {
		return nil
	}
	st := &api.LoadStatus{State: d.State, Bytes: bytes, ETASeconds: unknownETA, PausedBy: d.PausedBy, Workers: []api.LoadWorker{},
		LimitBytesPerSecond: d.Wish().LimitBytesPerSecond}
	copies := int64(max(1, d.Copies))
	if d.State != api.JobWarming || !c.loads.status(ctx, d.Manifest, d.Nodes, copies, bytes, st) || !objects {
		return st
	}
	all, empty, err := c.objects(ctx, d.Manifest)
	if err != nil { // its bytes are true without it
		c.o.Log.Warn("the objects of a load cannot be counted", "dataset", d.Dataset, "manifest", d.Manifest.Short(), "error", err)
		return st
	}
	st.Objects, st.ResidentObjects = all, min(all, st.ResidentObjects+empty)
	return st
}

// objects counts a manifest's objects, and those that are in no shard.
func (c *Controller) objects(ctx context.Context, id stoker.ID) (all, empty int64, err error) {
	p := c.loads.of(id)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.objects > 0 {
		return p.objects, p.empty, nil
	}
	m, err := c.manifests.Load(ctx, id)
	if err != nil {
		return 0, 0, err
	}
	defer func() { _ = m.Close() }() // it was only read
	p.objects, p.empty = m.Objects(), m.Objects()
	var members []manifest.Member
	for n := range uint32(m.Shards()) {
		members = m.Members(n, members[:0])
		for i := range members {
			if x := &members[i]; x.ObjectOff+x.Bytes == m.Entry(x.Row).Bytes {
				p.empty--
			}
		}
	}
	return p.objects, p.empty, nil
}

// jobs lists running jobs and the last ended ones.
func (c *Controller) jobs(ctx context.Context) ([]api.JobLine, error) {
	all, err := c.o.Flows.Jobs(ctx, endedJobs)
	if err != nil {
		return nil, err
	}
	out := []api.JobLine{}
	for _, s := range all {
		st, err := c.jobStatus(ctx, s, inBrief)
		if err != nil {
			return nil, err
		}
		line := api.JobLine{Job: st.Job, State: st.State, Owner: st.Owner, Datasets: []string{}, Bytes: st.Bytes, ResidentBytes: st.ResidentBytes, ETASeconds: st.ETASeconds,
			BytesPerSec: st.BytesPerSec, Deadline: st.Deadline, Submitted: st.Submitted, Ended: s.Ended, Queue: st.Queue}
		for _, d := range st.Datasets {
			line.Datasets = append(line.Datasets, d.Name)
		}
		out = append(out, line)
	}
	return out, nil
}

func (c *Controller) listJobs(w http.ResponseWriter, r *http.Request) error {
	if r.URL.Query().Has("ended") {
		return c.listEnded(w, r)
	}
	all, err := c.jobs(r.Context())
	if err != nil {
		return err
	}
	api.WriteJSON(w, http.StatusOK, all)
	return nil
}

// job asks the job of the request's path.
func (c *Controller) job(ctx context.Context, id string) (workflows.JobState, error) {
	s, err := c.o.Flows.JobState(ctx, id)
	if stoker.KindOf(err) == stoker.KindNotExist {
		return s, stoker.Errorf(stoker.KindNotExist, "job", id, "is not known: 'stoker jobs' lists those that are")
	}
	return s, err
}

func (c *Controller) showJob(w http.ResponseWriter, r *http.Request) error {
	s, err := c.job(r.Context(), r.PathValue("job"))
	if err != nil {
		return err
	}
	st, err := c.jobStatus(r.Context(), s, inFull)
	if err != nil {
		return err
	}
	api.WriteJSON(w, http.StatusOK, st)
	return nil
}

// watchJob tells a job's state, twice a second in the end, until it is settled.
func (c *Controller) watchJob(w http.ResponseWriter, r *http.Request) error {
	stream := api.NewStream(w)
	heard := time.Now()
	ctx, cancel := context.WithCancel(r.Context())
	var ended <-chan struct{} // a preload's end is heard at once
	waited := false
	defer func() {
		cancel()
		if ended != nil {
			<-ended
		}
	}()
	for wait := watchFirst; ; wait = min(2*wait, watchEvery) {
		s, err := c.job(r.Context(), r.PathValue("job"))
		if stoker.KindOf(err) == stoker.KindTransient && err != nil && time.Since(heard) < watchPatience && r.Context().Err() == nil {
			time.Sleep(watchFirst) // Temporal is busy, or is being restarted
			continue
		}
		heard = time.Now()
		var st *api.JobStatus
		if err == nil {
			c.letGo(r.Context(), s)
			how := withLoads
			if api.Settled(s.State) {
				how = inFull
			}
			st, err = c.jobStatus(r.Context(), s, how)
		}
		if err == nil {
			err = stream.Send(api.Event{Job: st})
		}
		if err != nil {
			stream.Fail(r.Context(), err)
			return nil
		}
		if api.Settled(st.State) {
			return nil
		}
		if s.Input.Preload && !waited {
			ended, waited = c.endOf(ctx, s.Input.Job), true
		}
		select {
		case <-r.Context().Done():
			return nil
		case <-ended:
			ended = nil
		case <-time.After(wait):
		}
	}
}

// endOf returns a channel that is closed when a job has ended, ctx has, or it
// cannot be waited for.
func (c *Controller) endOf(ctx context.Context, job string) <-chan struct{} {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = c.o.Flows.Wait(ctx, job) // whoever is woken asks for the state
	}()
	return ended
}

// letGo waits until a job that has ended holds nothing any more, so that who
// is told of its end may evict its data. After releaseIn it ends without
// anybody waiting.
func (c *Controller) letGo(ctx context.Context, s workflows.JobState) {
	if s.State != api.JobReleased && s.State != api.JobFailed {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, releaseIn)
	defer cancel()
	_ = c.o.Flows.Wait(ctx, s.Input.Job) // if it cannot be waited for, the state is the answer
}

func (c *Controller) renewJob(w http.ResponseWriter, r *http.Request) error {
	var req api.RenewRequest
	if err := api.ReadJSON(w, r, &req); err != nil {
		return err
	}
	id := r.PathValue("job")
	s, err := c.job(r.Context(), id)
	if err != nil {
		return err
	}
	if err := mayChange(r, "job", id, s.Input.Owner); err != nil {
		return err
	}
	if req.Started {
		if err := c.o.Flows.Started(r.Context(), id); err != nil {
			return err
		}
	}
	keep := c.o.Flows.Renew
	if s.Input.TTL > 0 {
		keep = c.o.Flows.Repeat
	}
	if err := keep(r.Context(), id); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (c *Controller) releaseJob(w http.ResponseWriter, r *http.Request) error {
	id := r.PathValue("job")
	s, err := c.job(r.Context(), id)
	if err != nil {
		return err
	}
	if err := mayChange(r, "job", id, s.Input.Owner); err != nil {
		return err
	}
	if at := r.URL.Query().Get("submitted"); at != "" {
		submitted, err := time.Parse(time.RFC3339Nano, at)
		if err != nil {
			return stoker.Errorf(stoker.KindInvalid, "job", id, "submitted=%q is no time: want RFC 3339", at)
		}
		if !s.Input.Submitted.Equal(submitted) { // the claim of that submission has ended
			w.WriteHeader(http.StatusNoContent)
			return nil
		}
	}
	if err := c.o.Flows.Release(r.Context(), id); err != nil {
		return err
	}
	c.o.Log.Info("released", "job", id, "by", api.PrincipalOf(r.Context()).Name)
	ctx, cancel := context.WithTimeout(r.Context(), releaseIn)
	defer cancel()
	if err := c.o.Flows.Wait(ctx, id); err != nil && ctx.Err() == nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent) // after releaseIn it ends without anybody waiting
	return nil
}
