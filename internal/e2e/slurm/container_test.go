package slurm

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"stoker.dev/internal/testenv"
)

// The job runs in a container, as it would at a site: its root is a busybox, its
// data a slave bind of the node's mount.
func container(t *testing.T, r *rig) {
	size := r.dataset("boxed", 8)
	bundle := r.at("bundle")
	for _, d := range []string{"rootfs/bin", "rootfs/data", "rootfs/proc"} {
		must(t, os.MkdirAll(bundle+"/"+d, 0o755))
	}
	body, err := os.ReadFile(testenv.Program(t, "busybox"))
	must(t, err)
	must(t, os.WriteFile(bundle+"/rootfs/bin/busybox", body, 0o755))
	for _, name := range []string{"sh", "cat", "find", "wc", "sleep"} {
		must(t, os.Symlink("busybox", bundle+"/rootfs/bin/"+name))
	}
	must(t, exec.Command("runc", "spec", "--bundle", bundle).Run())
	var spec map[string]any
	body, err = os.ReadFile(bundle + "/config.json")
	must(t, err)
	must(t, json.Unmarshal(body, &spec))
	process := spec["process"].(map[string]any)
	process["terminal"] = false
	delete(process, "rlimits")
	process["user"] = map[string]any{"uid": userID, "gid": groupID}
	process["args"] = []string{"sh", "-c", "cat $(find /data -type f) | wc -c"}
	spec["mounts"] = []any{
		map[string]any{"destination": "/proc", "type": "proc", "source": "proc"},
		map[string]any{"destination": "/data", "type": "bind", "source": "MOUNT", "options": []string{"rbind", "rslave", "ro"}},
	}
	body, err = json.Marshal(spec)
	must(t, err)
	must(t, os.WriteFile(bundle+"/config.json.in", body, 0o644))
	// The runtime is root's here, as it is where it has a daemon: the task asks
	// for it by a file.
	id := r.submit("#STOKER dataset=boxed onmiss=wait\necho $STOKER_MOUNT > asked; while ! [ -e done ]; do sleep 0.1; done", "-w", "worker-1", "--chdir="+r.at("out"))
	var mount string
	r.eventually("the job asks for its container", func() bool {
		body, err := os.ReadFile(r.at("out", "asked"))
		mount = strings.TrimSpace(string(body))
		return err == nil && mount != ""
	})
	for run := range 2 {
		must(t, os.WriteFile(bundle+"/config.json", []byte(strings.ReplaceAll(string(body), `"MOUNT"`, fmt.Sprintf("%q", mount))), 0o644))
		cmd := exec.Command("nsenter", "--mount", fmt.Sprintf("--target=%d", r.nodes[0].cmd.Process.Pid), "runc", "--root", r.at("run", "runc"), "run", "--bundle", bundle, fmt.Sprintf("stoker-%d-%s-%d", os.Getpid(), id, run))
		out, err := cmd.CombinedOutput()
		if err != nil || strings.TrimSpace(string(out)) != fmt.Sprint(size) {
			t.Errorf("run %d: the container says %q (%v), the dataset has %d bytes", run, out, err, size)
		}
	}
	must(t, os.WriteFile(r.at("out", "done"), nil, 0o644))
	r.inState(id, "COMPLETED")
	r.released(id)
	r.nothingMounted()
}
