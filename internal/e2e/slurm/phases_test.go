package slurm

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"stoker.dev/internal/api"
)

// What can be told at once is told at once: sbatch fails with a sentence.
func submitChecks(t *testing.T, r *rig) {
	r.dataset("small", 4)
	big := filepath.Join(r.root, "data", "big", "x")
	must(t, os.MkdirAll(filepath.Dir(big), 0o755))
	must(t, os.WriteFile(big, nil, 0o644))
	must(t, os.Truncate(big, 600<<20)) // both workers together hold 512 MiB
	must(t, os.WriteFile(filepath.Join(filepath.Dir(big), "y"), []byte("fits"), 0o644))
	r.must("dataset", "add", "big", "s3://data/big", "--endpoint", r.proxy.URL(), "--path-style")
	for lines, says := range map[string]string{
		"#STOKER dataset=nosuch":                         "dataset nosuch: is not known",
		"#STOKER dataset=small@7":                        "small@7",
		"#STOKER dataset=small order=random":             `"order" is not known here: the keys are dataset, path, include,`,
		"#STOKER dataset=small sampler=pytorch:seed=0":   "sampler=pytorch:seed=0: lacks world=N",
		"#STOKER dataset=small path=n0":                  "path=n0: none of its 4 objects is meant",
		"#STOKER dataset=small path=n00 exclude=*.jpg":   "none of its 4 objects is meant",
		"#STOKER dataset=small include=*.[jpg":           "include=*.[jpg: is no pattern: write *.jpg",
		"#STOKER dataset=small path=../../etc":           "path=../../etc: is no path below the dataset's root",
		"#STOKER dataset=small capacity=10GB":            "Burst Buffer request invalid",
		"#STOKER dataset=small deadline=soon":            "want a time such as",
		"#STOKER mount=/data":                            "names no dataset",
		"#STOKER dataset=big":                            "its data needs 600",
		"#STOKER dataset=small\n#STOKER dataset=small@1": "is named twice",
	} {
		if res := r.refused(func() result { return r.try(lines + "\ntrue") }); res.code == 0 || !strings.Contains(res.stderr, says) {
			t.Errorf("%q: exit %d, want %q\n%s", lines, res.code, says, res.stderr)
		}
	}
	id := r.submit("#STOKER dataset=big onmiss=start deadline=0s\nls $STOKER_MOUNT")
	r.inState(id, "COMPLETED")
	if out := r.output(id); out != "x\ny\n" {
		t.Errorf("the job sees %q", out)
	}
	r.released(id)
	id = r.submit("#STOKER dataset=big path=y onmiss=wait\ncat $STOKER_MOUNT/y") // of data that does not fit, a part that does
	r.inState(id, "COMPLETED")
	if out := r.output(id); out != "fits" {
		t.Errorf("the job reads %q", out)
	}
	r.released(id)
	r.eventually("none of it comes any more", func() bool { return r.stoker("evict", "big").code == 0 })
}

// sampler= stands in the job's claim and with each of its mounts, below the job's folder
// and on a folder of the user's own, with the files that it is the order of.
func sampler(t *testing.T, r *rig) {
	r.dataset("seeded", 8)
	r.dataset("besides", 4)
	own, end := r.at("out", "seeded-data"), r.at("out", "seeded-end")
	must(t, os.Mkdir(own, 0o755))
	must(t, os.Chown(own, userID, groupID))
	id := r.submit(fmt.Sprintf("#STOKER dataset=seeded path=n00 include=*.jpg mount=%s sampler=pytorch:world=4,seed=9\n#STOKER dataset=besides\necho begun; until [ -e %s ]; do sleep 0.1; done", own, end), "-w", "worker-1")
	r.eventually("it has begun", func() bool { return r.outputIfAny(id) != "" }) // RUNNING it is before the Prolog has ended
	const want = "pytorch:seed=9,world=4"
	if st := r.claim(id); st.Sampler != want {
		t.Errorf("the claim has the sampler %q", st.Sampler)
	}
	out, err := exec.Command("curl", "-sf", "--unix-socket", r.at("stoker", "worker-1", "worker.sock"), "http://worker/v1/mounts").Output()
	must(t, err)
	var mounts []api.MountInfo
	must(t, json.Unmarshal(out, &mounts))
	if len(mounts) != 2 {
		t.Errorf("%s", out)
	}
	for _, m := range mounts {
		some := m.Selection != nil && slices.Equal(m.Selection.Paths, []string{"n00"}) && slices.Equal(m.Selection.Include, []string{"*.jpg"})
		if m.Sampler != want || some != (m.Dataset == "seeded") || (m.Dir == own) != some {
			t.Errorf("%+v", m)
		}
	}
	must(t, os.WriteFile(end, nil, 0o644))
	r.inState(id, "COMPLETED")
	r.released(id)
}

