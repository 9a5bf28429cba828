package cache

import (
	"bytes"
	"testing"

	"stoker.dev"
)

// settle waits until no flight is under way.
func (n *node) settle(t *testing.T) {
	t.Helper()
	waitFor(t, "what was begun has come", func() bool { _, flights := n.cache.Running(); return flights == 0 })
}

// Who reads pieces of a large file at equal distances, whatever they are, has the
// next ones brought in, a request each, and not what lies between them.
func TestPiecesAreReadAhead(t *testing.T) {
	const size = 3*stoker.ExtentBytes - 12_345
	for name, x := range map[string]struct{ from, step, bytes int }{
		"odd":  {100, 5_333_333, 70_000},
		"even": {0, 8 << 20, 256 << 10},
		"back": {size - 70_000, -6_000_001, 70_000},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, 1, 1<<30)
			want := c.put("a", size, 1)
			n := c.nodes[0]
			s := n.open(t, c.freeze())
			row, got, pieces := rowOf(t, s, "a"), make([]byte, x.bytes), 0
			for at := x.from; at >= 0 && at+x.bytes <= size; at += x.step {
				if k, err := s.ReadAt(t.Context(), row, got, int64(at)); err != nil || !bytes.Equal(got[:k], want[at:at+k]) {
					t.Fatalf("at %d: %d bytes, %v", at, k, err)
				}
				n.settle(t) // a reader that computes for longer than the store takes
				pieces++
			}
			requests, asked := c.ufs.counted()
			// The first four come as windows; one that lies on the edge of a shard takes
			// two requests, and some are begun behind the last one that is read.
			if most := int64(4*window + pieces*3*stoker.BlockBytes); asked > most || requests > 2*pieces {
				t.Errorf("%d requests for %d bytes: %d pieces, at most %d bytes", requests, asked, pieces, most)
			}
			k := n.cache.Counters()
			if ahead, used := k.AheadBytes.Load(), k.AheadUsedBytes.Load(); k.Steppers.Load() != 1 || used < int64(pieces-6)*stoker.BlockBytes || used > ahead {
				t.Errorf("%d bytes came ahead of %d readers in steps, %d were read", ahead, k.Steppers.Load(), used)
			}
			t.Logf("%d pieces of %d bytes: %d requests, %d bytes", pieces, x.bytes, requests, asked)
			if ahead := n.cache.Counters().AheadBlocks.Load(); ahead < int64(pieces-8) {
				t.Errorf("%d blocks came ahead of %d pieces", ahead, pieces)
			}
		})
	}
}

// The first read of a container's end brings its directory with one request.
func TestFooterComesAtOnce(t *testing.T) {
	const size = 100<<20 + 5*stoker.BlockBytes/2
	c := newCluster(t, 1, 1<<30)
	want := c.put("a.parquet", size, 1)
	n := c.nodes[0]
	s := n.open(t, c.freeze())
	row := rowOf(t, s, "a.parquet")
	for _, tail := range []int{8, 700 << 10} {
		got := make([]byte, tail)
		if _, err := s.ReadAt(t.Context(), row, got, int64(size-tail)); err != nil || !bytes.Equal(got, want[size-tail:]) {
			t.Fatalf("the last %d bytes: %v", tail, err)
		}
	}
	n.settle(t)
	if requests, asked := c.ufs.counted(); requests != 1 || asked > 1<<20 || n.cache.Counters().Footers.Load() != 1 {
		t.Errorf("%d requests for %d bytes", requests, asked)
	}
}
