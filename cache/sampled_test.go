package cache

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/internal/api"
	"stoker.dev/planner/order"
	"stoker.dev/ufs"
)

// files puts a dataset of classes into the UFS, and returns its files as ImageFolder
// numbers them.
func (c *cluster) files(n, size int) (keys []string, want map[string][]byte) {
	want = map[string][]byte{}
	for i := range n {
		key := fmt.Sprintf("train/n%02d/%05d.jpg", i/100, i)
		keys, want[key] = append(keys, key), c.put(key, size, uint64(i))
	}
	return keys, want
}

// epochOf is what a rank reads in an epoch, with some workers that each read a batch.
func epochOf(s order.Sampler, n, rank int, epoch uint64, workers, batch int) (out []uint32) {
	all := s.Permutation(n, epoch)
	steps := s.Steps(n)
	for round := 0; round < steps; round += workers * batch {
		for i := range batch {
			for w := range workers {
				if step := round + w*batch + i; step < steps {
					out = append(out, s.At(all, rank, step))
				}
			}
		}
	}
	return out
}

func (n *node) sampled(t testing.TB, s *Set, spec string, some *api.Selector) *Sampled {
	t.Helper()
	sampler, err := order.Parse(spec)
	if err != nil {
		t.Fatal(err)
	}
	r := s.Sampled(sampler, some)
	t.Cleanup(r.Close)
	return r
}

func readFile(t testing.TB, r *Sampled, key string, want []byte) {
	t.Helper()
	got := make([]byte, len(want)+1)
	if n, err := r.ReadAt(t.Context(), rowOf(t, r.s, key), got, 0); err != nil || !bytes.Equal(got[:n], want) {
		t.Fatalf("%s: %d bytes, %v", key, n, err)
	}
}

// idle reports whether nothing goes on for the dataset beside what a test does.
func (r *Sampled) idle() bool {
	r.s.c.mu.Lock()
	defer r.s.c.mu.Unlock()
	return r.s.users == 1
}

func quiet(t *testing.T, n *node) {
	t.Helper()
	waitFor(t, "what was begun has come", func() bool { _, flights := n.cache.Running(); return flights == 0 })
}

// An epoch that is read in the order that was declared comes in ahead of its reader,
// each file with one request, and nothing of other ranks but the first files of the
// next epoch. So do the next epochs.
func TestDeclaredOrderIsReadAhead(t *testing.T) {
	const files, size = 3000, 20 << 10
	c := newCluster(t, 1, 1<<30)
	keys, want := c.files(files, size)
	c.put("README", 100, 1)
	n := c.nodes[0]
	s := n.open(t, c.freeze())
	r := n.sampled(t, s, "pytorch:seed=7,world=3", api.Selection{Paths: []string{"train"}}.Selector())
	waitFor(t, "the files are numbered", func() bool { return r.known.Load() != nil })
	sampler := order.Sampler{Seed: 7, World: 3}
	read := map[uint32]bool{}
	for epoch := range uint64(3) {
		k := n.cache.Counters()
		ahead, used := k.AheadBytes.Load(), k.AheadUsedBytes.Load()
		fresh := 0
		for i, f := range epochOf(sampler, files, 1, 4+epoch, 4, 16) {
			if !read[f] {
				fresh++
			}
			read[f] = true
			readFile(t, r, keys[f], want[keys[f]])
			if i == 64 && epoch == 0 {
				waitFor(t, "the epoch is recognised", func() bool { return k.Epochs.Load() == 1 })
			}
		}
		quiet(t, n)
		ahead, used = k.AheadBytes.Load()-ahead, k.AheadUsedBytes.Load()-used
		if used < int64(fresh-100)*size {
			t.Errorf("epoch %d: of %d files, %d had come ahead", 4+epoch, fresh, used/size)
		}
		if ahead > used+256*size {
			t.Errorf("epoch %d: %d files came ahead, and %d of them were read", 4+epoch, ahead/size, used/size)
		}
	}
	requests, asked := c.ufs.counted()
	if most := len(read) + 256; requests > most || asked != int64(requests)*size {
		t.Errorf("%d requests, %d bytes, for %d files", requests, asked, len(read))
	}
	if e := n.cache.Counters().Epochs.Load(); e != 3 {
		t.Errorf("%d epochs were recognised", e)
	}
}

