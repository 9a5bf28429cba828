package control

import (
	"context"
	"net"
	"strings"
	"sync"
	"testing"

	"go.temporal.io/api/common/v1"
	"go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/api/workflow/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/converter"
	"google.golang.org/grpc"

	"stoker.dev/workflows"
)

// flowServer is as much of Temporal as answers questions: workflows
// of jobs and datasets, and what they say of themselves; flows_test.go has
// what changes them.
type flowServer struct {
	workflowservice.UnimplementedWorkflowServiceServer
	stop chan struct{}

	mu       sync.Mutex
	jobs     map[string]workflows.JobState     // +checklocks:mu — by workflow id
	sets     map[string]workflows.DatasetState // +checklocks:mu
	queue    *workflows.QueueState             // +checklocks:mu — nil: nobody waits
	asks     int                               // +checklocks:mu — lists of jobs so far
	repairs  []workflows.RepairInput           // +checklocks:mu — that were begun, in order
	repaired map[string]workflows.RepairState  // +checklocks:mu — by workflow id; its Copying: it runs yet

	signals []string      // +checklocks:mu — "release j", "renew j", ... in order
	looks   chan struct{} // gets one for each question, while somebody listens
}

// startFlows serves it on loopback until the test ends.
func startFlows(t testing.TB) (*flowServer, string) {
	t.Helper()
	f := &flowServer{stop: make(chan struct{}), looks: make(chan struct{}), jobs: map[string]workflows.JobState{}, sets: map[string]workflows.DatasetState{}}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	workflowservice.RegisterWorkflowServiceServer(s, f)
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { close(f.stop); s.Stop() })
	return f, l.Addr().String()
}

func (f *flowServer) add(job workflows.JobState) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.jobs["job-default-"+job.Input.Job] = job
}

func (f *flowServer) addSet(d workflows.DatasetState) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sets["dataset-default-"+d.Manifest.String()] = d
}

func (f *flowServer) GetSystemInfo(context.Context, *workflowservice.GetSystemInfoRequest) (*workflowservice.GetSystemInfoResponse, error) {
	return &workflowservice.GetSystemInfoResponse{ServerVersion: "1.0", Capabilities: &workflowservice.GetSystemInfoResponse_Capabilities{}}, nil
}

func (f *flowServer) DescribeNamespace(context.Context, *workflowservice.DescribeNamespaceRequest) (*workflowservice.DescribeNamespaceResponse, error) {
	return &workflowservice.DescribeNamespaceResponse{}, nil
}

func (f *flowServer) ListWorkflowExecutions(_ context.Context, r *workflowservice.ListWorkflowExecutionsRequest) (*workflowservice.ListWorkflowExecutionsResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := &workflowservice.ListWorkflowExecutionsResponse{}
	add := func(id string) {
		out.Executions = append(out.Executions, &workflow.WorkflowExecutionInfo{
			Execution: &common.WorkflowExecution{WorkflowId: id, RunId: "run"}, Status: enums.WORKFLOW_EXECUTION_STATUS_RUNNING})
	}
	switch running := strings.Contains(r.Query, "ExecutionStatus = 'Running'"); {
	case running && strings.Contains(r.Query, "'Job'"):
		f.asks++
		for id := range f.jobs {
			add(id)
		}
	case running && strings.Contains(r.Query, "'Dataset'"):
		for id := range f.sets {
			add(id)
		}
	}
	return out, nil
}

func (f *flowServer) QueryWorkflow(_ context.Context, r *workflowservice.QueryWorkflowRequest) (*workflowservice.QueryWorkflowResponse, error) {
	defer func() {
		select {
		case f.looks <- struct{}{}:
		default:
		}
	}()
	f.mu.Lock()
	defer f.mu.Unlock()
	var state any
	id := r.Execution.WorkflowId
	if j, ok := f.jobs[id]; ok {
		state = j
	} else if d, ok := f.sets[id]; ok {
		state = d
	} else if id == "queue-default" && f.queue != nil {
		state = f.queue
	} else if s, ok := f.repaired[id]; ok {
		state = s
	} else {
		return nil, serviceerror.ToStatus(serviceerror.NewNotFound("no such workflow")).Err()
	}
	p, err := converter.GetDefaultDataConverter().ToPayloads(state)
	return &workflowservice.QueryWorkflowResponse{QueryResult: p}, err
}

// The controller's own worker waits for tasks that never come.

func (f *flowServer) wait(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-f.stop:
	}
}

func (f *flowServer) PollWorkflowTaskQueue(ctx context.Context, _ *workflowservice.PollWorkflowTaskQueueRequest) (*workflowservice.PollWorkflowTaskQueueResponse, error) {
	f.wait(ctx)
	return &workflowservice.PollWorkflowTaskQueueResponse{}, nil
}

func (f *flowServer) PollActivityTaskQueue(ctx context.Context, _ *workflowservice.PollActivityTaskQueueRequest) (*workflowservice.PollActivityTaskQueueResponse, error) {
	f.wait(ctx)
	return &workflowservice.PollActivityTaskQueueResponse{}, nil
}
