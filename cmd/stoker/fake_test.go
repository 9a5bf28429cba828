package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"stoker.dev"
	"stoker.dev/internal/api"
)

// buffer is a bytes.Buffer for several goroutines.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer // +checklocks:mu
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// rig is the command with a daemon at each end that answers as a test says.
type rig struct {
	t              testing.TB
	dir            string
	environ        []string
	etc            string
	stdout, stderr buffer

	mu     sync.Mutex
	calls  []string                     // +checklocks:mu — "controller DELETE /v1/jobs/j"
	bodies map[string][]json.RawMessage // +checklocks:mu — by call
}

// routes are a fake daemon's answers: by method and pattern.
type routes map[string]func(w http.ResponseWriter, r *http.Request)

// newRig serves both daemons; nil is a daemon that is not there.
func newRig(t testing.TB, controller, node routes) *rig {
	t.Helper()
	g := &rig{t: t, dir: t.TempDir(), bodies: map[string][]json.RawMessage{}}
	g.etc = filepath.Join(g.dir, "etc.yaml")
	g.environ = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + g.dir,
		"STOKER_CONTROLLER=unix://" + g.serve("controller", controller), "STOKER_SOCKET=" + g.serve("node", node)}
	return g
}

func (g *rig) serve(what string, rs routes) string {
	g.t.Helper()
	path := filepath.Join(g.dir, what+".sock")
	if rs == nil {
		return path
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/version", func(w http.ResponseWriter, _ *http.Request) {
		api.WriteJSON(w, 200, api.VersionInfo{Role: what, ID: "id of the " + what})
	})
	for pattern, h := range rs {
		mux.HandleFunc(pattern, h)
	}
	l, err := api.ListenUnix(path)
	if err != nil {
		g.t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.note(what, r)
		mux.ServeHTTP(w, r)
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(l) // it ends with Close
	}()
	g.t.Cleanup(func() {
		_ = s.Close()
		<-done
	})
	return path
}

// note keeps a call and its body.
func (g *rig) note(what string, r *http.Request) {
	var body bytes.Buffer
	_, _ = body.ReadFrom(r.Body) // what does not arrive is missed by the test
	r.Body = http.NoBody
	call := what + " " + r.Method + " " + r.URL.RequestURI()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.calls = append(g.calls, call)
	g.bodies[call] = append(g.bodies[call], body.Bytes())
}

// called returns how often a call was made.
func (g *rig) called(call string) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.bodies[call])
}

// body decodes the body of the n-th time a call was made.
func (g *rig) body(call string, n int, v any) {
	g.t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	if n >= len(g.bodies[call]) {
		g.t.Fatalf("%s was called %d times; calls: %v", call, len(g.bodies[call]), g.calls)
	}
	if err := json.Unmarshal(g.bodies[call][n], v); err != nil {
		g.t.Fatal(err)
	}
}

// app makes one run of the command.
func (g *rig) app() *app {
	return &app{environ: g.environ, etc: g.etc, stdout: &g.stdout, console: &console{w: &g.stderr, width: func() int { return 80 }}}
}

// run runs one command line and returns its exit code.
func (g *rig) run(args ...string) int { return g.runCtx(g.t.Context(), args...) }

func (g *rig) runCtx(ctx context.Context, args ...string) int { return g.app().run(ctx, args) }

// want runs a command line that must exit with code.
func (g *rig) want(code int, args ...string) {
	g.t.Helper()
	if got := g.run(args...); got != code {
		g.t.Errorf("stoker %s: exit %d, want %d\n%s", strings.Join(args, " "), got, code, g.stderr.String())
	}
}

// json runs a command line that must exit with code and print JSON.
func (g *rig) json(v any, code int, args ...string) {
	g.t.Helper()
	g.want(code, append(args, "-o", "json")...)
	if err := json.Unmarshal([]byte(g.stdout.String()), v); err != nil {
		g.t.Errorf("stoker %s printed %q: %v", strings.Join(args, " "), g.stdout.String(), err)
	}
}

// says wants a message on stderr.
func (g *rig) says(part string) {
	g.t.Helper()
	if !strings.Contains(g.stderr.String(), part) {
		g.t.Errorf("stderr has no %q:\n%s", part, g.stderr.String())
	}
}

// fail answers with an error.
func fail(kind stoker.Kind) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, _ *http.Request) {
		api.WriteError(w, stoker.Errorf(kind, "fake", "thing", "as told: do this"))
	}
}

// answer answers with v.
func answer(v any) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, _ *http.Request) { api.WriteJSON(w, 200, v) }
}

// events answers with a stream.
func events(all ...api.Event) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, _ *http.Request) {
		s := api.NewStream(w)
		for _, e := range all {
			_ = s.Send(e) // a client that has what it wants hangs up
		}
	}
}

func done(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }

// job is the state of a job on dataset data, generation 3.
func job(state string, change ...func(*api.JobStatus)) api.JobStatus {
	st := api.JobStatus{Job: "j", State: state, Owner: "me", Bytes: 200, ResidentBytes: 100, ETASeconds: -1,
		Datasets: []api.JobDataset{{DatasetRef: api.DatasetRef{Name: "data", Generation: 3}, Manifest: stoker.ID{7}, Bytes: 200, ResidentBytes: 100}}}
	for _, c := range change {
		c(&st)
	}
	return st
}

func because(kind stoker.Kind) func(*api.JobStatus) {
	return func(st *api.JobStatus) { st.Error = &api.ErrorBody{Kind: kind.String(), Message: "the reason"} }
}

func certified(c api.Certificate) func(*api.JobStatus) {
	return func(st *api.JobStatus) { st.Datasets[0].Certificate = &c }
}

// lines makes events of states.
func lines(states ...api.JobStatus) []api.Event {
	var out []api.Event
	for i := range states {
		out = append(out, api.Event{Job: &states[i]})
	}
	return out
}
