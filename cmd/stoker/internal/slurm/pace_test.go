package slurm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"stoker.dev/internal/api"
)

// The sooner a job starts the more urgent its data is; without an estimate it is
// as urgent as any.
func TestPriorityOfAStart(t *testing.T) {
	now := time.Unix(1e9, 0)
	for left, want := range map[time.Duration]int{-time.Hour: 0, 0: 0, near: 0, near + time.Second: -1, near + time.Hour: -61, 30 * time.Hour: -1000} {
		if got := priorityAt(now.Add(left), now); got != want {
			t.Errorf("a start in %v: %d, want %d", left, got, want)
		}
	}
	if got := priorityAt(time.Time{}, now); got != 0 {
		t.Errorf("no estimate: %d", got)
	}
	for _, c := range []struct {
		was, now int
		worth    bool
	}{{0, 0, false}, {0, -1, true}, {-100, 0, true}, {-100, -99, false}, {-100, -79, true}, {-100, -121, true}, {7, -5, false}} {
		if got := worthIt(c.was, c.now); got != c.worth {
			t.Errorf("from %d to %d: %v", c.was, c.now, got)
		}
	}
}

// A claim gets the priority of the estimate, which is asked for once a minute, and sooner at first; that
// Slurm or the controller does not answer changes nothing.
func TestPace(t *testing.T) {
	var given []int
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var change api.JobChange
		if err := json.NewDecoder(r.Body).Decode(&change); err != nil || r.Method != http.MethodPatch || r.URL.Path != "/v1/jobs/slurm-c-7" {
			t.Errorf("%s %s: %v", r.Method, r.URL.Path, err)
		}
		given = append(given, *change.Priority)
		api.WriteJSON(w, http.StatusOK, api.JobStatus{})
	}))
	defer s.Close()
	c, err := api.NewController(api.ClientOptions{URL: s.URL})
	if err != nil {
		t.Fatal(err)
	}
	asked, start, fails := 0, time.Now().Add(3*time.Hour), error(nil)
	notes := 0
	h := &hooks{job: job{cluster: "c", id: 7}, Env: Env{Note: func(string, ...any) { notes++ }},
		startOf: func(context.Context, uint64) (time.Time, error) { asked++; return start, fails }}
	var p pacer
	st := api.JobStatus{State: api.JobWarming}
	p.pace(t.Context(), h, c, &st)
	p.pace(t.Context(), h, c, &st) // in the same minute
	p = pacer{}
	fails = errors.New("slurmctld is away")
	p.pace(t.Context(), h, c, &st)
	p, fails, start = pacer{}, nil, time.Now()
	st.Priority = -170
	p.pace(t.Context(), h, c, &st)
	p, st.State = pacer{}, api.JobReady
	p.pace(t.Context(), h, c, &st)
	if len(given) != 2 || given[0] > -170 || given[0] < -172 || given[1] != 0 || asked != 3 || notes != 1 {
		t.Errorf("priorities %v, asked %d times, %d notes", given, asked, notes)
	}
	synctest.Test(t, func(t *testing.T) {
		for _, estimate := range []time.Time{{}, time.Now()} { // the second is what Slurm says before it has planned
			asked, start = 0, estimate
			p := pacer{}
			st := api.JobStatus{State: api.JobWarming}
			var at []time.Duration
			for begin := time.Now(); time.Since(begin) < 3*time.Minute; <-time.After(time.Second / 2) {
				was := asked
				p.pace(t.Context(), h, c, &st) // nothing to change
				if asked > was {
					at = append(at, time.Since(begin).Round(time.Second))
				}
			}
			if fmt.Sprint(at) != "[0s 5s 15s 35s 1m15s 2m15s]" {
				t.Errorf("asked at %v", at)
			}
		}
	})
}
