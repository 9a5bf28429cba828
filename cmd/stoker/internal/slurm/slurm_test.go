package slurm

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"stoker.dev"
	"stoker.dev/internal/api"
)

func TestDirectives(t *testing.T) {
	script := "#!/bin/bash\r\n#STOKER dataset=imagenet@3 mount=/data deadline=30m onmiss=wait\r\n\n# words\n#STOKERS no=one\n#SBATCH -N2\n#STOKER\tdataset=labels replicas=2 layout=spread onmiss=wait\ntrue\n#STOKER dataset=late\n"
	lines, err := directives(strings.NewReader(script))
	if err != nil || len(lines) != 2 {
		t.Fatalf("%q, %v", lines, err)
	}
	w, err := parse(lines)
	if err != nil {
		t.Fatal(err)
	}
	if len(w.datasets) != 2 || w.datasets[0] != (api.DatasetRef{Name: "imagenet", Generation: 3, Dir: "/data"}) || w.datasets[1] != (api.DatasetRef{Name: "labels"}) {
		t.Errorf("datasets %+v", w.datasets)
	}
	if w.onMiss != "wait" || w.deadline == nil || *w.deadline != 30*time.Minute || w.replicas != 2 || w.layout != "spread" {
		t.Errorf("%+v", w)
	}
}

// path=, include= and exclude= are of the dataset on their line; what each matches
// stands in its words again.
func TestDirectivesOfParts(t *testing.T) {
	w, err := parse([]string{"#STOKER dataset=a path=train path=val/ include=*.jpg exclude=/val/**/*.tmp onmiss=wait", "#STOKER include=[0-9]* dataset=b", "#STOKER dataset=c"})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{" path=train path=val/ include=*.jpg exclude=/val/**/*.tmp", " include=[0-9]*", ""} {
		if got := selected(w.datasets[i].Selection); got != want {
			t.Errorf("dataset %d: %q, want %q", i, got, want)
		}
	}
	if w.datasets[2].Selection != nil {
		t.Error("a dataset without path= is taken in part")
	}
}

