package main

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"stoker.dev"
	"stoker.dev/internal/api"
)

// submitRoutes answer a submit whose job ends in the given state, and whose
// mounts work.
func submitRoutes(end api.JobStatus) (controller, node routes) {
	planned := end
	planned.State, planned.Error = api.JobPlanned, nil
	return routes{
			"POST /v1/jobs": events(lines(planned)...), "GET /v1/jobs/{job}/watch": events(lines(planned, end)...),
			"POST /v1/jobs/{job}/renew": done, "DELETE /v1/jobs/{job}": done,
		}, routes{
			"POST /v1/mounts": answer(api.MountInfo{}), "DELETE /v1/mounts": done,
		}
}

// submitRig keeps the mount points below the test's own folder.
func submitRig(t *testing.T, end api.JobStatus) *rig {
	t.Helper()
	c, n := submitRoutes(end)
	g := newRig(t, c, n)
	t.Setenv("TMPDIR", g.dir)
	return g
}

// tidy wants the claim released, all mounts gone, and no folder left behind.
func (g *rig) tidy(job string) {
	g.t.Helper()
	if n := g.called("controller DELETE /v1/jobs/" + job); n != 1 {
		g.t.Errorf("the claim was released %d times; calls %v", n, g.calls)
	}
	if m, u := g.calledLike("node POST /v1/mounts"), g.calledLike("node DELETE /v1/mounts"); m != u {
		g.t.Errorf("%d mounts, %d unmounts", m, u)
	}
	if left, err := filepath.Glob(filepath.Join(g.dir, "stoker-*")); err != nil || len(left) != 0 {
		g.t.Errorf("left behind: %v (%v)", left, err)
	}
}

// The command runs in the view, with the job's names in its environment and
// submit's own standard streams; its status is submit's.
func TestSubmitRunsTheCommand(t *testing.T) {
	g := submitRig(t, job(api.JobReady))
	g.environ = append(g.environ, "STOKER_JOB=old", "MINE=1")
	a := g.app()
	a.stdin = strings.NewReader("typed")
	code := a.run(t.Context(), []string{"submit", "--dataset", "data@3", "--job-id", "my.job", "--on-miss", "fail", "--deadline", "90s", "--layout", "spread", "--",
		"sh", "-c", `echo "$STOKER_JOB|$STOKER_MOUNT|$MINE|$(cat)|$1"; test -d "$STOKER_MOUNT" && echo oops >&2; exit 7`, "sh", "a b"})
	if code != 7 {
		t.Errorf("exit %d\n%s", code, g.stderr.String())
	}
	var claim api.ClaimRequest
	g.body("controller POST /v1/jobs", 0, &claim)
	if claim.Job != "my.job" || claim.OnMiss != "fail" || claim.DeadlineSeconds == nil || *claim.DeadlineSeconds != 90 || claim.Layout != "spread" || claim.Preload {
		t.Errorf("claimed %+v", claim)
	}
	var m api.MountRequest
	g.body("node POST /v1/mounts", 0, &m)
	if m.Holder != "my.job" || m.Manifest != (stoker.ID{7}) || m.Dataset != "data" || m.Generation != 3 {
		t.Errorf("mounted %+v", m)
	}
	if want := "my.job|" + m.Dir + "|1|typed|a b\n"; g.stdout.String() != want {
		t.Errorf("the command saw %q, want %q", g.stdout.String(), want)
	}
	if first, _, _ := strings.Cut(g.stderr.String(), "\n"); first != "job my.job" {
		t.Errorf("the first line on stderr is %q", first)
	}
	g.says("oops\n")
	g.tidy("my.job")
}

// A job's node is the one that it runs on, unless its data is to be spread.
func TestSubmitNamesItsNode(t *testing.T) {
	for _, layout := range []string{"auto", "local", "spread"} {
		g := submitRig(t, job(api.JobReady))
		g.want(0, "submit", "--dataset", "data", "--layout", layout, "--", "true")
		var claim api.ClaimRequest
		g.body("controller POST /v1/jobs", 0, &claim)
		if here := slices.Equal(claim.Nodes, []string{"id of the node"}); here != (layout != "spread") || claim.Layout != layout {
			t.Errorf("--layout %s: %q on %v", layout, claim.Layout, claim.Nodes)
		}
	}
}

