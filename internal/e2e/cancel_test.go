package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"stoker.dev/internal/api"
)

// state is a job's state; "" if it is not known yet.
func (c *cluster) state(job string) string {
	c.t.Helper()
	for _, j := range c.jobs() {
		if j.Job == job {
			return j.State
		}
	}
	return ""
}

func (c *cluster) inState(job, state string) {
	c.t.Helper()
	c.eventually("job "+job+" is "+state, func() bool { return c.state(job) == state })
}

// signal sends a signal to a role.
func (c *cluster) signal(role string, sig syscall.Signal) {
	c.t.Helper()
	body, err := os.ReadFile(filepath.Join(c.dir, role, "worker.pid"))
	if err != nil {
		c.t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(body)))
	if err == nil {
		err = syscall.Kill(pid, sig)
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

// stage brings a submit of a job into one stage and returns what lets the
// stage end afterwards.
type stage struct {
	name  string
	reach func(c *cluster, submit func(dataset string, command ...string) *exec.Cmd) (job *exec.Cmd, after func())
}

var stages = []stage{
	{"planning", func(c *cluster, submit func(string, ...string) *exec.Cmd) (*exec.Cmd, func()) {
		c.signal("worker-2", syscall.SIGSTOP) // the plan asks it what it could take, and waits
		cmd := submit("small", "true")
		c.inState("x", api.JobPlanned)
		return cmd, func() { c.signal("worker-2", syscall.SIGCONT) }
	}},
	{"queued", func(c *cluster, submit func(string, ...string) *exec.Cmd) (*exec.Cmd, func()) {
		holder, _ := c.background("submit", "--dataset", "small", "--job-id", "holder", "--", "sleep", "1000")
		c.inState("holder", api.JobLeased)
		cmd := submit("large", "true")
		c.inState("x", api.JobQueued)
		return cmd, func() { _ = holder.Process.Signal(os.Interrupt); _ = holder.Wait() }
	}},
	{"loading", func(c *cluster, submit func(string, ...string) *exec.Cmd) (*exec.Cmd, func()) {
		c.evicted("small")
		c.proxy.Reset()
		reached, release := c.proxy.Hold(10 << 20)
		cmd := submit("small", "true")
		<-reached
		c.inState("x", api.JobWarming)
		return cmd, release
	}},
	{"ready", func(c *cluster, submit func(string, ...string) *exec.Cmd) (*exec.Cmd, func()) {
		c.proxy.Reset()
		c.evicted("small")
		reached, release := c.proxy.Hold(10 << 20)
		cmd := submit("small", "true")
		<-reached
		_ = cmd.Process.Signal(syscall.SIGSTOP) // it cannot begin its command
		release()
		c.inState("x", api.JobReady)
		return cmd, func() {}
	}},
	{"running", func(c *cluster, submit func(string, ...string) *exec.Cmd) (*exec.Cmd, func()) {
		cmd := submit("small", "sleep", "1000")
		c.inState("x", api.JobLeased)
		return cmd, func() {}
	}},
}

// evicted frees a dataset as soon as nobody holds it any more.
func (c *cluster) evicted(dataset string) {
	c.t.Helper()
	var last result
	defer func() {
		if last.code != 0 {
			c.t.Logf("evict ended with %d: %s", last.code, last.stderr)
		}
	}()
	// A worker that stood still while a claim came and went may hear of the claim
	// after its end: that lease ends by its silence.
	c.within(3*time.Minute, dataset+" is evicted", func() bool { last = c.stoker("evict", dataset); return last.code == 0 })
}

// A job may be cancelled in every stage, by `stoker cancel`, by Ctrl-C and by
// kill -9 of its command line: what only it needed stops, and nothing of it is
// left: no claim, reservation, mount, temporary folder or goroutine.
func TestCancelInEveryStage(t *testing.T) {
	c := up(t, 2, "150MiB", func(root string) {
		makeFiles(t, filepath.Join(root, "small"), 300, 700<<10, 0, 0)
		makeFiles(t, filepath.Join(root, "large"), 0, 1, 4, 64<<20)
	})
	for _, name := range []string{"small", "large"} {
		c.must("dataset", "add", name, "s3://data/"+name, "--endpoint", c.proxy.URL(), "--path-style")
	}
	c.must("preload", "small", "--wait")
	tmp := t.TempDir()
	submit := func(dataset string, command ...string) *exec.Cmd {
		cmd := exec.Command(binary(t, "stoker"), append([]string{"submit", "--dataset", dataset, "--job-id", "x", "--"}, command...)...)
		cmd.Env = append(slices.Clone(c.env), "TMPDIR="+tmp)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // the command that outlives a killed submit is ended with its group
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); _ = cmd.Wait() })
		return cmd
	}
	before := c.goroutines()
	for _, s := range stages {
		for how, cancel := range map[string]func(cmd *exec.Cmd){
			"cancel": func(*exec.Cmd) { c.must("cancel", "x") },
			"ctrl-c": func(cmd *exec.Cmd) { _ = cmd.Process.Signal(os.Interrupt) },
			"kill":   func(cmd *exec.Cmd) { _ = cmd.Process.Kill() },
		} {
			if how == "kill" && s.name != "loading" && os.Getenv("STOKER_TEST_LONG") == "" {
				continue // such a claim ends by its silence, after up to a minute
			}
			t.Run(s.name+"/"+how, func(t *testing.T) {
				cmd, after := s.reach(c, submit)
				cancel(cmd)
				_ = cmd.Process.Signal(syscall.SIGCONT)
				if how == "cancel" && s.name == "running" { // its command goes on, as the help says
					_ = cmd.Process.Signal(os.Interrupt)
				}
				_ = cmd.Wait()
				want := map[string]int{"cancel": 4, "ctrl-c": 130, "kill": -1}[how]
				if s.name == "running" && how == "cancel" {
					want = 130
				}
				if code := cmd.ProcessState.ExitCode(); code != want {
					t.Errorf("submit ended with %d, want %d", code, want)
				}
				c.eventually("the claim has ended", func() bool { return c.state("x") == api.JobReleased || c.state("x") == api.JobGrace })
				after()
				c.settled()
				if how == "kill" { // nobody is left who could do it at once
					_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
					c.eventually("view and folder are gone", func() bool {
						left, err := os.ReadDir(tmp)
						return err == nil && len(left) == 0 && c.mounts() == 0
					})
					return
				}
				if left, err := os.ReadDir(tmp); err != nil || len(left) != 0 || c.mounts() != 0 {
					t.Errorf("%d folders and %d mounts are left (%v)", len(left), c.mounts(), err)
				}
			})
		}
	}
	// Idle connections of workers to each other stay for 90 s.
	c.within(3*time.Minute, "the daemons' goroutines are as many as before", func() bool {
		for role, n := range c.goroutines() {
			if n > before[role]+12 { // connections that are kept open
				return false
			}
		}
		return true
	})
}

// goroutines asks each daemon how many it has.
func (c *cluster) goroutines() map[string]int {
	c.t.Helper()
	out := map[string]int{}
	for role, socket := range map[string]string{
		"controller": filepath.Join(c.dir, "controller.sock"),
		"worker-1":   filepath.Join(c.dir, "worker-1", "worker.sock"), "worker-2": filepath.Join(c.dir, "worker-2", "worker.sock"),
	} {
		body, err := exec.Command("curl", "-sf", "--unix-socket", socket, "http://x/debug/pprof/goroutine?debug=1").Output()
		first, _, _ := bytes.Cut(body, []byte("\n"))
		n, perr := strconv.Atoi(string(bytes.TrimPrefix(first, []byte("goroutine profile: total "))))
		if err != nil || perr != nil {
			c.t.Fatalf("%s: %v, %v: %s", role, err, perr, first)
		}
		out[role] = n
	}
	return out
}