// A job that reads in another order than it said costs its store nothing more.
func TestWrongSamplerReadsNothingAhead(t *testing.T) {
	const files, size = 2000, 20 << 10
	asked := func(spec string) (int, int64) {
		c := newCluster(t, 1, 1<<30)
		keys, want := c.files(files, size)
		n := c.nodes[0]
		r := n.sampled(t, n.open(t, c.freeze()), spec, nil)
		waitFor(t, "the files are numbered", func() bool { return r.known.Load() != nil })
		for i, f := range rand.New(rand.NewPCG(1, 2)).Perm(files)[:files/2] {
			readFile(t, r, keys[f], want[keys[f]])
			if i%128 == 0 { // whatever it looks for is found by now
				waitFor(t, "the search ends", r.idle)
			}
		}
		quiet(t, n)
		if b := n.cache.Counters().AheadBytes.Load(); b > 0 {
			t.Errorf("%s: %d bytes came ahead", spec, b)
		}
		return c.ufs.counted()
	}
	for _, spec := range []string{"pytorch:seed=0,world=1", "pytorch:seed=0,world=8"} {
		if requests, b := asked(spec); requests != files/2 || b != files/2*size {
			t.Errorf("%s: %d requests, %d bytes for %d files of %d", spec, requests, b, files/2, size)
		}
	}
}

// The order of samples whose tables would take too much memory is not followed, and
// what it took is given back.
func TestOrdersAreBounded(t *testing.T) {
	c := newCluster(t, 1, 1<<30)
	c.files(600, 10)
	n := c.nodes[0]
	s := n.open(t, c.freeze())
	r := n.sampled(t, s, "pytorch:seed=0,world=1", nil)
	waitFor(t, "the files are numbered", func() bool { return r.known.Load() != nil })
	held := n.cache.orders.Load()
	if held < 1600 {
		t.Errorf("%d bytes are counted", held)
	}
	n.cache.memory.limit = 2 * ordersPart * held
	other := n.sampled(t, s, "pytorch:seed=0,world=2", nil)
	waitFor(t, "the files are numbered", func() bool { return other.known.Load() != nil })
	third := n.sampled(t, s, "pytorch:seed=0,world=4", nil)
	waitFor(t, "it is given up", third.idle)
	if third.known.Load() != nil || n.cache.orders.Load() != 2*held {
		t.Errorf("%d bytes are counted of %d", n.cache.orders.Load(), 2*held)
	}
	r.Close()
	r.Close()
	other.Close()
	third.Close()
	if left := n.cache.orders.Load(); left != 0 {
		t.Errorf("%d bytes are counted at the end", left)
	}
}

// Samples are numbered as torchvision's ImageFolder does.
func TestSamplesAreNumberedAsImageFolderDoes(t *testing.T) {
	c := newCluster(t, 1, 1<<30)
	want := []string{ // sorted classes, and in each sorted(os.walk) and sorted names
		"top.jpg", "a/1.jpg", "a/2.jpg", "a/x/0.jpg", "a-b/1.jpg", "b/10.jpg", "b/9.jpg", "b/B.jpg", "b/a.jpg", "ü/1.jpg"}
	for i, key := range want {
		c.put(key, 10, uint64(i))
	}
	c.put("a/notes.txt", 5, 1)
	c.put("c/other.txt", 5, 1)
	s := c.nodes[0].open(t, c.freeze())
	never := func() bool { return false }
	got := samplesOf(s.man, api.Selection{Include: []string{"*.jpg"}}.Selector(), never)
	if got.n != len(want) {
		t.Fatalf("%d samples", got.n)
	}
	for i, key := range want {
		if path := s.man.Path(got.row(uint32(i))); path != key {
			t.Errorf("sample %d is %s, want %s", i, path, key)
		}
	}
	all := samplesOf(s.man, nil, never)
	var rows int
	for r := range manifest.Row(s.man.Rows()) {
		for _, list := range []*samples{got, all} {
			n, ok := list.number(r)
			listed := s.man.Entry(r).Kind == manifest.File && (list == all || slices.Contains(want, s.man.Path(r)))
			if ok != listed || ok && list.row(n) != r {
				t.Errorf("%s: number %d, %t", s.man.Path(r), n, ok)
			}
		}
		rows++
	}
	if all.n != len(want)+2 || rows != s.man.Rows() {
		t.Errorf("%d samples of %d rows", all.n, rows)
	}
}

