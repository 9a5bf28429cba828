package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"stoker.dev/internal/api"
)

// queueCluster has room for two and a half of the sets a to d, and none for big.
func queueCluster(t *testing.T) (c *cluster, size int64) {
	c = up(t, 2, "128MiB", func(root string) {
		for _, name := range []string{"a", "b", "c", "d"} {
			size = makeFiles(t, filepath.Join(root, name), 0, 1, 40, 2<<20)
		}
		makeFiles(t, filepath.Join(root, "big"), 0, 1, 10, 30<<20)
	})
	for _, name := range []string{"a", "b", "c", "d", "big"} {
		c.must("dataset", "add", "set-"+name, "s3://data/"+name, "--endpoint", c.proxy.URL(), "--path-style")
	}
	return c, size
}

// submits claims two sets in the background.
func (c *cluster) submits(job, one, two string, more ...string) *exec.Cmd {
	cmd, _ := c.background(append([]string{"submit", "--on-miss", "wait", "--dataset", "set-" + one, "--dataset", "set-" + two, "--job-id", job}, more...)...)
	return cmd
}

func (c *cluster) status(job string) (st api.JobStatus) {
	c.t.Helper()
	if err := json.Unmarshal([]byte(c.must("status", job, "-o", "json")), &st); err != nil {
		c.t.Fatal(err)
	}
	return st
}

// A claim gets all its datasets or none: while one does not fit it waits in the
// queue, with its place and its bytes, and neither holds nor fetches anything; the
// one with the highest priority comes first when space comes; what can never fit
// is refused at once.
func TestClaimsQueueForAllOrNone(t *testing.T) {
	c, size := queueCluster(t)
	x := c.submits("x", "a", "b", "--", "sleep", "1000")
	c.inState("x", api.JobLeased)
	before := c.proxy.Bytes()
	y := c.submits("y", "c", "d", "--", "true")
	c.inState("y", api.JobQueued)
	c.eventually("y has its place", func() bool { return c.status("y").Queue != nil })
	z := c.submits("z", "d", "c", "--priority", "5", "--", "true")
	c.inState("z", api.JobQueued)
	c.eventually("z passes y", func() bool { q := c.status("z").Queue; return q != nil && q.Place == 1 && q.Of == 2 })
	st := c.status("y")
	if q := st.Queue; q == nil || q.Place != 2 || q.Of != 2 || q.NeededBytes != 2*size || q.FreeBytes >= q.NeededBytes || !strings.Contains(st.Error.Message, "behind job z") {
		t.Errorf("y waits as %+v, %+v", q, st.Error)
	}
	if st := c.status("z"); !strings.Contains(st.Error.Message, "held: set-a by a mounted view and job x; set-b") {
		t.Errorf("z waits for %+v", st.Error)
	}
	if n := c.proxy.Bytes() - before; n != 0 || c.reserved() != 0 {
		t.Errorf("those that wait have fetched %d bytes, and reserved %d", n, c.reserved())
	}
	for _, line := range [][]string{{"preload", "set-big", "--wait"}, {"submit", "--dataset", "set-big", "--dataset", "set-c", "--on-miss", "wait", "--", "true"}} {
		if r := c.stoker(line...); r.code != 8 || !strings.Contains(r.stderr, "iB") {
			t.Errorf("%v: exit %d\n%s", line, r.code, r.stderr)
		}
	}
	_ = x.Process.Signal(os.Interrupt)
	_ = x.Wait()
	for name, cmd := range map[string]*exec.Cmd{"y": y, "z": z} {
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := c.proxy.Bytes() - before; n != 2*size {
		t.Errorf("%d bytes were fetched for %d", n, 2*size)
	}
	c.settled()
}

// Claims that cannot both have their datasets never wait for each other.
func TestClaimsDoNotDeadlock(t *testing.T) {
	c, _ := queueCluster(t)
	for range 2 {
		jobs := []*exec.Cmd{c.submits("x", "a", "b", "--", "true"), c.submits("y", "d", "c", "--", "true"), c.submits("z", "b", "d", "--", "true")}
		for _, cmd := range jobs {
			if err := cmd.Wait(); err != nil {
				t.Error(err)
			}
		}
		c.settled()
	}
}
