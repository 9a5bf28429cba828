package e2e

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"stoker.dev/internal/api"
)

// kill ends a role as a crash does.
func (c *cluster) kill(role string) { c.t.Helper(); c.end(role, syscall.SIGKILL) }

// end sends a role the signal that ends it, and waits until it has.
func (c *cluster) end(role string, by syscall.Signal) {
	c.t.Helper()
	file := filepath.Join(c.dir, role+".pid")
	if strings.HasPrefix(role, "worker-") {
		file = filepath.Join(c.dir, role, "worker.pid")
	}
	body, err := os.ReadFile(file)
	if err != nil {
		c.t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(body)))
	if err != nil {
		c.t.Fatal(err)
	}
	if err := syscall.Kill(pid, by); err != nil {
		c.t.Fatalf("%v to %s: %v", by, role, err)
	}
	c.eventually(role+" is dead", func() bool { return !alive(pid) })
}

// alive reports whether a process runs; a zombie does not, once all of its
// threads have let go of the files.
func alive(pid int) bool {
	proc := "/proc/" + strconv.Itoa(pid)
	line, err := os.ReadFile(proc + "/stat")
	if err != nil {
		return false
	}
	_, state, _ := strings.Cut(string(line), ") ")
	threads, err := os.ReadDir(proc + "/task")
	return !strings.HasPrefix(state, "Z") || err == nil && len(threads) > 1
}

// eventually waits for other processes, on which nothing here can wait.
func (c *cluster) eventually(what string, is func() bool) {
	c.t.Helper()
	c.within(90*time.Second, what, is)
}

// within is eventually with a time of its own.
func (c *cluster) within(most time.Duration, what string, is func() bool) {
	c.t.Helper()
	for end := time.Now().Add(most); !is(); {
		if time.Now().After(end) {
			c.t.Fatalf("never came true: %s", what)
		}
		<-time.After(50 * time.Millisecond)
	}
}

// background starts the CLI and returns it with what it says.
func (c *cluster) background(args ...string) (*exec.Cmd, *bytes.Buffer) {
	c.t.Helper()
	cmd := exec.Command(binary(c.t, "stoker"), args...)
	var out bytes.Buffer
	cmd.Env, cmd.Stdout, cmd.Stderr = c.env, &out, &out
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = cmd.Process.Kill() })
	return cmd, &out
}

func (c *cluster) jobs() (all []api.JobLine) {
	c.t.Helper()
	if err := json.Unmarshal([]byte(c.must("jobs", "-o", "json")), &all); err != nil {
		c.t.Fatal(err)
	}
	return all
}

// claimed counts the jobs that have not ended.
func (c *cluster) claimed() (n int) {
	c.t.Helper()
	for _, j := range c.jobs() {
		if j.State != api.JobReleased {
			n++
		}
	}
	return n
}

func (c *cluster) workers() (all []api.WorkerInfo) {
	c.t.Helper()
	if err := json.Unmarshal([]byte(c.must("workers", "-o", "json")), &all); err != nil {
		c.t.Fatal(err)
	}
	return all
}

// reserved adds up what the workers have promised.
func (c *cluster) reserved() (sum int64) {
	for _, w := range c.workers() {
		sum += w.ReservedBytes
	}
	return sum
}

// settled waits until no job is under way and nothing is reserved.
func (c *cluster) settled() {
	c.t.Helper()
	c.eventually("no claim, no reservation is left", func() bool {
		for _, j := range c.jobs() {
			if j.State != api.JobReleased && j.State != api.JobGrace && j.State != api.JobFailed {
				return false
			}
		}
		return c.reserved() == 0
	})
}

// mounts counts this cluster's mounts.
func (c *cluster) mounts() int {
	body, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		c.t.Fatal(err)
	}
	n := 0
	for k := range 3 {
		id, err := os.ReadFile(filepath.Join(c.dir, "worker-"+strconv.Itoa(k+1), "cache", "id"))
		if err == nil {
			n += strings.Count(string(body), "stoker-"+string(id[:12])+":")
		}
	}
	return n
}

// served reports whether a view is there and answers. That of a tree view is its
// worker's: statfs is never cached.
func served(dir string) bool {
	const fuseMagic, erofsMagic = 0x65735546, 0xe0f5e1e2 // statfs(2)
	var st syscall.Statfs_t
	return syscall.Statfs(dir, &st) == nil && (st.Type == fuseMagic || st.Type == erofsMagic)
}

