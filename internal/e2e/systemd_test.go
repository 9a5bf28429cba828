package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"stoker.dev/internal/testenv"
)

// workerUnit is worker 2 of a cluster under systemd, by the unit of
// deploy/systemd. Only the program's path, its output and a shorter WatchdogSec
// are the test's.
type workerUnit struct {
	*booted
	c *cluster
}

const (
	unitName   = "stoker-worker.service"
	watchdogIn = 10 * time.Second // a worker that is not on a busy CPU for a moment lives
)

func (c *cluster) underSystemd(t *testing.T) *workerUnit {
	t.Helper()
	unit, path, dropIn := shipped(t, unitName)
	dir := filepath.Join(c.dir, "worker-2")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	var secrets strings.Builder
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"} {
		fmt.Fprintf(&secrets, "%s=%q\n", name, c.getenv(name))
	}
	lines := []string{
		"cache-dir: " + filepath.Join(dir, "cache"), "capacity: 1GiB", "redis: 127.0.0.1:" + c.redisPort(), "store: " + filepath.Join(c.dir, "store"),
		"listen: " + testenv.FreeAddress(t), "token-file: " + filepath.Join(c.dir, "token"), "socket: " + filepath.Join(dir, "worker.sock"), "node-name: worker-2",
	}
	u := &workerUnit{c: c, booted: bootSystemd(t, map[string]string{
		path: unit,
		dropIn: fmt.Sprintf("[Service]\nExecStart=\nExecStart=%s worker --config /etc/stoker/worker.yaml\nStandardError=append:%s\nWatchdogSec=%d\n",
			binary(t, "stokerd"), filepath.Join(dir, "worker.log"), int(watchdogIn.Seconds())),
		"stoker/worker.yaml": strings.Join(lines, "\n") + "\n",
		"stoker/worker.env":  secrets.String(),
	})}
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := u.command("status", unitName).CombinedOutput()
			t.Logf("%s", out)
		}
	})
	u.systemctl("start", unitName) // returns when the worker says that it serves
	return u
}

// show is a property of the unit.
func (u *workerUnit) show(name string) string {
	u.t.Helper()
	return u.systemctl("show", "-P", name, unitName)
}

// mount mounts the dataset where both sides see it.
func (u *workerUnit) mount(kind string) (dir string) {
	u.t.Helper()
	dir = filepath.Join(u.shared, kind)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		u.t.Fatal(err)
	}
	u.must("mount", "data", dir, "--view", kind)
	return dir
}

func (u *workerUnit) must(args ...string) {
	u.t.Helper()
	if r := u.c.stokerAt(2, args...); r.code != 0 {
		u.t.Fatalf("stoker %s: exit %d\n%s%s", strings.Join(args, " "), r.code, r.out, r.stderr)
	}
}

// stores waits until the unit's store has so many descriptors.
func (u *workerUnit) stores(n int) {
	u.t.Helper()
	u.c.eventually(fmt.Sprintf("%d descriptors are stored", n), func() bool { return u.show("NFileDescriptorStore") == fmt.Sprint(n) })
}

// another waits until another process than pid serves.
func (u *workerUnit) another(pid string) {
	u.t.Helper()
	u.c.eventually("another life of the worker serves", func() bool {
		is := u.show("MainPID")
		return is != pid && is != "0" && u.show("ActiveState") == "active"
	})
}

// The worker is a service of a real systemd, by the unit that is shipped. It is
// restarted, killed, and stopped by the watchdog, while processes read through
// files of a tree and a kernel view that are open all the while: no read fails,
// all bytes are right. How long they waited is printed. What is unmounted, and
// what was mounted when the unit is stopped, is in systemd's store no more; the
// next start mounts it anew. As before Linux 6.9, where the worker drains its views
// first, a restart is not noticed either.
func TestSystemdHoldsViews(t *testing.T) {
	c := up(t, 1, "1GiB", func(root string) { makeFiles(t, root, 20, 100<<10, 1, 8<<20+777) })
	c.add()
	u := c.underSystemd(t)
	source := filepath.Join(c.root, "data")
	views := map[string]*rereader{}
	for _, kind := range viewKinds(t) {
		views[kind] = openAll(t, source, u.mount(kind))
	}
	u.stores(len(views))
	if set := u.show("Type") + " " + u.show("NotifyAccess"); set != "notify main" {
		t.Errorf("the unit is %q", set)
	}
	stop, reading := make(chan struct{}), sync.WaitGroup{}
	for _, r := range views {
		for k := range 2 {
			reading.Go(func() { r.run(t, k*len(r.files)/2, stop) })
		}
	}
	for range 2 {
		for _, how := range []struct {
			name string
			end  func()
		}{
			{"systemctl restart", func() { u.systemctl("restart", unitName) }},
			{"kill -9", func() { u.systemctl("kill", "--signal=KILL", unitName) }},
		} {
			t.Logf("%s: readers waited at most %v", how.name, u.outlive(views, how.end))
		}
	}
	t.Logf("no sign of life: readers waited at most %v, of which %v until systemd acts", u.outlive(views, func() { u.systemctl("kill", "--signal=STOP", unitName) }), watchdogIn)
	close(stop)
	reading.Wait()
	for kind, r := range views {
		t.Logf("%s view: %d files were read", kind, r.done.Load())
		r.close()
		u.must("umount", r.view)
	}
	u.stores(0)
	for kind := range views {
		u.mount(kind)
	}
	u.stores(len(views))
	u.systemctl("stop", unitName)
	u.stores(0)
	u.setenv("STOKER_TEST_LINUX_6_8", "1")
	u.systemctl("start", unitName)
	for kind, r := range views {
		views[kind] = openAll(t, source, r.view)
	}
	u.drains(views)
	for _, r := range views {
		u.must("umount", r.view)
	}
	u.stores(0)
	if n := c.mounts(); n != 0 {
		t.Errorf("%d mounts are left", n)
	}
}

