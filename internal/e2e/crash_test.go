package e2e

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/cache/store"
	"stoker.dev/internal/api"
	"stoker.dev/internal/testenv"
)

// slack is what may be on its way between the S3 side and a worker that is
// killed: a buffer of the proxy and of the sockets for each of its streams.
const slack = 16 << 20

// preload starts `preload --wait` and returns what yields its certificate.
func (c *cluster) preload(more ...string) (wait func() api.Certificate) {
	c.t.Helper()
	cmd := exec.Command(binary(c.t, "stoker"), append([]string{"preload", "data", "--wait", "-o", "json"}, more...)...)
	var out, stderr strings.Builder
	cmd.Env, cmd.Stdout, cmd.Stderr = c.env, &out, &stderr
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = cmd.Process.Kill() })
	return func() api.Certificate {
		c.t.Helper()
		if err := cmd.Wait(); err != nil {
			c.t.Fatalf("preload: %v\n%s%s", err, out.String(), stderr.String())
		}
		return c.certificate(out.String())
	}
}

// onDisk lists what a dead worker has: byte ranges by object.
func (c *cluster) onDisk(role string) map[string][]testenv.Get {
	c.t.Helper()
	var all []api.DatasetInfo
	if err := json.Unmarshal([]byte(c.must("dataset", "ls", "-o", "json")), &all); err != nil {
		c.t.Fatal(err)
	}
	m, err := manifest.Open(filepath.Join(c.dir, "store", "manifests", all[0].Manifest.String()))
	if err != nil {
		c.t.Fatal(err)
	}
	defer m.Close()
	st, err := store.Open(store.Options{Dir: filepath.Join(c.dir, role, "cache"), CapacityBytes: 1 << 40})
	if err != nil {
		c.t.Fatal(err)
	}
	defer st.Close()
	out := map[string][]testenv.Get{}
	for n := range uint32(m.Shards()) {
		sh, ok := st.Get(m.Shard(n).ID)
		if !ok {
			continue
		}
		for _, mem := range m.Members(n, nil) {
			key := "/data/" + m.Path(mem.Row)
			for b := range manifest.BlocksOf(mem.Bytes) {
				if !sh.Has(int(mem.FirstBlock) + b) {
					continue
				}
				from := mem.ObjectOff + int64(b)*stoker.BlockBytes
				out[key] = append(out[key], testenv.Get{Key: key, From: from, To: min(from+stoker.BlockBytes, mem.ObjectOff+mem.Bytes)})
			}
		}
		sh.Release()
	}
	return out
}

// fetchedAgain returns the bytes of have that later GETs asked for.
func fetchedAgain(have map[string][]testenv.Get, later []testenv.Get) (bytes int64) {
	for _, g := range later {
		for _, h := range have[g.Key] {
			to := h.To
			if g.To >= 0 {
				to = min(to, g.To)
			}
			bytes += max(0, to-max(h.From, g.From))
		}
	}
	return bytes
}

func (c *cluster) ready(cert api.Certificate, size int64) {
	c.t.Helper()
	if cert.State != api.CertificateReady || cert.ResidentBytes != size || len(cert.Failed) != 0 {
		c.t.Fatalf("certificate %+v", cert)
	}
	r := cert.Refetched
	if net := cert.UFSBytes - r.Lost - r.Retry - r.Hedge - r.Bypass; net < size-slack || net > size+slack {
		c.t.Errorf("%d UFS bytes less what was fetched again (%+v) are %d, the dataset has %d", cert.UFSBytes, r, net, size)
	}
	if got := c.proxy.Bytes(); got < cert.UFSBytes-slack || got > cert.UFSBytes+slack {
		c.t.Errorf("the certificate says %d UFS bytes, the S3 side sent %d", cert.UFSBytes, got)
	}
}

// A worker that dies at 40 % of a preload and comes back within the return
// window goes on where it was: nothing that was on its disk is fetched again.
func TestWorkerReturnsInMidPreload(t *testing.T) { workerReturns(t, 0.4) }

