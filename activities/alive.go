package activities

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"go.temporal.io/sdk/activity"

	"stoker.dev/internal/api"
)

// beatEvery is how often an activity says that it is alive, whatever its store
// or the workers do.
const beatEvery = 10 * time.Second

// alive says so until stop is called: a slow answer is not a controller that
// died. Outside Temporal there is nobody to tell.
func alive(ctx context.Context) (stop func()) {
	if !activity.IsActivity(ctx) {
		return func() {}
	}
	return beat(ctx, func() { activity.RecordHeartbeat(ctx) })
}

// telling repeats the last progress of a listing until stop is called.
func telling(ctx context.Context, last *atomic.Pointer[api.ListProgress]) (stop func()) {
	return beat(ctx, func() { activity.RecordHeartbeat(ctx, *last.Load()) })
}

var errStopped = errors.New("this controller is being stopped; another one goes on")

// untilStopped is ctx that ends, with errStopped as its cause, when this
// controller is being stopped: early enough for the answer to reach Temporal,
// which gives the rest to another one at once, not when nobody was heard of the
// work for its time. Call done in any case.
func untilStopped(ctx context.Context) (run context.Context, done func()) {
	run, cancel := context.WithCancelCause(ctx)
	stopped, ended := activity.GetWorkerStopChannel(ctx), make(chan struct{})
	go func() {
		defer close(ended)
		select {
		case <-stopped:
			cancel(errStopped)
		case <-run.Done():
		}
	}()
	return run, func() {
		cancel(nil)
		<-ended
	}
}

func beat(ctx context.Context, tell func()) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(beatEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				tell()
			case <-ctx.Done():
				return
			}
		}
	}()
	return func() {
		cancel()
		<-ended
	}
}
