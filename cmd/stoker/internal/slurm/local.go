package slurm

import (
	"context"
	"strconv"
	"strings"
	"time"

	"stoker.dev"
	"stoker.dev/internal/api"
)

// A stage-in comes before a job has its nodes: with layout=local its data is spread
// then, and copied to each of its nodes once it has them, by a claim of its own.

const (
	layoutLocal  = "local"
	layoutSpread = "spread"
	nodesSuffix  = "+nodes" // behind the job's name, of that claim
)

// staged is the layout of the stage-in.
func (w *want) staged() string {
	if w.layout == layoutLocal {
		return layoutSpread
	}
	return w.layout
}

// ownerOf is the id, in Slurm, of the job whose claim has a name without prefix.
func ownerOf(name string) string { return strings.TrimSuffix(name, nodesSuffix) }

// nodesOf asks Slurm for the nodes that a job has.
func nodesOf(ctx context.Context, id uint64) ([]string, error) {
	list, err := ask(ctx, "squeue", "--noheader", "--jobs="+strconv.FormatUint(id, 10), "--format=%N")
	if err != nil {
		return nil, err
	}
	if list = strings.TrimSpace(list); list == "" {
		return nil, stoker.Errorf(stoker.KindTransient, "squeue", strconv.FormatUint(id, 10), "Slurm does not say which nodes the job has")
	}
	names, err := ask(ctx, "scontrol", "show", "hostnames", list)
	return strings.Fields(names), err
}

// claimNodes makes or repeats the claim of a copy on each of the job's nodes.
func (h *hooks) claimNodes(ctx context.Context, w *want) (*api.JobStatus, error) {
	nodes, err := nodesOf(ctx, h.id)
	if err != nil {
		return nil, err
	}
	return h.claimAs(ctx, w, func(req *api.ClaimRequest) {
		req.Job += nodesSuffix
		req.Layout, req.Nodes, req.Replicas, req.DeadlineSeconds = layoutLocal, nodes, 0, nil
	})
}

// toNodes has the data copied to the job's nodes. A job that starts without its data
// does not wait for that: it reads from where the data is meanwhile.
func (h *hooks) toNodes(ctx context.Context, w *want) (text string, err error) {
	if w.onMiss == "start" {
		err := retry(ctx, min(pollIn, h.patience), func(ctx context.Context) error { _, err := h.claimNodes(ctx, w); return err })
		if err != nil {
			return "starts without copies on its nodes: " + reason(err), nil
		}
		return "claimed, and copied to its nodes", nil
	}
	for {
		st, err := h.claimNodes(ctx, w)
		if err == nil {
			var c *api.Controller
			if c, err = h.Controller(); err == nil {
				st, err = c.Watch(ctx, st.Job, func(api.JobStatus) {})
			}
		}
		switch {
		case ctx.Err() != nil:
			return "", stoker.Errorf(stoker.KindTransient, "pre-run", h.name(), "was stopped by Slurm before the data was on the job's nodes: OtherTimeout in burst_buffer.conf says when")
		case err == nil:
			return h.settled(st)
		case !away(err):
			return "", err
		}
		select {
		case <-ctx.Done():
		case <-time.After(again):
		}
	}
}
