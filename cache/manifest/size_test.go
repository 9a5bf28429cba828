package manifest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sort"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stoker.dev/ufs"
)

// generated is a store whose keys exist only while they are listed, so that a
// listing can have any size. Pages have 1,000 entries, as S3's.
type generated struct {
	ufs.FS
	n       int
	key     func(i int) string // in order
	version func(i int) ufs.Version
}

func (g generated) List(_ context.Context, o ufs.ListOptions) (p ufs.Page, _ error) {
	i, err := strconv.Atoi(o.Token)
	if err != nil {
		i = sort.Search(g.n, func(i int) bool { k := g.key(i); return k >= o.Prefix && k > o.StartAfter })
	}
	for n := 0; i < g.n; n++ {
		key := g.key(i)
		if !strings.HasPrefix(key, o.Prefix) {
			break
		}
		if n == 1000 {
			p.Next = strconv.Itoa(i)
			break
		}
		if at := strings.Index(key[len(o.Prefix):], "/"); at >= 0 && o.Delimiter == "/" {
			sub := key[:len(o.Prefix)+at+1]
			p.Prefixes = append(p.Prefixes, sub)
			i += sort.Search(g.n-i, func(j int) bool { return !strings.HasPrefix(g.key(i+j), sub) })
			continue
		}
		p.Objects = append(p.Objects, ufs.Object{Key: key, Version: g.version(i)})
		i++
	}
	return p, nil
}

func (g generated) options(t testing.TB) BuildOptions {
	return BuildOptions{
		Roots:   []Root{{Location: ufs.Location{URI: "mem://bucket"}}},
		Open:    func(context.Context, ufs.Location) (ufs.FS, string, error) { return g, "", nil },
		TempDir: t.TempDir(),
	}
}

// etag is what S3 answers for an object uploaded in one part, as different
// from the others as a hash.
func etag(i int) string {
	var b [16]byte
	r := rand.NewPCG(uint64(i), 1)
	binary.LittleEndian.PutUint64(b[:], r.Uint64())
	binary.LittleEndian.PutUint64(b[8:], r.Uint64())
	return fmt.Sprintf(`"%x"`, b)
}

// imageFolders are files in folders of 1,300, named as ImageNet's.
func imageFolders(files int) generated {
	const each = 1300
	return generated{n: files,
		key: func(i int) string {
			class := 1440764 + i/each*137
			return fmt.Sprintf("train/n%08d/n%08d_%d.JPEG", class, class, 10026+i%each*17)
		},
		version: func(i int) ufs.Version {
			return ufs.Version{Tag: etag(i), ModTime: someTime, Bytes: int64(60_000 + i%100_000)}
		}}
}

// deepFolders are files in folders of 80, five levels down; each tenth was
// uploaded in parts, and has a tag that says so.
func deepFolders(files int) generated {
	return generated{n: files,
		key: func(i int) string {
			leaf := i / 80
			return fmt.Sprintf("project-%03d/2024-%02d/session %02d/camera_%02d/frame_%06d.png", leaf/8000, leaf/400%20, leaf/20%20, leaf%20, i%80)
		},
		version: func(i int) ufs.Version {
			v := ufs.Version{Tag: etag(i), ModTime: someTime, Bytes: int64(i % 300_000)}
			if i%10 == 0 {
				v.Tag = v.Tag[:33] + `-12"`
			}
			return v
		}}
}

// archives are WebDataset's: one folder of tar files of 1 GB.
func archives(files int) generated {
	return generated{n: files,
		key: func(i int) string { return fmt.Sprintf("imagenet-train-%06d.tar", i) },
		version: func(i int) ufs.Version {
			return ufs.Version{Tag: `"` + etag(i)[1:33] + `-128"`, ModTime: someTime, Bytes: 1<<30 + int64(i)}
		}}
}

// status reads a line of this process's /proc/self/status, in bytes.
func status(t testing.TB, name string) int64 {
	t.Helper()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		if f := strings.Fields(s.Text()); len(f) > 1 && f[0] == name+":" {
			n, _ := strconv.ParseInt(f[1], 10, 64) // the kernel writes numbers
			return n << 10
		}
	}
	t.Fatal("no ", name)
	return 0
}

// resetPeak makes VmHWM count from now on.
func resetPeak(t testing.TB) {
	t.Helper()
	debug.FreeOSMemory()
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0o600); err != nil {
		t.Fatal(err)
	}
}