// Without a deadline none is sent; 0 is one.
func TestSubmitDeadline(t *testing.T) {
	for arg, want := range map[string]float64{"": -1, "0": 0, "0s": 0, "1h": 3600} {
		g := submitRig(t, job(api.JobReady))
		args := []string{"submit", "--dataset", "data"}
		if arg != "" {
			args = append(args, "--deadline", arg)
		}
		g.want(0, append(args, "--", "true")...)
		var claim api.ClaimRequest
		g.body("controller POST /v1/jobs", 0, &claim)
		got := -1.0
		if claim.DeadlineSeconds != nil {
			got = *claim.DeadlineSeconds
		}
		if got != want || len(claim.Job) < 8 || claim.OnMiss != "start" {
			t.Errorf("--deadline %q: %+v", arg, claim)
		}
		g.tidy(claim.Job)
	}
}

func TestSubmitExitStatus(t *testing.T) {
	for script, want := range map[string]int{"exit 0": 0, "exit 1": 1, "exit 75": 75, "exit 255": 255, "kill -KILL $$": 137, "kill -TERM $$": 143, "kill -SEGV $$": 139} {
		g := submitRig(t, job(api.JobReady))
		g.want(want, "submit", "--dataset", "data", "--job-id", "j", "--", "sh", "-c", script)
		if n := strings.Count(g.stderr.String(), "stoker:"); n != 0 {
			t.Errorf("%s: stoker speaks of it: %s", script, g.stderr.String())
		}
		g.tidy("j")
	}
}

// told is a writer that tells once that a word came.
type told struct {
	buffer
	word string
	ch   chan struct{}
}

func (w *told) Write(p []byte) (int, error) {
	n, err := w.buffer.Write(p)
	if w.ch != nil && strings.Contains(w.String(), w.word) {
		close(w.ch)
		w.ch = nil
	}
	return n, err
}

// Signals reach the command, which decides what becomes of it.
func TestSubmitPassesSignalsOn(t *testing.T) {
	guard := make(chan os.Signal, 4) // none may end the test itself
	signal.Notify(guard, syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGINT, syscall.SIGHUP)
	defer signal.Stop(guard)
	const loop = "i=0; while [ $i -lt 500 ]; do sleep 0.02; i=$((i+1)); done; exit 77" // long enough for any signal
	for _, c := range []struct {
		name, script string
		sig          syscall.Signal
		want         int
	}{
		{"killed by it", "echo ready; " + loop, syscall.SIGTERM, 143},
		{"hangup", "echo ready; " + loop, syscall.SIGHUP, 129},
		{"handled", "trap 'exit 9' USR1; echo ready; " + loop, syscall.SIGUSR1, 9},
		{"handled to the end", "trap 'echo saved; exit 0' TERM; echo ready; " + loop, syscall.SIGTERM, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := submitRig(t, job(api.JobReady))
			ready := make(chan struct{})
			a := g.app()
			a.stdout = &told{word: "ready", ch: ready}
			go func() {
				select {
				case <-ready:
					_ = syscall.Kill(os.Getpid(), c.sig) // our own process
				case <-t.Context().Done():
				}
			}()
			// As in main: the first such signal ends the context of everything else.
			ctx, stop := signal.NotifyContext(t.Context(), c.sig)
			defer stop()
			if code := a.run(ctx, []string{"submit", "--dataset", "data", "--job-id", "j", "--", "sh", "-c", c.script}); code != c.want {
				t.Errorf("exit %d, want %d: %s", code, c.want, g.stderr.String())
			}
			g.tidy("j")
		})
	}
}

// While the command runs the claim is renewed, and the controller told that
// it runs.
func TestSubmitTellsThatItRuns(t *testing.T) {
	c, nodes := submitRoutes(job(api.JobReady))
	n := 0
	file := filepath.Join(t.TempDir(), "told")
	c["POST /v1/jobs/{job}/renew"] = func(w http.ResponseWriter, r *http.Request) {
		if n++; n == 2 { // the first asks whether the claim still stands
			write(t, file, "")
		}
		done(w, r)
	}
	g := newRig(t, c, nodes)
	t.Setenv("TMPDIR", g.dir)
	g.want(0, "submit", "--dataset", "data", "--job-id", "j", "--", "sh", "-c", `while [ ! -e "$0" ]; do sleep 0.02; done`, file)
	var req api.RenewRequest
	g.body("controller POST /v1/jobs/j/renew", 1, &req)
	if !req.Started {
		t.Error("not told that it runs")
	}
	g.tidy("j")
}

