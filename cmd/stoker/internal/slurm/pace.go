package slurm

import (
	"context"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"stoker.dev/internal/api"
)

// A job's data is as urgent as any once the job is estimated to start within
// `near`; before that the load yields to those of jobs that start sooner: it has
// what nobody else takes of the store. Estimates are made of time limits, so that
// jobs mostly start earlier than estimated: no load is slowed down that has the
// store for itself.
const (
	near      = 10 * time.Minute
	lookEvery = time.Minute     // Slurm's estimate is asked for so often,
	lookSoon  = 5 * time.Second // and at first after so long and twice that: a job just submitted has none, or one that no scheduler has made yet
)

// priorityAt is what a job's claim is worth: one less for each minute until its
// estimated start is near. A job without an estimate is not kept waiting.
func priorityAt(start, now time.Time) int {
	left := start.Sub(now) - near
	if start.IsZero() || left <= 0 {
		return 0
	}
	return -int(min(left/time.Minute+1, 1000))
}

// worthIt reports whether a priority is to be changed: not for each minute that passes.
func worthIt(was, now int) bool {
	if was > 0 { // a person has raised it
		return false
	}
	return (was == 0) != (now == 0) || max(was-now, now-was)*5 > -was
}

// pacer knows when Slurm was asked last.
type pacer struct {
	looked time.Time
	next   time.Duration // after it
}

// pace sets the claim's priority by Slurm's estimate, now and then. That it
// cannot is no reason to keep a job: the load goes on as it does.
func (p *pacer) pace(ctx context.Context, h *hooks, c *api.Controller, st *api.JobStatus) {
	if time.Since(p.looked) < p.next || api.Settled(st.State) {
		return
	}
	p.looked, p.next = time.Now(), min(max(lookSoon, 2*p.next), lookEvery)
	start, err := h.startOf(ctx, h.id)
	if want := priorityAt(start, time.Now()); err == nil && worthIt(st.Priority, want) {
		_, err = c.Change(ctx, h.name(), api.JobChange{Priority: &want})
	}
	if err != nil && ctx.Err() == nil {
		h.Note("%s: its load keeps its priority: %v", h.name(), err)
	}
}

// estimatedStart asks Slurm when a job will start; the zero time: it does not say.
func estimatedStart(ctx context.Context, id uint64) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, slurmIn)
	defer cancel()
	cmd := exec.CommandContext(ctx, "squeue", "--noheader", "--jobs="+strconv.FormatUint(id, 10), "--format=%S")
	cmd.Env = append(queueEnv(), "SLURM_TIME_FORMAT=%s")
	out, err := cmd.Output()
	if err != nil {
		return time.Time{}, err
	}
	seconds, err := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
	if err != nil || seconds <= 0 {
		return time.Time{}, nil // N/A
	}
	return time.Unix(seconds, 0), nil
}
