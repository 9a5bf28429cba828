package control

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/cache/placement"
	"stoker.dev/internal/api"
	"stoker.dev/ufs"
	"stoker.dev/ufs/memufs"
	"stoker.dev/workflows"
)

const daemonToken = "0123456789abcdef" // of an admin

// ask makes a request by TCP; body nil: none.
func (w *watchedController) ask(t testing.TB, token, method, path string, body any) answer {
	t.Helper()
	var sent bytes.Buffer
	if text, ok := body.(string); ok {
		sent.WriteString(text)
	} else if body != nil {
		if err := json.NewEncoder(&sent).Encode(body); err != nil {
			t.Fatal(err)
		}
	}
	req, err := http.NewRequestWithContext(t.Context(), method, w.tcp+path, &sent)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var got bytes.Buffer
	if _, err := got.ReadFrom(resp.Body); err != nil {
		t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header.Get("Content-Type"), got.Bytes()}
}

// wantError checks that an answer says what is wrong, in a body of ours.
func (a answer) wantError(t testing.TB, status int, kind, part string) {
	t.Helper()
	var b api.ErrorBody
	if err := json.Unmarshal(a.body, &b); err != nil || a.status != status || b.Kind != kind || !strings.Contains(b.Message, part) {
		t.Errorf("%d %s: want %d, %s and %q", a.status, a.body, status, kind, part)
	}
}

func decode[T any](t testing.TB, a answer) (v T) {
	t.Helper()
	if err := json.Unmarshal(a.body, &v); err != nil || a.status != http.StatusOK {
		t.Fatalf("%d %s: %v", a.status, a.body, err)
	}
	return v
}

// lines are the events of a stream.
func (a answer) lines(t testing.TB) (out []api.Event) {
	t.Helper()
	for line := range bytes.Lines(a.body) {
		var e api.Event
		if err := json.Unmarshal(line, &e); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		out = append(out, e)
	}
	if a.status != http.StatusOK || a.kind != api.StreamType {
		t.Errorf("%d, %s", a.status, a.kind)
	}
	return out
}

func aJob(owner, state string, datasets ...workflows.JobDataset) workflows.JobState {
	return workflows.JobState{State: state, Outcomes: make([]workflows.Outcome, len(datasets)),
		Input: workflows.JobInput{Job: "j", Owner: owner, Datasets: datasets, Submitted: time.Now().UTC()}}
}

// Only its owner and admins renew or end a job.
func TestWhoMayChangeAJob(t *testing.T) {
	flows, address := startFlows(t)
	w := startWatched(t, address, placement.NewMem(time.Now))
	flows.add(aJob("bob", api.JobReady))
	w.ask(t, watchedToken, "POST", "/v1/jobs/j/renew", nil).wantError(t, 403, "denied", "belongs to bob, not to you (ann)")
	w.ask(t, watchedToken, "DELETE", "/v1/jobs/j", nil).wantError(t, 403, "denied", "belongs to bob")
	seven, little, many := 7, int64(10), 1001
	w.ask(t, watchedToken, "PATCH", "/v1/jobs/j", api.JobChange{Priority: &seven}).wantError(t, 403, "denied", "belongs to bob")
	w.ask(t, daemonToken, "PATCH", "/v1/jobs/nobody", api.JobChange{Priority: &seven}).wantError(t, 404, "notexist", "'stoker jobs'")
	for _, bad := range []api.JobChange{{}, {Priority: &many}, {LimitBytesPerSecond: &little}} {
		w.ask(t, daemonToken, "PATCH", "/v1/jobs/j", bad).wantError(t, 400, "invalid", "")
	}
	w.register(t, "pets", 1, number(1))
	claim := api.ClaimRequest{Job: "j", Datasets: []api.DatasetRef{{Name: "pets"}}}
	w.ask(t, watchedToken, "POST", "/v1/jobs", claim).wantError(t, 403, "denied", "belongs to bob")
	w.ask(t, watchedToken, "POST", "/v1/jobs/nobody/renew", nil).wantError(t, 404, "notexist", "'stoker jobs'")
	w.ask(t, watchedToken, "DELETE", "/v1/jobs/nobody", nil).wantError(t, 404, "notexist", "'stoker jobs'")
	w.ask(t, "not a token at all", "DELETE", "/v1/jobs/j", nil).wantError(t, 403, "denied", "")
	if len(flows.signals) != 0 {
		t.Fatalf("the job was told %v", flows.signals)
	}
	for _, path := range []string{"POST /v1/jobs/j/renew", "DELETE /v1/jobs/j"} {
		method, path, _ := strings.Cut(path, " ")
		if a := w.ask(t, daemonToken, method, path, api.RenewRequest{Started: true}); a.status != http.StatusNoContent {
			t.Errorf("an admin's %s %s: %d %s", method, path, a.status, a.body)
		}
	}
	if want := []string{"started j", "renew j", "release j"}; !slices.Equal(flows.signals, want) {
		t.Errorf("the job was told %v, want %v", flows.signals, want)
	}
	w.ask(t, daemonToken, "POST", "/v1/jobs/j/renew", nil).wantError(t, 404, "notexist", "its claim has ended")
}

