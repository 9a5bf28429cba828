package activities

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/cache/placement"
	"stoker.dev/internal/api"
	"stoker.dev/planner"
	"stoker.dev/ufs"
	"stoker.dev/ufs/folder"
)

// listed is an under file system that can only be listed: its objects have
// sizes and no bytes.
type listed map[string]int64

func (l listed) List(_ context.Context, o ufs.ListOptions) (ufs.Page, error) {
	var p ufs.Page
	for key, size := range l {
		if strings.HasPrefix(key, o.Prefix) {
			p.Objects = append(p.Objects, ufs.Object{Key: key, Version: ufs.Version{Tag: `"1"`, Bytes: size}})
		}
	}
	slices.SortFunc(p.Objects, func(a, b ufs.Object) int { return strings.Compare(a.Key, b.Key) })
	return p, nil
}

func (l listed) Stat(context.Context, string) (ufs.Object, error) {
	return ufs.Object{}, stoker.Errorf(stoker.KindInternal, "listing", "", "is only listed")
}

func (l listed) Open(context.Context, string, ufs.Version, int64, int64) (io.ReadCloser, error) {
	return nil, stoker.Errorf(stoker.KindInternal, "listing", "", "is only listed")
}

const mib = 1 << 20

// fakeWorker is a worker's API, answered from its fields.
type fakeWorker struct {
	placement.Worker
	server *httptest.Server

	mu       sync.Mutex
	asked    []string // +checklocks:mu — "reserve 0", "stop 1", ...
	status   api.WorkerStatus
	report   api.VerifyReport
	leases   []api.LeaseRequest
	rules    []api.RulesRequest
	before   bool // of a release that knows no rules
	reserved []api.ReserveRequest
	refuses  error                           // to reserve
	fails    error                           // to answer anything
	load     func(n int, s *api.Stream) bool // the n-th time; false: it hangs up
	deep     []bool
	dropped  []api.DropRequest // +checklocks:mu
}

func (f *fakeWorker) routes() http.Handler {
	mux := http.NewServeMux()
	answer := func(pattern, name string, do func(w http.ResponseWriter, r *http.Request) error) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			err := f.note(strings.TrimSpace(name + " " + r.PathValue("part")))
			if err == nil {
				err = do(w, r)
			}
			if err != nil {
				api.WriteError(w, err)
			}
		})
	}
	answer("GET /v1/version", "version", func(w http.ResponseWriter, _ *http.Request) error {
		api.WriteJSON(w, http.StatusOK, api.VersionInfo{ID: f.ID, Role: "worker"})
		return nil
	})
	answer("GET /v1/status", "status", func(w http.ResponseWriter, _ *http.Request) error {
		api.WriteJSON(w, http.StatusOK, f.status)
		return nil
	})
	answer("PUT /v1/reservations/{plan}/{part}", "reserve", f.reserve)
	answer("DELETE /v1/reservations/{plan}/{part}", "give back", empty)
	answer("DELETE /v1/loads/{plan}/{part}", "stop", empty)
	answer("PUT /v1/loads/{plan}/{part}", "load", f.stream)
	answer("PUT /v1/leases", "leases", func(w http.ResponseWriter, r *http.Request) error {
		var req api.LeaseRequest
		if err := api.ReadJSON(w, r, &req); err != nil {
			return err
		}
		f.mu.Lock()
		f.leases = append(f.leases, req)
		f.mu.Unlock()
		return empty(w, r)
	})
	answer("PUT /v1/rules", "rules", func(w http.ResponseWriter, r *http.Request) error {
		if f.before {
			http.NotFound(w, r)
			return nil
		}
		var req api.RulesRequest
		err := api.ReadJSON(w, r, &req)
		f.mu.Lock()
		f.rules = append(f.rules, req)
		f.mu.Unlock()
		if err == nil {
			err = empty(w, r)
		}
		return err
	})
	answer("POST /v1/verify", "verify", func(w http.ResponseWriter, r *http.Request) error {
		var req api.VerifyRequest
		err := api.ReadJSON(w, r, &req)
		f.mu.Lock()
		defer f.mu.Unlock()
		f.deep = append(f.deep, req.Deep)
		api.WriteJSON(w, http.StatusOK, f.report)
		return err
	})
	answer("POST /v1/drop", "drop", func(w http.ResponseWriter, r *http.Request) error {
		var req api.DropRequest
		err := api.ReadJSON(w, r, &req)
		f.mu.Lock()
		f.dropped = append(f.dropped, req)
		f.mu.Unlock()
		api.WriteJSON(w, http.StatusOK, api.EvictReport{Shards: len(req.Shards)})
		return err
	})
	answer("POST /v1/evict", "evict", func(w http.ResponseWriter, _ *http.Request) error {
		api.WriteJSON(w, http.StatusOK, api.EvictReport{Shards: 1})
		return nil
	})
	return mux
}

func empty(w http.ResponseWriter, _ *http.Request) error {
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (f *fakeWorker) note(what string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, what)
	return f.fails
}

