package e2e

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

// BenchmarkCold reads an epoch of which nothing is cached through a tree view and,
// turn and turn about, fetches the same objects from the same S3 server with a lean
// client that drops the bytes: signed GETs, whole objects for small files, ranges of
// 8 MiB for large ones. Small: 5,000 files of 100 KiB in random order by 8 readers,
// large: 4 of 256 MiB one after the other, against 8 requests in flight. A third side
// keeps what it gets, as BenchmarkPreload's: in files, with checksums, synced, and reads none of it;
// that is what a cold epoch that leaves a cache behind has to do. It reports
// medians: MB/s of all and the ratios, the worker's CPU microseconds for each file
// and seconds for each GB, and what came to the worker and went to the store for each file.
func BenchmarkCold(b *testing.B) {
	for _, w := range []struct {
		name, dir      string
		small, large   int
		readers, files int
	}{
		{"small", "train", 5000, 0, 8, 5000},
		{"large", "shards", 0, 4, 1, 4},
	} {
		b.Run(w.name, func(b *testing.B) {
			c := up(b, 1, "4GiB", func(root string) { makeEqualFiles(b, root, w.small, 100<<10, w.large, 256<<20) })
			c.must("dataset", "add", "data", "s3://data", "--endpoint", c.getenv("STOKER_S3_ENDPOINT"), "--path-style")
			l := newLean(b, c)
			files := walk(b, filepath.Join(c.root, "data", w.dir))
			p := &pair{c: c}
			var requests, bytes, kept []float64
			keep := func() float64 {
				defer l.remove(b)
				began := time.Now()
				l.fetch(b)
				took := time.Since(began).Seconds()
				kept = append(kept, float64(l.bytes)/1e6/took)
				return took
			}
			for i := 0; b.Loop(); i++ {
				cold := func() float64 {
					view := b.TempDir()
					c.must("mount", "data", view, "--view", "tree")
					defer func() { c.must("umount", view); c.must("evict", "data", "--force") }()
					before := c.readsOfWorker()
					took := p.timed(1, l.bytes, func() {
						if n := readAll(b, filepath.Join(view, w.dir), files, w.readers); n != l.bytes {
							b.Errorf("read %d bytes, want %d", n, l.bytes)
						}
					})
					after := c.readsOfWorker()
					p.reads = append(p.reads, float64(after.FUSEReads-before.FUSEReads)/float64(w.files))
					requests = append(requests, float64(after.UFSRequests-before.UFSRequests)/float64(w.files))
					bytes = append(bytes, float64(after.UFSBytes-before.UFSBytes)/float64(l.bytes))
					return took
				}
				sides := []func() float64{func() float64 { return p.timed(0, l.bytes, func() { l.drop(b, 8) }) }, cold, keep}
				if i%2 == 1 {
					slices.Reverse(sides)
				}
				for _, side := range sides {
					side()
				}
			}
			b.ReportMetric(0, "ns/op") // a loop is a pair: its time says nothing
			b.ReportMetric(median(p.rate[0]), "lean-MB/s")
			b.ReportMetric(median(p.rate[1]), "view-MB/s")
			b.ReportMetric(median(p.rate[1])/median(p.rate[0]), "view/lean")
			b.ReportMetric(median(kept), "kept-MB/s")
			b.ReportMetric(median(p.rate[1])/median(kept), "view/kept")
			b.ReportMetric(median(p.cpu[0]), "lean-cpu-s/GB")
			b.ReportMetric(median(p.cpu[1]), "worker-cpu-s/GB")
			b.ReportMetric(median(p.cpu[1])*float64(l.bytes)/1e3/float64(w.files), "worker-cpu-us/file")
			b.ReportMetric(median(p.reads), "READs/file")
			b.ReportMetric(median(requests), "GETs/file")
			b.ReportMetric(median(bytes), "UFS-bytes/byte")
		})
	}
}

// drop fetches everything in a random order and drops it.
func (l *lean) drop(b *testing.B, inFlight int) {
	g, ctx := errgroup.WithContext(b.Context())
	g.SetLimit(inFlight)
	for _, i := range rand.Perm(len(l.pieces)) {
		g.Go(func() error { return l.dropPiece(ctx, &l.pieces[i]) })
	}
	if err := g.Wait(); err != nil {
		b.Fatal(err)
	}
}

func (l *lean) dropPiece(ctx context.Context, p *leanPiece) error {
	r, err := l.fs.Open(ctx, p.key, p.version, p.off, p.length)
	if err != nil {
		return err
	}
	if n, err := io.Copy(io.Discard, r); err != nil || n != p.length {
		return errors.Join(err, io.ErrUnexpectedEOF)
	}
	return r.Close()
}
