package main

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"stoker.dev"
	"stoker.dev/internal/api"
)

// names returns the keys of a JSON object.
func names(m map[string]any) []string {
	var out []string
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

func wantNames(t *testing.T, what string, m map[string]any, list string) {
	t.Helper()
	for _, want := range strings.Fields(list) {
		if _, ok := m[want]; !ok {
			t.Errorf("%s: no %q in %v", what, want, names(m))
		}
	}
}

const (
	jobNames     = "job state owner datasets bytes residentBytes etaSeconds"
	workerNames  = "id incarnation address socket pid state capacityBytes usedBytes reservedBytes"
	datasetNames = "name uris owner generation manifest objects bytes residentBytes listedAt"
	certNames    = "dataset generation manifest state objects bytes residentObjects residentBytes ufsRequests ufsBytes refetched seconds failed unmountable checksums"
)

func TestListsAsJSON(t *testing.T) {
	listed := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	all := api.Status{
		Jobs:     []api.JobLine{{Job: "j", State: api.JobReady, Datasets: []string{"data"}, ETASeconds: -1}},
		Workers:  []api.WorkerInfo{{ID: "w", Incarnation: 255, PID: 7}},
		Datasets: []api.DatasetInfo{{Name: "data", URIs: []string{"s3://b"}, ListedAt: listed}},
	}
	rs := routes{"GET /v1/jobs": answer(all.Jobs), "GET /v1/workers": answer(all.Workers), "GET /v1/datasets": answer(all.Datasets), "GET /v1/status": answer(all)}
	for line, list := range map[string]string{"jobs": jobNames, "workers": workerNames, "dataset ls": datasetNames} {
		var got []map[string]any
		newRig(t, rs, nil).json(&got, 0, strings.Fields(line)...)
		if len(got) != 1 {
			t.Fatalf("%s: %v", line, got)
		}
		wantNames(t, line, got[0], list)
		if at, ok := got[0]["listedAt"]; ok && at != "2026-01-02T03:04:05Z" {
			t.Errorf("%s: listed at %v", line, at)
		}
	}
	var got map[string][]map[string]any
	newRig(t, rs, nil).json(&got, 0, "status")
	if len(got["jobs"]) != 1 || len(got["workers"]) != 1 || len(got["datasets"]) != 1 {
		t.Fatalf("status: %v", got)
	}
	wantNames(t, "status", got["workers"][0], workerNames)
}

// Nothing is an empty list, never null, whatever the controller says.
func TestEmptyListsAsJSON(t *testing.T) {
	null := answer(nil)
	rs := routes{"GET /v1/jobs": null, "GET /v1/workers": null, "GET /v1/datasets": null, "GET /v1/status": null}
	for _, line := range []string{"jobs", "workers", "dataset ls"} {
		g := newRig(t, rs, nil)
		g.want(0, append(strings.Fields(line), "-o", "json")...)
		if got := g.stdout.String(); got != "[]\n" {
			t.Errorf("%s: %q", line, got)
		}
	}
	var got map[string]any
	newRig(t, rs, nil).json(&got, 0, "status")
	for _, name := range []string{"jobs", "workers", "datasets"} {
		if list, ok := got[name].([]any); !ok || len(list) != 0 {
			t.Errorf("status: %s is %v", name, got[name])
		}
	}
}

// The three formats, chosen by flag, environment or file, say the same.
func TestFormats(t *testing.T) {
	rs := routes{"GET /v1/jobs": answer([]api.JobLine{{Job: "j\x1b", State: api.JobWarming, Owner: "me", Datasets: []string{"a", "b"}, Bytes: 2048, ResidentBytes: 1024, ETASeconds: 90}})}
	g := newRig(t, rs, nil)
	g.want(0, "jobs")
	lines := strings.Split(g.stdout.String(), "\n") // two, and nothing behind the last
	if len(lines) != 3 || !strings.HasPrefix(lines[0], "JOB ") || !strings.HasPrefix(lines[1], `j\x1b  Warming  me `) ||
		!strings.Contains(lines[1], "2.0 KiB") || !strings.Contains(lines[1], "a,b") || !strings.Contains(lines[1], "1 min") {
		t.Errorf("table:\n%s", g.stdout.String())
	}
	for _, by := range []string{"flag", "environment", "file"} {
		g := newRig(t, rs, nil)
		args := []string{"jobs"}
		switch by {
		case "flag":
			args = append(args, "--output=yaml")
		case "environment":
			g.environ = append(g.environ, "STOKER_OUTPUT=yaml")
		case "file":
			write(t, g.etc, "output: yaml\n")
		}
		g.want(0, args...)
		var got []api.JobLine
		if err := yaml.UnmarshalStrict([]byte(g.stdout.String()), &got); err != nil || len(got) != 1 || got[0].ResidentBytes != 1024 || strings.HasPrefix(g.stdout.String(), "[") {
			t.Errorf("%s: %q, %v", by, g.stdout.String(), err)
		}
	}
}

// What the controller calls Ready is exit 0; less is exit 4, with the
// certificate on stdout and what is missing on stderr.
func TestPreloadPrintsItsCertificate(t *testing.T) {
	full := api.Certificate{Dataset: "data", Generation: 3, Manifest: stoker.ID{7}, State: api.CertificateReady, Objects: 10, Bytes: 200, ResidentObjects: 10, ResidentBytes: 200, UFSRequests: 4, UFSBytes: 200}
	part := full
	part.State, part.ResidentObjects, part.ResidentBytes = api.CertificateFailed, 8, 150
	part.Failed = []api.Failure{{Path: "a/x%FF", Kind: "stale", Reason: "is another\nnow"}, {Path: "a/y", Kind: "notexist", Reason: "is gone"}}
	wrong := part
	wrong.Failed = []api.Failure{{Path: "a/x", Kind: "corrupt", Reason: "wrong checksum"}}
	lying := full
	lying.Failed = part.Failed
	for _, c := range []struct {
		name string
		end  api.JobStatus
		code int
		cert *api.Certificate
		says string
	}{
		{"ready", job(api.JobReleased, certified(full)), 0, &full, ""},
		{"failed", job(api.JobFailed, certified(part), because(stoker.KindStale)), 4, &part, "stoker: a/x%FF: stale: is another; now\nstoker: a/y: notexist: is gone\n"},
		{"corrupt bytes of the store", job(api.JobFailed, certified(wrong), because(stoker.KindCorrupt)), 4, &wrong, "a/x: corrupt"},
		{"ready, with failures", job(api.JobReleased, certified(lying)), 4, &lying, "a/y: notexist"},
		{"cancelled", job(api.JobReleased), 4, &api.Certificate{Dataset: "data", Generation: 3, Manifest: stoker.ID{7}, State: api.CertificateCancelled, Bytes: 200, ResidentBytes: 100}, "cancelled"},
		{"no load began", job(api.JobFailed, because(stoker.KindDenied)), 10, nil, "stoker: the reason\n"},
		{"no reason", job(api.JobFailed, func(st *api.JobStatus) { st.Datasets = nil }), 1, nil, "does not say why"},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := newRig(t, routes{"POST /v1/jobs": events(lines(job(api.JobPlanned))...), "GET /v1/jobs/{job}/watch": events(lines(job(api.JobWarming), c.end)...)}, nil)
			if c.cert == nil {
				g.want(c.code, "preload", "data@3", "--wait", "-o", "json")
				if g.stdout.String() != "" {
					t.Errorf("stdout %q", g.stdout.String())
				}
			} else {
				m := map[string]any{}
				g.json(&m, c.code, "preload", "data@3", "--wait")
				wantNames(t, "certificate", m, certNames)
				if len(names(m)) != len(strings.Fields(certNames)) {
					t.Errorf("certificate has %v", names(m))
				}
				failed, ok := m["failed"].([]any)
				if !ok || len(failed) != len(c.cert.Failed) || m["state"] != c.cert.State || m["residentBytes"] != float64(c.cert.ResidentBytes) || m["unmountable"] == nil {
					t.Errorf("certificate %v", m)
				}
			}
			g.says(c.says)
			if n := g.calledLike("controller DELETE "); n != 0 {
				t.Errorf("a preload that ended was released %d times", n)
			}
		})
	}
}

