package workflows

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/worker"
)

// Workflows that began under an older release go on under this one: every
// recorded history (see TestRecordHistories in internal/e2e) leads to the
// same commands.
func TestReplay(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("testdata", "history", "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[string]int{}
	for _, f := range files {
		name := strings.TrimSuffix(filepath.Base(f), ".json")
		kinds[strings.Split(name, "-")[1]]++
		t.Run(name, func(t *testing.T) { replay(t, f) })
	}
	for _, kind := range []string{jobWorkflow, datasetWorkflow, loadWorkflow, catalogWorkflow, syncWorkflow, removeWorkflow, scheduleWorkflow, scheduledWorkflow, queueWorkflow} {
		if kinds[strings.ToLower(kind)] == 0 {
			t.Errorf("there is no history of a %s workflow", kind)
		}
	}
}

func replay(t *testing.T, file string) {
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h, err := client.HistoryFromJSON(f, client.HistoryJSONOptions{})
	if err != nil {
		t.Fatal(err)
	}
	r := worker.NewWorkflowReplayer()
	registerWorkflows(r)
	if err := r.ReplayWorkflowHistory(nil, h); err != nil {
		t.Error(err)
	}
}
