package control

import (
	"strings"
	"testing"
	"time"

	"stoker.dev/activities"
	"stoker.dev/cache/placement"
	"stoker.dev/internal/api"
	"stoker.dev/workflows"
)

// A job that waits for space is Queued, whatever others load of its data, and says
// at which place and for how many bytes; so do the list and the metrics.
func TestPlaceOfAQueuedJob(t *testing.T) {
	waiting := func(job string, priority int) workflows.Waiting {
		return workflows.Waiting{Claim: activities.WaitingClaim{Job: job, Priority: priority},
			Why: activities.Admission{State: activities.AdmitWait, NeedBytes: 300, FreeBytes: 200, Why: "needs 300 B, 200 B free; held: cars by job x"}}
	}
	for name, c := range map[string]struct {
		state string
		queue []workflows.Waiting
		want  string
		place *api.QueuePlace
		why   string
	}{
		"first":             {api.JobPlanned, []workflows.Waiting{waiting("j", 2), waiting("k", 0)}, api.JobQueued, &api.QueuePlace{Place: 1, Of: 2, Priority: 2, NeededBytes: 300, FreeBytes: 200}, "place 1 of 2: needs 300 B, 200 B free; held: cars by job x"},
		"second":            {api.JobPlanned, []workflows.Waiting{waiting("k", 2), waiting("j", 0)}, api.JobQueued, &api.QueuePlace{Place: 2, Of: 2, NeededBytes: 300, FreeBytes: 200}, "behind job k: needs 300"},
		"just coming":       {api.JobPlanned, nil, api.JobQueued, nil, "waits for space"},
		"started on a miss": {api.JobDegraded, []workflows.Waiting{waiting("j", 0)}, api.JobDegraded, &api.QueuePlace{Place: 1, Of: 1, NeededBytes: 300, FreeBytes: 200}, ""},
		"ended":             {api.JobReleased, []workflows.Waiting{waiting("j", 0)}, api.JobReleased, nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			flows, address := startFlows(t)
			w := startWatched(t, address, placement.NewMem(time.Now))
			j := aJob("ann", c.state, workflows.JobDataset{Name: "pets", Manifest: number(1), Bytes: 1000})
			j.Queued = true
			flows.add(j)
			flows.addSet(workflows.DatasetState{Manifest: number(1), State: api.JobWarming})
			flows.mu.Lock()
			flows.queue = &workflows.QueueState{Waiting: c.queue}
			flows.mu.Unlock()
			st := decode[api.JobStatus](t, w.ask(t, watchedToken, "GET", "/v1/jobs/j", nil))
			why := ""
			if st.Error != nil {
				why = st.Error.Message
			}
			same := func(q *api.QueuePlace) bool { return (q == nil) == (c.place == nil) && (q == nil || *q == *c.place) }
			if st.State != c.want || !same(st.Queue) || !strings.Contains(why, c.why) || c.why == "" && why != "" {
				t.Errorf("%+v, %+v, %q", st, st.Queue, why)
			}
			lines := decode[[]api.JobLine](t, w.ask(t, watchedToken, "GET", "/v1/jobs", nil))
			if len(lines) != 1 || lines[0].State != c.want || !same(lines[0].Queue) {
				t.Errorf("%+v", lines)
			}
			if c.want == api.JobQueued && jobStates([]workflows.JobState{j}, nil)[api.JobQueued] != 1 {
				t.Error("it is not counted as queued")
			}
		})
	}
}
