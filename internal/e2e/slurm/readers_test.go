package slurm

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// jobSubmit gives the rig's Slurm the job_submit.lua, and takes it away again.
func (r *rig) jobSubmit() (without func()) {
	r.t.Helper()
	body, err := os.ReadFile(filepath.Join("..", "..", "..", "deploy", "slurm", "job_submit.lua"))
	must(r.t, err)
	must(r.t, os.WriteFile(r.at("etc", "job_submit.lua"), body, 0o644))
	conf, err := os.ReadFile(r.at("etc", "slurm.conf"))
	must(r.t, err)
	must(r.t, os.WriteFile(r.at("etc", "slurm.conf"), append(conf, "JobSubmitPlugins=lua\n"...), 0o644))
	r.restart(syscall.SIGTERM)
	return func() {
		r.configure(nil)
		must(r.t, os.Remove(r.at("etc", "job_submit.lua")))
		r.restart(syscall.SIGTERM)
	}
}

// A job gets no data that its user may not read: not if it is submitted, where
// job_submit.lua says so at once, not if it is staged in, and not on a node that no
// controller tells of its claim. Who may read it has it for himself.
func readers(t *testing.T, r *rig) {
	size := r.dataset("secret", 4)
	r.dataset("open", 2)
	r.must("dataset", "set", "secret", "--readers", "carol")
	ran, says := r.at("out", "ran-secret"), userName+" may not read it"
	job := "#STOKER dataset=secret onmiss=start\ntouch " + ran

	id := r.submit(job)
	r.eventually("it is held", func() bool { j := r.job(id); return strings.Contains(j["Reason"], says) && j["Priority"] == "0" })
	r.slurm("scancel", id)
	r.released(id)

	r.kill("controller")
	id = r.submit(job)
	r.eventually("its node holds it", func() bool { j := r.job(id); return strings.Contains(j["Comment"], says) && j["JobState"] == "PENDING" })
	r.slurm("scancel", id)
	r.dev("start", "controller", "--dir", r.at("stoker"))
	r.released(id)

	defer r.jobSubmit()()
	for lines, says := range map[string]string{
		job: says,
		"# a comment\n#STOKER dataset=open\n\n#STOKER dataset=secret path=n00\ntouch " + ran: says,
		"#STOKER dataset=secret'; touch " + ran + "; '":                                      "'",
		"#STOKER dataset=secret$(touch " + ran + ")":                                         "secret$(touch",
	} {
		if res := r.refused(func() result { return r.try(lines) }); res.code == 0 || !strings.Contains(res.stderr, says) {
			t.Errorf("%q: exit %d, want %q\n%s", lines, res.code, says, res.stderr)
		}
	}
	srun := func() result { return r.as("timeout", "60", "srun", "--bb=#STOKER dataset=secret", "touch", ran) } // one that is taken waits
	if res := r.refused(srun); res.code == 0 || !strings.Contains(res.stderr, says) {
		t.Errorf("srun: exit %d\n%s", res.code, res.stderr)
	}
	if _, err := os.Stat(ran); err == nil {
		t.Error("a job ran without the right to its data")
	}
	r.must("dataset", "set", "secret", "--readers", "+"+userName)
	id = r.submit("#STOKER dataset=secret onmiss=wait\nstat -c '%a %u' $STOKER_MOUNT; cat $(find $STOKER_MOUNT -type f) | wc -c\n#STOKER dataset=behind-the-first-command")
	r.inState(id, "COMPLETED")
	if out := r.output(id); out != fmt.Sprintf("700 %d\n%d\n", userID, size) {
		t.Errorf("a reader's job says %q", out)
	}
	r.released(id)
	r.nothingMounted()
}
