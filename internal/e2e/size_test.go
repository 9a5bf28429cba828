package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"

	"stoker.dev/cache/manifest"
	"stoker.dev/ufs"
	"stoker.dev/ufs/folder"
)

// many is a store whose keys exist only while they are listed.
type many struct {
	ufs.FS
	n     int
	times int64 // as large
}

func (m many) key(i int) string {
	class := 1440764 + i/1300*137
	return fmt.Sprintf("train/n%08d/n%08d_%d.JPEG", class, class, 10026+i%1300*17)
}

func (m many) List(_ context.Context, o ufs.ListOptions) (p ufs.Page, _ error) {
	i, err := strconv.Atoi(o.Token)
	if err != nil {
		i = sort.Search(m.n, func(i int) bool { k := m.key(i); return k >= o.Prefix && k > o.StartAfter })
	}
	for n := 0; i < m.n; n++ {
		key := m.key(i)
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
			i += sort.Search(m.n-i, func(j int) bool { return !strings.HasPrefix(m.key(i+j), sub) })
			continue
		}
		r := rand.NewPCG(uint64(i), 1)
		p.Objects = append(p.Objects, ufs.Object{Key: key, Version: ufs.Version{Tag: fmt.Sprintf(`"%016x%016x"`, r.Uint64(), r.Uint64()),
			ModTime: time.Unix(1_700_000_000, 0), Bytes: int64(60_000+i%100_000) * max(1, m.times)}})
		i++
	}
	return p, nil
}

// enter freezes so many files as a dataset, none of which exists.
func (c *cluster) enter(name string, files int) { c.enterLarge(name, files, 1) }

// enterLarge is enter with files some times as large.
func (c *cluster) enterLarge(name string, files int, times int64) {
	c.t.Helper()
	objects, err := folder.Open(filepath.Join(c.dir, "store"))
	if err != nil {
		c.t.Fatal(err)
	}
	s := manifest.NewStore(objects, c.t.TempDir())
	roots := []manifest.Root{{Location: ufs.Location{URI: "s3://data"}}}
	b, err := manifest.Build(c.t.Context(), manifest.BuildOptions{Roots: roots, TempDir: c.t.TempDir(),
		Open: func(context.Context, ufs.Location) (ufs.FS, string, error) {
			return many{n: files, times: times}, "", nil
		}})
	if err == nil {
		err = s.Put(c.t.Context(), b)
	}
	if err == nil {
		err = s.CreateDataset(c.t.Context(), &manifest.Dataset{Name: name, Owner: "nobody", Roots: roots, Created: time.Now(),
			Generations: []manifest.Generation{{Number: 1, Manifest: b.ID, ListedAt: b.ListedTo, Objects: b.Objects, Bytes: b.Bytes}}})
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

// memory reads one line of a process's status, in bytes.
func memory(t testing.TB, pid int, name string) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == name+":" {
			n, _ := strconv.ParseInt(f[1], 10, 64) // the kernel writes numbers
			return n << 10
		}
	}
	t.Fatalf("process %d has no %s", pid, name)
	return 0
}

// A mount takes no memory for each file: what a worker has of its own, anonymous
// memory, grows by 20 MiB at most, whatever is mounted and walked.
// STOKER_MOUNT_FILES sets other sizes, such as 1000000,10000000.
func TestMountTakesNoMemory(t *testing.T) {
	sizes := "100000"
	if s := os.Getenv("STOKER_MOUNT_FILES"); s != "" {
		sizes = s
	}
	c := up(t, 1, "256MiB", func(string) {})
	pid := c.workers()[0].PID
	for _, size := range strings.Split(sizes, ",") {
		files, err := strconv.Atoi(size)
		if err != nil {
			t.Fatal(err)
		}
		c.enter("many"+size, files)
		dir := t.TempDir()
		before := memory(t, pid, "RssAnon")
		began := time.Now()
		c.must("mount", "many"+size, dir)
		t.Logf("%d files: mounted in %v, the first time, verified", files, time.Since(began).Round(time.Millisecond))
		mounted := memory(t, pid, "RssAnon")
		r := rand.New(rand.NewPCG(1, 2))
		for range 10_000 {
			if _, err := os.Lstat(filepath.Join(dir, many{}.key(r.IntN(files)))); err != nil {
				t.Fatal(err)
			}
		}
		looked, walked := memory(t, pid, "RssAnon"), int64(0)
		if files <= 1_000_000 {
			began = time.Now()
			out, err := exec.Command("sh", "-c", "find "+dir+" -size +0 -type f | wc -l").Output() // -size asks for each file's attributes
			if err != nil || strings.TrimSpace(string(out)) != size {
				t.Errorf("find sees %s files (%v)", out, err)
			}
			walked = memory(t, pid, "RssAnon")
			t.Logf("%d files: find took %v", files, time.Since(began).Round(time.Millisecond))
		}
		t.Logf("%d files: RssAnon %.1f MiB before, %.1f mounted, %.1f after 10,000 look-ups, %.1f after find; peak RSS %.1f", files,
			mib(before), mib(mounted), mib(looked), mib(walked), mib(memory(t, pid, "VmHWM")))
		if grown := max(mounted, looked, walked) - before; grown > 20<<20 {
			t.Errorf("%d files: the worker's memory grew by %.1f MiB, want at most 20", files, mib(grown))
		}
		c.must("umount", dir)
	}
}

func mib(n int64) float64 { return float64(n) / (1 << 20) }
