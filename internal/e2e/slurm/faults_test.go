package slurm

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"stoker.dev/internal/api"
)

// restart ends slurmctld with a signal and starts it again.
func (r *rig) restart(sig syscall.Signal) {
	r.t.Helper()
	r.ctld.stop(r.t, sig)
	r.startCtld()
}

// Objects that cannot be had: a job that needs all of them is held, and its reason
// names them; one that starts anyway reads the rest.
func missingObjects(t *testing.T, r *rig) {
	r.dataset("holes", 12)
	gone := filepath.Join(r.root, "data", "holes", "n01", "img_00001.jpg")
	body, err := os.ReadFile(gone)
	must(t, err)
	must(t, os.Remove(gone))
	ran := r.at("out", "ran-with-holes")
	id := r.submit("#STOKER dataset=holes onmiss=wait\ntouch " + ran)
	r.eventually("the job is held", func() bool { return strings.Contains(r.job(id)["Reason"], "n01/img 00001.jpg (notexist)") })
	if j := r.job(id); j["JobState"] != "PENDING" || j["Priority"] != "0" {
		t.Errorf("it is %s with priority %s", j["JobState"], j["Priority"])
	}
	r.released(id)
	start := r.submit("#STOKER dataset=holes onmiss=start\nfind $STOKER_MOUNT -name '*.jpg' | wc -l")
	r.inState(start, "COMPLETED")
	if out := r.output(start); out != "12\n" {
		t.Errorf("it lists %q", out)
	}
	if _, err := os.Stat(ran); err == nil {
		t.Error("a job with onmiss=wait ran without its data")
	}
	must(t, os.WriteFile(gone, body, 0o644))
	r.must("dataset", "sync", "holes")
	r.slurm("scontrol", "release", id)
	r.inState(id, "COMPLETED")
	r.released(id)
}

// A stage-in that Slurm stops for its own time-out starts no job: a hook that was
// killed has given no verdict.
func timeout(t *testing.T, r *rig) {
	size := r.dataset("slow", 20)
	r.configure(map[string]string{"StageInTimeout": "2"})
	r.restart(syscall.SIGTERM)
	r.proxy.Reset()
	_, release := r.proxy.Hold(size / 2)
	defer release()
	ran := r.at("out", "ran-too-early")
	id := r.submit("#STOKER dataset=slow onmiss=wait\ntouch " + ran)
	r.eventually("the job is held", func() bool { j := r.job(id); return j["JobState"] == "PENDING" && j["Priority"] == "0" })
	r.released(id)
	if _, err := os.Stat(ran); err == nil {
		t.Error("a job with onmiss=wait ran without its data")
	}
	release()
	r.configure(nil)
	r.restart(syscall.SIGTERM)
	r.slurm("scontrol", "release", id)
	r.startNow(id)
	r.inState(id, "COMPLETED")
	r.released(id)
}

// slurmctld is restarted, and killed, while data comes: what has come is not
// fetched again, no job starts without its data, no claim stays behind for a job
// that Slurm forgot.
func restartInStageIn(t *testing.T, r *rig) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		name := "restart-" + fmt.Sprint(int(sig))
		size := r.dataset(name, 20)
		r.proxy.Reset()
		reached, release := r.proxy.Hold(size / 2)
		defer release()
		id := r.submit("#STOKER dataset=" + name + " onmiss=wait\ncat $(find $STOKER_MOUNT -type f) | wc -c")
		r.comes("the store stands still", reached)
		r.restart(sig)
		known := r.asked("scontrol", "show", "job", id).code == 0
		release()
		if !known { // killed before it had saved the job
			r.must("slurm", "reconcile", "--cluster", "ci")
			r.released(id)
			continue
		}
		r.startNow(id)
		r.inState(id, "COMPLETED")
		if out := r.output(id); out != fmt.Sprintln(size) {
			t.Errorf("after %v it read %q of %d", sig, out, size)
		}
		if got := r.proxy.Bytes(); got > size+size/4 { // what was under way when the claim was released
			t.Errorf("after %v %d bytes were fetched for %d", sig, got, size)
		}
		r.released(id)
	}
}

// A running job keeps its data over restarts of slurmctld, of the controller and
// of the node's worker, and lets it go at its end.
func restartWhileRunning(t *testing.T, r *rig) {
	r.dataset("runs", 8)
	end := r.at("out", "end")
	id := r.submit("#STOKER dataset=runs onmiss=wait\necho begun; while ! [ -e " + end + " ]; do sleep 0.1; done; find $STOKER_MOUNT -name '*.jpg' | wc -l")
	r.eventually("it has begun", func() bool { return r.outputIfAny(id) != "" }) // RUNNING it is before the Prolog has ended
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		r.restart(sig)
		r.kill("controller")
		r.dev("start", "controller", "--dir", r.at("stoker"))
		r.inState(id, "RUNNING")
		if st := r.claim(id); st.State != api.JobReady && st.State != api.JobLeased {
			t.Errorf("after %v its claim is %q", sig, st.State)
		}
	}
	if res := r.stoker("evict", "runs"); res.code != 11 {
		t.Errorf("evict of what a job reads exits %d\n%s", res.code, res.stderr)
	}
	must(t, os.WriteFile(end, nil, 0o644))
	r.inState(id, "COMPLETED")
	if out := r.output(id); out != "begun\n8\n" {
		t.Errorf("it read %q", out)
	}
	r.released(id)
	r.nothingMounted()
}

