package cache

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/ufs"
	"stoker.dev/ufs/memufs"
)

// noiseFS has large objects without having their bytes.
type noiseFS struct {
	*memufs.FS
	sizes map[string]int64
	noise []byte
}

func newNoiseFS(sizes map[string]int64) *noiseFS {
	f := &noiseFS{memufs.New(), sizes, make([]byte, 1<<20-3)}
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(f.noise) // never fails
	for key := range sizes {
		f.Put(key, []byte(key))
	}
	return f
}

// read fills p with what the object has at off.
func (f *noiseFS) read(key string, p []byte, off int64) {
	for _, c := range key {
		off += int64(c) * 7919
	}
	at := int(off % int64(len(f.noise)))
	for done := 0; done < len(p); at = 0 {
		done += copy(p[done:], f.noise[at:])
	}
}

func (f *noiseFS) List(ctx context.Context, o ufs.ListOptions) (ufs.Page, error) {
	page, err := f.FS.List(ctx, o)
	for i := range page.Objects {
		page.Objects[i].Version.Bytes = f.sizes[page.Objects[i].Key]
	}
	return page, err
}

// noiseBody reads through a window, as a body of HTTP does.
type noiseBody struct {
	f         *noiseFS
	key       string
	off, left int64
}

func (b *noiseBody) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), b.left, 16<<10)]
	b.f.read(b.key, p, b.off)
	b.off, b.left = b.off+int64(len(p)), b.left-int64(len(p))
	return len(p), nil
}

func (b *noiseBody) Close() error { return nil }

func (f *noiseFS) Open(ctx context.Context, key string, _ ufs.Version, off, length int64) (io.ReadCloser, error) {
	return &noiseBody{f, key, off, length}, ctx.Err()
}

const (
	memoryChild = "STOKER_TEST_MEMORY"
	memoryLimit = 128 << 20
)

