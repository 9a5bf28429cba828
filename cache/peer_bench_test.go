package cache

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/ufs"
)

// timing is what the rounds of one side of a pair took.
type timing struct{ seconds, cpu []float64 }

func (t *timing) round(b *testing.B, f func()) {
	b.Helper()
	began, before := time.Now(), cpuSeconds(b)
	f()
	t.seconds = append(t.seconds, time.Since(began).Seconds())
	t.cpu = append(t.cpu, cpuSeconds(b)-before)
}

// cpuSeconds of the process: both ends of a transfer are in it.
func cpuSeconds(b *testing.B) float64 {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds()
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}

// holderOf makes two nodes of which the first has all of some equal files on its
// disk; the second one is the asker.
func holderOf(b *testing.B, files int, size int64) (c *cluster, id stoker.ID) {
	b.Helper()
	sizes := map[string]int64{}
	for i := range files {
		sizes[fmt.Sprintf("f%05d", i)] = size
	}
	fs := newNoiseFS(sizes)
	c = newCluster(b, 0, 0)
	c.openUFS = func() ufs.FS { return fs }
	c.add(0, filepath.Join(b.TempDir(), "cache"), 4<<30)
	id = c.freeze()
	c.load(0, c.plan(id))
	c.add(1, filepath.Join(b.TempDir(), "cache"), 4<<30)
	return c, id
}

// BenchmarkPeer reads 512 MiB of large files from another worker, 4 MiB a request: by
// the client and the server of workers, each byte checked, and, turn and turn about, the
// same ranges of the same shard files from a server that does nothing but sendfile(2), by
// a reader that drops the bytes. It reports medians.
func BenchmarkPeer(b *testing.B) {
	const files, size = 2, 256 << 20
	c, id := holderOf(b, files, size)
	s, err := c.nodes[0].cache.Open(b.Context(), id)
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	bare := newBare(b, s)
	client := c.nodes[1].cache.o.Fetcher
	var by [2]timing
	sides := []func(){
		func() { by[0].round(b, func() { bare.all(b, demandWindow) }) },
		func() {
			by[1].round(b, func() {
				if n := fetchAll(b, client, c.nodes[0].peer, s, demandWindow, 1); n != files*size {
					b.Errorf("%d bytes came", n)
				}
			})
		},
	}
	for _, side := range sides { // the first one finds cold caches, and connections not made
		side()
	}
	by = [2]timing{}
	for i := 0; b.Loop(); i++ {
		sides[i%2]()
		sides[1-i%2]()
	}
	b.ReportMetric(0, "ns/op") // a loop is a pair: its time says nothing
	for i, name := range []string{"sendfile", "peer"} {
		b.ReportMetric(files*size/1e6/median(by[i].seconds), name+"-MB/s")
		b.ReportMetric(median(by[i].cpu)/(files*size/1e9), name+"-cpu-s/GB")
	}
	b.ReportMetric(median(by[0].seconds)/median(by[1].seconds), "peer/sendfile")
}

// fetchAll asks a peer for every block, run by run, and returns the bytes that came.
func fetchAll(b *testing.B, f Fetcher, p Peer, s *Set, run, inFlight int) int64 {
	b.Helper()
	var bytes atomic.Int64
	g, ctx := errgroup.WithContext(b.Context())
	g.SetLimit(inFlight)
	for n := range uint32(s.man.Shards()) {
		blocks := int(s.man.Shard(n).Blocks)
		for from := 0; from < blocks; from += run {
			g.Go(func() error {
				return f.Fetch(ctx, p, s.id, n, from, min(from+run, blocks), false, func(_ int, data []byte) error {
					bytes.Add(int64(len(data)))
					return nil
				})
			})
		}
	}
	if err := g.Wait(); err != nil {
		b.Fatal(err)
	}
	return bytes.Load()
}

// bare serves ranges of shard files by sendfile(2) over TCP, and reads them.
type bare struct {
	conn   net.Conn
	shards []manifest.Shard
	buf    []byte
}

