package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"stoker.dev"
	"stoker.dev/internal/api"
	"stoker.dev/internal/testenv"
)

// codes is the contract's table. A kind that is missing here fails the tests.
var codes = map[stoker.Kind]int{
	stoker.KindInternal: 1, stoker.KindInvalid: 2, stoker.KindNotExist: 3, stoker.KindIncomplete: 4, stoker.KindTransient: 5, stoker.KindBusy: 5,
	stoker.KindCorrupt: 6, stoker.KindStale: 7, stoker.KindNoSpace: 8, stoker.KindDeadline: 9, stoker.KindDenied: 10, stoker.KindHeld: 11,
}

func TestExitCodes(t *testing.T) {
	for k := stoker.KindInternal; k <= stoker.KindIncomplete; k++ {
		want, ok := codes[k]
		if !ok {
			t.Errorf("%v has no code", k)
		}
		if got := exitCode(fmt.Errorf("wrapped: %w", stoker.Errorf(k, "x", "", "y"))); got != want {
			t.Errorf("%v: %d, want %d", k, got, want)
		}
		// and as a controller tells it
		g := newRig(t, routes{"GET /v1/jobs": fail(k)}, nil)
		g.want(want, "jobs")
		if got, want := g.stderr.String(), "stoker: fake thing: as told: do this\n"; got != want {
			t.Errorf("%v: message %q, want %q", k, got, want)
		}
		if g.stdout.String() != "" {
			t.Errorf("%v: stdout has %q", k, g.stdout.String())
		}
	}
	if got := exitCode(errInterrupted); got != 130 {
		t.Errorf("interrupted: %d", got)
	}
	if got := exitCode(errors.New("boom")); got != 1 {
		t.Errorf("foreign: %d", got)
	}
}

func TestInterrupt(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	g := newRig(t, routes{"GET /v1/jobs": func(_ http.ResponseWriter, r *http.Request) {
		cancel()
		<-r.Context().Done()
	}}, nil)
	if code := g.runCtx(ctx, "jobs"); code != 130 {
		t.Errorf("exit %d", code)
	}
	g.says("stoker: interrupted")
}

// Without daemons every command says in one sentence what to start.
func TestWithoutDaemons(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct{ args, start, say string }{
		{"jobs", "stokerd controller", "STOKER_CONTROLLER"}, {"status", "stokerd controller", "STOKER_CONTROLLER"}, {"status x", "stokerd controller", "STOKER_CONTROLLER"},
		{"workers", "stokerd controller", "STOKER_CONTROLLER"}, {"wait j", "stokerd controller", "STOKER_CONTROLLER"}, {"cancel j", "stokerd controller", "STOKER_CONTROLLER"},
		{"dataset ls", "stokerd controller", "STOKER_CONTROLLER"}, {"dataset show x", "stokerd controller", "STOKER_CONTROLLER"},
		{"dataset add x s3://b", "stokerd controller", "STOKER_CONTROLLER"}, {"preload x", "stokerd controller", "STOKER_CONTROLLER"},
		{"preload x --wait", "stokerd controller", "STOKER_CONTROLLER"}, {"verify x", "stokerd controller", "STOKER_CONTROLLER"}, {"evict x", "stokerd controller", "STOKER_CONTROLLER"},
		{"mount x " + dir, "stokerd worker", "STOKER_SOCKET"}, {"umount " + dir, "stokerd worker", "STOKER_SOCKET"}, {"submit --dataset x -- true", "stokerd worker", "STOKER_SOCKET"},
	} {
		g := newRig(t, nil, nil)
		g.want(5, strings.Fields(c.args)...)
		msg := g.stderr.String()
		if strings.Count(msg, "\n") != 1 || !strings.HasPrefix(msg, "stoker: ") || !strings.Contains(msg, "nobody listens there: start '"+c.start+"'") ||
			!strings.Contains(msg, c.say) || !strings.Contains(msg, g.dir) {
			t.Errorf("%s: %q", c.args, msg)
		}
		if g.stdout.String() != "" {
			t.Errorf("%s: stdout %q", c.args, g.stdout.String())
		}
	}
}

