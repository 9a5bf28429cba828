package e2e

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"stoker.dev/internal/api"
)

// worker is one of the cluster, by its role.
func (c *cluster) worker(role string) api.WorkerInfo {
	c.t.Helper()
	all := c.workers()
	i := slices.IndexFunc(all, func(w api.WorkerInfo) bool { return filepath.Base(filepath.Dir(w.Socket)) == role })
	if i < 0 || all[i].Reads == nil {
		c.t.Fatalf("no %s among %+v", role, all)
	}
	return all[i]
}

// onEach checks that a certificate is one of local copies on some workers.
func (c *cluster) onEach(cert api.Certificate, size int64, roles ...string) {
	c.t.Helper()
	var ids []string
	for _, role := range roles {
		w := c.worker(role)
		ids = append(ids, w.ID)
		i := slices.IndexFunc(cert.Workers, func(x api.CertificateWorker) bool { return x.Worker == w.ID })
		if i < 0 || !cert.Workers[i].Whole || cert.Workers[i].Bytes != size {
			c.t.Errorf("%s does not have all: %+v", role, cert.Workers)
		}
	}
	slices.Sort(ids)
	if cert.State != api.CertificateReady || cert.Layout != "local" || !slices.Equal(cert.Nodes, ids) || cert.ResidentBytes != size {
		c.t.Errorf("certificate %+v, want all on %v", cert, ids)
	}
}

// Local copies on three workers: the S3 side sends every byte once, each worker
// gets what it did not fetch itself from the others, once, and none sends more than
// twice what it fetched; reads on each node ask nobody.
func TestLocalCopies(t *testing.T) {
	var size int64
	c := up(t, 3, "600MiB", func(root string) { size = makeFiles(t, root, 1500, 64<<10, 4, 70<<20) })
	c.add()
	cert := c.certificate(c.must("preload", "data", "--layout", "local", "--wait", "-o", "json"))
	roles := []string{"worker-1", "worker-2", "worker-3"}
	c.onEach(cert, size, roles...)
	if got := c.proxy.Bytes(); got != size || cert.UFSBytes != size {
		t.Errorf("the S3 side sent %d bytes, the certificate says %d, the dataset has %d", got, cert.UFSBytes, size)
	}
	for n, role := range roles {
		was := *c.worker(role).Reads
		if was.UFSBytes+was.PeerBytes != size || was.UFSBytes == 0 {
			t.Errorf("%s got %d bytes from the store and %d from others, the dataset has %d", role, was.UFSBytes, was.PeerBytes, size)
		}
		if was.ServedBytes != 2*was.UFSBytes {
			t.Errorf("%s fetched %d bytes and sent %d, want each to two others", role, was.UFSBytes, was.ServedBytes)
		}
		dir := t.TempDir()
		if r := c.stokerAt(n+1, "mount", "data", dir); r.code != 0 {
			t.Fatal(r.stderr)
		}
		sameTree(t, filepath.Join(c.root, "data"), dir)
		if r := c.stokerAt(n+1, "umount", dir); r.code != 0 {
			t.Fatal(r.stderr)
		}
		if is := c.worker(role).Reads; is.PeerBytes != was.PeerBytes || is.UFSBytes != was.UFSBytes {
			t.Errorf("reads on %s fetched %d bytes from others", role, is.PeerBytes-was.PeerBytes)
		}
	}
	c.settled()
}

