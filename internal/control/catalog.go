package control

import (
	"context"
	"net/http"
	"strings"
	"time"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/internal/api"
	"stoker.dev/workflows"
)

// sync lists a dataset again, or follows the run of a listing that was asked for
// before, and returns it with its current generation.
func (c *Controller) sync(ctx context.Context, d *resolved, run string, stream *api.Stream) (now *resolved, unchanged bool, err error) {
	f, err := c.o.Flows.SyncDataset(ctx, d.entry, run, workflows.Follow{
		Begun:    func(run string) { _ = stream.Send(api.Event{Following: &api.Following{Run: run, From: d.Number}}) },
		Progress: func(p api.ListProgress) { _ = stream.Send(api.Event{Listing: &p}) },
	})
	if err != nil {
		return nil, false, err
	}
	now, err = c.find(ctx, d.entry.Name, 0)
	return now, f.Unchanged, err
}

// stale reports whether a dataset's listing is older than it may be.
func stale(d *resolved) bool {
	return d.entry.MaxAge > 0 && time.Since(d.ListedAt) > d.entry.MaxAge
}

func (c *Controller) syncDataset(w http.ResponseWriter, r *http.Request) error {
	d, err := c.readable(r, c.named)
	if err != nil {
		return err
	}
	if strings.Contains(r.PathValue("name"), "@") {
		return stoker.Errorf(stoker.KindInvalid, "dataset", r.PathValue("name"), "a sync makes a new generation: leave @%d out", d.Number)
	}
	var req api.SyncRequest
	if err := api.ReadJSON(w, r, &req); err != nil {
		return err
	}
	if g, ok := d.entry.Find(req.From); ok && req.Run != "" {
		d.Generation, d.DatasetRef.Generation = g, g.Number
	}
	stream := api.NewStream(w)
	now, unchanged, err := c.sync(r.Context(), d, req.Run, stream)
	if err == nil {
		err = c.sendSynced(r.Context(), stream, d, now, unchanged)
	}
	if err != nil {
		stream.Fail(r.Context(), err)
	}
	return nil
}

// sendSynced answers a sync with what it has found.
func (c *Controller) sendSynced(ctx context.Context, stream *api.Stream, before, now *resolved, unchanged bool) error {
	detail, err := c.detail(ctx, now)
	if err != nil {
		return err
	}
	detail.Unchanged = unchanged
	if !unchanged && before.Number != 0 && before.Number != now.Number {
		found, err := c.compare(ctx, before.Generation, now.Generation, 0)
		if err != nil { // the generation is made all the same
			c.o.Log.Warn("a sync's changes cannot be counted", "dataset", now.Name, "manifest", before.Manifest, "error", err)
		} else {
			detail.Changes = &found.ChangeCounts
		}
	}
	return stream.Send(api.Event{Dataset: detail})
}

// removeDataset frees what the workers have of all generations, and takes the
// name out of the registry. Held data is refused before anything is done.
func (c *Controller) removeDataset(w http.ResponseWriter, r *http.Request) error {
	d, err := c.toChange(r, "generations cannot be removed one by one")
	if err != nil {
		return err
	}
	ws, err := c.workers(r.Context())
	if err != nil {
		return err
	}
	pins, err := c.manifests.Pins(r.Context(), d.Name)
	if err != nil {
		return err
	}
	for _, g := range d.entry.Generations {
		if who := heldBy(ws, pins, g.Manifest); len(who) > 0 {
			return stoker.Errorf(stoker.KindHeld, "dataset", d.Name, "generation %d is held by %s: wait for them", g.Number, strings.Join(who, ", "))
		}
	}
	var sum api.EvictReport
	for _, g := range d.entry.Generations {
		other, err := c.alsoIn(r.Context(), g.Manifest, func(e *manifest.Dataset) bool { return e.Name != d.Name })
		if err != nil {
			return err
		}
		if other != nil { // its data stays
			continue
		}
		rep, err := c.evictEverywhere(r.Context(), ws, api.EvictRequest{Manifest: g.Manifest})
		if err != nil {
			return err
		}
		sum.Shards, sum.Bytes, sum.Missed = sum.Shards+rep.Shards, sum.Bytes+rep.Bytes, rep.Missed
	}
	if err := c.o.Flows.RemoveDataset(r.Context(), d.entry); err != nil {
		return err
	}
	if err := c.manifests.RemovePins(r.Context(), d.Name); err != nil {
		return err
	}
	c.o.Log.Info("removed from the registry", "dataset", d.Name, "owner", d.entry.Owner)
	api.WriteJSON(w, http.StatusOK, sum)
	return nil
}
