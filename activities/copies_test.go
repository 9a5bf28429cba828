package activities

import (
	"slices"
	"testing"
	"time"

	"stoker.dev"
	"stoker.dev/internal/api"
)

// has makes a worker say that it has shards, all of them or, with some, only
// their first block.
func (f *fakeWorker) has(shards []uint32, some bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, n := range shards {
		r := api.ShardReport{Shard: n}
		if some {
			r.Present = []byte{1}
		}
		f.report.Shards = append(f.report.Shards, r)
	}
}

func (f *fakeWorker) drained() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.status.State, f.status.Drain = api.WorkerDraining, &api.Drain{By: "ann"}
}

func shardsFrom(from, to int) (out []uint32) {
	for n := from; n < to; n++ {
		out = append(out, uint32(n))
	}
	return out
}

// copied says which shards a plan of copies puts on which worker.
func (c *cluster) copied(t *testing.T, in CopiesInput) (CopiesPlanned, map[string][]uint32) {
	t.Helper()
	in.Manifest, in.Dataset = c.manifest, "d"
	p, err := c.PlanCopies(t.Context(), in)
	if err != nil {
		t.Fatal(FromTemporal("", "", err))
	}
	out := map[string][]uint32{}
	if p.Plan.IsZero() {
		return p, out
	}
	plan, err := c.LoadPlan(t.Context(), p.Plan)
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range p.Parts {
		out[plan.Workers[part].ID] = plan.Part(part)
	}
	return p, out
}

// Every shard that somebody has gets as many copies as there are to be, on workers
// that stay; what a drained one has does not count, not even blocks of a shard; what
// nobody has is not brought in.
func TestPlanCopies(t *testing.T) {
	c := newCluster(t, 4)
	n := c.m.Shards()
	if n < 8 {
		t.Fatalf("%d shards are too few for this test", n)
	}
	c.workers[0].has(shardsFrom(0, 4), false)
	c.workers[1].has(shardsFrom(2, 6), false) // 2 and 3 are there twice
	c.workers[3].has(shardsFrom(4, 6), true)  // some of it, as readers leave it
	if p, got := c.copied(t, CopiesInput{Replicas: 1}); !p.Plan.IsZero() || len(got) != 0 {
		t.Errorf("once is enough: %+v", got)
	}
	p, got := c.copied(t, CopiesInput{Replicas: 2})
	var all []uint32
	for _, shards := range got {
		all = append(all, shards...)
	}
	slices.Sort(all)
	if want := []uint32{0, 0, 1, 1, 4, 4, 5, 5}; !slices.Equal(all, want) || p.ShortBytes != 0 { // who has it stays in the plan
		t.Errorf("twice: %v (%v), %+v", all, got, p)
	}
	c.workers[0].drained()
	c.workers[2].has(shardsFrom(6, 7), true)
	c.workers[2].drained()
	p, got = c.copied(t, CopiesInput{Replicas: 1})
	all = nil
	for id, shards := range got {
		all = append(all, shards...)
		if id == "w0" || id == "w2" {
			t.Errorf("%s is drained and gets %v", id, shards)
		}
	}
	slices.Sort(all)
	if want := []uint32{0, 1, 6}; !slices.Equal(all, want) || p.ShortBytes != 0 {
		t.Errorf("off the drained ones: %v, %+v", all, p)
	}
	c.workers[1].server.Close()
	_, err := c.PlanCopies(t.Context(), CopiesInput{Manifest: c.manifest, Replicas: 1})
	if err = FromTemporal("", "", err); stoker.KindOf(err) != stoker.KindTransient {
		t.Errorf("a worker does not answer: %v", err)
	}
}

// What finds no room is counted; of data that nobody holds no room is made.
func TestPlanCopiesWithoutRoom(t *testing.T) {
	c := newCluster(t, 2)
	c.workers[0].has(shardsFrom(0, c.m.Shards()), false)
	c.workers[0].drained()
	c.workers[1].status.UsedBytes = c.workers[1].CapacityBytes - 100*mib
	c.workers[1].status.FreeableBytes = c.workers[1].status.UsedBytes
	if p, _ := c.copied(t, CopiesInput{Replicas: 1}); p.ShortBytes != 0 || p.Bytes < c.m.Bytes() {
		t.Errorf("with room to be made: %+v", p)
	}
	p, _ := c.copied(t, CopiesInput{Replicas: 1, Spare: true})
	if p.Bytes == 0 || p.Bytes > 100*mib || p.FreeBytes != 100*mib || p.ShortBytes < c.m.Bytes()-100*mib {
		t.Errorf("without: %+v", p)
	}
}