// A job on another node joins: its node gets every byte from the first, the S3 side
// sends none again. Its own name in the certificate, status and verify is true.
func TestLocalOnAnotherNode(t *testing.T) {
	var size int64
	c := up(t, 3, "600MiB", func(root string) { size = makeFiles(t, root, 300, 64<<10, 4, 30<<20) })
	c.add()
	first := c.worker("worker-1")
	c.onEach(c.certificate(c.must("preload", "data", "--layout", "local", "--nodes", first.ID[:8], "--wait", "-o", "json")), size, "worker-1")
	if used := c.worker("worker-2").UsedBytes + c.worker("worker-3").UsedBytes; used > size/10 {
		t.Errorf("the others hold %d bytes", used)
	}
	if r := c.stokerAt(2, "submit", "--dataset", "data", "--layout", "local", "--job-id", "second", "--on-miss", "fail", "--", "sh", "-c", "find $STOKER_MOUNT -type f -exec cat {} + >/dev/null"); r.code != 0 {
		t.Fatalf("exit %d\n%s", r.code, r.stderr)
	}
	if got := c.proxy.Bytes(); got != size {
		t.Errorf("the S3 side sent %d bytes, the dataset has %d", got, size)
	}
	w := c.worker("worker-2")
	if w.Reads.PeerBytes != size || w.Reads.UFSBytes != 0 {
		t.Errorf("the second node got %d bytes from others and %d from the store, want %d", w.Reads.PeerBytes, w.Reads.UFSBytes, size)
	}
	if out := c.must("status", "second"); !strings.Contains(out, "local on "+w.ID[:8]) {
		t.Errorf("status says\n%s", out)
	}
	verified := c.certificate(c.must("verify", "data", "-o", "json"))
	whole := slices.DeleteFunc(verified.Workers, func(x api.CertificateWorker) bool { return !x.Whole })
	if len(whole) != 2 || slices.ContainsFunc(whole, func(x api.CertificateWorker) bool { return x.Worker != first.ID && x.Worker != w.ID }) {
		t.Errorf("verify says that all is on %+v", whole)
	}
	for arg, want := range map[string]int{"nowhere": 3, "": 2} {
		if r := c.stoker("preload", "data", "--layout", "local", "--nodes", arg, "--wait"); r.code != want {
			t.Errorf("--nodes %q: exit %d\n%s", arg, r.code, r.stderr)
		}
	}
	c.settled()
}

// What no node has room for is refused with numbers, and spread with auto: as if
// nothing had been said.
func TestLocalThatDoesNotFit(t *testing.T) {
	var size int64
	c := up(t, 3, "128MiB", func(root string) { size = makeFiles(t, root, 300, 64<<10, 7, 30<<20) })
	c.add()
	r := c.stoker("preload", "data", "--layout", "local", "--wait")
	if r.code != 8 || !strings.Contains(r.stderr, "on each of its nodes") || !strings.Contains(r.stderr, " MiB free") {
		t.Errorf("a preload: exit %d\n%s", r.code, r.stderr)
	}
	r = c.stoker("submit", "--dataset", "data", "--layout", "local", "--on-miss", "fail", "--", "true")
	if r.code != 8 || !strings.Contains(r.stderr, "holds 128.0 MiB in all") {
		t.Errorf("a job: exit %d\n%s", r.code, r.stderr)
	}
	if got := c.proxy.Bytes(); got != 0 || c.reserved() != 0 {
		t.Errorf("%d bytes were fetched, %d are reserved", got, c.reserved())
	}
	if r := c.stoker("submit", "--dataset", "data", "--job-id", "auto", "--on-miss", "fail", "--", "true"); r.code != 0 {
		t.Fatalf("auto: exit %d\n%s", r.code, r.stderr)
	}
	if got := c.proxy.Bytes(); got != size {
		t.Errorf("the S3 side sent %d bytes, the dataset has %d", got, size)
	}
	c.settled()
}

// A node that dies in the middle of local copies and comes back within its return
// window: every node has all, and nothing that was on its disk is fetched again.
func TestLocalNodeDiesInMidPreload(t *testing.T) {
	var size int64
	c := up(t, 3, "1GiB", func(root string) { size = makeFiles(t, root, 1000, 100<<10, 4, 80<<20) })
	c.add()
	reached, release := c.proxy.Hold(part(size, 0.4))
	defer release()
	done := c.preload("--layout", "local")
	<-reached
	<-time.After(time.Second) // the worker tells twice a second what it has
	c.accountsWritten()
	role := c.fullest()
	c.kill(role)
	have, before := c.onDisk(role), len(c.proxy.Log())
	release()
	c.dev("start", role, "--dir", c.dir)
	cert := done()
	c.ready(cert, size)
	c.onEach(cert, size, "worker-1", "worker-2", "worker-3")
	if n := fetchedAgain(have, c.proxy.Log()[before:]); n != 0 {
		t.Errorf("%d bytes that were on its disk were fetched again", n)
	}
	c.settled()
	c.must("verify", "data", "--deep")
}
