package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"stoker.dev"
)

func TestByteSize(t *testing.T) {
	for in, want := range map[string]int64{
		"0": 0, "1": 1, "1048576": 1 << 20, "1B": 1, "2GiB": 2 << 30, "2gib": 2 << 30, "2 GiB": 2 << 30, "1.5GiB": 3 << 29, "500MB": 500e6,
		"1KB": 1000, "1KiB": 1024, "3TB": 3e12, "4TiB": 4 << 40, "1e3": 1000, "1.073741824e+11": 100 << 30,
	} {
		var b byteSize
		if err := b.Set(in); err != nil || int64(b) != want {
			t.Errorf("%q: %d (%v), want %d", in, b, err, want)
		}
		var again byteSize
		if err := again.Set(b.String()); err != nil || again != b {
			t.Errorf("%q prints as %q, which is %d (%v)", in, b.String(), again, err)
		}
	}
	for _, in := range []string{"", "GiB", "-1", "-1GiB", "1XB", "1GiBs", "one", "1,5GiB", "NaN", "Inf", "0x10", "1 2", "8388608TiB", "99999999999999999999", "1GiB1"} {
		b := byteSize(7)
		if err := b.Set(in); err == nil || b != 7 {
			t.Errorf("%q was taken as %d", in, b)
		}
	}
}

// outcome runs a command line whose worker does nothing but show its flags.
func outcome(t *testing.T, args ...string) (map[string]string, error) {
	t.Helper()
	root := rootCommand()
	got := map[string]string{}
	for _, c := range root.Commands() {
		c.RunE = func(cmd *cobra.Command, _ []string) error {
			for _, name := range []string{"capacity", "cache-dir", "dir", "streams", "token-file", "redis", "log-level", "allow-file"} {
				if f := cmd.Flags().Lookup(name); f != nil {
					got[name] = f.Value.String()
				}
			}
			return nil
		}
	}
	root.SetArgs(args)
	root.SetOut(new(strings.Builder))
	return got, root.ExecuteContext(t.Context())
}

func configFile(t *testing.T, body string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "stokerd.yaml")
	if err := os.WriteFile(path, []byte(body), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFlagThenEnvironmentThenFile(t *testing.T) {
	for _, c := range []struct{ name, flag, env, file, want string }{
		{name: "default", want: "107374182400"},
		{name: "file", file: "2GiB", want: "2147483648"},
		{name: "a plain number in the file", file: "10737418240000", want: "10737418240000"},
		{name: "environment over file", env: "3GiB", file: "2GiB", want: "3221225472"},
		{name: "flag over all", flag: "4GiB", env: "3GiB", file: "2GiB", want: "4294967296"},
		{name: "flag that repeats the default", flag: "100GiB", env: "3GiB", want: "107374182400"},
	} {
		t.Run(c.name, func(t *testing.T) {
			args := []string{"worker", "--config", configFile(t, "cache-dir: /from/file\n")}
			if c.file != "" {
				args[2] = configFile(t, "cache-dir: /from/file\ncapacity: "+c.file+"\n")
			}
			if c.flag != "" {
				args = append(args, "--capacity", c.flag)
			}
			if c.env != "" {
				t.Setenv("STOKER_CAPACITY", c.env)
			}
			got, err := outcome(t, args...)
			if err != nil || got["capacity"] != c.want || got["cache-dir"] != "/from/file" {
				t.Errorf("%v (%v), want capacity %s", got, err, c.want)
			}
		})
	}
}

// Dashes are underscores in the environment; a variable that is set but empty
// is set; flags of all commands come from outside too.
func TestEnvironment(t *testing.T) {
	t.Setenv("STOKER_CACHE_DIR", "/env")
	t.Setenv("STOKER_TOKEN_FILE", "")
	t.Setenv("STOKER_LOG_LEVEL", "debug")
	t.Setenv("STOKER_STREAMS", "3")
	t.Setenv("STOKER_HELP", "true") // no setting
	t.Setenv("STOKER_CONTROLLER", "unix:///x")
	got, err := outcome(t, "worker", "--config", configFile(t, "token-file: /file\n"))
	if err != nil || got["cache-dir"] != "/env" || got["token-file"] != "" || got["log-level"] != "debug" || got["streams"] != "3" {
		t.Errorf("%v, %v", got, err)
	}
}

func TestValuesOfConfigFiles(t *testing.T) {
	got, err := outcome(t, "worker", "--config", configFile(t, "# a comment\nstreams: 2000000\nredis: 'r:1'\ntoken-file:\ncache-dir: \"007\"\n"))
	if err != nil || got["streams"] != "2000000" || got["redis"] != "r:1" || got["token-file"] != "" || got["cache-dir"] != "007" {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := outcome(t, "controller", "--config", configFile(t, "")); err != nil || got["log-level"] != "info" {
		t.Errorf("an empty file: %v, %v", got, err)
	}
}

// What is wrong outside is exit 2 and names what is wrong.
func TestSettingsThatAreWrong(t *testing.T) {
	for name, c := range map[string]struct{ file, env, says string }{
		"unknown key":            {"# x\ncapacty: 1GiB\n", "", `stokerd.yaml:2: no setting is named "capacty" (stokerd worker --help lists them)`},
		"of the other daemon":    {"temporal: x:1\n", "", `"temporal"`},
		"the command line's own": {"config: /x\n", "", `"config"`},
		"help":                   {"help: true\n", "", `"help"`},
		"twice":                  {"redis: a\nredis: b\n", "", "redis"},
		"no YAML":                {"a: b: c\n", "", "config"},
		"list":                   {"\nredis: [a, b]\n", "", "stokerd.yaml:2: redis: want one value"},
		"bad size in the file":   {"capacity: 1XB\n", "", `stokerd.yaml:1: capacity: "1XB" is no number of bytes`},
		"bad rate":               {"ufs-bandwidth: 10GB/h\n", "", `stokerd.yaml:1: ufs-bandwidth: is no rate: write 10GB/s`},
		"too small a rate":       {"ufs-requests: \"*.example=5/s\"\n", "", `ufs-requests: is less than 10 in a second`},
		"no number":              {"streams: many\n", "", `stokerd.yaml:1: streams: strconv.ParseInt: parsing "many"`},
		"bad size outside":       {"", "much", `STOKER_CAPACITY: "much" is no number of bytes`},
	} {
		t.Run(name, func(t *testing.T) {
			if c.env != "" {
				t.Setenv("STOKER_CAPACITY", c.env)
			}
			_, err := outcome(t, "worker", "--config", configFile(t, c.file))
			if err == nil || exitCode(err) != 2 || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, exit %d, want %q", err, exitCode(err), c.says)
			}
		})
	}
	_, err := outcome(t, "worker", "--config", filepath.Join(t.TempDir(), "none"))
	if err == nil || exitCode(err) != 2 {
		t.Errorf("a file that was asked for and is not there: %v", err)
	}
}

// Limits that let nothing in are a slip of the pen.
func TestLimitsThatLetNothingIn(t *testing.T) {
	if err := (&workerFlags{streams: 1, capacity: leastCapacity}).checkLimits(); err != nil {
		t.Error(err)
	}
	for says, f := range map[string]workerFlags{
		"--streams 0":      {capacity: leastCapacity},
		"--streams -1":     {capacity: leastCapacity, streams: -1},
		"--read-ahead: 4":  {capacity: leastCapacity, streams: 1, readAhead: 4 << 10},
		"--capacity: 1024": {capacity: 1 << 10, streams: 1},
		"--dir /x: 1024":   {dirs: folderList{{Dir: "/x", CapacityBytes: 1 << 10}}, streams: 1},
	} {
		if err := f.checkLimits(); err == nil || exitCode(err) != 2 || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want %q", err, says)
		}
	}
}

