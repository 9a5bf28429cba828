package workflows

import (
	"context"
	"testing"
	"time"

	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/converter"

	"stoker.dev/activities"
	"stoker.dev/internal/api"
)

// A job that asked for it is Ready when every byte was read again, and not
// before; those that did not ask do not wait for that, whenever they come. Wrong
// bytes are loaded again, and all is read again then.
func TestDeepVerification(t *testing.T) {
	w := newWorld(t)
	w.takes["Plan"], w.takes["Verify"] = time.Minute, 10*time.Minute
	deep := joining("careful")
	deep.Deep = true
	found := 0
	w.check = func(_ int, in activities.VerifyInput) (activities.Verified, error) {
		if !in.Deep {
			return activities.Verified{State: api.CertificateReady, Certificate: id(100)}, nil
		}
		if len(w.outcomes("plain")) != 1 || len(w.outcomes("late")) != 1 || len(w.outcomes("careful")) != 0 {
			t.Errorf("when all was read, plain knows %v, late %v, careful %v", w.outcomes("plain"), w.outcomes("late"), w.outcomes("careful"))
		}
		var d DatasetState
		if w.query(&d); !d.Deep || d.State != api.JobWarming {
			t.Errorf("while all is read: %+v", d)
		}
		if found++; found == 1 {
			return activities.Verified{State: api.CertificateFailed, Certificate: id(101), Kind: "incomplete", Again: true, Gone: 7}, nil
		}
		if in.Refetched.Lost != 7 {
			t.Errorf("what was wrong does not stand for it: %+v", in.Refetched)
		}
		return activities.Verified{State: api.CertificateReady, Certificate: id(102)}, nil
	}
	w.at(0, func() { w.joinAs(deep); w.joinAs(joining("plain")) })
	w.at(690*time.Second, func() { // all is being read
		w.mu.Lock()
		w.takes["Verify"] = time.Minute
		w.mu.Unlock()
		w.joinAs(joining("late"))
	})
	w.at(2*time.Hour, func() { w.leaveAs("careful"); w.leaveAs("plain"); w.leaveAs("late") })
	w.runDataset()
	for job, cert := range map[string]byte{"plain": 100, "late": 100, "careful": 102} {
		w.wantTold(job, api.JobReady, "")
		if got := w.outcomes(job)[0].Certificate; got != id(cert) {
			t.Errorf("%s has certificate %s", job, got.Short())
		}
	}
	if found != 2 || w.count("Plan") != 2 {
		t.Errorf("all was read %d times, planned %d times: %s", found, w.count("Plan"), w.story())
	}
}

// An activity that may take longer than a minute tells that it is alive: one
// whose controller was killed is begun anew, and not after days.
func TestActivitiesThatMayTakeLongBeat(t *testing.T) {
	w := newWorld(t)
	seen := map[string]bool{}
	w.SetOnActivityStartedListener(func(info *activity.Info, _ context.Context, _ converter.EncodedValues) {
		w.mu.Lock()
		defer w.mu.Unlock()
		seen[info.ActivityType.Name] = true
		if info.ActivityType.Name == "LoadPart" {
			return // it beats every half second; the environment does not tell the time-outs of a child's
		}
		if info.HeartbeatTimeout == 0 && info.Deadline.Sub(info.StartedTime) > 5*time.Minute {
			t.Errorf("%s may be silent for %v", info.ActivityType.Name, info.Deadline.Sub(info.StartedTime))
		}
		if info.HeartbeatTimeout > 30*time.Second {
			t.Errorf("%s: its controller's death is noticed after %v", info.ActivityType.Name, info.HeartbeatTimeout)
		}
	})
	w.joinAndLeave("a")
	w.runDataset()
	for _, name := range []string{"Plan", "Reserve", "LoadPart", "Verify"} {
		if !seen[name] {
			t.Errorf("%s was not seen", name)
		}
	}
}
