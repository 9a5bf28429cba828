package cache

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"stoker.dev"
	"stoker.dev/internal/api"
	"stoker.dev/internal/testenv"
	"stoker.dev/ufs"
	"stoker.dev/ufs/guard"
	"stoker.dev/ufs/s3ufs"
)

// farCluster is one worker above a real store behind a proxy.
func farCluster(t *testing.T, objects int, o guard.Options) (*cluster, *testenv.Proxy, map[string][]byte) {
	t.Helper()
	srv := testenv.StartS3(t)
	dir := srv.Bucket(t, "far")
	noise := rand.NewChaCha8([32]byte{5})
	r := rand.New(noise)
	all := map[string][]byte{}
	for i := range objects {
		size := 5<<10 + r.Int64N(20<<10)
		if i%400 == 0 {
			size = 9<<20 + r.Int64N(1<<20) // several pieces, each of several blocks
		}
		b := make([]byte, size)
		_, _ = noise.Read(b)
		key := fmt.Sprintf("f%04d", i)
		if err := os.WriteFile(filepath.Join(dir, key), b, 0o644); err != nil {
			t.Fatal(err)
		}
		all[key] = b
	}
	p := testenv.CountingProxy(t, srv.Endpoint)
	fs, err := s3ufs.Open(t.Context(), s3ufs.Options{Bucket: "far", Location: ufs.Location{Endpoint: p.URL(), PathStyle: true}})
	if err != nil {
		t.Fatal(err)
	}
	c := newCluster(t, 1, 1<<30)
	c.openUFS, c.guard = func() ufs.FS { return fs }, o
	return c, p, all
}

// With a fault in one request of a hundred, of every kind, a preload ends
// whole, every byte is right, and the store sent at most 2 % more than the
// dataset has.
func TestLoadWithFaults(t *testing.T) {
	c, p, all := farCluster(t, 800, guard.Options{BaseDelay: 10 * time.Millisecond, Stall: 2 * time.Second}) // a busy machine is no store that stalls
	id := c.freeze()
	faults := []testenv.Fault{
		{Reset: true}, {Reset: true, After: 3 << 10}, {Cut: true, After: 4 << 10}, {Status: 503, Code: "SlowDown"},
		{Stall: true, After: 2 << 10}, {Status: 500, Code: "InternalError"},
		{Status: 503, Code: "SlowDown", Header: map[string][]string{"Retry-After": {"1"}}},
	}
	p.Inject(func(_ testenv.Get, n int) testenv.Fault {
		if n%100 == 50 {
			return faults[n/100%len(faults)]
		}
		return testenv.Fault{}
	})
	last := c.load(0, c.plan(id))
	if last.FailedObjects != 0 || last.Bytes != total(all) {
		t.Fatalf("%+v", last)
	}
	sent, want := p.Bytes(), total(all)
	if ratio := float64(sent) / float64(want); ratio > 1.02 || sent < want {
		t.Errorf("the store sent %d bytes of %d: %.4f", sent, want, ratio)
	}
	if last.UFSBytes != want || last.Refetched != (api.Refetched{}) {
		t.Errorf("%d bytes counted of %d, refetched %+v", last.UFSBytes, want, last.Refetched)
	}
	p.Inject(nil)
	p.Reset()
	c.readAll(0, id, all)
	if p.Gets() != 0 {
		t.Errorf("reading what is here cost %d requests", p.Gets())
	}
}

// A store that is down in mid-load: the load waits, says since when, and goes
// on when it is back; nothing comes twice.
func TestLoadWaitsForTheStore(t *testing.T) {
	c, p, all := farCluster(t, 120, guard.Options{BaseDelay: 5 * time.Millisecond, MaxDelay: 50 * time.Millisecond})
	plan := c.plan(c.freeze())
	reached, release := p.Hold(1 << 20)
	node := c.nodes[0].cache
	if _, err := node.Reserve(t.Context(), api.ReserveRequest{Plan: plan}); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if err := node.Load(t.Context(), plan, 0); err != nil {
		t.Fatal(err)
	}
	<-reached
	p.Stop()
	release()
	// Many times what requests without patience would have tried.
	var held []api.ManifestHolding
	err := node.WatchLoad(t.Context(), plan, 0, time.Millisecond, func(l api.LoadProgress) (err error) {
		held, err = node.Holdings(t.Context())
		if err == nil && !l.WaitingSince.IsZero() && time.Since(l.WaitingSince) > 2*time.Second {
			err = io.EOF
		}
		if l.Done {
			t.Errorf("it ended without its store: %+v", l)
		}
		return err
	})
	if err != io.EOF || len(held) != 1 || held[0].WaitingSince.Before(start) {
		t.Fatalf("%v; holds %+v", err, held)
	}
	p.Start(t)
	last := c.load(0, plan)
	if last.FailedObjects != 0 || last.Bytes != total(all) || !last.WaitingSince.IsZero() || last.UFSBytes != total(all) {
		t.Errorf("%+v, want %d bytes", last, total(all))
	}
}

// gated is a UFS whose first request waits; it notes the order of requests.
type gated struct {
	ufs.FS
	gate, first chan struct{} // first is closed when the first request waits
	mu          sync.Mutex
	keys        []string // +checklocks:mu
}