// A build takes no more of the heap for ten times the files. The records in
// memory lie outside it, and are bounded by Memory.
func TestBuildMemoryIsBounded(t *testing.T) {
	peak := func(files int) uint64 {
		o := deepFolders(files).options(t)
		o.Memory, o.Parallel = 2<<20, 2
		var mu sync.Mutex
		most := uint64(0)
		look := func() {
			mu.Lock()
			defer mu.Unlock()
			s := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
			metrics.Read(s)
			most = max(most, s[0].Value.Uint64())
		}
		o.Progress = func(_, _, pages int64) {
			if pages%200 == 0 {
				runtime.GC()
				look()
			}
		}
		b := build(t, o)
		look() // of the last collection: the merge has had some
		if b.Objects != int64(files) {
			t.Fatalf("%d objects, want %d", b.Objects, files)
		}
		return most
	}
	few := peak(20_000)
	many := peak(200_000)
	t.Logf("live heap %.1f MiB at 20,000 files, %.1f at 200,000", float64(few)/(1<<20), float64(many)/(1<<20))
	if many > few+(12<<20) { // in memory, 180,000 files take over 70 MB
		t.Errorf("200,000 files took %d MiB more than 20,000", (many-few)>>20)
	}
}

// BenchmarkSize is everything at the sizes that datasets have. 10 million
// files are built with STOKER_BENCH_10M=1.
func BenchmarkSize(b *testing.B) {
	sizes := []struct {
		name  string
		files int
	}{{"10k", 10_000}, {"1M", 1_000_000}, {"10M", 10_000_000}}
	for _, shape := range []struct {
		name string
		of   func(int) generated
		most int
	}{{"images", imageFolders, 10_000_000}, {"deep", deepFolders, 10_000_000}, {"archives", archives, 10_000}} {
		for _, size := range sizes {
			if size.files > shape.most || size.files > 1_000_000 && os.Getenv("STOKER_BENCH_10M") == "" {
				continue
			}
			b.Run(shape.name+"/"+size.name, func(b *testing.B) { benchSize(b, shape.of(size.files), size.files) })
		}
	}
}

// cpu is what this process has used, of all cores: on a machine that others
// use too it says more than the time that passed.
func cpu(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func benchSize(b *testing.B, g generated, files int) {
	o := g.options(b)
	var last *Built
	run := func(b *testing.B) {
		if last != nil {
			_ = os.Remove(last.Path)
		}
		last = build(b, o)
	}
	b.Run("Build", func(b *testing.B) {
		resetPeak(b)
		began := cpu(b)
		for b.Loop() {
			run(b)
		}
		b.ReportMetric(float64(cpu(b)-began)/float64(b.N)/float64(files), "cpu-ns/file")
		b.ReportMetric(float64(status(b, "VmHWM"))/(1<<20), "MiB-peak-RSS")
		b.ReportMetric(fileBytes(b, last.Path)/float64(files), "bytes/file")
		b.ReportMetric(float64(files)*float64(b.N)/b.Elapsed().Seconds(), "files/s")
	})
	if last == nil {
		run(b)
	}
	b.Run("Open", func(b *testing.B) {
		for b.Loop() {
			m, err := Open(last.Path)
			if err != nil {
				b.Fatal(err)
			}
			_ = m.Close()
		}
	})
	m := open(b, last.Path)
	b.Run("Lookup", func(b *testing.B) { benchLookups(b, m) })
	b.Run("ReadDir", func(b *testing.B) {
		began := cpu(b)
		for b.Loop() {
			n := 0
			for r := range Row(m.Rows()) {
				if m.Entry(r).Kind == Directory {
					m.ReadDir(r, 0, func(Row, []byte) bool { n++; return true })
				}
			}
			if n != m.Rows()-1 {
				b.Fatal(n)
			}
		}
		b.ReportMetric(float64(cpu(b)-began)/float64(b.N)/float64(m.Rows()), "cpu-ns/entry")
	})
	b.Run("Diff", func(b *testing.B) { benchDiff(b, g, m) })
}

// benchLookups looks random rows up by parent and name.
func benchLookups(b *testing.B, m *Manifest) {
	r := rand.New(rand.NewPCG(1, 2))
	type question struct {
		dir  Row
		name []byte
	}
	var ask []question
	for range 100_000 {
		row := Row(1 + r.IntN(m.Rows()-1))
		ask = append(ask, question{m.Entry(row).Parent, m.AppendName(nil, row)})
	}
	i, began := 0, cpu(b)
	defer func() { b.ReportMetric(float64(cpu(b)-began)/float64(b.N), "cpu-ns/op") }()
	for b.Loop() {
		q := ask[i%len(ask)]
		if _, ok := m.Lookup(q.dir, q.name); !ok {
			b.Fatal("not there")
		}
		i++
	}
}

// benchDiff compares with a generation in which each thousandth file differs.
func benchDiff(b *testing.B, g generated, m *Manifest) {
	version := g.version
	g.version = func(i int) ufs.Version {
		v := version(i)
		if i%1000 == 0 {
			v.Bytes++
		}
		return v
	}
	other := build(b, g.options(b))
	now := open(b, other.Path)
	began := cpu(b)
	for b.Loop() {
		found := 0
		if err := Diff(b.Context(), m, now, func(*Change) error { found++; return nil }); err != nil || found != (g.n+999)/1000 {
			b.Fatal(found, err)
		}
	}
	b.ReportMetric(float64(cpu(b)-began)/float64(b.N)/float64(g.n), "cpu-ns/file")
}
