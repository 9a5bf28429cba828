package control

import (
	"context"
	"net/http"
	"slices"
	"time"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/internal/api"
	"stoker.dev/workflows"
)

// surplusWithin is how long a request that lowers replicas waits for a repair of
// the same data that runs, before it says to try again.
const surplusWithin = 20 * time.Second

// setReplicas is PUT /v1/datasets/{name}/replicas. The number stands in the
// registry, for claims that say none and for data that is there. Copies that are
// missing are made soon; what is beyond it, and beyond what those want who hold the
// data, is dropped by repairs that have begun when it answers.
func (c *Controller) setReplicas(w http.ResponseWriter, r *http.Request) error {
	var req api.ReplicasRequest
	if err := api.ReadJSON(w, r, &req); err != nil {
		return err
	}
	d, err := c.toChange(r, "all generations have as many copies")
	if err != nil {
		return err
	}
	if req.Replicas < 1 || req.Replicas > maxReplicas {
		return stoker.Errorf(stoker.KindInvalid, "dataset", d.Name, "%d replicas: want 1 to %d", req.Replicas, maxReplicas)
	}
	entry, err := c.changeEntry(r.Context(), d.Name, func(d *manifest.Dataset) error {
		if d.Replicas = req.Replicas; req.Replicas == 1 {
			d.Replicas = 0
		}
		return nil
	})
	if err != nil {
		return err
	}
	c.o.Log.Info("has other replicas", "dataset", d.Name, "replicas", req.Replicas, "by", api.PrincipalOf(r.Context()).Name)
	if err := c.dropSurplus(r.Context(), entry); err != nil {
		return err
	}
	for _, g := range entry.Generations {
		c.keeper.urge(g.Manifest)
	}
	c.keeper.look()
	return c.answerDetail(w, r, d.Name)
}

// dropSurplus begins repairs that drop what there is too much of a dataset.
func (c *Controller) dropSurplus(ctx context.Context, d *manifest.Dataset) error {
	ws, err := c.workers(ctx)
	if err != nil {
		return err
	}
	sets, err := c.o.Flows.Datasets(ctx)
	if err != nil {
		return err
	}
	wanted, err := c.wanted(ctx, sets)
	if err != nil {
		return err
	}
	for _, g := range d.Generations {
		if residentBytes(ws, g.Manifest) == 0 || heldOnNodes(sets, g.Manifest) {
			continue
		}
		in := workflows.RepairInput{Dataset: d.Name, Generation: g.Number, Manifest: g.Manifest, Replicas: max(1, wanted[g.Manifest].replicas), Spare: !held(ws, g.Manifest), Surplus: true}
		if err := c.repairNow(ctx, in); err != nil {
			return err
		}
	}
	return nil
}

// heldOnNodes reports whether somebody who holds a manifest has all of it on certain
// workers: however many copies that makes, none is one too many.
func heldOnNodes(sets []workflows.DatasetState, id stoker.ID) bool {
	return slices.ContainsFunc(sets, func(s workflows.DatasetState) bool {
		return s.Manifest == id && slices.ContainsFunc(s.Holders, func(h workflows.Holder) bool { return len(h.Nodes) > 0 && !h.Spread })
	})
}

// repairNow begins a repair, after the one that runs.
func (c *Controller) repairNow(ctx context.Context, in workflows.RepairInput) error {
	ctx, cancel := context.WithTimeout(ctx, surplusWithin)
	defer cancel()
	for {
		begun, err := c.o.Flows.Repair(ctx, in)
		if err != nil || begun {
			return err
		}
		select {
		case <-ctx.Done():
			return stoker.Errorf(stoker.KindBusy, "dataset", in.Dataset, "its copies are being made or moved just now: the number is set; set it again later to drop those that are too many")
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// want is how many copies of a manifest there are to be, and of which dataset.
type want struct {
	dataset    string
	generation int
	replicas   int
}

// wanted are the manifests of which there is to be more than one copy, as the
// registry and those say who hold them.
func (c *Controller) wanted(ctx context.Context, sets []workflows.DatasetState) (map[stoker.ID]want, error) {
	all, err := c.manifests.Datasets(ctx)
	if err != nil {
		return nil, err
	}
	out := map[stoker.ID]want{}
	for _, d := range all {
		for _, g := range d.Generations {
			if d.Replicas > max(1, out[g.Manifest].replicas) {
				out[g.Manifest] = want{d.Name, g.Number, d.Replicas}
			}
		}
	}
	for _, s := range sets {
		if n := replicasOf(sets, s.Manifest); n > max(1, out[s.Manifest].replicas) {
			out[s.Manifest] = want{s.Dataset, s.Generation, n}
		}
	}
	return out, nil
}

// residentBytes adds up what workers have of a manifest.
func residentBytes(ws []worker, id stoker.ID) (sum int64) {
	for _, w := range ws {
		for _, h := range w.status.Manifests {
			if h.Manifest == id {
				sum += h.Bytes
			}
		}
	}
	return sum
}

// loading reports whether a load brings a manifest in, or somebody waits for one.
func loading(ws []worker, sets []workflows.DatasetState, id stoker.ID) bool {
	for _, w := range ws {
		for _, h := range w.status.Manifests {
			if h.Manifest == id && h.Load != nil {
				return true
			}
		}
	}
	for _, s := range sets {
		if s.Manifest == id && s.State != api.JobReady && s.State != api.JobFailed {
			return true
		}
	}
	return false
}

// copiesOf says how a dataset's copies are, if there are to be several.
func (c *Controller) copiesOf(ctx context.Context, d *api.DatasetDetail) {
	s, at, running, err := c.o.Flows.RepairState(ctx, d.Manifest)
	if err != nil || d.Replicas == 0 && !running {
		return // there was none, or nobody wants more than one
	}
	d.Copies = &api.CopiesStatus{At: at.UTC(), Running: running, Replicas: s.Input.Replicas, Bytes: s.Copies.Bytes, ShortBytes: s.Copies.ShortBytes, Error: s.Error}
}
