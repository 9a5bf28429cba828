package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stoker.dev/internal/api"
	"stoker.dev/internal/testenv"
)

// BenchmarkReadAhead reads cold data in no order through a tree view of a worker that
// reads ahead and, turn and turn about, of one that does not: 4 KiB and 128 KiB at
// random places of a file of 1 GiB, and shuffled files of 100 KiB, by 8 readers; with
// the store's link free, and full at 100 MB/s. It reports medians: seconds of both, the
// ratio of a pair's, and that of the bytes that came from the store. The goals are 1.03
// and 1.1.
func BenchmarkReadAhead(b *testing.B) {
	const files, large = 6000, 1 << 30
	c := up(b, 1, "256MiB", func(root string) { makeEqualFiles(b, root, files, 100<<10, 1, large) })
	c.must("dataset", "add", "data", "s3://data", "--endpoint", c.getenv("STOKER_S3_ENDPOINT"), "--path-style")
	for _, link := range []struct{ name, limit string }{{"free", ""}, {"full", "100MB/s"}} {
		sides := [2]*loner{c.loner(link.limit, "0"), c.loner(link.limit, "64MiB")}
		for _, w := range []struct {
			name        string
			size, reads int
		}{{"4KiB", 4 << 10, 100}, {"128KiB", 128 << 10, 100}, {"small", 100 << 10, 3000}} {
			b.Run(link.name+"/"+w.name, func(b *testing.B) {
				var took, sent [2][]float64
				var times, bytes []float64 // ratios of pairs
				for i := 0; b.Loop(); i++ {
					seed := rand.Uint64()
					for _, side := range [][]int{{0, 1}, {1, 0}}[i%2] {
						s := sides[side].cold(b, "tree", func(view string) error { return readRandom(view, seed, w.size, w.reads, files, large) })
						took[side], sent[side] = append(took[side], s.seconds), append(sent[side], s.bytes)
					}
					times, bytes = append(times, took[1][i]/took[0][i]), append(bytes, sent[1][i]/sent[0][i])
				}
				b.ReportMetric(0, "ns/op")
				b.ReportMetric(median(times), "ahead/none")
				b.ReportMetric(median(bytes), "bytes-ahead/none")
				b.ReportMetric(median(took[0]), "none-s")
				b.ReportMetric(median(took[1]), "ahead-s")
				b.ReportMetric(median(sent[1])/float64(w.size*w.reads), "UFS-bytes/byte")
			})
		}
		for _, l := range sides {
			l.stop()
		}
	}
}

// BenchmarkColdRandom reads 4 KiB and 128 KiB at 400 random places of a file of 1 GiB that is
// not here, and rows of it through maps (that say so with madvise, or do not, also where the kernel is
// told not to read ahead), by one reader, from
// views of each kind and, turn and turn about, with a lean client that asks for just these bytes. It
// reports the median of a read in microseconds, and what the store sent for each byte.
func BenchmarkColdRandom(b *testing.B) {
	const large = 1 << 30
	c := up(b, 1, "256MiB", func(root string) { makeEqualFiles(b, root, 0, 0, 1, large) })
	c.must("dataset", "add", "data", "s3://data", "--endpoint", c.getenv("STOKER_S3_ENDPOINT"), "--path-style")
	client, l := newLean(b, c), c.loner("", "64MiB")
	for _, kind := range viewKinds(b) {
		for _, w := range []struct {
			name  string
			size  int
			read  func(path string, offsets []int64, size int) ([]time.Duration, error)
			flags []string
		}{
			{"4KiB", 4 << 10, readsAt, nil}, {"128KiB", 128 << 10, readsAt, nil}, {"mapped", 4 << 10, mappedReads, nil},
			{"mapped-plainly", 4 << 10, plainlyMappedReads, nil}, {"mapped-not-ahead", 4 << 10, plainlyMappedReads, []string{"--kernel-read-ahead", "0"}},
		} {
			b.Run(kind+"/"+w.name, func(b *testing.B) {
				var took [2][]float64
				var sent, gets []float64
				for i := 0; b.Loop(); i++ {
					offsets := offsetsIn(large, 400, w.size)
					for _, side := range [][]int{{0, 1}, {1, 0}}[i%2] {
						var all []time.Duration
						var err error
						if side == 0 {
							all, err = client.readsAt(b.Context(), offsets, w.size)
						} else {
							spent := l.cold(b, kind, func(view string) error {
								all, err = w.read(filepath.Join(view, "shards", "0.tar"), offsets, w.size)
								return err
							}, w.flags...)
							sent, gets = append(sent, spent.bytes/float64(len(offsets)*w.size)), append(gets, spent.requests/float64(len(offsets)))
						}
						if err != nil {
							b.Fatal(err)
						}
						took[side] = append(took[side], p50(all))
					}
				}
				b.ReportMetric(0, "ns/op")
				b.ReportMetric(median(took[0]), "lean-p50-us")
				b.ReportMetric(median(took[1]), "view-p50-us")
				b.ReportMetric(median(took[1])/median(took[0]), "p50-view/lean")
				b.ReportMetric(median(sent), "UFS-bytes/byte")
				b.ReportMetric(median(gets), "GETs/read")
			})
		}
	}
	l.stop()
}