func (g *gated) Open(ctx context.Context, key string, v ufs.Version, off, n int64) (io.ReadCloser, error) {
	g.mu.Lock()
	g.keys = append(g.keys, key)
	first := len(g.keys) == 1
	g.mu.Unlock()
	if first {
		close(g.first)
		select {
		case <-g.gate:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return g.FS.Open(ctx, key, v, off, n)
}

// A reader of what a preload has queued makes it go first; the preload's own
// flight is used, nothing is fetched twice.
func TestReaderRaisesAPreload(t *testing.T) {
	c := newCluster(t, 1, 1<<30)
	want := map[string][]byte{}
	for i := range 8 {
		key := fmt.Sprintf("f%d", i)
		want[key] = bytes.Repeat([]byte{byte(i)}, 5<<20)
		c.ufs.Put(key, want[key])
	}
	id := c.freeze()
	g := &gated{FS: c.ufs, gate: make(chan struct{}), first: make(chan struct{})}
	c.openUFS, c.guard = func() ufs.FS { return g }, guard.Options{MaxInFlight: 1}
	plan := c.plan(id)
	node := c.nodes[0].cache
	if _, err := node.Reserve(t.Context(), api.ReserveRequest{Plan: plan}); err != nil {
		t.Fatal(err)
	}
	if err := node.Load(t.Context(), plan, 0); err != nil {
		t.Fatal(err)
	}
	<-g.first
	set, err := node.Open(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	defer set.Close()
	waitFor(t, "a flight for each piece", func() bool { _, flights := node.Running(); return flights >= 5 })
	g.mu.Lock()
	first := g.keys[0]
	g.mu.Unlock()
	wanted := "f6"
	if first == wanted {
		wanted = "f5"
	}
	row, _ := set.Manifest().LookupPath(wanted)
	read := make(chan error, 1)
	go func() {
		p := make([]byte, 4096)
		_, err := set.ReadAt(t.Context(), row, p, 2<<20)
		if err == nil && !bytes.Equal(p, want[wanted][:4096]) {
			err = fmt.Errorf("wrong bytes")
		}
		read <- err
	}()
	n := set.Manifest().ShardOf(row, 0)
	entry, next := set.Manifest().Entry(row), ""
	waitFor(t, "the reader to join", func() bool {
		node.fills.mu.Lock()
		defer node.fills.mu.Unlock()
		return slices.ContainsFunc(node.fills.runs[set.Manifest().Shard(n).ID], func(f *flight) bool {
			if f.waiters != 2 || f.from > int(entry.FirstBlock)+8 || int(entry.FirstBlock)+8 >= f.to {
				return false
			}
			next = set.Manifest().Path(set.membersIn(n, f.from, f.from+1)[0].Row)
			return true
		})
	})
	close(g.gate)
	if err := <-read; err != nil {
		t.Fatal(err)
	}
	if last := c.load(0, plan); last.UFSBytes != total(want) {
		t.Errorf("%d bytes for %d", last.UFSBytes, total(want))
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.keys[1] != next {
		t.Errorf("order %v, want %s right after the first", g.keys, next)
	}
	c.readAll(0, id, want)
}

// waitFor polls: what is waited for has no channel.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
		<-time.After(time.Millisecond)
	}
}

// A reader does not hang for as long as the preload is patient whose flight it
// has joined; a later read is served.
func TestReaderGivesUpBeforeThePreload(t *testing.T) {
	c := newCluster(t, 1, 1<<30)
	want := map[string][]byte{"f": bytes.Repeat([]byte("x"), 100_000)}
	c.ufs.Put("f", want["f"])
	id := c.freeze()
	g := &gated{FS: c.ufs, gate: make(chan struct{}), first: make(chan struct{})}
	c.openUFS = func() ufs.FS { return g }
	plan, node := c.plan(id), c.nodes[0].cache
	node.readerWaits = 50 * time.Millisecond
	if _, err := node.Reserve(t.Context(), api.ReserveRequest{Plan: plan}); err != nil {
		t.Fatal(err)
	}
	if err := node.Load(t.Context(), plan, 0); err != nil {
		t.Fatal(err)
	}
	<-g.first
	set, err := node.Open(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	defer set.Close()
	row, _ := set.Manifest().LookupPath("f")
	if _, err := set.ReadAt(t.Context(), row, make([]byte, 10), 0); stoker.KindOf(err) != stoker.KindTransient {
		t.Errorf("%v", err)
	}
	close(g.gate)
	if last := c.load(0, plan); last.FailedObjects != 0 || last.UFSRequests != 1 {
		t.Errorf("%+v", last)
	}
	c.readAll(0, id, want)
}

// A worker that reads through for another one knows whether a reader waits
// there, or a preload: that is not hedged.
func TestPriorityCrossesToTheOwner(t *testing.T) {
	for _, want := range []guard.Priority{guard.Demand, guard.Preload} {
		c := newCluster(t, 2, 1<<30)
		c.ufs.Put("f", bytes.Repeat([]byte("x"), 100_000))
		id := c.freeze()
		g := &gated{FS: c.ufs, gate: make(chan struct{}), first: make(chan struct{})}
		c.openUFS = func() ufs.FS { return g }
		node := c.nodes[1].cache
		set, err := node.Open(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		shard := set.Manifest().Shard(0)
		f := (*flight)(nil)
		done := make(chan struct{})
		go func() {
			defer close(done)
			f = set.joinFlight(0, 0, int(shard.Blocks), why{prio: want})
			<-f.done
		}()
		<-g.first
		owner := c.nodes[0].cache
		owner.fills.mu.Lock()
		runs := owner.fills.runs[shard.ID]
		if len(runs) != 1 || runs[0].urgency.Priority() != want {
			t.Errorf("%d flights at the owner, want one of priority %d", len(runs), want)
		}
		owner.fills.mu.Unlock()
		close(g.gate)
		<-done
		node.leave(f, true)
		if err := set.Close(); err != nil {
			t.Error(err)
		}
	}
}