// A wrong command line is exit 2, one line on stderr, and asks nobody.
func TestUsage(t *testing.T) {
	for _, line := range []string{
		"nonsense", "dataset nonsense", "jobs x", "status a b", "wait", "wait a b", "cancel", "workers x", "version x", "completion", "completion tcsh", "help nonsense",
		"--nonsense", "jobs --nonsense", "-x", "jobs -o", "jobs -o xml", "preload", "preload a b", "preload a --replicas 0", "preload a --replicas x", "preload a=/dir", "preload a@0", "preload @3",
		"verify", "evict", "verify a=/dir", "dataset add", "dataset add x", "dataset add x nouri", "dataset add x ../a=s3://b", "dataset add x =s3://b", "dataset add x /a=s3://b",
		"dataset show", "mount", "mount a", "mount a b c", "umount", "umount a b", "mount a . --view x", "mount a . --umask 9", "mount a . --kernel-read-ahead 65MiB", "mount a . --kernel-read-ahead -1", "mount a . --kernel-read-ahead many", "mount a . --umask 1777", "mount a . --uid -1",
		"mount a . --gid 4294967295", "submit", "submit -- true", "submit --dataset a", "submit --dataset a --", "submit --dataset a true", "submit --dataset a x -- true",
		"submit --dataset a --deadline soon -- true", "submit --dataset a --job-id -x -- true", "submit --dataset a --job-id a/b -- true", "submit --dataset a --dataset a@2 -- true",
		"submit --dataset s3://b/x --dataset x -- true", "submit --dataset a=rel -- true", "submit --dataset A -- true", "submit --dataset a --on-miss later -- true", "submit --dataset a --layout near -- true", "submit --dataset a --view fast -- true",
		"submit --dataset a --deadline -1s -- true", "submit --dataset a --priority 1001 -- true", "claim --job-id 1 --dataset a --priority -1001", "preload a --replicas 17", "preload Data", "dataset add Data s3://b", "dataset show a/b", "workers drain", "dataset show a --changes=x", "dataset show a --changes=0", "dataset show a --changes=1..", "dataset show a@2 --changes=1..3", "dataset show a --changes 1",
		"status --watch --interval 0s", "status --interval 0s", "--token-file /none jobs", "--controller ftp://x jobs", "--controller x jobs", "--socket rel umount .",
	} {
		g := newRig(t, routes{}, routes{})
		g.want(2, strings.Fields(line)...)
		if msg := g.stderr.String(); strings.Count(msg, "\n") != 1 || !strings.HasPrefix(msg, "stoker: ") {
			t.Errorf("%s: %q", line, msg)
		}
		if len(g.calls) != 0 || g.stdout.String() != "" {
			t.Errorf("%s: calls %v, stdout %q", line, g.calls, g.stdout.String())
		}
	}
}

// What is wrong is said, with the help that says more.
func TestUsageHints(t *testing.T) {
	const name = "1 to 63 of a-z 0-9 . _ -"
	for _, c := range []struct {
		args []string
		says string
	}{
		{[]string{"nonsense"}, `unknown command "nonsense": see 'stoker --help'`},
		{[]string{"dataset", "nonsense"}, `unknown command "nonsense": see 'stoker dataset --help'`},
		{[]string{"workers", "stop"}, `unknown command "stop": see 'stoker workers --help'`}, {[]string{"workers", "drain"}, "a worker's id"},
		{[]string{"jobs", "x"}, `unknown command "x": see 'stoker jobs --help'`},
		{[]string{"help", "nonsense"}, `unknown command "nonsense": see 'stoker --help'`},
		{[]string{"mount", "a", ""}, "see 'stoker mount --help'"},
		{[]string{"umount", ""}, "see 'stoker umount --help'"},
		{[]string{"preload", "A"}, name}, {[]string{"verify", "a b"}, name}, {[]string{"mount", "@3", "/d"}, name}, {[]string{"dataset", "add", "A", "s3://b"}, name},
		{[]string{"submit", "--dataset", "A", "--", "true"}, name},
	} {
		g := newRig(t, routes{}, routes{})
		g.want(2, c.args...)
		g.says(c.says)
		if len(g.calls) != 0 {
			t.Errorf("%v: calls %v", c.args, g.calls)
		}
	}
}

// A token file that was named and is not there is an error, also for a
// controller that wants no token; one of a site's file is not.
func TestTokenFileThatIsNotThere(t *testing.T) {
	rs := routes{"GET /v1/jobs": answer([]api.JobLine{})}
	g := newRig(t, rs, nil)
	missing := filepath.Join(g.dir, "none")
	g.want(2, "jobs", "--token-file", missing)
	g.says("token file " + missing)
	g.environ = append(g.environ, "STOKER_TOKEN_FILE="+missing)
	g.want(2, "jobs")
	there := filepath.Join(g.dir, "token")
	write(t, there, "secret")
	g.want(0, "jobs", "--token-file", there)
	g = newRig(t, rs, nil)
	write(t, g.etc, "token-file: "+missing+"\n")
	g.want(0, "jobs")
}