// A claim that was cancelled while the views were made begins no command; a
// controller that does not answer keeps none from beginning.
func TestSubmitOfACancelledClaim(t *testing.T) {
	for kind, want := range map[stoker.Kind]int{stoker.KindNotExist: 4, stoker.KindTransient: 0} {
		c, n := submitRoutes(job(api.JobReady))
		c["POST /v1/jobs/{job}/renew"] = func(w http.ResponseWriter, _ *http.Request) {
			api.WriteError(w, stoker.Errorf(kind, "job", "j", "for the test"))
		}
		g := newRig(t, c, n)
		t.Setenv("TMPDIR", g.dir)
		g.want(want, "submit", "--dataset", "data", "--job-id", "j", "--", "true")
		g.tidy("j")
	}
}

// Whatever goes wrong after the claim, it is released; the command does not run.
func TestSubmitReleasesItsClaim(t *testing.T) {
	for name, c := range map[string]struct {
		end    api.JobStatus
		change func(controller, node routes)
		code   int
		says   string
	}{
		"failed":            {end: job(api.JobFailed, because(stoker.KindNoSpace)), code: 8, says: "the reason"},
		"past its deadline": {end: job(api.JobFailed, because(stoker.KindDeadline)), code: 9},
		"incomplete": {end: job(api.JobFailed, because(stoker.KindIncomplete), certified(api.Certificate{Failed: []api.Failure{{Path: "a", Kind: "stale", Reason: "moved"}}})),
			code: 4, says: "a: stale: moved"},
		"failed, no reason": {end: job(api.JobFailed), code: 1, says: "does not say why"},
		"cancelled":         {end: job(api.JobReleased), code: 4, says: "cancelled"},
		"no mount":          {end: job(api.JobReady), change: func(_, n routes) { n["POST /v1/mounts"] = fail(stoker.KindDenied) }, code: 10},
		"job forgotten":     {end: job(api.JobReady), change: func(c, _ routes) { c["GET /v1/jobs/{job}/watch"] = fail(stoker.KindNotExist) }, code: 3},
	} {
		t.Run(name, func(t *testing.T) {
			controller, node := submitRoutes(c.end)
			if c.change != nil {
				c.change(controller, node)
			}
			g := newRig(t, controller, node)
			t.Setenv("TMPDIR", g.dir)
			ran := filepath.Join(g.dir, "ran")
			g.want(c.code, "submit", "--dataset", "data", "--job-id", "j", "--", "touch", ran)
			if _, err := os.Stat(ran); !errors.Is(err, os.ErrNotExist) {
				t.Error("the command ran")
			}
			g.says(c.says)
			if n := g.called("controller DELETE /v1/jobs/j"); n != 1 {
				t.Errorf("released %d times; calls %v", n, g.calls)
			}
			if left, _ := filepath.Glob(filepath.Join(g.dir, "stoker-*")); len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// At the deadline, or with objects missing, --on-miss start runs the command
// and says so.
func TestSubmitStartsDegraded(t *testing.T) {
	for says, end := range map[string]api.JobStatus{
		"the deadline has passed with 50 % of the data here": job(api.JobDegraded),
		"starting without all of the data: the reason":       job(api.JobDegraded, because(stoker.KindStale)),
	} {
		g := submitRig(t, end)
		g.want(3, "submit", "--dataset", "data", "--job-id", "j", "--", "sh", "-c", "exit 3")
		g.says(says)
		g.tidy("j")
	}
}

// What is wrong on this node is said before anything is claimed.
func TestSubmitClaimsNothingInVain(t *testing.T) {
	g := submitRig(t, job(api.JobReady))
	g.want(3, "submit", "--dataset", "data", "--", "no-such-command-anywhere")
	g.says("is no command on the PATH")
	if g.calledLike("controller") != 0 {
		t.Errorf("calls %v", g.calls)
	}
	c, _ := submitRoutes(job(api.JobReady))
	g = newRig(t, c, nil)
	g.want(5, "submit", "--dataset", "data", "--", "true")
	if g.calledLike("controller") != 0 {
		t.Errorf("calls %v", g.calls)
	}
}

// A command that looks well and cannot be started gives everything back.
func TestSubmitOfWhatCannotRun(t *testing.T) {
	for path, code := range map[string]int{"./dangling": 3, "./garbage": 2} {
		g := submitRig(t, job(api.JobReady))
		t.Chdir(g.dir)
		write(t, "dangling", "#!/no/such/interpreter\n")
		write(t, "garbage", "\x00\x01")
		for _, name := range []string{"dangling", "garbage"} {
			if err := os.Chmod(name, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		g.want(code, "submit", "--dataset", "data", "--job-id", "j", "--", path)
		g.tidy("j")
	}
}

// A signal that comes before the command runs ends the submit; the command
// never runs, and the claim is released.
func TestSubmitInterrupted(t *testing.T) {
	for _, at := range []string{"claim", "watch", "mount"} {
		t.Run(at, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			hang := func(_ http.ResponseWriter, r *http.Request) {
				cancel()
				<-r.Context().Done()
			}
			c, n := submitRoutes(job(api.JobReady))
			switch at {
			case "claim":
				c["POST /v1/jobs"] = hang
			case "watch":
				c["GET /v1/jobs/{job}/watch"] = hang
			case "mount":
				n["POST /v1/mounts"] = func(w http.ResponseWriter, r *http.Request) {
					answer(api.MountInfo{})(w, r) // it was mounted all the same
					cancel()
				}
			}
			g := newRig(t, c, n)
			t.Setenv("TMPDIR", g.dir)
			ran := filepath.Join(g.dir, "ran")
			if code := g.runCtx(ctx, "submit", "--dataset", "data", "--job-id", "j", "--", "touch", ran); code != 130 {
				t.Errorf("exit %d: %s", code, g.stderr.String())
			}
			if _, err := os.Stat(ran); !errors.Is(err, os.ErrNotExist) {
				t.Error("the command ran")
			}
			g.tidy("j")
		})
	}
}

// One that comes after the mount, and just before the command, does so too.
func TestSubmitInterruptedAtTheLastMoment(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	g := newRig(t, nil, nil)
	ran := filepath.Join(g.dir, "ran")
	s := &submission{a: g.app(), argv: []string{"touch", ran}}
	if err := s.execute(ctx, make(chan struct{})); !errors.Is(err, errInterrupted) {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(ran); !errors.Is(err, os.ErrNotExist) {
		t.Error("the command ran")
	}
}

// Several datasets stand side by side in one folder, under their names; =DIR
// takes one elsewhere and leaves a link.
func TestSubmitOfSeveralDatasets(t *testing.T) {
	base, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(base, "other")
	g := submitRig(t, job(api.JobReady, func(st *api.JobStatus) {
		st.Datasets = []api.JobDataset{
			{DatasetRef: api.DatasetRef{Name: "data"}, Manifest: stoker.ID{1}},
			{DatasetRef: api.DatasetRef{Name: "s3://bucket/some/labels/"}, Manifest: stoker.ID{2}},
			{DatasetRef: api.DatasetRef{Name: "far", Dir: other}, Manifest: stoker.ID{3}},
		}
	}))
	g.want(0, "submit", "--dataset", "data", "--dataset", "s3://bucket/some/labels/", "--dataset", "far="+other, "--job-id", "j", "--",
		"sh", "-c", `cd "$STOKER_MOUNT" && pwd && ls && readlink far`)
	lines := strings.Split(strings.TrimSpace(g.stdout.String()), "\n")
	if len(lines) != 5 || !slices.Equal(lines[1:], []string{"data", "far", "labels", other}) {
		t.Fatalf("the command saw %q", lines)
	}
	var dirs []string
	for i := range 3 {
		var m api.MountRequest
		g.body("node POST /v1/mounts", i, &m)
		dirs = append(dirs, m.Dir)
		if m.Manifest != (stoker.ID{byte(i + 1)}) || m.Holder != "j" {
			t.Errorf("mount %d: %+v", i, m)
		}
	}
	if want := []string{lines[0] + "/data", lines[0] + "/labels", other}; !slices.Equal(dirs, want) {
		t.Errorf("mounted at %v, want %v", dirs, want)
	}
	if _, err := os.Stat(other); !errors.Is(err, os.ErrNotExist) {
		t.Error("the folder that submit made stays behind")
	}
	g.tidy("j")
}

// One dataset with =DIR: that is STOKER_MOUNT; a folder that was there stays.
func TestSubmitMountsWhereToldTo(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	g := submitRig(t, job(api.JobReady, func(st *api.JobStatus) { st.Datasets[0].Dir = dir }))
	g.want(0, "submit", "--dataset", "data="+dir, "--job-id", "j", "--", "sh", "-c", `echo "$STOKER_MOUNT"`)
	if g.stdout.String() != dir+"\n" {
		t.Errorf("%q", g.stdout.String())
	}
	if _, err := os.Stat(dir); err != nil {
		t.Error(err)
	}
	g.tidy("j")
}

// A view that is still in use is freed lazily; what cannot be let go is said.
func TestSubmitUnmountsLazilyIfItMust(t *testing.T) {
	c, n := submitRoutes(job(api.JobReady))
	n["DELETE /v1/mounts"] = func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("lazy") == "true" {
			done(w, r)
			return
		}
		fail(stoker.KindHeld)(w, r)
	}
	c["DELETE /v1/jobs/{job}"] = fail(stoker.KindTransient)
	g := newRig(t, c, n)
	t.Setenv("TMPDIR", g.dir)
	g.want(5, "submit", "--dataset", "data", "--job-id", "j", "--", "sh", "-c", "exit 5")
	if g.calledLike("node DELETE") != 2 {
		t.Errorf("calls %v", g.calls)
	}
	g.says("its claim could not be released and ends within a minute")
}

// The claim's end is told while the command goes on.
func TestSubmitSaysThatItsClaimHasEnded(t *testing.T) {
	c, n := submitRoutes(job(api.JobReady))
	c["POST /v1/jobs/{job}/renew"] = fail(stoker.KindNotExist)
	g := newRig(t, c, n)
	t.Setenv("TMPDIR", g.dir)
	end := filepath.Join(g.dir, "end")
	stop := make(chan struct{})
	a := g.app()
	a.console.w = &told{word: "its claim has ended", ch: stop}
	go func() {
		select {
		case <-stop:
			_ = os.WriteFile(end, nil, 0o600) // the command waits for it
		case <-time.After(time.Minute):
		}
	}()
	if code := a.run(t.Context(), []string{"submit", "--dataset", "data", "--job-id", "j", "--", "sh", "-c", `while [ ! -e "$0" ]; do sleep 0.02; done; exit 4`, end}); code != 4 {
		t.Errorf("exit %d", code)
	}
}

// With --ready-at the command begins while the rest is loaded: at a part of the
// bytes, or when the load stays ahead of what is read.
func TestSubmitBeginsEarly(t *testing.T) {
	warming := func(percent int64, rate float64) api.JobStatus {
		st := job(api.JobWarming)
		st.Bytes, st.ResidentBytes, st.BytesPerSec = 1000<<20, percent*10<<20, rate
		return st
	}
	for name, c := range map[string]struct {
		args []string
		seen []api.JobStatus
		want string // percent that are there when it begins; "" = it waits for all
	}{
		"all":                   {nil, []api.JobStatus{warming(99, 1e9)}, ""},
		"a part":                {[]string{"--ready-at", "30%"}, []api.JobStatus{warming(10, 1e9), warming(29, 1e9), warming(31, 1e9), warming(60, 1e9)}, "31 %"},
		"waits in the queue":    {[]string{"--ready-at", "1"}, []api.JobStatus{job(api.JobQueued)}, ""},
		"half the rate":         {[]string{"--ready-at", "auto", "--read-rate", "100MB/s"}, []api.JobStatus{warming(49, 50e6), warming(51, 50e6)}, "51 %"},
		"faster than it reads":  {[]string{"--ready-at", "auto", "--read-rate", "100MB/s"}, []api.JobStatus{warming(1, 0), warming(2, 101e6)}, "2 %"},
		"nothing moves at once": {[]string{"--ready-at", "auto", "--read-rate", "100MB/s"}, []api.JobStatus{warming(90, 0)}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			controller, node := submitRoutes(job(api.JobReady))
			controller["GET /v1/jobs/{job}/watch"] = func(w http.ResponseWriter, r *http.Request) {
				for i := range c.seen {
					w.Write(append(encode(t, api.Event{Job: &c.seen[i]}), '\n')) //nolint:errcheck // a test's
					w.(http.Flusher).Flush()
				}
				if c.want != "" { // it goes away by itself
					<-r.Context().Done()
					return
				}
				end := job(api.JobReady)
				w.Write(append(encode(t, api.Event{Job: &end}), '\n')) //nolint:errcheck // likewise
			}
			g := newRig(t, controller, node)
			t.Setenv("TMPDIR", g.dir)
			g.want(0, slices.Concat([]string{"submit", "--dataset", "data", "--job-id", "j"}, c.args, []string{"--", "true"})...)
			said := strings.Contains(g.stderr.String(), "starting with "+c.want)
			if said != (c.want != "") {
				t.Errorf("it says %s", g.stderr.String())
			}
			g.tidy("j")
		})
	}
	g := newRig(t, nil, nil)
	for _, args := range [][]string{{"--ready-at", "0"}, {"--ready-at", "100"}, {"--ready-at", "soon"}, {"--ready-at", "auto"}, {"--read-rate", "1GB/s"}, {"--ready-at", "5", "--verify", "deep"}} {
		g.want(2, slices.Concat([]string{"submit", "--dataset", "data"}, args, []string{"--", "true"})...)
	}
}

func encode(t *testing.T, v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		t.Error(err)
	}
	return b
}
