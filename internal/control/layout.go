package control

import (
	"context"
	"slices"
	"strings"

	"stoker.dev"
	"stoker.dev/cache/placement"
	"stoker.dev/internal/api"
	"stoker.dev/workflows"
)

// Where the bytes of a claim's data are to be.
const (
	layoutAuto   = "auto"   // local if its nodes have room, else spread
	layoutLocal  = "local"  // every byte on each node of the job
	layoutSpread = "spread" // each shard on as many workers as there are replicas
)

const (
	maxNodes = 1024 // of one job
	leastID  = 8    // letters by which a worker may be named: as messages name it
)

// checkLayout checks what a claim says of where its data is to be.
func checkLayout(req *api.ClaimRequest) error {
	bad := func(format string, args ...any) error {
		return stoker.Errorf(stoker.KindInvalid, "job", req.Job, format, args...)
	}
	switch {
	case req.Layout != "" && !slices.Contains([]string{layoutAuto, layoutLocal, layoutSpread}, req.Layout):
		return bad("layout %q: want auto, local or spread", req.Layout)
	case len(req.Nodes) > maxNodes:
		return bad("%d nodes: want at most %d", len(req.Nodes), maxNodes)
	case len(req.Nodes) > 0 && (req.Layout == "" || req.Layout == layoutSpread):
		return bad("nodes go with layout local or auto")
	case slices.Contains(req.Nodes, ""):
		return bad("a node without a name")
	case req.Layout == layoutLocal && len(req.Nodes) == 0 && !req.Preload:
		return bad("layout local needs the names of the job's nodes")
	case req.Layout == layoutLocal && req.Replicas > 1:
		return bad("replicas go with layout spread: local has a copy on each node")
	}
	return nil
}

// layout finds the workers that are to have all of a claim's data. Where it is not
// known which these are, auto spreads it.
func (c *Controller) layout(ctx context.Context, req *api.ClaimRequest, in *workflows.JobInput) error {
	if req.Layout != layoutLocal && (req.Layout != layoutAuto || len(req.Nodes) == 0) {
		return nil
	}
	in.Auto = req.Layout == layoutAuto
	live, _, err := c.acts.Workers(ctx)
	if err == nil {
		in.Nodes, err = nodesNamed(req, live)
	}
	if err != nil && in.Auto && ctx.Err() == nil {
		c.o.Log.Info("the nodes of a job are not all known: its data is spread", "job", req.Job, "error", err)
		in.Nodes, in.Auto, err = nil, false, nil
	}
	return err
}

// nodesNamed are the ids of the workers of a claim's nodes, sorted; a preload that
// names none means all that cache anything.
func nodesNamed(req *api.ClaimRequest, live []placement.Worker) (ids []string, err error) {
	if len(req.Nodes) == 0 {
		for _, w := range live {
			if w.CapacityBytes > 0 {
				ids = append(ids, w.ID)
			}
		}
		if len(ids) == 0 {
			return nil, stoker.Errorf(stoker.KindTransient, "job", req.Job, "no cache worker is live: start 'stokerd worker' on a node")
		}
	}
	for _, name := range req.Nodes {
		w, err := nodeNamed(name, live)
		if err != nil {
			return nil, err
		}
		if w.CapacityBytes == 0 {
			return nil, stoker.Errorf(stoker.KindInvalid, "node", name, "its worker caches nothing, so it cannot have the data: leave it out, or take --layout spread")
		}
		ids = append(ids, w.ID)
	}
	slices.Sort(ids)
	return slices.Compact(ids), nil
}

// nodeNamed finds a worker by its id, the beginning of that, or its node's name.
func nodeNamed(name string, live []placement.Worker) (found placement.Worker, err error) {
	var ids []string
	for _, w := range live {
		switch {
		case w.ID == name:
			return w, nil
		case w.Node == name, len(name) >= leastID && strings.HasPrefix(w.ID, name):
			found, ids = w, append(ids, w.ID)
		}
	}
	switch len(ids) {
	case 0:
		return found, stoker.Errorf(stoker.KindNotExist, "node", name, "has no live worker: 'stoker workers' lists them; start one there, or take --layout spread")
	case 1:
		return found, nil
	}
	slices.Sort(ids)
	return found, stoker.Errorf(stoker.KindInvalid, "node", name, "is the name of %d workers: say which by their ids: %s", len(ids), strings.Join(ids[:min(len(ids), 8)], ", "))
}
