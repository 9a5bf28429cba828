package slurm

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"stoker.dev/internal/testenv"
)

// spank gives the rig's Slurm the plugin, built as `make spank` does, and its
// job_submit.lua.
func (r *rig) spank(place string) {
	r.t.Helper()
	testenv.Program(r.t, "gcc")
	repo, err := filepath.Abs(filepath.Join("..", "..", ".."))
	must(r.t, err)
	plugin := r.at("etc", "stoker.so")
	if out, err := exec.Command("make", "-C", repo, "spank", "SPANK="+plugin).CombinedOutput(); err != nil {
		r.t.Fatalf("make spank: %v\n%s", err, out)
	}
	body, err := os.ReadFile(filepath.Join(repo, "deploy", "slurm", "job_submit.lua"))
	must(r.t, err)
	must(r.t, os.WriteFile(r.at("etc", "job_submit.lua"), body, 0o644))
	must(r.t, os.WriteFile(r.at("etc", "plugstack.conf"), []byte("required "+plugin+" root="+r.at("jobs")+" place="+place+"\n"), 0o644))
	conf, err := os.ReadFile(r.at("etc", "slurm.conf"))
	must(r.t, err)
	must(r.t, os.WriteFile(r.at("etc", "slurm.conf"), append(conf, "JobSubmitPlugins=lua\nPlugStackConfig="+r.at("etc", "plugstack.conf")+"\n"...), 0o644))
	r.restart(syscall.SIGTERM)
}

// withoutSpank takes it away again.
func (r *rig) withoutSpank() {
	r.configure(nil)
	must(r.t, os.Remove(r.at("etc", "plugstack.conf")))
	must(r.t, os.Remove(r.at("etc", "job_submit.lua")))
	r.restart(syscall.SIGTERM)
}

// sorted are the lines of what several tasks printed.
func sorted(out string) []string { return slices.Sorted(strings.SplitSeq(out, "\n")) }

// seen lists a folder as a process of a node sees it that is no task of a job.
func (r *rig) seen(node int, dir string) string {
	r.t.Helper()
	out, err := exec.Command("nsenter", "--mount", fmt.Sprintf("--target=%d", r.nodes[node-1].cmd.Process.Pid), "ls", dir).CombinedOutput()
	if err != nil {
		r.t.Fatalf("ls %s: %v\n%s", dir, err, out)
	}
	return strings.TrimSpace(string(out))
}

// --dataset is a directive, and each task has the data at the folder that the user
// wished, read-only and for itself: neither the node nor another job on it sees it
// there, and nothing is left of it.
func spankOption(t *testing.T, r *rig) {
	size := r.dataset("private", 12)
	other := r.dataset("other", 4)
	place, own := r.at("place"), r.at("out", "own-place")
	for dir, uid := range map[string]int{place: 0, own: userID} {
		must(t, os.Mkdir(dir, 0o755))
		must(t, os.Chown(dir, uid, uid*groupID/userID))
	}
	r.spank(place)
	defer r.withoutSpank()

	r.proxy.Reset()
	reached, release := r.proxy.Hold(size / 2)
	defer release()
	gate := r.at("out", "private-gate")
	read := `sh -c 'cat $(find ` + own + `/ -type f) | wc -c; touch ` + own + `/x 2>/dev/null || echo read-only; echo $STOKER_MOUNT; touch ` + gate + `-$SLURM_JOB_ID-$SLURM_PROCID; while ! [ -e ` + gate + ` ]; do sleep 0.1; done'`
	first := r.submit("#SBATCH --dataset=private@1="+own+" --dataset-options='onmiss=wait deadline=1h'\nls "+own+" | wc -l\nsrun "+read, "-N2", "--ntasks-per-node=1")
	defer r.slurm("scancel", first)
	r.comes("the store stands still", reached)
	if st := r.state(first); st != "PENDING" || r.job(first)["BurstBuffer"] != "#STOKER dataset=private@1 onmiss=wait deadline=1h" {
		t.Errorf("half of its data is there, and it is %s: %+v", st, r.job(first))
	}
	release()
	second := r.submit("srun "+read, "-w", "worker-1", "--dataset=other="+own)
	defer r.slurm("scancel", second)
	r.eventually("three tasks read", func() bool { found, _ := filepath.Glob(gate + "-*"); return len(found) == 3 })
	for node := 1; node <= 2; node++ {
		if got := r.seen(node, own); got != "" {
			t.Errorf("on node %d others see %q at the folder of the jobs", node, got)
		}
	}
	if got := r.seen(1, r.at("jobs", first, "private")); !strings.Contains(got, "n03") {
		t.Errorf("the job's own mount shows %q", got)
	}
	must(t, os.WriteFile(gate, nil, 0o644))
	for id, want := range map[string]string{first: "4\n" + strings.Repeat(fmt.Sprintf("%d\nread-only\n%s\n", size, own), 2), second: fmt.Sprintf("%d\nread-only\n%s\n", other, own)} {
		r.inState(id, "COMPLETED")
		if out := r.output(id); !slices.Equal(sorted(out), sorted(want)) {
			t.Errorf("job %s printed %q, want %q", id, out, want)
		}
		r.released(id)
	}
	if got := r.proxy.Bytes(); got != size+other {
		t.Errorf("%d bytes were fetched for %d", got, size+other)
	}
	r.nothingMounted()
	for node := 1; node <= 2; node++ {
		if got := r.seen(node, own); got != "" {
			t.Errorf("%q is left on node %d", got, node)
		}
	}

	// srun and salloc; the site's place; several, of which one has a folder.
	if res := r.as("srun", "--dataset=private", "sh", "-c", "echo $STOKER_MOUNT; ls "+place); res.code != 0 || res.out != place+"\nn00\nn01\nn02\nn03\n" {
		t.Errorf("srun: exit %d, %q\n%s", res.code, res.out, res.stderr)
	}
	res := r.as("salloc", "--bb=#STOKER dataset=private", "--dataset=other="+place, "srun", "sh", "-c", "ls "+place+"; ls -d $STOKER_MOUNT/*")
	if res.code != 0 || !strings.HasPrefix(res.out, "n00\nn01\nn02\nn03\n"+r.at("jobs")) || strings.Count(res.out, "/other\n") != 1 || strings.Count(res.out, "/private\n") != 1 {
		t.Errorf("salloc: exit %d, %q\n%s", res.code, res.out, res.stderr)
	}
	r.nothingMounted()
	spankRefusals(t, r, own)
}

