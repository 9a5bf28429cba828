package activities

import (
	"context"
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
