package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.temporal.io/sdk/client"

	"stoker.dev/internal/api"
)

// turn lets a dataset's schedule have its turn now, and waits until that is over.
func (c *cluster) turn(tc client.Client, dataset string) {
	c.t.Helper()
	h := tc.ScheduleClient().GetHandle(c.t.Context(), "sync-default-"+dataset)
	before := c.show(dataset)
	d, err := h.Describe(c.t.Context())
	if err == nil {
		err = h.Trigger(c.t.Context(), client.ScheduleTriggerOptions{})
	}
	if err != nil {
		c.t.Fatal(err)
	}
	runs := d.Info.NumActions
	c.eventually("the schedule has had its turn", func() bool {
		d, err := h.Describe(c.t.Context())
		if err != nil {
			c.t.Fatal(err)
		}
		now := c.show(dataset)
		changed := now.LastSync != nil && (before.LastSync == nil || now.LastSync.At.After(before.LastSync.At))
		return d.Info.NumActions > runs && len(d.Info.RunningWorkflows) == 0 && changed
	})
}

func (c *cluster) show(dataset string) api.DatasetDetail { return c.detail("dataset", "show", dataset) }

// A dataset is synced on schedule, also by a controller that did not begin it:
// what has changed is a new generation for new jobs, of which only what is new is
// fetched; a sync that finds nothing makes none; one that fails says so and
// leaves the old one current; rm and --every off end the schedule.
func TestSyncOnSchedule(t *testing.T) {
	c := up(t, 1, "512MiB", func(root string) { makeFiles(t, root, 50, 40<<10, 1, 80<<20) })
	c.must("dataset", "add", "data", "s3://data", "--endpoint", c.proxy.URL(), "--path-style", "--every", "24h")
	d := c.show("data")
	if d.SyncEverySeconds != 86400 || d.NextSync.Before(time.Now()) || d.NextSync.After(time.Now().Add(25*time.Hour)) {
		t.Fatalf("added with a schedule: %+v", d)
	}
	c.must("preload", "data", "--wait")
	job := c.must("claim", "--dataset", "data", "--job-id", "early", "--ttl", "1h", "-o", "json")

	tc := c.temporal("default")
	c.turn(tc, "data")
	if d = c.show("data"); d.Generation != 1 || d.LastSync.Error != nil {
		t.Errorf("nothing has changed: %+v", d)
	}
	if err := os.WriteFile(filepath.Join(c.root, "data", "new.bin"), make([]byte, 100_000), 0o644); err != nil {
		t.Fatal(err)
	}
	c.kill("controller")
	c.dev("start", "controller", "--dir", c.dir)
	c.turn(tc, "data")
	if d = c.show("data"); d.Generation != 2 || d.Objects != 52 || d.NextSync.IsZero() {
		t.Errorf("after a change, and a restart: %+v", d)
	}
	var early api.JobStatus
	if err := json.Unmarshal([]byte(c.must("status", "early", "-o", "json")), &early); err != nil || early.Datasets[0].Generation != 1 {
		t.Errorf("the running job has generation %+v (%v), it began as %s", early.Datasets, err, job)
	}
	c.proxy.Reset()
	cert := c.certificate(c.must("preload", "data", "--wait", "-o", "json"))
	if cert.Generation != 2 || cert.UFSBytes != 100_000 || c.proxy.Bytes() != 100_000 {
		t.Errorf("the next preload fetched %d bytes: %+v", c.proxy.Bytes(), cert)
	}
	c.must("release", "early")
	failedSync(t, c, tc)
	endedSchedule(t, c, tc)
}

// failedSync: the store refuses to list.
func failedSync(t *testing.T, c *cluster, tc client.Client) {
	t.Helper()
	bucket := filepath.Join(c.root, "data")
	if err := os.Rename(bucket, bucket+"-away"); err != nil {
		t.Fatal(err)
	}
	c.turn(tc, "data")
	d := c.show("data")
	if d.Generation != 2 || d.LastSync.Error == nil || d.LastSync.Error.Message == "" {
		t.Errorf("a sync of nothing: %+v", d.LastSync)
	}
	if out := c.must("dataset", "show", "data"); !strings.Contains(out, "last sync") || !strings.Contains(out, "failed") {
		t.Errorf("show says\n%s", out)
	}
	if r := c.stoker("dataset", "sync", "data"); r.code != 3 {
		t.Errorf("a manual sync: exit %d, want 3\n%s", r.code, r.stderr)
	}
	if err := os.Rename(bucket+"-away", bucket); err != nil {
		t.Fatal(err)
	}
	c.must("dataset", "sync", "data", "--every", "10m")
	if d = c.show("data"); d.LastSync.Error != nil || d.SyncEverySeconds != 600 || d.Generation != 2 {
		t.Errorf("after the store came back: %+v", d)
	}
}

// endedSchedule: nothing is left of it.
func endedSchedule(t *testing.T, c *cluster, tc client.Client) {
	t.Helper()
	there := func() bool {
		_, err := tc.ScheduleClient().GetHandle(t.Context(), "sync-default-data").Describe(t.Context())
		return err == nil
	}
	if d := c.detail("dataset", "sync", "data", "--every", "off"); d.SyncEverySeconds != 0 || there() {
		t.Errorf("--every off: %+v", d)
	}
	if r := c.stoker("dataset", "sync", "data", "--every", "3s"); r.code != 2 {
		t.Errorf("--every 3s: exit %d", r.code)
	}
	c.must("dataset", "sync", "data", "--every", "1h")
	if !there() {
		t.Error("it has no schedule")
	}
	reached, _, release := c.proxy.HoldLists("data", 0)
	defer release()
	sync, said := c.background("dataset", "sync", "data")
	<-reached
	c.must("dataset", "rm", "data") // it does not wait for a listing that is of no use any more
	if there() {
		t.Error("the schedule outlives its dataset")
	}
	if err := sync.Wait(); err == nil || sync.ProcessState.ExitCode() != 3 || !strings.Contains(said.String(), "was removed") {
		t.Errorf("a sync of what was removed in the middle: %v\n%s", err, said)
	}
	if r := c.stoker("dataset", "show", "data"); r.code != 3 {
		t.Errorf("after rm show exits %d", r.code)
	}
}