// What a worker has read for a view it still has after kill -9, and its next
// life mounts the view again by itself: all bytes are right, each was fetched
// once. A new `up` on the folder finds everything, too.
func TestViewsAndDataSurviveAKilledWorker(t *testing.T) {
	var size int64
	c := up(t, 2, "1GiB", func(root string) { size = makeFiles(t, root, 300, 64<<10, 1, 80<<20) })
	c.add()
	dir := t.TempDir()
	c.must("mount", "data", dir)
	source := filepath.Join(c.root, "data")
	sameTree(t, source, dir) // no preload: everything comes in as it is read
	fetched := c.still()
	c.sentOnce(sent{}, size)
	device := deviceOf(t, dir)
	c.kill("worker-1")
	c.dev("start", "worker-1", "--dir", c.dir)
	sameTree(t, source, dir)
	if deviceOf(t, dir) != device {
		t.Error("the view was mounted anew, not taken over")
	}
	c.kill("holder") // and all is as it was before there was one
	c.kill("worker-1")
	if served(dir) {
		t.Fatal("the mount answers without its worker")
	}
	c.dev("start", "worker-1", "--dir", c.dir)
	c.eventually("the view is mounted again", func() bool { return served(dir) })
	sameTree(t, source, dir)
	c.dev("down", "--dir", c.dir)
	if n := c.mounts(); n != 0 {
		t.Errorf("down left %d mounts", n)
	}
	c.dev("down", "--dir", c.dir) // once more: nothing runs
	c.dev("up", "--dir", c.dir, "--detach")
	c.eventually("the view is back after up", func() bool { return served(dir) && c.mounts() == 1 })
	sameTree(t, source, dir)
	if got := c.proxy.Bytes(); got != fetched {
		t.Errorf("after the restarts %d bytes more were fetched", got-fetched)
	}
	c.must("umount", dir)
	if n := c.mounts(); n != 0 {
		t.Errorf("umount left %d mounts", n)
	}
}

// Ctrl-C on a waiting preload and on a waiting submit drops the claim at once:
// exit 130, the load stops, nothing stays reserved, mounted or running. A
// preload that goes on for somebody else is not disturbed.
func TestInterruptedWaitersLetGo(t *testing.T) {
	var size int64
	c := up(t, 2, "1GiB", func(root string) { size = makeFiles(t, root, 400, 400<<10, 0, 0) })
	c.add()
	reached, release := c.proxy.Hold(size / 3)
	defer release()
	keeps, kept := c.background("submit", "--dataset", "data", "--job-id", "keeps", "--", "true")
	<-reached
	for _, args := range [][]string{
		{"preload", "data", "--wait"},
		{"submit", "--dataset", "data", "--job-id", "goes", "--", "touch", filepath.Join(c.dir, "ran")},
	} {
		cmd, out := c.background(args...)
		c.eventually("the claim is known", func() bool { return c.claimed() == 2 })
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != 130 {
			t.Errorf("stoker %v: exit %d after Ctrl-C, want 130\n%s", args, code, out)
		}
		c.eventually("only the other job is left", func() bool { return c.claimed() == 1 })
	}
	release()
	if err := keeps.Wait(); err != nil {
		t.Errorf("the job that was not interrupted: %v\n%s", err, kept)
	}
	c.sentOnce(sent{}, size)
	if _, err := os.Stat(filepath.Join(c.dir, "ran")); err == nil {
		t.Error("the command of an interrupted submit ran")
	}
	c.settled()
	if n := c.mounts(); n != 0 {
		t.Errorf("%d mounts are left", n)
	}
}