// What is wrong fails with a sentence; no folder of others is covered, and no task
// starts without its data.
func spankRefusals(t *testing.T, r *rig, own string) {
	for words, says := range map[string]string{
		"--dataset=nosuch":                                      "dataset nosuch: is not known",
		"--dataset=../x":                                        "'../x' is no dataset",
		"--dataset=private@0":                                   "'private@0' is no dataset",
		"--dataset=private,":                                    "'' is no dataset",
		"--dataset=private,private":                             "private is named twice",
		"--dataset=private=data":                                "want an absolute folder",
		"--dataset=private=" + own + ",other=" + own:            "two datasets cannot be at " + own,
		"--dataset-options=onmiss=wait":                         "is of no use without --dataset",
		"--dataset=private --dataset-options=onmiss=hope":       "want start, wait or fail",
		"--dataset=private --dataset-options=path=nothing/here": "none of its 12 objects is meant",
	} {
		for _, program := range []string{"sbatch", "srun"} {
			args := append(strings.Fields(words), "--output="+r.at("out", "refused.out"), "true")
			if program == "sbatch" {
				args = append(args[:len(args)-1], "--wrap=true")
			}
			res := r.refused(func() result { return r.as("timeout", append([]string{"60", program}, args...)...) }) // an srun that is taken waits
			if res.code == 0 || !strings.Contains(res.stderr, says) {
				t.Errorf("%s %s: exit %d, want %q\n%s", program, words, res.code, says, res.stderr)
			}
		}
	}
	for dir, says := range map[string]string{r.at("etc"): "is not your own folder", "/root": "is not your own folder", "/no/such/folder": "No such file or directory", "/etc/passwd": "Not a directory"} {
		res := r.as("srun", "-w", "worker-1", "--dataset=private="+dir, "touch", r.at("out", "ran"))
		log, err := os.ReadFile(r.at("log", "slurmd-worker-1.log"))
		must(t, err)
		if res.code == 0 || !strings.Contains(res.stderr+string(log), "stoker: "+dir+": "+says) {
			t.Errorf("at %s: exit %d, want %q\n%s", dir, res.code, says, res.stderr)
		}
	}
	if res := r.as("srun", "--bb=#STOKER dataset=other", "sh", "-c", "unset SLURM_JOB_ID; exec true"); res.code != 0 {
		t.Errorf("a job without --dataset: exit %d\n%s", res.code, res.stderr)
	}
	if res := r.as("salloc", "--bb=#STOKER dataset=other", "srun", "--dataset=private="+own, "touch", r.at("out", "ran")); res.code == 0 {
		t.Error("a step has data that its job did not ask for")
	}
	if _, err := os.Stat(r.at("out", "ran")); err == nil {
		t.Error("a task ran without its data")
	}
	r.eventually("both nodes are idle", func() bool { return strings.TrimSpace(r.slurm("sinfo", "-h", "-o", "%T %D").out) == "idle 2" })
	r.nothingMounted()
}
