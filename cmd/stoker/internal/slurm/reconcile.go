package slurm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"

	"stoker.dev"
	"stoker.dev/internal/api"
)

// ended are the states in which a job needs nothing any more. A job that Slurm
// forgot is not listed at all.
var ended = map[string]bool{
	"BOOT_FAIL": true, "CANCELLED": true, "COMPLETED": true, "DEADLINE": true, "FAILED": true, "LAUNCH_FAILED": true,
	"NODE_FAIL": true, "OUT_OF_MEMORY": true, "PREEMPTED": true, "RECONFIG_FAIL": true, "REVOKED": true, "TIMEOUT": true,
}

// reconcile compares the cluster's claims with Slurm's queue: it releases those
// of jobs that Slurm does not have, and repeats the others so that they live on.
// While Slurm does not answer nothing is released.
func (h *hooks) reconcile(ctx context.Context) error {
	c, err := h.Controller()
	if err != nil {
		return err
	}
	claims, err := c.Jobs(ctx)
	if err != nil {
		return err
	}
	live, err := queue(ctx) // after the claims: each of them had a job when it was made
	if err != nil {
		return err
	}
	var all error
	released, kept := 0, 0
	for _, l := range claims {
		id, ok := strings.CutPrefix(l.Job, prefix(h.cluster))
		if !ok || !living(l.State) {
			continue
		}
		st, err := c.Job(ctx, l.Job)
		if id = ownerOf(id); err == nil && live[id] && h.meant(ctx, id) {
			kept++
			err = h.repeat(ctx, c, st)
		} else if err == nil {
			released++
			h.Note("job %s: Slurm has no such job with data: its claim is released", l.Job)
			err = c.ReleaseSubmitted(ctx, l.Job, st.Submitted) // not that of a job that has just got its id
		}
		if stoker.KindOf(err) != stoker.KindNotExist {
			all = errors.Join(all, err)
		}
	}
	fmt.Fprintf(h.Out(), "kept %d, released %d\n", kept, released)
	return all
}

// meant reports whether the job that has the id asks for data: else the claim is
// that of an earlier one. In doubt it does.
func (h *hooks) meant(ctx context.Context, id string) bool {
	out, err := ask(ctx, "scontrol", "show", "job", id)
	return err != nil || len(bursts(out)) > 0
}

// repeat lets a claim live on.
func (h *hooks) repeat(ctx context.Context, c *api.Controller, st *api.JobStatus) error {
	req := api.ClaimRequest{Job: st.Job, OnMiss: "start", Submitted: st.Submitted, TTLSeconds: h.ttl.Seconds(), For: st.Owner}
	for _, d := range st.Datasets {
		req.Datasets = append(req.Datasets, d.DatasetRef)
	}
	_, err := c.Claim(ctx, req, nil)
	return err
}

// queue asks Slurm for the ids of its jobs that have not ended.
func queue(ctx context.Context) (map[string]bool, error) {
	ctx, cancel := context.WithTimeout(ctx, slurmIn)
	defer cancel()
	cmd := exec.CommandContext(ctx, "squeue", "--all", "--array", "--noheader", "--states=all", "--format=%A %T")
	cmd.Env = queueEnv()
	out, err := cmd.Output()
	if err != nil {
		return nil, stoker.Errorf(stoker.KindTransient, "squeue", "", "%w: nothing is released while Slurm does not answer", err)
	}
	live := map[string]bool{}
	for _, l := range strings.Split(string(out), "\n") {
		f := strings.Fields(l)
		if len(f) == 2 && !ended[f[1]] {
			live[f[0]] = true
		}
	}
	return live, nil
}

// queueEnv is the environment of squeue, without a person's filters.
func queueEnv() []string {
	return slices.DeleteFunc(os.Environ(), func(kv string) bool {
		return strings.HasPrefix(kv, "SQUEUE_") || strings.HasPrefix(kv, "SLURM_TIME_FORMAT=")
	})
}

// polling reports whether this Slurm polls a stage-in instead of waiting for it
// (24.05 and newer). Waiting is right in both, at the cost of a process per job.
func polling(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, slurmIn)
	defer cancel()
	out, err := exec.CommandContext(ctx, "scontrol", "--version").Output()
	if err != nil {
		return false
	}
	return newer(string(out), 24, 5)
}

// newer compares "slurm 24.05.1", or "slurm-wlm 22.05.8".
func newer(version string, major, minor int) bool {
	f := strings.Fields(version)
	if len(f) < 2 {
		return false
	}
	n := strings.SplitN(f[1], ".", 3)
	if len(n) < 2 {
		return false
	}
	a, err := strconv.Atoi(n[0])
	b, err2 := strconv.Atoi(n[1])
	return err == nil && err2 == nil && (a > major || a == major && b >= minor)
}
