package worker

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"stoker.dev"
	"stoker.dev/cache/placement"
	"stoker.dev/planner"
)

// emptied is an index that is emptied now and then.
type emptied struct{ placement.Index }

// After the index was emptied the others are known as before until their
// leases have run out: a read finds the plan's owner, not another one.
func TestEmptiedIndexHidesNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		index := &emptied{placement.NewMem(time.Now)}
		var all []placement.Worker
		for i := range 3 {
			all = append(all, placement.Worker{ID: fmt.Sprintf("w%d", i), Address: fmt.Sprintf("http://w%d", i), Incarnation: stoker.NewIncarnation()})
		}
		plan := &planner.Plan{Owners: [][]uint16{{1}}}
		for _, w := range all {
			plan.Workers = append(plan.Workers, planner.PlanWorker{ID: w.ID, Address: w.Address})
			if err := index.Register(ctx, w, leaseTTL); err != nil {
				t.Fatal(err)
			}
		}
		d := newDirectory(index, func() placement.Worker { return all[0] }, slog.New(slog.DiscardHandler))
		d.held = func(context.Context, func(stoker.ID, uint32, bool)) error { return nil }
		if !d.register(ctx) || len(d.live()) != 3 {
			t.Fatalf("live: %v", d.live())
		}
		owner := func(when string, want string) {
			t.Helper()
			if p, self := d.Owner(ctx, plan, stoker.ID{}, 0); self || p.ID != want {
				t.Errorf("%s: the owner is %q (self: %v)", when, p.ID, self)
			}
		}
		empty := func() { index.Index = placement.NewMem(time.Now) }

		empty()
		d.refresh(ctx) // a read comes first
		owner("nobody is registered", "w1")
		d.mu.Lock()
		d.workers = all[:1] // as of a worker that came first, and had not heard of the others
		d.mu.Unlock()
		owner("nobody was heard of", "w1")
		d.mu.Lock()
		d.workers = slices.Clone(all)
		d.mu.Unlock()
		if d.renew(ctx) || !d.register(ctx) {
			t.Fatal("it is still known, or cannot register")
		}
		owner("only we are", "w1")

		empty()
		if d.renew(ctx) || !d.register(ctx) { // no read came between
			t.Fatal("it is still known, or cannot register")
		}
		owner("again only we are", "w1")
		all[1].Incarnation = stoker.NewIncarnation()
		if err := index.Register(ctx, all[1], leaseTTL); err != nil {
			t.Fatal(err)
		}
		d.refresh(ctx)
		if p, _ := d.Owner(ctx, plan, stoker.ID{}, 0); p.Incarnation != all[1].Incarnation {
			t.Error("an earlier life is remembered beside the present one")
		}
		if n := len(d.live()); n != 3 {
			t.Errorf("%d are live", n)
		}

		<-time.After(leaseTTL + time.Second)
		for _, w := range all[:2] {
			if _, err := index.Renew(ctx, w, leaseTTL); err != nil {
				t.Fatal(err)
			}
			if err := index.Register(ctx, w, leaseTTL); err != nil {
				t.Fatal(err)
			}
		}
		d.refresh(ctx)
		if n := len(d.live()); n != 2 {
			t.Errorf("%d are live after the third's lease has run out", n)
		}
	})
}