func workerReturns(t *testing.T, at float64) {
	var size int64
	c := up(t, 3, "1GiB", func(root string) { size = makeFiles(t, root, 2000, 100<<10, 3, 100<<20) })
	c.add()
	reached, release := c.proxy.Hold(part(size, at))
	defer release()
	done := c.preload()
	<-reached
	<-time.After(time.Second) // the worker tells twice a second what it has
	c.accountsWritten()
	role := c.fullest()
	c.kill(role)
	have, before := c.onDisk(role), len(c.proxy.Log())
	if len(have) == 0 {
		t.Fatalf("%s had nothing on its disk", role)
	}
	release()
	c.dev("start", role, "--dir", c.dir)
	cert := done()
	c.ready(cert, size)
	if n := fetchedAgain(have, c.proxy.Log()[before:]); n != 0 {
		t.Errorf("%d bytes that were on its disk were fetched again", n)
	}
	if cert.Refetched.Lost > slack {
		t.Errorf("%d bytes are said to be lost", cert.Refetched.Lost)
	}
	c.settled()
	c.must("verify", "data", "--deep")
}

// So does one whose controller dies with it, before that has told Temporal what it
// heard: what the dead life cost stands in the certificate.
func TestWorkerAndControllerDieInMidPreload(t *testing.T) {
	var size int64
	c := up(t, 2, "1GiB", func(root string) { size = makeFiles(t, root, 1000, 100<<10, 3, 100<<20) })
	c.add()
	reached, release := c.proxy.Hold(part(size, 0.6))
	defer release()
	done := c.preload()
	<-reached
	c.accountsWritten()
	role := c.fullest()
	c.kill("controller")
	c.kill(role)
	release()
	c.dev("start", role, "--dir", c.dir)
	c.dev("start", "controller", "--dir", c.dir)
	c.ready(done(), size)
	c.settled()
}

// accountsWritten waits until the workers' next lives know what their loads have cost so
// far: it is noted once a second.
func (c *cluster) accountsWritten() {
	c.t.Helper()
	c.eventually("what came is written down", func() bool { return c.writtenDown() >= c.proxy.Bytes()-slack/2 })
}

// writtenDown is what the workers have noted on their disks that loads have cost.
func (c *cluster) writtenDown() (bytes int64) {
	c.t.Helper()
	files, err := filepath.Glob(filepath.Join(c.dir, "worker-*", "cache", "state", "accounts.json"))
	if err != nil {
		c.t.Fatal(err)
	}
	for _, f := range files {
		var all []api.LoadSpent
		body, err := os.ReadFile(f)
		if err == nil {
			err = json.Unmarshal(body, &all)
		}
		if err != nil {
			c.t.Fatalf("%s: %v", f, err)
		}
		for _, s := range all {
			bytes += s.UFSBytes
		}
	}
	return bytes
}

// One that does not come back costs what it had on its disk, and the
// certificate says so.
func TestWorkerStaysAwayInMidPreload(t *testing.T) { workerStaysAway(t, 0.4) }

func workerStaysAway(t *testing.T, at float64) {
	var size int64
	c := up(t, 3, "1GiB", func(root string) { size = makeFiles(t, root, 2000, 100<<10, 3, 100<<20) }, "--return-window", "3s")
	c.add()
	reached, release := c.proxy.Hold(part(size, at))
	defer release()
	done := c.preload()
	<-reached
	<-time.After(3 * time.Second) // it tells twice a second, and the controller passes on what it hears once a second
	role := c.fullest()
	c.kill(role)
	var had int64
	for _, ranges := range c.onDisk(role) {
		for _, g := range ranges {
			had += g.To - g.From
		}
	}
	release()
	cert := done()
	c.ready(cert, size)
	if lost := cert.Refetched.Lost; lost < had || lost > had+slack {
		t.Errorf("the certificate says that %d bytes were lost, the worker had %d", lost, had)
	}
	dir := t.TempDir()
	on := 1
	if role == "worker-1" {
		on = 2
	}
	if r := c.stokerAt(on, "mount", "data", dir); r.code != 0 {
		t.Fatal(r.stderr)
	}
	sameTree(t, filepath.Join(c.root, "data"), dir)
	if r := c.stokerAt(on, "umount", dir); r.code != 0 {
		t.Fatal(r.stderr)
	}
}

