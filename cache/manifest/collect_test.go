package manifest

import (
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"stoker.dev"
	"stoker.dev/ufs"
	"stoker.dev/ufs/folder"
)

const week = 7 * 24 * time.Hour

// collecting is a store with some blobs, and what is named of them.
type collecting struct {
	t       testing.TB
	s       *Store
	objects *hooked
	mu      sync.Mutex
	named   map[string]int
}

// hooked is a store whose deletes can be watched, or fail.
type hooked struct {
	ufs.Objects
	onDelete func(name string) error
}

func (h *hooked) Delete(ctx context.Context, name string) error {
	if h.onDelete != nil {
		if err := h.onDelete(name); err != nil {
			return err
		}
	}
	return h.Objects.Delete(ctx, name)
}

func newCollecting(t testing.TB) *collecting {
	t.Helper()
	objects, err := folder.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	h := &hooked{Objects: objects}
	return &collecting{t: t, s: NewStore(h, t.TempDir()), objects: h, named: map[string]int{}}
}

func (c *collecting) name(name string, by int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.named[name] += by; c.named[name] == 0 {
		delete(c.named, name)
	}
}

func (c *collecting) names(context.Context) (map[string]bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := map[string]bool{}
	for name := range c.named {
		out[name] = true
	}
	return out, nil
}

func (c *collecting) collect() Collected {
	c.t.Helper()
	got, err := c.s.Collect(context.Background(), CollectOptions{After: week, Named: c.names})
	if err != nil {
		c.t.Fatal(err)
	}
	return got
}

func (c *collecting) put(kind, body string) (name string) {
	c.t.Helper()
	id, err := c.s.PutBlob(context.Background(), kind, []byte(body))
	if err != nil {
		c.t.Fatal(err)
	}
	return NameOf(kind, id)
}

func (c *collecting) has(name string) bool {
	c.t.Helper()
	names, err := c.objects.List(context.Background(), name)
	if err != nil {
		c.t.Fatal(err)
	}
	return len(names) == 1
}

// hours collects every hour for so long.
func (c *collecting) hours(d time.Duration) (removed int) {
	for range d / time.Hour {
		time.Sleep(time.Hour) // of the bubble
		removed += c.collect().Removed
	}
	return removed
}

// What nobody named for a week goes, whatever it is, and nothing that somebody
// named in between.
func TestCollect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCollecting(t)
		held, plan, cert := c.put(KindManifests, "held"), c.put(KindPlans, "plan"), c.put(KindCertificates, "cert")
		again := c.put(KindPlans, "again")
		registry := "datasets/a.json"
		if _, err := c.objects.PutIfAbsent(t.Context(), registry, nil); err != nil {
			t.Fatal(err)
		}
		c.name(held, 1)
		if got := c.collect(); got != (Collected{Unnamed: 3}) {
			t.Errorf("%+v", got)
		}
		if n := c.hours(week - time.Hour); n != 0 {
			t.Errorf("%d went before their time", n)
		}
		c.name(again, 1)
		c.collect()
		c.name(again, -1)
		if n := c.hours(2 * time.Hour); n != 2 || c.has(plan) || c.has(cert) {
			t.Errorf("%d went, want the plan and the certificate", n)
		}
		if !c.has(held) || !c.has(again) || !c.has(registry) {
			t.Error("something went that was named, or is not collected")
		}
		c.name(held, -1)
		if n := c.hours(week + time.Hour); n != 2 || c.has(held) || c.has(again) {
			t.Errorf("%d went, want the other two", n)
		}
	})
}

// While nobody looked nothing ages: after an outage of the controllers nothing goes
// that was in use all the time.
func TestCollectAfterAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCollecting(t)
		plan := c.put(KindPlans, "plan")
		c.collect()
		time.Sleep(10 * week)
		if c.collect(); !c.has(plan) {
			t.Fatal("it went at the first look")
		}
		if n := c.hours(week); n != 1 {
			t.Errorf("%d went", n)
		}
	})
}

// due is a collection about to remove one object.
func due(t *testing.T, kind string) (c *collecting, name string) {
	c = newCollecting(t)
	name = c.put(kind, "it")
	c.collect()
	c.hours(week - time.Hour)
	time.Sleep(time.Hour)
	return c, name
}

