package control

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/cache/placement"
	"stoker.dev/internal/api"
	"stoker.dev/ufs"
	"stoker.dev/ufs/folder"
	"stoker.dev/workflows"
)

const watchedToken = "0123456789abcdef-ann"

// watchedController is a running controller, reached as its users reach it:
// over its socket, and by TCP with a token.
type watchedController struct {
	*Controller
	index   placement.Index
	objects ufs.Objects
	socket  *http.Client
	tcp     string
}

// startWatched runs a controller on a Temporal at some address.
func startWatched(t *testing.T, temporal string, index placement.Index) *watchedController {
	t.Helper()
	dir := t.TempDir()
	tokens := filepath.Join(dir, "tokens")
	if err := os.WriteFile(tokens, []byte("stoker 0123456789abcdef\nann "+watchedToken+"\nbob "+bobsToken+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	known, err := api.LoadTokens(tokens)
	if err != nil {
		t.Fatal(err)
	}
	objects, err := folder.Open(filepath.Join(dir, "store"))
	if err != nil {
		t.Fatal(err)
	}
	flows, err := workflows.NewClient(workflows.ClientOptions{Address: temporal, Cluster: "default", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	c, err := Open(Options{
		Objects: objects, Index: index, Flows: flows, Dir: filepath.Join(dir, "work"), Socket: filepath.Join(dir, "c.sock"),
		Listen: "127.0.0.1:0", Tokens: known, Version: "v-test",
	})
	if err != nil {
		t.Fatal(err)
	}
	w := &watchedController{Controller: c, index: index, objects: objects, tcp: "http://" + c.listeners[1].Addr().String()}
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return api.DialUnix(ctx, c.o.Socket) }}
	w.socket = &http.Client{Transport: transport}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx, func() {}) }()
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		flows.Close()
	})
	return w
}

// answer is what one request got.
type answer struct {
	status int
	kind   string // content type
	body   []byte
}

func (w *watchedController) get(t testing.TB, client *http.Client, url, token string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header.Get("Content-Type"), body}
}

// series are the values that /metrics gives, by name and labels.
func series(t testing.TB, a answer) map[string]float64 {
	t.Helper()
	if a.status != http.StatusOK || !strings.HasPrefix(a.kind, "text/plain") {
		t.Fatalf("%d, %s: %s", a.status, a.kind, a.body)
	}
	out := map[string]float64{}
	for line := range strings.Lines(string(a.body)) {
		line = strings.TrimSpace(line)
		i := strings.LastIndexByte(line, ' ')
		if strings.HasPrefix(line, "#") || i < 0 {
			continue
		}
		v, err := strconv.ParseFloat(line[i+1:], 64)
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		out[line[:i]] = v
	}
	return out
}

func wantSeries(t *testing.T, got, want map[string]float64) {
	t.Helper()
	for name, v := range want {
		if g, ok := got[name]; !ok || g != v {
			t.Errorf("%s is %v (there: %v), want %v", name, g, ok, v)
		}
	}
}

func number(n byte) stoker.ID { return stoker.ID{n} }

// register enters a dataset whose manifest nobody has to read.
func (w *watchedController) register(t *testing.T, name string, bytes int64, id stoker.ID) {
	t.Helper()
	err := w.manifests.CreateDataset(t.Context(), &manifest.Dataset{
		Name: name, Owner: "ann", Created: time.Now().UTC(), Roots: []manifest.Root{{Location: ufs.Location{URI: "s3://bucket/" + name}}},
		Generations: []manifest.Generation{{Number: 1, Manifest: id, Bytes: bytes, Objects: 1, ListedAt: time.Now().UTC()}},
	})
	if err != nil {
		t.Fatal(err)
	}
}

// join enters a worker that answers with what it holds, into the index.
func (w *watchedController) join(t *testing.T, n stoker.Incarnation, held ...api.ManifestHolding) *httptest.Server {
	t.Helper()
	info := api.WorkerInfo{ID: fmt.Sprintf("worker-%d", n), Incarnation: n, State: "live", CapacityBytes: 1 << 30}
	srv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/v1/status":
			api.WriteJSON(rw, http.StatusOK, api.WorkerStatus{WorkerInfo: info, Manifests: held})
		default: // among them the renewal of leases
			api.WriteError(rw, stoker.Errorf(stoker.KindDenied, "test", "", "not by me"))
		}
	}))
	t.Cleanup(srv.Close)
	err := w.index.Register(t.Context(), placement.Worker{ID: info.ID, Incarnation: n, Address: srv.URL, CapacityBytes: 1 << 30}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return srv
}

