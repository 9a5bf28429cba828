package e2e

import (
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// Three workers keep to the budget that they share, also when Redis dies in
// the middle of a preload: never more than it has, by the counter at the store.
func TestBudgetOfTheCluster(t *testing.T) {
	const limit, files, each = 20e6, 30, 5 << 20
	c := up(t, 3, "2GiB", func(root string) { makeFiles(t, root, 0, 1, files, each) }, "--ufs-bandwidth", "20MB/s", "--ufs-requests", "100/s")
	c.add()
	before, began := c.proxy.Bytes(), time.Now()
	wait := c.preload()
	c.eventually("a third is here", func() bool { return c.proxy.Bytes()-before > files*each/3 })
	shares := 0.0
	for _, w := range c.workers() {
		for _, u := range w.UFS {
			if u.Endpoint != strings.TrimPrefix(c.proxy.URL(), "http://") || u.LimitBytes != limit || u.LimitRequests != 100 {
				t.Errorf("worker %s tells %+v", w.ID, u)
			}
			shares += float64(u.ShareBytes)
		}
	}
	if shares == 0 { // they are asked one after the other: their sum may be of several moments
		t.Error("no worker tells its share")
	}
	if out := c.must("workers"); !strings.Contains(out, "BYTES/S") || !strings.Contains(out, "by need") {
		t.Errorf("workers shows no budget:\n%s", out)
	}
	c.kill("redis")
	c.eventually("they share equally", func() bool {
		return strings.Contains(c.stoker("workers").out, "equally") || c.proxy.Bytes()-before >= files*each
	})
	c.ready(wait(), files*each)
	took := time.Since(began).Seconds()
	c.dev("start", "redis", "--dir", c.dir)
	sent := float64(c.proxy.Bytes() - before)
	t.Logf("%.1f MB in %.1f s: %.2f of the budget", sent/1e6, took, sent/took/limit)
	if sent > limit*(took*1.05+0.5) {
		t.Errorf("%.0f bytes in %.1f s, the budget has %.0f a second", sent, took, float64(limit))
	}
}

// BenchmarkDemandBesidePreload reads cold files of 100 KiB, one after the
// other, while nothing else goes on, and beside a preload that uses the whole
// budget. It reports the median and the 99th percentile of a read in ms, and
// the rate of both together.
func BenchmarkDemandBesidePreload(b *testing.B) {
	const reads = 600
	c := up(b, 3, "6GiB", func(root string) {
		makeEqualFiles(b, filepath.Join(root, "small"), 4*reads, 100<<10, 0, 0)
		makeEqualFiles(b, filepath.Join(root, "large"), 0, 0, 16, 256<<20)
	}, "--ufs-bandwidth", "50MB/s")
	for _, name := range []string{"small", "large"} {
		c.must("dataset", "add", name, "s3://data/"+name, "--endpoint", c.getenv("STOKER_S3_ENDPOINT"), "--path-style")
	}
	var idle, busy, rates []float64
	for b.Loop() {
		idle = append(idle, coldReads(b, c, reads)...)
		job := jobOf(b, c.must("preload", "large", "-o", "json"))
		c.eventually("the preload is under way", func() bool { return ufsRate(c) > 40e6 })
		before, began := ufsBytes(c), time.Now()
		busy = append(busy, coldReads(b, c, reads)...)
		rates = append(rates, float64(ufsBytes(c)-before)/1e6/time.Since(began).Seconds())
		c.must("cancel", job)
		c.eventually("the preload has ended", func() bool { return c.stoker("evict", "large").code == 0 })
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median(rates), "MB/s")
	for name, took := range map[string][]float64{"idle": idle, "busy": busy} {
		slices.Sort(took)
		b.ReportMetric(took[len(took)/2], name+"-p50-ms")
		b.ReportMetric(took[len(took)*99/100], name+"-p99-ms")
	}
}

// coldReads mounts the small files, of which nothing is resident, and reads some.
func coldReads(b *testing.B, c *cluster, n int) (ms []float64) {
	c.eventually("nothing of the small files is here", func() bool { return c.stoker("evict", "small").code == 0 })
	dir := b.TempDir()
	c.must("mount", "small", dir)
	defer c.must("umount", dir)
	var files []string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			files = append(files, path)
		}
		return err
	})
	if err != nil || len(files) < n {
		b.Fatalf("%d files: %v", len(files), err)
	}
	rand.Shuffle(len(files), func(i, j int) { files[i], files[j] = files[j], files[i] })
	for _, f := range files[:n] {
		began := time.Now()
		if _, err := os.ReadFile(f); err != nil {
			b.Fatal(err)
		}
		ms = append(ms, float64(time.Since(began).Microseconds())/1e3)
		<-time.After(10 * time.Millisecond)
	}
	return ms
}

// ufsBytes is what all workers took from the store.
func ufsBytes(c *cluster) (n int64) {
	for _, w := range c.workers() {
		if w.Reads != nil {
			n += w.Reads.UFSBytes
		}
	}
	return n
}

// ufsRate is what they take of it in a second.
func ufsRate(c *cluster) float64 {
	before, began := ufsBytes(c), time.Now()
	<-time.After(time.Second)
	return float64(ufsBytes(c)-before) / time.Since(began).Seconds()
}

func jobOf(b *testing.B, out string) string {
	var job struct{ Job string }
	if err := json.Unmarshal([]byte(out), &job); err != nil || job.Job == "" {
		b.Fatalf("%q: %v", out, err)
	}
	return job.Job
}
