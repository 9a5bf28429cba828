package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"stoker.dev/internal/api"
)

// A pin holds data against eviction and the needs of others, over the death of
// every process, until its owner ends it; others may not.
func TestPinHoldsDataUntilItEnds(t *testing.T) {
	c := up(t, 1, "160MiB", func(root string) {
		makeFiles(t, filepath.Join(root, "a"), 200, 500<<10, 0, 0) // about 50 MB
		makeFiles(t, filepath.Join(root, "b"), 0, 1, 2, 57<<20)
	})
	for _, name := range []string{"a", "b"} {
		c.must("dataset", "add", "set-"+name, "s3://data/"+name, "--endpoint", c.proxy.URL(), "--path-style")
	}
	c.must("preload", "set-a", "--wait")
	var pin api.Pin
	if err := json.Unmarshal([]byte(c.must("pin", "set-a", "--for", "2h", "--reason", "sweep 12", "-o", "json")), &pin); err != nil {
		t.Fatal(err)
	}
	says := "(sweep 12) until " + pin.Until.UTC().Format(time.RFC3339)
	held := func(when string) {
		t.Helper()
		if r := c.stoker("evict", "set-a"); r.code != 11 || !strings.Contains(r.stderr, "the pin of "+pin.Owner) || !strings.Contains(r.stderr, says) {
			t.Errorf("%s evict exits %d\n%s", when, r.code, r.stderr)
		}
	}
	held("at first")
	c.eventually("the pin alone is shown", func() bool { // the preload lets go just now
		d := c.detail("dataset", "show", "set-a")
		return len(d.Pins) == 1 && len(d.Holders) == 1 && strings.Contains(d.Holders[0], says)
	})
	if r := c.stoker("doctor"); !strings.Contains(r.out, "first to end is of set-a") {
		t.Errorf("doctor says nothing of the pin:\n%s", r.out)
	}
	if r := c.stoker("dataset", "rm", "set-a"); r.code != 11 || !strings.Contains(r.stderr, says) {
		t.Errorf("rm exits %d\n%s", r.code, r.stderr)
	}
	all := []string{"controller", "worker-1", "temporal", "redis"}
	for _, role := range all {
		c.kill(role)
	}
	for i := range all {
		c.dev("start", all[len(all)-1-i], "--dir", c.dir)
	}
	held("after all have died")
	if r := c.stoker("preload", "set-b", "--wait"); r.code != 8 {
		t.Errorf("a preload that needs the space exits %d\n%s", r.code, r.stderr)
	}
	held("after a preload was refused")
	if os.Getuid() == 0 {
		other := c.user(4321)
		if r := other.run(other.stoker, "unpin", "set-a"); r.code != 10 || !strings.Contains(r.stderr, "is pinned by") {
			t.Errorf("another user's unpin exits %d\n%s", r.code, r.stderr)
		}
		held("after another user's unpin")
	}
	c.must("unpin", "set-a")
	if r := c.stoker("unpin", "set-a"); r.code != 3 {
		t.Errorf("unpin of what is not pinned exits %d", r.code)
	}
	c.must("preload", "set-b", "--wait")
}

// A pin ends by itself; pinning again puts its end off.
func TestPinExpires(t *testing.T) {
	c := up(t, 1, "64MiB", func(root string) { makeFiles(t, root, 20, 10<<10, 0, 0) })
	c.add()
	c.must("preload", "data", "--wait")
	c.must("pin", "data", "--for", "1h", "--reason", "long")
	c.must("pin", "data", "--for", "6s", "--reason", "short") // long enough for two commands on a busy machine
	if r := c.stoker("evict", "data"); r.code != 11 || !strings.Contains(r.stderr, "(short)") || strings.Contains(r.stderr, "(long)") {
		t.Errorf("evict exits %d\n%s", r.code, r.stderr)
	}
	c.eventually("the pin has ended", func() bool { return c.stoker("evict", "data").code == 0 })
	if d := c.detail("dataset", "show", "data"); len(d.Pins) != 0 || len(d.Holders) != 0 {
		t.Errorf("shown are %+v, %v", d.Pins, d.Holders)
	}
}

