package main

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"stoker.dev"
	"stoker.dev/internal/api"
)

func report(role string, checks ...api.Check) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, _ *http.Request) {
		api.WriteJSON(w, 200, api.DoctorReport{Role: role, ID: "0123456789abcdef", Time: time.Now(), Checks: checks})
	}
}

func check(name, state, hint string) api.Check {
	return api.Check{Name: name, State: state, Detail: "seen", Hint: hint}
}

// With nothing running it says what to start, and that is exit 5.
func TestDoctorWithEverythingDown(t *testing.T) {
	g := newRig(t, nil, nil)
	g.want(5, "doctor")
	for _, part := range []string{"this node\n", "kernel", "nobody listens there", "-> start 'stokerd worker' on this node", "-> start 'stokerd controller'", g.dir + "/node.sock", "2 fail"} {
		if !strings.Contains(g.stdout.String(), part) {
			t.Errorf("no %q:\n%s", part, g.stdout.String())
		}
	}
	g.says("stoker: doctor: 2 of 5 checks failed")
	var d diagnosis
	g = newRig(t, nil, nil)
	g.json(&d, 5, "doctor")
	if d.State != api.CheckFail || len(d.Checks) != 5 || d.Checks[3].On != "worker" || d.Checks[3].Hint == "" || d.Checks[4].On != "controller" {
		t.Errorf("%+v", d)
	}
}

func TestDoctorStates(t *testing.T) {
	warn := check("cache-space", api.CheckWarn, "make room")
	for name, c := range map[string]struct {
		controller, node func(http.ResponseWriter, *http.Request)
		code             int
		want             []string
	}{
		"all is well":     {report("controller", check("redis", api.CheckOK, "")), report("worker"), 0, []string{"worker 0123456789ab answers", "ok    redis", "its clock against the controller's: within", " 0 fail"}},
		"a warning":       {report("controller"), report("worker", warn), 0, []string{"warn  cache-space", "-> make room", "1 warn, 0 fail"}},
		"redis is down":   {report("controller", check("redis", api.CheckFail, "start Redis")), report("worker"), 5, []string{"fail  redis", "-> start Redis"}},
		"only a worker":   {nil, report("worker"), 5, []string{"worker 0123456789ab answers", "-> start 'stokerd controller'"}},
		"no worker":       {report("controller"), nil, 5, []string{"-> start 'stokerd worker'"}},
		"an old daemon":   {fail(stoker.KindNotExist), report("worker"), 0, []string{"warn  answer", "-> update it"}},
		"not permitted":   {fail(stoker.KindDenied), report("worker"), 5, []string{"-> name a --token-file"}},
		"addresses mixed": {report("worker"), report("controller"), 5, []string{`a "worker" answers there, not a controller`}},
		"hostile details": {report("controller", api.Check{Name: "x\x1b[2J", State: "fail", Detail: "a\nb\x1b]0;", Hint: "c\nd"}), report("worker"), 5, []string{`x\x1b[2J`, `a; b\x1b]0;`, "-> c; d"}},
	} {
		rs := func(h func(http.ResponseWriter, *http.Request)) routes {
			if h == nil {
				return nil
			}
			return routes{"GET /v1/doctor": h}
		}
		g := newRig(t, rs(c.controller), rs(c.node))
		g.want(c.code, "doctor")
		for _, part := range c.want {
			if !strings.Contains(g.stdout.String(), part) {
				t.Errorf("%s: no %q:\n%s", name, part, g.stdout.String())
			}
		}
		if strings.Contains(g.stdout.String(), "\x1b") {
			t.Errorf("%s: escapes reach the terminal", name)
		}
	}
}

// A clock that is off is found between the two daemons, whatever ours says.
func TestDoctorClocks(t *testing.T) {
	for ahead, want := range map[time.Duration]string{0: api.CheckOK, time.Minute: api.CheckWarn, -time.Hour: api.CheckFail} {
		c := workerClock(reading{true, ahead + time.Hour, time.Millisecond}, reading{true, time.Hour, time.Millisecond})
		if c.State != want || want != api.CheckOK && c.Hint == "" {
			t.Errorf("%v: %+v", ahead, c)
		}
	}
}

func TestDoctorShowsNoSecret(t *testing.T) {
	g := newRig(t, nil, nil)
	secret := filepath.Join(g.dir, "token")
	write(t, secret, "stoker very-secret-token-1234567890\n")
	g.environ = append(g.environ, "AWS_SECRET_ACCESS_KEY=aws-secret", "STOKER_CONTROLLER=http://127.0.0.1:1", "STOKER_TOKEN_FILE="+secret)
	g.want(5, "doctor", "-o", "yaml")
	if out := g.stdout.String() + g.stderr.String(); strings.Contains(out, "very-secret") || strings.Contains(out, "aws-secret") {
		t.Errorf("%s", out)
	}
}

func TestNodeChecks(t *testing.T) {
	for release, c := range map[string]struct{ known, state, part string }{
		"Linux 6.18.1-x": {"nodev\tsysfs\n\terofs\n", api.CheckOK, ", EROFS from files"}, "Linux 6.12": {"", api.CheckOK, "may be there, as a module"},
		"Linux 6.11.9": {"\terofs\n", api.CheckOK, "no EROFS from files"}, "Linux 5.3.0": {"", api.CheckWarn, "older"}, "unknown": {"", api.CheckWarn, "older"}, "Linux 7.0-rc1": {"", api.CheckOK, "module"},
	} {
		if got := checkKernel(release, c.known); got.State != c.state || !strings.Contains(got.Detail, c.part) {
			t.Errorf("%s: %+v", release, got)
		}
	}
	dir := t.TempDir()
	if got := checkFuse(filepath.Join(dir, "none")); got.State != api.CheckFail || !strings.Contains(got.Hint, "modprobe fuse") {
		t.Errorf("%+v", got)
	}
	there := filepath.Join(dir, "fuse")
	if err := os.WriteFile(there, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := checkFuse(there); got.State != api.CheckOK {
		t.Errorf("%+v", got)
	}
}
