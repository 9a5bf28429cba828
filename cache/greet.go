package cache

import (
	"context"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"stoker.dev"
	"stoker.dev/planner"
)

const (
	greeted   = 256             // workers at most
	greetings = 8               // at a time
	greetIn   = 2 * time.Second // all of them
)

// Greet tells the workers that will be asked for what is not here that it will be read:
// they open the dataset, and the connections to them are made. It does not wait for that.
// Nothing is brought in; who does not answer is asked later, or not at all.
func (s *Set) Greet() {
	s.background(func() {
		ctx, cancel := context.WithTimeout(s.c.stop, greetIn)
		defer cancel()
		s.greet(ctx)
	})
}

func (s *Set) greet(ctx context.Context) {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(greetings)
	here, known := map[stoker.ID]bool{}, map[string]bool{}
	for _, sh := range s.c.o.Store.Shards() {
		here[sh.ID] = true
	}
	plan := s.plan.Load()
	others := s.c.others(plan)
	for n := range uint32(len(s.slots)) {
		if len(known) >= others || ctx.Err() != nil {
			break
		}
		shard := s.man.Shard(n).ID
		if here[shard] {
			continue
		}
		ask, _, _ := s.c.o.Directory.Owners(ctx, plan, shard, n)
		if len(ask) == 0 || known[ask[0].ID] {
			continue
		}
		known[ask[0].ID] = true
		g.Go(func() error {
			err := s.c.o.Fetcher.Fetch(ctx, ask[0], s.id, n, 0, 0, true, func(int, []byte) error { return nil })
			if err != nil && !canceled(err) {
				s.log().Debug("a worker that will be asked does not answer", "peer", ask[0].ID, "error", err)
			}
			return nil
		})
	}
	_ = g.Wait() // none fails
}

// others is how many workers can be greeted: those of the plan, if there is one.
func (c *Cache) others(plan *planner.Plan) int {
	if plan == nil {
		return greeted
	}
	n := len(plan.Workers)
	if slices.ContainsFunc(plan.Workers, func(w planner.PlanWorker) bool { return w.ID == c.o.Store.WorkerID() }) {
		n--
	}
	return min(n, greeted)
}
