package control

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"stoker.dev"
	"stoker.dev/cache/placement"
	"stoker.dev/internal/api"
	"stoker.dev/ufs/folder"
	"stoker.dev/workflows"
)

// told is an index that knows its version and time as a test says.
type told struct {
	*placement.Mem
	version string
	ahead   time.Duration
	err     error
}

func (s told) Server(context.Context) (string, time.Time, error) {
	return s.version, time.Now().Add(s.ahead), s.err
}

func openController(t *testing.T, index placement.Index) *Controller {
	t.Helper()
	dir := t.TempDir()
	objects, err := folder.Open(filepath.Join(dir, "store"))
	if err != nil {
		t.Fatal(err)
	}
	// Nobody listens on port 1.
	flows, err := workflows.NewClient(workflows.ClientOptions{Address: "127.0.0.1:1", Cluster: "c", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(flows.Close)
	c, err := Open(Options{Objects: objects, Index: index, Flows: flows, Dir: filepath.Join(dir, "dir"), Socket: filepath.Join(dir, "c.sock")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.closeListeners)
	return c
}

func examine(t *testing.T, c *Controller) map[string]api.Check {
	t.Helper()
	rec := httptest.NewRecorder()
	c.routes().ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/v1/doctor", nil))
	var rep api.DoctorReport
	if err := json.Unmarshal(rec.Body.Bytes(), &rep); err != nil || rep.Role != "controller" {
		t.Fatalf("%d %s: %v", rec.Code, rec.Body, err)
	}
	out := map[string]api.Check{}
	for _, x := range rep.Checks {
		out[x.Name] = x
	}
	return out
}

func workerAt(t *testing.T, index *placement.Mem, id string, n stoker.Incarnation, h http.HandlerFunc) {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	if err := index.Register(t.Context(), placement.Worker{ID: id, Incarnation: n, Address: s.URL}, time.Hour); err != nil {
		t.Fatal(err)
	}
}

// The controller reports on all it needs: Temporal is down here, Redis up, two
// workers live, of which one has a full disk and a clock of its own.
func TestDoctor(t *testing.T) {
	mem := placement.NewMem(time.Now)
	workerAt(t, mem, "aaaaaaaaaaaaaaaa", 1, func(w http.ResponseWriter, _ *http.Request) {
		api.WriteJSON(w, 200, api.DoctorReport{Role: "worker", Time: time.Now(), Checks: []api.Check{{Name: "index", State: api.CheckOK}}})
	})
	workerAt(t, mem, "bbbbbbbbbbbbbbbb", 2, func(w http.ResponseWriter, _ *http.Request) {
		api.WriteJSON(w, 200, api.DoctorReport{Role: "worker", Time: time.Now().Add(-time.Minute), Checks: []api.Check{{Name: "cache-folder", State: api.CheckFail, Detail: "no space left", Hint: "make room"}}})
	})
	got := examine(t, openController(t, told{Mem: mem, version: "7.2.1"}))
	for name, c := range map[string]struct{ state, part string }{
		"redis": {api.CheckOK, "version 7.2.1"}, "clock": {api.CheckOK, "clock of Redis"}, "temporal": {api.CheckFail, "127.0.0.1:1"},
		"manifest-store": {api.CheckOK, "written, read and deleted"}, "folder": {api.CheckOK, "can be written"}, "workers": {api.CheckOK, "2 live, none lost"},
		"worker-aaaaaaaaaaaa": {api.CheckOK, "2 checks are fine"}, "worker-bbbbbbbbbbbb": {api.CheckFail, "cache-folder: no space left"},
	} {
		if x := got[name]; x.State != c.state || !strings.Contains(x.Detail, c.part) || (x.Hint == "") != (c.state == api.CheckOK) {
			t.Errorf("%s: %+v", name, x)
		}
	}
	if b := got["worker-bbbbbbbbbbbb"]; b.Hint != "make room" || !strings.Contains(b.Detail, "its clock is 1m0s behind") {
		t.Errorf("the worst is not said first: %+v", b)
	}
}

func TestDoctorWithoutWorkers(t *testing.T) {
	mem := placement.NewMem(time.Now)
	c := openController(t, mem)
	if x := examine(t, c)["workers"]; x.State != api.CheckFail || !strings.Contains(x.Hint, "start 'stokerd worker'") {
		t.Errorf("none: %+v", x)
	}
	// One that does not answer, then one that is lost, too.
	if err := mem.Register(t.Context(), placement.Worker{ID: "cccc", Incarnation: 3, Address: "http://127.0.0.1:1"}, time.Hour); err != nil {
		t.Fatal(err)
	}
	if x := examine(t, c)["worker-cccc"]; x.State != api.CheckFail || !strings.Contains(x.Hint, "--advertise") {
		t.Errorf("it does not answer: %+v", x)
	}
	if err := mem.Leave(t.Context(), 3); err != nil {
		t.Fatal(err)
	}
	if x := examine(t, c)["workers"]; x.State != api.CheckFail || !strings.Contains(x.Detail, "none is live, 1 lost") {
		t.Errorf("lost: %+v", x)
	}
	// One that is drained takes nothing either.
	if err := mem.Register(t.Context(), placement.Worker{ID: "dddd", Incarnation: 4, Address: "http://127.0.0.1:1", Draining: true}, time.Hour); err != nil {
		t.Fatal(err)
	}
	if x := examine(t, c)["workers"]; x.State != api.CheckFail || !strings.Contains(x.Detail, "none is in service: 1 drained, 1 lost") || !strings.Contains(x.Hint, "undrain dddd") {
		t.Errorf("drained: %+v", x)
	}
}

func TestCheckRedis(t *testing.T) {
	refused := stoker.Errorf(stoker.KindTransient, "redis.time", "", "connection refused")
	for name, c := range map[string]struct {
		s           told
		redis, time string
	}{
		"well": {told{version: "7.0.15"}, api.CheckOK, api.CheckOK}, "old": {told{version: "6.2.9"}, api.CheckWarn, api.CheckOK}, "embedded": {told{}, api.CheckOK, api.CheckOK},
		"down": {told{err: refused}, api.CheckFail, api.CheckFail}, "ahead": {told{version: "8.0", ahead: 10 * time.Second}, api.CheckOK, api.CheckWarn}, "far behind": {told{version: "7.4", ahead: -time.Hour}, api.CheckOK, api.CheckFail},
	} {
		if got := checkRedis(t.Context(), c.s); got.State != c.redis {
			t.Errorf("%s: redis %+v", name, got)
		}
		if got := checkClock(t.Context(), c.s); got.State != c.time {
			t.Errorf("%s: clock %+v", name, got)
		}
	}
}

// Both counters of a worker come through to those who show rates.
func TestWorkersTellTheirReads(t *testing.T) {
	mem := placement.NewMem(time.Now)
	workerAt(t, mem, "aaaa", 1, func(w http.ResponseWriter, _ *http.Request) {
		api.WriteJSON(w, 200, api.WorkerStatus{WorkerInfo: api.WorkerInfo{ID: "aaaa", State: api.WorkerLive}, Reads: api.ReadCounters{UFSBytes: 7, PeerBytes: 8}})
	})
	c := openController(t, mem)
	rec := httptest.NewRecorder()
	c.routes().ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/v1/workers", nil))
	var all []api.WorkerInfo
	if err := json.Unmarshal(rec.Body.Bytes(), &all); err != nil || !slices.ContainsFunc(all, func(w api.WorkerInfo) bool { return w.Reads != nil && w.Reads.UFSBytes == 7 && w.Reads.PeerBytes == 8 }) {
		t.Errorf("%s, %v", rec.Body, err)
	}
}