// calledLike returns how many calls begin with prefix.
func (g *rig) calledLike(prefix string) (n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, c := range g.calls {
		if strings.HasPrefix(c, prefix) {
			n++
		}
	}
	return n
}

func TestPreloadWithoutWait(t *testing.T) {
	g := newRig(t, routes{"POST /v1/jobs": events(lines(job(api.JobWarming))...)}, nil)
	m := map[string]any{}
	g.json(&m, 0, "preload", "data@3", "--replicas", "2")
	if len(m) != 1 || m["job"] != "j" {
		t.Errorf("printed %v", m)
	}
	var req api.ClaimRequest
	g.body("controller POST /v1/jobs", 0, &req)
	if !req.Preload || req.Replicas != 2 || req.Job == "" || len(req.Datasets) != 1 || req.Datasets[0] != (api.DatasetRef{Name: "data", Generation: 3}) || req.Owner != "" {
		t.Errorf("claimed %+v", req)
	}
	if g.calledLike("controller POST") != 1 || g.calledLike("controller GET /v1/jobs") != 0 {
		t.Errorf("calls %v", g.calls)
	}
}

// What does not fit is refused at once, with and without --wait.
func TestPreloadThatDoesNotFit(t *testing.T) {
	for _, args := range [][]string{{"preload", "data"}, {"preload", "data", "--wait"}} {
		g := newRig(t, routes{"POST /v1/jobs": fail(stoker.KindNoSpace)}, nil)
		g.want(8, args...)
		if g.calledLike("controller POST") != 1 || g.calledLike("controller DELETE") != 0 {
			t.Errorf("calls %v", g.calls)
		}
	}
}

