package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	readyWithin = 90 * time.Second
	stopWithin  = 10 * time.Second
	lookEvery   = 20 * time.Millisecond
)

// pid returns the process of a role, if it lives.
func (c *cluster) pid(role string) (int, bool) {
	body, err := os.ReadFile(c.pidFile(role))
	if err != nil {
		return 0, false
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(body)))
	if err != nil || pid < 2 {
		return 0, false
	}
	// The number may have gone to another process since.
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	ours := bytes.Contains(line, []byte(c.dir)) || c.Ports[role] != 0 && bytes.Contains(line, []byte(":"+strconv.Itoa(c.Ports[role])))
	return pid, err == nil && ours // a zombie's line is empty
}

// running is a role's process that this one started.
type running struct {
	role  string
	cmd   *exec.Cmd
	from  int64         // where its log began
	ended chan struct{} // closed when it has ended
}

// launch starts a role; detached, it outlives this process.
func (c *cluster) launch(role string) (*running, error) {
	cmd, err := c.command(role)
	if err != nil {
		return nil, err
	}
	log, err := os.OpenFile(c.logFile(role), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	r := &running{role: role, cmd: cmd, ended: make(chan struct{})}
	if r.from, err = log.Seek(0, io.SeekEnd); err != nil {
		return nil, err
	}
	cmd.Stdout, cmd.Stderr, cmd.Env, cmd.Dir = log, log, c.childEnv(), c.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // Ctrl-C is this process's to handle
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s: %w: run 'make build'", role, err)
	}
	go func() { _ = cmd.Wait(); close(r.ended) }()
	return r, writeFile(c.pidFile(role), fmt.Appendf(nil, "%d\n", cmd.Process.Pid), 0o644)
}

// ready waits until a role serves.
func (c *cluster) ready(ctx context.Context, r *running) error {
	ctx, cancel := context.WithTimeoutCause(ctx, readyWithin, fmt.Errorf("%s is not ready after %s: see %s", r.role, readyWithin, c.logFile(r.role)))
	defer cancel()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for !c.serves(r) {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-r.ended:
			return fmt.Errorf("%s ended: %s", r.role, c.lastLine(r))
		case <-tick.C:
		}
	}
	return nil
}

// serves asks: the daemons say so in their logs, the others accept connections.
func (c *cluster) serves(r *running) bool {
	if r.role == "controller" || r.role == "holder" || workerRole.MatchString(r.role) {
		return strings.Contains(c.logSince(r), "msg=ready")
	}
	conn, err := net.DialTimeout("tcp", c.address(r.role), time.Second)
	if err != nil {
		return false
	}
	_ = conn.Close() // it was only a question
	return true
}

func (c *cluster) logSince(r *running) string {
	f, err := os.Open(c.logFile(r.role))
	if err != nil {
		return ""
	}
	defer f.Close()
	if _, err := f.Seek(r.from, io.SeekStart); err != nil {
		return ""
	}
	body, err := io.ReadAll(io.LimitReader(f, 1<<20))
	if err != nil {
		return ""
	}
	return string(body)
}

func (c *cluster) lastLine(r *running) string {
	lines := strings.Split(strings.TrimSpace(c.logSince(r)), "\n")
	return lines[len(lines)-1]
}

// startAll starts what does not run, the servers first, and waits until it serves.
func (c *cluster) startAll(ctx context.Context) ([]*running, error) {
	var all []*running
	servers := []string{"temporal", "redis", "s3", "holder"}
	for _, first := range []bool{true, false} {
		var batch []*running
		for _, role := range c.roles() {
			if slices.Contains(servers, role) != first {
				continue
			}
			if _, alive := c.pid(role); alive {
				continue
			}
			r, err := c.launch(role)
			if err != nil {
				return all, err
			}
			batch = append(batch, r)
			all = append(all, r)
		}
		for _, r := range batch {
			if err := c.ready(ctx, r); err != nil {
				return all, err
			}
		}
	}
	return all, nil
}

