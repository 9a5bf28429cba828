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
	"testing"
	"time"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/internal/api"
	"stoker.dev/planner"
	"stoker.dev/ufs"
	"stoker.dev/ufs/folder"
)

// generations is a dataset of many files in the UFS, some of which change.
type generations struct {
	*cluster
	r     *rand.Rand
	noise []byte
	sizes func(r *rand.Rand) int
	want  map[string][]byte // parts of noise
	names []string
}

func (c *cluster) generations(files int, sizes func(r *rand.Rand) int) *generations {
	g := &generations{cluster: c, r: rand.New(rand.NewPCG(8, 1)), sizes: sizes, want: map[string][]byte{}}
	g.noise = make([]byte, 4<<20)
	for i := range g.noise {
		g.noise[i] = byte(g.r.Uint32())
	}
	for i := range files {
		g.put(fmt.Sprintf("train/n%03d/img_%06d.jpg", i%100, i))
	}
	return g
}

func (g *generations) put(name string) int64 {
	n := g.sizes(g.r)
	at := g.r.IntN(len(g.noise) - n)
	if _, known := g.want[name]; !known {
		g.names = append(g.names, name)
	}
	g.want[name] = g.noise[at : at+n]
	g.ufs.Put(name, g.want[name])
	return int64(n)
}

// change gives every hundredth file, at random, other bytes and says how many.
func (g *generations) change() (changed int64) {
	for _, i := range g.r.Perm(len(g.names))[:len(g.names)/100] {
		changed += g.put(g.names[i])
	}
	return changed
}

// planFor is a plan with the owner of each shard.
func (g *generations) planFor(id stoker.ID, round int64, owner func(n int) int) stoker.ID {
	g.t.Helper()
	m, err := g.store.Load(context.Background(), id)
	if err != nil {
		g.t.Fatal(err)
	}
	defer m.Close()
	p := planner.Plan{Dataset: "test", Generation: 1, Manifest: id, Replicas: 1, Round: round}
	for _, n := range g.nodes {
		p.Workers = append(p.Workers, planner.PlanWorker{ID: n.store.WorkerID(), Address: n.peer.Address})
	}
	for n := range m.Shards() {
		p.Owners = append(p.Owners, []uint16{uint16(owner(n) % len(g.nodes))})
	}
	pid, err := g.store.PutBlob(context.Background(), "plans", p.Encode())
	if err != nil {
		g.t.Fatal(err)
	}
	return pid
}

// bring loads all parts and returns what the loads say they cost.
func (g *generations) bring(plan stoker.ID) (fetched, copied int64) {
	g.t.Helper()
	for i := range g.nodes {
		p := g.load(i, plan)
		if !p.Done || p.FailedObjects != 0 || p.Bytes != p.TotalBytes {
			g.t.Fatalf("part %d ended as %+v", i, p)
		}
		fetched, copied = fetched+p.UFSBytes, copied+p.CopiedBytes
	}
	return fetched, copied
}

// asked is what the UFS sent since the last time.
func (g *generations) asked() int64 {
	g.ufs.mu.Lock()
	defer g.ufs.mu.Unlock()
	n := g.ufs.bytes
	g.ufs.bytes = 0
	return n
}

// same compares all files, read through one node.
func (g *generations) same(node int, id stoker.ID) {
	g.t.Helper()
	s, err := g.nodes[node].cache.Open(g.t.Context(), id)
	if err != nil {
		g.t.Fatal(err)
	}
	defer s.Close()
	p := make([]byte, 1<<20)
	for name, body := range g.want {
		row, ok := s.Manifest().LookupPath(name)
		if !ok {
			g.t.Fatalf("%s is not in the manifest", name)
		}
		n, err := s.ReadAt(g.t.Context(), row, p[:len(body)], 0)
		if err != nil || !bytes.Equal(p[:n], body) {
			g.t.Fatalf("%s differs from its source (%v)", name, err)
		}
	}
}

func small(r *rand.Rand) int  { return 1<<10 + r.IntN(3<<10) }
func images(r *rand.Rand) int { return 1 + r.IntN(400<<10) }