// Ctrl-C on --wait drops the claim, whose id the client itself chose.
func TestInterruptedPreloadDropsItsClaim(t *testing.T) {
	for _, at := range []string{"claim", "watch"} {
		ctx, cancel := context.WithCancel(t.Context())
		hang := func(_ http.ResponseWriter, r *http.Request) {
			cancel()
			<-r.Context().Done()
		}
		rs := routes{"POST /v1/jobs": events(lines(job(api.JobPlanned))...), "GET /v1/jobs/{job}/watch": hang, "DELETE /v1/jobs/{job}": done}
		if at == "claim" {
			rs["POST /v1/jobs"] = hang
		}
		g := newRig(t, rs, nil)
		if code := g.runCtx(ctx, "preload", "data", "--wait"); code != 130 {
			t.Errorf("%s: exit %d", at, code)
		}
		var req api.ClaimRequest
		g.body("controller POST /v1/jobs", 0, &req)
		if g.called("controller DELETE /v1/jobs/"+req.Job) != 1 || req.Job == "" {
			t.Errorf("%s: calls %v", at, g.calls)
		}
	}
}

// A controller that goes away while a job is watched is waited for.
func TestWatchSurvivesTheController(t *testing.T) {
	n := 0
	g := newRig(t, routes{"GET /v1/jobs/{job}/watch": func(w http.ResponseWriter, r *http.Request) {
		n++
		state := api.JobWarming
		if n == 2 {
			state = api.JobReady
		}
		events(lines(job(state))...)(w, r)
	}}, nil)
	g.want(0, "wait", "j")
	g.says("waiting for it")
	if n != 2 {
		t.Errorf("watched %d times", n)
	}
}

