package e2e

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.temporal.io/api/enums/v1"
	"go.temporal.io/api/history/v1"
	"go.temporal.io/api/workflowservice/v1"
	"google.golang.org/protobuf/proto"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/cache/placement"
	"stoker.dev/cache/placement/redisplace"
	"stoker.dev/cache/store"
	"stoker.dev/internal/api"
	"stoker.dev/planner"
	"stoker.dev/ufs/folder"
)

// What a preload of any size may take.
const (
	mostEvents                 = 2000      // of one workflow
	mostPayload                = 256 << 10 // bytes of one event
	mostRSS                    = 2 << 30   // of the controller
	mostRedisPerFile           = 0.05      // bytes, of placements
	rowsOfLargest              = 5_000_000
	filesForEachOfScaleWorkers = 1_000_000
)

// TestScale preloads a dataset of STOKER_SCALE_FILES files of 110 kB in the mean
// (1 million unless it is set) on STOKER_SCALE_WORKERS workers (one for each
// million, 3 to 1,000). Controller, Temporal and Redis are the real ones. The
// workers are stand-ins that move no data: they read plan and manifest,
// promise the space by the product's own store, each in a folder of its own,
// announce in Redis what they have, and tell it. Beyond 5 million files the manifest has 5
// million rows of larger files, so that its shard table and all that is made of it
// are those of the full number.
func TestScale(t *testing.T) {
	files := number(t, "STOKER_SCALE_FILES", 1_000_000)
	count := number(t, "STOKER_SCALE_WORKERS", min(1000, max(3, files/filesForEachOfScaleWorkers)))
	c := up(t, 1, "256MiB", func(string) {})
	c.signal("worker-1", syscall.SIGTERM) // it leaves the index
	c.eventually("no worker is left", func() bool {
		for _, w := range c.workers() {
			if w.State == "live" {
				return false
			}
		}
		return true
	})
	rows := min(files, rowsOfLargest)
	began := time.Now()
	c.enterLarge("huge", rows, int64(files/rows))
	t.Logf("manifest of %d rows made in %v", rows, time.Since(began).Round(time.Millisecond))
	s := newStandIns(t, c, count, int64(files)*110_000/int64(count)*3/2)

	began = time.Now()
	out := c.stoker("preload", "huge", "--wait", "-o", "json")
	took := time.Since(began)
	events, largest, most, runs := s.histories()
	rss := memory(t, pidOf(t, filepath.Join(c.dir, "controller.pid")), "VmHWM")
	t.Logf("%s; controller's peak RSS %.0f MiB", strings.Join(s.took, ", "), mib(rss))
	if out.code != 0 {
		t.Fatalf("exit %d: %s", out.code, out.stderr)
	}
	cert := c.certificate(out.out)
	if cert.State != "Ready" || cert.ResidentObjects != int64(rows) || len(cert.Failed) != 0 {
		t.Fatalf("certificate %+v", cert)
	}
	redis := float64(s.redisBytes()) / float64(files)
	plan := s.plan()
	t.Logf("%d files as %d shards on %d workers: Ready in %v; Redis %.4f bytes a file; %d events in %d workflows, at most %d in one, the largest of %d bytes",
		files, len(plan.Owners), count, took.Round(time.Millisecond), redis, events, runs, most, largest)
	if redis > mostRedisPerFile || redis <= 0 {
		t.Errorf("Redis holds %.4f bytes a file, want at most %v", redis, mostRedisPerFile)
	}
	if most > mostEvents || most < 10 {
		t.Errorf("a workflow has %d events, want at most %d", most, mostEvents)
	}
	if largest > mostPayload {
		t.Errorf("an event has %d bytes, want at most %d", largest, mostPayload)
	}
	if rss > mostRSS {
		t.Errorf("the controller took %.0f MiB", mib(rss))
	}
	if reserved := s.reserved(); reserved < cert.Bytes {
		t.Errorf("%d bytes were promised, the dataset has %d", reserved, cert.Bytes)
	}
}