func TestMetricsOfTheCluster(t *testing.T) {
	flows, address := startFlows(t)
	w := startWatched(t, address, placement.NewMem(time.Now))
	w.register(t, "pets", 1000, number(1))
	w.register(t, "cars", 4000, number(2))
	w.register(t, "none", 0, number(3))
	w.join(t, 1, api.ManifestHolding{Manifest: number(1), Bytes: 700}, api.ManifestHolding{Manifest: number(2), Bytes: 3000})
	w.join(t, 2, api.ManifestHolding{Manifest: number(1), Bytes: 600})
	gone := w.join(t, 3)
	gone.Close()
	flows.addSet(workflows.DatasetState{Dataset: "pets", Manifest: number(1), State: api.JobReady})
	flows.addSet(workflows.DatasetState{Dataset: "cars", Manifest: number(2), State: api.JobWarming})
	for id, j := range map[string]workflows.JobState{
		"a": {State: api.JobLeased, Input: workflows.JobInput{Datasets: []workflows.JobDataset{{Manifest: number(1)}}}},
		"b": {State: api.JobPlanned, Input: workflows.JobInput{Datasets: []workflows.JobDataset{{Manifest: number(2)}}}},
		"c": {State: api.JobPlanned, Input: workflows.JobInput{Datasets: []workflows.JobDataset{{Manifest: number(9)}}}},
	} {
		j.Input.Job, j.Outcomes = id, make([]workflows.Outcome, 1)
		flows.add(j)
	}
	w.renewOnce(t.Context())
	if a := w.get(t, w.socket, "http://c/v1/jobs/b", ""); a.status != http.StatusOK {
		t.Fatalf("%d: %s", a.status, a.body)
	}
	w.get(t, w.socket, "http://c/v1/jobs/nobody", "")
	got := series(t, w.get(t, http.DefaultClient, w.tcp+"/metrics", watchedToken))
	wantSeries(t, got, map[string]float64{
		`stoker_temporal_up`: 1, `stoker_redis_up`: 1,
		`stoker_workers{state="live"}`: 2, `stoker_workers{state="lost"}`: 1,
		`stoker_datasets_registered`: 3, `stoker_dataset_bytes{dataset="cars"}`: 4000,
		`stoker_dataset_resident_bytes{dataset="pets"}`: 1000, `stoker_dataset_resident_bytes{dataset="cars"}`: 3000,
		`stoker_dataset_resident_ratio{dataset="pets"}`: 1, `stoker_dataset_resident_ratio{dataset="cars"}`: 0.75, `stoker_dataset_resident_ratio{dataset="none"}`: 1,
		`stoker_datasets{state="Ready"}`: 1, `stoker_datasets{state="Warming"}`: 1, `stoker_datasets{state="Failed"}`: 0,
		`stoker_jobs{state="Leased"}`: 1, `stoker_jobs{state="Warming"}`: 1, `stoker_jobs{state="Planned"}`: 1, `stoker_jobs{state="Degraded"}`: 0,
		`stoker_http_requests_total{code="200",method="GET",route="/v1/jobs/{job}"}`:      1,
		`stoker_http_requests_total{code="404",method="GET",route="/v1/jobs/{job}"}`:      1,
		`stoker_http_request_duration_seconds_count{method="GET",route="/v1/jobs/{job}"}`: 2,
		`stoker_lease_renewals_total`: 1, `stoker_lease_renewal_failures_total{reason="worker"}`: 3, `stoker_lease_renewal_failures_total{reason="temporal"}`: 0,
	})
	if a := w.get(t, http.DefaultClient, w.tcp+"/metrics", ""); a.status != http.StatusForbidden {
		t.Errorf("without a token: %d", a.status)
	}
	flows.mu.Lock()
	asked := flows.asks
	flows.mu.Unlock()
	for range 5 {
		w.get(t, w.socket, "http://c/metrics", "")
	}
	flows.mu.Lock()
	defer flows.mu.Unlock()
	if flows.asks > asked+2 { // once a second
		t.Errorf("5 more scrapes asked Temporal %d more times", flows.asks-asked)
	}
}

// deadIndex is a Redis that does not answer.
type deadIndex struct{ placement.Index }

func (deadIndex) Workers(context.Context) ([]placement.Worker, error) {
	return nil, stoker.Errorf(stoker.KindTransient, "index", "", "does not answer")
}