// Of a dataset a job may name a part: that alone is staged in, each byte once, and
// counted; another dataset of the job, and the mount, are whole.
func parts(t *testing.T, r *rig) {
	r.dataset("parts", 40)
	whole := r.dataset("beside", 4)
	r.proxy.Reset()
	reached, release := r.proxy.Hold(1)
	defer release()
	id := r.submit("#STOKER dataset=parts path=n01 path=n02 exclude=img_0000?.jpg onmiss=wait\n#STOKER dataset=beside\nls $STOKER_MOUNT/parts/ | wc -l; cat $STOKER_MOUNT/parts/n01/img_00013.jpg $STOKER_MOUNT/parts/n02/img_00038.jpg $STOKER_MOUNT/beside/*/* | wc -c")
	r.comes("the store stands still", reached)
	const says = "parts@1 path=n01 path=n02 exclude=img_0000?.jpg: "
	r.eventually("bbstat tells of what the job waits for", func() bool { return strings.Contains(r.as("scontrol", "show", "bbstat", id).out, says) })
	if st := r.state(id); st != "PENDING" {
		t.Errorf("its data is on the way, and it is %s", st)
	}
	release()
	r.inState(id, "COMPLETED")
	const part = 15 << 18 // n01 and n02 have 20 files of 256 KiB, 5 of them with one digit
	if out := r.output(id); out != fmt.Sprintf("4\n%d\n", 2<<18+whole) {
		t.Errorf("the job sees %q", out)
	}
	if got := r.proxy.Bytes(); got != part+whole || r.claim(id).Bytes != part+whole {
		t.Errorf("%d bytes were fetched, %d claimed, for %d and %d", got, r.claim(id).Bytes, part, whole)
	}
	for key := range r.proxy.BytesByKey() {
		if strings.HasPrefix(key, "/data/parts/") && (!strings.Contains(key, "/n01/") && !strings.Contains(key, "/n02/") || strings.Contains(key, "img_0000")) {
			t.Errorf("%s was fetched", key)
		}
	}
	r.released(id)
}

// Nothing that a user writes reaches a shell.
func hostileDirectives(t *testing.T, r *rig) {
	proof := r.at("out", "was-here")
	for _, evil := range []string{
		"dataset=$(touch$IFS" + proof + ")", "dataset=`touch$IFS" + proof + "`", "dataset=';touch\t" + proof + ";'", "dataset=small';touch " + proof + ";'",
		"dataset=small mount=/$(touch$IFS" + proof + ")'", "dataset=small\x01\x1b[2J", "dataset=" + strings.Repeat("a", 5000), "dataset=small --script=/etc/passwd",
		"$(touch " + proof + ")=1", "dataset=small include=$(touch$IFS" + proof + ")[",
	} {
		if res := r.try("#STOKER " + evil + "\ntrue"); res.code == 0 && !strings.Contains(evil, "mount=") {
			t.Errorf("%q is accepted", evil)
		} else if strings.Contains(res.stderr, "\x1b") || len(res.stderr) > 2000 {
			t.Errorf("%q: answered with %q", evil, res.stderr)
		}
		res := r.as("srun", "--bb=#STOKER "+evil, "true")
		if res.code == 0 {
			t.Errorf("srun --bb=%q is accepted", evil)
		}
		r.as("scontrol", "show", "bbstat", "'"+evil)
		r.as("scontrol", "show", "bbstat", evil, evil)
	}
	r.slurm("scancel", "--user="+userName)
	r.eventually("all are gone", func() bool { return r.asked("squeue", "-h").out == "" })
	if _, err := os.Stat(proof); err == nil {
		t.Error("a directive was run by a shell")
	}
}

