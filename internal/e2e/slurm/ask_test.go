package slurm

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"stoker.dev/internal/api"
)

// asked runs a command of Slurm that asks something, again if slurmctld does not
// answer: that says nothing of what was asked.
func (r *rig) asked(name string, args ...string) (res result) {
	r.t.Helper()
	r.eventually(name+" answers", func() bool {
		res = r.slurm(name, args...)
		return res.code == 0 || strings.Contains(res.stderr, "Invalid job id")
	})
	return res
}

// refused hands in what is wrong, again if it was taken because the controller did not
// answer in the time that slurmctld has for it: then slurmctld's log says so.
func (r *rig) refused(hand func() result) (res result) {
	r.t.Helper()
	const unchecked = "check: ok: not checked further"
	r.eventually("the controller answers slurmctld in time", func() bool {
		before := r.logged(unchecked)
		if res = hand(); r.logged(unchecked) == before {
			return true
		}
		r.slurm("scancel", "--user="+userName)
		return false
	})
	return res
}

// logged counts how often slurmctld's log says something.
func (r *rig) logged(what string) int {
	r.t.Helper()
	body, err := os.ReadFile(r.at("log", "slurmctld.log"))
	must(r.t, err)
	return bytes.Count(body, []byte(what))
}

// job shows what Slurm knows of a job, by key.
func (r *rig) job(id string) map[string]string {
	r.t.Helper()
	out := map[string]string{}
	for _, line := range strings.Split(r.asked("scontrol", "show", "job", id).out, "\n") {
		line = strings.TrimSpace(line)
		key, value, ok := strings.Cut(line, "=")
		if ok && (key == "Comment" || key == "SystemComment" || key == "AdminComment" || key == "BurstBuffer") {
			out[key] = value
			continue
		}
		for _, word := range strings.Fields(line) {
			if key, value, ok := strings.Cut(word, "="); ok {
				out[key] = value
			}
		}
		if i := strings.Index(line, "Reason="); i >= 0 {
			reason, _, _ := strings.Cut(line[i+len("Reason="):], " Dependency=")
			out["Reason"] = strings.ReplaceAll(reason, "_", " ") // scontrol prints blanks so
		}
	}
	return out
}

func (r *rig) state(id string) string { return r.job(id)["JobState"] }

func (r *rig) inState(id, state string) {
	r.t.Helper()
	r.eventually("job "+id+" is "+state, func() bool { return r.state(id) == state })
}

// output is what a job printed.
func (r *rig) output(id string) string {
	r.t.Helper()
	body, err := os.ReadFile(r.at("out", id+".out"))
	must(r.t, err)
	return string(body)
}

// claim shows the job's claim; its State is "" if there is none. A controller that
// does not answer yet is asked again.
func (r *rig) claim(id string) (st api.JobStatus) {
	r.t.Helper()
	var res result
	r.eventually("the controller tells of the claim of job "+id, func() bool {
		res = r.stoker("status", "slurm-ci-"+id, "-o", "json")
		return res.code == 0 || res.code == 3
	})
	if res.code == 0 {
		must(r.t, json.Unmarshal([]byte(res.out), &st))
	}
	return st
}

// claims lists all claims.
func (r *rig) claims() (all []api.JobLine) {
	r.t.Helper()
	must(r.t, json.Unmarshal([]byte(r.must("jobs", "-o", "json")), &all))
	return all
}

func (r *rig) claimIs(id string, states ...string) {
	r.t.Helper()
	r.eventually("the claim of job "+id+" is "+strings.Join(states, " or "), func() bool {
		st := r.claim(id).State
		for _, s := range states {
			if st == s {
				return true
			}
		}
		return false
	})
}

// released waits until the claim of a job has ended. A teardown that has just begun
// may be stopped by Slurm with whatever else it stops of a job that is cancelled, and
// is not begun again: then it is the reconciler that ends the claim.
func (r *rig) released(id string) {
	r.t.Helper()
	job, _, _ := strings.Cut(id, "+")
	r.eventually("the claim of job "+id+" has ended", func() bool {
		switch r.claim(id).State {
		case api.JobGrace, api.JobReleased, api.JobFailed, "":
			return true
		}
		if r.logged("teardown for JobId="+job+" terminated by slurmctld") > 0 {
			r.must("slurm", "reconcile", "--cluster", "ci")
		}
		return false
	})
}

// mounted lists the views below the jobs' folder on a node.
func (r *rig) mounted(node int) (dirs []string) {
	r.t.Helper()
	body, err := os.ReadFile(fmt.Sprintf("/proc/%d/mounts", r.nodes[node-1].cmd.Process.Pid))
	must(r.t, err)
	for _, line := range strings.Split(string(body), "\n") {
		f := strings.Fields(line)
		if len(f) > 2 && (strings.HasPrefix(f[2], "fuse") || f[2] == "erofs") && strings.HasPrefix(f[1], r.dir) {
			dirs = append(dirs, f[1])
		}
	}
	return dirs
}
