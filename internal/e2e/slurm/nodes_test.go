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

	"stoker.dev/internal/api"
)

// worker is the one of a node, as it says itself: the controller shows one that has
// not answered within seconds as the index has it.
func (r *rig) worker(node string) (w api.WorkerInfo) {
	r.t.Helper()
	r.eventually("the worker of "+node+" answers", func() bool {
		var all []api.WorkerInfo
		must(r.t, json.Unmarshal([]byte(r.must("workers", "-o", "json")), &all))
		i := slices.IndexFunc(all, func(w api.WorkerInfo) bool { return w.Node == node })
		if i < 0 || all[i].Reads == nil {
			return false
		}
		w = all[i]
		return true
	})
	return w
}

// copies checks that the claim of a job for its nodes has all of its data on each.
func (r *rig) copies(id string, size int64, nodes ...string) {
	r.t.Helper()
	st := r.claim(id + "+nodes")
	if st.State != api.JobReady && st.State != api.JobLeased || st.Owner != userName || len(st.Datasets) != 1 || st.Datasets[0].Certificate == nil {
		r.t.Fatalf("job %s runs, and the claim for its nodes is %+v", id, st)
	}
	var ids []string
	cert := st.Datasets[0].Certificate
	for _, node := range nodes {
		w := r.worker(node).ID
		ids = append(ids, w)
		if i := slices.IndexFunc(cert.Workers, func(x api.CertificateWorker) bool { return x.Worker == w }); i < 0 || !cert.Workers[i].Whole || cert.Workers[i].Bytes != size {
			r.t.Errorf("%s does not have all: %+v", node, cert.Workers)
		}
	}
	if slices.Sort(ids); !slices.Equal(cert.Nodes, ids) || cert.Layout != "local" {
		r.t.Errorf("the copies are for %v, layout %s, want %v", cert.Nodes, cert.Layout, ids)
	}
}

// A step of two nodes with layout=local: once Slurm has chosen them each has all of
// the data before the job begins, the store sends it once, and what the job reads
// no node asks another for. A job of one node has its copy there alone.
func layoutLocal(t *testing.T, r *rig) {
	size := r.dataset("near", 40)
	r.proxy.Reset()
	read, begun := r.at("out", "near-read"), r.at("out", "near-begun")
	id := r.submit("#STOKER dataset=near layout=local onmiss=wait\nsrun sh -c 'touch "+begun+"-$SLURMD_NODENAME; while ! [ -e "+read+" ]; do sleep 0.1; done; cat $(find $STOKER_MOUNT/ -type f) | wc -c'",
		"-N2", "--ntasks-per-node=1")
	defer r.slurm("scancel", id)
	nodes := []string{"worker-1", "worker-2"}
	r.eventually("both tasks have begun", func() bool { found, _ := filepath.Glob(begun + "-*"); return len(found) == 2 })
	r.copies(id, size, nodes...)
	before := map[string]api.ReadCounters{}
	for _, node := range nodes {
		before[node] = *r.worker(node).Reads
	}
	must(t, os.WriteFile(read, nil, 0o644))
	r.inState(id, "COMPLETED")
	if out := r.output(id); out != strings.Repeat(fmt.Sprintln(size), 2) {
		t.Errorf("the two nodes read %q of %d", out, size)
	}
	for _, node := range nodes {
		if now := r.worker(node).Reads; now.PeerBytes != before[node].PeerBytes || now.UFSBytes != before[node].UFSBytes {
			t.Errorf("while the job read %s fetched: %+v, before %+v", node, *now, before[node])
		}
	}
	if got := r.proxy.Bytes(); got != size {
		t.Errorf("the store sent %d bytes for %d on two nodes", got, size)
	}
	r.released(id)
	r.released(id + "+nodes")
	r.eventually("nobody holds its data", func() bool { return r.stoker("evict", "near").code == 0 })

	id = r.submit("#STOKER dataset=near layout=local onmiss=fail\nexec sleep 1000", "-w", "worker-2")
	r.inState(id, "RUNNING")
	r.copies(id, size, "worker-2")
	r.slurm("scancel", id)
	r.released(id)
	r.released(id + "+nodes")
	r.nothingMounted()
	if got := r.proxy.Bytes(); got != 2*size {
		t.Errorf("the store sent %d bytes for two loads of %d", got, size)
	}
}

