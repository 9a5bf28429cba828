package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"stoker.dev/internal/api"
)

// workerID is the id of the worker with that number.
func (c *cluster) workerID(n int) string {
	c.t.Helper()
	for _, w := range c.workers() {
		if strings.Contains(w.Socket, fmt.Sprintf("worker-%d/", n)) {
			return w.ID
		}
	}
	c.t.Fatalf("worker %d is not listed", n)
	return ""
}

// drainStatus asks how far the drain of a worker is, as the CLI's -o json has it.
func (c *cluster) drainOf(out string) (st api.DrainStatus) {
	c.t.Helper()
	if err := json.Unmarshal([]byte(out), &st); err != nil {
		c.t.Fatalf("%v in %s", err, out)
	}
	return st
}

func (c *cluster) workerState(id string) (w api.WorkerInfo) {
	c.t.Helper()
	for _, w := range c.workers() {
		if w.ID == id {
			return w
		}
	}
	return w
}

// What only a worker has that is drained, and somebody holds, is copied by others
// without a byte of the store's; views are waited for by name; the drain stands
// over the death of every process. Then the worker may go for good.
func TestDrainMovesWhatIsHeld(t *testing.T) {
	var size int64
	c := up(t, 3, "512MiB", func(root string) {
		size = makeFiles(t, filepath.Join(root, "a"), 300, 200<<10, 3, 60<<20)
		makeFiles(t, filepath.Join(root, "b"), 20, 100<<10, 1, 30<<20)
	})
	for _, name := range []string{"a", "b"} {
		c.must("dataset", "add", "set-"+name, "s3://data/"+name, "--endpoint", c.proxy.URL(), "--path-style")
		c.must("preload", "set-"+name, "--wait")
	}
	c.must("pin", "set-a", "--for", "2h", "--reason", "held")
	id := c.workerID(2)
	view := t.TempDir()
	if r := c.stokerAt(2, "mount", "set-a", view, "--view", "tree"); r.code != 0 {
		t.Fatal(r.stderr)
	}
	if os.Getuid() == 0 {
		other := c.user(4321)
		for _, verb := range []string{"drain", "undrain"} {
			if r := other.run(other.stoker, "workers", verb, id); r.code != 10 {
				t.Errorf("another user's %s exits %d\n%s", verb, r.code, r.stderr)
			}
		}
	}
	c.proxy.Reset()
	st := c.drainOf(c.must("workers", "drain", id[:10], "-o", "json"))
	if st.State != api.WorkerDraining || st.Worker != id || len(st.Views) != 1 || st.Views[0].Dir != view || st.Bytes == 0 {
		t.Errorf("the drain begins as %+v", st)
	}
	if r := c.stokerAt(2, "mount", "set-b", t.TempDir()); r.code != 5 || !strings.Contains(r.stderr, "drained") {
		t.Errorf("a mount on it exits %d\n%s", r.code, r.stderr)
	}
	for _, role := range []string{"controller", "worker-2", "redis", "temporal"} {
		c.kill(role)
		c.dev("start", role, "--dir", c.dir)
	}
	c.eventually("it is drained after all have died", func() bool {
		w := c.workerState(id)
		return w.State == api.WorkerDraining && w.Drain.Since.Equal(st.Since) && len(c.workers()) == 3
	})
	waiting, said := c.background("workers", "drain", id, "--wait")
	c.eventually("what nobody holds is gone, and others have what is held", func() bool {
		st := c.drainOf(c.must("workers", "drain", id, "-o", "json"))
		return len(st.Datasets) == 1 && st.Datasets[0].Dataset == "set-a" && !st.Datasets[0].Moving && c.copied(size)
	})
	_ = waiting.Process.Signal(os.Interrupt)
	_ = waiting.Wait()
	if code := waiting.ProcessState.ExitCode(); code != 130 || !strings.Contains(said.String(), "the drain goes on") || !strings.Contains(said.String(), view) {
		t.Errorf("interrupted, --wait exits %d\n%s", code, said)
	}
	if w := c.workerState(id); w.State != api.WorkerDraining {
		t.Errorf("with a view it is %s", w.State)
	}
	sameTree(t, filepath.Join(c.root, "data", "a"), view)
	if r := c.stokerAt(2, "umount", view); r.code != 0 {
		t.Fatal(r.stderr)
	}
	st = c.drainOf(c.must("workers", "drain", id, "--wait", "-o", "json"))
	if st.State != api.WorkerDrained || st.Bytes != 0 || len(st.Datasets) != 0 {
		t.Errorf("it ends as %+v", st)
	}
	c.kill("worker-2")
	if cert := c.certificate(c.must("verify", "set-a", "-o", "json")); cert.State != api.CertificateReady {
		t.Errorf("without the worker: %+v", cert)
	}
	dir := c.mountAs("tree", "set-a")
	sameTree(t, filepath.Join(c.root, "data", "a"), dir)
	c.must("umount", dir)
	if n := c.proxy.Bytes(); n != 0 {
		t.Errorf("the store was asked for %d bytes", n)
	}
	c.settled()
}