// Without Temporal and Redis a scrape says so, soon, and leaves out what it
// cannot know.
func TestMetricsWithoutTemporalAndRedis(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // accepts, and never says a word
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	w := startWatched(t, l.Addr().String(), deadIndex{placement.NewMem(time.Now)})
	w.register(t, "pets", 1000, number(1))
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	w.renewOnce(short)
	began := time.Now()
	got := series(t, w.get(t, w.socket, "http://c/metrics", ""))
	if took := time.Since(began); took > askAll+time.Second {
		t.Errorf("a scrape took %v", took)
	}
	wantSeries(t, got, map[string]float64{`stoker_temporal_up`: 0, `stoker_redis_up`: 0, `stoker_lease_renewal_failures_total{reason="temporal"}`: 1, `stoker_datasets_registered`: 1, `stoker_dataset_bytes{dataset="pets"}`: 1000})
	for name := range got {
		for _, unknown := range []string{"stoker_jobs", "stoker_workers", "stoker_datasets{", "stoker_dataset_resident"} {
			if strings.HasPrefix(name, unknown) {
				t.Errorf("%s is shown though nobody can know it", name)
			}
		}
	}
}

// A thousand datasets make 200 series, of the largest.
func TestSeriesOfDatasetsAreBounded(t *testing.T) {
	var all []api.DatasetInfo
	for i := range 1000 {
		all = append(all, api.DatasetInfo{Name: fmt.Sprint(i), Bytes: int64(i * 7 % 1000)})
	}
	some := largest(all)
	if len(some) != datasetsSeen {
		t.Fatalf("%d datasets", len(some))
	}
	for _, d := range some {
		if d.Bytes < 800 {
			t.Errorf("dataset of %d bytes", d.Bytes)
		}
	}
	if all[1].Name != "1" {
		t.Error("the caller's list was sorted")
	}
}

// A job is counted in the state that users see.
func TestJobsAreCountedAsUsersSeeThem(t *testing.T) {
	sets := []workflows.DatasetState{{Manifest: number(1), State: api.JobWarming}, {Manifest: number(2), State: api.JobQueued}, {Manifest: number(3), State: api.JobReady}}
	for name, c := range map[string]struct {
		state string
		data  []stoker.ID
		known string // outcome of the first dataset
		want  string
	}{
		"nothing known":      {api.JobPlanned, []stoker.ID{number(9)}, "", api.JobPlanned},
		"warming":            {api.JobPlanned, []stoker.ID{number(1)}, "", api.JobWarming},
		"one queued":         {api.JobPlanned, []stoker.ID{number(1), number(2)}, "", api.JobQueued},
		"in the other order": {api.JobPlanned, []stoker.ID{number(2), number(1)}, "", api.JobQueued},
		"its own is there":   {api.JobPlanned, []stoker.ID{number(1)}, api.JobReady, api.JobPlanned},
		"started on a miss":  {api.JobDegraded, []stoker.ID{number(1)}, "", api.JobDegraded},
		"ended":              {api.JobReleased, []stoker.ID{number(1)}, "", api.JobReleased},
	} {
		j := workflows.JobState{State: c.state, Outcomes: make([]workflows.Outcome, len(c.data))}
		j.Outcomes[0].State = c.known
		for _, id := range c.data {
			j.Input.Datasets = append(j.Input.Datasets, workflows.JobDataset{Manifest: id})
		}
		if got := jobStates([]workflows.JobState{j}, sets); got[c.want] != 1 {
			t.Errorf("%s: %v, want one %s", name, got, c.want)
		}
	}
}

// Profiles are on the controller's socket, and nowhere else, whoever asks.
func TestProfilesAreNotOnTCP(t *testing.T) {
	_, address := startFlows(t)
	w := startWatched(t, address, placement.NewMem(time.Now))
	for _, token := range []string{watchedToken, "0123456789abcdef"} {
		for _, path := range []string{"/debug/pprof/", "/debug/pprof/heap", "/debug/pprof/profile"} {
			a := w.get(t, http.DefaultClient, w.tcp+path, token)
			var body api.ErrorBody
			if a.status != http.StatusNotFound || json.Unmarshal(a.body, &body) != nil || body.Kind != "notexist" {
				t.Errorf("%s by TCP: %d: %s", path, a.status, a.body)
			}
		}
	}
	if a := w.get(t, w.socket, "http://c/debug/pprof/goroutine?debug=1", ""); a.status != http.StatusOK || !strings.Contains(string(a.body), "control.(*Controller).Run") {
		t.Errorf("on the socket: %d: %.200s", a.status, a.body)
	}
}
