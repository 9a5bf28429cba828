package cache

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/internal/api"
	"stoker.dev/ufs"
)

// trace reads a file that has no bytes in memory, one read after the other, and counts
// what they cost the store.
type trace struct {
	t    *testing.T
	n    *node
	s    *Set
	fs   *noiseFS
	row  map[string]manifest.Row
	want []byte
}

// newTrace has files of so many bytes, and no read-ahead but where it says so.
func newTrace(t *testing.T, capacity, ahead int64, sizes map[string]int64) *trace {
	c := newCluster(t, 1, capacity)
	x := &trace{t: t, n: c.nodes[0], fs: newNoiseFS(sizes), row: map[string]manifest.Row{}}
	c.openUFS = func() ufs.FS { return x.fs }
	x.n.cache.o.ReadAheadBytes = ahead
	x.s = x.n.open(t, c.freeze())
	for key := range sizes {
		x.row[key] = rowOf(t, x.s, key)
	}
	return x
}

func (x *trace) read(key string, off, size int64) {
	x.t.Helper()
	got := make([]byte, size)
	k, err := x.s.ReadAt(x.t.Context(), x.row[key], got, off)
	if x.want = append(x.want[:0], got...); err == nil {
		x.fs.read(key, x.want[:k], off)
	}
	if err != nil || k == 0 || string(x.want[:k]) != string(got[:k]) {
		x.t.Fatalf("%s at %d: %d bytes, right: %t, %v", key, off, k, string(x.want[:k]) == string(got[:k]), err)
	}
}

// cost returns the requests and bytes since the last call, when all has come.
func (x *trace) cost(before *[2]int64) (requests, bytes int64) {
	x.t.Helper()
	x.n.settle(x.t)
	u := &x.n.cache.Counters().UFS
	requests, bytes = u.Requests.Load()-before[0], u.Bytes.Load()-before[1]
	*before = [2]int64{u.Requests.Load(), u.Bytes.Load()}
	return requests, bytes
}

// scattered are places in different windows of a file of 1 GiB, in no order, each in the
// fourth block.
func scattered(seed uint64, n int) (at []int64) {
	for _, k := range rand.New(rand.NewPCG(seed, 1)).Perm(255)[:n] {
		at = append(at, int64(k+1)*window+3*stoker.BlockBytes)
	}
	return at
}

const (
	vain  = 8                            // windows in vain before they end
	rest  = window - 3*stoker.BlockBytes // of a window, from where scattered reads
	large = 1 << 30
)

// Reads that lie alone bring their windows eight times, then what they asked for, in
// whole blocks, each by one request.
func TestScatteredReadsBringWhatTheyAskFor(t *testing.T) {
	for _, r := range []struct{ off, size, blocks int64 }{{0, 4 << 10, 1}, {0, 128 << 10, 1}, {200 << 10, 128 << 10, 2}, {0, 1 << 20, 4}} {
		t.Run(fmt.Sprintf("%d+%d", r.off, r.size), func(t *testing.T) {
			x := newTrace(t, 1<<30, -1, map[string]int64{"a": large})
			var before [2]int64
			for i, at := range scattered(1, 100) {
				x.read("a", at+r.off, r.size)
				want := r.blocks * stoker.BlockBytes
				if i < vain {
					want = rest
				}
				if requests, bytes := x.cost(&before); requests != 1 || bytes != want {
					t.Fatalf("read %d: %d requests for %d bytes, want 1 for %d", i, requests, bytes, want)
				}
			}
			spared := (100 - vain) * (rest - r.blocks*stoker.BlockBytes)
			if c := x.n.cache.Counters(); c.Random.Load() != 100-vain || c.SparedBytes.Load() != spared {
				t.Errorf("%d reads in no order were counted and %d bytes spared, want %d and %d", c.Random.Load(), c.SparedBytes.Load(), 100-vain, spared)
			}
		})
	}
}

