package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.temporal.io/api/operatorservice/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	sdklog "go.temporal.io/sdk/log"
	"google.golang.org/protobuf/types/known/durationpb"
)

// temporal is a client of the cluster's Temporal.
func (c *cluster) temporal(namespace string) client.Client {
	c.t.Helper()
	t, err := client.Dial(client.Options{HostPort: "127.0.0.1:" + c.port("temporal"), Namespace: namespace, Logger: silent{}})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(t.Close)
	return t
}

// port is where a role listens.
func (c *cluster) port(role string) string {
	body, err := os.ReadFile(filepath.Join(c.dir, "cluster.json"))
	var d struct{ Ports map[string]int }
	if err == nil {
		err = json.Unmarshal(body, &d)
	}
	if err != nil {
		c.t.Fatal(err)
	}
	return fmt.Sprint(d.Ports[role])
}

type silent struct{}

var _ sdklog.Logger = silent{}

func (silent) Debug(string, ...any) {}
func (silent) Info(string, ...any)  {}
func (silent) Warn(string, ...any)  {}
func (silent) Error(string, ...any) {}

// found lists what a query finds in Temporal: the types of the workflows.
func (c *cluster) found(t client.Client, query string) (types []string) {
	c.t.Helper()
	page, err := t.ListWorkflow(c.t.Context(), &workflowservice.ListWorkflowExecutionsRequest{Query: query})
	if err != nil {
		c.t.Fatalf("%s: %v", query, err)
	}
	for _, e := range page.Executions {
		types = append(types, e.Type.Name)
	}
	slices.Sort(types)
	return types
}

// Temporal's own UI finds the workflows of a dataset, of a job, and those in
// a phase, by what people call them.
func TestTemporalFindsWorkflowsByName(t *testing.T) {
	c := up(t, 1, "256MiB", func(root string) {
		makeFiles(t, filepath.Join(root, "a"), 20, 10<<10, 0, 0)
		makeFiles(t, filepath.Join(root, "b"), 10, 10<<10, 0, 0)
	})
	for _, name := range []string{"a", "b"} {
		c.must("dataset", "add", "set-"+name, "s3://data/"+name, "--endpoint", c.proxy.URL(), "--path-style")
	}
	c.must("submit", "--dataset", "set-a", "--dataset", "set-b", "--job-id", "both", "--", "true")
	c.must("preload", "set-b", "--wait")
	c.settled()
	tc := c.temporal("default")
	for query, want := range map[string]string{
		"StokerDataset = 'set-a'":                            "Catalog Dataset Job",
		"StokerDataset = 'set-b' AND WorkflowType = 'Job'":   "Job Job",
		"StokerJob = 'both'":                                 "Job",
		"StokerDataset = 'set'":                              "",
		"StokerPhase = 'Released' AND StokerJob = 'both'":    "Job",
		"StokerPhase = 'Ready' AND StokerDataset = 'set-a'":  "Dataset",
		"StokerPhase = 'Planned' AND StokerDataset ='set-a'": "",
	} {
		got := ""
		for end := time.Now().Add(time.Minute); time.Now().Before(end); <-time.After(50 * time.Millisecond) { // visibility is a little late
			if got = strings.Join(c.found(tc, query), " "); got == want {
				break
			}
		}
		if got != want {
			t.Errorf("%s finds %q, want %q", query, got, want)
		}
	}
}

// In a namespace that has not got the attributes the controller adds them,
// and works from the first moment, without them.
func TestControllerAddsSearchAttributes(t *testing.T) {
	c := up(t, 1, "256MiB", func(root string) { makeFiles(t, root, 20, 10<<10, 0, 0) })
	ns, err := client.NewNamespaceClient(client.Options{HostPort: "127.0.0.1:" + c.port("temporal"), Logger: silent{}})
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	err = ns.Register(t.Context(), &workflowservice.RegisterNamespaceRequest{Namespace: "bare", WorkflowExecutionRetentionPeriod: durationpb.New(72 * time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	c.kill("controller")
	socket := filepath.Join(t.TempDir(), "controller.sock")
	cmd := exec.Command(binary(t, "stokerd"), "controller", "--temporal", "127.0.0.1:"+c.port("temporal"), "--namespace", "bare",
		"--redis", "127.0.0.1:"+c.redisPort(), "--store", filepath.Join(c.dir, "store"), "--dir", t.TempDir(),
		"--listen-socket", socket, "--token-file", filepath.Join(c.dir, "token"))
	for _, kv := range c.env {
		if !strings.HasPrefix(kv, "STOKER_") {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	c.env = append(c.env, "STOKER_CONTROLLER=unix://"+socket)
	c.eventually("a dataset can be added", func() bool {
		return c.stoker("dataset", "add", "data", "s3://data", "--endpoint", c.proxy.URL(), "--path-style").code == 0
	})
	tc, n := c.temporal("bare"), 0
	c.eventually("jobs are found by their dataset", func() bool {
		n++
		c.must("submit", "--dataset", "data", "--job-id", fmt.Sprint("job-", n), "--", "true")
		all, err := tc.OperatorService().ListSearchAttributes(t.Context(), &operatorservice.ListSearchAttributesRequest{Namespace: "bare"})
		if err != nil || len(all.CustomAttributes) < 3 {
			return false
		}
		page, err := tc.ListWorkflow(t.Context(), &workflowservice.ListWorkflowExecutionsRequest{Query: "StokerDataset = 'data' AND StokerPhase = 'Released'"})
		return err == nil && len(page.Executions) > 0 // an error: it has not heard of them yet
	})
}