func (f *fakeWorker) reserve(w http.ResponseWriter, r *http.Request) error {
	var req api.ReserveRequest
	if err := api.ReadJSON(w, r, &req); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reserved = append(f.reserved, req)
	if f.refuses == nil {
		api.WriteJSON(w, http.StatusOK, api.ReserveReport{})
	}
	return f.refuses
}

func (f *fakeWorker) stream(w http.ResponseWriter, _ *http.Request) error {
	if !f.load(f.count("load"), api.NewStream(w)) {
		panic(http.ErrAbortHandler)
	}
	return nil
}

// count is how often it was asked something, for any part.
func (f *fakeWorker) count(what string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, a := range f.asked {
		if a == what || strings.HasPrefix(a, what+" ") {
			n++
		}
	}
	return n
}

// cluster is activities with fake workers around them, and a frozen dataset:
// 40 files of 1 to 40 MiB one of 150 MiB, which is three extents, and two odd ones.
type cluster struct {
	*Activities
	index    *brokenIndex
	workers  []*fakeWorker
	listed   listed
	manifest stoker.ID
	m        *manifest.Manifest
}

// brokenIndex fails if it is told to.
type brokenIndex struct {
	*placement.Mem
	err error
}

func (b *brokenIndex) Workers(ctx context.Context) ([]placement.Worker, error) {
	if b.err != nil {
		return nil, b.err
	}
	return b.Mem.Workers(ctx)
}

func (b *brokenIndex) Holders(ctx context.Context, id stoker.ID, shards []uint32) ([][]placement.Holder, error) {
	if b.err != nil {
		return nil, b.err
	}
	return b.Mem.Holders(ctx, id, shards)
}

func (b *brokenIndex) Begun(ctx context.Context, worker string, id stoker.ID, shards []uint32) ([]bool, bool, error) {
	if b.err != nil {
		return nil, false, b.err
	}
	return b.Mem.Begun(ctx, worker, id, shards)
}

func newCluster(t testing.TB, workers int) *cluster {
	t.Helper()
	objects, err := folder.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{index: &brokenIndex{Mem: placement.NewMem(time.Now)}, listed: listed{"big": 150 * mib, "empty": 0, "odd": 256<<10 + 1}}
	for n := 1; n <= 40; n++ {
		c.listed[fmt.Sprintf("file-%02d", n)] = int64(n) * mib
	}
	c.Activities = New(Options{
		Store: manifest.NewStore(objects, t.TempDir()), Index: c.index, TempDir: t.TempDir(),
		Open: func(context.Context, ufs.Location) (ufs.FS, string, error) { return c.listed, "", nil },
	})
	for range workers {
		c.addWorker(t)
	}
	b, err := manifest.Build(t.Context(), manifest.BuildOptions{Roots: someRoots, Open: c.o.Open, TempDir: t.TempDir()})
	if err == nil {
		err = c.o.Store.Put(t.Context(), b)
	}
	if err == nil {
		c.manifest = b.ID
		c.m, err = c.o.Store.Load(t.Context(), b.ID)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.m.Close() })
	return c
}

var someRoots = []manifest.Root{{Location: ufs.Location{URI: "s3://bucket"}}}

// addWorker starts a worker with 2 GiB and enters it into the index.
func (c *cluster) addWorker(t testing.TB) *fakeWorker {
	t.Helper()
	f := &fakeWorker{Worker: placement.Worker{ID: fmt.Sprintf("w%d", len(c.workers)), Incarnation: stoker.NewIncarnation(), CapacityBytes: 2 << 30}}
	f.load = func(_ int, s *api.Stream) bool {
		return s.Send(api.Event{Load: &api.LoadProgress{Run: "1", UFSBytes: 10, UFSRequests: 1, Done: true}}) == nil
	}
	f.server = httptest.NewServer(f.routes())
	t.Cleanup(f.server.Close)
	f.Address = f.server.URL
	f.status.WorkerInfo = api.WorkerInfo{ID: f.ID, CapacityBytes: f.CapacityBytes}
	c.workers = append(c.workers, f)
	c.register(t, f)
	return f
}

func (c *cluster) register(t testing.TB, f *fakeWorker) {
	t.Helper()
	if err := c.index.Register(t.Context(), f.Worker, time.Hour); err != nil {
		t.Fatal(err)
	}
}

// planned makes a plan and reads it back.
func (c *cluster) planned(t testing.TB, in PlanInput) (stoker.ID, *planner.Plan) {
	t.Helper()
	in.Manifest, in.Dataset = c.manifest, "d"
	p, err := c.Plan(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	plan, err := c.LoadPlan(t.Context(), p.Plan)
	if err != nil {
		t.Fatal(err)
	}
	if p.Parts != len(plan.Workers) || p.Bytes != c.m.Bytes() {
		t.Errorf("%+v for %d workers and %d bytes", p, len(plan.Workers), c.m.Bytes())
	}
	return p.Plan, plan
}