func number(t *testing.T, name string, otherwise int) int {
	v := os.Getenv(name)
	if v == "" {
		return otherwise
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 1 {
		t.Fatalf("%s=%q: want a number", name, v)
	}
	return n
}

func pidOf(t *testing.T, file string) int {
	body, err := os.ReadFile(file)
	pid, perr := strconv.Atoi(strings.TrimSpace(string(body)))
	if err != nil || perr != nil {
		t.Fatalf("%s: %v %v", file, err, perr)
	}
	return pid
}

// standIns are workers without data.
type standIns struct {
	t       *testing.T
	c       *cluster
	index   *redisplace.Index
	all     []*standIn
	objects *manifest.Store
	took    []string // what the controller's activities took

	mu       sync.Mutex
	plans    map[stoker.ID]*planner.Plan
	parts    map[stoker.ID][][]uint32 // of a plan, by worker
	last     *planner.Plan
	promised int64
}

type standIn struct {
	s    *standIns
	w    placement.Worker
	disk *store.Store

	mu   sync.Mutex
	id   stoker.ID // manifest of which it has
	has  []uint32
	size int64
}

func newStandIns(t *testing.T, c *cluster, count int, capacity int64) *standIns {
	s := &standIns{t: t, c: c, plans: map[stoker.ID]*planner.Plan{}, parts: map[stoker.ID][][]uint32{}}
	objects, err := folder.Open(filepath.Join(c.dir, "store"))
	if err != nil {
		t.Fatal(err)
	}
	s.objects = manifest.NewStore(objects, t.TempDir())
	if s.index, err = redisplace.Open(redisplace.Options{Address: "127.0.0.1:" + c.port("redis"), Prefix: "stoker"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.index.Close() })
	dir := t.TempDir()
	for i := range count {
		x := &standIn{s: s}
		if x.disk, err = store.Open(store.Options{Dir: filepath.Join(dir, strconv.Itoa(i)), CapacityBytes: capacity}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = x.disk.Close() })
		srv := httptest.NewServer(x.routes())
		t.Cleanup(srv.Close)
		x.w = placement.Worker{ID: x.disk.WorkerID(), Incarnation: stoker.NewIncarnation(), Address: srv.URL, Socket: "/none", PID: os.Getpid(), CapacityBytes: capacity}
		if err := s.index.Register(t.Context(), x.w, time.Hour); err != nil {
			t.Fatal(err)
		}
		s.all = append(s.all, x)
	}
	return s
}

// routes are those of a worker that a preload uses.
func (x *standIn) routes() http.Handler {
	mux := http.NewServeMux()
	handle := func(route string, h func(r *http.Request) (any, error)) {
		mux.HandleFunc(route, func(w http.ResponseWriter, r *http.Request) {
			answer, err := h(r)
			if err != nil {
				api.WriteError(w, err)
				return
			}
			switch a := answer.(type) {
			case nil:
				w.WriteHeader(http.StatusNoContent)
			case api.Event:
				_ = api.NewStream(w).Send(a) // who hangs up needs none
			default:
				api.WriteJSON(w, http.StatusOK, a)
			}
		})
	}
	handle("GET /v1/version", func(*http.Request) (any, error) { return api.VersionInfo{Role: "worker", ID: x.w.ID}, nil })
	handle("GET /v1/status", func(*http.Request) (any, error) { return x.status(), nil })
	handle("PUT /v1/leases", func(*http.Request) (any, error) { return nil, nil })
	handle("PUT /v1/reservations/{plan}/{part}", x.reserve)
	handle("DELETE /v1/reservations/{plan}/{part}", func(r *http.Request) (any, error) {
		return nil, x.disk.Unreserve(r.PathValue("plan") + "-" + r.PathValue("part"))
	})
	handle("DELETE /v1/loads/{plan}/{part}", func(*http.Request) (any, error) { return nil, nil })
	handle("PUT /v1/loads/{plan}/{part}", x.load)
	handle("POST /v1/verify", func(*http.Request) (any, error) {
		x.mu.Lock()
		defer x.mu.Unlock()
		rep := api.VerifyReport{Worker: x.w.ID, Shards: []api.ShardReport{}}
		for _, n := range x.has {
			rep.Shards = append(rep.Shards, api.ShardReport{Shard: n})
		}
		return rep, nil
	})
	return mux
}

func (x *standIn) status() api.WorkerStatus {
	u := x.disk.Usage()
	st := api.WorkerStatus{WorkerInfo: api.WorkerInfo{ID: x.w.ID, Incarnation: x.w.Incarnation, Address: x.w.Address, State: "live",
		CapacityBytes: u.CapacityBytes, UsedBytes: u.UsedBytes, ReservedBytes: u.ReservedBytes}}
	x.mu.Lock()
	defer x.mu.Unlock()
	if len(x.has) > 0 {
		st.Manifests = []api.ManifestHolding{{Manifest: x.id, Dataset: "huge", Shards: len(x.has), Bytes: x.size}}
	}
	return st
}

// part reads the plan, once for all stand-ins, and returns the shards of a part.
func (x *standIn) part(r *http.Request) (p *planner.Plan, m *manifest.Manifest, shards []uint32, err error) {
	id, err := stoker.ParseID(r.PathValue("plan"))
	if err != nil {
		return nil, nil, nil, err
	}
	k, err := strconv.Atoi(r.PathValue("part"))
	if err != nil {
		return nil, nil, nil, err
	}
	s := x.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if p = s.plans[id]; p == nil {
		body, err := s.objects.GetBlob(context.Background(), "plans", id)
		if err == nil {
			p, err = planner.DecodePlan(body)
		}
		if err != nil {
			return nil, nil, nil, err
		}
		parts := make([][]uint32, len(p.Workers))
		add := func(n uint32) {
			for _, w := range p.Owners[n] {
				parts[w] = append(parts[w], n)
			}
		}
		for _, n := range p.Mended {
			add(n)
		}
		for n := 0; n < len(p.Owners) && p.Mended == nil; n++ {
			add(uint32(n))
		}
		s.plans[id], s.parts[id], s.last = p, parts, p
	}
	if k >= len(p.Workers) || p.Workers[k].ID != x.w.ID {
		return nil, nil, nil, stoker.Errorf(stoker.KindInvalid, "plan", id.Short(), "part %d is not this worker's", k)
	}
	m, err = s.objects.Load(context.Background(), p.Manifest)
	return p, m, s.parts[id][k], err
}