// readsAt reads size bytes of the first object at each offset, by a request each.
func (l *lean) readsAt(ctx context.Context, offsets []int64, size int) (all []time.Duration, err error) {
	buf := make([]byte, size)
	for _, off := range offsets {
		began := time.Now()
		r, err := l.fs.Open(ctx, l.pieces[0].key, l.pieces[0].version, off, int64(size))
		if err != nil {
			return nil, err
		}
		if _, err := io.ReadFull(r, buf); err != nil {
			return nil, err
		}
		if err := r.Close(); err != nil {
			return nil, err
		}
		all = append(all, time.Since(began))
	}
	return all, nil
}

// BenchmarkColdHeaders reads the first 4 KiB, and 64 KiB by 4, of 400 files of 5 MiB that are not
// here, one after the other as listed, from views of each kind. It reports the median of a
// file in microseconds, and what the store sent for each file in KiB.
func BenchmarkColdHeaders(b *testing.B) {
	const files = 400
	c := up(b, 1, "256MiB", func(root string) { makeEqualFiles(b, root, 0, 0, files, 5<<20) })
	c.must("dataset", "add", "data", "s3://data", "--endpoint", c.getenv("STOKER_S3_ENDPOINT"), "--path-style")
	l := c.loner("", "64MiB")
	for _, kind := range viewKinds(b) {
		for _, size := range []int64{4 << 10, 64 << 10} {
			b.Run(kind+"/"+strconv.FormatInt(size>>10, 10)+"KiB", func(b *testing.B) {
				var took, sent []float64
				for b.Loop() {
					s := l.cold(b, kind, func(view string) error {
						paths, err := filepath.Glob(filepath.Join(view, "shards", "*"))
						for _, path := range paths { // sorted, as the listing is
							began := time.Now()
							if err = errors.Join(err, readHead(path, size)); err != nil {
								return err
							}
							took = append(took, float64(time.Since(began).Nanoseconds())/1e3)
						}
						return err
					})
					sent = append(sent, s.bytes/files/1024)
				}
				b.ReportMetric(0, "ns/op")
				b.ReportMetric(median(took), "p50-us")
				b.ReportMetric(median(sent), "UFS-KiB/file")
			})
		}
	}
	l.stop()
}

// readHead reads the first bytes of a file, 4 KiB at a time.
func readHead(path string, size int64) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, io.LimitReader(struct{ io.Reader }{f}, size), make([]byte, 4<<10))
	return err
}

// loner is a worker that knows of no other.
type loner struct {
	c      *cluster
	socket string
	cmd    *exec.Cmd
}

// loner starts one, with a limit of what it takes from the store and what it reads ahead.
func (c *cluster) loner(limit, ahead string) *loner {
	dir := c.t.TempDir()
	l := &loner{c: c, socket: filepath.Join(dir, "w.sock")}
	limits := []string{"--read-ahead", ahead}
	if limit != "" {
		limits = append(limits, "--ufs-bandwidth", limit)
	}
	l.cmd = c.daemon(append([]string{"worker", "--cache-dir", filepath.Join(dir, "cache"), "--capacity", "3GiB", "--listen", testenv.FreeAddress(c.t), "--socket", l.socket,
		"--redis", "127.0.0.1:" + c.redisPort(), "--redis-prefix", "alone-" + strconv.Itoa(rand.Int()), "--store", filepath.Join(c.dir, "store"),
		"--token-file", filepath.Join(c.dir, "token")}, limits...)...)
	c.eventually("the worker answers", func() bool { return l.ask("GET", "/v1/version", nil, nil) == nil })
	return l
}