// What is on workers that stay often enough goes from those that are drained, and
// what is there too often from the others, if that is asked for.
func TestDropCopies(t *testing.T) {
	c := newCluster(t, 4)
	c.workers[0].has(shardsFrom(0, 6), false)
	c.workers[0].drained()
	c.workers[1].has(shardsFrom(0, 3), false)
	c.workers[2].has(shardsFrom(0, 4), false)
	c.workers[3].has(shardsFrom(0, 2), false)
	c.workers[3].has(shardsFrom(4, 5), true)
	drops := func(in DropInput) (out [4][]uint32) {
		t.Helper()
		in.Manifest = c.manifest
		if _, err := c.DropCopies(t.Context(), in); err != nil {
			t.Fatal(FromTemporal("", "", err))
		}
		for i, w := range c.workers {
			w.mu.Lock()
			for _, d := range w.dropped {
				out[i] = append(out[i], d.Shards...)
			}
			w.dropped = nil
			w.mu.Unlock()
		}
		return out
	}
	if got := drops(DropInput{Replicas: 2}); !slices.Equal(got[0], []uint32{0, 1, 2}) || len(got[1])+len(got[2])+len(got[3]) != 0 {
		t.Errorf("of two copies: %v", got)
	}
	if got := drops(DropInput{Replicas: 1}); !slices.Equal(got[0], []uint32{0, 1, 2, 3}) {
		t.Errorf("of one copy: %v", got)
	}
	got := drops(DropInput{Replicas: 2, Surplus: true})
	if rest := slices.Concat(got[1], got[2], got[3]); !slices.Equal(got[0], []uint32{0, 1, 2}) || len(rest) != 2 || rest[0]+rest[1] != 1 {
		t.Errorf("what is beyond two copies: %v", got)
	}
	if _, err := c.DropCopies(t.Context(), DropInput{Manifest: c.manifest, Spare: true}); err != nil || c.workers[0].count("evict") != 1 || c.workers[1].count("evict") != 0 {
		t.Errorf("what nobody holds: %v, %d and %d evictions", err, c.workers[0].count("evict"), c.workers[1].count("evict"))
	}
}

// A worker that is drained has no part in a plan, nor room for a claim.
func TestPlanWithoutTheDrained(t *testing.T) {
	c := newCluster(t, 3)
	c.workers[1].drained()
	_, plan := c.planned(t, PlanInput{})
	for _, w := range plan.Workers {
		if w.ID == "w1" {
			t.Error("it has a part")
		}
	}
	for _, w := range []*fakeWorker{c.workers[0], c.workers[2]} {
		w.status.UsedBytes = w.CapacityBytes
	}
	if p, err := c.Plan(t.Context(), PlanInput{Manifest: c.manifest}); stoker.KindOf(FromTemporal("", "", err)) != stoker.KindNoSpace {
		t.Errorf("with its space alone: %+v, %v", p, err)
	}
}

// Who was live and is not is away for as long as its return window; one that was
// drained was to go, and one that holds nothing is not missed.
func TestAnyAway(t *testing.T) {
	c := newCluster(t, 4)
	look := func(want bool, what string) {
		t.Helper()
		if _, _, err := c.Workers(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := c.AnyAway(time.Hour); got != want {
			t.Errorf("%s: %v", what, got)
		}
	}
	look(false, "all live")
	c.workers[1].Draining, c.workers[2].CapacityBytes = true, 0
	c.register(t, c.workers[1])
	c.register(t, c.workers[2])
	look(false, "all live yet")
	for _, n := range []int{1, 2} {
		if err := c.index.Leave(t.Context(), c.workers[n].Incarnation); err != nil {
			t.Fatal(err)
		}
	}
	look(false, "one was drained, one holds nothing")
	if err := c.index.Leave(t.Context(), c.workers[3].Incarnation); err != nil {
		t.Fatal(err)
	}
	look(true, "one is away")
	if c.AnyAway(time.Nanosecond) {
		t.Error("its window is over, and it is away")
	}
}