func TestWait(t *testing.T) {
	for _, c := range []struct {
		end  api.JobStatus
		code int
	}{
		{job(api.JobReady), 0}, {job(api.JobDegraded), 0}, {job(api.JobReleased), 0}, {job(api.JobFailed, because(stoker.KindIncomplete)), 4},
		{job(api.JobFailed, because(stoker.KindDeadline)), 9}, {job(api.JobFailed, because(stoker.KindNoSpace)), 8}, {job(api.JobFailed), 1},
	} {
		g := newRig(t, routes{"GET /v1/jobs/{job}/watch": events(lines(job(api.JobWarming), c.end)...)}, nil)
		var st api.JobStatus
		g.json(&st, c.code, "wait", "j")
		if st.State != c.end.State {
			t.Errorf("%s: printed %+v", c.end.State, st)
		}
	}
	g := newRig(t, routes{"GET /v1/jobs/{job}/watch": fail(stoker.KindNotExist)}, nil)
	g.want(3, "wait", "j")
}

func TestStatusOfOne(t *testing.T) {
	detail := api.DatasetDetail{DatasetInfo: api.DatasetInfo{Name: "data", Bytes: 4}}
	rs := routes{
		"GET /v1/jobs/{job}": func(w http.ResponseWriter, r *http.Request) {
			switch r.PathValue("job") {
			case "j":
				answer(job(api.JobWarming))(w, r)
			case "down":
				fail(stoker.KindTransient)(w, r)
			default:
				fail(stoker.KindNotExist)(w, r)
			}
		},
		"GET /v1/datasets/{name}": func(w http.ResponseWriter, r *http.Request) {
			if r.PathValue("name") != "data" {
				fail(stoker.KindNotExist)(w, r)
				return
			}
			answer(detail)(w, r)
		},
	}
	var m map[string]any
	newRig(t, rs, nil).json(&m, 0, "status", "j")
	wantNames(t, "job", m, "job state owner datasets bytes residentBytes etaSeconds")
	m = nil
	newRig(t, rs, nil).json(&m, 0, "status", "data")
	wantNames(t, "dataset", m, datasetNames)
	g := newRig(t, rs, nil)
	g.want(3, "status", "x\x1b")
	g.says(`x\x1b: is neither a job nor a dataset`)
	newRig(t, rs, nil).want(5, "status", "down")
}

// Verify is exit 6 where it found wrong bytes, 4 where something is missing.
func TestVerify(t *testing.T) {
	for name, c := range map[string]struct {
		cert api.Certificate
		code int
	}{
		"ready":   {api.Certificate{State: api.CertificateReady, Objects: 1, ResidentObjects: 1}, 0},
		"missing": {api.Certificate{State: api.CertificateFailed, Objects: 1, Failed: []api.Failure{{Path: "a", Kind: "notexist"}}}, 4},
		"wrong":   {api.Certificate{State: api.CertificateFailed, Objects: 1, Failed: []api.Failure{{Path: "a", Kind: "notexist"}, {Path: "b", Kind: "corrupt"}}}, 6},
	} {
		g := newRig(t, routes{"POST /v1/datasets/{name}/verify": events(api.Event{Load: &api.LoadProgress{TotalBytes: 1}}, api.Event{Certificate: &c.cert})}, nil)
		var m map[string]any
		g.json(&m, c.code, "verify", "data@3", "--deep")
		if m["state"] != c.cert.State || g.called("controller POST /v1/datasets/data@3/verify?deep=true") != 1 {
			t.Errorf("%s: %v, calls %v", name, m, g.calls)
		}
	}
}

// A kernel view reads the file that it has, so who mounted one on a worker that had
// wrong bytes is told; tree views and other workers' read right ones.
func TestVerifyNamesTheViewsOfWrongBytes(t *testing.T) {
	cert := api.Certificate{State: api.CertificateReady, Objects: 1, ResidentObjects: 1, Wrong: []api.WrongFile{{Path: "a", Worker: "w1"}}}
	views := api.DatasetDetail{Views: []api.ViewInfo{{Worker: "w1", Node: "n1", Dir: "/mnt/k", View: "kernel"},
		{Worker: "w1", Node: "n1", Dir: "/mnt/t", View: "tree"}, {Worker: "w2", Node: "n2", Dir: "/mnt/o", View: "kernel"}}}
	found := events(api.Event{Certificate: &cert})
	g := newRig(t, routes{"POST /v1/datasets/{name}/verify": found, "GET /v1/datasets/{name}": answer(views)}, nil)
	g.want(6, "verify", "data", "--deep")
	g.says("the kernel view at /mnt/k on n1 shows them until it is unmounted: end what reads it, and mount it again")
	if said := g.stderr.String(); strings.Contains(said, "/mnt/t") || strings.Contains(said, "/mnt/o") {
		t.Errorf("%s", said)
	}
	g = newRig(t, routes{"POST /v1/datasets/{name}/verify": found, "GET /v1/datasets/{name}": fail(stoker.KindTransient)}, nil)
	g.want(6, "verify", "data", "--deep")
	g.says("which kernel views show them is not known: 'stoker dataset show data' lists them")
}

