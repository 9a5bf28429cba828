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
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stoker.dev/internal/api"
)

// BenchmarkViews reads the same files from the local disk and from views of
// them, of each kind, turn and turn about in one process: hot (in the page cache) and with
// the page cache of those files dropped, large files sequentially, small and tiny
// ones in random order by 8 readers. It reports medians: MB/s of both, their
// ratio, CPU seconds per GB of reader and worker together, READs that came to the
// worker for each file, how much the page cache grew for each byte read, and the
// most anonymous memory that the worker had.
func BenchmarkViews(b *testing.B) {
	const small, smallBytes, large, largeBytes, tiny, tinyBytes = 5000, 100 << 10, 4, 256 << 20, 20_000, 4 << 10
	c := up(b, 1, "4GiB", func(root string) {
		makeEqualFiles(b, root, small, smallBytes, large, largeBytes)
		makeEqualFiles(b, filepath.Join(root, "tiny"), tiny, tinyBytes, 0, 0)
	})
	c.add()
	c.must("preload", "data", "--wait")
	disk := filepath.Join(c.root, "data")
	for _, kind := range viewKinds(b) {
		b.Run(kind, func(b *testing.B) { benchmarkView(b, c, kind, disk) })
	}
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
			p := &pair{c: c, readers: w.readers, hot: w.hot}
			files := walk(b, filepath.Join(disk, w.dir))
			readAll(b, filepath.Join(disk, w.dir), files, w.readers) // both sides are warm from here on
			readAll(b, filepath.Join(view, w.dir), files, w.readers)
			for i := 0; b.Loop(); i++ {
				sides := []string{disk, view}
				if i%2 == 1 {
					slices.Reverse(sides)
				}
				for _, root := range sides {
					p.run(b, root == view, filepath.Join(root, w.dir), files)
				}
			}
			p.report(b)
		})
	}
}

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

// pair collects what both sides cost.
type pair struct {
	c       *cluster
	readers int
	hot     bool

	rate, cpu [2][]float64 // MB/s and CPU s/GB: of the disk, of the view
	reads     []float64    // READs for each file
	grown     []float64    // bytes of the page cache for each byte read through the view
	rss       float64      // MiB of the worker's RssAnon, the most that was seen
}

func (p *pair) run(b *testing.B, view bool, root string, files []string) {
	if !p.hot {
		dropPages(b, root, files)
		dropPages(b, filepath.Join(p.c.dir, "worker-1", "cache", "shards"), walk(b, filepath.Join(p.c.dir, "worker-1", "cache", "shards")))
	}
	cached := kib(b, "/proc/meminfo", "Cached")
	before, cpu, began := p.c.readsOfWorker().FUSEReads, p.cpuSeconds(view), time.Now()
	n := readAll(b, root, files, p.readers)
	took := time.Since(began).Seconds()
	side := 0
	if view {
		side = 1
		p.grown = append(p.grown, float64(kib(b, "/proc/meminfo", "Cached")-cached)*1024/float64(n))
		p.rss = max(p.rss, float64(kib(b, "/proc/"+p.c.workerPID()+"/status", "RssAnon"))/1024)
		p.reads = append(p.reads, float64(p.c.readsOfWorker().FUSEReads-before)/float64(len(files)))
	}
	p.rate[side] = append(p.rate[side], float64(n)/1e6/took)
	p.cpu[side] = append(p.cpu[side], (p.cpuSeconds(view)-cpu)/(float64(n)/1e9))
}

func (p *pair) report(b *testing.B) {
	b.ReportMetric(0, "ns/op") // a loop is a pair: its time says nothing
	b.ReportMetric(median(p.rate[0]), "disk-MB/s")
	b.ReportMetric(median(p.rate[1]), "view-MB/s")
	b.ReportMetric(median(p.rate[1])/median(p.rate[0]), "view/disk")
	b.ReportMetric(median(p.cpu[0]), "disk-cpu-s/GB")
	b.ReportMetric(median(p.cpu[1]), "view-cpu-s/GB")
	b.ReportMetric(median(p.reads), "READs/file")
	b.ReportMetric(median(p.grown), "page-cache-bytes/byte")
	b.ReportMetric(p.rss, "RssAnon-MiB")
}

// kib is a line of a file of the kernel, in KiB.
func kib(b *testing.B, file, name string) int64 {
	body, err := os.ReadFile(file)
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(body)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == name+":" {
			n, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil {
				b.Fatal(err)
			}
			return n
		}
	}
	b.Fatalf("%s has no %s", file, name)
	return 0
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

// cpuSeconds is what this process and, for the view, the worker have used.
func (p *pair) cpuSeconds(view bool) float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		p.c.t.Fatal(err)
	}
	sum := float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
	if !view {
		return sum
	}
	stat, err := os.ReadFile("/proc/" + p.c.workerPID() + "/stat")
	if err != nil {
		p.c.t.Fatal(err)
	}
	f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+2:]))
	for _, ticks := range f[11:13] { // utime, stime (proc(5))
		n, err := strconv.ParseFloat(ticks, 64)
		if err != nil {
			p.c.t.Fatal(err)
		}
		sum += n / 100
	}
	return sum
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