// One percent of 100,000 files changes at random. The new generation costs the
// bytes that changed, in a cache that cannot hold both generations, and never
// more space than it has.
func TestDeltaOfScatteredChanges(t *testing.T) {
	const capacity = 540 << 20 // of packs with 400 MiB
	g := newCluster(t, 1, capacity).generations(100_000, small)
	first := g.freeze()
	g.bring(g.planFor(first, 1, func(int) int { return 0 }))
	g.asked()
	changed := g.change()
	second := g.freezeAfter(first)
	kept := g.shared(first, second)
	fetched, copied := g.bring(g.planFor(second, 1, func(int) int { return 0 }))
	t.Logf("%d bytes changed, %d fetched, %d copied; %d shards keep their ids", changed, fetched, copied, kept)
	if sent := g.asked(); sent != fetched || fetched > changed*11/10 {
		t.Errorf("%d bytes changed, the UFS sent %d, the load says %d", changed, sent, fetched)
	}
	if u := g.nodes[0].store.Usage(); u.UsedBytes > capacity || u.ReservedBytes != 0 {
		t.Errorf("after the load: %+v", u)
	}
	g.same(0, second)
	if sent := g.asked(); sent != 0 {
		t.Errorf("reading what was loaded fetched %d bytes", sent)
	}
}

// shared counts the shards of one generation that the other has, too.
func (g *generations) shared(a, b stoker.ID) (n int) {
	g.t.Helper()
	ids := map[stoker.ID]bool{}
	for _, id := range []stoker.ID{a, b} {
		m, err := g.store.Load(g.t.Context(), id)
		if err != nil {
			g.t.Fatal(err)
		}
		for k := range uint32(m.Shards()) {
			if s := m.Shard(k).ID; ids[s] {
				n++
			} else if id == a {
				ids[s] = true
			}
		}
		if err := m.Close(); err != nil {
			g.t.Fatal(err)
		}
	}
	return n
}

// Wherever the plan puts the new shards, the old bytes come from the workers
// that have them; so they do two generations later, and back again.
func TestDeltaFromOtherWorkers(t *testing.T) {
	g := newCluster(t, 3, 1<<30).generations(1500, images)
	first := g.freeze()
	g.bring(g.planFor(first, 1, func(n int) int { return n }))
	g.asked()
	moved := func(by int) func(int) int { return func(n int) int { return n + by } }
	changed := g.change()
	second := g.freezeAfter(first)
	fetched, copied := g.bring(g.planFor(second, 1, moved(1)))
	if sent := g.asked(); sent != changed || fetched != changed || copied == 0 {
		t.Fatalf("%d bytes changed, the UFS sent %d, the loads say %d and %d copied", changed, sent, fetched, copied)
	}
	for i := range g.nodes {
		g.same(i, second)
	}
	// The generation in between is never loaded.
	changed = g.change()
	third := g.freezeAfter(second)
	before := g.asked()
	changed += g.change()
	fourth := g.freezeAfter(third)
	fetched, _ = g.bring(g.planFor(fourth, 1, moved(2)))
	if sent := g.asked(); sent > changed || fetched != sent || before != 0 {
		t.Fatalf("%d bytes changed in two generations, the UFS sent %d, the loads say %d", changed, sent, fetched)
	}
	g.same(0, fourth)
}

// A worker that knew no generation before follows the chain of bases to the one
// that another worker has.
func TestDeltaAlongTheChain(t *testing.T) {
	g := newCluster(t, 2, 1<<30).generations(300, images)
	first := g.freeze()
	g.load(0, g.planFor(first, 1, func(int) int { return 0 })) // the other one hears nothing of it
	g.asked()
	changed := g.change()
	second := g.freezeAfter(first)
	changed += g.change()
	third := g.freezeAfter(second)
	p := g.load(1, g.planFor(third, 1, func(int) int { return 1 }))
	if sent := g.asked(); sent != p.UFSBytes || sent > changed || p.CopiedBytes == 0 || p.Bytes != p.TotalBytes {
		t.Errorf("%d bytes changed in two generations, the UFS sent %d, the load says %+v", changed, sent, p)
	}
	g.same(1, third)
}

// silentAbout is a manifest store that does not answer when it is asked for one object.
type silentAbout struct {
	ufs.Objects
	name string
}

func (o *silentAbout) Get(ctx context.Context, name string) ([]byte, string, error) {
	if name == o.name {
		return nil, "", stoker.Errorf(stoker.KindTransient, "test", name, "away")
	}
	return o.Objects.Get(ctx, name)
}

