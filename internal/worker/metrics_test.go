package worker

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/cache/placement"
	"stoker.dev/internal/api"
	"stoker.dev/ufs"
	"stoker.dev/ufs/folder"
	"stoker.dev/ufs/memufs"
)

// watchedWorker is a running worker whose UFS is in memory.
type watchedWorker struct {
	*Worker
	ufs    *memufs.FS
	socket *http.Client
	stop   func() // in order; it may be called again
}

func startWatched(t *testing.T) *watchedWorker {
	t.Helper()
	objects, err := folder.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return watch(t, Options{
		Dir: filepath.Join(t.TempDir(), "cache"), CapacityBytes: 1 << 30, Objects: objects, Index: placement.NewMem(time.Now),
		Socket: filepath.Join(t.TempDir(), "w.sock"), Version: "v-test",
	}, memufs.New())
}

// again stops the worker and starts its next life.
func (w *watchedWorker) again(t *testing.T) *watchedWorker {
	t.Helper()
	w.stop()
	return watch(t, w.o, w.ufs)
}

func watch(t *testing.T, o Options, fs *memufs.FS) *watchedWorker {
	t.Helper()
	w, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	x := &watchedWorker{Worker: w, ufs: fs}
	w.mounts.Register("mem", func(context.Context, string, ufs.Location) (ufs.FS, error) { return x.ufs, nil })
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return api.DialUnix(ctx, w.o.Socket) }}
	x.socket = &http.Client{Transport: transport}
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- w.Run(ctx, func() { close(ready) }) }()
	x.stop = sync.OnceFunc(func() {
		transport.CloseIdleConnections()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(x.stop)
	select {
	case <-ready:
	case err := <-ended:
		ended <- err
		t.Fatal(err)
	}
	return x
}

// freeze makes a manifest of what is in the UFS.
func (w *watchedWorker) freeze(t *testing.T) stoker.ID {
	t.Helper()
	b, err := manifest.Build(t.Context(), manifest.BuildOptions{
		Roots: []manifest.Root{{Location: ufs.Location{URI: "mem://data"}}}, Open: w.mounts.Open, TempDir: t.TempDir(),
	})
	if err == nil {
		err = w.manifests.Put(t.Context(), b)
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.ID
}

func (w *watchedWorker) do(t *testing.T, method, path string, in any) []byte {
	t.Helper()
	body, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, "http://worker"+path, strings.NewReader(string(body)))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := w.socket.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	out, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode/100 != 2 {
		t.Fatalf("%s %s: %s, %v: %s", method, path, resp.Status, err, out)
	}
	return out
}

// series reads /metrics: values by name and labels, as they are written.
func series(t testing.TB, client *http.Client, url string) map[string]float64 {
	t.Helper()
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK || !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/plain") {
		t.Fatalf("%s: %s, %s, %v: %s", url, resp.Status, resp.Header.Get("Content-Type"), err, body)
	}
	out := map[string]float64{}
	for line := range strings.Lines(string(body)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "} ")
		if strings.HasPrefix(line, "#") {
			continue
		}
		if value == "" {
			name, value, _ = strings.Cut(strings.TrimSpace(line), " ")
		} else {
			name += "}"
		}
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		out[name] = v
	}
	return out
}

func wantSeries(t *testing.T, when string, got, want map[string]float64) {
	t.Helper()
	for name, v := range want {
		if g, ok := got[name]; !ok || g != v {
			t.Errorf("%s: %s is %v (there: %v), want %v", when, name, g, ok, v)
		}
	}
}

