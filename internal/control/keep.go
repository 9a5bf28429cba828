package control

import (
	"context"
	"fmt"
	"maps"
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
	keepEvery = activities.LeaseEvery // how often copies are looked after
	keepSoon  = 2 * time.Second       // and while a worker is drained
	keepAgain = 10 * time.Second      // and while one is away; what did not help is tried again then, if nothing has changed
	keepCount = 10 * time.Minute      // what was enough is counted again then
)

// keeper sees to it that there are as many copies of data as there are to be, and
// that what somebody holds on a worker that is drained is copied to others. It
// decides by what workers, registry and workflows say, and remembers only what it
// asked for last: each controller has one.
type keeper struct {
	kick  chan struct{} // holds a signal: look at once
	began time.Time

	mu    sync.Mutex
	asked map[stoker.ID]asked // +checklocks:mu
	urged map[stoker.ID]bool  // +checklocks:mu — look after them though a worker is away: somebody asked for it
}

// asked is a repair that was begun.
type asked struct {
	seen   string // how all was then
	at     time.Time
	enough bool // it found nothing to do
}

func newKeeper() *keeper {
	return &keeper{kick: make(chan struct{}, 1), began: time.Now(), asked: map[stoker.ID]asked{}, urged: map[stoker.ID]bool{}}
}

// look makes it look at once.
func (k *keeper) look() {
	select {
	case k.kick <- struct{}{}:
	default:
	}
}

// urge makes it count a manifest's copies at the next look, whatever it knows.
func (k *keeper) urge(id stoker.ID) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.asked, id)
	k.urged[id] = true
}

// forget drops what is known of data of which one copy will do.
func (k *keeper) forget(wants map[stoker.ID]want) {
	k.mu.Lock()
	defer k.mu.Unlock()
	maps.DeleteFunc(k.urged, func(id stoker.ID, _ bool) bool { return wants[id].replicas < 2 })
	maps.DeleteFunc(k.asked, func(id stoker.ID, a asked) bool { return wants[id].replicas < 2 && time.Since(a.at) > keepCount })
}

func (k *keeper) isUrged(id stoker.ID) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.urged[id]
}

// due reports whether a repair is to be begun: something is not as it was at the
// last one, or that was some time ago.
func (k *keeper) due(id stoker.ID, seen string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	last, again := k.asked[id], keepAgain
	if last.enough {
		again = keepCount
	}
	return last.seen != seen || time.Since(last.at) >= again
}

func (k *keeper) note(id stoker.ID, a asked) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.asked[id] = a
	delete(k.urged, id)
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
		wait = c.keepOnce(ctx)
	}
}

// keepOnce begins the repairs that are due, and says when to look again.
func (c *Controller) keepOnce(ctx context.Context) (next time.Duration) {
	live, _, err := c.acts.Workers(ctx)
	if err != nil {
		return keepEvery
	}
	leaving, away := false, c.acts.AnyAway(c.o.Flows.ReturnWindow())
	for _, w := range live {
		leaving = leaving || w.Draining
	}
	if next = keepEvery; away || leaving {
		next = keepAgain
	}
	sets, err := c.o.Flows.Datasets(ctx)
	if err != nil {
		if leaving && ctx.Err() == nil {
			c.o.Log.Warn("nothing is moved off workers that are drained: Temporal does not say who wants how many copies", "error", err)
		}
		return next
	}
	wants, err := c.wanted(ctx, sets)
	if err != nil && ctx.Err() == nil {
		c.o.Log.Warn("copies are not counted: the manifest store does not say how many there are to be", "error", err)
	}
	if c.keeper.forget(wants); !leaving && len(wants) == 0 {
		return keepEvery
	}
	ws, err := c.workers(ctx)
	if err != nil {
		return next
	}
	moves := toMove(ws, sets, wants)
	for _, in := range moves {
		c.repair(ctx, ws, in)
	}
	c.restore(ctx, ws, sets, wants, away)
	if anyDraining(ws) {
		next = keepSoon
	}
	return next
}

func anyDraining(ws []worker) bool {
	return slices.ContainsFunc(ws, func(w worker) bool { return w.info.State == api.WorkerDraining })
}

// restore begins repairs of data of which there is to be more than one copy. A
// worker that is away has its return window before what it has is copied again;
// one that this controller has never seen, as long.
func (c *Controller) restore(ctx context.Context, ws []worker, sets []workflows.DatasetState, wants map[stoker.ID]want, away bool) {
	away = away || time.Since(c.keeper.began) < c.o.Flows.ReturnWindow()
	for id, w := range wants {
		if away && !c.keeper.isUrged(id) || residentBytes(ws, id) == 0 || loading(ws, sets, id) {
			continue
		}
		c.repair(ctx, ws, workflows.RepairInput{Dataset: w.dataset, Generation: w.generation, Manifest: id, Replicas: w.replicas, Spare: !held(ws, id)})
	}
}

// repair begins one, if it is due. Of the last one it is asked first whether that
// found anything to do, unless a worker is drained: then more may go than what is
// seen here decides.
func (c *Controller) repair(ctx context.Context, ws []worker, in workflows.RepairInput) {
	seen := situation(ws, in)
	if !c.keeper.due(in.Manifest, seen) {
		return
	}
	c.keeper.mu.Lock()
	last := c.keeper.asked[in.Manifest]
	c.keeper.mu.Unlock()
	if last.seen == seen && !last.enough && !anyDraining(ws) {
		s, at, running, err := c.o.Flows.RepairState(ctx, in.Manifest)
		if err == nil && (running || s.Enough() && !at.Before(last.at.Add(-time.Second))) {
			last.enough, last.at = !running, time.Now()
			c.keeper.note(in.Manifest, last)
			return
		}
	}
	begun, err := c.o.Flows.Repair(ctx, in)
	switch {
	case err != nil && ctx.Err() == nil:
		c.o.Log.Warn("copies are not looked after", "dataset", in.Dataset, "manifest", in.Manifest.Short(), "error", err)
	case begun:
		c.keeper.note(in.Manifest, asked{seen: seen, at: time.Now()})
	}
}

// toMove are the datasets that workers which are drained have data of.
func toMove(ws []worker, sets []workflows.DatasetState, wants map[stoker.ID]want) []workflows.RepairInput {
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
			in := workflows.RepairInput{Dataset: h.Dataset, Manifest: h.Manifest, Replicas: max(replicasOf(sets, h.Manifest), wants[h.Manifest].replicas), Spare: !held(ws, h.Manifest)}
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
