package e2e

import (
	"fmt"
	"path/filepath"
	"testing"

	"stoker.dev/internal/api"
)

// onWorkers adds up what some workers have of the only dataset.
func (c *cluster) onWorkers(numbers ...int) (sum int64) {
	c.t.Helper()
	for _, n := range numbers {
		for _, m := range c.workerStatus(n).Manifests {
			sum += m.Bytes
		}
	}
	return sum
}

// Replicas are raised, restored after a worker is lost for good, and lowered, while
// a job holds and reads the data: all copies come from workers, the store is asked
// for nothing, and what a job wants stays.
func TestReplicasFollowTheDataset(t *testing.T) {
	var size int64
	c := up(t, 3, "512MiB", func(root string) { size = makeFiles(t, root, 300, 200<<10, 3, 50<<20) }, "--return-window", "3s")
	c.add()
	c.must("claim", "--job-id", "reader", "--dataset", "data", "--ttl", "1h")
	c.must("wait", "reader", "--timeout", "1m")
	view := c.mountAs("tree", "data")
	c.proxy.Reset()
	unasked := func(when string) {
		t.Helper()
		if n := c.proxy.Bytes(); n != 0 {
			t.Errorf("%s the store was asked for %d bytes", when, n)
		}
	}

	if d := c.detail("dataset", "set", "data", "--replicas", "2"); d.Replicas != 2 {
		t.Errorf("set is %+v", d.DatasetInfo)
	}
	c.eventually("every shard is there twice", func() bool { return c.onWorkers(1, 2, 3) == 2*size })
	cert := c.certificate(c.must("preload", "data", "--wait", "-o", "json"))
	if cert.State != api.CertificateReady || cert.Replicas != 2 || cert.UFSBytes != 0 {
		t.Errorf("a preload that does not say how often: %+v", cert)
	}
	unasked("raised,")

	c.kill("worker-3")
	c.eventually("what it had is there twice again", func() bool { return c.onWorkers(1, 2) == 2*size })
	if cert := c.certificate(c.must("verify", "data", "-o", "json")); cert.State != api.CertificateReady {
		t.Errorf("without the worker: %+v", cert)
	}
	sameTree(t, filepath.Join(c.root, "data"), view)
	unasked("restored,")

	c.must("pin", "data", "--for", "1h", "--reason", "still held")
	c.must("umount", view)
	c.must("dataset", "set", "data", "--replicas", "1")
	c.eventually("every shard is there once", func() bool { return c.onWorkers(1, 2) == size })
	cert = c.certificate(c.must("verify", "data", "--deep", "-o", "json"))
	if cert.State != api.CertificateReady || cert.ResidentBytes != size {
		t.Errorf("lowered: %+v", cert)
	}
	unasked("lowered,")
	c.must("release", "reader")
	c.settled()
}

// A mounted view keeps what it shows, however few replicas there are to be.
func TestLoweredReplicasLeaveViewsAlone(t *testing.T) {
	var size int64
	c := up(t, 2, "512MiB", func(root string) { size = makeFiles(t, root, 50, 100<<10, 2, 40<<20) })
	c.add()
	c.must("dataset", "set", "data", "--replicas", "2")
	c.must("preload", "data", "--wait")
	var views []string
	for n := 1; n <= 2; n++ {
		views = append(views, t.TempDir())
		if r := c.stokerAt(n, "mount", "data", views[n-1], "--view", "auto"); r.code != 0 {
			t.Fatal(r.stderr)
		}
	}
	c.proxy.Reset()
	for range 2 { // the second time after the repair of the first
		c.must("dataset", "set", "data", "--replicas", "1")
	}
	if got := c.onWorkers(1, 2); got != 2*size {
		t.Errorf("beneath views %d of %d bytes are left", got, 2*size)
	}
	for n, dir := range views {
		sameTree(t, filepath.Join(c.root, "data"), dir)
		if r := c.stokerAt(n+1, "umount", dir); r.code != 0 {
			t.Fatal(r.stderr)
		}
	}
	c.must("dataset", "set", "data", "--replicas", "1")
	c.eventually("one copy is left", func() bool { return c.onWorkers(1, 2) == size })
	if n := c.proxy.Bytes(); n != 0 {
		t.Errorf("the store was asked for %d bytes", n)
	}
	if r := c.stoker("dataset", "set", "data", "--replicas", fmt.Sprint(17)); r.code != 2 {
		t.Errorf("17 replicas: exit %d", r.code)
	}
}
