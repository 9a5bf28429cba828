package e2e

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"go.temporal.io/sdk/client"

	"stoker.dev/internal/api"
)

// A step of the crash matrix: a command that may be repeated until it succeeds, and
// what holds from then on, once and not twice, whoever died meanwhile.
type crashStep struct {
	name string
	do   []string
	is   func(c *cluster) bool
}

// insist runs a command until it succeeds: with services away it exits 5, or 75 as a
// hook's.
func (c *cluster) insist(args ...string) {
	c.t.Helper()
	for end := time.Now().Add(60 * time.Second); ; {
		r := c.stoker(args...)
		if r.code == 0 {
			return
		}
		if r.code != 5 && r.code != 75 || time.Now().After(end) {
			c.t.Fatalf("stoker %s: exit %d\n%s%s", strings.Join(args, " "), r.code, r.out, r.stderr)
		}
		<-time.After(100 * time.Millisecond)
	}
}

// schedules counts those that Temporal has of a dataset.
func schedules(t *testing.T, tc client.Client, dataset string) (n int) {
	t.Helper()
	list, err := tc.ScheduleClient().List(t.Context(), client.ScheduleListOptions{})
	if err != nil {
		return -1 // it is away
	}
	for list.HasNext() {
		e, err := list.Next()
		if err != nil {
			return -1
		}
		if strings.HasSuffix(e.ID, "-"+dataset) {
			n++
		}
	}
	return n
}

// leasesOf counts the leases that each worker has for one reason or holder.
func (c *cluster) leasesOf(workers int, holder, reason string) (counts []int) {
	c.t.Helper()
	for k := 1; k <= workers; k++ {
		n := 0
		for _, l := range c.workerStatus(k).Leases {
			if holder != "" && l.Holder == holder || reason != "" && l.Reason == reason {
				n++
			}
		}
		counts = append(counts, n)
	}
	return counts
}

func all(counts []int, n int) bool {
	for _, k := range counts {
		if k != n {
			return false
		}
	}
	return true
}

func isHeld(c *cluster, name string) bool {
	c.t.Helper()
	d := c.show(name)
	return len(d.Holders) > 0 && c.stoker("evict", name).code == 11
}

// Pins, leases of claims, schedules and reservations over the death by kill -9 of
// each process, before, while and after each of their steps: none is lost, none is
// there twice, and when all have ended no byte is promised or kept for them.
func TestCrashMatrix(t *testing.T) {
	for _, role := range []string{"controller", "redis", "temporal", "worker-2"} {
		t.Run(role, func(t *testing.T) {
			if role != "controller" && os.Getenv("STOKER_TEST_LONG") == "" {
				t.Skip("minutes, for leases that end by silence: part of make test-long")
			}
			crashMatrix(t, role)
		})
	}
}

func crashMatrix(t *testing.T, role string) {
	var size int64
	c := up(t, 2, "256MiB", func(root string) { size = makeFiles(t, root, 100, 100<<10, 1, 30<<20) })
	c.add()
	empty := c.used()
	c.must("preload", "data", "--wait")
	tc := c.temporal("default")
	steps := []crashStep{
		{"pin", []string{"pin", "data", "--for", "2h", "--reason", "matrix"}, func(c *cluster) bool {
			return len(c.show("data").Pins) == 1 && all(c.leasesOf(2, "", "matrix"), 1) && isHeld(c, "data")
		}},
		{"schedule", []string{"dataset", "sync", "data", "--every", "24h"}, func(c *cluster) bool {
			d := c.show("data")
			return d.SyncEverySeconds == 86400 && !d.NextSync.IsZero() && d.Generation == 1 && schedules(t, tc, "data") == 1
		}},
		{"claim", []string{"claim", "--job-id", "m", "--submitted", "1772366400", "--dataset", "data", "--ttl", "1h"}, func(c *cluster) bool {
			return c.claimed() == 1 && c.state("m") == api.JobReady && all(c.leasesOf(2, "m", ""), 1)
		}},
		{"schedule ends", []string{"dataset", "sync", "data", "--every", "off"}, func(c *cluster) bool {
			return c.show("data").SyncEverySeconds == 0 && schedules(t, tc, "data") == 0
		}},
		{"unpin", []string{"pin", "data", "--for", "1s", "--reason", "ends"}, func(c *cluster) bool { // unpin is no command to repeat
			return len(c.show("data").Pins) == 0 && isHeld(c, "data")
		}},
		{"release", []string{"release", "m", "--submitted", "1772366400"}, func(c *cluster) bool {
			return len(c.jobs()) > 0 && !slices.ContainsFunc(c.jobs(), func(j api.JobLine) bool { return !api.Settled(j.State) || j.State == api.JobReady })
		}},
	}
	for _, s := range steps {
		c.kill(role) // before
		first, _ := c.background(s.do...)
		c.dev("start", role, "--dir", c.dir)
		_ = first.Wait()
		c.insist(s.do...)
		c.eventually(s.name+", begun without "+role, func() bool { return s.is(c) })
		again, _ := c.background(s.do...)
		c.kill(role) // while and after
		_ = again.Wait()
		c.dev("start", role, "--dir", c.dir)
		c.insist(s.do...)
		c.eventually(s.name+", over the death of "+role, func() bool { return s.is(c) })
	}
	c.letGo("data")
	c.reservationSurvives(role, size)
	c.settled()
	c.letGo("data")
	if used := c.used(); used > empty+documents {
		t.Errorf("%d bytes are used yet, %d were at first", used, empty)
	}
}

// letGo evicts a dataset when nobody holds it any more. A lease that a worker was not
// told of the end of ends by its silence: in 120 s from a renewal on.
func (c *cluster) letGo(dataset string) {
	c.t.Helper()
	for end := time.Now().Add(4 * time.Minute); c.stoker("evict", dataset).code != 0; <-time.After(time.Second) {
		if time.Now().After(end) {
			c.t.Fatal("somebody holds the data for ever")
		}
	}
}

// reservationSurvives loads with the role dying in the middle.
func (c *cluster) reservationSurvives(role string, size int64) {
	c.t.Helper()
	before := c.proxy.Bytes()
	reached, release := c.proxy.Hold(before + size/2)
	defer release()
	done := c.preload()
	<-reached
	c.kill(role)
	release()
	c.dev("start", role, "--dir", c.dir)
	if cert := done(); cert.State != api.CertificateReady || cert.ResidentBytes != size {
		c.t.Errorf("certificate %+v", cert)
	}
}