// contract is every command and flag of the contract. What is built stands in
// built; the rest must be absent: exit 2, never accepted and ignored.
var contract = map[string]string{
	"submit": "dataset on-miss deadline sync layout sampler job-id", "status": "watch reads", "wait": "", "cancel": "", "jobs": "",
	"dataset add": "endpoint region path-style anonymous profile max-age", "dataset ls": "", "dataset show": "changes", "dataset sync": "", "dataset rm": "",
	"preload": "wait sync replicas", "verify": "deep", "evict": "force", "pin": "for reason", "unpin": "", "mount": "view uid gid umask sampler", "umount": "",
	"workers": "", "workers drain": "", "claim": "sampler", "release": "", "doctor": "ufs endpoint region path-style anonymous profile", "bench": "", "completion": "", "version": "",
}

var built = map[string]string{
	"submit": "dataset on-miss deadline sync layout sampler job-id", "status": "", "wait": "", "cancel": "", "jobs": "",
	"dataset add": "endpoint region path-style anonymous profile max-age", "dataset ls": "", "dataset show": "changes", "dataset sync": "", "dataset rm": "",
	"preload": "wait sync replicas", "verify": "deep", "evict": "force", "pin": "for reason", "unpin": "", "claim": "sampler", "release": "", "mount": "view uid gid umask sampler", "umount": "", "workers": "", "doctor": "ufs endpoint region path-style anonymous profile", "completion": "", "version": "",
}

func TestWhatIsNotBuiltIsAbsent(t *testing.T) {
	root := (&app{}).rootCommand()
	for name, flags := range contract {
		words := strings.Fields(name)
		cmd, rest, err := root.Find(words)
		there := err == nil && len(rest) == 0 && cmd.Name() == words[len(words)-1]
		want, ok := built[name]
		if ok && !there {
			t.Errorf("stoker %s is gone", name)
		}
		if !there {
			g := newRig(t, routes{}, routes{})
			g.want(2, words...)
			g.says("unknown command")
			continue
		}
		for _, f := range strings.Fields(flags) {
			has := cmd.Flags().Lookup(f) != nil
			if !has && slices.Contains(strings.Fields(want), f) {
				t.Errorf("stoker %s --%s is gone", name, f)
			}
			if !has {
				g := newRig(t, routes{}, routes{})
				g.want(2, append(words, "--"+f)...)
				g.says("unknown flag: --" + f)
			}
		}
	}
}

// Help teaches: every command says what it is, those with flags or arguments
// of their own how it is called; codes and settings stand on the first page.
func TestHelpTeaches(t *testing.T) {
	g := newRig(t, nil, nil)
	g.want(0, "--help")
	for _, part := range []string{"Exit codes: 0 done", "11 held by others", "130 interrupted", "STOKER_CONTROLLER", "/etc/stoker/config.yaml", "Examples:", "stoker preload imagenet --wait", "stoker submit --dataset", "Available Commands:"} {
		if !strings.Contains(g.stdout.String(), part) {
			t.Errorf("stoker --help has no %q", part)
		}
	}
	if g.stderr.String() != "" {
		t.Errorf("stderr: %q", g.stderr.String())
	}
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		g := newRig(t, nil, nil)
		words := append(strings.Fields(c.CommandPath())[1:], "--help")
		g.want(0, words...)
		help := g.stdout.String()
		if c.Short == "" || !strings.Contains(help, "Usage:\n  "+c.CommandPath()) {
			t.Errorf("%s --help: %q", c.CommandPath(), help)
		}
		c.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if f.Usage == "" {
				t.Errorf("%s --%s is not explained", c.CommandPath(), f.Name)
			}
		})
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk((&app{}).rootCommand())
	for _, words := range [][]string{{}, {"help"}, {"dataset"}, {"help", "dataset", "add"}} {
		g := newRig(t, nil, nil)
		g.want(0, words...)
		if !strings.Contains(g.stdout.String(), "Usage:") {
			t.Errorf("%v prints no help", words)
		}
	}
}

func TestVersionAndCompletion(t *testing.T) {
	g := newRig(t, nil, nil)
	v := map[string]string{}
	g.json(&v, 0, "version")
	if v["version"] != version || v["go"] == "" {
		t.Errorf("%v", v)
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		g := newRig(t, nil, nil)
		g.want(0, "completion", shell)
		if !strings.Contains(g.stdout.String(), "stoker") {
			t.Errorf("%s: %q", shell, g.stdout.String())
		}
	}
}

