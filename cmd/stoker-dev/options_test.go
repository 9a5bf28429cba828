package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// flags are those of an up of a folder; more are name, value, name, value …
func flags(dir string, more ...string) *upOptions {
	given := map[string]bool{}
	o := &upOptions{dir: dir, workers: 1, capacity: "2GiB", window: defaultWindow, changed: func(flag string) bool { return given[flag] }}
	for i := 0; i < len(more); i += 2 {
		given[more[i]] = true
		switch more[i] {
		case "capacity":
			o.capacity = more[i+1]
		case "s3-root":
			o.s3Root = more[i+1]
		case "allow-file":
			o.allow = append(o.allow, more[i+1])
		case "return-window":
			o.window, _ = time.ParseDuration(more[i+1])
		case "ufs-bandwidth":
			o.bandwidth = more[i+1]
		case "ufs-requests":
			o.requests = more[i+1]
		}
	}
	return o
}

// refused wants a usage error, which is exit code 2, that says something.
func refused(t *testing.T, o *upOptions, says string) {
	t.Helper()
	_, err := makeCluster(o)
	var u usage
	if !errors.As(err, &u) || !strings.Contains(err.Error(), says) {
		t.Errorf("%v, want a usage error with %q", err, says)
	}
}

func mustMake(t *testing.T, o *upOptions) *cluster {
	t.Helper()
	c, err := makeCluster(o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// A folder with something in it that is no cluster's is left as it is.
func TestUpRefusesAForeignFolder(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "thesis.txt")
	if err := errors.Join(os.WriteFile(file, []byte("mine"), 0o600), os.Chmod(dir, 0o700)); err != nil {
		t.Fatal(err)
	}
	refused(t, flags(dir), "is not empty and holds no cluster")
	entries, err := os.ReadDir(dir)
	st, statErr := os.Stat(dir)
	if err != nil || statErr != nil || len(entries) != 1 || st.Mode().Perm() != 0o700 {
		t.Errorf("left %v, %v (%v)", entries, st.Mode(), errors.Join(err, statErr))
	}
	refused(t, flags(file), "is no folder")
	mustMake(t, flags(t.TempDir()))
	again := filepath.Join(t.TempDir(), "new", "folder")
	mustMake(t, flags(again))
	mustMake(t, flags(again)) // now it holds a cluster
}

// The folders stand in the daemons' command lines, also after a second up.
func TestUpKeepsItsFolders(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d")
	mustMake(t, flags(dir, "allow-file", "/a", "allow-file", "/b"))
	c := mustMake(t, flags(dir))
	for _, role := range []string{"controller", "worker-1"} {
		cmd, err := c.command(role)
		if err != nil || !strings.Contains(strings.Join(cmd.Args, " "), "--allow-file /a:/b") {
			t.Errorf("%s: %v (%v)", role, cmd, err)
		}
	}
	refused(t, flags(filepath.Join(t.TempDir(), "d"), "allow-file", "/a:b"), "--allow-file")
}

func TestUpChecksItsCapacity(t *testing.T) {
	for _, s := range []string{"", "lots", "2 Gigs", "-1GiB", "1MiB", "16777215", "NaN", "Inf", "1e400", "GiB", "9999999TiB"} {
		dir := filepath.Join(t.TempDir(), "d")
		refused(t, flags(dir, "capacity", s), "--capacity")
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%q: the folder was made", s)
		}
	}
	for s, want := range map[string]int64{"2GiB": 2 << 30, "500MB": 500e6, "16777216": 16 << 20, "16MiB": 16 << 20, "1.5 gib": 3 << 29, "1e9": 1e9} {
		if got, err := parseBytes(s); err != nil || got != want {
			t.Errorf("%q: %d (%v), want %d", s, got, err, want)
		}
		mustMake(t, flags(filepath.Join(t.TempDir(), "d"), "capacity", s))
	}
}

// pretend lets a process stand for a role of the cluster.
func (c *cluster) pretend(t *testing.T, role string) {
	t.Helper()
	cmd := exec.Command("sh", "-c", "read x", c.dir) // its line names the folder
	in, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait()
	})
	if err := os.WriteFile(c.pidFile(role), fmt.Appendf(nil, "%d\n", cmd.Process.Pid), 0o600); err != nil {
		t.Fatal(err)
	}
}

// What a running cluster would not learn of is refused, not ignored; once it
// is down, it is taken.
func TestUpRefusesChangesOfARunningCluster(t *testing.T) {
	root, other := t.TempDir(), t.TempDir()
	for name, more := range map[string][]string{
		"capacity":             {"capacity", "1GiB"},
		"another folder":       {"s3-root", other},
		"return window":        {"return-window", "3s"},
		"folders to read":      {"allow-file", other},
		"bandwidth":            {"ufs-bandwidth", "10MB/s"},
		"requests":             {"ufs-requests", "500/s"},
		"one of two":           {"capacity", "2048MiB", "return-window", "5s"},
		"a folder, late":       {"s3-root", other},
		"back to the default":  {"return-window", "1m"},
		"capacity, same digit": {"capacity", "2GB"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "d")
			first := []string{"s3-root", root, "return-window", "20s"}
			if name == "a folder, late" {
				first = nil
			}
			c := mustMake(t, flags(dir, first...))
			before, err := os.ReadFile(c.path("cluster.json"))
			if err != nil {
				t.Fatal(err)
			}
			c.pretend(t, "redis")
			refused(t, flags(dir, more...), "'stoker-dev down --dir "+dir+"' first")
			if after, err := os.ReadFile(c.path("cluster.json")); err != nil || string(after) != string(before) {
				t.Errorf("changed: %s (%v)", after, err)
			}
			mustMake(t, flags(dir, append(first, "capacity", "2048MiB")...)) // as it is
			mustMake(t, flags(dir))
			if err := os.Remove(c.pidFile("redis")); err != nil {
				t.Fatal(err)
			}
			got := mustMake(t, flags(dir, more...))
			if more[0] == "capacity" && got.Capacity != more[1] || more[0] == "s3-root" && got.S3Root != other {
				t.Errorf("not taken: %+v", got)
			}
		})
	}
}
