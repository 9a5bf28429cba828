package slurm

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"stoker.dev/internal/api"
)

// From an empty Slurm to a job that reads: one directive, staged in before the
// job starts, mounted on both nodes, read, unmounted, released.
func TestSlurm(t *testing.T) {
	r := newRig(t)
	for _, s := range []struct {
		name string
		run  func(*testing.T, *rig)
	}{
		{"FirstJob", firstJob},
		{"SubmitChecks", submitChecks},
		{"HomeOfAnother", homeOfAnother},
		{"Parts", parts},
		{"Sampler", sampler},
		{"HostileDirectives", hostileDirectives},
		{"OptionsAndSeveral", optionsAndSeveral},
		{"Readers", readers},
		{"ForeignFolder", foreignFolder},
		{"CancelInEveryPhase", cancelInEveryPhase},
		{"Requeue", requeue},
		{"Array", array},
		{"Dependency", dependency},
		{"LookAhead", lookAhead},
		{"LayoutLocal", layoutLocal},
		{"Spank", spankOption},
		{"Polls", polls},
		{"Container", container},
		{"PyTorch", pytorch},
		{"Timeline", timeline},
		{"MissingObjects", missingObjects},
		{"Timeout", timeout},
		{"RestartInStageIn", restartInStageIn},
		{"RestartWhileRunning", restartWhileRunning},
		{"ControllerAway", controllerAway},
		{"CancelledClaim", cancelledClaim},
		{"Reconciler", reconciler},
		{"LostBeforeTheStart", lostBeforeTheStart},
		{"NodeWithoutWorker", nodeWithoutWorker},
	} {
		if s.name == "PyTorch" && os.Getenv("STOKER_TEST_LONG") == "" {
			continue // torch takes 300 MB
		}
		t.Run(s.name, func(t *testing.T) {
			r.t = t
			r.slurm("scancel", "--user="+userName) // a slurmctld that was killed runs again what ended in the seconds before
			r.eventually("the nodes are idle", func() bool { return strings.TrimSpace(r.slurm("sinfo", "-h", "-o", "%T %D").out) == "idle 2" })
			defer func() { r.t = r.whole }()
			s.run(t, r)
		})
	}
}

func firstJob(t *testing.T, r *rig) {
	size := r.dataset("first", 40)
	r.proxy.Reset()
	reached, release := r.proxy.Hold(size / 2)
	defer release()
	id := r.submit(`#STOKER dataset=first
srun sh -c 'cat $(find "$STOKER_MOUNT" -type f) | wc -c; echo "$STOKER_JOB"'`, "-N2", "--ntasks-per-node=1")
	r.comes("the store stands still", reached)
	if st := r.state(id); st != "PENDING" {
		t.Errorf("half of its data is there, and it is %s", st)
	}
	r.eventually("bbstat tells how far it is", func() bool {
		return strings.Contains(r.as("scontrol", "show", "bbstat", id).out, "slurm-ci-"+id+": Warming")
	})
	release()
	r.inState(id, "COMPLETED")
	want := fmt.Sprintf("%d\nslurm-ci-%s\n", size, id)
	if out := r.output(id); strings.Count(out, fmt.Sprint(size)) != 2 || strings.Count(out, "slurm-ci-"+id) != 2 {
		t.Errorf("the job printed %q, want %q of both nodes", out, want)
	}
	if got := r.proxy.Bytes(); got != size {
		t.Errorf("%d bytes were fetched for %d", got, size)
	}
	r.released(id)
	r.nothingMounted()
	if st := r.claim(id); st.State != api.JobGrace || st.Owner != userName {
		t.Errorf("the claim is %+v", st)
	}
}