// sampler= is of the whole job, and reaches its claim and its mounts.
func TestDirectivesOfTheSampler(t *testing.T) {
	w, err := parse([]string{"#STOKER dataset=a path=train include=*.jpg sampler=pytorch:world=8,seed=42", "#STOKER dataset=b"})
	if err != nil {
		t.Fatal(err)
	}
	const want = "pytorch:seed=42,world=8"
	j := job{cluster: "c", id: 1, script: filepath.Join(t.TempDir(), "script")}
	if err := os.WriteFile(j.script, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	req, err := j.claim(w, time.Hour, "")
	if err != nil || req.Sampler != want {
		t.Errorf("%q is claimed, %v", req.Sampler, err)
	}
	if flags := readAs(want, w.datasets[0].Selection); !slices.Equal(flags, []string{"--sampler=" + want, "--path=train", "--include=*.jpg"}) {
		t.Errorf("its mount has %q", flags)
	}
	if flags := readAs("", w.datasets[0].Selection); len(flags) > 0 {
		t.Errorf("a mount without sampler has %q", flags)
	}
}

func TestDirectivesThatAreRefused(t *testing.T) {
	for lines, says := range map[string]string{
		"":                                                   "names no data",
		"#STOKER":                                            "names no dataset",
		"#STOKER dataset":                                    "no KEY=VALUE",
		"#STOKER dataset=":                                   "no KEY=VALUE",
		"#STOKER dataset=A":                                  "is no dataset",
		"#STOKER dataset=a@0":                                "is no dataset",
		"#STOKER dataset=a@x":                                "is no dataset",
		"#STOKER dataset=s3://b/p":                           "is no dataset",
		"#STOKER dataset=../../etc":                          "is no dataset",
		"#STOKER dataset=a dataset=b":                        "two datasets",
		"#STOKER dataset=a\n#STOKER dataset=a@2":             "twice",
		"#STOKER dataset=a mount=data":                       "one absolute folder",
		"#STOKER dataset=a mount=/a/../b":                    "one absolute folder",
		"#STOKER dataset=a mount=/":                          "one absolute folder",
		"#STOKER dataset=a mount=/a mount=/b":                "one absolute folder",
		"#STOKER dataset=a deadline=5":                       "want a time",
		"#STOKER dataset=a deadline=-5m":                     "want a time",
		"#STOKER dataset=a onmiss=hope":                      "want start, wait or fail",
		"#STOKER dataset=a layout=near":                      "want auto, local or spread",
		"#STOKER dataset=a replicas=0":                       "want 1 to 16",
		"#STOKER dataset=a sampler=pytorch":                  "sampler=pytorch: lacks world=N",
		"#STOKER dataset=a sampler=tf:seed=1":                "sampler=tf:seed=1: is not known: write",
		"#STOKER dataset=a sampler=pytorch:world=2,x=1":      `has the key "x"`,
		"#STOKER dataset=a path=/":                           "path=/: is no path below the dataset's root: write train",
		"#STOKER dataset=a path=../b":                        "path=../b: is no path below",
		"#STOKER dataset=a include=[":                        "include=[: is no pattern: write *.jpg",
		"#STOKER dataset=a exclude=a//b":                     "exclude=a//b: is no pattern",
		"#STOKER dataset=a include=/":                        "is an empty pattern",
		"#STOKER dataset=a include=**/**/**/**":              "too many **",
		"#STOKER dataset=a path":                             "no KEY=VALUE",
		"#STOKER dataset=a path=b\n#STOKER dataset=a path=c": "as many path=",
		"#STOKER dataset=a" + " path=" + strings.Repeat("a", 1500) + " include=" + strings.Repeat("b", 1500): "longer than 2 KiB",
		"#STOKER dataset=a pin=2h":                                                             `"pin" is not known`,
		"#STOKER dataset=a \x1b[2Jx=1":                                                         `\x1b[2Jx`,
		"#STOKER dataset=" + strings.Repeat("a", 9000):                                         "…",
		"#STOKER dataset=a onmiss=wait\n#STOKER dataset=b onmiss=fail":                         "say one",
		"#STOKER dataset=a mount=/data\n#STOKER dataset=b mount=/data":                         "one folder",
		"#STOKER dataset=a sampler=pytorch:world=2\n#STOKER dataset=b sampler=pytorch:world=4": "hold for the whole job, say one",
	} {
		var all []string
		if lines != "" {
			all = strings.Split(lines, "\n")
		}
		_, err := parse(all)
		if err == nil || stoker.KindOf(err) != stoker.KindInvalid || !strings.Contains(err.Error(), says) || len(err.Error()) > 600 || strings.Contains(err.Error(), "\x1b") {
			t.Errorf("%.60q: %v, want %q", lines, err, says)
		}
	}
}

// FuzzDirectives: whatever stands in a script, what is accepted is safe to claim
// and to mount, and what is said of the rest is one printable line.
func FuzzDirectives(f *testing.F) {
	f.Add("#!/bin/sh\n#STOKER dataset=a@1 mount=/data deadline=3m\n")
	f.Add("#STOKER dataset=a'; rm -rf /; '\n")
	f.Fuzz(func(t *testing.T, script string) {
		lines, err := directives(strings.NewReader(script))
		if err != nil {
			return
		}
		w, err := parse(lines)
		if err != nil {
			if s := reason(err); strings.ContainsAny(s, "\n\r\x1b\x00") || len(s) > maxReason+len("…") {
				t.Errorf("%q", s)
			}
			return
		}
		for _, d := range w.datasets {
			if !nameOf.MatchString(d.Name) || d.Dir != "" && filepath.Clean(d.Dir) != d.Dir {
				t.Errorf("%+v", d)
			}
		}
	})
}

func TestBurstsOfScontrol(t *testing.T) {
	out := "JobId=7\n   Command=/x\n   BurstBuffer=#STOKER dataset=a\n#STOKER dataset=b mount=/data\n   BurstBufferState=running\n   Comment=#STOKERx\n"
	if got := bursts(out); len(got) != 2 || got[1] != "#STOKER dataset=b mount=/data" {
		t.Errorf("%q", got)
	}
	if got := bursts("JobId=7\n   BurstBufferState=x\n"); len(got) != 0 {
		t.Errorf("%q", got)
	}
}

func TestSlurmThatPolls(t *testing.T) {
	for version, want := range map[string]bool{"slurm 24.05.1": true, "slurm-wlm 25.11.0-rc1": true, "slurm 24.11.2": true, "slurm-wlm 22.05.8": false,
		"slurm 23.11.10": false, "slurm": false, "": false, "slurm x.y": false} {
		if newer(version, 24, 5) != want {
			t.Errorf("%q polls: %v", version, !want)
		}
	}
}

func TestClusterName(t *testing.T) {
	conf := filepath.Join(t.TempDir(), "slurm.conf")
	if err := os.WriteFile(conf, []byte("# ClusterName=no\nslurmctldhost=x\nclustername = big # ours\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{"SLURM_CONF": conf}
	if got, err := clusterName(func(k string) string { return env[k] }); got != "big" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	env["SLURM_CLUSTER_NAME"] = "other"
	if got, err := clusterName(func(k string) string { return env[k] }); got != "other" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	env = map[string]string{"SLURM_CONF": conf + ".no"}
	if _, err := clusterName(func(k string) string { return env[k] }); stoker.KindOf(err) != stoker.KindInvalid {
		t.Errorf("%v", err)
	}
}

// While nobody answers, a hook's verdict is what its job asked for: only
// onmiss=start begins without its data.
func TestVerdictsWithoutAController(t *testing.T) {
	script := filepath.Join(t.TempDir(), "script")
	for onMiss, want := range map[string][2]string{"start": {"ok starts without", "ok starts without"}, "wait": {"error stage-in", "busy"}, "fail": {"error stage-in", "busy"}} {
		if err := os.WriteFile(script, []byte("#STOKER dataset=a onmiss="+onMiss+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		for i, hook := range []string{"data-in", "test-data-in"} {
			var out bytes.Buffer
			h := nobody(&out, script)
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second) // as Slurm's own time-out ends it
			var err error
			if hook == "data-in" {
				err = h.dataIn(ctx)
			} else {
				err = h.testDataIn(ctx)
			}
			cancel()
			if got := out.String(); !strings.HasPrefix(got, "stoker-verdict "+want[i]) || (err != nil) != strings.HasPrefix(want[i], "error") {
				t.Errorf("%s with onmiss=%s: %q, %v; want %q", hook, onMiss, got, err, want[i])
			}
		}
	}
}

// nobody makes hooks whose controller does not answer.
func nobody(out io.Writer, script string) *hooks {
	return &hooks{job: job{cluster: "c", id: 7, script: script}, uid: -1, ttl: time.Hour, polls: func(context.Context) bool { return false },
		userOf: func(context.Context, uint64) int { return -1 },
		Env: Env{Out: func() io.Writer { return out }, Getenv: func(string) string { return "" }, Note: func(string, ...any) {},
			Controller: func() (*api.Controller, error) {
				return api.NewController(api.ClientOptions{URL: "unix:///no/such/socket"})
			}}}
}

// With layout=local the data is spread while the job has no nodes; once it has them
// it is claimed for these, by a claim of its own that ends with the job's. A job that
// starts without its data does not wait for the copies.
func TestLocalOnceTheNodesAreChosen(t *testing.T) {
	bin := t.TempDir()
	for name, body := range map[string]string{
		"squeue":   `case "$*" in "--noheader --jobs=7 --format=%N") echo "n[1-2]";; "--noheader --jobs=7 --format=%U") echo 4242424;; *) exit 1; esac`,
		"scontrol": `[ "$*" = "show hostnames n[1-2]" ] && printf 'n1\nn2\n'`,
	} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\n"+body+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	for onMiss, watched := range map[string]bool{"start": false, "wait": true} {
		var mu sync.Mutex
		var claims []api.ClaimRequest
		var asked []string
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			defer mu.Unlock()
			asked = append(asked, r.Method+" "+strings.TrimPrefix(r.URL.Path, "/v1/jobs"))
			switch r.Method {
			case http.MethodPost:
				var req api.ClaimRequest
				if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
					t.Error(err)
				}
				claims = append(claims, req)
				_ = json.NewEncoder(w).Encode(api.Event{Job: &api.JobStatus{Job: req.Job, State: api.JobPlanned}})
			case http.MethodDelete:
				w.WriteHeader(http.StatusNoContent)
			default:
				_ = json.NewEncoder(w).Encode(api.Event{Job: &api.JobStatus{Job: "j", State: api.JobReady}})
			}
		}))
		script := filepath.Join(bin, "script")
		if err := os.WriteFile(script, []byte("#STOKER dataset=a layout=local onmiss="+onMiss+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		h := nobody(&out, script)
		h.patience, h.userOf = time.Minute, userOf
		h.Controller = func() (*api.Controller, error) { return api.NewController(api.ClientOptions{URL: srv.URL}) }
		if err := h.preRun(t.Context()); err != nil || !strings.HasPrefix(out.String(), "stoker-verdict ok") {
			t.Errorf("onmiss=%s: %q, %v", onMiss, out.String(), err)
		}
		if err := h.release(t.Context()); err != nil {
			t.Error(err)
		}
		srv.Close()
		if len(claims) != 2 || claims[0].Layout != "spread" || len(claims[0].Nodes) != 0 || claims[1].Layout != "local" || !slices.Equal(claims[1].Nodes, []string{"n1", "n2"}) ||
			claims[1].Job != "slurm-c-7+nodes" || claims[1].TTLSeconds == 0 || !claims[1].Submitted.Equal(claims[0].Submitted) {
			t.Errorf("onmiss=%s: claimed %+v", onMiss, claims)
		}
		for _, c := range claims {
			if c.For != "uid-4242424" {
				t.Errorf("onmiss=%s: %s is claimed for %q, not for the job's user", onMiss, c.Job, c.For)
			}
		}
		if got := slices.Contains(asked, "GET /slurm-c-7+nodes/watch") || slices.Contains(asked, "GET /slurm-c-7+nodes"); got != watched {
			t.Errorf("onmiss=%s: the copies are waited for: %v (%v)", onMiss, got, asked)
		}
		for _, want := range []string{"DELETE /slurm-c-7", "DELETE /slurm-c-7+nodes"} {
			if !slices.Contains(asked, want) {
				t.Errorf("onmiss=%s: no %s: %v", onMiss, want, asked)
			}
		}
	}
	if ownerOf("7+nodes") != "7" || ownerOf("7") != "7" {
		t.Error("the reconciler does not find the job of a claim")
	}
}

// slurmctld waits for the check of a submission, 300 ms at most: a controller that is
// slow refuses no job.
func TestCheckDoesNotKeepSlurmctld(t *testing.T) {
	ended := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-r.Context().Done():
		case <-ended:
		}
	}))
	defer srv.Close()
	defer close(ended)
	for lines, want := range map[string]string{"#STOKER dataset=a": "stoker-verdict ok not checked further", "#STOKER dataset=a path=b": "stoker-verdict ok not checked further", "#STOKER dataset=A": "stoker-verdict error"} {
		var out bytes.Buffer
		h := nobody(&out, "")
		h.Controller = func() (*api.Controller, error) { return api.NewController(api.ClientOptions{URL: srv.URL}) }
		begin := time.Now()
		_ = h.check(t.Context(), []string{lines}) // the verdict says it, too
		if took := time.Since(begin); !strings.HasPrefix(out.String(), want) || took < 200*time.Millisecond == strings.HasPrefix(want, "stoker-verdict ok") || took > 3*time.Second {
			t.Errorf("%s: %q after %v, want %q", lines, out.String(), took, want)
		}
	}
}

