package control

import (
	"context"

	"go.temporal.io/api/common/v1"
	"go.temporal.io/api/enums/v1"
	"go.temporal.io/api/history/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/api/workflow/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/converter"
	"google.golang.org/protobuf/types/known/timestamppb"

	"stoker.dev/internal/api"
	"stoker.dev/workflows"
)

func notFound(what string) error { return serviceerror.ToStatus(serviceerror.NewNotFound(what)).Err() }

// What of Temporal changes jobs: they are started, told, renewed and ended.

// StartWorkflowExecution begins a job, which stays Planned.
func (f *flowServer) StartWorkflowExecution(_ context.Context, r *workflowservice.StartWorkflowExecutionRequest) (*workflowservice.StartWorkflowExecutionResponse, error) {
	if r.WorkflowType.Name == "Repair" {
		return f.repair(r)
	}
	var in workflows.JobInput
	if err := converter.GetDefaultDataConverter().FromPayloads(r.Input, &in); err != nil {
		return nil, err
	}
	f.add(workflows.JobState{Input: in, State: api.JobPlanned, Outcomes: make([]workflows.Outcome, len(in.Datasets))})
	return &workflowservice.StartWorkflowExecutionResponse{RunId: "run"}, nil
}

// repair notes a repair, unless one of the same data runs. It ends at once.
func (f *flowServer) repair(r *workflowservice.StartWorkflowExecutionRequest) (*workflowservice.StartWorkflowExecutionResponse, error) {
	var in workflows.RepairInput
	if err := converter.GetDefaultDataConverter().FromPayloads(r.Input, &in); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.repaired[r.WorkflowId].Copying {
		return nil, serviceerror.ToStatus(serviceerror.NewWorkflowExecutionAlreadyStarted("it runs", "", "run")).Err()
	}
	f.repairs = append(f.repairs, in)
	if f.repaired == nil {
		f.repaired = map[string]workflows.RepairState{}
	}
	f.repaired[r.WorkflowId] = workflows.RepairState{Input: in}
	return &workflowservice.StartWorkflowExecutionResponse{RunId: "run"}, nil
}

// SignalWorkflowExecution notes the signal; release ends the job.
func (f *flowServer) SignalWorkflowExecution(_ context.Context, r *workflowservice.SignalWorkflowExecutionRequest) (*workflowservice.SignalWorkflowExecutionResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	id := r.WorkflowExecution.WorkflowId
	j, ok := f.jobs[id]
	if !ok {
		return nil, notFound("no such workflow")
	}
	f.signals = append(f.signals, r.SignalName+" "+j.Input.Job)
	if r.SignalName == "release" {
		j.State = api.JobReleased
		f.jobs[id] = j
	}
	return &workflowservice.SignalWorkflowExecutionResponse{}, nil
}

// RecordActivityTaskHeartbeatById renews a job that has not ended.
func (f *flowServer) RecordActivityTaskHeartbeatById(_ context.Context, r *workflowservice.RecordActivityTaskHeartbeatByIdRequest) (*workflowservice.RecordActivityTaskHeartbeatByIdResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if j, ok := f.jobs[r.WorkflowId]; !ok || api.Settled(j.State) && j.State != api.JobReady && j.State != api.JobDegraded {
		return nil, notFound("no such activity")
	}
	f.signals = append(f.signals, "renew "+f.jobs[r.WorkflowId].Input.Job)
	return &workflowservice.RecordActivityTaskHeartbeatByIdResponse{}, nil
}

// DescribeWorkflowExecution says whether a job has ended.
func (f *flowServer) DescribeWorkflowExecution(_ context.Context, r *workflowservice.DescribeWorkflowExecutionRequest) (*workflowservice.DescribeWorkflowExecutionResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	status := enums.WORKFLOW_EXECUTION_STATUS_RUNNING
	if s, ok := f.repaired[r.Execution.WorkflowId]; ok {
		if !s.Copying {
			status = enums.WORKFLOW_EXECUTION_STATUS_COMPLETED
		}
		return &workflowservice.DescribeWorkflowExecutionResponse{WorkflowExecutionInfo: &workflow.WorkflowExecutionInfo{
			Execution: &common.WorkflowExecution{WorkflowId: r.Execution.WorkflowId, RunId: "run"}, Status: status, StartTime: timestamppb.Now()}}, nil
	}
	switch j, ok := f.jobs[r.Execution.WorkflowId]; {
	case !ok:
		return nil, notFound("no such workflow")
	case j.State == api.JobReleased || j.State == api.JobFailed:
		status = enums.WORKFLOW_EXECUTION_STATUS_COMPLETED
	}
	return &workflowservice.DescribeWorkflowExecutionResponse{WorkflowExecutionInfo: &workflow.WorkflowExecutionInfo{Status: status}}, nil
}

// GetWorkflowExecutionHistory tells the end of a job.
func (f *flowServer) GetWorkflowExecutionHistory(context.Context, *workflowservice.GetWorkflowExecutionHistoryRequest) (*workflowservice.GetWorkflowExecutionHistoryResponse, error) {
	return &workflowservice.GetWorkflowExecutionHistoryResponse{History: &history.History{Events: []*history.HistoryEvent{{
		EventType:  enums.EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED,
		Attributes: &history.HistoryEvent_WorkflowExecutionCompletedEventAttributes{WorkflowExecutionCompletedEventAttributes: &history.WorkflowExecutionCompletedEventAttributes{}},
	}}}}, nil
}
