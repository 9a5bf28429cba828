package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"stoker.dev/internal/api"
)

// The id of a live job is its own: another submit with it is refused, whatever
// its datasets, and disturbs nothing; when the job has ended, it is free again.
func TestJobIDOfALiveJobIsRefused(t *testing.T) {
	c := up(t, 1, "256MiB", func(root string) {
		makeFiles(t, filepath.Join(root, "a"), 20, 10<<10, 0, 0)
		makeFiles(t, filepath.Join(root, "b"), 10, 10<<10, 0, 0)
	})
	for _, name := range []string{"a", "b"} {
		c.must("dataset", "add", "set-"+name, "s3://data/"+name, "--endpoint", c.proxy.URL(), "--path-style")
	}
	first, _ := c.background("submit", "--dataset", "set-a", "--job-id", "x", "--", "sleep", "1000")
	c.inState("x", api.JobLeased)
	for _, dataset := range []string{"set-a", "set-b"} {
		r := c.stoker("submit", "--dataset", dataset, "--job-id", "x", "--", "true")
		if r.code != 11 || !strings.Contains(r.stderr, "another claim") {
			t.Errorf("a second submit with the id, of %s: exit %d\n%s", dataset, r.code, r.stderr)
		}
	}
	if got := c.state("x"); got != api.JobLeased {
		t.Errorf("the first job is %s now", got)
	}
	_ = first.Process.Signal(os.Interrupt)
	_ = first.Wait()
	c.settled()
	c.must("submit", "--dataset", "set-b", "--job-id", "x", "--", "true")
}

// What a forced eviction drops in mid-load comes again, and the certificate
// says why.
func TestForcedEvictionInMidLoadIsAccountedFor(t *testing.T) {
	var size int64
	c := up(t, 2, "1GiB", func(root string) { size = makeFiles(t, root, 300, 300<<10, 2, 60<<20) })
	c.add()
	reached, release := c.proxy.Hold(size / 2)
	defer release()
	done := c.preload()
	<-reached
	c.must("evict", "data", "--force")
	release()
	cert := done()
	c.ready(cert, size)
}

// A worker that was killed and started again is one worker, at once.
func TestRestartedWorkerIsListedOnce(t *testing.T) {
	c := up(t, 2, "64MiB", func(root string) { makeFiles(t, root, 5, 10<<10, 0, 0) })
	c.kill("worker-2")
	c.dev("start", "worker-2", "--dir", c.dir)
	if ws := c.workers(); len(ws) != 2 {
		t.Errorf("%d workers are listed: %+v", len(ws), ws)
	}
}

// A worker that stops leaves the tree views of running jobs behind, dead: the job
// sees an error, never an empty folder, until the next life serves them again.
func TestStoppedWorkerLeavesNoEmptyFolder(t *testing.T) {
	c := up(t, 1, "256MiB", func(root string) { makeFiles(t, root, 20, 10<<10, 0, 0) })
	c.add()
	dir := filepath.Join(t.TempDir(), "view")
	job, _ := c.background("submit", "--dataset", "data="+dir, "--job-id", "x", "--view", "tree", "--", "sleep", "1000")
	c.inState("x", api.JobLeased)
	c.kill("holder")
	c.end("worker-1", syscall.SIGTERM) // while it ends, `start` takes it for one that runs
	c.eventually("the view has ended", func() bool { return !served(dir) })
	if entries, err := os.ReadDir(filepath.Join(dir, "train")); err == nil && len(entries) == 0 {
		t.Error("the job sees an empty folder")
	}
	if err := syscall.Statfs(dir, new(syscall.Statfs_t)); err != syscall.ENOTCONN {
		t.Errorf("statfs: %v, want ENOTCONN", err)
	}
	c.dev("start", "worker-1", "--dir", c.dir)
	c.eventually("the view is served again", func() bool { return served(dir) })
	sameTree(t, filepath.Join(c.root, "data"), dir)
	_ = job.Process.Signal(os.Interrupt)
	_ = job.Wait()
	c.settled()
	if c.mounts() != 0 {
		t.Errorf("%d mounts are left", c.mounts())
	}
}

// Who is told that a preload has ended may evict its data at once: nothing of
// its claim is left.
func TestEvictRightAfterPreload(t *testing.T) {
	c := up(t, 2, "256MiB", func(root string) { makeFiles(t, root, 20, 10<<10, 0, 0) })
	c.add()
	for n := range 12 {
		c.must("preload", "data", "--wait")
		if r := c.stoker("evict", "data"); r.code != 0 {
			t.Fatalf("round %d: exit %d: %s", n, r.code, r.stderr)
		}
	}
}