func TestEvictAndCancel(t *testing.T) {
	g := newRig(t, routes{"POST /v1/datasets/{name}/evict": answer(api.EvictReport{Shards: 2, Bytes: 5}), "DELETE /v1/jobs/{job}": done}, nil)
	var rep api.EvictReport
	g.json(&rep, 0, "evict", "data", "--force")
	var req api.EvictRequest
	g.body("controller POST /v1/datasets/data/evict", 0, &req)
	if rep.Bytes != 5 || !req.Force {
		t.Errorf("%+v, %+v", rep, req)
	}
	g.want(0, "cancel", "j")
	if g.called("controller DELETE /v1/jobs/j") != 1 {
		t.Errorf("calls %v", g.calls)
	}
	newRig(t, routes{"POST /v1/datasets/{name}/evict": fail(stoker.KindHeld)}, nil).want(11, "evict", "data")
}

func TestDatasetAdd(t *testing.T) {
	detail := api.DatasetDetail{DatasetInfo: api.DatasetInfo{Name: "data", Generation: 1}, Unmountable: []api.Unmountable{{Key: "a//b", Reason: "empty segment"}}}
	g := newRig(t, routes{"POST /v1/datasets": events(api.Event{Listing: &api.ListProgress{Objects: 5}}, api.Event{Dataset: &detail})}, nil)
	var m map[string]any
	g.json(&m, 0, "dataset", "add", "data", "a=s3://x/y", "b=s3://z", "--endpoint", "http://e", "--region", "r", "--path-style", "--anonymous", "--profile", "p")
	var req api.AddDatasetRequest
	g.body("controller POST /v1/datasets", 0, &req)
	if req.Name != "data" || len(req.Roots) != 2 || req.Roots[0].Folder != "a" || req.Roots[1].URI != "s3://z" {
		t.Errorf("%+v", req)
	}
	for _, r := range req.Roots {
		if r.Endpoint != "http://e" || r.Region != "r" || !r.PathStyle || !r.Anonymous || r.Profile != "p" {
			t.Errorf("%+v", r)
		}
	}
	wantNames(t, "dataset", m, datasetNames)
	g.says("listing: 5 objects")
	g.says("1 keys cannot be files")
}

// breaks answers with events and hangs up, the first so many times.
func breaks(times int, before []api.Event, then func(http.ResponseWriter, *http.Request)) func(http.ResponseWriter, *http.Request) {
	var asked atomic.Int64
	return func(w http.ResponseWriter, r *http.Request) {
		if asked.Add(1) > int64(times) {
			then(w, r)
			return
		}
		events(before...)(w, r)
		panic(http.ErrAbortHandler)
	}
}

