package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.temporal.io/api/enums/v1"
	"go.temporal.io/api/workflowservice/v1"

	"stoker.dev/internal/api"
)

// damage flips a bit in a shard file of a worker and returns the file.
func (c *cluster) damage(role string) string {
	c.t.Helper()
	files, err := filepath.Glob(filepath.Join(c.dir, role, "cache", "shards", "*", "*.shard"))
	if err != nil || len(files) == 0 {
		c.t.Fatal(files, err)
	}
	if err := os.Chmod(files[0], 0o600); err != nil {
		c.t.Fatal(err)
	}
	f, err := os.OpenFile(files[0], os.O_RDWR, 0)
	if err != nil {
		c.t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err = f.ReadAt(b, 0); err == nil {
		b[0] ^= 0x10
		_, err = f.WriteAt(b, 0)
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		c.t.Fatal(err)
	}
	return files[0]
}

// One flipped bit on one of two workers that hold the data: verify sees nothing,
// verify --deep names the file and the worker (exit 6). A job that asks for it is
// Ready only after every byte was read again, and what was wrong came again.
func TestDeepVerification(t *testing.T) {
	const files = 40
	c := up(t, 2, "512MiB", func(root string) { makeFiles(t, root, 0, 1, files, 1<<20) })
	c.add()
	cert := c.certificate(c.must("preload", "data", "--replicas", "2", "--wait", "-o", "json"))
	if len(cert.Workers) != 2 || cert.Deep || cert.Checksums.Blocks != 2*files*4 || cert.Workers[0].Bytes != files<<20 || cert.Workers[1].Blocks != files*4 {
		t.Errorf("the certificate counts %+v %+v", cert.Checksums, cert.Workers)
	}
	c.damage("worker-2")
	if r := c.stoker("verify", "data"); r.code != 0 {
		t.Errorf("verify: exit %d\n%s", r.code, r.stderr)
	}
	r := c.stoker("verify", "data", "--deep", "-o", "json")
	cert = c.certificate(r.out)
	if r.code != 6 || len(cert.Wrong) != 1 || !strings.HasPrefix(cert.Wrong[0].Path, "shards/part-") || !cert.Deep || !strings.Contains(r.stderr, cert.Wrong[0].Path) {
		t.Errorf("verify --deep: exit %d\n%s%s", r.code, r.out, r.stderr)
	}
	if cert.State != api.CertificateReady || cert.Checksums.ReadBlocks != 2*files*4-1 {
		t.Errorf("the other worker has it right: %+v", cert)
	}
	c.damage("worker-1")
	c.must("preload", "data", "--replicas", "2", "--wait") // worker 2's comes again from worker 1, which does not read all
	c.proxy.Reset()
	cert = c.certificate(c.must("preload", "data", "--replicas", "2", "--verify", "deep", "--wait", "-o", "json"))
	if cert.State != api.CertificateReady || !cert.Deep || len(cert.Wrong) != 0 || cert.Checksums.ReadBlocks != 2*files*4 || cert.ResidentBytes != files<<20 {
		t.Errorf("a preload that is verified: %+v", cert)
	}
	c.must("verify", "data", "--deep")
	if r := c.stoker("preload", "data", "--verify", "somewhat"); r.code != 2 {
		t.Errorf("--verify somewhat: exit %d", r.code)
	}
}

// 10,000 objects that are gone: the certificate names each, so does --failed page
// by page, and no event of any workflow carries more than 256 KiB.
func TestTenThousandFailures(t *testing.T) {
	const files, gone = 10_050, 10_000
	c := up(t, 2, "256MiB", func(root string) {
		for i := range files {
			if err := os.WriteFile(filepath.Join(root, fmt.Sprintf("f%05d", i)), []byte("some bytes"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	})
	c.add()
	for i := range gone {
		if err := os.Remove(filepath.Join(c.root, "data", fmt.Sprintf("f%05d", i))); err != nil {
			t.Fatal(err)
		}
	}
	r := c.stoker("preload", "data", "--wait", "-o", "json")
	cert := c.certificate(r.out)
	if r.code != 4 || len(cert.Failed) != gone || cert.ResidentObjects != files-gone {
		t.Fatalf("exit %d, %d failed", r.code, len(cert.Failed))
	}
	for i, f := range cert.Failed {
		if f.Path != fmt.Sprintf("f%05d", i) || f.Kind != "notexist" || f.Reason == "" {
			t.Fatalf("%d: %+v", i, f)
		}
	}
	c.settled()
	told := 0
	for after := ""; ; {
		var p api.FailurePage
		if err := json.Unmarshal([]byte(c.must("status", "data", "--failed", "--limit", "3000", "--after", after, "-o", "json")), &p); err != nil {
			t.Fatal(err)
		}
		for _, f := range p.Failed {
			if f != cert.Failed[told] {
				t.Fatalf("%d: %+v, want %+v", told, f, cert.Failed[told])
			}
			told++
		}
		if after = p.Next; after == "" {
			break
		}
	}
	if told != gone {
		t.Errorf("--failed tells %d", told)
	}
	c.smallPayloads()
	c.inHistory(gone)
}

// inHistory: the preload that has failed is there with its figures, after a
// restart of the controller as before.
func (c *cluster) inHistory(gone int) {
	c.t.Helper()
	c.kill("controller")
	c.dev("start", "controller", "--dir", c.dir)
	c.eventually("the ended preload is in the history", func() bool { // visibility is a little late
		var all []api.JobLine
		if err := json.Unmarshal([]byte(c.must("jobs", "--ended", "-o", "json")), &all); err != nil {
			c.t.Fatal(err)
		}
		if len(all) != 1 || len(all[0].Certificates) != 1 {
			return false
		}
		cert := all[0].Certificates[0]
		if all[0].State != api.JobFailed || all[0].Ended.IsZero() || all[0].Error == nil || cert.State != api.CertificateFailed || cert.FailedObjects != gone || cert.ResidentObjects != 50 || cert.UFSRequests == 0 {
			c.t.Errorf("%+v", all[0])
		}
		return true
	})
}

// smallPayloads checks all events of all workflows so far.
func (c *cluster) smallPayloads() {
	c.t.Helper()
	tc, largest, events := c.temporal("default"), 0, 0
	page, err := tc.ListWorkflow(c.t.Context(), &workflowservice.ListWorkflowExecutionsRequest{PageSize: 1000})
	if err != nil {
		c.t.Fatal(err)
	}
	for _, e := range page.Executions {
		all := tc.GetWorkflowHistory(c.t.Context(), e.Execution.WorkflowId, e.Execution.RunId, false, enums.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT)
		for all.HasNext() {
			event, err := all.Next()
			if err != nil {
				c.t.Fatal(err)
			}
			events, largest = events+1, max(largest, event.Size())
		}
	}
	if events == 0 || largest > 256<<10 {
		c.t.Errorf("of %d events the largest has %d bytes", events, largest)
	}
	c.t.Logf("%d events, the largest of %d bytes", events, largest)
}

// While a load runs, users see how far it is: bytes, objects, rate, and what each
// worker has to do, of the job and of its dataset, and the deadline.
func TestProgressOfALoad(t *testing.T) {
	var size int64
	c := up(t, 2, "512MiB", func(root string) { size = makeFiles(t, root, 300, 100<<10, 4, 64<<20) })
	c.add()
	reached, release := c.proxy.Hold(size / 3)
	defer release()
	c.must("claim", "--dataset", "data", "--job-id", "train", "--deadline", "1h", "--on-miss", "wait")
	<-reached
	var st api.JobStatus
	c.eventually("the job's load is seen", func() bool {
		if err := json.Unmarshal([]byte(c.must("status", "train", "-o", "json")), &st); err != nil {
			t.Fatal(err)
		}
		return st.Datasets[0].Load != nil && len(st.Datasets[0].Load.Workers) == 2
	})
	l := st.Datasets[0].Load
	if l.State != api.JobWarming || l.Objects != 304 || l.ResidentObjects >= 304 || l.Bytes != size || l.ResidentBytes >= size || st.Deadline.IsZero() {
		t.Errorf("load %+v of %+v", l, st)
	}
	var sum int64
	for _, w := range l.Workers {
		sum += w.LoadBytes
	}
	if sum != size {
		t.Errorf("the workers load %d of %d bytes: %+v", sum, size, l.Workers)
	}
	if d := c.show("data"); d.Load == nil || d.Load.Objects != 304 || len(d.Load.Workers) != 2 {
		t.Errorf("of the dataset: %+v", d.Load)
	}
	if out := c.must("status", "train"); !strings.Contains(out, "deadline") || !strings.Contains(out, "of 304 objects") || strings.Count(out, "loading") != 2 {
		t.Errorf("people see\n%s", out)
	}
	release()
	c.must("wait", "train")
	c.eventually("no load is seen after the end", func() bool { return c.show("data").Load == nil }) // what users see is up to 400 ms old
	c.must("release", "train")
}

// What was preloaded by its URI alone is shown, verified and evicted by it, and
// needs a name for what has an owner. Nobody but an admin evicts it.
func TestDatasetsWithoutAName(t *testing.T) {
	c := up(t, 1, "512MiB", func(root string) { makeFiles(t, root, 20, 10<<10, 0, 0) })
	const uri = "s3://data/train"
	if r := c.stoker("verify", uri); r.code != 3 || !strings.Contains(r.stderr, "stoker preload "+uri) {
		t.Errorf("before: exit %d, %s", r.code, r.stderr)
	}
	was := c.certificate(c.must("preload", uri, "--wait", "-o", "json"))
	if cert := c.certificate(c.must("verify", uri+"/", "--deep", "-o", "json")); !cert.Deep || cert.Manifest != was.Manifest || cert.ResidentObjects != 20 {
		t.Errorf("verify --deep: %+v", cert)
	}
	if d := c.detail("dataset", "show", uri); d.Name != uri || d.Manifest != was.Manifest || d.ResidentBytes != was.Bytes || d.Owner != "" {
		t.Errorf("show: %+v", d)
	}
	for _, args := range [][]string{{"pin", uri, "--for", "1h", "--reason", "x"}, {"dataset", "sync", uri}, {"dataset", "rm", uri}} {
		if r := c.stoker(args...); r.code != 3 || !strings.Contains(r.stderr, "stoker dataset add NAME "+uri) {
			t.Errorf("%v: exit %d, %s", args, r.code, r.stderr)
		}
	}
	c.user(4321).refused(10, "only an admin may", "evict", uri)
	c.must("evict", uri)
	if r := c.stoker("verify", uri); r.code != 3 {
		t.Errorf("after: exit %d, %s", r.code, r.stderr)
	}
}
