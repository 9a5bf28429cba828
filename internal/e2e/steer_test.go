package e2e

import (
	"slices"
	"strings"
	"testing"

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
			before := c.proxy.Bytes()
			reached, release := c.proxy.Hold(before + size/3)
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
			if got := c.proxy.Bytes() - before; got != size {
				t.Errorf("the S3 side sent %d bytes, the dataset has %d", got, size)
			}
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
