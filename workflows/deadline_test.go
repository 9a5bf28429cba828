package workflows

import (
	"testing"
	"time"

	"stoker.dev"
	"stoker.dev/activities"
	"stoker.dev/internal/api"
)

// A worker that goes away in mid-load, or with its part loaded, is waited for no
// longer than the earliest deadline to come allows; one that has passed, or is of
// a job that was served, bounds nothing.
func TestDeadlineBoundsTheReturnWindow(t *testing.T) {
	const lostAt = 10 * time.Minute // the load takes so long; the window is a minute
	for name, c := range map[string]struct {
		deadlines []time.Duration // of jobs that join at the start, after it
		later     time.Duration   // of one that joins in mid-load; 0 = none does
		want      time.Duration   // after the worker was lost
	}{
		"none":           {nil, 0, time.Minute},
		"soon":           {[]time.Duration{2 * time.Hour, lostAt + 20*time.Second}, 0, 20 * time.Second},
		"far away":       {[]time.Duration{2 * time.Hour}, 0, time.Minute},
		"passed":         {[]time.Duration{5 * time.Minute}, 0, time.Minute},
		"joined":         {nil, lostAt + 30*time.Second, 30 * time.Second},
		"joined earlier": {[]time.Duration{lostAt + 50*time.Second}, lostAt + 15*time.Second, 15 * time.Second},
		"joined later":   {[]time.Duration{lostAt + 15*time.Second}, lostAt + 50*time.Second, 15 * time.Second},
	} {
		for _, when := range []string{"in mid-load", "in mid-load of a child", "when it had loaded"} {
			t.Run(name+" "+when, func(t *testing.T) {
				w := newWorld(t)
				w.parts, w.takes["LoadPart"] = 1, lostAt
				if when == "in mid-load of a child" {
					w.parts = partsInline + 1
				}
				w.back = func(int, activities.AwaitInput) (bool, error) { return true, nil }
				if when != "when it had loaded" {
					w.load = func(n int, _ activities.PartInput) (activities.PartLoaded, error) {
						return activities.PartLoaded{Lost: n == 1}, nil
					}
					w.mend = func(int, activities.MendInput) (activities.Mended, error) {
						return activities.Mended{Kept: id(70)}, nil
					}
				} else {
					w.check = func(n int, _ activities.VerifyInput) (activities.Verified, error) {
						if n == 1 {
							return activities.Verified{State: api.CertificateFailed, Certificate: id(99), Kind: stoker.KindIncomplete.String(), Again: true, Away: []int{0}}, nil
						}
						return activities.Verified{State: api.CertificateReady, Certificate: id(200)}, nil
					}
				}
				join := func(job string, deadline time.Duration) {
					in := joining(job)
					if in.Whole = true; deadline > 0 {
						in.Deadline = start.Add(deadline)
					}
					w.joinAs(in)
				}
				w.at(0, func() {
					join("plain", 0)
					for i, d := range c.deadlines {
						join(string(rune('a'+i)), d)
					}
				})
				if c.later > 0 {
					w.at(time.Minute, func() { join("later", c.later) })
				}
				w.at(3*time.Hour, func() {
					for _, job := range []string{"plain", "a", "b", "later"} {
						w.leaveAs(job)
					}
				})
				w.runDataset()
				waits := inputsOf[activities.AwaitInput](w, "AwaitReturn")
				if len(waits) != 1 {
					t.Fatalf("waited for %+v: %s", waits, w.story())
				}
				if got := waits[0].Until.Sub(start.Add(lostAt)); got < c.want-2*time.Second || got > c.want+2*time.Second {
					t.Errorf("it was waited for %s, want %s", got, c.want)
				}
			})
		}
	}
}
