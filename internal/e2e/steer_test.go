package e2e

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"stoker.dev/internal/api"
)

// Preloads that want one copy and two join in either order: one fetch, each is
// Ready with what it asked for, and one that can never have its copies fails at
// once, alone.
func TestJoinWithOtherCopies(t *testing.T) {
	var size int64
	c := up(t, 3, "400MiB", func(root string) { size = makeFiles(t, root, 300, 64<<10, 4, 32<<20) })
	c.add()
	for name, order := range map[string][2]string{"more": {"1", "2"}, "fewer": {"2", "1"}} {
		t.Run(name, func(t *testing.T) {
			before := c.sentSoFar()
			reached, release := c.proxy.Hold(before.bytes + size/3)
			defer release()
			first := c.preload("--replicas", order[0])
			<-reached
			second := c.preload("--replicas", order[1])
			c.eventually("both wait", func() bool { return len(c.warming()) == 2 })
			if r := c.stoker("preload", "data", "--replicas", "9", "--wait"); r.code != 8 || !strings.Contains(r.stderr, "9 workers") || !strings.Contains(r.stderr, "at most 3") {
				t.Errorf("nine copies on three workers: exit %d\n%s", r.code, r.stderr)
			}
			release()
			copies := map[string]int{}
			for at, wait := range []func() api.Certificate{first, second} {
				cert := wait()
				if copies[order[at]] = cert.Replicas; cert.State != api.CertificateReady || cert.ResidentBytes != size {
					t.Errorf("%s copies: %+v", order[at], cert)
				}
			}
			if copies["2"] != 2 {
				t.Errorf("the certificates say so many copies: %v", copies)
			}
			c.sentOnce(before, size)
			if used := c.used(); used < 2*size {
				t.Errorf("the workers hold %d bytes, two copies of %d are more", used, size)
			}
			c.settled()
			c.must("evict", "data")
		})
	}
}

// warming are the jobs whose data is on its way.
func (c *cluster) warming() []api.JobLine {
	c.t.Helper()
	return slices.DeleteFunc(c.jobs(), func(j api.JobLine) bool { return j.State != api.JobWarming && j.State != api.JobPlanned })
}

// used is what all workers hold.
func (c *cluster) used() (bytes int64) {
	c.t.Helper()
	for _, w := range c.workers() {
		bytes += w.UsedBytes
	}
	return bytes
}

// A preload keeps to its bandwidth, on all workers together, also after the deaths
// of its controller and of a worker, and takes another one while it runs. Whoever
// owns it may change it, and it says what it has.
func TestBandwidthOfAPreload(t *testing.T) {
	const mib = 1 << 20
	c := up(t, 2, "512MiB", func(root string) { makeFiles(t, root, 400, 64<<10, 38, 8*mib) })
	c.add()
	passed := c.passing(32 * mib)
	done := c.preload("--bandwidth", "8MiB/s", "--priority", "3", "--deadline", "1h")
	if took := passed(); took < 1500*time.Millisecond { // each of two workers may be ahead by one request of 8 MiB
		t.Errorf("32 MiB at 8 MiB/s came in %v", took)
	}
	job := c.warming()[0].Job
	if st := c.status(job); st.Priority != 3 || st.Deadline.IsZero() || st.Datasets[0].Load == nil || st.Datasets[0].Load.LimitBytesPerSecond != 8*mib {
		t.Errorf("the preload is %+v", st)
	}
	if os.Getuid() == 0 {
		other := c.user(4321)
		if r := other.run(other.stoker, "change", job, "--bandwidth", "none"); r.code != 10 {
			t.Errorf("another user's change exits %d\n%s", r.code, r.stderr)
		}
	}
	c.kill("controller")
	c.dev("start", "controller", "--dir", c.dir)
	c.must("change", job, "--bandwidth", "4MiB/s", "--deadline", "none")
	c.kill("worker-1")
	c.dev("start", "worker-1", "--dir", c.dir)
	before := c.proxy.Bytes()
	if took := c.passing(before + 24*mib)(); took < 2*time.Second {
		t.Errorf("24 MiB at 4 MiB/s came in %v", took)
	}
	if st := c.status(job); !st.Deadline.IsZero() || st.Datasets[0].Load.LimitBytesPerSecond != 4*mib {
		t.Errorf("the changed preload is %+v", st)
	}
	c.must("change", job, "--bandwidth", "none")
	if cert := done(); cert.State != api.CertificateReady || cert.ResidentBytes != cert.Bytes {
		t.Errorf("%+v", cert)
	}
	if r := c.stoker("change", job, "--bandwidth", "none"); r.code != 3 {
		t.Errorf("a change of what has ended exits %d\n%s", r.code, r.stderr)
	}
	c.settled()
}