// An older generation whose manifest could not be had for a moment is looked for again
// later, once in a while; those that were found stay, the nearest first.
func TestOlderGenerationsAreLookedForAgain(t *testing.T) {
	c := newCluster(t, 0, 0)
	kept, err := folder.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	objects := &silentAbout{Objects: kept}
	c.store = manifest.NewStore(objects, t.TempDir())
	c.add(0, filepath.Join(t.TempDir(), "cache"), 1<<30)
	g := c.generations(100, small)
	first := g.freeze()
	g.change()
	second := g.freezeAfter(first)
	g.change()
	third := g.freezeAfter(second)
	s, err := c.nodes[0].cache.Open(t.Context(), third)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	want := func(when string, ids ...stoker.ID) []*manifest.Manifest {
		t.Helper()
		all := s.older(t.Context())
		if !slices.EqualFunc(all, ids, func(m *manifest.Manifest, id stoker.ID) bool { return m.ID() == id }) {
			t.Fatalf("%s: %d generations, want %d", when, len(all), len(ids))
		}
		return all
	}
	aMinuteLater := func() {
		s.bases.mu.Lock()
		defer s.bases.mu.Unlock()
		if s.bases.again.IsZero() {
			t.Error("it is not to be looked for again")
		}
		s.bases.again = time.Now()
	}
	objects.name = manifest.NameOf(manifest.KindManifests, second)
	want("the nearest is away")
	objects.name = manifest.NameOf(manifest.KindManifests, first)
	want("at once")
	aMinuteLater()
	had := want("the one before is away", second)
	objects.name = ""
	aMinuteLater()
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if all := s.older(gone); !slices.Equal(all, had) {
		t.Errorf("who gave up finds %d generations", len(all))
	}
	if all := want("all are there", second, first); all[0] != had[0] {
		t.Error("what was open was opened once more")
	}
	s.bases.mu.Lock()
	defer s.bases.mu.Unlock()
	if !s.bases.again.IsZero() {
		t.Error("nothing lacks, and it is looked for again")
	}
}

// A read of a new generation takes from the old one what has not changed.
func TestDeltaOfReads(t *testing.T) {
	g := newCluster(t, 2, 1<<30).generations(1000, images)
	first := g.freeze()
	g.bring(g.planFor(first, 1, func(n int) int { return n }))
	g.asked()
	changed := g.change()
	second := g.freezeAfter(first)
	g.same(0, second)
	if sent := g.asked(); sent != changed {
		t.Errorf("%d bytes changed, reading the new generation fetched %d", changed, sent)
	}
}