// BenchmarkColdEpoch reads an epoch of small files in a shuffled order, by 4 readers,
// from a store 20 ms away.
func BenchmarkColdEpoch(b *testing.B) {
	const files, size, workers = 4000, 100 << 10, 4
	for _, spec := range []string{"", "pytorch:seed=0,world=1"} {
		name := spec
		if spec == "" {
			name = "unknown"
		}
		b.Run(name, func(b *testing.B) {
			for range b.N {
				c := newCluster(b, 1, 4<<30)
				keys, want := c.files(files, size)
				c.openUFS = func() ufs.FS { return farFS{c.ufs, 20 * time.Millisecond} }
				n := c.nodes[0]
				s := n.open(b, c.freeze())
				var reader interface {
					ReadAt(context.Context, manifest.Row, []byte, int64) (int, error)
				} = s
				if spec != "" {
					reader = n.sampled(b, s, spec, nil)
				}
				list := order.Sampler{World: 1}.Permutation(files, 0)
				began, done := time.Now(), make(chan error, workers)
				for w := range workers {
					go func() {
						p := make([]byte, size)
						for at := w * 32; at < len(list); at += workers * 32 {
							for _, f := range list[at:min(at+32, len(list))] {
								if _, err := reader.ReadAt(b.Context(), rowOf(b, s, keys[f]), p, 0); err != nil || !bytes.Equal(p, want[keys[f]]) {
									done <- stoker.Errorf(stoker.KindInternal, "bench", keys[f], "wrong: %v", err)
									return
								}
							}
						}
						done <- nil
					}()
				}
				for range workers {
					if err := <-done; err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(files)/time.Since(began).Seconds(), "files/s")
				b.ReportMetric(float64(n.cache.Counters().AheadUsedBytes.Load())/size, "ahead")
			}
		})
	}
}

// Samples that are larger than a window of demand, one in sixteen here, come ahead as a
// whole, in pieces, and no byte of them twice.
func TestLargeSamplesAreReadAhead(t *testing.T) {
	const files, large, small, every = 600, window + 300<<10, 1 << 10, 16
	c := newCluster(t, 1, 1<<30)
	var keys []string
	var want [][]byte
	total := 0
	for i := range files {
		size := small
		if i%every == 0 {
			size = large
		}
		keys = append(keys, fmt.Sprintf("f%04d", i))
		want = append(want, c.put(keys[i], size, uint64(i)))
		total += size
	}
	n := c.nodes[0]
	r := n.sampled(t, n.open(t, c.freeze()), "pytorch:seed=1,world=1", nil)
	waitFor(t, "the files are numbered", func() bool { return r.known.Load() != nil })
	got := make([]byte, 1<<20)
	for i, f := range epochOf(order.Sampler{Seed: 1, World: 1}, files, 0, 0, 2, 4) {
		for off := 0; off < len(want[f]); {
			k, err := r.ReadAt(t.Context(), rowOf(t, r.s, keys[f]), got, int64(off))
			if err != nil || !bytes.Equal(got[:k], want[f][off:off+k]) {
				t.Fatalf("%s at %d: %d bytes, %v", keys[f], off, k, err)
			}
			off += k
		}
		if i == 200 {
			waitFor(t, "the epoch is recognised", func() bool { return n.cache.Counters().Epochs.Load() == 1 })
		}
	}
	quiet(t, n)
	if used := n.cache.Counters().AheadUsedBytes.Load(); used < files/every/2*large {
		t.Errorf("%d bytes had come ahead, of %d", used, total)
	}
	if requests, asked := c.ufs.counted(); asked != int64(total) || requests > files+3*files/every {
		t.Errorf("%d requests, %d bytes for %d files of %d", requests, asked, files, total)
	}
}

// What comes ahead by a declared order is bounded as all that does: with a setting of
// nothing, nothing does.
func TestDeclaredOrderIsBounded(t *testing.T) {
	const files, size = 1000, 100 << 10
	for _, most := range []int64{-1, 2 << 20} {
		t.Run(fmt.Sprint(most), func(t *testing.T) {
			c := newCluster(t, 1, 1<<30)
			keys, want := c.files(files, size)
			n := c.nodes[0]
			n.cache.o.ReadAheadBytes = most
			s := n.open(t, c.freeze())
			r := n.sampled(t, s, "pytorch:seed=1,world=1", nil)
			waitFor(t, "the files are numbered", func() bool { return r.idle() })
			for _, i := range epochOf(r.sampler, files, 0, 0, 1, 1) {
				readFile(t, r, keys[i], want[keys[i]])
				waitFor(t, "nothing goes on", func() bool { return r.idle() })
				k := n.cache.Counters()
				if ahead := k.AheadBytes.Load() - k.AheadUsedBytes.Load(); ahead > max(0, most) {
					t.Fatalf("%d bytes are ahead of the reader", ahead)
				}
			}
			if came := n.cache.Counters().AheadBytes.Load(); (came > files*size/2) != (most > 0) {
				t.Errorf("%d of %d bytes came ahead", came, files*size)
			}
		})
	}
}