// Two workers without space for anything, in a process of their own, serve 64
// readers, half of them through the other worker, and peers that do not read
// their answers: every byte is right, and the process stays below its limit.
func TestMemoryIsBounded(t *testing.T) {
	if os.Getenv(memoryChild) != "" {
		readWithinMemory(t)
		return
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestMemoryIsBounded$", "-test.v")
	cmd.Env = append(os.Environ(), memoryChild+"=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	_, found, _ := strings.Cut(string(out), "most anonymous memory: ")
	most, err := strconv.ParseInt(strings.Fields(found + " -")[0], 10, 64)
	if err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	t.Logf("%d MiB of %d", most>>20, memoryLimit>>20)
	if most > memoryLimit && !raceDetector {
		t.Errorf("%d bytes of anonymous memory, the limit is %d", most, memoryLimit)
	}
}

func readWithinMemory(t *testing.T) {
	debug.SetMemoryLimit(memoryLimit - memoryLimit/8)
	sizes := map[string]int64{}
	for i := range 4 {
		sizes[fmt.Sprintf("big/%d", i)] = 60 << 20
	}
	for i := range 40 {
		sizes[fmt.Sprintf("small/%02d", i)] = 1<<20 + int64(i)*77_777
	}
	fs := newNoiseFS(sizes)
	c := newCluster(t, 0, 0)
	c.openUFS = func() ufs.FS { return fs }
	c.memory = memoryLimit / 2
	for i := range 2 {
		c.add(i, filepath.Join(t.TempDir(), "cache"), 4<<20)
	}
	id := c.freeze()
	stop := make(chan struct{})
	most := watchMemory(stop)
	slow := c.slowPeers(id, 8)
	var readers errgroup.Group
	for i := range 64 {
		readers.Go(func() error { return c.readNoise(c.nodes[i%2], id, fs, uint64(i)) })
	}
	if err := readers.Wait(); err != nil {
		t.Fatal(err)
	}
	slow()
	close(stop)
	fmt.Printf("most anonymous memory: %d\n", <-most)
	for _, n := range c.nodes {
		if used, _, waits := n.cache.MemoryUse(); waits == 0 {
			t.Errorf("nobody had to wait; %d bytes are used", used)
		}
	}
}

// readNoise reads pieces of objects through a node and compares them.
func (c *cluster) readNoise(n *node, id stoker.ID, fs *noiseFS, seed uint64) error {
	s, err := n.cache.Open(context.Background(), id)
	if err != nil {
		return err
	}
	defer s.Close()
	r := rand.New(rand.NewPCG(seed, 1))
	got, want := make([]byte, 200<<10), make([]byte, 200<<10)
	for range 8 {
		key := fmt.Sprintf("big/%d", r.IntN(4))
		if r.IntN(3) == 0 {
			key = fmt.Sprintf("small/%02d", r.IntN(40))
		}
		row, ok := s.Manifest().LookupPath(key)
		if !ok {
			return fmt.Errorf("%s is not in the manifest", key)
		}
		off := r.Int64N(fs.sizes[key])
		k, err := s.ReadAt(context.Background(), row, got, off)
		if err != nil {
			return fmt.Errorf("%s at %d: %w", key, off, err)
		}
		fs.read(key, want[:k], off)
		if k == 0 || !bytes.Equal(got[:k], want[:k]) {
			return fmt.Errorf("%s at %d: %d bytes differ from the source", key, off, k)
		}
	}
	return nil
}

// slowPeers ask node 0 for a whole shard and do not read the answer.
func (c *cluster) slowPeers(id stoker.ID, count int) (end func()) {
	ctx, cancel := context.WithCancel(context.Background())
	client := &http.Client{Transport: &http.Transport{ReadBufferSize: 4096}}
	var asking errgroup.Group
	for range count {
		asking.Go(func() error {
			url := fmt.Sprintf("%s/v1/manifests/%s/shards/0/blocks?from=0&to=200&through=1", c.nodes[0].peer.Address, id)
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
			if err != nil {
				return err
			}
			if resp, err := client.Do(req); err == nil {
				<-ctx.Done()
				_ = resp.Body.Close()
			}
			return nil
		})
	}
	return func() {
		cancel()
		_ = asking.Wait() // refused or ended
		client.CloseIdleConnections()
	}
}

// watchMemory follows the process's anonymous memory until stop is closed.
func watchMemory(stop <-chan struct{}) <-chan int64 {
	most := make(chan int64, 1) // so that it ends whoever looks
	go func() {
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		var peak atomic.Int64
		for {
			body, err := os.ReadFile("/proc/self/status")
			if err == nil {
				_, rest, _ := strings.Cut(string(body), "RssAnon:")
				kib, _ := strconv.ParseInt(strings.Fields(rest + " 0")[0], 10, 64)
				peak.Store(max(peak.Load(), kib<<10))
			}
			select {
			case <-tick.C:
			case <-stop:
				most <- peak.Load()
				return
			}
		}
	}()
	return most
}

// A warm read takes nothing from the heap, nor does what is granted to a fill.
func TestAllocations(t *testing.T) {
	c := newCluster(t, 1, 1<<30)
	want := c.fillUFS(31, 5, 0)
	id := c.freeze()
	c.readAll(0, id, want)
	s, err := c.nodes[0].cache.Open(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	row, p := someRow(t, s, want), make([]byte, 10_000)
	warm := testing.AllocsPerRun(200, func() {
		if _, err := s.ReadAt(context.Background(), row, p, 100); err != nil {
			t.Fatal(err)
		}
	})
	m := c.nodes[0].cache.memory
	grant := testing.AllocsPerRun(200, func() {
		if m.acquire(context.Background(), &m.flights, flightBytes) == nil {
			m.release(&m.flights, flightBytes)
		}
	})
	if warm > 0 && !raceDetector || grant > 0 {
		t.Errorf("%v allocations for a warm read, %v for a grant", warm, grant)
	}
}

func someRow(t testing.TB, s *Set, want map[string][]byte) manifest.Row {
	t.Helper()
	for key, body := range want {
		if row, ok := s.Manifest().LookupPath(key); ok && len(body) > 20_000 {
			return row
		}
	}
	t.Fatal("no file is large enough")
	return 0
}

// Reads from the disk, through memory, and fills from the UFS and from a peer:
// what each costs the heap.
func BenchmarkPaths(b *testing.B) {
	sizes := map[string]int64{}
	for i := range 64 {
		sizes[fmt.Sprintf("f%02d", i)] = 1 << 20
	}
	fs := newNoiseFS(sizes)
	for name, x := range map[string]struct {
		capacity int64
		nodes    int
		evict    bool
	}{"warm": {1 << 30, 1, false}, "memory": {4 << 20, 1, false}, "ufs": {1 << 30, 1, true}, "peer": {1 << 30, 2, true}} {
		b.Run(name, func(b *testing.B) {
			c := newCluster(b, 0, 0)
			c.openUFS = func() ufs.FS { return fs }
			for i := range x.nodes {
				c.add(i, filepath.Join(b.TempDir(), "cache"), x.capacity)
			}
			id := c.freeze()
			n := c.nodes[x.nodes-1]
			s, err := n.cache.Open(b.Context(), id)
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			p := make([]byte, 1<<20)
			b.SetBytes(1 << 20)
			b.ReportAllocs()
			runtime.GC()
			for i := 0; b.Loop(); i++ {
				if x.evict && i%64 == 0 {
					b.StopTimer()
					if _, err := n.cache.Evict(b.Context(), id, true); err != nil {
						b.Fatal(err)
					}
					b.StartTimer()
				}
				row, _ := s.Manifest().LookupPath(fmt.Sprintf("f%02d", i%64))
				if _, err := s.ReadAt(b.Context(), row, p, 0); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// Who reads in small pieces what no disk has space for costs the UFS each byte
// once, not the rest of the object for each piece.
func TestSmallPiecesThroughMemory(t *testing.T) {
	fs := newNoiseFS(map[string]int64{"f": 20 << 20})
	counting := &countingFS{FS: fs.FS}
	c := newCluster(t, 0, 0)
	c.openUFS = func() ufs.FS { return meteredNoise{fs, counting} }
	c.add(0, filepath.Join(t.TempDir(), "cache"), 4<<20)
	id := c.freeze()
	s, err := c.nodes[0].cache.Open(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	row, _ := s.Manifest().LookupPath("f")
	got, want := make([]byte, 30_000), make([]byte, 30_000)
	for off := int64(0); off < 20<<20; {
		n, err := s.ReadAt(t.Context(), row, got, off)
		if err != nil {
			t.Fatal(err)
		}
		fs.read("f", want[:n], off)
		if !bytes.Equal(got[:n], want[:n]) {
			t.Fatalf("%d bytes at %d differ", n, off)
		}
		off += int64(n)
	}
	if requests, bytes := counting.counted(); bytes != 20<<20 || requests != 5 {
		t.Errorf("%d requests for %d bytes", requests, bytes)
	}
	// The last one has given its last byte before it has ended.
	waitFor(t, "no flight is said to run", func() bool { _, flights := c.nodes[0].cache.Running(); return flights == 0 })
}

// meteredNoise counts what is asked of a noiseFS.
type meteredNoise struct {
	*noiseFS
	count *countingFS
}

func (m meteredNoise) Open(ctx context.Context, key string, v ufs.Version, off, length int64) (io.ReadCloser, error) {
	m.count.mu.Lock()
	m.count.requests++
	m.count.bytes += length
	m.count.mu.Unlock()
	return m.noiseFS.Open(ctx, key, v, off, length)
}
