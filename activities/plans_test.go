package activities

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/cache/placement"
	"stoker.dev/planner"
	"stoker.dev/ufs"
	"stoker.dev/ufs/folder"
)

// slow counts the plans that are read of a store, and takes its time.
type slow struct {
	ufs.Objects
	reads atomic.Int64
	gate  chan struct{}
}

func (s *slow) Get(ctx context.Context, name string) ([]byte, string, error) {
	if !strings.HasPrefix(name, manifest.KindPlans) {
		return s.Objects.Get(ctx, name)
	}
	s.reads.Add(1)
	select {
	case <-s.gate:
	case <-ctx.Done():
		return nil, "", ctx.Err()
	}
	return s.Objects.Get(ctx, name)
}

// counting counts how often an index is asked who is live.
type counting struct {
	placement.Index
	asked atomic.Int64
}

func (c *counting) Workers(ctx context.Context) ([]placement.Worker, error) {
	c.asked.Add(1)
	return c.Index.Workers(ctx)
}

// A thousand activities that need the same plan read it once and share it; one
// that gives up takes nothing from the others; only the last plans are kept.
func TestPlanIsReadOnce(t *testing.T) {
	objects, err := folder.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s := &slow{Objects: objects, gate: make(chan struct{})}
	a := New(Options{Store: manifest.NewStore(s, t.TempDir()), Index: placement.NewMem(time.Now)})
	var ids []stoker.ID
	for n := range 1 + keptPlans {
		p := &planner.Plan{Dataset: "d", Round: int64(n), Workers: []planner.PlanWorker{{ID: "w"}}, Owners: [][]uint16{{0}}}
		id, err := a.o.Store.PutBlob(t.Context(), "plans", p.Encode())
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	gone, leave := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	first := make(chan error, 1)
	go func() { _, err := a.LoadPlan(gone, ids[0]); first <- err }()
	for s.reads.Load() == 0 {
		<-time.After(time.Millisecond)
	}
	var got [1000]*planner.Plan
	for i := range got {
		wg.Go(func() {
			p, err := a.LoadPlan(t.Context(), ids[0])
			if err != nil {
				t.Error(err)
			}
			got[i] = p
		})
	}
	leave()
	if err := <-first; err == nil {
		t.Error("who gave up got a plan")
	}
	close(s.gate)
	wg.Wait()
	for _, p := range got {
		if p != got[0] {
			t.Fatal("there are two copies of one plan")
		}
	}
	if n := s.reads.Load(); n != 2 {
		t.Errorf("it was read %d times, want once and once in vain", n)
	}
	for _, id := range ids[1:] { // they push the first one out
		if _, err := a.LoadPlan(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	before := s.reads.Load()
	if _, err := a.LoadPlan(t.Context(), ids[0]); err != nil || s.reads.Load() != before+1 {
		t.Errorf("%d plans are kept, want %d (%v)", 1+keptPlans, keptPlans, err)
	}
	if _, err := a.LoadPlan(t.Context(), stoker.ID{9}); stoker.KindOf(err) != stoker.KindNotExist {
		t.Errorf("a plan that is not there: %v", err)
	}
}

// Reserving on many workers asks the index for them a few times, not once for each.
func TestWorkersAreLookedUpTogether(t *testing.T) {
	c := newCluster(t, 1)
	index := &counting{Index: c.o.Index}
	c.o.Index = index
	of := make([]planner.PlanWorker, 1000)
	began := time.Now()
	for _, w := range of {
		c.addressOf(t.Context(), w)
	}
	if n, most := index.asked.Load(), 2+int64(time.Since(began)/addressesAge); n < 1 || n > most {
		t.Errorf("it was asked %d times", n)
	}
}