// A wrong command line is exit 2; what is not built is absent.
func TestUsage(t *testing.T) {
	for _, line := range []string{
		"hold extra", "hold --keep x", "nonsense", "worker extra", "worker --nonsense", "worker --streams", "worker --streams x", "worker --capacity 1XB", "--nonsense", "controller --capacity 1", "-x",
	} {
		_, err := outcome(t, strings.Fields(line)...)
		if err == nil || exitCode(err) != 2 || strings.Contains(err.Error(), "\n\n") {
			t.Errorf("stokerd %s: %v, exit %d", line, err, exitCode(err))
		}
	}
	// The real daemons, without what they need.
	for _, args := range [][]string{{"worker"}, {"controller"}, {"hold", "--keep", "0s"}, {"hold", "--holder", ""}, {"worker", "--cache-dir", "x", "--redis", "y"}, {"worker", "--cache-dir", "x", "--redis", "y", "--store", t.TempDir(), "--log-level", "loud"},
		{"worker", "--cache-dir", "x", "--redis", "y", "--store", t.TempDir(), "--evict-high", "101"}, {"worker", "--cache-dir", "x", "--redis", "y", "--store", t.TempDir(), "--evict-low", "95"},
		{"worker", "--cache-dir", "x", "--redis", "y", "--store", t.TempDir(), "--evict-idle", "10ms"}} {
		if code := run(args); code != 2 {
			t.Errorf("stokerd %v: exit %d", args, code)
		}
	}
	for _, args := range [][]string{{"--help"}, {"worker", "--help"}, {"--version"}} {
		if _, err := outcome(t, args...); err != nil {
			t.Errorf("stokerd %v: %v", args, err)
		}
	}
}

func TestExitCodes(t *testing.T) {
	for k, want := range map[stoker.Kind]int{
		stoker.KindInternal: 1, stoker.KindInvalid: 2, stoker.KindNotExist: 3, stoker.KindTransient: 5, stoker.KindBusy: 5, stoker.KindNoSpace: 8, stoker.KindDenied: 10,
	} {
		if got := exitCode(fmt.Errorf("x: %w", stoker.Errorf(k, "a", "", "b"))); got != want {
			t.Errorf("%v: %d, want %d", k, got, want)
		}
	}
	if got := exitCode(errors.New("boom")); got != 1 {
		t.Errorf("foreign: %d", got)
	}
}

// A daemon does not start with a token file that others can read.
func TestTokenFileIsChecked(t *testing.T) {
	dir := t.TempDir()
	tokens := filepath.Join(dir, "tokens")
	if err := os.WriteFile(tokens, []byte("stoker 0123456789abcdef\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(tokens, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"worker", "--cache-dir", filepath.Join(dir, "c")}, {"controller"}} {
		args = append(args, "--redis", "127.0.0.1:1", "--store", filepath.Join(dir, "s"), "--token-file", tokens)
		if code := run(args); code != 2 {
			t.Errorf("%s: exit %d", args[0], code)
		}
	}
}

func TestPIDFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "worker.pid")
	if err := os.WriteFile(path, []byte("an old one, and longer"), 0o600); err != nil {
		t.Fatal(err)
	}
	remove, err := pidFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != fmt.Sprintf("%d\n", os.Getpid()) {
		t.Errorf("%q, %v", got, err)
	}
	remove()
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if remove, err := pidFile(""); err != nil {
		t.Error(err)
	} else {
		remove()
	}
	if _, err := pidFile(filepath.Join(path, "x", "y")); err == nil || exitCode(err) != 2 {
		t.Errorf("no folder: %v", err)
	}
}