// A reader who goes on after reads in no order has whole windows again within 1 MiB; one
// who begins a file, or reads it while others read it in no order, has them always.
func TestRunsHaveWholeWindows(t *testing.T) {
	const step = 128 << 10
	run := func(x *trace, from, to int64, between func()) (requests, bytes int64) {
		var before [2]int64
		x.cost(&before)
		for off := from; off < to; off += step {
			x.read("a", off, step)
			if k, n := x.cost(&before); k > 0 {
				requests, bytes = requests+k, bytes+n
			}
			if between != nil {
				between()
				x.cost(&before)
			}
		}
		return requests, bytes
	}
	for name, ahead := range map[string]int64{"": -1, ", read ahead": 64 << 20} {
		t.Run("from the beginning"+name, func(t *testing.T) {
			var cost [2][2]int64 // without reads in no order before, and with them
			for i := range cost {
				x := newTrace(t, 2<<30, ahead, map[string]int64{"a": large})
				for _, at := range scattered(2, 100) {
					if at > 256<<20 && i == 1 {
						x.read("a", at, 4<<10)
					}
				}
				cost[i][0], cost[i][1] = run(x, 0, 128<<20, nil)
			}
			if cost[0] != cost[1] || ahead < 0 && cost[1] != [2]int64{32, 128 << 20} {
				t.Errorf("requests and bytes %v, after reads in no order %v", cost[0], cost[1])
			}
		})
	}
	t.Run("from the middle", func(t *testing.T) {
		x := newTrace(t, 2<<30, -1, map[string]int64{"a": large})
		for _, at := range scattered(2, 40) {
			if at > 256<<20 {
				x.read("a", at, 4<<10)
			}
		}
		// 1, 1 and 2 blocks, then the rest of the window, and 31 windows.
		if requests, bytes := run(x, 128<<20, 256<<20, nil); bytes != 128<<20 || requests != 4+31 {
			t.Errorf("%d requests for %d bytes", requests, bytes)
		}
	})
	t.Run("beside others", func(t *testing.T) {
		x := newTrace(t, 2<<30, -1, map[string]int64{"a": large})
		others := scattered(3, 250)
		var before [2]int64
		next, small := 0, 0
		random := func() {
			for next < len(others) && others[next] < 80<<20 {
				next++
			}
			if next == len(others) {
				return
			}
			x.cost(&before)
			x.read("a", others[next], 4<<10)
			if _, bytes := x.cost(&before); bytes == stoker.BlockBytes {
				small++
			}
			next++
		}
		if requests, bytes := run(x, 0, 64<<20, random); bytes != 64<<20 || requests != 16 {
			t.Errorf("in order: %d requests for %d bytes, want 16", requests, bytes)
		}
		if small < 200 {
			t.Errorf("%d of %d reads in no order brought one block", small, next)
		}
	})
	t.Run("without space", func(t *testing.T) {
		x := newTrace(t, 8<<20, -1, map[string]int64{"a": large})
		for _, at := range scattered(2, 40) {
			x.read("a", at, 4<<10)
		}
		if requests, bytes := run(x, 0, 64<<20, nil); bytes != 64<<20 || requests != 16 {
			t.Errorf("%d requests for %d bytes, want 16", requests, bytes)
		}
	})
}

// Windows in which somebody reads on stay: records of some MiB in no order, and steps
// that are closer than a window.
func TestUsedWindowsStay(t *testing.T) {
	for name, x := range map[string]struct{ step, size, record int64 }{
		"records": {0, 128 << 10, 2 << 20},
		"steps":   {1 << 20, 64 << 10, 0},
	} {
		t.Run(name, func(t *testing.T) {
			tr := newTrace(t, 2<<30, -1, map[string]int64{"a": large})
			if x.record > 0 {
				for _, k := range rand.New(rand.NewPCG(5, 5)).Perm(255)[:60] {
					for off := int64(0); off < x.record; off += x.size {
						tr.read("a", int64(k+1)*window+off, x.size)
					}
				}
			} else {
				for off := x.step; off < 240<<20; off += x.step {
					tr.read("a", off, x.size)
				}
			}
			var before [2]int64
			if requests, _ := tr.cost(&before); requests != 60 {
				t.Errorf("%d requests, want 60: a window each", requests)
			}
		})
	}
}