func up(ctx context.Context, o *upOptions) error {
	c, err := makeCluster(o)
	if err != nil {
		return err
	}
	unlock, err := c.lock()
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "starting %s\n", strings.Join(c.roles(), ", "))
	all, err := c.startAll(ctx)
	unlock()
	if err != nil {
		return errors.Join(err, downDir(c.dir))
	}
	fmt.Fprintf(os.Stderr, "ready: . %s\n", c.path("env"))
	if o.detach {
		return nil
	}
	c.watch(ctx, all)
	fmt.Fprintln(os.Stderr, "stopping")
	return downDir(c.dir)
}

// watch waits for the end and tells of processes that end before it.
func (c *cluster) watch(ctx context.Context, all []*running) {
	ended := make(chan *running)
	for _, r := range all {
		go func() {
			select {
			case <-r.ended:
			case <-ctx.Done():
				return
			}
			select {
			case ended <- r:
			case <-ctx.Done():
			}
		}()
	}
	for {
		select {
		case <-ctx.Done():
			return
		case r := <-ended:
			fmt.Fprintf(os.Stderr, "stoker-dev: %s ended (%v); 'stoker-dev start %s --dir %s' starts it again\n", r.role, r.cmd.ProcessState, r.role, c.dir)
		}
	}
}

func startRole(ctx context.Context, dir, role string) error {
	c, err := openCluster(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s holds no cluster: 'stoker-dev up --dir %s' makes one", dir, dir)
	} else if err != nil {
		return err
	}
	if !slices.Contains(c.roles(), role) {
		return usagef("%q is no role of %s: it has %s", role, c.dir, strings.Join(c.roles(), ", "))
	}
	unlock, err := c.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if _, alive := c.pid(role); alive {
		return nil
	}
	r, err := c.launch(role)
	if err != nil {
		return err
	}
	return c.ready(ctx, r)
}

// downDir stops the cluster in a folder; one that is not there is stopped.
func downDir(dir string) error {
	c, err := openCluster(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	unlock, err := c.lock()
	if err != nil {
		return err
	}
	defer unlock()
	roles := c.roles()
	slices.Reverse(roles)
	var workers, others []string
	for _, role := range roles {
		if workerRole.MatchString(role) {
			workers = append(workers, role)
		} else {
			others = append(others, role)
		}
	}
	c.stop(workers) // together: each waits for its readers
	for _, role := range others {
		c.stop([]string{role})
	}
	return c.clearMounts()
}

// stop ends some roles: SIGTERM, and SIGKILL for what does not listen.
func (c *cluster) stop(roles []string) {
	pids := map[string]int{}
	for _, role := range roles {
		if pid, alive := c.pid(role); alive {
			pids[role] = pid
			_ = syscall.Kill(pid, syscall.SIGTERM) // it may just have ended
		}
	}
	end := time.Now().Add(stopWithin)
	for len(pids) > 0 {
		for role, pid := range pids {
			if _, alive := c.pid(role); !alive {
				delete(pids, role)
			} else if time.Now().After(end) {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		time.Sleep(lookEvery) // other processes: nothing to wait on
	}
	for _, role := range roles {
		_ = os.Remove(c.pidFile(role)) // it is stale anyway
	}
}

// clearMounts unmounts what killed workers left behind: mounts that name one
// of this cluster's workers and that no process serves any more.
func (c *cluster) clearMounts() error {
	var ids []string
	for k := range c.Workers {
		if body, err := os.ReadFile(c.path(fmt.Sprintf("worker-%d", k+1), "cache", "id")); err == nil {
			ids = append(ids, "stoker-"+strings.TrimSpace(string(body))[:12]+":")
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		sep := slices.Index(f, "-")
		if sep < 0 || sep+2 >= len(f) {
			continue
		}
		name := f[sep+2]
		if f[sep+1] == "erofs" { // the path of its image
			name = filepath.Base(name)
		}
		if !slices.ContainsFunc(ids, func(id string) bool { return strings.HasPrefix(name, id) }) {
			continue
		}
		dir := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(f[4])
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
	}
	return nil
}
