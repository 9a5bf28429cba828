package workflows

import (
	"testing"
	"time"

	"stoker.dev/activities"
	"stoker.dev/internal/api"
)

// hookClaim is a claim that nobody renews all the time.
func hookClaim(ttl time.Duration) JobInput {
	in := claim(OnMissWait, never)
	in.TTL, in.Grace = ttl, 7*time.Minute
	return in
}

// A hook's claim lives for its time after it was made or repeated, and needs no
// life line; its release is its end.
func TestHookClaimLives(t *testing.T) {
	for name, c := range map[string]struct {
		repeats []time.Duration // after the start
		release time.Duration   // 0 = its release is lost
		end     time.Duration
	}{
		"never repeated":  {nil, 0, 24 * time.Hour},
		"repeated":        {[]time.Duration{time.Hour, 20 * time.Hour}, 0, 44 * time.Hour},
		"repeated at end": {[]time.Duration{24*time.Hour - time.Second}, 0, 48*time.Hour - time.Second},
		"released":        {[]time.Duration{time.Hour}, 2 * time.Hour, 2 * time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			for _, d := range c.repeats {
				w.at(d, func() { w.SignalWorkflow(repeatSignal, nil) })
			}
			if c.release > 0 {
				w.at(c.release, func() { w.SignalWorkflow(releaseSignal, nil) })
			}
			w.at(time.Minute, func() { w.news(api.JobReady, nil) })
			s := w.runJob(hookClaim(24 * time.Hour))
			if s.State != api.JobReleased || s.Cancelled || w.count("Hold") != 0 {
				t.Errorf("%+v, %d holds", s, w.count("Hold"))
			}
			if got := s.Ended.Sub(start); got != c.end {
				t.Errorf("it ended after %s, want %s", got, c.end)
			}
		})
	}
}

// How long the data goes last after a job is told with its lease, and again
// with each renewal.
func TestGraceIsToldToTheWorkers(t *testing.T) {
	w := newWorld(t)
	w.at(time.Minute, func() { w.SignalWorkflow(releaseSignal, nil) })
	w.runJob(hookClaim(time.Hour))
	if joins := inputsOf[activities.JoinInput](w, "Join"); len(joins) != 1 || joins[0].Grace != 7*time.Minute {
		t.Errorf("joined with %+v", joins)
	}
	w = newWorld(t)
	w.at(time.Second, func() {
		w.joinAs(activities.JoinInput{Job: "j", Run: "run-j", Owner: "ann", Manifest: id(1), Grace: 7 * time.Minute})
	})
	w.at(time.Hour, func() {
		var d DatasetState
		w.query(&d)
		if l := d.Holders[0].Lease(id(1)); l.GraceSeconds != 420 || l.Holder != "j" || l.Owner != "ann" || l.Manifest != id(1) || l.TTLSeconds != activities.LeaseTTL.Seconds() {
			t.Errorf("renewed with %+v", l)
		}
		w.leaveAs("j")
	})
	w.runDataset()
	puts := inputsOf[activities.LeaseInput](w, "PutLeases")
	if len(puts) != 2 || len(puts[0].Leases) != 1 || puts[0].Leases[0].GraceSeconds != 420 || !puts[0].Partial || !puts[1].Partial || len(puts[1].Drop) != 1 {
		t.Errorf("the workers were told %+v", puts)
	}
}
