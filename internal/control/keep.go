package control

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"stoker.dev"
	"stoker.dev/activities"
	"stoker.dev/internal/api"
	"stoker.dev/workflows"
)

const (
	keepEvery = activities.LeaseEvery // how often copies are counted
	keepSoon  = 2 * time.Second       // and while a worker is drained
	keepAgain = 10 * time.Second      // what did not help is tried again then, if nothing has changed
)

// keeper sees to it that what somebody holds on a worker that is drained is copied
// to others. It decides by what workers and workflows say, and remembers only what
// it asked for last: each controller has one.
type keeper struct {
	kick chan struct{} // holds a signal: look at once

	mu    sync.Mutex
	asked map[stoker.ID]asked // +checklocks:mu
}

// asked is a repair that was begun.
type asked struct {
	seen string // how all was then
	at   time.Time
}

func newKeeper() *keeper {
	return &keeper{kick: make(chan struct{}, 1), asked: map[stoker.ID]asked{}}
}

// look makes it look at once.
func (k *keeper) look() {
	select {
	case k.kick <- struct{}{}:
	default:
	}
}

// due reports whether a repair is to be begun: something is not as it was at the
// last one, or that was some time ago.
func (k *keeper) due(id stoker.ID, seen string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	last := k.asked[id]
	return last.seen != seen || time.Since(last.at) >= keepAgain
}

func (k *keeper) note(id stoker.ID, seen string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.asked[id] = asked{seen, time.Now()}
}

// keep looks again and again until ctx ends.
func (c *Controller) keep(ctx context.Context) {
	for wait := keepSoon; ; {
		next := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			next.Stop()
			return
		case <-c.keeper.kick:
			next.Stop()
		case <-next.C:
		}
		if wait = keepEvery; c.keepOnce(ctx) {
			wait = keepSoon
		}
	}
}

// keepOnce begins the repairs that are due, and reports whether a worker is being
// drained.
func (c *Controller) keepOnce(ctx context.Context) (draining bool) {
	live, _, err := c.acts.Workers(ctx)
	if err != nil {
		return false
	}
	for _, w := range live {
		draining = draining || w.Draining
	}
	if !draining {
		return false
	}
	ws, err := c.workers(ctx)
	if err != nil {
		return true
	}
	draining = slices.ContainsFunc(ws, func(w worker) bool { return w.info.State == api.WorkerDraining })
	if !draining {
		return false
	}
	sets, err := c.o.Flows.Datasets(ctx)
	if err != nil {
		if ctx.Err() == nil {
			c.o.Log.Warn("nothing is moved off workers that are drained: Temporal does not say who wants how many copies", "error", err)
		}
		return true
	}
	for _, in := range toMove(ws, sets) {
		c.repair(ctx, ws, in)
	}
	return true
}

// repair begins one, if it is due.
func (c *Controller) repair(ctx context.Context, ws []worker, in workflows.RepairInput) {
	seen := situation(ws, in)
	if !c.keeper.due(in.Manifest, seen) {
		return
	}
	begun, err := c.o.Flows.Repair(ctx, in)
	switch {
	case err != nil && ctx.Err() == nil:
		c.o.Log.Warn("copies are not looked after", "dataset", in.Dataset, "manifest", in.Manifest.Short(), "error", err)
	case begun:
		c.keeper.note(in.Manifest, seen)
	}
}

// toMove are the datasets that workers which are drained have data of.
func toMove(ws []worker, sets []workflows.DatasetState) []workflows.RepairInput {
	var out []workflows.RepairInput
	at := map[stoker.ID]int{}
	for _, w := range ws {
		if w.info.State != api.WorkerDraining {
			continue
		}
		for _, h := range w.status.Manifests {
			if h.Bytes == 0 || h.Load != nil { // what is being loaded here moves then
				continue
			}
			if _, known := at[h.Manifest]; known {
				continue
			}
			at[h.Manifest] = len(out)
			in := workflows.RepairInput{Dataset: h.Dataset, Manifest: h.Manifest, Replicas: replicasOf(sets, h.Manifest), Spare: !held(ws, h.Manifest)}
			if in.Dataset == "" {
				in.Dataset = h.Manifest.Short()
			}
			in.Drop = in.Spare && w.info.Drain != nil && w.info.Drain.Drop
			out = append(out, in)
		}
	}
	return out
}

// held reports whether a job, a pin or a view holds a manifest anywhere.
func held(ws []worker, id stoker.ID) bool {
	return slices.ContainsFunc(ws, func(w worker) bool {
		return slices.ContainsFunc(w.status.Leases, func(l api.Lease) bool { return l.Manifest == id }) ||
			slices.ContainsFunc(w.status.Mounts, func(m api.MountInfo) bool { return m.Manifest == id })
	})
}

// replicasOf is how many copies those want who hold a manifest, at least one.
func replicasOf(sets []workflows.DatasetState, id stoker.ID) int {
	n := 1
	for _, s := range sets {
		if s.Manifest == id {
			for _, h := range s.Holders {
				n = max(n, h.Replicas)
			}
		}
	}
	return n
}

// situation is what decides whether a repair can come to more than the last one.
func situation(ws []worker, in workflows.RepairInput) string {
	var b strings.Builder
	fmt.Fprint(&b, in.Replicas, in.Spare, in.Drop)
	for _, w := range ws {
		if w.info.State == api.WorkerLost {
			continue
		}
		fmt.Fprint(&b, " ", w.info.ID, w.info.State, w.info.Incarnation, w.info.CapacityBytes)
		for _, h := range w.status.Manifests {
			if h.Manifest == in.Manifest {
				fmt.Fprint(&b, " ", h.Bytes, h.Load != nil)
			}
		}
		for _, m := range w.status.Mounts {
			if m.Manifest == in.Manifest {
				fmt.Fprint(&b, " ", m.Dir)
			}
		}
	}
	return b.String()
}
