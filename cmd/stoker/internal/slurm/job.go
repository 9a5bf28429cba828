package slurm

import (
	"bufio"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"stoker.dev"
	"stoker.dev/internal/api"
)

// job is one job of Slurm, as a hook is told of it.
type job struct {
	cluster string
	id      uint64 // of a task of an array: its own
	script  string // where Slurm keeps its script; "" = not told
}

// name is what the controller calls it.
func (j job) name() string { return prefix(j.cluster) + strconv.FormatUint(j.id, 10) }

func prefix(cluster string) string { return "slurm-" + cluster + "-" }

// submitted is when Slurm got the job: its script is written then, once, and is
// kept through requeues, restarts and take-overs of slurmctld. A job that gets
// the id of an earlier one has a newer script. Slurm itself need not be asked, so
// this also works in hooks that it waits for. ok is false if the script is gone.
func (j job) submitted() (at time.Time, ok bool) {
	fi, err := os.Stat(j.script)
	if j.script == "" || err != nil {
		return time.Time{}, false
	}
	return fi.ModTime().UTC(), true
}

// claim makes the request of what the job wants. Its deadline counts from now:
// the time in which the job waited for others is not the data's.
func (j job) claim(w *want, ttl time.Duration, owner string) (api.ClaimRequest, error) {
	at, ok := j.submitted()
	if !ok {
		return api.ClaimRequest{}, stoker.Errorf(stoker.KindNotExist, "job script", shown(j.script), "is gone: is this the host of slurmctld?")
	}
	req := api.ClaimRequest{Job: j.name(), Datasets: w.datasets, OnMiss: w.onMiss, Layout: w.staged(), Replicas: w.replicas, Sampler: w.sampler,
		Submitted: at, TTLSeconds: ttl.Seconds(), For: owner}
	if w.deadline != nil {
		seconds := (max(0, time.Since(at)) + *w.deadline).Seconds()
		req.DeadlineSeconds = &seconds
	}
	return req, nil
}

// clusterName finds the name of the cluster: in the environment of Slurm's own
// scripts, else in its configuration.
func clusterName(getenv func(string) string) (string, error) {
	if name := getenv("SLURM_CLUSTER_NAME"); name != "" {
		return name, nil
	}
	path := getenv("SLURM_CONF")
	for _, dir := range []string{"/etc/slurm", "/etc/slurm-llnl", "/run/slurm/conf"} {
		if path != "" {
			break
		}
		if p := filepath.Join(dir, "slurm.conf"); exists(p) {
			path = p
		}
	}
	bad := func(format string, args ...any) (string, error) {
		return "", stoker.Errorf(stoker.KindInvalid, "cluster name", shown(path), format, args...)
	}
	if path == "" {
		return bad("no slurm.conf is found: say where with SLURM_CONF, or give --cluster")
	}
	f, err := os.Open(path)
	if err != nil {
		return bad("%w: say where with SLURM_CONF, or give --cluster", err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		key, value, ok := strings.Cut(strings.TrimSpace(lines.Text()), "=")
		if ok && strings.EqualFold(strings.TrimSpace(key), "ClusterName") {
			value, _, _ = strings.Cut(value, "#")
			return strings.TrimSpace(value), nil
		}
	}
	return bad("names no ClusterName: give --cluster")
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil || !errors.Is(err, fs.ErrNotExist)
}
