package control

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"stoker.dev"
	"stoker.dev/internal/api"
	"stoker.dev/workflows"
)

// waiting asks for the claims that wait for space, once for all who look.
type waiting struct {
	flows *workflows.Client

	mu    sync.Mutex
	state workflows.QueueState // +checklocks:mu
	asked time.Time            // +checklocks:mu
}

// get returns those that waited at most progressAge ago, as far as can be known.
func (q *waiting) get(ctx context.Context) []workflows.Waiting {
	q.mu.Lock()
	defer q.mu.Unlock()
	if time.Since(q.asked) > progressAge {
		s, err := q.flows.Queue(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err == nil { // else the last answer is the best there is
			q.state = s
		}
		q.asked = time.Now()
	}
	return q.state.Waiting
}

// queued completes the status of a job that waits for space.
func (c *Controller) queued(ctx context.Context, s *workflows.JobState, st *api.JobStatus) {
	if s.State != api.JobPlanned && s.State != api.JobDegraded {
		return
	}
	why := "waits for space"
	all := c.waiting.get(ctx)
	i := slices.IndexFunc(all, func(w workflows.Waiting) bool { return w.Claim.Job == s.Input.Job })
	if i >= 0 { // else it is just coming or going
		w := &all[i]
		st.Queue = &api.QueuePlace{Place: i + 1, Of: len(all), Priority: w.Claim.Priority, NeededBytes: w.Why.NeedBytes, FreeBytes: w.Why.FreeBytes}
		why = fmt.Sprintf("place %d of %d: %s", i+1, len(all), w.Why.Why)
		if i > 0 {
			why = fmt.Sprintf("place %d of %d, behind job %s: needs %s", i+1, len(all), all[0].Claim.Job, api.HumanBytes(w.Why.NeedBytes))
		}
	}
	if s.State == api.JobPlanned {
		st.State, st.Error = api.JobQueued, &api.ErrorBody{Kind: stoker.KindNoSpace.String(), Message: why}
	}
}
