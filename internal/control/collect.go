package control

import (
	"context"
	"math/rand/v2"
	"time"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/internal/api"
)

// collectEvery is how often a controller looks for what nobody names any more.
const collectEvery = time.Hour

// collect looks again and again until ctx ends. Controllers that begin together do not
// look together.
func (c *Controller) collect(ctx context.Context) {
	if c.o.CollectAfter <= 0 {
		return
	}
	for pause := rand.N(collectEvery / 4); ; pause = collectEvery {
		next := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			next.Stop()
			return
		case <-next.C:
		}
		c.collectOnce(ctx, c.o.CollectAfter)
	}
}

func (c *Controller) collectOnce(ctx context.Context, after time.Duration) {
	got, err := c.manifests.Collect(ctx, manifest.CollectOptions{After: after, Named: c.namedNow})
	switch {
	case ctx.Err() != nil:
	case err != nil:
		c.o.Log.Warn("what nobody names stays in the manifest store for now", "removed", got.Removed, "error", err)
	case got.Removed > 0:
		c.o.Log.Info("what nobody named any more was removed from the manifest store", "removed", got.Removed, "unnamed", got.Unnamed)
	}
}

// namedNow is what is named: by the registry, pins, claims and loads, and the workers
// that have data of it. Whoever does not answer makes it an error.
func (c *Controller) namedNow(ctx context.Context) (map[string]bool, error) {
	names := map[string]bool{}
	add := func(kind string, ids ...stoker.ID) {
		for _, id := range ids {
			names[manifest.NameOf(kind, id)] = true
		}
	}
	sets, err := c.manifests.Datasets(ctx)
	if err != nil {
		return nil, err
	}
	for _, d := range sets {
		add(manifest.KindManifests, d.Current().Manifest)
	}
	pins, err := c.manifests.AllPins(ctx)
	if err != nil {
		return nil, err
	}
	for _, d := range pins {
		for _, p := range d.InForce(time.Now()) {
			add(manifest.KindManifests, p.Manifest)
		}
	}
	flows, err := c.o.Flows.Named(ctx)
	if err != nil {
		return nil, err
	}
	add(manifest.KindManifests, flows.Manifests...)
	add(manifest.KindPlans, flows.Plans...)
	add(manifest.KindCertificates, flows.Certificates...)
	held, err := c.heldByWorkers(ctx)
	if err != nil {
		return nil, err
	}
	for _, h := range held {
		add(manifest.KindManifests, h.Manifest)
		add(manifest.KindPlans, h.Plan)
	}
	return names, nil
}

// heldByWorkers is what all workers have.
func (c *Controller) heldByWorkers(ctx context.Context) (all []api.ManifestHolding, err error) {
	live, err := c.o.Index.Workers(ctx) // not those seen last: who they are must be known
	if err != nil {
		return nil, err
	}
	addresses := make([]string, len(live))
	for i, w := range live {
		addresses[i] = w.Address
	}
	each := make([][]api.ManifestHolding, len(live))
	err = c.acts.EachWorker(ctx, addresses, func(ctx context.Context, i int, w *api.WorkerClient) error {
		st, err := w.Status(ctx)
		each[i] = st.Manifests
		return err
	})
	for _, held := range each {
		all = append(all, held...)
	}
	return all, err
}