// Deadlines: fail exits 9, start begins Degraded and reads what is missing on
// demand ahead of the preload, --deadline 0 starts at once.
func TestDeadlines(t *testing.T) {
	var size int64
	c := up(t, 2, "1GiB", func(root string) { size = makeFiles(t, root, 200, 400<<10, 0, 0) })
	c.add()
	_, release := c.proxy.Hold(size / 3)
	defer release()
	r := c.stoker("submit", "--dataset", "data", "--deadline", "500ms", "--on-miss", "fail", "--", "true")
	if r.code != 9 || !strings.Contains(r.stderr, "deadline") {
		t.Fatalf("on-miss fail: exit %d, want 9\n%s", r.code, r.stderr)
	}
	cmd, out := c.background("submit", "--dataset", "data", "--deadline", "0s", "--", "sh", "-c",
		`touch "`+c.dir+`/begun"; cat $(find "$STOKER_MOUNT" -type f) | wc -c`)
	c.eventually("the command runs before its data is there", func() bool { _, err := os.Stat(filepath.Join(c.dir, "begun")); return err == nil })
	release()
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if !strings.Contains(out.String(), strconv.FormatInt(size, 10)) {
		t.Errorf("the job did not read %d bytes: %s", size, out)
	}
	// The load that nobody needed any more was stopped in mid-transfer: what
	// was on its way may have come twice, nothing else.
	if got := c.proxy.Bytes(); got < size || got > size+size/2 {
		t.Errorf("the S3 side sent %d bytes, the dataset has %d", got, size)
	}
	c.settled()
}

// Two replicas of each shard cost one fetch: the second comes from the first.
func TestReplicasAreFetchedOnce(t *testing.T) {
	var size int64
	c := up(t, 3, "400MiB", func(root string) { size = makeFiles(t, root, 1000, 64<<10, 2, 100<<20) })
	c.add()
	cert := c.certificate(c.must("preload", "data", "--replicas", "2", "--wait", "-o", "json"))
	if got := c.proxy.Bytes(); got != size || cert.UFSBytes != size {
		t.Errorf("two replicas made the S3 side send %d bytes, the certificate says %d, the dataset has %d", got, cert.UFSBytes, size)
	}
	var used int64
	for _, w := range c.workers() {
		used += w.UsedBytes
	}
	if used < 2*size {
		t.Errorf("the workers hold %d bytes, two replicas of %d are more", used, size)
	}
	c.kill("worker-2") // every byte is on one of the others
	dir := t.TempDir()
	c.must("mount", "data", dir)
	sameTree(t, filepath.Join(c.root, "data"), dir)
	if got := c.proxy.Bytes(); got != size {
		t.Errorf("with one worker dead %d bytes more were fetched", got-size)
	}
	c.must("umount", dir)
}

// The worker's cache folder never takes more than its capacity, however much
// is preloaded and read; what nobody holds makes room, the oldest first.
func TestCapacityIsHard(t *testing.T) {
	const capacity = 96 << 20
	c := up(t, 1, "96MiB", func(root string) {
		makeFiles(t, filepath.Join(root, "a"), 0, 1, 1, 60<<20)
		makeFiles(t, filepath.Join(root, "b"), 50, 100<<10, 1, 40<<20)
		makeFiles(t, filepath.Join(root, "c"), 0, 1, 1, 50<<20)
	})
	for _, name := range []string{"a", "b", "c"} {
		c.must("dataset", "add", "set-"+name, "s3://data/"+name, "--endpoint", c.proxy.URL(), "--path-style")
		c.must("preload", "set-"+name, "--wait")
		if got := allocated(t, filepath.Join(c.dir, "worker-1", "cache")); got > capacity {
			t.Fatalf("after %s the cache folder takes %d bytes, its limit is %d", name, got, capacity)
		}
	}
	if r := c.stoker("verify", "set-a"); r.code != 4 {
		t.Errorf("set-a should have been evicted: verify exits %d", r.code)
	}
	c.must("verify", "set-c", "--deep")
	dir := t.TempDir()
	c.must("mount", "set-a", dir)
	sameTree(t, filepath.Join(c.root, "data", "a"), dir)
	if got := allocated(t, filepath.Join(c.dir, "worker-1", "cache")); got > capacity {
		t.Errorf("after reading through a mount the cache folder takes %d bytes, its limit is %d", got, capacity)
	}
	if r := c.stoker("evict", "set-a"); r.code != 11 {
		t.Errorf("evicting a mounted dataset: exit %d, want 11: %s", r.code, r.stderr)
	}
	c.must("umount", dir)
}

// allocated adds up the disk blocks below a folder.
func allocated(t *testing.T, dir string) (sum int64) {
	t.Helper()
	err := filepath.Walk(dir, func(_ string, fi os.FileInfo, err error) error {
		if err == nil {
			sum += fi.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return nil // a file may go meanwhile
	})
	if err != nil {
		t.Fatal(err)
	}
	return sum
}
