package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pair collects what two sides that do the same cost: side 0 is another way, side 1
// stoker's.
type pair struct {
	c     *cluster
	other string // what side 0 is, as the figures call it
	files int
	bytes int64

	rate, cpu [2][]float64 // MB/s; CPU seconds of each GB, on side 1 those of the worker and of who reads
	worker    []float64    // of side 1: the worker's alone
	reads     []float64    // READs that came to the worker for each file
	gets      []float64    // requests to the store for each file
	fetched   []float64    // bytes from the store for each byte
	allocs    []float64    // objects that the worker put on its heap for each file
	grown     []float64    // bytes of the page cache for each byte
	rss       float64      // MiB of the worker's RssAnon, the most that was seen
}

// timed runs one side, and notes its rate and its costs. It returns what it took, in seconds.
func (p *pair) timed(side int, run func()) (seconds float64) {
	gb := float64(p.bytes) / 1e9
	measured := func() (own float64) {
		before, began := ownCPU(p.c.t), time.Now()
		run()
		seconds = time.Since(began).Seconds()
		p.rate[side] = append(p.rate[side], gb*1e3/seconds)
		return (ownCPU(p.c.t) - before) / gb
	}
	if side == 0 {
		p.cpu[0] = append(p.cpu[0], measured())
		return seconds
	}
	files := float64(p.files)
	before, once, twice, cached := p.c.readsOfWorker(), p.c.mallocs(), p.c.mallocs(), kib(p.c.t, "/proc/meminfo", "Cached")
	rss, cpu := p.c.watchRSS(), p.c.workerCPU()
	own := measured()
	worker := (p.c.workerCPU() - cpu) / gb
	p.cpu[1], p.worker = append(p.cpu[1], own+worker), append(p.worker, worker)
	p.rss = max(p.rss, rss())
	p.grown = append(p.grown, float64(kib(p.c.t, "/proc/meminfo", "Cached")-cached)*1024/float64(p.bytes))
	p.allocs = append(p.allocs, float64(max(0, p.c.mallocs()-twice-(twice-once)))/files) // asking takes some, too
	after := p.c.readsOfWorker()
	p.reads = append(p.reads, float64(after.FUSEReads-before.FUSEReads)/files)
	p.gets = append(p.gets, float64(after.UFSRequests-before.UFSRequests)/files)
	p.fetched = append(p.fetched, float64(after.UFSBytes-before.UFSBytes)/float64(p.bytes))
	return seconds
}

// report gives the medians.
func (p *pair) report(b *testing.B) {
	b.ReportMetric(0, "ns/op") // a loop is a pair: its time says nothing
	perFile := float64(p.bytes) / 1e9 / float64(p.files) * 1e6
	for side, name := range []string{p.other, "view"} {
		b.ReportMetric(median(p.rate[side]), name+"-MB/s")
		b.ReportMetric(median(p.cpu[side]), name+"-cpu-s/GB")
		b.ReportMetric(median(p.cpu[side])*perFile, name+"-cpu-us/file")
	}
	b.ReportMetric(median(p.rate[1])/median(p.rate[0]), "view/"+p.other)
	b.ReportMetric(median(p.cpu[1])/median(p.cpu[0]), "cpu-view/"+p.other)
	b.ReportMetric(median(p.worker), "worker-cpu-s/GB")
	b.ReportMetric(median(p.reads), "READs/file")
	b.ReportMetric(median(p.gets), "GETs/file")
	b.ReportMetric(median(p.fetched), "UFS-bytes/byte")
	b.ReportMetric(median(p.allocs), "allocs/file")
	b.ReportMetric(median(p.grown), "page-cache-bytes/byte")
	b.ReportMetric(p.rss, "RssAnon-MiB")
}

// touchMemory has the free memory touched. A virtual machine's host may have taken back what was idle: the
// first touch of such a page costs 9 us instead of some tenths of one, and would be on
// the account of the side that happens to come to it.
func touchMemory(b *testing.B) {
	n := kib(b, "/proc/meminfo", "MemFree")<<10 - 1<<30
	if n < 1<<30 {
		return
	}
	m, err := unix.Mmap(-1, 0, int(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		b.Fatal(err)
	}
	_ = unix.Madvise(m, unix.MADV_HUGEPAGE) // advice
	for i := 0; i < len(m); i += 4096 {
		m[i] = 1
	}
	if err := unix.Munmap(m); err != nil {
		b.Fatal(err)
	}
}

// kib is a line of a file of the kernel, in KiB.
func kib(t testing.TB, file, name string) int64 {
	body, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(body)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == name+":" {
			n, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("%s has no %s", file, name)
	return 0
}

// watchRSS looks at the anonymous memory of the first worker until it is asked for the most of
// it, in MiB.
func (c *cluster) watchRSS() (most func() float64) {
	stop, done, peak := make(chan struct{}), make(chan struct{}), 0.0
	status := filepath.Join("/proc", c.workerPID(), "status")
	go func() {
		defer close(done)
		every := time.NewTicker(20 * time.Millisecond)
		defer every.Stop()
		for ended := false; !ended; {
			select {
			case <-every.C:
			case <-stop:
				ended = true
			}
			peak = max(peak, float64(kib(c.t, status, "RssAnon"))/1024)
		}
	}()
	return func() float64 { close(stop); <-done; return peak }
}

// mallocs is how many objects the first worker has put on its heap so far.
func (c *cluster) mallocs() int64 {
	page, err := exec.Command("curl", "-sf", "--unix-socket", filepath.Join(c.dir, "worker-1", "worker.sock"), "http://worker/debug/pprof/heap?debug=1").Output()
	if err != nil {
		c.t.Fatalf("worker's heap: %v", err)
	}
	for line := range strings.Lines(string(page)) {
		if v, ok := strings.CutPrefix(line, "# Mallocs = "); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(v), 10, 64)
			if err != nil {
				c.t.Fatal(err)
			}
			return n
		}
	}
	c.t.Fatal("the worker's heap profile has no count of objects")
	return 0
}

// ownCPU is what this process has used, in seconds.
func ownCPU(t testing.TB) float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}

// cpuOf is what a side of a pair has used: this process, and for side 1 the first worker, in seconds.
func (c *cluster) cpuOf(side int) float64 {
	if side == 0 {
		return ownCPU(c.t)
	}
	return ownCPU(c.t) + c.workerCPU()
}

// workerCPU is what the first worker has used, in seconds.
func (c *cluster) workerCPU() (sum float64) {
	stat, err := os.ReadFile(filepath.Join("/proc", c.workerPID(), "stat"))
	if err != nil {
		c.t.Fatal(err)
	}
	f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+2:]))
	for _, ticks := range f[11:13] { // utime, stime (proc(5))
		n, err := strconv.ParseFloat(ticks, 64)
		if err != nil {
			c.t.Fatal(err)
		}
		sum += n / 100
	}
	return sum
}