// What the hooks of a scheduler do: claim, wait, release, each twice, with
// nobody staying behind; a controller that is away makes them run again.
func TestHooks(t *testing.T) {
	c := up(t, 2, "64MiB", func(root string) { makeFiles(t, root, 50, 100<<10, 0, 0) })
	c.add()
	claim := []string{"claim", "--job-id", "17", "--submitted", "1772366400", "--dataset", "data", "--ttl", "1h"}
	c.must(claim...)
	c.must("wait", "17", "--timeout", "1m")
	c.proxy.Reset()
	var st api.JobStatus
	if err := json.Unmarshal([]byte(c.must(append(claim, "-o", "json")...)), &st); err != nil || st.State != api.JobReady || len(c.jobs()) != 1 {
		t.Errorf("the claim made again is %+v (%v), of %d jobs", st, err, len(c.jobs()))
	}
	if r := c.stoker("evict", "data"); r.code != 11 || !strings.Contains(r.stderr, "job 17") {
		t.Errorf("evict exits %d\n%s", r.code, r.stderr)
	}
	c.kill("controller")
	for _, args := range [][]string{claim, {"release", "17"}, {"wait", "17", "--timeout", "1m"}} {
		if r := c.stoker(args...); r.code != 75 {
			t.Errorf("without a controller %v exits %d\n%s", args, r.code, r.stderr)
		}
	}
	c.dev("start", "controller", "--dir", c.dir)
	c.inState("17", api.JobReady)
	// The epilog of an earlier run of the id comes late.
	c.must("release", "17", "--submitted", "1772360000")
	c.inState("17", api.JobReady)
	// The scheduler uses the id again.
	claim[4] = "1772370000"
	c.must(claim...)
	c.must("wait", "17", "--timeout", "1m")
	if got := c.jobs(); len(got) != 1 || got[0].State != api.JobReady {
		t.Errorf("jobs are %+v", got)
	}
	for range 2 {
		c.must("release", "17", "--submitted", "1772370000")
	}
	c.must("release", "never-claimed")
	if got := c.state("17"); got != api.JobGrace {
		t.Errorf("after its release it is %s", got)
	}
	if n := c.proxy.Bytes(); n != 0 {
		t.Errorf("%d bytes were read again", n)
	}
	c.must("evict", "data") // grace holds nothing
	// A release that is lost.
	c.must("claim", "--job-id", "18", "--dataset", "data", "--ttl", "2s", "--grace", "0s")
	c.eventually("the claim has ended by itself", func() bool { return c.state("18") == api.JobReleased })
	c.settled()
}

// A paused load asks the store for nothing and gives its space back; resumed, it
// goes on from what is on the disk. A stopped preload ends; others may neither.
func TestPausedPreload(t *testing.T) {
	var size int64
	c := up(t, 2, "512MiB", func(root string) { size = makeFiles(t, root, 300, 100<<10, 4, 64<<20) })
	c.add()
	if r := c.stoker("preload", "data", "--pause"); r.code != 3 {
		t.Errorf("a pause of nothing exits %d", r.code)
	}
	reached, release := c.proxy.Hold(size / 3)
	defer release()
	done := c.preload()
	<-reached
	c.must("preload", "data", "--pause")
	release()
	before := c.proxy.Bytes()
	c.eventually("the pause is seen", func() bool { return c.jobs()[0].State == api.JobQueued }) // what users see is up to 400 ms old
	if st := c.jobs()[0]; st.State != api.JobQueued || st.ResidentBytes >= size {
		t.Errorf("the paused job is %+v", st)
	}
	if os.Getuid() == 0 {
		other := c.user(4321)
		for _, action := range []string{"--pause", "--resume", "--stop"} {
			if r := other.run(other.stoker, "preload", "data", action); r.code != 10 {
				t.Errorf("another user's %s exits %d\n%s", action, r.code, r.stderr)
			}
		}
	}
	c.kill("controller")
	c.dev("start", "controller", "--dir", c.dir)
	c.eventually("it is paused after the death of the controller", func() bool { return c.jobs()[0].State == api.JobQueued })
	if more := c.proxy.Bytes() - before; more > 8<<20 { // what was under way when it was stopped
		t.Errorf("%d bytes came while it was paused", more)
	}
	c.must("preload", "data", "--resume")
	cert := done()
	if cert.State != api.CertificateReady || cert.ResidentBytes != size || cert.UFSBytes == 0 || c.proxy.Bytes() > size*5/4 {
		t.Errorf("resumed: %d bytes came for %d, %d while it was paused: %+v", c.proxy.Bytes(), size, before, cert)
	}
	c.settled()
	c.must("evict", "data")
	reached, release = c.proxy.Hold(c.proxy.Bytes() + size/3)
	defer release()
	cmd, _ := c.background("preload", "data", "--wait")
	<-reached
	c.must("preload", "data", "--stop")
	release()
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 4 {
		t.Errorf("a stopped preload exits %d, want 4", code)
	}
	c.settled()
}
