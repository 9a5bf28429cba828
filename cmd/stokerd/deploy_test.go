package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"stoker.dev/internal/testenv"
)

var units = filepath.Join("..", "..", "deploy", "systemd")

// unit reads the settings of a unit, the last of each name.
func unit(t *testing.T, name string) (set map[string]string, text string) {
	t.Helper()
	body, err := os.ReadFile(filepath.Join(units, name))
	if err != nil {
		t.Fatal(err)
	}
	set = map[string]string{}
	for line := range strings.Lines(string(body)) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(line, "#") {
			set[key] = value
		}
	}
	return set, string(body)
}

// systemd takes the units, this binary takes their command lines, and the keys
// of the examples of config files exist.
func TestUnitsAreValid(t *testing.T) {
	dir := t.TempDir()
	args := []string{"verify", "--man=no"}
	for _, role := range []string{"worker", "controller"} {
		name := "stoker-" + role + ".service"
		set, text := unit(t, name)
		shown, err := os.ReadFile(filepath.Join("..", "..", "docs", "deploy.md"))
		if err != nil {
			t.Fatal(err)
		}
		if body, err := os.ReadFile(filepath.Join(units, role+".yaml")); err != nil || !strings.Contains(string(shown), "```\n"+string(body)+"```\n") {
			t.Errorf("docs/deploy.md does not show %s.yaml (%v)", role, err)
		}
		line := strings.Fields(set["ExecStart"])
		if len(line) < 2 || line[0] != "/usr/bin/stokerd" || line[1] != role {
			t.Fatalf("%s starts %q", name, line)
		}
		example := filepath.Join(units, role+".yaml")
		for i, a := range line {
			if a == "/etc/stoker/"+role+".yaml" {
				line[i] = example
			}
		}
		root := rootCommand()
		seen := ""
		for _, c := range root.Commands() {
			c.RunE = func(cmd *cobra.Command, _ []string) error {
				seen = cmd.Flag("redis").Value.String()
				return nil
			}
		}
		root.SetArgs(line[1:])
		if err := root.ExecuteContext(t.Context()); err != nil || seen != "rediss://stoker@redis.example:6379" {
			t.Errorf("%s: %v: %v, redis %q", name, line, err, seen)
		}
		text = strings.ReplaceAll(text, "/usr/bin/stokerd", "/bin/true")
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		args = append(args, path)
	}
	if out, err := exec.Command(testenv.Program(t, "systemd-analyze"), args...).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze %v: %v\n%s", args, err, out)
	}
}

// What the daemons need of systemd: states by sd_notify, no second try with
// wrong settings, and, for the worker, mounts that everybody sees and that its
// end leaves alone.
func TestUnitsKeepWhatDaemonsNeed(t *testing.T) {
	for _, role := range []string{"worker", "controller"} {
		set, _ := unit(t, "stoker-"+role+".service")
		for key, want := range map[string]string{
			"Type": "notify", "Restart": "always", "RestartPreventExitStatus": "2", "TimeoutStartSec": "infinity", "StartLimitIntervalSec": "0", "NoNewPrivileges": "yes", "LimitCORE": "0",
		} {
			if set[key] != want {
				t.Errorf("%s: %s=%s, want %s", role, key, set[key], want)
			}
		}
		if set["RestrictSUIDSGID"] != "" {
			t.Errorf("%s: RestrictSUIDSGID=%s takes openat2(2) away", role, set["RestrictSUIDSGID"])
		}
		if set["WatchdogSec"] == "" || set["LimitNOFILE"] == "" || set["TimeoutStopSec"] == "" || set["RuntimeDirectory"] != "" {
			t.Errorf("%s: %v", role, set)
		}
	}
	set, _ := unit(t, "stoker-worker.service")
	for key := range set {
		// Each of these gives the unit a mount namespace, or unmounts.
		for _, bad := range []string{"Private", "Protect", "ReadOnly", "ReadWrite", "Inaccessible", "Bind", "TemporaryFileSystem", "Root", "Mount", "ExecStop", "DynamicUser"} {
			if strings.HasPrefix(key, bad) {
				t.Errorf("worker: %s=%s would hide its mounts or end them", key, set[key])
			}
		}
	}
	if !strings.HasSuffix(set["SystemCallFilter"], " seccomp") {
		t.Error("worker: it cannot drain its views: SystemCallFilter= is without seccomp")
	}
	if set["FileDescriptorStoreMax"] == "" {
		t.Error("worker: its views end with it: no FileDescriptorStoreMax=")
	}
	if set["DeviceAllow"] != "/dev/fuse rw" || !strings.Contains(set["CapabilityBoundingSet"], "CAP_SYS_ADMIN") || !strings.Contains(set["SystemCallFilter"], "@mount") {
		t.Errorf("worker cannot mount: %v", set)
	}
}