// What a job reads through a view is counted where it came from; who holds
// the data decides what is evictable.
func TestMetricsOfReads(t *testing.T) {
	w := startWatched(t)
	const objects, size = 3, 300_000
	for i := range objects {
		w.ufs.Put(fmt.Sprintf("f%d", i), make([]byte, size))
	}
	id, dir := w.freeze(t), t.TempDir()
	w.do(t, http.MethodPost, "/v1/mounts", api.MountRequest{Dataset: "pets", Manifest: id, Dir: dir})
	cat := func() {
		t.Helper()
		files, err := filepath.Glob(filepath.Join(dir, "f*"))
		if err != nil || len(files) != objects {
			t.Fatalf("%v, %v", files, err)
		}
		// Another process: one that reads its own mount may wait for itself.
		if out, err := exec.Command("cat", files...).Output(); err != nil || len(out) != objects*size {
			t.Fatalf("%d bytes, %v", len(out), err)
		}
	}
	cat()
	w.do(t, http.MethodPut, "/v1/leases", api.LeaseRequest{Leases: []api.Lease{{Holder: "j1", Manifest: id, TTLSeconds: 60}}})
	w.do(t, http.MethodGet, "/v1/manifests/"+id.String()+"/shards/0/blocks?from=0&to=2", nil)
	over := series(t, http.DefaultClient, w.address+"/metrics")                   // by TCP, without a token, on loopback
	for over["stoker_flights_running"]+over[`stoker_shards{state="open"}`] != 0 { // who has read need not wait for the shard to be sealed
		over = series(t, http.DefaultClient, w.address+"/metrics")
	}
	wantSeries(t, "mounted", over, map[string]float64{
		`stoker_read_bytes_total{source="ufs"}`: objects * size, `stoker_read_bytes_total{source="local"}`: objects * size,
		`stoker_read_bytes_total{source="peer"}`: 0, `stoker_ufs_bytes_total`: objects * size, `stoker_ufs_requests_total`: objects,
		`stoker_ufs_retried_bytes_total`: 0, `stoker_ufs_bypass_bytes_total`: 0, `stoker_ufs_bypass_requests_total`: 0, `stoker_corrupt_blocks_total`: 0,
		`stoker_peer_served_bytes_total`: size, // blocks 0 and 1: the first object
		`stoker_views`:                   1, `stoker_leases`: 1, `stoker_loads_running`: 0, `stoker_flights_running`: 0,
		`stoker_shards{state="sealed"}`: 1, `stoker_shards{state="open"}`: 0,
		`stoker_cache_capacity_bytes`: 1 << 30, `stoker_cache_reserved_bytes`: 0, `stoker_cache_evictable_bytes`: 0,
		`stoker_cache_held_bytes`: over["stoker_cache_used_bytes"],
		`stoker_http_requests_total{code="204",method="PUT",route="/v1/leases"}`:      1,
		`stoker_http_request_duration_seconds_count{method="PUT",route="/v1/leases"}`: 1,
		`stoker_read_wait_seconds_total{cause="load"}`:                                0,
		`stoker_read_ahead_wasted_bytes_total`:                                        0, `stoker_read_patterns_total{pattern="steps"}`: 0,
		`stoker_read_patterns_total{pattern="file"}`: 0, `stoker_random_reads_total`: 0, `stoker_random_spared_bytes_total`: 0,
	})
	var of api.ReadCounters
	if err := json.Unmarshal(w.do(t, http.MethodPost, "/v1/reads", api.ReadsRequest{Manifests: []stoker.ID{id, {1}}}), &of); err != nil {
		t.Fatal(err)
	}
	if of.UFSBytes != objects*size || of.LocalBytes != objects*size || of.FUSEReads != int64(over["stoker_fuse_reads_total"]) ||
		of.Waits.UFSSeconds <= 0 || of.Waits.UFSSeconds != over[`stoker_read_wait_seconds_total{cause="ufs"}`] {
		t.Errorf("of the dataset alone %+v, waits %+v", of, of.Waits)
	}
	if err := json.Unmarshal(w.do(t, http.MethodPost, "/v1/reads", api.ReadsRequest{Manifests: []stoker.ID{{1}}}), &of); err != nil || of.UFSBytes != 0 || of.FUSEReads != 0 {
		t.Errorf("of another dataset %+v, %v", of, err)
	}
	reads := over["stoker_fuse_reads_total"]
	if reads < objects || over["stoker_cache_used_bytes"] < objects*size {
		t.Errorf("%v READs, %v bytes used", reads, over["stoker_cache_used_bytes"])
	}
	w.do(t, http.MethodDelete, "/v1/mounts?lazy=true&dir="+dir, nil)
	w.do(t, http.MethodPut, "/v1/leases", api.LeaseRequest{Drop: []string{"j1"}})
	w.afterViews(t)
	after := series(t, http.DefaultClient, w.address+"/metrics")
	wantSeries(t, "unmounted", after, map[string]float64{`stoker_views`: 0, `stoker_leases`: 0, `stoker_fuse_reads_total`: reads})
	if all := after["stoker_fuse_requests_total"]; all <= reads || all < over["stoker_fuse_requests_total"] {
		t.Errorf("%v requests of any kind after the view has ended, %v before, %v READs", all, over["stoker_fuse_requests_total"], reads)
	}
	free, err := w.cache.FreeableBytes(t.Context())
	if err != nil || free < objects*size {
		t.Fatalf("%d freeable, %v", free, err)
	}
	fresh := w.watched() // asks anew, without waiting until the last answer is too old
	defer fresh.Close()
	rec := newRecorded(t, fresh.Handler())
	wantSeries(t, "held by nobody", rec, map[string]float64{`stoker_cache_evictable_bytes`: float64(free), `stoker_evicted_shards_total{policy="keep",reason="asked"}`: 0})
	if _, err := w.cache.Evict(t.Context(), id, false); err != nil {
		t.Fatal(err)
	}
	wantSeries(t, "evicted", newRecorded(t, fresh.Handler()), map[string]float64{
		`stoker_evicted_shards_total{policy="keep",reason="asked"}`: 1, `stoker_evicted_shards_total{policy="keep",reason="idle"}`: 0,
		`stoker_evicted_bytes_total{policy="keep",reason="asked"}`: objects * ((size + stoker.AlignBytes - 1) / stoker.AlignBytes * stoker.AlignBytes),
	})
}

// afterViews waits until views that were unmounted are forgotten.
func (w *watchedWorker) afterViews(t *testing.T) {
	t.Helper()
	done := make(chan struct{})
	go func() { w.views.serving.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("a view does not end")
	}
}

// newRecorded scrapes a api.Handler over HTTP.
func newRecorded(t *testing.T, h http.Handler) map[string]float64 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h, ReadHeaderTimeout: time.Second}
	go func() { _ = s.Serve(l) }()
	defer s.Close()
	return series(t, http.DefaultClient, "http://"+l.Addr().String())
}

// Profiles are on the socket, and nowhere else.
func TestProfilesAreNotOnTCP(t *testing.T) {
	w := startWatched(t)
	for _, path := range []string{"/debug/pprof/", "/debug/pprof/heap", "/debug/pprof/profile", "/debug/pprof/cmdline"} {
		resp, err := http.Get(w.address + path)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusNotFound {
			t.Errorf("%s by TCP: %s", path, resp.Status)
		}
	}
	if out := w.do(t, http.MethodGet, "/debug/pprof/", nil); !strings.Contains(string(out), "goroutine") {
		t.Errorf("on the socket: %s", out)
	}
	if out := w.do(t, http.MethodGet, "/debug/pprof/goroutine?debug=1", nil); !strings.Contains(string(out), "worker.(*Worker).Run") {
		t.Errorf("goroutines on the socket: %.200s", out)
	}
}