func (l *loner) stop() { _ = l.cmd.Process.Signal(unix.SIGTERM) }

// must runs the CLI against the worker.
func (l *loner) must(args ...string) {
	cmd := exec.Command(binary(l.c.t, "stoker"), args...)
	cmd.Env = append(slices.Clone(l.c.env), "STOKER_SOCKET="+l.socket)
	if out, err := cmd.CombinedOutput(); err != nil {
		l.c.t.Fatalf("stoker %q: %v\n%s", args, err, out)
	}
}

// ask calls the worker's API.
func (l *loner) ask(method, path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	cmd := exec.Command("curl", "-sf", "-X", method, "--unix-socket", l.socket, "--data-binary", "@-", "http://worker"+path)
	cmd.Stdin = bytes.NewReader(body)
	got, err := cmd.Output()
	if err == nil && out != nil {
		err = json.Unmarshal(got, out)
	}
	return err
}

// spent is what something took of time and of the store.
type spent struct{ seconds, bytes, requests float64 }

// cold mounts the dataset, of which nothing is here, and measures what read takes.
func (l *loner) cold(b *testing.B, kind string, read func(view string) error, flags ...string) (s spent) {
	view := b.TempDir()
	l.must(append([]string{"mount", "data", view, "--view", kind}, flags...)...)
	var before, after api.WorkerStatus
	if err := l.ask("GET", "/v1/status", nil, &before); err != nil {
		b.Fatal(err)
	}
	began := time.Now()
	if err := read(view); err != nil {
		b.Fatal(err)
	}
	s.seconds = time.Since(began).Seconds()
	l.c.eventually("what was begun has come", func() bool {
		page, err := metricsAt(l.socket)
		return err == nil && strings.Contains(page, "\nstoker_flights_running 0\n")
	})
	l.must("umount", view)
	if err := l.ask("GET", "/v1/status", nil, &after); err != nil || len(after.Manifests) == 0 {
		b.Fatal(err, after.Manifests)
	}
	if err := l.ask("POST", "/v1/evict", api.EvictRequest{Manifest: after.Manifests[0].Manifest, Force: true}, nil); err != nil {
		b.Fatal(err)
	}
	s.bytes, s.requests = float64(after.Reads.UFSBytes-before.Reads.UFSBytes), float64(after.Reads.UFSRequests-before.Reads.UFSRequests)
	return s
}

// readRandom reads at random places of the large file, or some of the small files
// whole, by 8 readers.
func readRandom(view string, seed uint64, size, reads, files int, large int64) error {
	r := rand.New(rand.NewPCG(seed, 1))
	type place struct {
		path string
		off  int64
	}
	todo, order := make(chan place, reads), r.Perm(files)
	for i := range reads {
		if size == 100<<10 {
			todo <- place{filepath.Join(view, "train", strconv.Itoa(order[i]%50), strconv.Itoa(order[i])+".jpg"), 0}
		} else {
			todo <- place{filepath.Join(view, "shards", "0.tar"), r.Int64N(large/int64(size)) * int64(size)}
		}
	}
	close(todo)
	errs := make([]error, 8)
	var wg sync.WaitGroup
	for k := range errs {
		wg.Go(func() {
			buf := make([]byte, size)
			for p := range todo {
				if err := readPlace(p.path, p.off, buf); err != nil {
					errs[k] = fmt.Errorf("%s at %d: %w", p.path, p.off, err)
					return
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func readPlace(path string, off int64, buf []byte) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Fadvise(fd, 0, 0, unix.FADV_RANDOM); err != nil { // the kernel reads no further
		return err
	}
	if n, err := unix.Pread(fd, buf, off); err != nil || n != len(buf) {
		return errors.Join(err, io.ErrUnexpectedEOF)
	}
	return nil
}
