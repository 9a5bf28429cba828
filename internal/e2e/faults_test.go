package e2e

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"stoker.dev/internal/api"
	"stoker.dev/internal/testenv"
)

// onePercent lets one request in a hundred go wrong, each time in another way.
func onePercent(_ testenv.Get, n int) testenv.Fault {
	faults := []testenv.Fault{
		{Reset: true}, {Cut: true, After: 5 << 10}, {Status: 503, Code: "SlowDown"}, {Reset: true, After: 6 << 10},
		{Status: 503, Code: "SlowDown", Header: http.Header{"Retry-After": {"1"}}}, {Status: 500, Code: "InternalError"},
	}
	if n%100 != 7 {
		return testenv.Fault{}
	}
	return faults[n/100%len(faults)]
}

// With faults in 1 % of the requests a preload is Ready, the S3 side sends at
// most 2 % more than the dataset has, and every file equals its source.
func TestPreloadWithFaults(t *testing.T) {
	var size int64
	c := up(t, 2, "1GiB", func(root string) { size = makeFiles(t, root, 1500, 40<<10, 2, 70<<20) })
	c.add()
	c.proxy.Inject(onePercent)
	cert := c.preload()()
	c.ready(cert, size)
	if sent := c.proxy.Bytes(); float64(sent) > 1.02*float64(size) {
		t.Errorf("the S3 side sent %d bytes for %d", sent, size)
	}
	dir := filepath.Join(t.TempDir(), "m")
	c.mount(dir)
	sameTree(t, filepath.Join(c.root, "data"), dir)
}

// A store that is away for some seconds: a reader waits for it, a preload
// waits, says so, and goes on where it was.
func TestStoreIsAway(t *testing.T) {
	var size int64
	c := up(t, 2, "1GiB", func(root string) { size = makeFiles(t, root, 400, 60<<10, 2, 40<<20) })
	c.add()
	dir := filepath.Join(t.TempDir(), "m")
	c.mount(dir)
	c.proxy.Stop()
	read := make(chan error, 1)
	name := filepath.Join("shards", "part-00.tar")
	go func() {
		want, err := digest(filepath.Join(c.root, "data", name))
		got, err2 := digest(filepath.Join(dir, name))
		if err == nil {
			err = err2
		}
		if err == nil && got != want {
			t.Error("the bytes differ")
		}
		read <- err
	}()
	select {
	case err := <-read:
		t.Fatalf("a read ended while the store was away: %v", err)
	case <-time.After(3 * time.Second):
	}
	c.proxy.Start(t)
	if err := <-read; err != nil {
		t.Fatalf("a read after the store came back: %v", err)
	}

	reached, release := c.proxy.Hold(c.proxy.Bytes() + size/4)
	defer release()
	done := c.preload()
	<-reached
	c.proxy.Stop()
	release()
	st := c.waiting()
	if away := time.Since(st.WaitingSince); away > 30*time.Second || st.State != api.JobWarming {
		t.Errorf("%+v", st)
	}
	<-time.After(4 * time.Second)
	c.proxy.Start(t)
	cert := done()
	if cert.State != api.CertificateReady || cert.ResidentBytes != size || len(cert.Failed) != 0 {
		t.Fatalf("certificate %+v", cert)
	}
	if sent := c.proxy.Bytes(); sent > size+slack {
		t.Errorf("the S3 side sent %d bytes for %d", sent, size)
	}
	sameTree(t, filepath.Join(c.root, "data"), dir)
}

// mount mounts the dataset at a new folder.
func (c *cluster) mount(dir string) {
	c.t.Helper()
	if err := os.Mkdir(dir, 0o755); err != nil {
		c.t.Fatal(err)
	}
	c.must("mount", "data", dir)
	c.t.Cleanup(func() { c.stoker("umount", dir) })
}

// waiting returns the status of the one job once it says that its store is away.
func (c *cluster) waiting() (st api.JobStatus) {
	c.t.Helper()
	for end := time.Now().Add(90 * time.Second); time.Now().Before(end); <-time.After(200 * time.Millisecond) {
		var jobs []api.JobLine
		if err := json.Unmarshal([]byte(c.must("jobs", "-o", "json")), &jobs); err != nil || len(jobs) == 0 {
			c.t.Fatalf("%d jobs, %v", len(jobs), err)
		}
		if err := json.Unmarshal([]byte(c.must("status", jobs[0].Job, "-o", "json")), &st); err != nil {
			c.t.Fatal(err)
		}
		if !st.WaitingSince.IsZero() {
			return st
		}
	}
	c.t.Fatalf("no job waits for its store: %+v", st)
	return st
}