// Whoever adds or syncs a dataset while its controller goes away asks again for
// the very same, and follows it to its end. What a controller refuses is not
// asked again, nor one that is not there at all.
func TestListingsOverControllers(t *testing.T) {
	detail := api.DatasetDetail{DatasetInfo: api.DatasetInfo{Name: "data", Generation: 4}, Changes: &api.ChangeCounts{From: 3, To: 4}}
	seen := []api.Event{{Following: &api.Following{Run: "r", From: 3}}, {Listing: &api.ListProgress{Objects: 5}}}
	for line, call := range map[string]string{"dataset add data s3://b": "POST /v1/datasets", "dataset sync data": "POST /v1/datasets/data/sync"} {
		t.Run(line, func(t *testing.T) {
			g := newRig(t, routes{call: breaks(2, seen, events(api.Event{Listing: &api.ListProgress{Objects: 7000}}, api.Event{Dataset: &detail}))}, nil)
			var m map[string]any
			g.json(&m, 0, strings.Fields(line)...)
			wantNames(t, "dataset", m, datasetNames)
			if n := g.called("controller " + call); n != 3 {
				t.Errorf("asked %d times", n)
			}
			if n := strings.Count(g.stderr.String(), "waiting for it"); n != 1 {
				t.Errorf("%d notes that the controller is away: %s", n, g.stderr.String())
			}
			var first, last struct {
				Nonce string
				api.Following
			}
			g.body("controller "+call, 0, &first)
			g.body("controller "+call, 2, &last)
			if add := call == "POST /v1/datasets"; add && (first.Nonce == "" || last != first) || !add && (first.Run != "" || last.Run != "r" || last.From != 3) {
				t.Errorf("asked first for %+v, then for %+v", first, last)
			}
			g = newRig(t, routes{call: fail(stoker.KindTransient)}, nil)
			g.want(5, strings.Fields(line)...)
			if n := g.called("controller " + call); n != 1 {
				t.Errorf("what was refused was asked %d times", n)
			}
			newRig(t, nil, nil).want(5, strings.Fields(line)...)
		})
	}
}

type writer func(p []byte)

func (w writer) Write(p []byte) (int, error) { w(p); return len(p), nil }

// Ctrl-C while no controller is there: none has heard of it, and that is said.
func TestInterruptedWithoutAController(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	g := newRig(t, routes{"POST /v1/datasets": breaks(1, nil, nil)}, nil)
	a := g.app()
	a.console.w = writer(func(p []byte) {
		if _, _ = g.stderr.Write(p); strings.Contains(string(p), "waiting for it") {
			cancel()
		}
	})
	if code := a.run(ctx, []string{"dataset", "add", "data", "s3://b"}); code != 130 {
		t.Errorf("exit %d", code)
	}
	g.says("dataset data: no controller heard that it is not wanted any more")
}

func TestMountAndUmount(t *testing.T) {
	g := newRig(t, nil, routes{"POST /v1/mounts": answer(api.MountInfo{MountRequest: api.MountRequest{Dataset: "data", Generation: 4, Dir: "/d"}, ListedAt: time.Now().Add(-3 * time.Hour)}), "DELETE /v1/mounts": done})
	t.Chdir(g.dir)
	g.want(0, "mount", "data@4", "here", "--uid", "0", "--gid", "12", "--umask", "027", "--view", "tree", "--kernel-read-ahead", "64KiB")
	var req api.MountRequest
	g.body("node POST /v1/mounts", 0, &req)
	if !strings.HasPrefix(req.Dir, "/") || !strings.HasSuffix(req.Dir, "/here") || req.Dataset != "data" || req.Generation != 4 || req.View != "tree" ||
		req.UID == nil || *req.UID != 0 || req.GID == nil || *req.GID != 12 || req.Umask == nil || *req.Umask != 0o027 || req.KernelReadAheadBytes == nil || *req.KernelReadAheadBytes != 64<<10 {
		t.Errorf("%+v", req)
	}
	g.says("dataset data@4, listed 3 h ago")
	g.want(0, "mount", "data", "here")
	g.body("node POST /v1/mounts", 1, &req)
	var plain api.MountRequest
	g.body("node POST /v1/mounts", 1, &plain)
	if plain.UID != nil || plain.GID != nil || plain.Umask != nil || plain.KernelReadAheadBytes != nil || plain.View != "auto" {
		t.Errorf("without flags: %+v", plain)
	}
	g.want(0, "umount", "here")
	if g.calledLike("node DELETE /v1/mounts?dir=%2F") != 1 {
		t.Errorf("calls %v", g.calls)
	}
	newRig(t, nil, routes{"DELETE /v1/mounts": fail(stoker.KindHeld)}).want(11, "umount", ".")
}
