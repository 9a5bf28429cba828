package cache

import (
	"fmt"
	"math"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"stoker.dev"
	"stoker.dev/cache/evict"
	"stoker.dev/cache/manifest"
	"stoker.dev/cache/store"
	"stoker.dev/internal/api"
	"stoker.dev/ufs"
)

// settle waits until nothing is to be evicted.
func (c *Cache) settle() {
	c.evictor.mu.Lock()
	rests := c.evictor.rests
	c.evictor.mu.Unlock()
	if rests != nil {
		<-rests
	}
}

// epochFile is so long that each file is a shard of its own, of which the last
// block can be read alone.
const epochFile = 48<<20 + 1

// replayed is a dataset of one shard for each file, of which one byte is read at
// a time. The disk gives its shards their space, though next to nothing is written: a subtest
// for each gives it back.
type replayed struct {
	t    *testing.T
	c    *cluster
	fs   *noiseFS
	id   stoker.ID
	rows []manifest.Row
	keys []string
	set  *Set
	n    *Cache
}

// replayOf makes a dataset of so many shards on a worker with room for fit of
// them below the high mark.
func replayOf(t *testing.T, shards, fit int) *replayed { return replayFor(t, shards, fit, 0) }

// replayFor gives data that nobody uses a time to live.
func replayFor(t *testing.T, shards, fit int, ttl time.Duration) *replayed {
	sizes := map[string]int64{}
	for i := range shards {
		sizes[fmt.Sprintf("f%03d", i)] = epochFile
	}
	r := &replayed{t: t, c: newCluster(t, 0, 0), fs: newNoiseFS(sizes)}
	r.c.alone, r.c.evict.Idle = true, ttl
	r.c.openUFS = func() ufs.FS { return r.fs }
	dir := filepath.Join(t.TempDir(), "cache")
	st, err := store.Open(store.Options{Dir: dir, CapacityBytes: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	charge := st.ChargeBytes(epochFile, manifest.BlocksOf(epochFile))
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	r.c.add(0, dir, (int64(fit)*charge+16<<20)*100/defaultHigh)
	r.n = r.c.nodes[0].cache
	r.open("f%03d", shards)
	return r
}

// open freezes and opens what the UFS has.
func (r *replayed) open(format string, shards int) {
	r.t.Helper()
	r.id = r.c.freezeFrom("mem://"+format[:1], stoker.ID{})
	set, err := r.n.Open(r.t.Context(), r.id)
	if err != nil {
		r.t.Fatal(err)
	}
	r.set = set
	r.t.Cleanup(func() {
		if err := set.Close(); err != nil {
			r.t.Error(err)
		}
	})
	if n := set.man.Shards(); n != shards {
		r.t.Fatalf("%d files are %d shards", shards, n)
	}
	for i := range shards {
		key := fmt.Sprintf(format, i)
		row, _ := set.man.LookupPath(key)
		r.rows, r.keys = append(r.rows, row), append(r.keys, key)
	}
}

// hits reads the shards in order and returns the share of reads after warm that
// the disk served by itself. What memory has of a shard for which there was no
// space is no hit.
func (r *replayed) hits(trace []int, warm int) float64 {
	r.t.Helper()
	var got, want [1]byte
	hits, local, asked := 0, &r.n.counters.LocalBytes, &r.n.counters.UFS.Requests
	for i, n := range trace {
		localBefore, askedBefore := local.Load(), asked.Load()
		if _, err := r.set.ReadAt(r.t.Context(), r.rows[n], got[:], epochFile-1); err != nil {
			r.t.Fatal(err)
		}
		if r.fs.read(r.keys[n], want[:], epochFile-1); got != want {
			r.t.Fatalf("read %d differs from the source", i)
		}
		if i >= warm && local.Load() > localBefore && asked.Load() == askedBefore {
			hits++
		}
		r.n.settle()
		if u := r.n.o.Store.Usage(); u.UsedBytes > u.CapacityBytes {
			r.t.Fatalf("read %d: %+v", i, u)
		}
	}
	return float64(hits) / float64(len(trace)-warm)
}

func epochsOf(shards, n int, shuffled bool) (out []int) {
	r := rand.New(rand.NewPCG(uint64(shards), 7))
	order := r.Perm(shards)
	for range n {
		if shuffled {
			order = r.Perm(shards)
		}
		out = append(out, order...)
	}
	return out
}

// zipfOf makes reads of which shard n gets a part like 1/(n+1).
func zipfOf(shards, reads int) (out []int) {
	r := rand.New(rand.NewPCG(3, 9))
	sums, total := make([]float64, shards), 0.0
	for i := range sums {
		total += 1 / float64(i+1)
		sums[i] = total
	}
	for range reads {
		x, n := r.Float64()*total, 0
		for sums[n] < x {
			n++
		}
		out = append(out, n)
	}
	return out
}

// Epochs, shuffled and repeated, hit what fits: no policy can do better without
// knowing the order. Most fractions would be far below it if anything was evicted.
func TestEpochsHitWhatFits(t *testing.T) {
	const shards, epochs = 100, 5
	for _, shuffled := range []bool{true, false} {
		trace := epochsOf(shards, epochs, shuffled)
		for fit := 10; fit <= 90; fit += 10 {
			f := float64(fit) / shards
			t.Run(fmt.Sprintf("shuffled %v, room for %.1f", shuffled, f), func(t *testing.T) {
				r := replayOf(t, shards, fit)
				got := r.hits(trace, shards)
				if math.Abs(got-f) > 0.01 {
					t.Errorf("%.3f of the reads hit", got)
				}
				if n := r.n.counters.evictions[byPolicy].shards(); n != 0 {
					t.Errorf("%d shards were evicted", n)
				}
			})
		}
	}
}

// With LFU epochs hit less, but not less than LRU would in shuffled ones; what is
// evicted never exceeds what reads brought in.
func TestEpochsUnderLFU(t *testing.T) {
	const shards, epochs = 100, 5
	trace := epochsOf(shards, epochs, true)
	for _, fit := range []int{10, 50, 90} {
		f := float64(fit) / shards
		t.Run(fmt.Sprintf("room for %.1f", f), func(t *testing.T) {
			r := replayOf(t, shards, fit)
			r.set.use.share.Use(evict.LFUMode)
			got := r.hits(trace, shards)
			lru := f + (1-f)*math.Log(1-f)
			t.Logf("%.3f of the reads hit, LRU %.3f", got, lru)
			if got > f+0.01 || got < lru-0.01 {
				t.Errorf("%.3f of the reads hit, LRU would be %.3f", got, lru)
			}
		})
	}
}

// Where some shards are read more often than others, auto finds out and keeps
// those: about as good as LFU from the start, and near to the best that is fixed.
// Keep has what came first, which here are the least popular.
func TestSkewedReadsKeepThePopular(t *testing.T) {
	const shards, fit, reads = 400, 100, 6000
	var trace []int
	for n := range shards {
		trace = append(trace, shards-1-n)
	}
	trace = append(trace, zipfOf(shards, reads)...)
	best := 0.0
	for _, n := range trace[len(trace)-reads/2:] {
		if n < fit {
			best += 2.0 / reads
		}
	}
	for mode, least := range map[evict.Mode]float64{evict.Auto: 0.8 * best, evict.LFUMode: 0.8 * best, evict.KeepMode: 0} {
		t.Run(string(mode), func(t *testing.T) {
			r := replayOf(t, shards, fit)
			r.set.use.share.Use(mode)
			got := r.hits(trace, len(trace)-reads/2)
			t.Logf("%.3f of the reads hit, the most popular would be %.3f; %d shards were evicted", got, best, r.n.counters.evictions[byPolicy].shards())
			if got < least || mode == evict.KeepMode && got > 0.2*best {
				t.Errorf("%.3f of the reads hit", got)
			}
		})
	}
}

// lease gives the dataset to a job, or takes it back.
func (r *replayed) lease(on bool) {
	r.t.Helper()
	q := api.LeaseRequest{Leases: []api.Lease{{Holder: "job", Manifest: r.id, TTLSeconds: 60}}}
	if !on {
		q = api.LeaseRequest{Drop: []string{"job"}, Partial: true}
	}
	put(r.t, r.n, q)
}

// What a job holds no policy takes: what does not fit is read through. When it is
// released the policy knows what is there, and goes on.
func TestPoliciesTakeNothingThatIsHeld(t *testing.T) {
	const shards, fit = 60, 20
	r := replayOf(t, shards, fit)
	r.set.use.share.Use(evict.LFUMode)
	gone := func() int64 { return r.n.counters.evictions[byPolicy].shards() }
	r.hits(epochsOf(shards, 2, true), 0)
	if gone() == 0 {
		t.Fatal("nothing was evicted from data that nobody holds")
	}
	r.lease(true)
	before, here := gone(), r.set.here()
	r.hits(epochsOf(shards, 3, true), 0)
	after := map[stoker.ID]bool{}
	for _, x := range r.set.here() {
		after[x.ID] = true
	}
	for _, x := range here {
		if !after[x.ID] {
			t.Errorf("shard %d was evicted while a job held it", x.Number)
		}
	}
	if n := gone() - before; n != 0 {
		t.Errorf("%d shards were evicted while a job held them", n)
	}
	r.lease(false)
	r.hits(epochsOf(shards, 2, true), 0)
	if gone() == before {
		t.Error("after the release nothing is evicted any more")
	}
	if n := len(r.set.here()); n > fit+1 {
		t.Errorf("%d shards are here, %d fit below the mark", n, fit)
	}
}

// A shard that a kernel view has mapped stays, though the policy gave it up.
func TestPoliciesSpareWhatAKernelViewHas(t *testing.T) {
	const shards, fit = 40, 10
	r := replayOf(t, shards, fit)
	r.set.use.share.Use(evict.LFUMode)
	if err := r.n.Mounted(r.id, "x", 1); err != nil {
		t.Fatal(err)
	}
	r.hits([]int{0, 1, 2}, 0)
	id := r.set.man.Shard(1).ID
	sh, ok := r.n.o.Store.Get(id)
	if !ok {
		t.Fatal("what was read is not here")
	}
	defer sh.Release()
	r.hits(epochsOf(shards, 3, true), 0)
	if r.n.counters.evictions[byPolicy].shards() == 0 {
		t.Error("reads of a view take the place of nothing of their own dataset")
	}
	if r.n.o.Store.Users(id) == 0 {
		t.Error("a shard was evicted that somebody has mapped")
	}
}

// Reads go on while nothing can be evicted.
func TestReadsDoNotWaitForEvictions(t *testing.T) {
	const shards = 40
	r := replayOf(t, shards, 10)
	r.set.use.share.Use(evict.LFUMode)
	r.n.room.Lock()
	var got, want [1]byte
	for _, i := range epochsOf(shards, 3, true) {
		if _, err := r.set.ReadAt(t.Context(), r.rows[i], got[:], epochFile-1); err != nil {
			t.Error(err)
		}
		if r.fs.read(r.keys[i], want[:], epochFile-1); got != want {
			t.Errorf("%s differs from the source", r.keys[i])
		}
	}
	if n := r.n.counters.evictions[byPolicy].shards(); n != 0 {
		t.Errorf("%d shards were evicted by reads themselves", n)
	}
	r.n.room.Unlock()
	r.n.settle()
	if r.n.counters.evictions[byPolicy].shards() == 0 {
		t.Error("nothing was evicted afterwards")
	}
}

// another is a dataset of other files beside, on the same worker.
func (r *replayed) another(shards int) *replayed {
	r.t.Helper()
	sizes := map[string]int64{}
	for i := range shards {
		sizes[fmt.Sprintf("g%03d", i)] = epochFile
	}
	b := &replayed{t: r.t, c: r.c, fs: newNoiseFS(sizes), n: r.n}
	r.c.openUFS = func() ufs.FS { return b.fs }
	b.open("g%03d", shards)
	return b
}

// When reads of held data have filled the cache to the high mark, what nobody
// holds goes, shard by shard, until the low one; what is held stays, up to the
// whole capacity.
func TestMarks(t *testing.T) {
	const fit = 40
	a := replayOf(t, 30, fit)
	a.hits(epochsOf(30, 1, true), 0)
	b := a.another(50)
	if err := a.n.Mounted(b.id, "b", 1); err != nil {
		t.Fatal(err)
	}
	percent := func() float64 {
		u := a.n.o.Store.Usage()
		return 100 * float64(u.UsedBytes) / float64(u.CapacityBytes)
	}
	b.hits(epochsOf(50, 1, false)[:10], 0)
	left := len(a.set.here())
	if p := percent(); p > defaultHigh || left < 28 || left > 30 {
		t.Errorf("with 40 shards of which 40 fit below the mark %.1f %% are taken, %d of 30 are left", p, left)
	}
	b.hits(epochsOf(50, 1, false)[10:20], 0)
	left = len(a.set.here())
	if p := percent(); p > defaultHigh || left < 16 || left > 20 || len(b.set.here()) != 20 {
		t.Errorf("after 20 shards that are held %.1f %% are taken, %d and %d shards are here", p, left, len(b.set.here()))
	}
	b.hits(epochsOf(50, 2, false), 0)
	if p, n := percent(), len(b.set.here()); p < 97 || n < fit || len(a.set.here()) != 0 {
		t.Errorf("of 50 shards that are held %d are here, and %d others; %.1f %% are taken", n, len(a.set.here()), p)
	}
}

// For data that nobody holds goes only what nobody has read for a while.
func TestReadsTakeWhatNobodyReads(t *testing.T) {
	a := replayOf(t, 20, 20)
	a.hits(epochsOf(20, 1, true), 0)
	b := a.another(20)
	b.hits(epochsOf(20, 2, true), 0)
	if n := len(a.set.here()); n != 20 || len(b.set.here()) != 0 {
		t.Fatalf("two that are read: %d shards of the first are here and %d of the second", n, len(b.set.here()))
	}
	a.set.use.read.Store(time.Now().Add(-restFor - time.Minute).Unix())
	a.n.holds.known[a.id].LastUsed = time.Now().Add(-restFor - time.Minute)
	a.n.fills.forget(a.n.memory, stoker.ID{}) // what is read from memory asks for no room
	b.hits(epochsOf(20, 3, true), 0)
	if n := len(b.set.here()); n < 15 || len(a.set.here()) > 20-n {
		t.Errorf("%d shards of the one that is read are here, and %d of the other", n, len(a.set.here()))
	}
}

// What nobody holds and nobody reads goes when its time to live is over; a read, a
// hold or a grace begins it anew. The next life knows of reads that were long ago.
func TestIdleDataGoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const ttl = 2 * time.Hour
		a := replayFor(t, 10, 20, ttl)
		b := a.another(3)
		pass := func(d time.Duration, wantA, wantB int) {
			t.Helper()
			time.Sleep(d) // of the bubble
			synctest.Wait()
			if na, nb := len(a.set.here()), len(b.set.here()); na != wantA || nb != wantB {
				t.Fatalf("%d shards of the first are here, want %d; of the second %d, want %d", na, wantA, nb, wantB)
			}
		}
		a.hits(epochsOf(10, 1, false), 0)
		b.hits(epochsOf(3, 1, false), 0)
		pass(ttl-2*sweepEvery, 10, 3)
		a.hits([]int{4}, 0)
		pass(3*sweepEvery, 10, 0)
		a.lease(true)
		pass(20*ttl, 10, 0)
		put(t, a.n, api.LeaseRequest{Leases: []api.Lease{{Holder: "job", Manifest: a.id, TTLSeconds: 60, GraceSeconds: 3 * ttl.Seconds()}}})
		a.lease(false)
		pass(3*ttl-2*sweepEvery, 10, 0) // in grace
		pass(3*sweepEvery, 0, 0)
		held, err := a.n.Holdings(t.Context())
		if err != nil || len(held) != 0 {
			t.Errorf("what is known of data that went: %+v, %v", held, err)
		}
		if n := a.n.counters.evictions[idle].shards(); n != 13 {
			t.Errorf("%d shards are counted, 13 went", n)
		}
		a.hits([]int{1, 2}, 0) // and comes again when it is read
		pass(time.Minute, 2, 0)
		a.hits([]int{1}, 0)
		time.Sleep(ttl / 2)
		a.hits([]int{1}, 0)
		time.Sleep(ttl / 2)
		synctest.Wait()
		var next holds
		if err := next.restore(a.n.o.Store); err != nil {
			t.Fatal(err)
		}
		next.mu.Lock()
		defer next.mu.Unlock()
		if since := time.Since(next.known[a.id].LastUsed); since > ttl/2+2*sweepEvery {
			t.Errorf("the next life takes the last read to be %v ago", since)
		}
	})
}

// Without a time to live nothing goes by itself.
func TestIdleDataStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := replayOf(t, 5, 20)
		a.hits(epochsOf(5, 1, false), 0)
		time.Sleep(1000 * time.Hour) // of the bubble
		synctest.Wait()
		if n := len(a.set.here()); n != 5 {
			t.Errorf("%d shards are left", n)
		}
	})
}