func TestClaim(t *testing.T) {
	flows, address := startFlows(t)
	w := startWatched(t, address, placement.NewMem(time.Now))
	w.register(t, "pets", 1000, number(1))
	w.register(t, "cats", 1000, number(1)) // the same data
	w.register(t, "cars", 4000, number(2))
	deadline := 60.0
	a := w.ask(t, watchedToken, "POST", "/v1/jobs", api.ClaimRequest{
		Job: "mine", OnMiss: "fail", DeadlineSeconds: &deadline, Owner: "root", Sampler: "pytorch:world=8,seed=7",
		Datasets: []api.DatasetRef{{Name: "pets", Generation: 1, Dir: "/data"}, {Name: "cars"}}})
	events := a.lines(t)
	if st := events[len(events)-1].Job; st == nil || st.Job != "mine" || st.Owner != "ann" || st.State != api.JobPlanned || st.Bytes != 5000 || len(st.Datasets) != 2 || st.Sampler != "pytorch:seed=7,world=8" {
		t.Fatalf("%s", a.body)
	}
	in := flows.jobs["job-default-mine"].Input
	if in.Owner != "ann" || in.OnMiss != "fail" || in.Deadline.Sub(in.Submitted) != time.Minute || in.Datasets[0].Dir != "/data" || in.Datasets[1].Manifest != number(2) || in.Datasets[1].Generation != 1 || in.Cluster != "default" {
		t.Errorf("%+v", in)
	}
	for name, c := range map[string]struct {
		body   any
		status int
		kind   string
		part   string
	}{
		"not registered": {api.ClaimRequest{Datasets: []api.DatasetRef{{Name: "dogs"}}}, 404, "notexist", "stoker dataset add dogs URI"},
		"no generation":  {api.ClaimRequest{Datasets: []api.DatasetRef{{Name: "pets", Generation: 7}}}, 404, "notexist", "has no generation 7; the current one is 1"},
		"twice":          {api.ClaimRequest{Datasets: []api.DatasetRef{{Name: "pets"}, {Name: "cats"}}}, 400, "invalid", "pets and cats are the same data"},
		"URI@GEN":        {api.ClaimRequest{Datasets: []api.DatasetRef{{Name: "s3://b/p", Generation: 2}}}, 400, "invalid", "a URI has no generations"},
		"scheme":         {api.ClaimRequest{Datasets: []api.DatasetRef{{Name: "ftp://b/p"}}}, 400, "invalid", "ftp"},
		"a typo":         {`{"datasetz":[]}`, 400, "invalid", "datasetz"},
		"no JSON":        {"hello", 400, "invalid", "request body"},
		"none":           {api.ClaimRequest{}, 400, "invalid", "claims 0 datasets"},
	} {
		t.Run(name, func(t *testing.T) {
			w.ask(t, watchedToken, "POST", "/v1/jobs", c.body).wantError(t, c.status, c.kind, c.part)
		})
	}
	if len(flows.jobs) != 1 {
		t.Errorf("%d jobs were started", len(flows.jobs))
	}
}

