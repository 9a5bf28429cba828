package e2e

import (
	"context"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"stoker.dev"
	"stoker.dev/ufs"
	"stoker.dev/ufs/s3ufs"
)

const benchStreams = 16 // of one load, unless --streams says otherwise

// BenchmarkPreload preloads a dataset and, turn and turn about, fetches the
// same objects with a lean client: signed GETs, CRC32C of each block, written
// into files of the same layout (members at multiples of 4 KiB, 64 MiB a
// file, allocated when made), which are synced as they are closed. Freeing the
// disk again is not timed. Both read from the same S3
// server. It reports medians: MB/s of both, preload's time ÷ the lean one's
// (of the whole command, and of its load alone), and CPU seconds per GB of
// worker and lean client.
func BenchmarkPreload(b *testing.B) {
	for _, w := range []struct {
		name                           string
		small, smallBytes, large, each int
	}{
		{"20000x100KiB", 20000, 100 << 10, 0, 0},
		{"8x256MiB", 0, 0, 8, 256 << 20},
	} {
		b.Run(w.name, func(b *testing.B) {
			c := up(b, 1, "4GiB", func(root string) { makeEqualFiles(b, root, w.small, w.smallBytes, w.large, w.each) })
			c.must("dataset", "add", "data", "s3://data", "--endpoint", c.getenv("STOKER_S3_ENDPOINT"), "--path-style")
			l := newLean(b, c)
			p := &pair{c: c, files: w.small + w.large, bytes: l.bytes}
			var whole, load []float64
			touchMemory(b)
			for i := 0; b.Loop(); i++ {
				sides := []func() float64{
					func() float64 { defer l.remove(b); return p.timed(0, func() { l.fetch(b) }) },
					func() float64 {
						c.must("evict", "data")
						return p.timed(1, func() {
							cert := c.certificate(c.must("preload", "data", "--wait", "-o", "json"))
							if cert.UFSBytes != l.bytes {
								b.Errorf("%d bytes from the UFS, want %d", cert.UFSBytes, l.bytes)
							}
							load = append(load, cert.Seconds)
						})
					},
				}
				var took [2]float64
				order := []int{0, 1}
				if i%2 == 1 {
					slices.Reverse(order)
				}
				for _, side := range order {
					took[side] = sides[side]()
				}
				whole = append(whole, took[1]/took[0])
				load[i] /= took[0]
			}
			b.ReportMetric(0, "ns/op") // a loop is a pair: its time says nothing
			b.ReportMetric(median(p.rate[0]), "lean-MB/s")
			b.ReportMetric(median(p.rate[1]), "preload-MB/s")
			b.ReportMetric(median(whole), "preload/lean")
			b.ReportMetric(median(load), "load/lean")
			b.ReportMetric(median(p.cpu[0]), "lean-cpu-s/GB")
			b.ReportMetric(median(p.worker), "worker-cpu-s/GB")
		})
	}
}

// lean fetches a bucket as fast as a simple client can.
type lean struct {
	fs     ufs.FS
	pieces []leanPiece // of one request each
	files  int
	bytes  int64
	dir    string
}

type leanPiece struct {
	key         string
	version     ufs.Version
	off, length int64
	file        int
	at          int64
}

func newLean(b *testing.B, c *cluster) *lean {
	for _, k := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"} {
		b.Setenv(k, c.getenv(k))
	}
	fs, err := s3ufs.Open(b.Context(), s3ufs.Options{Bucket: "data", Location: ufs.Location{Endpoint: c.getenv("STOKER_S3_ENDPOINT"), PathStyle: true}})
	if err != nil {
		b.Fatal(err)
	}
	l := &lean{fs: fs, dir: b.TempDir()}
	var at int64
	for o := (ufs.ListOptions{}); ; {
		page, err := fs.List(b.Context(), o)
		if err != nil {
			b.Fatal(err)
		}
		for _, obj := range page.Objects {
			for off := int64(0); off < obj.Version.Bytes; off += 8 << 20 {
				n := min(8<<20, obj.Version.Bytes-off)
				if at+n > 64<<20 {
					l.files, at = l.files+1, 0
				}
				l.pieces = append(l.pieces, leanPiece{obj.Key, obj.Version, off, n, l.files, at})
				at += (n + stoker.AlignBytes - 1) / stoker.AlignBytes * stoker.AlignBytes
				l.bytes += n
			}
		}
		if o.Token = page.Next; o.Token == "" {
			l.files++
			return l
		}
	}
}

// fetch brings in everything once.
func (l *lean) fetch(b *testing.B) {
	files := make([]*os.File, l.files)
	for i := range files {
		f, err := os.Create(filepath.Join(l.dir, strconv.Itoa(i)))
		if err != nil {
			b.Fatal(err)
		}
		if err := unix.Fallocate(int(f.Fd()), 0, 0, 64<<20); err != nil {
			b.Fatal(err)
		}
		files[i] = f
	}
	perFile := make([][]leanPiece, l.files)
	for _, p := range l.pieces {
		perFile[p.file] = append(perFile[p.file], p)
	}
	g, ctx := errgroup.WithContext(b.Context())
	g.SetLimit(benchStreams)
	for i, f := range files { // one stream for each file: writers of one file wait for each other
		g.Go(func() error { return l.fetchFile(ctx, f, perFile[i]) })
	}
	if err := g.Wait(); err != nil {
		b.Fatal(err)
	}
}

func (l *lean) fetchFile(ctx context.Context, f *os.File, pieces []leanPiece) error {
	buf := make([]byte, stoker.BlockBytes)
	sums := make(map[int64]uint32, len(pieces)) // by offset, as an index would have them
	for _, p := range pieces {
		r, err := l.fs.Open(ctx, p.key, p.version, p.off, p.length)
		if err != nil {
			return err
		}
		for done := int64(0); done < p.length; {
			n, err := io.ReadFull(r, buf[:min(int64(len(buf)), p.length-done)])
			if err != nil {
				return fmt.Errorf("%s: %w", p.key, err)
			}
			sums[p.at+done] = crc32.Checksum(buf[:n], castagnoli)
			if _, err := f.WriteAt(buf[:n], p.at+done); err != nil {
				return err
			}
			done += int64(n)
		}
		if err := r.Close(); err != nil {
			return err
		}
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return f.Close()
}

func (l *lean) remove(b *testing.B) {
	for i := range l.files {
		if err := os.Remove(filepath.Join(l.dir, strconv.Itoa(i))); err != nil {
			b.Fatal(err)
		}
	}
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)