// A file that is read as a whole in no order has windows again: fewer than twice as many
// reads wait as with windows alone, where with blocks all 4096 would.
func TestDenseReadsHaveWindowsAgain(t *testing.T) {
	var waits [2]int
	for i, tries := range []int{1 << 30, 0} {
		x := newTrace(t, 2<<30, -1, map[string]int64{"a": large})
		x.s.windows.Tries = tries
		got := make([]byte, 4<<10)
		for _, k := range rand.New(rand.NewPCG(5, 6)).Perm(large / stoker.BlockBytes) {
			_, waited, err := x.s.read(t.Context(), x.row["a"], got, int64(k)*stoker.BlockBytes)
			if err != nil {
				t.Fatal(err)
			}
			if waited {
				waits[i]++
			}
			x.n.settle(t)
		}
		var before [2]int64
		if requests, bytes := x.cost(&before); bytes != large {
			t.Errorf("%d requests for %d bytes", requests, bytes)
		}
	}
	t.Logf("%d reads waited, %d in windows", waits[1], waits[0])
	if waits[1] > waits[0]*7/4 {
		t.Errorf("%d reads waited, %d in windows", waits[1], waits[0])
	}
}

// Reads in no order, one in each of many files, are seen in the dataset.
func TestWindowsOfManyFiles(t *testing.T) {
	sizes := map[string]int64{}
	for k := range 40 {
		sizes[fmt.Sprintf("%02d", k)] = 20 << 20
	}
	x := newTrace(t, 2<<30, -1, sizes)
	var before [2]int64
	for k := range 30 {
		x.read(fmt.Sprintf("%02d", k), window+3*stoker.BlockBytes, 4<<10)
		want := int64(rest)
		if k >= vain {
			want = stoker.BlockBytes
		}
		if requests, bytes := x.cost(&before); requests != 1 || bytes != want {
			t.Fatalf("file %d: %d requests for %d bytes, want %d", k, requests, bytes, want)
		}
	}
}

// An owner fetches for who asks it what that one asks for.
func TestWindowsThroughAnOwner(t *testing.T) {
	c := newCluster(t, 2, 1<<30)
	fs := newNoiseFS(map[string]int64{"a": large})
	c.openUFS = func() ufs.FS { return fs }
	s := c.nodes[1].open(t, c.freeze())
	row := rowOf(t, s, "a")
	var before [2]int64
	for i, at := range scattered(4, 40) {
		if _, err := s.ReadAt(t.Context(), row, make([]byte, 4<<10), at); err != nil {
			t.Fatal(err)
		}
		want, came := int64(rest), int64(0)
		if i >= vain {
			want = stoker.BlockBytes
		}
		for k, n := range c.nodes {
			n.settle(t)
			now := n.cache.Counters().UFS.Bytes.Load()
			came, before[k] = came+now-before[k], now
		}
		if came != want {
			t.Fatalf("read %d: %d bytes were fetched, want %d", i, came, want)
		}
	}
	if before[0] == 0 {
		t.Error("the other one has fetched nothing")
	}
}

// While a load of the dataset is under way its windows are no waste.
func TestWindowsUnderALoadStay(t *testing.T) {
	c := newCluster(t, 1, 1<<30)
	c.put("a", 256<<20, 1)
	c.put("b", 8<<20, 2)
	id := c.freeze()
	n := c.nodes[0]
	n.cache.o.ReadAheadBytes = -1
	s := n.open(t, id)
	row := rowOf(t, s, "a")
	for k := range uint32(begun) { // files that are only begun bring no more than that, else
		s.heads.Began(1000+k, 1)
	}
	at := func(k int) int64 { return int64(k*7%60+2)*window + 3*stoker.BlockBytes }
	for k := range 20 {
		if _, err := s.ReadAt(t.Context(), row, make([]byte, 4<<10), at(k)); err != nil {
			t.Fatal(err)
		}
		n.settle(t)
	}
	// The load's first request is held, and what readers ask for behind it is not.
	hold, first := make(chan struct{}), make(chan struct{})
	asked, _ := c.ufs.counted()
	c.ufs.mu.Lock()
	c.ufs.hook = func(k int) {
		if k == asked+1 {
			close(first)
			<-hold
		}
	}
	c.ufs.mu.Unlock()
	n.cache.o.Streams = 1
	plan := c.plan(id)
	if _, err := n.cache.Reserve(t.Context(), api.ReserveRequest{Plan: plan}); err != nil {
		t.Fatal(err)
	}
	if err := n.cache.Load(t.Context(), plan, 0); err != nil {
		t.Fatal(err)
	}
	<-first
	_, before := c.ufs.counted()
	if _, err := s.ReadAt(t.Context(), row, make([]byte, 4<<10), at(40)); err != nil {
		t.Fatal(err)
	}
	if _, bytes := c.ufs.counted(); bytes-before != rest {
		t.Errorf("%d bytes came, want the window's %d", bytes-before, rest)
	}
	if _, err := s.ReadAt(t.Context(), rowOf(t, s, "b"), make([]byte, 4<<10), 0); err != nil {
		t.Fatal(err)
	}
	if _, bytes := c.ufs.counted(); bytes-before != rest+window {
		t.Errorf("%d bytes came with the beginning of a file, want a window", bytes-before-rest)
	}
	close(hold)
	waitFor(t, "the load has ended", func() bool { loads, _ := n.cache.Running(); return loads == 0 })
}

