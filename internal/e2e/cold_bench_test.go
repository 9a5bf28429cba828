package e2e

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"stoker.dev/internal/testenv"
)

// BenchmarkCold reads through views of each kind what is not cached at all and,
// turn and turn about, lets a lean client fetch the same objects and drop them:
// signed GETs of whole objects, or of 8 MiB each of large ones. Small: 20,000 files of 100 KiB by 8
// readers in random order, tiny: as many of 4 KiB, large: 8 of 256 MiB one after the other, all
// against 8 requests in flight. A third side
// keeps what it gets, as BenchmarkPreload's: in files, with checksums, synced, and reads none of it;
// that is what a cold epoch that leaves a cache behind has to do. See pair.report;
// kept is that side's rate.
func BenchmarkCold(b *testing.B) {
	for _, w := range []struct {
		name, dir         string
		small, smallBytes int
		large, readers    int
	}{
		{"large", "shards", 0, 0, some(8), 1},
		{"small", "train", some(20_000), 100 << 10, 0, 8},
		{"tiny", "train", some(20_000), 4 << 10, 0, 8},
	} {
		b.Run(w.name, func(b *testing.B) {
			c := up(b, 1, "4GiB", func(root string) { makeEqualFiles(b, root, w.small, w.smallBytes, w.large, 256<<20) })
			c.must("dataset", "add", "data", "s3://data", "--endpoint", c.getenv("STOKER_S3_ENDPOINT"), "--path-style")
			l := newLean(b, c)
			files := walk(b, filepath.Join(c.root, "data", w.dir))
			for _, kind := range viewKinds(b) {
				b.Run(kind, func(b *testing.B) {
					p := &pair{c: c, other: "lean", files: len(files), bytes: l.bytes}
					var kept []float64
					sides := []func(){
						func() { p.timed(0, func() { l.drop(b, 8) }) },
						func() { p.cold(b, kind, w.dir, files, w.readers) },
						func() { kept = append(kept, l.keep(b)) },
					}
					touchMemory(b)
					for i := 0; b.Loop(); i++ {
						for _, k := range [][]int{{0, 1, 2}, {2, 1, 0}}[i%2] {
							sides[k]()
						}
					}
					p.report(b)
					b.ReportMetric(median(kept), "kept-MB/s")
					b.ReportMetric(median(p.rate[1])/median(kept), "view/kept")
					if w.small > 0 {
						b.ReportMetric(median(p.worker)*float64(w.smallBytes)/1e3, "worker-cpu-us/file")
					}
				})
			}
		})
	}
}

// cold mounts the dataset, of which nothing is here, reads it, and evicts it.
func (p *pair) cold(b *testing.B, kind, dir string, files []string, readers int) {
	view := b.TempDir()
	p.c.must("mount", "data", view, "--view", kind)
	defer func() { p.c.must("umount", view); p.c.must("evict", "data", "--force") }()
	p.timed(1, func() {
		if n := readAll(b, filepath.Join(view, dir), files, readers); n != p.bytes {
			b.Errorf("read %d bytes, want %d", n, p.bytes)
		}
	})
}

// keep fetches everything, keeps it, and returns its rate in MB/s. Freeing the disk again is
// not timed.
func (l *lean) keep(b *testing.B) float64 {
	defer l.remove(b)
	began := time.Now()
	l.fetch(b)
	return float64(l.bytes) / 1e6 / time.Since(began).Seconds()
}

// BenchmarkColdStream reads a file of 512 MiB that is not here front to back, through views of each
// kind, from a store 20 ms away. It reports the median of its rate; the goal is 300 MB/s.
func BenchmarkColdStream(b *testing.B) {
	c := up(b, 1, "2GiB", func(root string) { makeEqualFiles(b, root, 0, 0, 1, 512<<20) })
	c.add()
	c.far(20 * time.Millisecond)
	for _, kind := range viewKinds(b) {
		b.Run(kind, func(b *testing.B) {
			p := &pair{c: c, files: 1, bytes: 512 << 20}
			touchMemory(b)
			for b.Loop() {
				p.cold(b, kind, "shards", []string{"0.tar"}, 1)
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(median(p.rate[1]), "far-MB/s")
			b.ReportMetric(median(p.gets), "GETs/file")
			b.ReportMetric(median(p.fetched), "UFS-bytes/byte")
		})
	}
}

// far puts the store that datasets of add are read from at a distance.
func (c *cluster) far(distance time.Duration) {
	c.proxy.Inject(func(testenv.Get, int) testenv.Fault {
		late := make(chan struct{})
		time.AfterFunc(distance, func() { close(late) })
		return testenv.Fault{Late: late}
	})
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
