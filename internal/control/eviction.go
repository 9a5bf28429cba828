package control

import (
	"context"
	"math"
	"net/http"
	"slices"
	"strings"
	"time"

	"stoker.dev"
	"stoker.dev/cache/evict"
	"stoker.dev/cache/manifest"
	"stoker.dev/internal/api"
)

const (
	minIdle = time.Second
	maxIdle = 10 * 366 * 24 * time.Hour
	// ruled is of how many generations, the latest ones, a worker is told the
	// manifests: older data goes by the dataset's name, which a worker knows of
	// all that was ever loaded or mounted there.
	ruled = 16
	// casTries bounds how often a registry entry is read again that somebody
	// else has changed in between.
	casTries = 10
)

// checkEviction refuses what is no way to evict, and gives the default one name.
func checkEviction(name string, e *api.Eviction) error {
	mode, err := evict.ParseMode(e.Evict)
	if err != nil {
		return stoker.Errorf(stoker.KindInvalid, "dataset", name, "%w", err)
	}
	if e.Evict = string(mode); mode == evict.Auto {
		e.Evict = ""
	}
	switch t := e.TTLSeconds; {
	case math.IsNaN(t) || t > maxIdle.Seconds() || t > 0 && t < minIdle.Seconds():
		return stoker.Errorf(stoker.KindInvalid, "dataset", name, "a time to live of %.0f seconds: want %.0f to %.0f (ten years), 0 for what the workers say, or -1 for none", t, minIdle.Seconds(), maxIdle.Seconds())
	case t < 0:
		e.TTLSeconds = -1
	}
	return nil
}

// evictionOf is what users see of an entry's rule.
func evictionOf(d *manifest.Dataset) api.Eviction {
	e := api.Eviction{Evict: d.Evict, TTLSeconds: d.TTL.Seconds()}
	if e.Evict == "" {
		e.Evict = string(evict.Auto)
	}
	return e
}

// ruleOf is what the workers are told of an entry.
func ruleOf(d *manifest.Dataset) api.EvictionRule {
	r := api.EvictionRule{Dataset: d.Name, Eviction: evictionOf(d), Manifests: []stoker.ID{}}
	for _, g := range d.Generations[max(0, len(d.Generations)-ruled):] {
		r.Manifests = append(r.Manifests, g.Manifest)
	}
	return r
}

// rules are those of all datasets that have one.
func (c *Controller) rules(ctx context.Context) ([]api.EvictionRule, error) {
	all, err := c.manifests.Datasets(ctx)
	if err != nil {
		return nil, err
	}
	c.mendRestrictions(ctx, all)
	out := []api.EvictionRule{}
	for _, d := range all {
		if r := ruleOf(d); !r.IsDefault() {
			out = append(out, r)
		}
	}
	return out, nil
}

// setEviction is PUT /v1/datasets/{name}/eviction. The rule stands in the registry
// before the workers are told; one that does not answer now hears of it with
// the next renewal of leases.
func (c *Controller) setEviction(w http.ResponseWriter, r *http.Request) error {
	var req api.EvictionRequest
	if err := api.ReadJSON(w, r, &req); err != nil {
		return err
	}
	d, err := c.toChange(r, "all generations are evicted alike")
	if err != nil {
		return err
	}
	entry, err := c.changeEviction(r.Context(), d.Name, req)
	if err != nil {
		return err
	}
	c.tellRule(r.Context(), entry)
	c.o.Log.Info("evicted otherwise", "dataset", d.Name, "evict", evictionOf(entry).Evict, "ttl", entry.TTL, "by", api.PrincipalOf(r.Context()).Name)
	return c.answerDetail(w, r, d.Name)
}

// tellRule tells the workers how an entry's data is evicted.
func (c *Controller) tellRule(ctx context.Context, d *manifest.Dataset) {
	missed, err := c.acts.PutRules(ctx, api.RulesRequest{Rules: []api.EvictionRule{ruleOf(d)}})
	if err != nil || missed > 0 {
		c.o.Log.Warn("workers hear of how a dataset is evicted with the next renewal", "dataset", d.Name, "workers", missed, "error", err)
	}
}

// tellRules tells them of all rules. While the registry cannot be read they go on
// by those that they have.
func (c *Controller) tellRules(ctx context.Context) {
	all, err := c.rules(ctx)
	if err == nil {
		_, err = c.acts.PutRules(ctx, api.RulesRequest{Rules: all, All: true})
	}
	if err != nil && ctx.Err() == nil {
		c.o.Log.Warn("how datasets are evicted is not told anew", "error", err)
	}
}