// passing waits until so many bytes came in all, and says how long that took.
func (c *cluster) passing(bytes int64) func() time.Duration {
	reached, release := c.proxy.Hold(bytes)
	began := time.Now()
	return func() time.Duration {
		select {
		case <-reached:
		case <-time.After(3 * time.Minute):
			c.t.Fatalf("%d bytes have not come: %d have", bytes, c.proxy.Bytes())
		}
		release()
		return time.Since(began)
	}
}

// Of a selection only its objects are fetched, reserved, counted and verified, each
// byte once, whatever joins; one of nothing is an error; a job with another one has
// its own certificate.
func TestSelections(t *testing.T) {
	var train, val int64
	c := up(t, 2, "512MiB", func(root string) {
		train = makeFiles(t, filepath.Join(root, "train"), 400, 64<<10, 2, 24<<20)
		val = makeFiles(t, filepath.Join(root, "val"), 200, 64<<10, 1, 20<<20)
	})
	c.add()
	if r := c.stoker("preload", "data", "--path", "tests", "--wait"); r.code != 3 || !strings.Contains(r.stderr, "matches none of 603 objects") {
		t.Errorf("nothing selected: exit %d\n%s", r.code, r.stderr)
	}
	if r := c.stoker("preload", "data", "--include", "[", "--wait"); r.code != 2 {
		t.Errorf("a bad pattern: exit %d\n%s", r.code, r.stderr)
	}
	reached, release := c.proxy.Hold(train / 3)
	defer release()
	first := c.preload("--path", "train")
	<-reached
	second := c.preload("--path", "val/", "--exclude", "*.none")
	c.eventually("both wait", func() bool { return len(c.warming()) == 2 })
	release()
	for wait, want := range map[*func() api.Certificate]int64{&first: train, &second: val} {
		if cert := (*wait)(); cert.State != api.CertificateReady || cert.Bytes != want || cert.ResidentBytes != want || cert.UFSBytes != want || cert.Selection == nil {
			t.Errorf("%d bytes are selected: %+v", want, cert)
		}
	}
	if got := c.proxy.Bytes(); got != train+val {
		t.Errorf("the S3 side sent %d bytes for %d and %d", got, train, val)
	}
	c.must("evict", "data")
	before := c.proxy.Bytes()
	cert := c.certificate(c.must("preload", "data", "--path", "train", "--exclude", "*.tar", "--wait", "-o", "json"))
	if got := c.proxy.Bytes() - before; got != cert.Bytes || cert.Objects != 400 || cert.Bytes >= train {
		t.Errorf("the S3 side sent %d bytes for %+v", got, cert)
	}
	for key := range c.proxy.BytesByKey() {
		if !strings.Contains(key, "/train/") && !strings.Contains(key, "/val/") {
			t.Errorf("%s was fetched", key)
		}
	}
	if v := c.certificate(c.must("verify", "data", "--path", "train", "--exclude", "*.tar", "-o", "json")); v.State != api.CertificateReady || v.Objects != 400 {
		t.Errorf("verified: %+v", v)
	}
	if r := c.stoker("verify", "data"); r.code != 4 {
		t.Errorf("all of it verifies with exit %d", r.code)
	}
	if r := c.stoker("submit", "--dataset", "data", "--path", "val", "--on-miss", "fail", "--", "sh", "-c", `test $(find "$STOKER_MOUNT" -type f | wc -l) = 603`); r.code != 0 {
		t.Errorf("a job of a selection: exit %d\n%s", r.code, r.stderr)
	}
	if got := c.proxy.Bytes() - before; got != cert.Bytes+val {
		t.Errorf("the S3 side sent %d bytes, want %d", got, cert.Bytes+val)
	}
	c.settled()
}

// A job that begins with a part of its data reads all of it, right, while the rest
// is loaded; each byte comes once, and its claim is Leased when all is there.
func TestReadyAtAPart(t *testing.T) {
	var size int64
	c := up(t, 2, "512MiB", func(root string) { size = makeFiles(t, root, 300, 64<<10, 4, 24<<20) })
	c.add()
	reached, release := c.proxy.Hold(size / 2)
	defer release()
	cmd, out := c.background("submit", "--dataset", "data", "--job-id", "early", "--ready-at", "10", "--on-miss", "fail", "--deadline", "1h", "--", "sh", "-c",
		`touch "`+c.dir+`/begun"; cat $(find "$STOKER_MOUNT" -type f) | wc -c; while test ! -e "`+c.dir+`/end"; do sleep 0.1; done`)
	<-reached
	c.eventually("the command runs before its data is there", func() bool { _, err := os.Stat(filepath.Join(c.dir, "begun")); return err == nil })
	if got := c.proxy.Bytes(); got >= size {
		t.Errorf("all %d bytes came before", got)
	}
	release()
	c.inState("early", api.JobLeased)
	if err := os.WriteFile(filepath.Join(c.dir, "end"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil || !strings.Contains(out.String(), strconv.FormatInt(size, 10)) {
		t.Errorf("%v\n%s", err, out)
	}
	c.sentOnce(sent{}, size) // its reads are waited for
	c.settled()
}