// Data that is lost while a job waits for nodes sends it back when it gets them: it
// does not start, the reason names what is missing, and it can be tried again.
func lostBeforeTheStart(t *testing.T, r *rig) {
	size := r.dataset("lost", 8)
	gate := r.at("out", "lost-gate")
	busy := r.submit("while ! [ -e "+gate+" ]; do sleep 0.1; done", "-N2", "--exclusive")
	r.inState(busy, "RUNNING")
	id := r.submit("#STOKER dataset=lost onmiss=wait\ncat $(find $STOKER_MOUNT -type f) | wc -c")
	r.claimIs(id, api.JobReady)
	r.eventually("it waits for nodes alone", func() bool { return r.job(id)["Reason"] == "Resources" })
	if res := r.as(r.at("bin", "stoker"), "cancel", "slurm-ci-"+id); res.code != 0 {
		t.Fatalf("cancel exits %d\n%s", res.code, res.stderr)
	}
	r.eventually("its data is evicted", func() bool { return r.stoker("evict", "lost").code == 0 })
	gone := filepath.Join(r.root, "data", "lost", "n01", "img_00001.jpg")
	body, err := os.ReadFile(gone)
	must(t, err)
	must(t, os.Remove(gone))
	must(t, os.WriteFile(gate, nil, 0o644))
	r.eventually("it is sent back", func() bool {
		j := r.job(id)
		return j["JobState"] == "PENDING" && strings.Contains(j["SystemComment"], "n01/img_00001.jpg (notexist)")
	})
	r.released(id)
	if out := r.outputIfAny(id); out != "" {
		t.Errorf("it ran without its data: %q", out)
	}
	must(t, os.WriteFile(gone, body, 0o644))
	r.must("dataset", "sync", "lost")
	r.slurm("scontrol", "release", id)
	r.startNow(id)
	r.inState(id, "COMPLETED")
	if out := r.output(id); out != fmt.Sprintln(size) {
		t.Errorf("it read %q of %d", out, size)
	}
	r.released(id)
	r.nothingMounted()
}

// A node whose worker does not answer is at fault: Slurm drains it and holds the job,
// which starts when both are put back.
func nodeWithoutWorker(t *testing.T, r *rig) {
	size := r.dataset("orphan", 4)
	r.stopWorker(2)
	id := r.submit("#STOKER dataset=orphan onmiss=wait\ncat $(find $STOKER_MOUNT -type f) | wc -c", "-w", "worker-2")
	r.eventually("the node is drained", func() bool {
		return strings.Contains(r.slurm("sinfo", "-h", "-n", "worker-2", "-o", "%T").out, "drain")
	})
	r.eventually("the job is held", func() bool { j := r.job(id); return j["JobState"] == "PENDING" && j["Priority"] == "0" })
	if out := r.outputIfAny(id); out != "" {
		t.Errorf("it ran without its data: %q", out)
	}
	args := []string{"--mount", fmt.Sprintf("--target=%d", r.nodes[1].cmd.Process.Pid), "--", binary(t, "stoker-dev"), "start", "worker-2", "--dir", r.at("stoker")}
	if out, err := exec.Command("nsenter", args...).CombinedOutput(); err != nil {
		t.Fatalf("worker-2 does not start: %v\n%s", err, out)
	}
	r.eventually("the node is idle", func() bool {
		st := strings.TrimSpace(r.slurm("sinfo", "-h", "-n", "worker-2", "-o", "%T").out)
		if strings.Contains(st, "drain") || strings.Contains(st, "down") {
			r.slurm("scontrol", "update", "NodeName=worker-2", "State=resume")
		}
		return st == "idle"
	})
	r.slurm("scontrol", "release", id)
	r.startNow(id)
	r.inState(id, "COMPLETED")
	if out := r.output(id); out != fmt.Sprintln(size) {
		t.Errorf("it read %q of %d", out, size)
	}
	r.released(id)
	r.nothingMounted()
}