// Hooks run as SlurmUser, and mostly with the HOME of root, who started slurmctld:
// that they cannot read its files is nothing to stop at.
func homeOfAnother(t *testing.T, r *rig) {
	home := r.at("munge", "private") // root's, 0700
	for command, want := range map[string]int{"HOME=" + home + " stoker slurm show": 0, "HOME=" + home + " stoker jobs": 0, "XDG_CONFIG_HOME=" + home + " stoker jobs": 10} {
		if res := r.as("sh", "-c", command); res.code != want {
			t.Errorf("%s: exit %d, want %d\n%s", command, res.code, want, res.stderr)
		}
	}
}

// srun and salloc take the directive as an option; several lines are several
// datasets, below one folder.
func optionsAndSeveral(t *testing.T, r *rig) {
	r.dataset("one", 4)
	r.dataset("two", 8)
	count := `echo $(ls "$STOKER_MOUNT") $(find "$STOKER_MOUNT"/ -name '*.jpg' | wc -l)`
	if res := r.as("srun", "--bb=#STOKER dataset=one", "sh", "-c", count); res.code != 0 || !strings.HasSuffix(strings.TrimSpace(res.out), " 4") {
		t.Errorf("srun: exit %d, %q\n%s", res.code, res.out, res.stderr)
	}
	if res := r.as("salloc", "--bb=#STOKER dataset=one onmiss=wait", "srun", "sh", "-c", count); res.code != 0 || !strings.HasSuffix(strings.TrimSpace(res.out), " 4") {
		t.Errorf("salloc: exit %d, %q\n%s", res.code, res.out, res.stderr)
	}
	own := r.at("out", "own-data")
	must(t, os.Mkdir(own, 0o755))
	must(t, os.Chown(own, userID, groupID))
	id := r.submit(fmt.Sprintf("#STOKER dataset=one@1\n#SBATCH --comment=x\n#STOKER dataset=two mount=%s onmiss=wait deadline=2h\necho $(ls $STOKER_MOUNT) $(find $STOKER_MOUNT/one $STOKER_MOUNT/two/ -name '*.jpg' | wc -l) $(find %s -name '*.jpg' | wc -l)", own, own))
	r.inState(id, "COMPLETED")
	if out := r.output(id); out != "one two 12 8\n" {
		t.Errorf("the job sees %q", out)
	}
	r.released(id)
}

// A folder that is not the user's own is mounted over for nobody: the job is held,
// with the reason, and the node stays in service.
func foreignFolder(t *testing.T, r *rig) {
	r.dataset("foreign", 2)
	for _, dir := range []string{r.at("etc"), "/no/such/folder"} {
		id := r.submit("#STOKER dataset=foreign mount=" + dir + "\ntouch " + r.at("out", "ran"))
		r.eventually("the job is held", func() bool {
			j := r.job(id)
			return j["JobState"] == "PENDING" && j["Priority"] == "0" && strings.HasPrefix(j["Comment"], "stoker: mount "+dir)
		})
		r.slurm("scancel", id)
		r.released(id)
	}
	if res := r.as("srun", "--bb=#STOKER dataset=foreign mount=/no/such/folder", "touch", r.at("out", "ran")); res.code == 0 {
		t.Error("an srun with a folder that is not there succeeds") // it cannot be put back: it is cancelled
	}
	if _, err := os.Stat(r.at("out", "ran")); err == nil {
		t.Error("the job ran")
	}
	r.eventually("both nodes are idle", func() bool { return strings.TrimSpace(r.slurm("sinfo", "-h", "-o", "%T %D").out) == "idle 2" })
	r.nothingMounted()
}

