package e2e

import (
	"encoding/json"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"stoker.dev/internal/api"
)

// BenchmarkViews reads a preloaded dataset through views of each kind and, turn
// and turn about, the same files from the local disk: hot, and with
// the page cache of those files dropped; 8 large files of 256 MiB sequentially, 20,000 small
// ones of 100 KiB and 100,000 tiny ones of 4 KiB in random order by 8 readers. See pair.report.
func BenchmarkViews(b *testing.B) {
	c := up(b, 1, "8GiB", func(root string) {
		makeEqualFiles(b, root, some(20_000), 100<<10, some(8), 256<<20)
		makeEqualFiles(b, filepath.Join(root, "tiny"), some(100_000), 4<<10, 0, 0)
	})
	c.add()
	c.must("preload", "data", "--wait")
	disk := filepath.Join(c.root, "data")
	for _, kind := range viewKinds(b) {
		b.Run(kind, func(b *testing.B) { benchmarkView(b, c, kind, disk) })
	}
}

// some is how many files a benchmark has of so many: with -short few, to try it.
func some(files int) int {
	if testing.Short() {
		return max(files/20, 1)
	}
	return files
}

func benchmarkView(b *testing.B, c *cluster, kind, disk string) {
	view := b.TempDir()
	c.must("mount", "data", view, "--view", kind)
	defer c.must("umount", view)
	for _, w := range []struct {
		name, dir string
		readers   int
		hot       bool
	}{
		{"large/hot", "shards", 1, true}, {"large/dropped", "shards", 1, false},
		{"small/hot", "train", 8, true}, {"small/dropped", "train", 8, false},
		{"tiny/hot", "tiny", 8, true}, {"tiny/dropped", "tiny", 8, false},
	} {
		b.Run(w.name, func(b *testing.B) {
			files := walk(b, filepath.Join(disk, w.dir))
			p := &pair{c: c, other: "disk"}
			p.files, p.bytes = len(files), readAll(b, filepath.Join(disk, w.dir), files, w.readers) // both sides are warm from here on
			readAll(b, filepath.Join(view, w.dir), files, w.readers)
			touchMemory(b)
			for i := 0; b.Loop(); i++ {
				for _, side := range [][]int{{0, 1}, {1, 0}}[i%2] {
					root := filepath.Join([]string{disk, view}[side], w.dir)
					if !w.hot {
						dropPages(b, root, files)
						dropPages(b, c.shards(), walk(b, c.shards()))
					}
					p.timed(side, func() {
						if n := readAll(b, root, files, w.readers); n != p.bytes {
							b.Errorf("read %d bytes, want %d", n, p.bytes)
						}
					})
				}
			}
			p.report(b)
		})
	}
}

// shards is where the first worker has its shards.
func (c *cluster) shards() string { return filepath.Join(c.dir, "worker-1", "cache", "shards") }

// makeEqualFiles writes files of two sizes.
func makeEqualFiles(b *testing.B, root string, small, smallBytes, large, largeBytes int) {
	noise := make([]byte, 4<<20)
	for i := range noise {
		noise[i] = byte(rand.Uint32())
	}
	write := func(path string, n int) {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			b.Fatal(err)
		}
		f, err := os.Create(path)
		if err != nil {
			b.Fatal(err)
		}
		defer f.Close()
		for n > 0 {
			k, err := f.Write(noise[:min(n, len(noise))])
			if err != nil {
				b.Fatal(err)
			}
			n -= k
		}
	}
	for i := range small {
		write(filepath.Join(root, "train", strconv.Itoa(i%50), strconv.Itoa(i)+".jpg"), smallBytes)
	}
	for i := range large {
		write(filepath.Join(root, "shards", strconv.Itoa(i)+".tar"), largeBytes)
	}
}

func walk(b *testing.B, root string) (files []string) {
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, rerr := filepath.Rel(root, p)
			files, err = append(files, rel), rerr
		}
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	return files
}

// workerPID is that of the first worker.
func (c *cluster) workerPID() string {
	pid, err := os.ReadFile(filepath.Join(c.dir, "worker-1", "worker.pid"))
	if err != nil {
		c.t.Fatal(err)
	}
	return strings.TrimSpace(string(pid))
}

func median(v []float64) float64 {
	slices.Sort(v)
	return v[len(v)/2]
}

// readsOfWorker is what reads through the first worker came to so far.
func (c *cluster) readsOfWorker() api.ReadCounters {
	cmd := exec.Command("curl", "-s", "--unix-socket", filepath.Join(c.dir, "worker-1", "worker.sock"), "http://worker/v1/status")
	out, err := cmd.Output()
	var st api.WorkerStatus
	if err == nil {
		err = json.Unmarshal(out, &st)
	}
	if err != nil {
		c.t.Fatalf("worker's status: %v", err)
	}
	return st.Reads
}

// dropPages takes files out of the page cache.
func dropPages(b *testing.B, root string, files []string) {
	for _, name := range files {
		f, err := os.Open(filepath.Join(root, name))
		if err != nil {
			b.Fatal(err)
		}
		_ = f.Sync() // a view has nothing to sync
		err = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
		if cerr := f.Close(); err != nil || cerr != nil {
			b.Fatal(err, cerr)
		}
	}
}

// readAll reads files in a new random order and returns their bytes.
func readAll(b *testing.B, root string, files []string, readers int) (n int64) {
	order := rand.Perm(len(files))
	todo := make(chan string)
	var wg sync.WaitGroup
	var mu sync.Mutex
	for range readers {
		wg.Go(func() {
			buf := make([]byte, 1<<20)
			for name := range todo {
				k, err := readFile(filepath.Join(root, name), buf)
				if err != nil {
					b.Error(err)
				}
				mu.Lock()
				n += k
				mu.Unlock()
			}
		})
	}
	for _, i := range order {
		todo <- files[i]
	}
	close(todo)
	wg.Wait()
	return n
}

// readFile reads with plain system calls: os.File would poll each file, which
// no training process does.
func readFile(path string, buf []byte) (n int64, err error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	for {
		k, err := unix.Read(fd, buf)
		if k <= 0 || err != nil {
			return n, err
		}
		n += int64(k)
	}
}
