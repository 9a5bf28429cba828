package e2e

import (
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkRandom reads 4 KiB and 128 KiB at random places of a file of 1 GiB,
// and rows of it through a map, from the local disk and from views of each kind:
// hot, and with the page cache dropped. It reports the median of a read's time on
// both, in microseconds, their ratio, and what a read costs in CPU, worker included.
func BenchmarkRandom(b *testing.B) {
	const fileBytes = 1 << 30
	c := up(b, 1, "2GiB", func(root string) { makeEqualFiles(b, root, 0, 0, 1, fileBytes) })
	c.add()
	c.must("preload", "data", "--wait")
	const name = "shards/0.tar"
	disk := filepath.Join(c.root, "data")
	for _, kind := range viewKinds(b) {
		view := b.TempDir()
		c.must("mount", "data", view, "--view", kind)
		for _, w := range []struct {
			name string
			size int
			read func(path string, offsets []int64, size int) ([]time.Duration, error)
		}{{"4KiB", 4 << 10, readsAt}, {"128KiB", 128 << 10, readsAt}, {"mapped", 4 << 10, mappedReads}} {
			for _, hot := range []bool{true, false} {
				b.Run(fmt.Sprintf("%s/%s/%s", kind, w.name, map[bool]string{true: "hot", false: "dropped"}[hot]), func(b *testing.B) {
					var took, cpu [2][]float64
					var reads []float64
					for i := 0; b.Loop(); i++ {
						offsets := offsetsIn(fileBytes, 2000, w.size)
						for _, side := range [][]int{{0, 1}, {1, 0}}[i%2] {
							path := filepath.Join([]string{disk, view}[side], name)
							if dropPages(b, filepath.Dir(path), []string{filepath.Base(path)}); !hot {
								dropPages(b, c.shards(), walk(b, c.shards()))
							} else if _, err := w.read(path, offsets, w.size); err != nil {
								b.Fatal(err)
							}
							requests, before := c.readsOfWorker().FUSEReads, c.cpuOf(side)
							all, err := w.read(path, offsets, w.size)
							if err != nil {
								b.Fatal(err)
							}
							cpu[side] = append(cpu[side], (c.cpuOf(side)-before)*1e6/float64(len(all)))
							if side == 1 {
								reads = append(reads, float64(c.readsOfWorker().FUSEReads-requests)/float64(len(all)))
							}
							took[side] = append(took[side], p50(all))
						}
					}
					b.ReportMetric(0, "ns/op")
					b.ReportMetric(median(took[0]), "disk-p50-us")
					b.ReportMetric(median(took[1]), "view-p50-us")
					b.ReportMetric(median(took[1])/median(took[0]), "p50-view/disk")
					b.ReportMetric(median(cpu[0]), "disk-cpu-us")
					b.ReportMetric(median(cpu[1]), "view-cpu-us")
					b.ReportMetric(median(reads), "READs/read")
				})
			}
		}
		c.must("umount", view)
	}
}

// offsetsIn draws places of a file for reads of size bytes each.
func offsetsIn(fileBytes int64, reads, size int) []int64 {
	offsets := make([]int64, reads)
	for k := range offsets {
		offsets[k] = rand.Int64N(fileBytes/int64(size)) * int64(size)
	}
	return offsets
}

// p50 is the median in microseconds. It sorts them.
func p50(took []time.Duration) float64 {
	slices.Sort(took)
	return float64(took[len(took)/2].Nanoseconds()) / 1e3
}

// readsAt reads at each offset and returns what each read took.
func readsAt(path string, offsets []int64, size int) ([]time.Duration, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	buf, all := make([]byte, size), make([]time.Duration, 0, len(offsets))
	for _, off := range offsets {
		began := time.Now()
		if n, err := unix.Pread(fd, buf, off); n != size || err != nil {
			return nil, fmt.Errorf("%s at %d: %d bytes, %w", path, off, n, err)
		}
		all = append(all, time.Since(began))
	}
	return all, nil
}

// mappedReads is readsAt through a map of the whole file, which says that it is read at
// random.
func mappedReads(path string, offsets []int64, size int) ([]time.Duration, error) {
	return readsMapped(path, offsets, size, unix.MADV_RANDOM)
}

// plainlyMappedReads does not say so.
func plainlyMappedReads(path string, offsets []int64, size int) ([]time.Duration, error) {
	return readsMapped(path, offsets, size, unix.MADV_NORMAL)
}

func readsMapped(path string, offsets []int64, size, advice int) ([]time.Duration, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	m, err := unix.Mmap(int(f.Fd()), 0, int(fi.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Munmap(m) }()
	if err := unix.Madvise(m, advice); err != nil {
		return nil, err
	}
	buf, all := make([]byte, size), make([]time.Duration, 0, len(offsets))
	for _, off := range offsets {
		began := time.Now()
		copy(buf, m[off:])
		all = append(all, time.Since(began))
	}
	return all, nil
}

// BenchmarkNames walks a tree of 1,000 folders and lstats each of its names: on
// the local disk with its directory cache dropped and in a view that was just
// mounted (first), and once more (second). STOKER_BENCH_NAMES sets how many names
// there are; 1,000,000 by default. It reports names/s of both, their ratio, and
// CPU microseconds for each name, worker included.
func BenchmarkNames(b *testing.B) {
	names := 1_000_000
	if s := os.Getenv("STOKER_BENCH_NAMES"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			b.Fatal(err)
		}
		names = n
	}
	disk := b.TempDir()
	for d := range 1000 {
		folder := filepath.Join(disk, fmt.Sprintf("n%08d", d*137))
		if err := os.Mkdir(folder, 0o755); err != nil {
			b.Fatal(err)
		}
		for i := range names / 1000 {
			if err := os.WriteFile(filepath.Join(folder, fmt.Sprintf("img_%06d.JPEG", i)), nil, 0o644); err != nil {
				b.Fatal(err)
			}
		}
	}
	c := up(b, 1, "1GiB", func(string) {}, "--allow-file", disk)
	c.must("dataset", "add", "names", "file://"+disk)
	for _, kind := range viewKinds(b) {
		b.Run(kind, func(b *testing.B) {
			var rate [2][2][]float64 // of the first and the second walk
			var cpu [2][2][]float64
			for i := 0; b.Loop(); i++ {
				view := b.TempDir()
				c.must("mount", "names", view, "--view", kind)
				if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0); err != nil {
					b.Fatal(err)
				}
				for _, side := range [][]int{{0, 1}, {1, 0}}[i%2] {
					root := []string{disk, view}[side]
					for round := range 2 {
						before, began := c.cpuOf(side), time.Now()
						n := lstatAll(b, root)
						if n < names/1000*1000 {
							b.Fatalf("%d names in %s, want %d", n, root, names)
						}
						rate[round][side] = append(rate[round][side], float64(n)/time.Since(began).Seconds())
						cpu[round][side] = append(cpu[round][side], (c.cpuOf(side)-before)*1e6/float64(n))
					}
				}
				c.must("umount", view)
			}
			b.ReportMetric(0, "ns/op")
			for round, walk := range []string{"first", "second"} {
				b.ReportMetric(median(rate[round][0]), walk+"-disk-names/s")
				b.ReportMetric(median(rate[round][1]), walk+"-view-names/s")
				b.ReportMetric(median(rate[round][1])/median(rate[round][0]), walk+"-view/disk")
				b.ReportMetric(median(cpu[round][0]), walk+"-disk-cpu-us")
				b.ReportMetric(median(cpu[round][1]), walk+"-view-cpu-us")
			}
		})
	}
}

func lstatAll(b *testing.B, root string) (n int) {
	err := filepath.WalkDir(root, func(_ string, d fs.DirEntry, err error) error {
		if err == nil {
			_, err = d.Info()
		}
		n++
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	return n
}