func TestPrecedence(t *testing.T) {
	const key = "controller"
	for _, c := range []struct{ name, flag, env, user, etc, want string }{
		{name: "default", want: defaultController},
		{name: "site", etc: "unix:///etc.s", want: "unix:///etc.s"},
		{name: "user over site", user: "unix:///user.s", etc: "unix:///etc.s", want: "unix:///user.s"},
		{name: "environment over user", env: "unix:///env.s", user: "unix:///user.s", etc: "unix:///etc.s", want: "unix:///env.s"},
		{name: "flag over all", flag: "unix:///flag.s", env: "unix:///env.s", user: "unix:///user.s", etc: "unix:///etc.s", want: "unix:///flag.s"},
	} {
		for _, home := range []string{"XDG_CONFIG_HOME", "HOME"} {
			g := newRig(t, nil, nil)
			dir := filepath.Join(g.dir, "conf")
			g.environ = []string{home + "=" + dir}
			if home == "HOME" {
				dir = filepath.Join(dir, ".config")
			}
			if c.env != "" {
				g.environ = append(g.environ, "STOKER_CONTROLLER=unix:///first.s", "STOKER_CONTROLLER="+c.env)
			}
			if c.user != "" {
				write(t, filepath.Join(dir, "stoker", "config.yaml"), key+": "+c.user+"\nsocket: /user.sock\n")
			}
			if c.etc != "" {
				write(t, g.etc, key+": "+c.etc+"\nsocket: /etc.sock\ntoken-file: /etc.token\noutput: yaml\n")
			}
			a := g.app()
			a.flags.Controller = c.flag
			got, err := a.settings()
			if err != nil || got.Controller != c.want {
				t.Errorf("%s (%s): %+v, %v", c.name, home, got, err)
			}
			// Keys that one source leaves open come from the next.
			if c.user != "" && c.etc != "" && (got.Socket != "/user.sock" || got.TokenFile != "/etc.token" || got.Output != "yaml") {
				t.Errorf("%s (%s): mixed %+v", c.name, home, got)
			}
		}
	}
}

func write(t testing.TB, path, body string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(body), 0o600)); err != nil {
		t.Fatal(err)
	}
}

// The command itself obeys: the flag's address is the one that is called.
func TestFlagWinsInEarnest(t *testing.T) {
	g := newRig(t, routes{"GET /v1/jobs": answer([]api.JobLine{})}, nil)
	address := strings.TrimPrefix(g.environ[2], "STOKER_CONTROLLER=")
	g.environ[2] = "STOKER_CONTROLLER=unix:///nowhere.sock"
	g.want(5, "jobs")
	g.want(0, "jobs", "--controller", address)
	g.want(0, "--controller="+address, "jobs")
}

func TestConfigFilesThatAreWrong(t *testing.T) {
	for name, body := range map[string]string{
		"unknown key:2": "\ncontoller: unix:///x\n", "twice:2": "socket: /a\nsocket: /b\n", "no YAML": "a: b: c", "list": "- a\n", "wrong type:1": "socket: [1]\n", "format": "output: xml\n",
	} {
		g := newRig(t, nil, nil)
		write(t, g.etc, body)
		g.want(2, "jobs")
		what, line, known := strings.Cut(name, ":")
		if known && !strings.Contains(g.stderr.String(), g.etc+":"+line+": ") {
			t.Errorf("%s: not with its line: %q", what, g.stderr.String())
		}
		if msg := g.stderr.String(); strings.Count(msg, "\n") != 1 || name != "format" && (!strings.Contains(msg, g.etc) || !strings.Contains(msg, "known keys are controller, socket, token-file and output")) {
			t.Errorf("%s: %q", name, msg)
		}
	}
	g := newRig(t, nil, nil)
	write(t, filepath.Join(g.dir, ".config", "stoker", "config.yaml"), "sockt: /a\n")
	g.want(2, "version") // also of commands that need no daemon
	g = newRig(t, nil, nil)
	write(t, g.etc, "# nothing\n")
	g.want(0, "version")
}

// A config file that may not be read is an error that says so.
func TestConfigFilesThatMayNotBeRead(t *testing.T) {
	if os.Getuid() != 0 {
		testenv.Lacks(t, "becomes another user, which root may")
	}
	g := newRig(t, nil, nil)
	write(t, g.etc, "output: json\n")
	if err := os.Chmod(g.etc, 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // it ends with its user
		err := syscall.Setfsuid(54321)
		if err == nil {
			_, err = (&app{etc: g.etc}).settings()
		}
		done <- err
	}()
	if err := <-done; stoker.KindOf(err) != stoker.KindDenied || !strings.Contains(err.Error(), g.etc) || strings.Contains(err.Error(), "known keys") {
		t.Errorf("%v", err)
	}
}