// A bad block of the old generation is not copied: it comes from the UFS.
func TestDeltaCopiesNoBadBlock(t *testing.T) {
	g := newCluster(t, 1, 1<<30).generations(300, images)
	first := g.freeze()
	g.bring(g.planFor(first, 1, func(int) int { return 0 }))
	files, err := filepath.Glob(filepath.Join(g.nodes[0].storeDir(), "shards", "*", "*.shard"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	bad := make([]byte, 300<<10) // a block at least, whatever lies there
	for _, path := range files {
		if err := os.Chmod(path, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(bad, 4<<20); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	g.asked()
	changed := g.change()
	second := g.freezeAfter(first)
	fetched, _ := g.bring(g.planFor(second, 1, func(int) int { return 0 }))
	n := g.nodes[0].cache.Counters().Corrupt.Load()
	if n == 0 || fetched <= changed || fetched > changed+n*stoker.BlockBytes {
		t.Errorf("%d bytes changed and %d blocks were bad, %d were fetched", changed, n, fetched)
	}
	g.same(0, second)
}

// evictingFS evicts a dataset when the first request comes.
type evictingFS struct {
	ufs.FS
	evict func()
}

func (f *evictingFS) Open(ctx context.Context, key string, v ufs.Version, off, n int64) (io.ReadCloser, error) {
	f.evict()
	return f.FS.Open(ctx, key, v, off, n)
}

// The old generation may be evicted in mid-copy: the rest comes from the UFS.
func TestDeltaWhenTheOldGoes(t *testing.T) {
	g := newCluster(t, 1, 1<<30).generations(600, images)
	first := g.freeze()
	g.bring(g.planFor(first, 1, func(int) int { return 0 }))
	g.asked()
	changed := g.change()
	second := g.freezeAfter(first)
	n := g.nodes[0].cache
	n.o.Streams = 1 // else all may be copied before the first request
	once := make(chan struct{}, 1)
	once <- struct{}{}
	open := n.o.Open
	n.o.Open = func(ctx context.Context, at ufs.Location) (ufs.FS, string, error) {
		fs, prefix, err := open(ctx, at)
		return &evictingFS{fs, func() {
			select {
			case <-once:
				if _, err := n.Evict(t.Context(), first, false); err != nil {
					t.Error(err)
				}
			default:
			}
		}}, prefix, err
	}
	fetched, copied := g.bring(g.planFor(second, 1, func(int) int { return 0 }))
	if fetched <= changed || copied == 0 {
		t.Errorf("%d bytes changed, %d were fetched, %d copied", changed, fetched, copied)
	}
	g.same(0, second)
}

// A generation that a job holds gives nothing up: both fit, or the new one is
// refused with numbers and its holder's name.
func TestDeltaBesideAHeldGeneration(t *testing.T) {
	const capacity = 140 << 20
	g := newCluster(t, 1, capacity).generations(500, images) // about 100 MB
	first := g.freeze()
	g.bring(g.planFor(first, 1, func(int) int { return 0 }))
	n := g.nodes[0].cache
	g.change()
	second := g.freezeAfter(first)
	lease := api.Lease{Holder: "job1", Owner: "ann", Manifest: first, TTLSeconds: 60}
	if err := n.PutLeases(api.LeaseRequest{Leases: []api.Lease{lease}}); err != nil {
		t.Fatal(err)
	}
	plan := g.planFor(second, 1, func(int) int { return 0 })
	_, err := n.Reserve(t.Context(), api.ReserveRequest{Plan: plan, Part: 0})
	if stoker.KindOf(err) != stoker.KindNoSpace || !bytes.Contains([]byte(err.Error()), []byte("job1")) {
		t.Fatalf("beside a held generation: %v", err)
	}
	if err := n.PutLeases(api.LeaseRequest{Drop: []string{"job1"}}); err != nil {
		t.Fatal(err)
	}
	g.bring(plan)
	if u := g.nodes[0].store.Usage(); u.UsedBytes > capacity {
		t.Errorf("%d bytes used of %d", u.UsedBytes, capacity)
	}
	g.same(0, second)
}

// Of two generations the one before the last makes room, since the last one has
// here what they share.
func TestDeltaTakesFromTheOldest(t *testing.T) {
	const capacity = 635 << 20
	g := newCluster(t, 1, capacity).generations(1500, images) // about 300 MB
	here := func(int) int { return 0 }
	first := g.freeze()
	g.bring(g.planFor(first, 1, here))
	g.change()
	second := g.freezeAfter(first)
	g.bring(g.planFor(second, 1, here)) // both fit
	g.asked()
	changed := g.change()
	third := g.freezeAfter(second)
	if fetched, _ := g.bring(g.planFor(third, 1, here)); fetched != changed || g.asked() != changed {
		t.Errorf("%d bytes changed, %d were fetched", changed, fetched)
	}
	if u := g.nodes[0].store.Usage(); u.UsedBytes > capacity {
		t.Errorf("%d bytes used of %d", u.UsedBytes, capacity)
	}
	g.same(0, third)
}

// Two workers with little room exchange their shards: each gives an old one up
// only when the other one has copied it.
func TestDeltaWaitsForOthers(t *testing.T) {
	const capacity = 265 << 20
	g := newCluster(t, 2, capacity).generations(1500, images)
	first := g.freeze()
	g.bring(g.planFor(first, 1, func(n int) int { return n }))
	g.asked()
	changed := g.change()
	second := g.freezeAfter(first)
	plan := g.planFor(second, 1, func(n int) int { return n + 1 })
	for i, n := range g.nodes {
		if _, err := n.cache.Reserve(t.Context(), api.ReserveRequest{Plan: plan, Part: i}); err != nil {
			t.Fatal(err)
		}
	}
	for i, n := range g.nodes {
		if err := n.cache.Load(t.Context(), plan, i); err != nil {
			t.Fatal(err)
		}
	}
	for i, n := range g.nodes {
		err := n.cache.WatchLoad(t.Context(), plan, i, time.Second, func(api.LoadProgress) error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("node %d: %+v", i, n.store.Usage())
	}
	if fetched := g.asked(); fetched != changed {
		t.Errorf("%d bytes changed, %d were fetched", changed, fetched)
	}
	g.same(0, second)
}

// What a load copies from makes room for no other dataset meanwhile.
func TestDeltaKeepsWhatItCopiesFrom(t *testing.T) {
	g := newCluster(t, 1, 1<<30).generations(100, images)
	first := g.freeze()
	g.bring(g.planFor(first, 1, func(int) int { return 0 }))
	g.change()
	second := g.freezeAfter(first)
	n := g.nodes[0].cache
	plan := g.planFor(second, 1, func(int) int { return 0 })
	if _, err := n.Reserve(t.Context(), api.ReserveRequest{Plan: plan, Part: 0}); err != nil {
		t.Fatal(err)
	}
	if free := n.unheld(nil); slices.Contains(free, first) {
		t.Error("the old generation can be evicted while the new one is promised")
	}
	if err := n.GiveBack(plan, 0); err != nil {
		t.Fatal(err)
	}
	if free := n.unheld(nil); !slices.Contains(free, first) {
		t.Error("the old generation is kept after the promise was given back")
	}
}
