package cache

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/ufs"
)

// put adds an object of some bytes.
func (c *cluster) put(key string, size int, seed uint64) []byte {
	body := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(body)
	c.ufs.Put(key, body)
	return body
}

// open opens a manifest on a node until the test ends.
func (n *node) open(t testing.TB, id stoker.ID) *Set {
	t.Helper()
	s, err := n.cache.Open(context.Background(), id)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func rowOf(t testing.TB, s *Set, path string) manifest.Row {
	t.Helper()
	row, ok := s.man.LookupPath(path)
	if !ok {
		t.Fatalf("no %s", path)
	}
	return row
}

const window = demandWindow * stoker.BlockBytes

// A file that is read front to back comes in ahead of its reader, beyond the end
// of a shard, and each byte of it once; the file behind it does not come.
func TestStreamIsReadAhead(t *testing.T) {
	c := newCluster(t, 1, 1<<30)
	want := c.put("a", 2*stoker.ExtentBytes+window+1, 1)
	c.put("b", stoker.ExtentBytes, 2)
	n := c.nodes[0]
	s := n.open(t, c.freeze())
	row, got := rowOf(t, s, "a"), make([]byte, window)
	for off := 0; off < len(want); {
		k, err := s.ReadAt(t.Context(), row, got, int64(off))
		if err != nil || !bytes.Equal(got[:k], want[off:off+k]) {
			t.Fatalf("at %d: %d bytes, %v", off, k, err)
		}
		off += k
		if off == 4*window {
			waitFor(t, "the next window is asked for", func() bool { _, asked := c.ufs.counted(); return asked >= int64(off+window) })
		}
	}
	waitFor(t, "what was begun has come", func() bool { _, flights := n.cache.Running(); return flights == 0 })
	requests, asked := c.ufs.counted()
	if asked != int64(len(want)) || requests > len(want)/window+3 {
		t.Errorf("%d requests for %d bytes, of %d in %d windows", requests, asked, len(want), len(want)/window)
	}
	if ahead := n.cache.Counters().AheadBlocks.Load(); ahead < int64(len(want)/stoker.BlockBytes/2) {
		t.Errorf("%d blocks came ahead", ahead)
	}
	if k := n.cache.Counters(); k.AheadUsedBytes.Load() != k.AheadBytes.Load() || k.AheadBytes.Load() < int64(len(want)/2) || k.Streams.Load() != 1 {
		t.Errorf("%d bytes came ahead of %d streams, %d were read", k.AheadBytes.Load(), k.Streams.Load(), k.AheadUsedBytes.Load())
	}
}

// Small files that are opened in the order of the listing come in ahead, each
// with one request; in no order, nothing comes that was not asked for.
func TestSmallFilesAreReadAhead(t *testing.T) {
	for _, inOrder := range []bool{true, false} {
		c := newCluster(t, 1, 1<<30)
		const files = 1000
		want := map[string][]byte{}
		for i := range files {
			key := fmt.Sprintf("%04d", i)
			want[key] = c.put(key, 20<<10, uint64(i))
		}
		n := c.nodes[0]
		s := n.open(t, c.freeze())
		order := rand.New(rand.NewPCG(5, 6)).Perm(files)[:files/2]
		for i := range order {
			if inOrder {
				order[i] = i
			}
			key := fmt.Sprintf("%04d", order[i])
			got := make([]byte, len(want[key]))
			if _, err := s.ReadAt(t.Context(), rowOf(t, s, key), got, 0); err != nil || !bytes.Equal(got, want[key]) {
				t.Fatal(key, err)
			}
		}
		waitFor(t, "what was begun has come", func() bool { _, flights := n.cache.Running(); return flights == 0 })
		requests, _ := c.ufs.counted()
		ahead := n.cache.Counters().AheadBlocks.Load()
		if got := n.cache.Counters().Files.Load(); got != ahead { // each is one block
			t.Errorf("in order %t: %d files came ahead, and %d blocks", inOrder, got, ahead)
		}
		if inOrder && (ahead < files/4 || requests > files/2+256) || !inOrder && requests > files/2*102/100 {
			t.Errorf("in order %t: %d requests for %d files, %d of them ahead", inOrder, requests, files/2, ahead)
		}
	}
}

// Ahead of readers nothing is evicted and nothing is kept in memory: on a full
// disk they are served as before.
func TestNothingIsReadAheadOfAFullDisk(t *testing.T) {
	c := newCluster(t, 1, 8<<20)
	want := c.put("a", 64<<20-1, 1)
	n := c.nodes[0]
	s := n.open(t, c.freeze())
	row, got := rowOf(t, s, "a"), make([]byte, 1<<20)
	for off := 0; off < len(want); {
		k, err := s.ReadAt(t.Context(), row, got, int64(off))
		if err != nil || !bytes.Equal(got[:k], want[off:off+k]) {
			t.Fatalf("at %d: %d bytes, %v", off, k, err)
		}
		off += k
	}
	if _, asked := c.ufs.counted(); asked != int64(len(want)) {
		t.Errorf("the store was asked for %d bytes of %d", asked, len(want))
	}
}

// Of what was begun ahead of a full disk, and did not come, nothing is counted.
func TestWhatDoesNotComeAheadIsNotCounted(t *testing.T) {
	c := newCluster(t, 1, 2<<20)
	for i := range 40 {
		c.put(fmt.Sprintf("%02d", i), 300<<10, 1)
	}
	large := c.put("z", 64<<20-1, 1)
	n := c.nodes[0]
	s := n.open(t, c.freeze())
	got := make([]byte, 300<<10)
	for i := range 40 {
		if _, err := s.ReadAt(t.Context(), rowOf(t, s, fmt.Sprintf("%02d", i)), got, 0); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.ReadAt(t.Context(), rowOf(t, s, "z"), got[:8], int64(len(large)-8)); err != nil { // a footer
		t.Fatal(err)
	}
	n.settle(t)
	k := n.cache.Counters()
	if k.AheadBlocks.Load() == 0 {
		t.Error("nothing was begun ahead")
	}
	if bytes, files, footers := k.AheadBytes.Load(), k.Files.Load(), k.Footers.Load(); bytes != 0 || files != 0 || footers != 0 {
		t.Errorf("%d bytes came ahead, of %d files and %d footers", bytes, files, footers)
	}
}

// farFS answers late.
type farFS struct {
	ufs.FS
	after time.Duration
}

func (f farFS) Open(ctx context.Context, key string, v ufs.Version, off, n int64) (io.ReadCloser, error) {
	select {
	case <-time.After(f.after):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return f.FS.Open(ctx, key, v, off, n)
}

// The setting bounds what comes ahead of a reader; without any, nothing does.
func TestReadAheadIsBounded(t *testing.T) {
	for most, lead := range map[int64]int64{-1: 0, 8 << 20: 8 << 20} {
		t.Run(fmt.Sprint(most), func(t *testing.T) {
			c := newCluster(t, 1, 1<<30)
			c.put("a", 2*stoker.ExtentBytes-1, 1)
			n := c.nodes[0]
			n.cache.o.ReadAheadBytes = most
			s := n.open(t, c.freeze())
			row, got := rowOf(t, s, "a"), make([]byte, window)
			if _, err := s.ReadAt(t.Context(), row, got[:8], 2*stoker.ExtentBytes-9); err != nil { // where a container has its directory
				t.Fatal(err)
			}
			for off := 0; off < stoker.ExtentBytes; off += window {
				if _, err := s.ReadAt(t.Context(), row, got, int64(off)); err != nil {
					t.Fatal(err)
				}
				n.settle(t)
				k := n.cache.Counters()
				if ahead := k.AheadBytes.Load() - k.AheadUsedBytes.Load(); ahead > lead+footer*stoker.BlockBytes {
					t.Fatalf("at %d: %d bytes are ahead of the reader", off, ahead)
				}
			}
			if ahead := n.cache.Counters().AheadBlocks.Load(); (ahead > 0) != (most > 0) {
				t.Errorf("%d blocks came ahead", ahead)
			}
		})
	}
}

// Reads at random, of a large file or of small ones, cost the store next to nothing
// beyond what they cost it when nothing is read ahead.
func TestReadAheadCostsRandomReadsNothing(t *testing.T) {
	const size = 512 << 20
	for name, x := range map[string]struct{ bytes, small, reads int }{
		"4 KiB": {4 << 10, 0, 300}, "128 KiB": {128 << 10, 0, 300}, "small files": {100 << 10, 2000, 1000}, "many": {64 << 10, 0, 1000},
	} {
		t.Run(name, func(t *testing.T) {
			var asked [2]int64
			for i, most := range []int64{-1, 64 << 20} {
				c := newCluster(t, 1, 1<<30)
				sizes := map[string]int64{"large": size}
				for k := range x.small {
					sizes[fmt.Sprintf("%04d", k)] = int64(x.bytes)
				}
				c.openUFS = func() ufs.FS { return newNoiseFS(sizes) }
				n := c.nodes[0]
				n.cache.o.ReadAheadBytes = most
				s := n.open(t, c.freeze())
				r, got := rand.New(rand.NewPCG(3, 4)), make([]byte, x.bytes)
				files := r.Perm(max(x.small, 1))
				for k := range x.reads {
					key, off := "large", int64(r.IntN(size/x.bytes)*x.bytes)
					if x.small > 0 {
						key, off = fmt.Sprintf("%04d", files[k]), 0
					}
					if _, err := s.ReadAt(t.Context(), rowOf(t, s, key), got, off); err != nil {
						t.Fatal(err)
					}
				}
				n.settle(t)
				asked[i] = n.cache.Counters().UFS.Bytes.Load()
			}
			if asked[1] > asked[0]*11/10 || asked[0] == 0 {
				t.Errorf("%d bytes came, %d without reading ahead", asked[1], asked[0])
			}
			t.Logf("%d bytes came, %d without reading ahead: %.3f", asked[1], asked[0], float64(asked[1])/float64(asked[0]))
		})
	}
}