// changeEviction enters what the request says into the registry.
func (c *Controller) changeEviction(ctx context.Context, name string, req api.EvictionRequest) (*manifest.Dataset, error) {
	return c.changeEntry(ctx, name, func(d *manifest.Dataset) error {
		e := evictionOf(d)
		if req.Evict != nil {
			e.Evict = *req.Evict
		}
		if req.TTLSeconds != nil {
			e.TTLSeconds = *req.TTLSeconds
		}
		if err := checkEviction(name, &e); err != nil {
			return err
		}
		d.Evict, d.TTL = e.Evict, time.Duration(e.TTLSeconds*float64(time.Second))
		return nil
	})
}

// changeEntry changes a registry entry, as often as others do so in between.
func (c *Controller) changeEntry(ctx context.Context, name string, change func(*manifest.Dataset) error) (*manifest.Dataset, error) {
	for try := 1; ; try++ {
		d, tag, err := c.manifests.Dataset(ctx, name)
		if err != nil {
			return nil, err
		}
		if err := change(d); err != nil {
			return nil, err
		}
		err = c.manifests.UpdateDataset(ctx, d, tag)
		if stoker.KindOf(err) != stoker.KindHeld {
			return d, err
		}
		if try == casTries {
			return nil, stoker.Errorf(stoker.KindBusy, "dataset", name, "others change it all the time: try again: %w", err)
		}
	}
}

func (c *Controller) evict(w http.ResponseWriter, r *http.Request) error {
	var req api.EvictRequest
	if err := api.ReadJSON(w, r, &req); err != nil {
		return err
	}
	d, err := c.held(r)
	if err != nil {
		return err
	}
	if err := mayChange(r, "dataset", d.Name, d.entry.Owner); err != nil {
		return err
	}
	if p := api.PrincipalOf(r.Context()); !p.Admin {
		other, err := c.alsoIn(r.Context(), d.Manifest, func(e *manifest.Dataset) bool { return e.Owner != p.Name })
		if err != nil {
			return err
		}
		if other != nil {
			return stoker.Errorf(stoker.KindDenied, "evict", d.Name, "its data is that of %s, too, which belongs to %s, not to you (%s): only an admin may", other.Name, other.Owner, p.Name)
		}
	}
	ws, err := c.workers(r.Context())
	if err != nil {
		return err
	}
	pins, err := c.pinsOf(r.Context(), d)
	if err != nil {
		return err
	}
	if who := heldBy(ws, pins, d.Manifest); len(who) > 0 && !req.Force { // before any worker has begun
		return stoker.Errorf(stoker.KindHeld, "evict", d.Name, "is held by %s: wait for them, or --force", strings.Join(who, ", "))
	}
	sum, err := c.evictEverywhere(r.Context(), ws, api.EvictRequest{Manifest: d.Manifest, Force: req.Force})
	if err != nil {
		return err
	}
	if sum.Shards == 0 && len(sum.Missed) > 0 {
		return stoker.Errorf(stoker.KindTransient, "evict", d.Name, "nothing was freed: %d workers do not answer: 'stoker workers' names them; try again", len(sum.Missed))
	}
	api.WriteJSON(w, http.StatusOK, sum)
	return nil
}

// alsoIn returns a registered dataset, of those that match, that has a manifest
// among its generations; nil if there is none. One listing may have several names.
func (c *Controller) alsoIn(ctx context.Context, id stoker.ID, match func(*manifest.Dataset) bool) (*manifest.Dataset, error) {
	all, err := c.manifests.Datasets(ctx)
	if err != nil {
		return nil, err
	}
	for _, e := range all {
		if match(e) && slices.ContainsFunc(e.Generations, func(g manifest.Generation) bool { return g.Manifest == id }) {
			return e, nil
		}
	}
	return nil, nil
}

// evictEverywhere asks every worker that is known; those that do not answer
// keep what they have, and are named.
func (c *Controller) evictEverywhere(ctx context.Context, ws []worker, req api.EvictRequest) (api.EvictReport, error) {
	var sum api.EvictReport
	var ids, addresses []string
	for _, x := range ws {
		if x.info.State != api.WorkerLost {
			ids, addresses = append(ids, x.info.ID), append(addresses, x.info.Address)
		} else {
			sum.Missed = append(sum.Missed, x.info.ID)
		}
	}
	reports, silent := make([]api.EvictReport, len(addresses)), make([]bool, len(addresses))
	err := c.acts.EachWorker(ctx, addresses, func(ctx context.Context, i int, wc *api.WorkerClient) (err error) {
		reports[i], err = wc.Evict(ctx, req)
		if api.Lost(err) && ctx.Err() == nil {
			silent[i], err = true, nil
		}
		return err
	})
	for i, rep := range reports {
		sum.Shards, sum.Bytes = sum.Shards+rep.Shards, sum.Bytes+rep.Bytes
		if silent[i] {
			sum.Missed = append(sum.Missed, ids[i])
		}
	}
	return sum, err
}