func newBare(b *testing.B, s *Set) *bare {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	var files []*os.File
	r := &bare{buf: make([]byte, stoker.BlockBytes)}
	for n := range uint32(s.man.Shards()) {
		sl := s.shard(n)
		files = append(files, sl.sh.File())
		sl.mu.RUnlock()
		r.shards = append(r.shards, s.man.Shard(n))
	}
	served := make(chan error, 1) // its end
	go func() { served <- sendFiles(l, files) }()
	if r.conn, err = net.Dial("tcp", l.Addr().String()); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = r.conn.Close()
		if err := errors.Join(<-served, l.Close()); err != nil {
			b.Error(err)
		}
	})
	return r
}

// sendFiles answers the requests of one connection: file, offset and length.
func sendFiles(l net.Listener, files []*os.File) error {
	conn, err := l.Accept()
	if err != nil {
		return err
	}
	defer conn.Close()
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		return err
	}
	for {
		var ask [24]byte
		if _, err := io.ReadFull(conn, ask[:]); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		in := int(files[binary.LittleEndian.Uint64(ask[:])].Fd())
		off, left := int64(binary.LittleEndian.Uint64(ask[8:])), int(binary.LittleEndian.Uint64(ask[16:]))
		var sent error
		err := raw.Write(func(out uintptr) bool {
			for left > 0 {
				n, err := unix.Sendfile(int(out), in, &off, left)
				if err == unix.EAGAIN {
					return false
				} else if err != nil || n == 0 {
					sent = errors.Join(err, io.ErrUnexpectedEOF)
					return true
				}
				left -= n
			}
			return true
		})
		if err = errors.Join(err, sent); err != nil {
			return err
		}
	}
}

func (r *bare) all(b *testing.B, run int64) {
	for n, sh := range r.shards {
		for off := int64(0); off < sh.Bytes; off += run * stoker.BlockBytes {
			left := min(run*stoker.BlockBytes, sh.Bytes-off)
			var ask [24]byte
			binary.LittleEndian.PutUint64(ask[:], uint64(n))
			binary.LittleEndian.PutUint64(ask[8:], uint64(off))
			binary.LittleEndian.PutUint64(ask[16:], uint64(left))
			if _, err := r.conn.Write(ask[:]); err != nil {
				b.Fatal(err)
			}
			for left > 0 {
				k, err := r.conn.Read(r.buf[:min(left, int64(len(r.buf)))])
				if err != nil {
					b.Fatal(err)
				}
				left -= int64(k)
			}
		}
	}
}

// BenchmarkPeerSmall asks another worker for 4,000 files, 8 requests at a time, each file
// by a request of its own and, turn and turn about, 64 in one. It reports medians.
func BenchmarkPeerSmall(b *testing.B) {
	const files, inFlight = 4000, 8
	for _, size := range []int64{4 << 10, 100 << 10} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			c, id := holderOf(b, files, size)
			s, err := c.nodes[0].cache.Open(context.Background(), id)
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			var by [2]timing
			side := func(i, run int) {
				by[i].round(b, func() {
					if n := fetchAll(b, c.nodes[1].cache.o.Fetcher, c.nodes[0].peer, s, run, inFlight); n != files*size {
						b.Errorf("%d bytes came", n)
					}
				})
			}
			side(0, 1)
			by = [2]timing{}
			runs := []int{1, 64}
			for i := 0; b.Loop(); i++ {
				side(i%2, runs[i%2])
				side(1-i%2, runs[1-i%2])
			}
			b.ReportMetric(0, "ns/op")
			for i, name := range []string{"single", "batched"} {
				b.ReportMetric(files/median(by[i].seconds), name+"-files/s")
				b.ReportMetric(median(by[i].cpu)/files*1e6, name+"-cpu-us/file")
			}
			b.ReportMetric(median(by[0].seconds)/median(by[1].seconds), "batched/single")
		})
	}
}