// reserve promises the space as a worker does: durably, or not at all.
func (x *standIn) reserve(r *http.Request) (any, error) {
	_, m, shards, err := x.part(r)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	var rep api.ReserveReport
	var largest int64
	here := map[uint32]bool{}
	x.mu.Lock()
	for _, n := range x.has {
		here[n] = true
	}
	x.mu.Unlock()
	for _, n := range shards {
		d := m.Shard(n)
		if here[n] {
			rep.ResidentBytes += d.Bytes
			continue
		}
		charge := x.disk.ChargeBytes(d.Bytes, int(d.Blocks))
		rep.NeededBytes, largest = rep.NeededBytes+charge, max(largest, charge)
	}
	err = x.disk.ReserveFor(r.PathValue("plan")+"-"+r.PathValue("part"), rep.NeededBytes, largest)
	if err == nil {
		x.s.mu.Lock()
		x.s.promised += rep.NeededBytes
		x.s.mu.Unlock()
	}
	return rep, err
}

// load says that all has come, and announces it.
func (x *standIn) load(r *http.Request) (any, error) {
	p, m, shards, err := x.part(r)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	marks, bytes := make([]placement.Mark, len(shards)), int64(0)
	for i, n := range shards {
		marks[i], bytes = placement.Mark{Shard: n, Whole: true}, bytes+m.Shard(n).Bytes
	}
	if err := x.s.index.Announce(r.Context(), x.w.Incarnation, p.Manifest, marks); err != nil {
		return nil, err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if p.Mended != nil { // beside what came before
		here := map[uint32]bool{}
		for _, n := range x.has {
			here[n] = true
		}
		for _, n := range shards {
			if !here[n] {
				x.has, x.size = append(x.has, n), x.size+m.Shard(n).Bytes
			}
		}
	} else {
		x.has, x.size = slices.Clone(shards), bytes
	}
	x.id = p.Manifest
	done := api.LoadProgress{Run: x.w.ID, Cursor: len(shards), Shards: len(shards), Bytes: bytes, TotalBytes: bytes, UFSBytes: bytes, UFSRequests: int64(len(shards)), Done: true}
	return api.Event{Load: &done}, nil
}

func (s *standIns) plan() *planner.Plan {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last
}

func (s *standIns) reserved() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.promised
}

// redisBytes is what Redis takes for all placements, keys and their entries in
// its tables included.
func (s *standIns) redisBytes() (sum int64) {
	c := redis.NewClient(&redis.Options{Addr: "127.0.0.1:" + s.c.port("redis")})
	defer c.Close()
	for cursor := uint64(0); ; {
		keys, next, err := c.Scan(s.t.Context(), cursor, "stoker:p:*", 1000).Result()
		if err != nil {
			s.t.Fatal(err)
		}
		sizes, err := c.Pipelined(s.t.Context(), func(p redis.Pipeliner) error {
			for _, k := range keys {
				p.MemoryUsage(s.t.Context(), k, 0)
			}
			return nil
		})
		if err != nil {
			s.t.Fatal(err)
		}
		for _, n := range sizes {
			sum += n.(*redis.IntCmd).Val()
		}
		if cursor = next; cursor == 0 {
			return sum
		}
	}
}

// histories reads those of all workflows.
func (s *standIns) histories() (events, largest, most, runs int) {
	tc := s.c.temporal("default")
	page, err := tc.ListWorkflow(s.t.Context(), &workflowservice.ListWorkflowExecutionsRequest{})
	if err != nil {
		s.t.Fatal(err)
	}
	for _, w := range page.Executions {
		if w.Type.Name == "temporal-sys-scheduler-workflow" {
			continue
		}
		runs++
		n, scheduled := 0, map[int64]*history.HistoryEvent{}
		all := tc.GetWorkflowHistory(s.t.Context(), w.Execution.WorkflowId, w.Execution.RunId, false, enums.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT)
		for all.HasNext() {
			e, err := all.Next()
			if err != nil {
				s.t.Fatal(err)
			}
			n, largest = n+1, max(largest, proto.Size(e))
			if a := e.GetActivityTaskScheduledEventAttributes(); a != nil {
				scheduled[e.EventId] = e
			} else if a := e.GetActivityTaskCompletedEventAttributes(); a != nil {
				name := scheduled[a.ScheduledEventId].GetActivityTaskScheduledEventAttributes().ActivityType.Name
				if name == "Plan" || name == "Reserve" || name == "Verify" {
					s.took = append(s.took, fmt.Sprintf("%s %v", name, e.EventTime.AsTime().Sub(scheduled[a.ScheduledEventId].EventTime.AsTime()).Round(time.Millisecond)))
				}
			}
		}
		events, most = events+n, max(most, n)
	}
	return events, largest, most, runs
}