// A worker whose data has nowhere to go keeps it and stays draining: --wait says
// the numbers (exit 8). The last one in service is not drained while its data is
// held (exit 11). What comes goes elsewhere, and a drain goes on by itself when
// what was held is released.
func TestDrainWithoutRoom(t *testing.T) {
	var size int64
	c := up(t, 2, "200MiB", func(root string) {
		size = makeFiles(t, filepath.Join(root, "a"), 0, 1, 5, 50<<20)
		makeFiles(t, filepath.Join(root, "b"), 10, 10<<10, 0, 0)
	})
	for _, name := range []string{"a", "b"} {
		c.must("dataset", "add", "set-"+name, "s3://data/"+name, "--endpoint", c.proxy.URL(), "--path-style")
	}
	c.must("preload", "set-a", "--wait")
	c.must("pin", "set-a", "--for", "2h", "--reason", "held")
	one, two := c.workerID(1), c.workerID(2)
	for range 2 { // the second time it is no other drain
		r := c.stoker("workers", "drain", two, "--wait", "-o", "json")
		st := c.drainOf(r.out)
		if r.code != 8 || !strings.Contains(r.stderr, "no room for") || !strings.Contains(r.stderr, "MiB free") || st.State != api.WorkerDraining || st.HeldBytes == 0 {
			t.Errorf("exit %d: %+v\n%s", r.code, st, r.stderr)
		}
	}
	if r := c.stoker("workers", "drain", one); r.code != 11 || !strings.Contains(r.stderr, "no other worker is in service") || !strings.Contains(r.stderr, "(held)") {
		t.Errorf("the last worker's drain exits %d\n%s", r.code, r.stderr)
	}
	if cert := c.certificate(c.must("verify", "set-a", "-o", "json")); cert.State != api.CertificateReady || cert.ResidentBytes != size {
		t.Errorf("meanwhile: %+v", cert)
	}
	c.must("preload", "set-b", "--wait")
	for _, m := range c.workerStatus(2).Manifests {
		if m.Dataset == "set-b" && m.Bytes > 0 {
			t.Errorf("%d bytes came to the worker that is drained", m.Bytes)
		}
	}
	c.must("workers", "undrain", two)
	c.must("workers", "undrain", two)
	if w := c.workerState(two); w.State != api.WorkerLive || w.UsedBytes < 50<<20 {
		t.Errorf("in service again it is %+v", w)
	}
	c.proxy.Reset()
	c.must("workers", "drain", two)
	c.must("unpin", "set-a")
	st := c.drainOf(c.must("workers", "drain", two, "--wait", "-o", "json"))
	if st.State != api.WorkerDrained || c.proxy.Bytes() != 0 {
		t.Errorf("released, it ends as %+v; %d bytes of the store's", st, c.proxy.Bytes())
	}
	c.settled()
}

// The worker that takes over dies while it copies, and the controller with it: the
// drain goes on with what is there, the store is asked for nothing, and no space stays
// promised.
func TestDrainSurvivesItsTarget(t *testing.T) {
	c := up(t, 2, "512MiB", func(root string) { makeFiles(t, root, 50, 100<<10, 5, 60<<20) })
	c.add()
	c.must("preload", "data", "--wait")
	c.must("pin", "data", "--for", "2h", "--reason", "held")
	c.proxy.Reset()
	id := c.workerID(2)
	c.must("workers", "drain", id)
	c.eventually("it moves", func() bool {
		st := c.drainOf(c.must("workers", "drain", id, "-o", "json"))
		return st.State == api.WorkerDrained || len(st.Datasets) == 1 && st.Datasets[0].Moving
	})
	c.kill("worker-1")
	c.kill("controller")
	c.dev("start", "controller", "--dir", c.dir)
	c.dev("start", "worker-1", "--dir", c.dir)
	if st := c.drainOf(c.must("workers", "drain", id, "--wait", "-o", "json")); st.State != api.WorkerDrained {
		t.Errorf("it ends as %+v", st)
	}
	c.kill("worker-2")
	if cert := c.certificate(c.must("verify", "data", "--deep", "-o", "json")); cert.State != api.CertificateReady {
		t.Errorf("without the worker: %+v", cert)
	}
	if n := c.proxy.Bytes(); n != 0 {
		t.Errorf("the store was asked for %d bytes", n)
	}
	c.settled()
}

// copied reports whether set-a is on the live workers wholly, besides on worker 2.
func (c *cluster) copied(size int64) bool {
	c.t.Helper()
	var other int64
	for n := 1; n <= 3; n += 2 {
		for _, m := range c.workerStatus(n).Manifests {
			if m.Dataset == "set-a" {
				other += m.Bytes
			}
		}
	}
	return other >= size
}

// workerStatus asks a worker what it has.
func (c *cluster) workerStatus(n int) (st api.WorkerStatus) {
	c.t.Helper()
	out, err := exec.Command("curl", "-sf", "--unix-socket", filepath.Join(c.dir, fmt.Sprintf("worker-%d", n), "worker.sock"), "http://worker/v1/status").Output()
	if err == nil {
		err = json.Unmarshal(out, &st)
	}
	if err != nil {
		c.t.Fatal(err)
	}
	return st
}