// Who names something in the instant in which it is to go keeps it, however little
// the collection knew of him, or is told to try again.
func TestNamedWhileItIsCollected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, name := due(t, KindPlans)
		other := NewStore(c.objects, t.TempDir()) // another process
		got, err := c.s.Collect(t.Context(), CollectOptions{After: week, Named: func(ctx context.Context) (map[string]bool, error) {
			named, err := c.names(ctx)
			if _, perr := other.PutBlob(ctx, KindPlans, []byte("it")); perr != nil {
				t.Error(perr)
			}
			return named, err
		}})
		if err != nil || !got.Passed || !c.has(name) {
			t.Errorf("%+v, %v", got, err)
		}
		if n := c.hours(week - time.Hour); n != 0 || !c.has(name) {
			t.Error("its time did not begin anew")
		}
	})
	synctest.Test(t, func(t *testing.T) {
		c, name := due(t, KindManifests)
		other := NewStore(c.objects, t.TempDir())
		id, err := stoker.ParseID(name[len(KindManifests)+1:])
		if err != nil {
			t.Fatal(err)
		}
		c.objects.onDelete = func(string) error {
			if err := other.Keep(t.Context(), id); stoker.KindOf(err) != stoker.KindTransient {
				t.Errorf("named while it was removed: %v", err)
			}
			return nil
		}
		if got := c.collect(); got.Removed != 1 || c.has(name) {
			t.Errorf("%+v", got)
		}
		if err := other.Keep(t.Context(), id); stoker.KindOf(err) != stoker.KindNotExist {
			t.Errorf("named when it was gone: %v", err)
		}
		if c.put(KindManifests, "it"); !c.has(name) {
			t.Error("it cannot be put again")
		}
	})
}

// A process that dies between the entry and the removal keeps nobody from naming
// the object for longer than it could still be at it; else a later one finishes.
func TestCollectorDies(t *testing.T) {
	for _, wanted := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			c, name := due(t, KindPlans)
			c.objects.onDelete = func(string) error { return stoker.Errorf(stoker.KindTransient, "delete", name, "killed") }
			if _, err := c.s.Collect(t.Context(), CollectOptions{After: week, Named: c.names}); stoker.KindOf(err) != stoker.KindTransient {
				t.Fatal(err)
			}
			c.objects.onDelete = nil
			if _, err := c.s.PutBlob(t.Context(), KindPlans, []byte("it")); stoker.KindOf(err) != stoker.KindTransient {
				t.Errorf("named while it might still be removed: %v", err)
			}
			if got := c.collect(); got.Removed != 0 {
				t.Errorf("removed by another while it might still be at it: %+v", got)
			}
			time.Sleep(goingFor)
			if wanted {
				c.put(KindPlans, "it")
			}
			if got := c.collect(); c.has(name) != wanted {
				t.Errorf("%+v; is there: %v", got, c.has(name))
			}
		})
	}
}

// Collectors and those who name things, all at once: who was told that it is there
// has it for as long as he names it.
func TestCollectAtOnce(t *testing.T) {
	c := newCollecting(t)
	ctx, cancel := context.WithCancel(t.Context())
	var writers, collectors sync.WaitGroup
	for range 2 {
		collectors.Go(func() {
			for ctx.Err() == nil {
				if _, err := c.s.Collect(ctx, CollectOptions{Named: c.names}); err != nil && ctx.Err() == nil {
					t.Error(err)
				}
			}
		})
	}
	for w := range 4 {
		writers.Go(func() {
			for i := range 40 {
				body := fmt.Sprint(w%2, i%3)
				name := NameOf(KindPlans, sha256.Sum256([]byte(body)))
				for done := false; !done; {
					c.name(name, 1)
					_, err := c.s.PutBlob(ctx, KindPlans, []byte(body))
					switch done = err == nil; {
					case err != nil && stoker.KindOf(err) != stoker.KindTransient && stoker.KindOf(err) != stoker.KindHeld:
						t.Error(err)
						return
					case err == nil:
						for range 3 {
							if !c.has(name) {
								t.Errorf("%s is gone though it is named", name)
							}
						}
					}
					c.name(name, -1)
				}
			}
		})
	}
	writers.Wait()
	cancel()
	collectors.Wait()
}

// The document is bounded, and so is what goes at once.
func TestCollectIsBounded(t *testing.T) {
	var there []string
	for i := range mostUnnamed + 10 {
		there = append(there, fmt.Sprintf("plans/%06d", i))
	}
	now := time.Now()
	u := (&unnamed{}).next(there, nil, week, now)
	if len(u.Since) != mostUnnamed {
		t.Errorf("%d marks", len(u.Since))
	}
	before := &unnamed{Looked: now.Add(week), Since: maps.Clone(u.Since)}
	later := before.next(there, nil, week, now.Add(week))
	if len(later.Going) != mostGoing || len(later.takes(before)) != mostGoing || len(later.Since)+len(later.Going) > mostUnnamed+mostGoing {
		t.Errorf("%d go, %d stay", len(later.Going), len(later.Since))
	}
}