// A prolog that has sent its job back ends when slurmd has heard of it, which else
// begins the job; one that could not send it back fails at once.
func TestHoldWaitsForSlurmd(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	h := &hooks{job: job{cluster: "c", id: 7}, Env: Env{Note: func(string, ...any) {}}}
	for scontrol, sentBack := range map[string]bool{"exit 0": true, "exit 1": false} {
		for _, name := range []string{"scontrol", "scancel"} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+scontrol+"\n"), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		began := time.Now()
		err := h.hold(t.Context(), stoker.Errorf(stoker.KindInvalid, "mount", "/etc", "is not yours"))
		if took := time.Since(began); (err == nil) != sentBack || took > toldIn != sentBack {
			t.Errorf("%s: %v after %v", scontrol, err, took)
		}
	}
}

// A claim is made for the job's user, who may read what he may. A hook that is no admin
// makes its own; any other refusal is the user's, and nothing is claimed without him.
func TestHookThatIsNoAdmin(t *testing.T) {
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("#STOKER dataset=a\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		uid     int
		refusal string
		claims  []string // for whom
		kind    stoker.Kind
	}{
		"an admin":                          {4242424, "", []string{"uid-4242424"}, 0},
		"none":                              {4242424, "hook " + api.NotForAnother, []string{"uid-4242424", ""}, 0},
		"the user may not read it":          {4242424, "dataset a: uid-4242424 may not read it", []string{"uid-4242424"}, stoker.KindDenied},
		"nobody knows the user":             {-1, "", nil, stoker.KindTransient},
		"nobody knows him, and it is there": {-1, "there", []string{""}, 0},
	} {
		var claims []string
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet {
				st := api.JobStatus{Job: "slurm-c-7", State: api.JobReleased}
				if tc.refusal == "there" {
					st.State = api.JobWarming
				}
				_ = json.NewEncoder(w).Encode(st)
				return
			}
			var req api.ClaimRequest
			if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
				t.Error(err)
			}
			if claims = append(claims, req.For); req.For != "" && tc.refusal != "" {
				w.WriteHeader(http.StatusForbidden)
				_ = json.NewEncoder(w).Encode(api.ErrorBody{Kind: "denied", Message: tc.refusal})
				return
			}
			_ = json.NewEncoder(w).Encode(api.Event{Job: &api.JobStatus{Job: req.Job, State: api.JobPlanned}})
		}))
		h := nobody(io.Discard, script)
		h.uid = tc.uid
		h.Controller = func() (*api.Controller, error) { return api.NewController(api.ClientOptions{URL: srv.URL}) }
		w, err := readScript(script)
		if err != nil {
			t.Fatal(err)
		}
		_, err = h.claim(t.Context(), w)
		srv.Close()
		if !slices.Equal(claims, tc.claims) || (err != nil) != (tc.kind != 0) || err != nil && stoker.KindOf(err) != tc.kind {
			t.Errorf("%s: claims for %q, %v", name, claims, err)
		}
	}
}
