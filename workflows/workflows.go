// Package workflows holds what must happen even if every process dies: a job's
// claim, a dataset's preload, the catalog's changes. A workflow decides only;
// its side effects are the methods of activities.Activities. Client is how the
// controllers speak to workflows; no other package below cmd knows Temporal.
package workflows

import (
	"time"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"stoker.dev"
	"stoker.dev/activities"
	"stoker.dev/internal/api"
)

// Names of workflows, signals, updates and queries. They are in histories:
// never changed.
const (
	jobWorkflow     = "Job"
	datasetWorkflow = "Dataset"
	loadWorkflow    = "Load"
	catalogWorkflow = "Catalog"
	listWorkflow    = "List"
	syncWorkflow    = "Sync"
	removeWorkflow  = "Remove"
	queueWorkflow   = "Queue"
	repairWorkflow  = "Repair"

	scheduleWorkflow  = "Schedule"
	scheduledWorkflow = "ScheduledSync"

	newsSignal    = "dataset-state"
	startedSignal = "started"
	releaseSignal = "release"
	repeatSignal  = "repeat"
	turnSignal    = "turn"
	hurrySignal   = "hurry"
	joinUpdate    = "join"
	leaveUpdate   = "leave"
	pauseUpdate   = "pause"
	wishUpdate    = "wish"
	changeUpdate  = "change"
	enqueueUpdate = "enqueue"
	dequeueUpdate = "dequeue"
	statusQuery   = "status"
)

// do is nil: only its method names are used, to name activities.
var do *activities.Activities

// briefly is for activities that ask and answer.
func briefly(ctx workflow.Context, timeout time.Duration, attempts int32) workflow.Context {
	retry := activities.Retry
	retry.MaximumAttempts = attempts
	return workflow.WithActivityOptions(ctx, workflow.ActivityOptions{StartToCloseTimeout: timeout, RetryPolicy: &retry})
}

// How long an activity that tells its progress may be silent: a load's
// stream has a line twice a second, a listing speaks up every 10 s.
const (
	loadSilence = 10 * time.Second
	listSilence = time.Minute
	// aliveSilence is three times how often those say it that have nothing else
	// to tell. Users wait for no longer when their controller was killed.
	aliveSilence = 30 * time.Second
	// loadTries is often, because what ends a try is mostly the end of the
	// controller that ran it: the worker goes on, and is found again.
	loadTries = 50
)

// working is for those that may take long; silence 0: they tell no progress,
// only that they are alive, so that one whose controller died is begun anew.
func working(ctx workflow.Context, silence time.Duration, attempts int32) workflow.Context {
	if silence == 0 {
		silence = aliveSilence
	}
	retry := activities.Retry
	retry.MaximumAttempts = attempts
	return workflow.WithActivityOptions(ctx, workflow.ActivityOptions{
		StartToCloseTimeout: 7 * 24 * time.Hour, HeartbeatTimeout: silence,
		WaitForCancellation: true, RetryPolicy: &retry,
	})
}

// insisting is for what has to be done in the end, such as letting go.
func insisting(ctx workflow.Context) workflow.Context {
	retry := activities.Retry
	retry.MaximumAttempts, retry.MaximumInterval = 0, 30*time.Second
	return workflow.WithActivityOptions(ctx, workflow.ActivityOptions{
		StartToCloseTimeout: time.Minute, ScheduleToCloseTimeout: 24 * time.Hour, RetryPolicy: &retry,
	})
}

// errorBody makes what users see of an error.
func errorBody(err error) *api.ErrorBody {
	if err == nil {
		return nil
	}
	return api.ErrorOf(activities.FromTemporal("workflow", "", err))
}

func isKind(err error, k stoker.Kind) bool {
	return err != nil && stoker.KindOf(activities.FromTemporal("workflow", "", err)) == k
}

func isCanceled(err error) bool { return temporal.IsCanceledError(err) }