// BenchmarkWindows reads 4 KiB and 128 KiB at random places of a file of 1 GiB that is not
// here, by 8 readers, and a file of 256 MiB front to back, by one, turn and turn about with
// windows that adapt and with those of 4 MiB; from a store 20 ms away and from one that
// is near. It reports the median of a read, or of the whole file, of both, the ratio of
// a pair's, and for each byte those that the store sent.
func BenchmarkWindows(b *testing.B) {
	for _, w := range []struct {
		name  string
		after time.Duration
		size  int64
		file  int64
	}{
		{"far/4KiB", 20 * time.Millisecond, 4 << 10, 1 << 30}, {"far/128KiB", 20 * time.Millisecond, 128 << 10, 1 << 30}, {"far/inOrder", 20 * time.Millisecond, 0, 256 << 20},
		{"near/4KiB", 0, 4 << 10, 1 << 30}, {"near/128KiB", 0, 128 << 10, 1 << 30}, {"near/inOrder", 0, 0, 256 << 20},
	} {
		b.Run(w.name, func(b *testing.B) {
			var took, sent [2][]float64
			var ratio []float64
			for i := 0; b.Loop(); i++ {
				seed := rand.Uint64()
				for _, side := range [][]int{{0, 1}, {1, 0}}[i%2] {
					t, n := readCold(b, []int{1 << 30, 0}[side], w.after, w.size, w.file, seed)
					took[side], sent[side] = append(took[side], t), append(sent[side], n)
				}
				ratio = append(ratio, took[1][i]/took[0][i])
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(middle(took[0]), "window-us")
			b.ReportMetric(middle(took[1]), "adaptive-us")
			b.ReportMetric(middle(ratio), "adaptive/window")
			b.ReportMetric(middle(sent[0]), "window-UFS-bytes/byte")
			b.ReportMetric(middle(sent[1]), "adaptive-UFS-bytes/byte")
		})
	}
}

func middle(all []float64) float64 {
	all = slices.Sorted(slices.Values(all))
	return all[len(all)/2]
}

// readCold makes 200 reads at random, or one of all that there is if size is 0, and
// returns the median of what they took in microseconds, and what the store sent for
// each byte.
func readCold(b *testing.B, tries int, after time.Duration, size, file int64, seed uint64) (us, sent float64) {
	c := newCluster(b, 1, 2<<30)
	fs := newNoiseFS(map[string]int64{"a": file})
	c.openUFS = func() ufs.FS { return farFS{fs, after} }
	n := c.nodes[0]
	s := n.open(b, c.freeze())
	s.windows.Tries = tries
	row := rowOf(b, s, "a")
	todo, took := make(chan int64, 200), make(chan float64, 200)
	bytes, readers := 200*size, 8
	if size == 0 {
		todo, bytes, readers = make(chan int64, 1), file, 1
		todo <- 0
	}
	for r := rand.New(rand.NewPCG(seed, 2)); len(todo) < cap(todo); {
		todo <- r.Int64N(file/size) * size
	}
	close(todo)
	var wg sync.WaitGroup
	for range readers {
		wg.Go(func() {
			buf := make([]byte, max(size, 128<<10))
			for off := range todo {
				began, end := time.Now(), off+size
				if size == 0 {
					end = file
				}
				for ; off < end; off += int64(len(buf)) {
					if _, err := s.ReadAt(context.Background(), row, buf, off); err != nil {
						b.Error(err)
					}
				}
				took <- float64(time.Since(began).Nanoseconds()) / 1e3
			}
		})
	}
	wg.Wait()
	close(took)
	all := []float64{}
	for t := range took {
		all = append(all, t)
	}
	for {
		if _, flights := n.cache.Running(); flights == 0 {
			break
		}
		<-time.After(time.Millisecond)
	}
	return middle(all), float64(n.cache.Counters().UFS.Bytes.Load()) / float64(bytes)
}