// drains restarts the worker beneath views that it drains first.
func (u *workerUnit) drains(views map[string]*rereader) {
	u.t.Helper()
	stop, reading := make(chan struct{}), sync.WaitGroup{}
	for _, r := range views {
		for k := range 2 {
			reading.Go(func() { r.run(u.t, k*len(r.files)/2, stop) })
		}
	}
	u.t.Logf("drained, and restarted: readers waited at most %v", u.outlive(views, func() { u.systemctl("restart", unitName) }))
	close(stop)
	reading.Wait()
	for _, r := range views {
		r.close()
	}
	if log, err := os.ReadFile(filepath.Join(u.c.dir, "worker-2", "worker.log")); err != nil || strings.Count(string(log), "a view is drained") != len(views) {
		u.t.Errorf("the log does not say that %d views are drained (%v)", len(views), err)
	}
}

// setenv sets a variable of the unit's next starts.
func (u *workerUnit) setenv(name, value string) {
	u.t.Helper()
	f, err := os.OpenFile(filepath.Join("/proc", fmt.Sprint(u.cmd.Process.Pid), "root/etc/stoker/worker.env"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		u.t.Fatal(err)
	}
	defer f.Close()
	if _, err := fmt.Fprintf(f, "%s=%s\n", name, value); err != nil {
		u.t.Fatal(err)
	}
}

// outlive ends the worker beneath some views in one way, which systemd answers
// with the next life. It returns the longest wait for one read.
func (u *workerUnit) outlive(views map[string]*rereader, end func()) (pause time.Duration) {
	u.t.Helper()
	for _, r := range views {
		r.next()
		r.longest.Store(0)
	}
	pid := u.show("MainPID")
	end()
	u.another(pid)
	for _, r := range views {
		for range 3 { // of two goroutines: the last of these began after the end
			r.next()
		}
		pause = max(pause, time.Duration(r.longest.Load()))
	}
	u.stores(len(views))
	return pause
}

// openAll opens all files of a view, to be read through these alone.
func openAll(t *testing.T, source, view string) *rereader {
	t.Helper()
	files, _ := listTree(t, source)
	sameTree(t, source, view) // and the kernel learns that closing costs no request: a fork closes copies
	r := &rereader{source: source, view: view, files: files, body: map[string][]byte{}, open: map[string]*os.File{}, step: make(chan struct{}), failed: make(chan struct{}, 2)}
	for _, name := range files {
		want, err := os.ReadFile(filepath.Join(source, name))
		if err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(filepath.Join(view, name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() }) // should the test fail before
		r.body[name], r.open[name] = want, f
	}
	return r
}

func (r *rereader) close() {
	for _, f := range r.open {
		_ = f.Close()
	}
}

// A controller is a service of a real systemd, by the unit that is shipped and as
// a user of its own: it lists a folder, crashes, and is there again. Its program
// and what is below /tmp are where the test has them.
func TestSystemdRunsTheController(t *testing.T) {
	c := up(t, 1, "64MiB", func(string) {})
	const name, uid = "stoker-controller.service", 64_999
	dir, data := t.TempDir(), t.TempDir()
	makeFiles(t, data, 10, 1000, 0, 0)
	program, err := os.ReadFile(binary(t, "stokerd"))
	if err != nil {
		t.Fatal(err)
	}
	token, err := os.ReadFile(filepath.Join(c.dir, "token"))
	if err != nil {
		t.Fatal(err)
	}
	tokens := filepath.Join(dir, "tokens")
	for _, err := range []error{
		os.Chmod(filepath.Dir(dir), 0o755), os.Chown(dir, uid, uid), os.WriteFile(filepath.Join(dir, "stokerd"), program, 0o755),
		os.WriteFile(tokens, token, 0o600), os.Chown(tokens, uid, uid),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	socket := filepath.Join(dir, "controller.sock")
	unit, path, dropIn := shipped(t, name)
	s := bootSystemd(t, map[string]string{
		"passwd": fmt.Sprintf("stoker:x:%d:%d::/:/bin/false\n", uid, uid), "group": fmt.Sprintf("stoker:x:%d:\n", uid),
		path: unit,
		dropIn: fmt.Sprintf("[Service]\nExecStart=\nExecStart=%s controller --config /etc/stoker/controller.yaml\nStandardError=append:%s\nPrivateTmp=no\n",
			filepath.Join(dir, "stokerd"), filepath.Join(c.dir, "unit.log")),
		"stoker/controller.yaml": strings.Join([]string{
			"temporal: 127.0.0.1:" + c.port("temporal"), "redis: 127.0.0.1:" + c.redisPort(), "cluster: systemd",
			"store: " + filepath.Join(dir, "store"), "listen-socket: " + socket, "token-file: " + tokens, "allow-file: " + data,
		}, "\n") + "\n",
	})
	s.systemctl("start", name)
	c.env = append(c.env, "STOKER_CONTROLLER=unix://"+socket)
	c.must("dataset", "add", "folder", "file://"+data)
	if show := c.detail("dataset", "show", "folder"); show.Objects != 10 {
		t.Errorf("it lists %d files of 10", show.Objects)
	}
	s.systemctl("kill", "--signal=ABRT", name) // as Go's runtime ends a process that panics
	c.eventually("systemd has started it again", func() bool {
		return s.systemctl("show", "-P", "NRestarts", name) == "1" && c.stoker("dataset", "show", "folder").code == 0
	})
}