func TestCheckClaim(t *testing.T) {
	number := func(f float64) *float64 { return &f }
	good := api.ClaimRequest{Job: "a.b_c:d@e+f=g-1", Datasets: make([]api.DatasetRef, 64), OnMiss: "wait", Layout: "spread", Replicas: 16, DeadlineSeconds: number(0)}
	if err := checkClaim(&good); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*api.ClaimRequest){
		"no id":              func(r *api.ClaimRequest) { r.Job = "" },
		"id with a slash":    func(r *api.ClaimRequest) { r.Job = "a/b" },
		"id with a dot":      func(r *api.ClaimRequest) { r.Job = ".." },
		"id with a newline":  func(r *api.ClaimRequest) { r.Job = "a\n" },
		"long id":            func(r *api.ClaimRequest) { r.Job = strings.Repeat("a", 129) },
		"too many datasets":  func(r *api.ClaimRequest) { r.Datasets = make([]api.DatasetRef, 65) },
		"on miss":            func(r *api.ClaimRequest) { r.OnMiss = "panic" },
		"layout":             func(r *api.ClaimRequest) { r.Layout = "near" },
		"local nowhere":      func(r *api.ClaimRequest) { r.Layout, r.Replicas = "local", 0 },
		"local with copies":  func(r *api.ClaimRequest) { r.Layout, r.Nodes = "local", []string{"n1"} },
		"nodes of a spread":  func(r *api.ClaimRequest) { r.Nodes = []string{"n1"} },
		"a node no name":     func(r *api.ClaimRequest) { r.Layout, r.Nodes = "auto", []string{""} },
		"too many nodes":     func(r *api.ClaimRequest) { r.Layout, r.Nodes = "auto", make([]string, 1025) },
		"replicas":           func(r *api.ClaimRequest) { r.Replicas = 17 },
		"less than none":     func(r *api.ClaimRequest) { r.Replicas = -1 },
		"deadline":           func(r *api.ClaimRequest) { r.DeadlineSeconds = number(-1) },
		"deadline, a NaN":    func(r *api.ClaimRequest) { r.DeadlineSeconds = number(math.NaN()) },
		"no sampler":         func(r *api.ClaimRequest) { r.Sampler = "pytorch:seed=0" },
		"sampler of a load":  func(r *api.ClaimRequest) { r.Sampler, r.Preload = "pytorch:world=2", true },
		"deadline, overflow": func(r *api.ClaimRequest) { r.DeadlineSeconds = number(1e10) },
	} {
		bad := good
		change(&bad)
		if err := checkClaim(&bad); stoker.KindOf(err) != stoker.KindInvalid || err == nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSplitRef(t *testing.T) {
	for ref, want := range map[string]struct {
		name       string
		generation int
	}{
		"pets": {"pets", 0}, "pets@3": {"pets", 3}, "pets@12@3": {"pets@12", 3}, "pets@": {"pets@", 0}, "pets@x": {"pets@x", 0},
		"@3": {"@3", 0}, "pets@0": {"pets@0", 0}, "pets@-1": {"pets@-1", 0}, "pets@99999999999999999999": {"pets@99999999999999999999", 0}, "": {"", 0},
	} {
		if name, generation := splitRef(ref); name != want.name || generation != want.generation {
			t.Errorf("%q is %q, %d", ref, name, generation)
		}
	}
}

// Folders of one dataset may not hide each other.
func TestRoots(t *testing.T) {
	for name, c := range map[string]struct {
		folders []string
		part    string // "" = fine
	}{
		"one":                {[]string{""}, ""},
		"beside each other":  {[]string{"a", "b/c", "b/d"}, ""},
		"one begins alike":   {[]string{"a", "ab"}, ""},
		"none":               {nil, "want 1 to 64"},
		"many":               {make([]string, 65), "want 1 to 64"},
		"the same":           {[]string{"a", "a"}, `would both be at "a"`},
		"both at the top":    {[]string{"", ""}, "join them as FOLDER=URI"},
		"one holds another":  {[]string{"a", "a/b"}, "would both be at"},
		"in the other order": {[]string{"a/b/c", "a"}, "would both be at"},
		"all in the top":     {[]string{"a", ""}, "would both be at"},
		"up":                 {[]string{"../a"}, "no plain relative path"},
		"up and down":        {[]string{"a/../b"}, "no plain relative path"},
		"only up":            {[]string{".."}, "no plain relative path"},
		"absolute":           {[]string{"/a"}, "no plain relative path"},
		"ends in a slash":    {[]string{"a/"}, "no plain relative path"},
		"two slashes":        {[]string{"a//b"}, "no plain relative path"},
		"a dot":              {[]string{"."}, "no plain relative path"},
		"long":               {[]string{strings.Repeat("a", 1025)}, "no plain relative path"},
	} {
		t.Run(name, func(t *testing.T) {
			req := api.AddDatasetRequest{Name: "d"}
			for n, folder := range c.folders {
				req.Roots = append(req.Roots, api.AddRoot{Folder: folder, Location: ufs.Location{URI: fmt.Sprint("s3://b/", n)}})
			}
			got, err := roots(&req)
			if c.part != "" {
				if stoker.KindOf(err) != stoker.KindInvalid || err == nil || !strings.Contains(err.Error(), c.part) {
					t.Errorf("%v", err)
				}
				return
			}
			if err != nil || len(got) != len(c.folders) || got[0].Folder != c.folders[0] || got[0].URI != "s3://b/0" {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
}

func TestAddDatasetRefusals(t *testing.T) {
	_, address := startFlows(t)
	w := startWatched(t, address, placement.NewMem(time.Now))
	w.register(t, "pets", 1, number(1))
	root := func(uri string) []api.AddRoot { return []api.AddRoot{{Location: ufs.Location{URI: uri}}} }
	for name, c := range map[string]struct {
		req  api.AddDatasetRequest
		part string
	}{
		"name":    {api.AddDatasetRequest{Name: "Pets!", Roots: root("s3://b")}, "a name has"},
		"taken":   {api.AddDatasetRequest{Name: "pets", Roots: root("s3://b")}, "is registered already"},
		"no root": {api.AddDatasetRequest{Name: "dogs"}, "want 1 to 64"},
		"scheme":  {api.AddDatasetRequest{Name: "dogs", Roots: root("gopher://b")}, "gopher"},
		"age":     {api.AddDatasetRequest{Name: "dogs", Roots: root("s3://b"), MaxAgeSeconds: -5}, "-5 seconds"},
	} {
		t.Run(name, func(t *testing.T) {
			w.ask(t, watchedToken, "POST", "/v1/datasets", c.req).wantError(t, 400, "invalid", c.part)
		})
	}
}

// An add whose answer broke off is answered when it is asked for again, by the
// same user with the same nonce, though it has ended meanwhile; to any other the
// name is taken.
func TestAddDatasetAgain(t *testing.T) {
	_, address := startFlows(t)
	w := startWatched(t, address, placement.NewMem(time.Now))
	w.freeze(t, "pets")
	d, tag, err := w.manifests.Dataset(t.Context(), "pets")
	if err != nil {
		t.Fatal(err)
	}
	d.Nonce = "mine"
	if err := w.manifests.UpdateDataset(t.Context(), d, tag); err != nil {
		t.Fatal(err)
	}
	req := api.AddDatasetRequest{Name: "pets", Nonce: "mine", Roots: []api.AddRoot{{Location: ufs.Location{URI: "s3://bucket"}}}}
	events := w.ask(t, watchedToken, "POST", "/v1/datasets", req).lines(t)
	if got := events[len(events)-1].Dataset; got == nil || got.Generation != 1 || got.Owner != "ann" || got.Objects != 10 {
		t.Errorf("%+v", events)
	}
	w.ask(t, daemonToken, "POST", "/v1/datasets", req).wantError(t, 400, "invalid", "is registered already")
	for _, nonce := range []string{"", "another"} {
		req.Nonce = nonce
		w.ask(t, watchedToken, "POST", "/v1/datasets", req).wantError(t, 400, "invalid", "is registered already")
	}
	req.Nonce, req.Roots[0].URI = "mine", "s3://another"
	w.ask(t, watchedToken, "POST", "/v1/datasets", req).wantError(t, 400, "invalid", "is registered already")
}

// freeze lists a few objects and registers them as ann's.
func (w *watchedController) freeze(t testing.TB, name string) *manifest.Dataset {
	t.Helper()
	fs := memufs.New()
	for n := range 10 {
		fs.Put(fmt.Sprintf("folder/file%d", n), make([]byte, 100))
	}
	fs.Put("a//b", []byte("cannot be mounted"))
	d := &manifest.Dataset{Name: name, Owner: "ann", Created: time.Now().UTC(), Roots: []manifest.Root{{Location: ufs.Location{URI: "s3://bucket"}}}}
	b, err := manifest.Build(t.Context(), manifest.BuildOptions{Roots: d.Roots, TempDir: t.TempDir(),
		Open: func(context.Context, ufs.Location) (ufs.FS, string, error) { return fs, "", nil }})
	if err == nil {
		err = w.manifests.Put(t.Context(), b)
	}
	if err == nil {
		d.Generations = []manifest.Generation{{Number: 1, Manifest: b.ID, Objects: b.Objects, Bytes: b.Bytes, ListedAt: b.ListedTo}}
		err = w.manifests.CreateDataset(t.Context(), d)
	}
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// serveAs enters a worker with handlers of its own into the index.
func (w *watchedController) serveAs(t testing.TB, n stoker.Incarnation, status api.WorkerStatus, do map[string]any) {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		v, ok := do[r.URL.Path]
		switch err, failed := v.(error); {
		case r.URL.Path == "/v1/status":
			api.WriteJSON(rw, http.StatusOK, status)
		case failed:
			api.WriteError(rw, err)
		case ok:
			api.WriteJSON(rw, http.StatusOK, v)
		default:
			api.WriteError(rw, stoker.Errorf(stoker.KindInvalid, "test", r.URL.Path, "is not served"))
		}
	}))
	t.Cleanup(srv.Close)
	status.Address = srv.URL
	if err := w.index.Register(t.Context(), placement.Worker{ID: fmt.Sprint("worker-", n), Incarnation: n, Address: srv.URL}, time.Hour); err != nil {
		t.Fatal(err)
	}
}

func holding(n int, id stoker.ID, bytes int64, holders ...string) api.WorkerStatus {
	return api.WorkerStatus{WorkerInfo: api.WorkerInfo{ID: fmt.Sprint("worker-", n), State: api.WorkerLive},
		Manifests: []api.ManifestHolding{{Manifest: id, Bytes: bytes, Holders: holders}, {Manifest: stoker.ID{99}, Bytes: 5000, Holders: []string{"other"}}}}
}

func TestShowDataset(t *testing.T) {
	_, address := startFlows(t)
	w := startWatched(t, address, placement.NewMem(time.Now))
	id := w.freeze(t, "pets").Current().Manifest
	w.serveAs(t, 1, holding(1, id, 400, "job-2", "job-1"), nil)
	w.serveAs(t, 2, holding(2, id, 300, "job-1"), nil)
	for _, ref := range []string{"pets", "pets@1"} {
		d := decode[api.DatasetDetail](t, w.ask(t, watchedToken, "GET", "/v1/datasets/"+ref, nil))
		if d.Name != "pets" || d.Generation != 1 || d.Objects != 10 || d.Bytes != 1000 || d.ResidentBytes != 700 || d.Directories != 2 || d.Shards != 1 {
			t.Errorf("%s: %+v", ref, d)
		}
		if !slices.Equal(d.Holders, []string{"job-1", "job-2"}) || len(d.Unmountable) != 1 || d.Unmountable[0].Key != "a//b" || len(d.Locations) != 1 {
			t.Errorf("%s: %+v", ref, d)
		}
	}
	w.ask(t, watchedToken, "GET", "/v1/datasets/pets@2", nil).wantError(t, 404, "notexist", "has no generation 2")
	w.ask(t, watchedToken, "GET", "/v1/datasets/No!", nil).wantError(t, 404, "notexist", "is not registered")
	all := decode[[]api.DatasetInfo](t, w.ask(t, watchedToken, "GET", "/v1/datasets", nil))
	if len(all) != 1 || all[0].ResidentBytes != 700 || !slices.Equal(all[0].URIs, []string{"s3://bucket"}) {
		t.Errorf("%+v", all)
	}
}

// Copies on several workers never make more than the whole.
func TestInfoSumsUp(t *testing.T) {
	d := &manifest.Dataset{Name: "pets", Owner: "ann", Roots: []manifest.Root{{Location: ufs.Location{URI: "s3://a"}}, {Location: ufs.Location{URI: "s3://b/c"}, Folder: "x/y"}}}
	g := manifest.Generation{Number: 3, Manifest: number(1), Objects: 7, Bytes: 1000}
	for name, c := range map[string]struct {
		held []int64
		want int64
	}{"nobody": {nil, 0}, "parts": {[]int64{400, 300}, 700}, "copies": {[]int64{1000, 600}, 1000}} {
		var ws []worker
		for n, b := range c.held {
			ws = append(ws, worker{status: holding(n, number(1), b)})
		}
		want := api.DatasetInfo{Name: "pets", Owner: "ann", URIs: []string{"s3://a", "x/y=s3://b/c"}, Generation: 3, Manifest: number(1), Objects: 7, Bytes: 1000, ResidentBytes: c.want, Eviction: api.Eviction{Evict: "auto"}}
		if got := info(d, g, ws); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v", name, got)
		}
	}
	if got := holders(nil, number(1)); got == nil || len(got) != 0 {
		t.Errorf("no holders are %v", got)
	}
}

func TestEvict(t *testing.T) {
	_, address := startFlows(t)
	w := startWatched(t, address, placement.NewMem(time.Now))
	id := w.freeze(t, "pets").Current().Manifest
	evicts := map[string]any{"/v1/evict": api.EvictReport{Shards: 2, Bytes: 300}}
	w.serveAs(t, 1, holding(1, id, 400), evicts)
	w.serveAs(t, 2, holding(2, id, 400), evicts)
	if sum := decode[api.EvictReport](t, w.ask(t, watchedToken, "POST", "/v1/datasets/pets/evict", nil)); sum.Shards != 4 || sum.Bytes != 600 {
		t.Errorf("%+v", sum)
	}
	w.serveAs(t, 3, holding(3, id, 400, "job-1"), map[string]any{"/v1/evict": stoker.Errorf(stoker.KindHeld, "evict", "", "a mounted view uses it")})
	w.ask(t, watchedToken, "POST", "/v1/datasets/pets/evict", nil).wantError(t, 423, "held", "is held by job-1")
	w.ask(t, watchedToken, "POST", "/v1/datasets/pets/evict", api.EvictRequest{Force: true}).wantError(t, 423, "held", "a mounted view uses it")
	d := *w.freeze(t, "cats")
	_, tag, err := w.manifests.Dataset(t.Context(), "cats")
	if err == nil {
		d.Owner = "bob"
		err = w.manifests.UpdateDataset(t.Context(), &d, tag)
	}
	if err != nil {
		t.Fatal(err)
	}
	w.ask(t, watchedToken, "POST", "/v1/datasets/cats/evict", nil).wantError(t, 403, "denied", "belongs to bob")
	// Another name for bob's data is no way to it.
	alias, tag, err := w.manifests.Dataset(t.Context(), "cats")
	if err == nil {
		alias.Generations = append(alias.Generations, manifest.Generation{Number: 2, Manifest: id})
		err = w.manifests.UpdateDataset(t.Context(), alias, tag)
	}
	if err != nil {
		t.Fatal(err)
	}
	w.ask(t, watchedToken, "POST", "/v1/datasets/pets/evict", api.EvictRequest{Force: true}).wantError(t, 403, "denied", "cats, too, which belongs to bob")
	w.ask(t, daemonToken, "POST", "/v1/datasets/pets/evict", api.EvictRequest{Force: true}).wantError(t, 423, "held", "a mounted view uses it") // an admin may try
}

func TestVerifyDataset(t *testing.T) {
	_, address := startFlows(t)
	w := startWatched(t, address, placement.NewMem(time.Now))
	id := w.freeze(t, "pets").Current().Manifest
	w.serveAs(t, 1, holding(1, id, 1000), map[string]any{"/v1/verify": api.VerifyReport{Shards: []api.ShardReport{{Shard: 0}}}})
	for _, query := range []string{"", "?deep=true", "?deep=0"} {
		events := w.ask(t, watchedToken, "POST", "/v1/datasets/pets/verify"+query, nil).lines(t)
		if c := events[len(events)-1].Certificate; c == nil || c.State != api.CertificateReady || c.Dataset != "pets" || c.Generation != 1 || c.ResidentObjects != 10 || len(c.Unmountable) != 1 {
			t.Errorf("%s: %+v", query, events)
		}
	}
	w.ask(t, watchedToken, "POST", "/v1/datasets/pets/verify?deep=perhaps", nil).wantError(t, 400, "invalid", `deep="perhaps"`)
	w.ask(t, watchedToken, "POST", "/v1/datasets/dogs/verify", nil).wantError(t, 404, "notexist", "is not registered")
}

// A job that loads shows what is on the workers' disks, a copy counted once.
func TestJobStatusSumsUp(t *testing.T) {
	pets := workflows.JobDataset{Name: "pets", Manifest: number(1), Bytes: 1000}
	cars := workflows.JobDataset{Name: "cars", Manifest: number(2), Bytes: 3000}
	for name, c := range map[string]struct {
		state    string
		outcome  string // of the cars
		set      *workflows.DatasetState
		resident int64
		want     string
		eta      float64
		why      string
	}{
		"not begun": {state: api.JobPlanned, want: api.JobPlanned, resident: 1000, eta: -1},
		"warming": {state: api.JobPlanned, set: &workflows.DatasetState{State: api.JobWarming}, want: api.JobWarming,
			resident: 1000 + 1200, eta: -1},
		"warming two copies": {state: api.JobPlanned, set: &workflows.DatasetState{State: api.JobWarming, Holders: []workflows.Holder{{Job: "j"}, {Job: "k", Replicas: 2}}, Copies: 2},
			want: api.JobWarming, resident: 1000 + 600, eta: -1},
		"queued": {state: api.JobPlanned, set: &workflows.DatasetState{State: api.JobQueued, Why: "needs 3 TiB"}, want: api.JobQueued,
			resident: 1000, eta: -1, why: "needs 3 TiB"},
		"started on a miss": {state: api.JobDegraded, set: &workflows.DatasetState{State: api.JobWarming}, want: api.JobDegraded, resident: 1000 + 1200, eta: -1},
		"ready":             {state: api.JobReady, outcome: api.JobReady, want: api.JobReady, resident: 4000, eta: 0},
		"released":          {state: api.JobReleased, want: api.JobReleased, resident: 1000, eta: -1},
	} {
		t.Run(name, func(t *testing.T) {
			flows, address := startFlows(t)
			w := startWatched(t, address, placement.NewMem(time.Now))
			w.serveAs(t, 1, holding(1, number(2), 700), nil)
			w.serveAs(t, 2, holding(2, number(2), 500), nil)
			j := aJob("ann", c.state, pets, cars)
			j.Outcomes[0].State, j.Outcomes[1].State = api.JobReady, c.outcome
			flows.add(j)
			if c.set != nil {
				c.set.Manifest = number(2)
				flows.addSet(*c.set)
			}
			st := decode[api.JobStatus](t, w.ask(t, watchedToken, "GET", "/v1/jobs/j", nil))
			why := ""
			if st.Error != nil {
				why = st.Error.Message
			}
			if st.State != c.want || st.Bytes != 4000 || st.ResidentBytes != c.resident || st.ETASeconds != c.eta || why != c.why || st.Owner != "ann" {
				t.Errorf("%+v, %q", st, why)
			}
		})
	}
}

// Who watches a job hears of it until it is settled.
func TestWatchJob(t *testing.T) {
	flows, address := startFlows(t)
	w := startWatched(t, address, placement.NewMem(time.Now))
	flows.add(aJob("ann", api.JobPlanned))
	asked := make(chan answer)
	go func() { asked <- w.ask(t, watchedToken, "GET", "/v1/jobs/j/watch", nil) }()
	<-flows.looks // it was looked at
	flows.add(aJob("ann", api.JobFailed))
	events := (<-asked).lines(t)
	if n := len(events); n < 2 || events[0].Job.State != api.JobPlanned || events[n-1].Job.State != api.JobFailed {
		t.Errorf("%+v", events)
	}
	w.ask(t, watchedToken, "GET", "/v1/jobs/nobody/watch", nil).wantError(t, 404, "notexist", "'stoker jobs'")
}

// A load that is planned while no worker takes anything new says so, and what to
// do, while it waits; a preload is answered at once.
func TestJobWaitsForWorkers(t *testing.T) {
	flows, address := startFlows(t)
	index := placement.NewMem(time.Now)
	w := startWatched(t, address, index)
	j := aJob("ann", api.JobPlanned, workflows.JobDataset{Name: "pets", Manifest: number(1), Bytes: 1000})
	flows.add(j)
	says := func(part string) {
		t.Helper()
		st := decode[api.JobStatus](t, w.ask(t, watchedToken, "GET", "/v1/jobs/j", nil))
		if why := st.Error.Err("job", "j"); st.State != api.JobPlanned || part == "" && why != nil || part != "" && (why == nil || !strings.Contains(why.Error(), part)) {
			t.Errorf("%+v, %v", st, why)
		}
	}
	says("none is live, 0 lost: start 'stokerd worker'")
	entered := func(n stoker.Incarnation, draining bool) {
		t.Helper()
		x := placement.Worker{ID: strings.Repeat("ab"[n:n+1], 16), Incarnation: n + 1, Address: "http://127.0.0.1:1", Draining: draining}
		if err := index.Register(t.Context(), x, time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	entered(0, true)
	says("none is in service: 1 drained, 0 lost: 'stoker workers undrain aaaaaaaaaaaa'")
	begun := time.Now()
	if st, err := w.granted(t.Context(), j.Input); err != nil || st.State != api.JobPlanned || time.Since(begun) > refuseWithin/2 {
		t.Errorf("%+v, %v after %v", st, err, time.Since(begun))
	}
	entered(1, false)
	says("")
}
