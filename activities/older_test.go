package activities

import (
	"log/slog"
	"slices"
	"testing"
	"time"

	"go.temporal.io/sdk/log"
	"go.temporal.io/sdk/testsuite"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/planner"
)

// next freezes the generation that follows the cluster's and returns its plan.
func (c *cluster) next(t *testing.T) (stoker.ID, *planner.Plan) {
	t.Helper()
	var suite testsuite.WorkflowTestSuite
	suite.SetLogger(log.NewStructuredLogger(slog.New(slog.DiscardHandler)))
	env := suite.NewTestActivityEnvironment()
	env.RegisterActivity(c.Freeze)
	var f Frozen
	v, err := env.ExecuteActivity(c.Freeze, FreezeInput{Roots: someRoots, Base: c.manifest})
	if err == nil {
		err = v.Get(&f)
	}
	if err != nil {
		t.Fatal(err)
	}
	p, err := c.Plan(t.Context(), PlanInput{Dataset: "d", Generation: 2, Manifest: f.Manifest})
	if err != nil {
		t.Fatal(err)
	}
	plan, err := c.LoadPlan(t.Context(), p.Plan)
	if err != nil {
		t.Fatal(err)
	}
	return f.Manifest, plan
}

// A new generation's shards go to the workers that have the old ones of most
// of their objects, though none keeps its id.
func TestPlanFollowsTheOldGeneration(t *testing.T) {
	c := newCluster(t, 3)
	_, first := c.planned(t, PlanInput{})
	for n := range first.Owners { // not where they would go by themselves
		first.Owners[n][0] = (first.Owners[n][0] + 1) % 3
	}
	c.announce(t, first, true)
	old := map[string]string{}
	c.eachShard(c.m, func(n uint32, path string) { old[path] = first.Workers[first.Owners[n][0]].ID })
	for key := range c.listed {
		if key[len(key)-1] == '7' {
			c.listed[key]++
		}
	}
	id, plan := c.next(t)
	m, err := c.o.Store.Load(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if m.Header().Base != c.manifest {
		t.Fatalf("the base of the new generation is %s", m.Header().Base.Short())
	}
	stayed, all := 0, 0
	c.eachShard(m, func(n uint32, path string) {
		all++
		if old[path] == plan.Workers[plan.Owners[n][0]].ID {
			stayed++
		}
	})
	if stayed < all*8/10 {
		t.Errorf("%d of %d objects are copied on one disk", stayed, all)
	}
	c.index.err = stoker.Errorf(stoker.KindTransient, "index", "", "nobody listens there")
	if has := c.havingOld(t.Context(), m, nil, nil, nil); slices.ContainsFunc(has, func(ws []int) bool { return len(ws) > 0 }) {
		t.Errorf("without the index %v are known", has)
	}
}

// eachShard calls fn for each object in each shard.
func (c *cluster) eachShard(m *manifest.Manifest, fn func(n uint32, path string)) {
	for n := range uint32(m.Shards()) {
		for _, p := range m.Members(n, nil) {
			fn(n, m.Path(p.Row))
		}
	}
}

// What a lost worker would copy from an older generation on its disk waits for
// its return: others would have to fetch it. When it will not come, it moves.
func TestMendWaitsForOldShards(t *testing.T) {
	c := newCluster(t, 3)
	_, first := c.planned(t, PlanInput{})
	c.announce(t, first, true)
	for key := range c.listed {
		if key[len(key)-1] == '7' {
			c.listed[key]++
		}
	}
	_, plan := c.next(t)
	id, err := c.o.Store.PutBlob(t.Context(), "plans", plan.Encode())
	if err != nil {
		t.Fatal(err)
	}
	mine := plan.Part(0)
	if len(mine) < 3 {
		t.Fatalf("the part has %d shards: the test tries nothing", len(mine))
	}
	lost := c.worker(plan.Workers[0].ID)
	if err := c.index.Register(t.Context(), lost.Worker, -time.Second); err != nil {
		t.Fatal(err)
	}
	lost.server.Close()
	m, err := c.Mend(t.Context(), MendInput{Plan: id, Round: 99})
	if err != nil || m.Kept.IsZero() {
		t.Fatalf("nothing waits: %+v, %v", m, err)
	}
	kept, err := c.LoadPlan(t.Context(), m.Kept)
	if err != nil {
		t.Fatal(err)
	}
	if len(kept.Mended) < len(mine)*8/10 {
		t.Errorf("of %d shards whose likes are on the lost worker %d wait for it", len(mine), len(kept.Mended))
	}
	if m, err := c.Mend(t.Context(), MendInput{Plan: id, All: true, Round: 99}); err != nil || !m.Kept.IsZero() || m.Moved.IsZero() {
		t.Errorf("it will not come back: %+v, %v", m, err)
	}
}