// The same for one whose part was loaded already.
func TestWorkerDiesWithItsPartLoaded(t *testing.T) {
	t.Run("returns", func(t *testing.T) { workerReturns(t, 0.9) })
	t.Run("stays away", func(t *testing.T) { workerStaysAway(t, 0.9) })
}

// fullest is the worker that has most.
func (c *cluster) fullest() (role string) {
	c.t.Helper()
	most := int64(-1)
	for _, w := range c.workers() {
		out, err := exec.Command("curl", "-sf", "--unix-socket", w.Socket, "http://worker/v1/status").Output()
		var st api.WorkerStatus
		if err == nil {
			err = json.Unmarshal(out, &st)
		}
		if err != nil {
			c.t.Fatal(err)
		}
		var has int64
		for _, h := range st.Manifests {
			has += h.Bytes
		}
		if has > most {
			most, role = has, filepath.Base(filepath.Dir(w.Socket))
		}
	}
	return role
}

// The controller, Temporal and Redis may die in mid-preload and mid-read: the
// preload ends Ready, every byte is fetched once, reads of a mounted view go
// on meanwhile, and no promise of space is left over.
func TestServicesDieInMidPreload(t *testing.T) {
	for _, role := range services {
		t.Run(role, func(t *testing.T) { serviceDies(t, role, 0.4) })
	}
}

var services = []string{"controller", "temporal", "redis"}

func serviceDies(t *testing.T, role string, at float64) {
	var size int64
	c := up(t, 2, "1GiB", func(root string) { size = makeFiles(t, root, 1000, 100<<10, 2, 60<<20) })
	c.add()
	dir := t.TempDir()
	c.must("mount", "data", dir)
	reached, release := c.proxy.Hold(part(size, at))
	defer release()
	done := c.preload()
	<-reached
	c.kill(role)
	release()
	sameTree(t, filepath.Join(c.root, "data"), dir) // without it
	c.dev("start", role, "--dir", c.dir)
	cert := done()
	if cert.State != api.CertificateReady || cert.ResidentBytes != size {
		t.Errorf("certificate %+v", cert)
	}
	c.accounted(size, cert.Refetched)
	c.settled()
	c.must("umount", dir)
}

func part(size int64, at float64) int64 { return int64(float64(size) * at) }

// The same at random points: one of each in CI, ten in make test-long.
func TestCrashAtRandomPoints(t *testing.T) {
	points := 1
	if os.Getenv("STOKER_TEST_LONG") != "" {
		points = 10
	}
	for i := range points {
		at := 0.05 + 0.9*rand.Float64()
		t.Run(fmt.Sprintf("worker-returns/%d/%.3f", i, at), func(t *testing.T) { workerReturns(t, at) })
		t.Run(fmt.Sprintf("worker-stays-away/%d/%.3f", i, at), func(t *testing.T) { workerStaysAway(t, at) })
		for _, role := range services {
			t.Run(fmt.Sprintf("%s/%d/%.3f", role, i, at), func(t *testing.T) { serviceDies(t, role, at) })
		}
		t.Run(fmt.Sprintf("flushall/%d/%.3f", i, at), func(t *testing.T) { redisForgets(t, at) })
	}
}

// FLUSHALL is the same to Redis as its death: the workers announce again.
func TestRedisForgetsInMidPreload(t *testing.T) { redisForgets(t, 0.4) }