func (r *rig) nothingMounted() {
	r.t.Helper()
	for n := 1; n <= 2; n++ {
		r.eventually("nothing is mounted", func() bool { return len(r.mounted(n)) == 0 })
	}
}

// Cancelled in any phase a job leaves nothing: no claim, no mount, no byte more.
func cancelInEveryPhase(t *testing.T, r *rig) {
	size := r.dataset("cancel", 40)
	busy := r.submit("sleep 1000", "-N2", "--exclusive")
	r.inState(busy, "RUNNING")

	waits := r.submit("#STOKER dataset=cancel\ntrue", "--dependency=afterany:"+busy)
	r.proxy.Reset()
	reached, release := r.proxy.Hold(size / 2)
	defer release()
	loads := r.submit("#STOKER dataset=cancel onmiss=wait\ntrue")
	r.comes("the store stands still", reached)
	if st := r.claim(waits); st.State != "" {
		t.Errorf("a job whose dependency is not met has the claim %+v", st)
	}
	r.slurm("scancel", waits, loads)
	r.inState(loads, "CANCELLED")
	r.released(loads)
	release()

	staged := r.submit("#STOKER dataset=cancel onmiss=wait\ntrue")
	r.claimIs(staged, api.JobReady)
	r.eventually("it waits for nodes alone", func() bool { return r.job(staged)["Reason"] == "Resources" })
	if st := r.state(staged); st != "PENDING" {
		t.Errorf("with its data there and the nodes busy it is %s", st)
	}
	r.slurm("scancel", staged)
	r.released(staged)

	r.slurm("scancel", busy)
	before := r.proxy.Bytes()
	runs := r.submit("#STOKER dataset=cancel onmiss=wait\nexec sleep 1000", "-w", "worker-1") // the other one may be free first
	r.inState(runs, "RUNNING")
	r.eventually("it is mounted", func() bool { return len(r.mounted(1)) == 1 })
	r.slurm("scancel", runs)
	r.inState(runs, "CANCELLED")
	r.released(runs)
	r.nothingMounted()
	if more := r.proxy.Bytes() - before; more > 0 {
		t.Errorf("%d bytes were fetched for data that was there", more)
	}
}

// A requeued job stages in again and finds its data: grace is longer than the two
// minutes that Slurm lets it wait.
func requeue(t *testing.T, r *rig) {
	size := r.dataset("again", 10)
	r.proxy.Reset()
	id := r.submit("#STOKER dataset=again onmiss=wait\nls $STOKER_MOUNT; [ \"$SLURM_RESTART_COUNT\" = 1 ] || exec sleep 1000", "--requeue", "--open-mode=append")
	r.inState(id, "RUNNING")
	r.eventually("it has begun", func() bool { return strings.Contains(r.outputIfAny(id), "n00") })
	r.slurm("scontrol", "requeue", id)
	r.released(id)
	r.nothingMounted()
	r.startNow(id)
	r.inState(id, "COMPLETED")
	r.released(id)
	if got := r.proxy.Bytes(); got != size {
		t.Errorf("%d bytes were fetched for %d", got, size)
	}
	if out := r.output(id); strings.Count(out, "n00") != 2 {
		t.Errorf("its two runs printed %q", out)
	}
}

func (r *rig) outputIfAny(id string) string {
	body, err := os.ReadFile(r.at("out", id+".out"))
	if err != nil {
		return ""
	}
	return string(body)
}

// startNow ends the time that Slurm lets a job wait after a requeue or a restart.
// Slurm may set it late, and anew: the job is asked to start until it does, with time
// for a pass of the scheduler in between, which passes over a job that is changed.
// Not at once: a slurmd of 22.05 forgets that a job was there at most every two
// seconds, and one that it knows gets no Prolog.
func (r *rig) startNow(id string) {
	r.t.Helper()
	var asked time.Time
	r.eventually("job "+id+" may start", func() bool {
		switch r.state(id) {
		case "PENDING":
			if time.Since(asked) > 7*time.Second {
				r.slurm("scontrol", "update", "JobId="+id, "StartTime=now+3seconds")
				asked = time.Now()
			}
			return false
		case "COMPLETING", "REQUEUED":
			return false
		}
		return true
	})
}

