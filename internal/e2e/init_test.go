package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"stoker.dev/internal/testenv"
)

// booted is a systemd that is PID 1 of its own namespaces (processes, mounts,
// cgroups, host name). /etc, /run, /var/lib, /proc and /sys/fs/cgroup are its own, what is
// mounted below shared is seen on both sides.
type booted struct {
	t      *testing.T
	cmd    *exec.Cmd
	shared string
}

// boot is what the helper needs to become systemd, as JSON in STOKER_TEST_BOOT.
type boot struct {
	Systemd string
	Shared  string
	Etc     map[string]string // files below /etc
}

// bootSystemd starts one, with these files below /etc; those of the host's that a
// system needs begin with what the host has.
func bootSystemd(t *testing.T, etc map[string]string) *booted {
	t.Helper()
	b := boot{Shared: filepath.Join(t.TempDir(), "shared"), Etc: maps.Clone(etc)}
	for _, p := range []string{"/usr/lib/systemd/systemd", "/lib/systemd/systemd"} {
		if _, err := os.Stat(p); err == nil {
			b.Systemd = p
		}
	}
	if b.Systemd == "" {
		t.Fatal("systemd is not installed: run scripts/need")
	}
	for _, target := range []string{"sysinit", "basic", "network-online", "shutdown", "umount", "final", "exit"} {
		b.Etc["systemd/system/"+target+".target"] = "[Unit]\nDefaultDependencies=no\n"
	}
	if err := os.Mkdir(b.Shared, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(b.Shared, b.Shared, "", unix.MS_BIND, ""); err != nil {
		testenv.Lacks(t, "no mount may be made here: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(b.Shared, unix.MNT_DETACH) })
	if err := unix.Mount("", b.Shared, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	body, err := json.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	s := &booted{t: t, shared: b.Shared, cmd: exec.Command(os.Args[0], "-test.run=^TestHelperBoot$")}
	s.cmd.Env = append(os.Environ(), "STOKER_TEST_BOOT="+string(body))
	var said strings.Builder
	s.cmd.Stdout, s.cmd.Stderr = &said, &said
	s.cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWUTS, Pdeathsig: syscall.SIGKILL,
		UseCgroupFD: true, CgroupFD: ownCgroup(t),
	}
	if err := s.cmd.Start(); err != nil {
		testenv.Lacks(t, "no namespaces here: %v", err)
	}
	t.Cleanup(func() {
		_ = s.cmd.Process.Kill() // and with PID 1 all that it has started
		_ = s.cmd.Wait()
		if t.Failed() {
			t.Logf("systemd:\n%s", said.String())
		}
	})
	(&cluster{t: t}).eventually("systemd runs", func() bool {
		out, err := s.command("is-system-running").Output()
		return err == nil && strings.TrimSpace(string(out)) == "running"
	})
	return s
}

// ownCgroup makes a cgroup for systemd, which takes the one that it finds itself in
// for the root.
func ownCgroup(t *testing.T) (fd int) {
	t.Helper()
	at := t.TempDir()
	if err := unix.Mount("cgroup2", at, "cgroup2", 0, ""); err != nil {
		testenv.Lacks(t, "no cgroups of version 2 here: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH) })
	body, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	own := ""
	for line := range strings.Lines(string(body)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			own = path
		}
	}
	dir := filepath.Join(at, own, "stoker-test-"+strconv.Itoa(os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		testenv.Lacks(t, "no cgroup may be made here: %v", err)
	}
	if fd, err = unix.Open(dir, unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = unix.Close(fd)
		(&cluster{t: t}).eventually("the cgroup has gone", func() bool {
			_ = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					defer func() { _ = os.Remove(p) }() // those with children go at a later try
				}
				return nil
			})
			_, err := os.Stat(dir)
			return errors.Is(err, fs.ErrNotExist)
		})
	})
	return fd
}

// command makes a command of systemctl.
func (s *booted) command(args ...string) *exec.Cmd {
	return exec.Command(testenv.Program(s.t, "nsenter"), append([]string{"-t", strconv.Itoa(s.cmd.Process.Pid), "-m", "-p", "systemctl"}, args...)...)
}

// shipped is a unit of deploy/systemd, and where a drop-in of it lies.
func shipped(t *testing.T, name string) (unit, path, dropIn string) {
	t.Helper()
	body, err := os.ReadFile(filepath.Join("..", "..", "deploy", "systemd", name))
	if err != nil {
		t.Fatal(err)
	}
	path = "systemd/system/" + name
	return string(body), path, path + ".d/test.conf"
}

// systemctl runs systemctl, which must succeed.
func (s *booted) systemctl(args ...string) string {
	s.t.Helper()
	out, err := s.command(args...).CombinedOutput()
	if err != nil {
		s.t.Fatalf("systemctl %q: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// TestHelperBoot is no test: it becomes systemd.
func TestHelperBoot(t *testing.T) {
	var b boot
	if said := os.Getenv("STOKER_TEST_BOOT"); said == "" {
		t.Skip("the other tests start it")
	} else if err := json.Unmarshal([]byte(said), &b); err != nil {
		t.Fatal(err)
	}
	runtime.LockOSThread() // the cgroup namespace is a thread's
	if err := b.become(); err != nil {
		t.Fatal(err)
	}
}

// become is the way from a process in new namespaces to their systemd.
func (b boot) become() error {
	if err := b.keepToItself(); err != nil {
		return err
	}
	for _, name := range []string{"passwd", "group", "hosts", "resolv.conf", "nsswitch.conf", "ld.so.cache"} {
		if body, err := os.ReadFile(filepath.Join("/etc", name)); err == nil {
			b.Etc[name] = string(body) + b.Etc[name]
		}
	}
	b.Etc["machine-id"] = strings.Repeat("0123456789abcdef", 2) + "\n"
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	for _, m := range []struct {
		what, dir, fs string
		flags         uintptr
	}{
		{"proc", "/proc", "proc", 0},
		{"/proc/sys", "/proc/sys", "", unix.MS_BIND},
		{"", "/proc/sys", "", unix.MS_REMOUNT | unix.MS_BIND | unix.MS_RDONLY}, // the kernel's settings are everybody's
		{"tmpfs", "/etc", "tmpfs", 0},
		{"tmpfs", "/run", "tmpfs", 0},
		{"tmpfs", "/var/lib", "tmpfs", 0},
		{"cgroup2", "/sys/fs/cgroup", "cgroup2", 0},
	} {
		if err := unix.Mount(m.what, m.dir, m.fs, m.flags, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(b.Etc)) {
		path := filepath.Join("/etc", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(b.Etc[name]), 0o644); err != nil {
			return err
		}
	}
	none := "/etc/none"
	if err := os.Mkdir(none, 0o755); err != nil {
		return err
	}
	return unix.Exec(b.Systemd, []string{b.Systemd, "--system", "--unit=basic.target", "--show-status=no"}, []string{
		"PATH=" + os.Getenv("PATH"), "container=stoker-test", "SYSTEMD_LOG_TARGET=null", "SYSTEMD_UNIT_PATH=/etc/systemd/system",
		"SYSTEMD_GENERATOR_PATH=" + none, "SYSTEMD_ENVIRONMENT_GENERATOR_PATH=" + none,
	})
}

// keepToItself makes all mounts but the shared one private: nothing of what is
// mounted here is seen elsewhere.
func (b boot) keepToItself() error {
	body, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(body)) {
		dir := strings.ReplaceAll(strings.Fields(line)[4], `\040`, " ")
		if dir == b.Shared {
			continue
		}
		if err := unix.Mount("", dir, "", unix.MS_PRIVATE, ""); err != nil && dir == "/" {
			return fmt.Errorf("mount --make-private %s: %w", dir, err)
		} // one that lies beneath another is not reached, and nothing is mounted on it
	}
	return nil
}
