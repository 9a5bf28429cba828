package workflows

import (
	"strings"
	"testing"
	"time"

	"stoker.dev/internal/api"
)

func (w *world) pauseAs(by string) *answer {
	a := &answer{t: w.t, what: "pause"}
	w.UpdateWorkflow(pauseUpdate, "pause-"+by+w.Now().String(), a, by)
	return a
}

// A paused load gives its space back and loads nothing, until it is resumed or
// another job needs the data. Then everybody who waits is served.
func TestPause(t *testing.T) {
	for name, c := range map[string]struct {
		goOn func(w *world)
		jobs []string
	}{
		"resumed":          {func(w *world) { w.pauseAs("") }, []string{"a"}},
		"another job came": {func(w *world) { w.joinAs(joining("b")) }, []string{"a", "b"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.takes["LoadPart"] = 10 * time.Minute
			w.at(0, func() { w.joinAs(joining("a")) })
			w.at(time.Minute, func() { w.pauseAs("ann") })
			w.at(30*time.Minute, func() {
				var d DatasetState
				w.query(&d)
				if d.State != api.JobQueued || d.PausedBy != "ann" || !strings.Contains(d.Why, "paused by ann") || len(w.outcomes("a")) != 0 {
					t.Errorf("paused: %+v", d)
				}
				if n := w.count("Plan"); n != 1 {
					t.Errorf("while it was paused %d plans were made", n)
				}
				if w.count("GiveBack") == 0 {
					t.Error("its space was not given back")
				}
				c.goOn(w)
			})
			w.at(time.Hour, func() {
				for _, j := range c.jobs {
					w.wantTold(j, api.JobReady, "")
					w.leaveAs(j)
				}
			})
			w.runDataset()
			if n := w.count("Plan"); n != 2 {
				t.Errorf("%d plans were made, want 2", n)
			}
		})
	}
}

// A pause before there is anything to load, or of what nobody needs any more,
// keeps nothing alive.
func TestPauseEndsWithItsJobs(t *testing.T) {
	w := newWorld(t)
	w.takes["LoadPart"] = 10 * time.Minute
	w.at(0, func() { w.joinAs(joining("a")) })
	w.at(time.Minute, func() { w.pauseAs("ann") })
	w.at(2*time.Minute, func() { w.leaveAs("a") })
	w.runDataset()
	if d := w.Now().Sub(start); d > 15*time.Minute {
		t.Errorf("it ended after %s", d)
	}
}