// An array is one preload and a lease for each task.
func array(t *testing.T, r *rig) {
	size := r.dataset("array", 40)
	r.proxy.Reset()
	reached, release := r.proxy.Hold(size / 2)
	defer release()
	id := r.submit("#STOKER dataset=array onmiss=wait\nfind $STOKER_MOUNT -name '*.jpg' | wc -l", "--array=1-3", "--output="+r.at("out", "array-%a.out"))
	r.comes("the store stands still", reached)
	leases := func() (n int) {
		for _, j := range r.claims() {
			if strings.Contains(strings.Join(j.Datasets, " "), "array") && (j.State == api.JobWarming || j.State == api.JobReady || j.State == api.JobPlanned) {
				n++
			}
		}
		return n
	}
	r.eventually("each task has its lease", func() bool { return leases() == 3 })
	release()
	r.eventually("the array is done", func() bool { return !strings.Contains(r.asked("squeue", "-h", "-j", id).out, "batch") })
	for n := 1; n <= 3; n++ {
		body, err := os.ReadFile(r.at("out", fmt.Sprintf("array-%d.out", n)))
		if err != nil || string(body) != "40\n" {
			t.Errorf("task %d saw %q (%v)", n, body, err)
		}
	}
	if got := r.proxy.Bytes(); got != size {
		t.Errorf("%d bytes were fetched for %d by three tasks", got, size)
	}
	r.eventually("all leases have ended", func() bool { return leases() == 0 })
}

// A job behind a dependency stages in when it is met, not before.
func dependency(t *testing.T, r *rig) {
	size := r.dataset("later", 4)
	r.proxy.Reset()
	first := r.submit("while ! [ -e " + r.at("out", "go") + " ]; do sleep 0.1; done")
	second := r.submit("#STOKER dataset=later\nls $STOKER_MOUNT", "--dependency=afterok:"+first)
	r.inState(first, "RUNNING")
	if got := r.proxy.Bytes(); got != 0 || r.claim(second).State != "" {
		t.Errorf("%d bytes were fetched before the dependency is met", got)
	}
	must(t, os.WriteFile(r.at("out", "go"), nil, 0o644))
	r.inState(second, "COMPLETED")
	if got := r.proxy.Bytes(); got != size {
		t.Errorf("%d bytes were fetched for %d", got, size)
	}
	r.released(second)
}

// While the nodes compute for others the next job's data comes, the less urgent the
// later Slurm estimates its start; within its own time nothing is fetched.
func lookAhead(t *testing.T, r *rig) {
	size := r.dataset("ahead", 20)
	gate := r.at("out", "gate")
	busy := r.submit("while ! [ -e "+gate+" ]; do sleep 0.1; done", "-N2", "--exclusive", "--time=2:00:00")
	r.inState(busy, "RUNNING")
	r.proxy.Reset()
	reached, release := r.proxy.Hold(size / 2)
	defer release()
	id := r.submit("#STOKER dataset=ahead\ncat $(find $STOKER_MOUNT -type f) | wc -c", "-N2")
	r.comes("the store stands still", reached)
	r.eventually("its load yields to those of jobs that start sooner", func() bool { p := r.claim(id).Priority; return p < -60 && p > -130 })
	release()
	r.claimIs(id, api.JobReady)
	if st := r.state(id); st != "PENDING" || r.proxy.Bytes() != size {
		t.Errorf("%s with %d of %d bytes", st, r.proxy.Bytes(), size)
	}
	must(t, os.WriteFile(gate, nil, 0o644))
	r.inState(id, "COMPLETED")
	if out := r.output(id); out != fmt.Sprintln(size) || r.proxy.Bytes() != size {
		t.Errorf("it read %q; %d bytes were fetched for %d", out, r.proxy.Bytes(), size)
	}
	r.released(id)
}