// While no controller answers jobs are taken. One with onmiss=wait waits for it;
// one with onmiss=start starts after a while, and reads its data all the same.
func controllerAway(t *testing.T, r *rig) {
	size := r.dataset("away", 8)
	read := "\ncat $(find $STOKER_MOUNT -type f) | wc -c"
	r.kill("controller")
	waits := r.submit("#STOKER dataset=away onmiss=wait" + read)
	// Slurm may hear of the end of a stage-in that it has begun together with another one
	// only when that one ends, too (docs/slurm.md, Limits).
	r.eventually("its stage-in has begun", func() bool { return r.job(waits)["BurstBufferState"] == "staging-in" })
	starts := r.submit("#STOKER dataset=away onmiss=start" + read)
	plain := r.submit("echo plain")
	r.inState(starts, "COMPLETED")
	r.inState(plain, "COMPLETED")
	if out := r.output(starts); out != fmt.Sprintln(size) {
		t.Errorf("without a controller it read %q of %d", out, size)
	}
	if st := r.state(waits); st != "PENDING" {
		t.Errorf("the job that waits for its data is %s", st)
	}
	r.dev("start", "controller", "--dir", r.at("stoker"))
	r.inState(waits, "COMPLETED")
	if out := r.output(waits); out != fmt.Sprintln(size) {
		t.Errorf("it read %q of %d", out, size)
	}
	if st := r.claim(waits); st.Owner != userName { // setup found no controller: data-in has claimed
		t.Errorf("its claim belongs to %q", st.Owner)
	}
	r.released(waits)

	r.proxy.Reset()
	size = r.dataset("away2", 20)
	reached, release := r.proxy.Hold(size / 2)
	defer release()
	id := r.submit("#STOKER dataset=away2 onmiss=wait" + read)
	r.comes("the store stands still", reached)
	r.kill("controller")
	r.dev("start", "controller", "--dir", r.at("stoker"))
	release()
	r.inState(id, "COMPLETED")
	if got := r.proxy.Bytes(); got != size {
		t.Errorf("%d bytes were fetched for %d", got, size)
	}
	r.released(id)
}

// A claim that its owner cancels holds the job; the reason says how to go on.
func cancelledClaim(t *testing.T, r *rig) {
	size := r.dataset("dropped", 20)
	r.proxy.Reset()
	reached, release := r.proxy.Hold(size / 2)
	defer release()
	id := r.submit("#STOKER dataset=dropped onmiss=wait\ntrue")
	r.comes("the store stands still", reached)
	cancel := func() {
		if res := r.as(r.at("bin", "stoker"), "cancel", "slurm-ci-"+id); res.code != 0 {
			t.Fatalf("the owner's cancel exits %d\n%s", res.code, res.stderr)
		}
	}
	cancel()
	r.eventually("the job is held", func() bool {
		if st := r.claim(id).State; st == api.JobPlanned || st == api.JobWarming { // it was setup's, and data-in claims once more
			cancel()
		}
		return strings.Contains(r.job(id)["Reason"], "its claim was cancelled")
	})
	r.slurm("scancel", id)
	r.released(id)
}

// The reconciler releases what Slurm does not know, keeps what it does, and does
// nothing while Slurm does not answer.
func reconciler(t *testing.T, r *rig) {
	r.dataset("kept", 2)
	r.must("slurm", "reconcile") // what a slurmctld that was stopped before had not torn down
	plain := r.submit("exec sleep 1000")
	live := r.submit("#STOKER dataset=kept\nexec sleep 1000")
	r.inState(plain, "RUNNING")
	r.inState(live, "RUNNING")
	// A job that vanished, and one whose id another has now, that has no data.
	for _, id := range []string{"99999", plain} {
		r.must("claim", "--job-id", "slurm-ci-"+id, "--submitted", "1772366400", "--dataset", "kept")
	}
	r.must("claim", "--job-id", "slurm-other-7", "--submitted", "1772366400", "--dataset", "kept")
	before := r.claim(live).ExpiresAt
	r.ctld.stop(r.t, syscall.SIGTERM)
	if res := r.stoker("slurm", "reconcile"); res.code == 0 {
		t.Errorf("without Slurm it exits 0: %s", res.out)
	}
	for _, id := range []string{"99999", plain} {
		if st := r.claim(id); !st.GraceUntil.IsZero() || st.State == api.JobReleased {
			t.Errorf("without Slurm the claim of %s is %s", id, st.State)
		}
	}
	r.startCtld()
	if out := r.must("slurm", "reconcile"); out != "kept 1, released 2\n" {
		t.Errorf("it says %q of\n%s", out, r.slurm("squeue", "--all", "--array", "--noheader", "--states=all", "--format=%A %T").out)
	}
	r.released("99999")
	r.released(plain)
	if st := r.claim(live); st.State != api.JobReady && st.State != api.JobLeased || !st.ExpiresAt.After(before) {
		t.Errorf("the claim of a running job is %s until %v, before %v", st.State, st.ExpiresAt, before)
	}
	r.must("release", "slurm-other-7")
	r.slurm("scancel", plain, live)
	r.released(live)
}
