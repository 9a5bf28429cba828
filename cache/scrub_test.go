package cache

import (
	"context"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"stoker.dev"
	"stoker.dev/internal/api"
)

// sealedSet is a loaded dataset of one node, held by a job.
func sealedSet(t *testing.T) (*cluster, stoker.ID, map[string][]byte) {
	t.Helper()
	c := newCluster(t, 1, 1<<30)
	want := c.fillUFS(41, 120, 0)
	id := c.freeze()
	c.load(0, c.plan(id))
	err := c.nodes[0].cache.PutLeases(api.LeaseRequest{Leases: []api.Lease{{Holder: "job", Manifest: id, TTLSeconds: 600}}})
	if err != nil {
		t.Fatal(err)
	}
	return c, id, want
}

// onePass scrubs until each shard was read once.
func onePass(t *testing.T, n *node, rate int64) {
	t.Helper()
	at := scrubbed{Began: now()}
	if err := n.cache.scrubPass(t.Context(), ScrubOptions{BytesPerSecond: rate}, &at); err != nil {
		t.Fatal(err)
	}
}

// Bits that went wrong at rest are found without anybody reading them: the
// file is retired, and what is held is there again, right, when the scrub has
// gone on.
func TestScrubFindsWrongBits(t *testing.T) {
	c, id, want := sealedSet(t)
	n := c.nodes[0]
	onePass(t, n, 1<<40)
	if got := n.cache.Counters().ScrubbedBytes.Load(); got != total(want) || n.cache.Counters().Corrupt.Load() != 0 {
		t.Errorf("%d bytes scrubbed of %d, %d bad", got, total(want), n.cache.Counters().Corrupt.Load())
	}
	before, err := filepath.Glob(filepath.Join(n.storeDir(), "shards", "*", "*.shard"))
	if err != nil {
		t.Fatal(err)
	}
	spoil(t, n)
	again := n.dir.wholes(1)
	onePass(t, n, 1<<40)
	<-again
	if n.cache.Counters().Corrupt.Load() != 1 {
		t.Errorf("%d bad blocks", n.cache.Counters().Corrupt.Load())
	}
	after, _ := filepath.Glob(filepath.Join(n.storeDir(), "shards", "*", "*.shard"))
	if len(after) != len(before) {
		t.Errorf("%d files, %d before", len(after), len(before))
	}
	_, asked := c.ufs.counted()
	rep, err := n.cache.Verify(t.Context(), id, true)
	if err != nil || len(rep.Shards) != 1 || rep.Shards[0].Present != nil || len(rep.Shards[0].Corrupt) != 0 {
		t.Errorf("%+v, %v", rep, err)
	}
	c.readAll(0, id, want)
	if _, again := c.ufs.counted(); again != asked {
		t.Errorf("%d bytes were not there after the scrub", again-asked)
	}
}

// What nobody holds is given up, and left to whoever reads it.
func TestScrubOfWhatNobodyHolds(t *testing.T) {
	c := newCluster(t, 1, 1<<30)
	want := c.fillUFS(42, 20, 0)
	id := c.freeze()
	c.load(0, c.plan(id))
	spoil(t, c.nodes[0])
	_, before := c.ufs.counted()
	onePass(t, c.nodes[0], 1<<40)
	if _, after := c.ufs.counted(); after != before || len(c.nodes[0].store.Shards()) != 0 {
		t.Errorf("%d bytes fetched, %d shards", after-before, len(c.nodes[0].store.Shards()))
	}
	c.readAll(0, id, want)
}

// A scrub goes on behind the shard where its last life was, begins a new pass
// no sooner than it should, and stops at once.
func TestScrubGoesOn(t *testing.T) {
	c, _, want := sealedSet(t)
	n := c.nodes[0]
	last := n.store.Shards()[0].ID
	n.cache.saveScrubbed(scrubbed{After: last, Began: now()})
	if got := n.cache.targets(t.Context(), n.cache.scrubbed().After); len(got) != 0 {
		t.Errorf("%d shards again", len(got))
	}
	n.cache.saveScrubbed(scrubbed{Began: now()})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		n.cache.Scrub(ctx, ScrubOptions{BytesPerSecond: 1 << 40, Every: time.Hour})
	}()
	for n.cache.Counters().ScrubPasses.Load() == 0 { // the pass takes milliseconds
		select {
		case <-done:
			t.Fatal("it ended")
		default:
		}
	}
	cancel()
	<-done
	if got := n.cache.Counters().ScrubbedBytes.Load(); got != total(want) {
		t.Errorf("%d bytes scrubbed of %d", got, total(want))
	}
	if at := n.cache.scrubbed(); at.Ended.IsZero() || at.Began.IsZero() {
		t.Errorf("%+v", at)
	}
}

// The rate is kept, and time that was not used is not made up for.
func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		p := &pace{perSecond: 1000, next: began}
		for range 11 {
			if err := p.wait(t.Context(), 500); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(began); took != 5*time.Second {
			t.Errorf("5500 bytes at 1000 per second, the last 500 of them begun after %v", took)
		}
		time.Sleep(time.Minute) // of the bubble
		began = time.Now()
		for range 3 {
			if err := p.wait(t.Context(), 500); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(began); took != time.Second {
			t.Errorf("after a pause 1500 bytes took %v", took)
		}
	})
}
