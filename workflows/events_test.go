package workflows

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"go.temporal.io/api/enums/v1"
	"go.temporal.io/api/history/v1"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/worker"

	"stoker.dev"
	"stoker.dev/activities"
	"stoker.dev/internal/api"
)

// ended does the work of activities at once.
type ended struct{ parts int }

func (*ended) PutLeases(context.Context, activities.LeaseInput) error { return nil }
func (e *ended) Plan(context.Context, activities.PlanInput) (activities.Planned, error) {
	return activities.Planned{Plan: id(1), Parts: e.parts, Bytes: 1 << 38}, nil
}
func (*ended) Reserve(context.Context, activities.ReserveInput) error { return nil }
func (*ended) LoadPart(ctx context.Context, _ activities.PartInput) (activities.PartLoaded, error) {
	for n := range 100 { // 10,000 blocks of 256 KiB each
		activity.RecordHeartbeat(ctx, api.LoadProgress{Cursor: n, Shards: 100, Bytes: int64(n) << 26, TotalBytes: 100 << 26})
	}
	return activities.PartLoaded{UFSRequests: 10_000, UFSBytes: 10_000 * stoker.BlockBytes}, nil
}
func (*ended) Verify(context.Context, activities.VerifyInput) (activities.Verified, error) {
	return activities.Verified{Certificate: id(200), State: api.CertificateReady, Objects: 1 << 20, ResidentObjects: 1 << 20}, nil
}

// A preload of a million blocks on a hundred workers, on a real server: a few
// hundred events in all, no input above 1 KiB, no result above 256 KiB.
func TestEventsOfALargePreload(t *testing.T) {
	c := realClient(t)
	w := worker.New(c.temporal, c.queue(), worker.Options{})
	registerWorkflows(w)
	w.RegisterActivity(&ended{parts: 100})
	if err := w.Start(); err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	manifest := id(7)
	join := activities.JoinInput{Dataset: "data", Generation: 1, Manifest: manifest, Job: "big", Owner: "uid:0", Run: "run"}
	if err := c.Join(t.Context(), join); err != nil {
		t.Fatal(err)
	}
	waitReady(t, c, manifest)
	if err := c.Leave(t.Context(), activities.LeaveInput{Manifest: manifest, Job: "big", Run: "run"}); err != nil {
		t.Fatal(err)
	}
	events, size := 0, 0
	for _, workflow := range []string{c.datasetID(manifest), fmt.Sprintf("load-%s-%s-0", c.cluster, id(1).Short()), fmt.Sprintf("load-%s-%s-1", c.cluster, id(1).Short())} {
		all := c.temporal.GetWorkflowHistory(t.Context(), workflow, "", false, enums.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT)
		for all.HasNext() {
			e, err := all.Next()
			if err != nil {
				t.Fatal(err)
			}
			events, size = events+1, size+e.Size()
			checkPayloads(t, e)
		}
	}
	t.Logf("%d events, %d bytes of history", events, size)
	if events < 300 || events > 600 || size > 200<<10 {
		t.Errorf("%d events in %d bytes: want a few hundred, about 3 for each of 100 parts", events, size)
	}
}

// checkPayloads measures what an activity takes and gives.
func checkPayloads(t *testing.T, e *history.HistoryEvent) {
	t.Helper()
	if a := e.GetActivityTaskScheduledEventAttributes(); a != nil && a.Input.Size() > 1<<10 {
		t.Errorf("%s takes %d bytes", a.ActivityType.Name, a.Input.Size())
	}
	if a := e.GetActivityTaskCompletedEventAttributes(); a != nil && a.Result.Size() > 256<<10 {
		t.Errorf("an activity gives %d bytes", a.Result.Size())
	}
}

// realClient is a client of a Temporal server that runs for this test.
func realClient(t *testing.T) *Client {
	t.Helper()
	dev, err := filepath.Abs(filepath.Join("..", "bin", "stoker-dev"))
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "d")
	run := func(args ...string) {
		if out, err := exec.Command(dev, args...).CombinedOutput(); err != nil {
			t.Errorf("%v: run `make build` first\n%s", err, out)
		}
	}
	t.Cleanup(func() { run("down", "--dir", dir) })
	run("up", "--dir", dir, "--workers", "1", "--detach")
	body, err := os.ReadFile(filepath.Join(dir, "cluster.json"))
	var d struct{ Ports map[string]int }
	if err == nil {
		err = json.Unmarshal(body, &d)
	}
	if err != nil {
		t.Fatal(err)
	}
	c, err := NewClient(ClientOptions{Address: fmt.Sprintf("127.0.0.1:%d", d.Ports["temporal"]), Cluster: "events", ReturnWindow: time.Minute, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}
