package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.temporal.io/api/enums/v1"
	"go.temporal.io/api/history/v1"
	"go.temporal.io/api/temporalproto"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"google.golang.org/protobuf/reflect/protoreflect"

	"stoker.dev/internal/api"
)

// TestRecordHistories writes the histories that workflows replays in its
// tests, when STOKER_RECORD names their folder:
//
//	STOKER_RECORD=$PWD/workflows/testdata/history go test -run RecordHistories ./internal/e2e
//
// A changed workflow keeps the old ones and records new ones beside them.
func TestRecordHistories(t *testing.T) {
	dir := os.Getenv("STOKER_RECORD")
	if dir == "" {
		t.Skip("set STOKER_RECORD to record")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Run("small", func(t *testing.T) { recordSmall(t, dir) })
	t.Run("refused", func(t *testing.T) { recordRefused(t, dir) })
	t.Run("lost", func(t *testing.T) { recordLost(t, dir) })
	t.Run("cancelled", func(t *testing.T) { recordCancelled(t, dir) })
	t.Run("hook", func(t *testing.T) { recordHook(t, dir) })
	t.Run("paused", func(t *testing.T) { recordPaused(t, dir) })
	t.Run("queue", func(t *testing.T) { recordQueue(t, dir) })
	t.Run("scheduled", func(t *testing.T) { recordScheduled(t, dir) })
}

// recordSmall: a preload, and a submit of what is there.
func recordSmall(t *testing.T, dir string) {
	c := up(t, 2, "256MiB", func(root string) { makeFiles(t, root, 20, 20<<10, 0, 0) })
	c.add()
	c.must("preload", "data", "--wait")
	c.settled()
	seen := c.record(dir, "preload", nil)
	c.must("submit", "--dataset", "data", "--job-id", "train", "--", "true")
	c.settled()
	c.record(dir, "submit", seen)
}

// recordRefused: what can never fit is refused.
func recordRefused(t *testing.T, dir string) {
	c := up(t, 1, "64MiB", func(root string) { makeFiles(t, root, 0, 1, 1, 200<<20) })
	c.add()
	if r := c.stoker("preload", "data", "--wait"); r.code != 8 {
		t.Fatalf("%+v", r)
	}
	c.settled()
	seen := c.record(dir, "refused", nil)
	if r := c.stoker("submit", "--dataset", "data", "--job-id", "never", "--on-miss", "fail", "--deadline", "12s", "--", "true"); r.code != 8 {
		t.Fatalf("%+v", r)
	}
	c.settled()
	c.record(dir, "never", seen)
}

// recordQueue: a claim waits for the space of both its datasets, and gets it.
func recordQueue(t *testing.T, dir string) {
	c, _ := queueCluster(t)
	x := c.submits("x", "a", "b", "--", "sleep", "1000")
	c.inState("x", api.JobLeased)
	y := c.submits("y", "c", "d", "--", "true")
	c.inState("y", api.JobQueued)
	if r := c.stoker("submit", "--dataset", "set-big", "--job-id", "never", "--on-miss", "fail", "--", "true"); r.code != 8 {
		t.Fatalf("%+v", r)
	}
	_ = x.Process.Signal(os.Interrupt)
	_ = x.Wait()
	if err := y.Wait(); err != nil {
		t.Fatal(err)
	}
	c.settled()
	c.record(dir, "queue", nil)
}

// recordLost: a worker goes away in mid-load and returns; another time it
// stays away.
func recordLost(t *testing.T, dir string) {
	for name, back := range map[string]bool{"returned": true, "lost": false} {
		t.Run(name, func(t *testing.T) {
			var size int64
			window := map[bool]string{true: "60s", false: "3s"}[back]
			c := up(t, 2, "512MiB", func(root string) { size = makeFiles(t, root, 200, 100<<10, 2, 80<<20) }, "--return-window", window)
			c.add()
			reached, release := c.proxy.Hold(size * 4 / 10)
			defer release()
			done := c.preload()
			<-reached
			c.kill("worker-2")
			release()
			if back {
				c.eventually("the load waits for the worker", func() bool { return c.pending("AwaitReturn") })
				c.dev("start", "worker-2", "--dir", c.dir)
			}
			done()
			c.settled()
			c.record(dir, name, nil)
		})
	}
}

// pending reports whether a load waits for such an activity.
func (c *cluster) pending(activity string) bool {
	c.t.Helper()
	tc := c.temporal("default")
	page, err := tc.ListWorkflow(c.t.Context(), &workflowservice.ListWorkflowExecutionsRequest{Query: "WorkflowType IN ('Dataset', 'Load') AND ExecutionStatus = 'Running'"})
	if err != nil {
		c.t.Fatal(err)
	}
	for _, e := range page.Executions {
		d, err := tc.DescribeWorkflowExecution(c.t.Context(), e.Execution.WorkflowId, e.Execution.RunId)
		if err != nil {
			c.t.Fatal(err)
		}
		for _, a := range d.PendingActivities {
			if a.ActivityType.Name == activity {
				return true
			}
		}
	}
	return false
}

// recordCancelled: a submit is cancelled in mid-load.
func recordCancelled(t *testing.T, dir string) {
	var size int64
	c := up(t, 1, "256MiB", func(root string) { size = makeFiles(t, root, 200, 100<<10, 0, 0) })
	c.add()
	reached, release := c.proxy.Hold(size / 3)
	defer release()
	job, _ := c.background("submit", "--dataset", "data", "--job-id", "stopped", "--", "true")
	<-reached
	c.inState("stopped", api.JobWarming)
	c.must("cancel", "stopped")
	_ = job.Wait()
	c.settled()
	c.record(dir, "cancelled", nil)
}

// recordHook: a hook's claim, made twice and released; one whose release is lost.
func recordHook(t *testing.T, dir string) {
	c := up(t, 1, "64MiB", func(root string) { makeFiles(t, root, 20, 20<<10, 0, 0) })
	c.add()
	for range 2 {
		c.must("claim", "--job-id", "17", "--dataset", "data", "--submitted", "1772366400")
		c.must("wait", "17", "--timeout", "1m")
	}
	c.must("release", "17")
	c.settled()
	seen := c.record(dir, "hook", nil)
	c.must("claim", "--job-id", "18", "--dataset", "data", "--ttl", "2s")
	c.settled()
	c.record(dir, "expired", seen)
}

// recordScheduled: a dataset with a schedule that has its turn twice, the second
// time in vain; then a preload of which every byte is read again, and the end.
func recordScheduled(t *testing.T, dir string) {
	c := up(t, 1, "256MiB", func(root string) { makeFiles(t, root, 20, 20<<10, 0, 0) })
	c.must("dataset", "add", "data", "s3://data", "--endpoint", c.proxy.URL(), "--path-style", "--every", "24h")
	tc, bucket := c.temporal("default"), filepath.Join(c.root, "data")
	c.turn(tc, "data")
	if err := os.Rename(bucket, bucket+"-away"); err != nil {
		t.Fatal(err)
	}
	c.turn(tc, "data")
	if err := os.Rename(bucket+"-away", bucket); err != nil {
		t.Fatal(err)
	}
	c.must("preload", "data", "--verify", "deep", "--wait")
	c.settled()
	c.must("dataset", "sync", "data", "--every", "off")
	c.must("dataset", "rm", "data")
	c.record(dir, "scheduled", nil)
}

// recordPaused: a preload is paused in mid-load, and resumed.
func recordPaused(t *testing.T, dir string) {
	var size int64
	c := up(t, 1, "256MiB", func(root string) { size = makeFiles(t, root, 200, 100<<10, 0, 0) })
	c.add()
	reached, release := c.proxy.Hold(size / 3)
	defer release()
	done := c.preload()
	<-reached
	c.must("preload", "data", "--pause")
	release()
	c.must("preload", "data", "--resume")
	done()
	c.settled()
	c.record(dir, "paused", nil)
}

// record writes the histories of the workflows that have ended since.
func (c *cluster) record(dir, scenario string, before map[string]bool) (seen map[string]bool) {
	c.t.Helper()
	tc := c.temporal("default")
	seen = map[string]bool{}
	c.eventually("all workflows have ended", func() bool { return len(c.found(tc, "ExecutionStatus = 'Running'")) == 0 })
	page, err := tc.ListWorkflow(c.t.Context(), &workflowservice.ListWorkflowExecutionsRequest{})
	if err != nil {
		c.t.Fatal(err)
	}
	count := map[string]int{}
	for _, e := range page.Executions {
		seen[e.Execution.RunId] = true
		if before[e.Execution.RunId] {
			continue
		}
		kind := strings.ToLower(e.Type.Name)
		if count[kind]++; kind == "catalog" && scenario != "preload" {
			continue // all are alike
		}
		c.write(tc, e.Execution.WorkflowId, e.Execution.RunId, filepath.Join(dir, fmt.Sprintf("%s-%s-%d.json", scenario, kind, count[kind])))
	}
	if count["job"] == 0 {
		c.t.Fatalf("%s: no job among %v", scenario, count)
	}
	return seen
}

func (c *cluster) write(tc client.Client, id, run, path string) {
	c.t.Helper()
	var h history.History
	for it := tc.GetWorkflowHistory(c.t.Context(), id, run, false, enums.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT); it.HasNext(); {
		e, err := it.Next()
		if err != nil {
			c.t.Fatal(err)
		}
		anonymize(e.ProtoReflect())
		h.Events = append(h.Events, e)
	}
	body, err := temporalproto.CustomJSONMarshalOptions{}.Marshal(&h)
	if err != nil {
		c.t.Fatal(err)
	}
	var tidy bytes.Buffer // the marshaller's spaces are random
	if err := json.Indent(&tidy, body, "", " "); err != nil {
		c.t.Fatal(err)
	}
	for name, secret := range c.secrets() {
		if bytes.Contains(tidy.Bytes(), []byte(secret)) {
			c.t.Fatalf("%s is in the history of %s", name, id)
		}
	}
	if err := os.WriteFile(path, append(tidy.Bytes(), '\n'), 0o644); err != nil {
		c.t.Fatal(err)
	}
}

// anonymize takes away what names the machine and its processes: replay does
// not read it.
func anonymize(m protoreflect.Message) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		name := string(f.Name())
		switch {
		case f.Kind() == protoreflect.StringKind && !f.IsList() && !f.IsMap():
			switch {
			case name == "identity":
				m.Set(f, protoreflect.ValueOfString("recorded"))
			case name == "stack_trace" || strings.HasPrefix(name, "binary_checksum") || name == "build_id":
				m.Clear(f)
			case name == "name" && m.Descriptor().Name() == "TaskQueue" && v.String() != "stoker-default":
				m.Set(f, protoreflect.ValueOfString("sticky"))
			}
		case f.IsMap() && f.MapValue().Kind() == protoreflect.MessageKind:
			v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool { anonymize(v.Message()); return true })
		case f.IsList() && f.Kind() == protoreflect.MessageKind:
			for i := range v.List().Len() {
				anonymize(v.List().Get(i).Message())
			}
		case f.Kind() == protoreflect.MessageKind && !f.IsMap() && !f.IsList():
			anonymize(v.Message())
		}
		return true
	})
}