func redisForgets(t *testing.T, at float64) {
	var size int64
	c := up(t, 3, "1GiB", func(root string) { size = makeFiles(t, root, 1000, 100<<10, 2, 60<<20) })
	c.add()
	reached, release := c.proxy.Hold(part(size, at))
	defer release()
	done := c.preload()
	<-reached
	out, err := exec.Command(testenv.Program(t, "redis-cli"), "-p", c.redisPort(), "flushall").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	release()
	cert := done()
	dir := t.TempDir()
	c.must("mount", "data", dir)
	sameTree(t, filepath.Join(c.root, "data"), dir)
	c.must("umount", dir)
	c.accounted(size, cert.Refetched)
}

// accounted checks that the S3 side sent every byte once, but for what is said to
// have been read twice: on a busy machine a worker may not answer in time. A second
// request that is of no use is cancelled: what of it the S3 side has sent and nobody
// has read, only the workers' count of such requests tells.
func (c *cluster) accounted(size int64, r api.Refetched) {
	c.t.Helper()
	again := r.Lost + r.Retry + r.Hedge + r.Bypass
	got := c.still()
	switch second := c.secondRequests(); {
	case got-again == size:
	case second > 0 && r.Lost == 0:
		c.sentOnce(sent{}, size)
	case second == 0 || got < size || got > size+again+slack:
		c.t.Errorf("the S3 side sent %d bytes, %d of them again (%+v), by %d second requests; the dataset has %d", got, again, r, second, size)
	}
}

func (c *cluster) redisPort() string {
	body, err := os.ReadFile(filepath.Join(c.dir, "cluster.json"))
	var d struct{ Ports map[string]int }
	if err == nil {
		err = json.Unmarshal(body, &d)
	}
	if err != nil {
		c.t.Fatal(err)
	}
	return fmt.Sprint(d.Ports["redis"])
}

// Two controllers share the work: when the one that drives a load dies, the
// other goes on with it.
func TestSecondControllerTakesOver(t *testing.T) {
	var size int64
	c := up(t, 2, "1GiB", func(root string) { size = makeFiles(t, root, 500, 100<<10, 2, 60<<20) })
	c.add()
	second := c.secondController()
	reached, release := c.proxy.Hold(size * 4 / 10)
	defer release()
	done := c.preload()
	<-reached
	c.kill("controller")
	release()
	c.env = append(c.env, "STOKER_CONTROLLER=unix://"+second)
	c.eventually("the job ends by the second controller", func() bool {
		for _, j := range c.jobs() {
			if j.State == api.JobReleased && j.ResidentBytes == size {
				return true
			}
		}
		return false
	})
	c.dev("start", "controller", "--dir", c.dir)
	if cert := done(); cert.State != api.CertificateReady { // its CLI waited for its own controller
		t.Errorf("certificate %+v", cert)
	}
	if got := c.proxy.Bytes(); got != size {
		t.Errorf("the S3 side sent %d bytes, the dataset has %d", got, size)
	}
}

// secondController starts another controller as a service of its own would
// be, and returns its socket.
func (c *cluster) secondController() (socket string) {
	c.t.Helper()
	body, err := os.ReadFile(filepath.Join(c.dir, "cluster.json"))
	var d struct{ Ports map[string]int }
	if err == nil {
		err = json.Unmarshal(body, &d)
	}
	if err != nil {
		c.t.Fatal(err)
	}
	socket = filepath.Join(c.t.TempDir(), "controller.sock")
	cmd := exec.Command(binary(c.t, "stokerd"), "controller", "--temporal", fmt.Sprintf("127.0.0.1:%d", d.Ports["temporal"]),
		"--redis", fmt.Sprintf("127.0.0.1:%d", d.Ports["redis"]), "--store", filepath.Join(c.dir, "store"), "--dir", c.t.TempDir(),
		"--listen-socket", socket, "--token-file", filepath.Join(c.dir, "token"))
	for _, kv := range c.env {
		if !strings.HasPrefix(kv, "STOKER_") {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	c.eventually("the second controller answers", func() bool { _, err := os.Stat(socket); return err == nil })
	return socket
}
