package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"stoker.dev/internal/api"
	"stoker.dev/internal/testenv"
)

// evictUnmounted evicts a dataset right after its view was unmounted: umount waits for the
// kernel to let go of it for half a second only, which a busy machine may exceed.
func (c *cluster) evictUnmounted(dataset string) {
	c.t.Helper()
	c.within(10*time.Second, dataset+" is evicted", func() bool { return c.stoker("evict", dataset).code == 0 })
}

// viewKinds are both kinds of views, where this machine has both.
func viewKinds(t testing.TB) []string {
	t.Helper()
	if known, err := os.ReadFile("/proc/filesystems"); err != nil || !bytes.Contains(known, []byte("erofs")) {
		testenv.Without(t, "this kernel has no EROFS: no kernel views")
		return []string{"tree"}
	}
	return []string{"tree", "kernel"}
}

// mountAs mounts a dataset by a kind of view on a new folder.
func (c *cluster) mountAs(kind, dataset string) (dir string) {
	c.t.Helper()
	dir = c.t.(*testing.T).TempDir()
	if out := c.must("mount", dataset, dir, "--view", kind, "-o", "json"); !strings.Contains(out, `"view": "`+kind+`"`) {
		c.t.Fatalf("mounted as %s, want %s", out, kind)
	}
	return dir
}

// fuseReads is how many READs came to the worker so far.
func (c *cluster) fuseReads() int64 { return c.readsOfWorker().FUSEReads }

// Both kinds of views show the source, byte for byte, whatever is resident and
// whoever reads at the same time: while nothing is here, while part of it is,
// and when all of it is. Then a kernel view asks the worker for nothing.
func TestViewsShowTheSource(t *testing.T) {
	var size int64
	c := up(t, 1, "1GiB", func(root string) {
		size = makeFiles(t, root, 150, 200<<10, 1, 70<<20+12_345)
		for name, body := range map[string]string{"empty": "", "odd/a b": "1", "odd/ü": "2", "odd/" + strings.Repeat("n", 250): "3", "odd/!": "4", "odd/-x": "5", "odd/.h": "6"} {
			if err := os.MkdirAll(filepath.Join(root, "odd"), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(root, name), []byte(body), 0o644); err != nil {
				t.Fatal(err)
			}
			size += int64(len(body))
		}
	})
	c.add()
	source := filepath.Join(c.root, "data")
	for _, kind := range viewKinds(t) {
		t.Run(kind, func(t *testing.T) {
			before := c.proxy.Bytes()
			dir := c.mountAs(kind, "data")
			for _, seed := range []uint64{1, 2} { // cold, then in part
				trace{source: source, view: dir, seed: seed, steps: 60}.run(t)
			}
			sameTree(t, source, dir)
			if got := c.proxy.Bytes() - before; got < size || got > size+size/10 { // some requests of waiting readers are hedged
				t.Errorf("%d bytes were fetched, the dataset has %d", got, size)
			}
			c.must("preload", "data", "--wait") // whole, and sealed
			trace{source: source, view: dir, seed: 3, steps: 60}.run(t)
			c.must("umount", dir)
			dir = c.mountAs(kind, "data")
			requests := c.fuseRequests()
			trace{source: source, view: dir, seed: 4, steps: 200}.run(t)
			sameTree(t, source, dir)
			if n := c.fuseRequests() - requests; kind == "kernel" && n != 0 {
				t.Errorf("%d requests came to the worker though all is resident", n)
			}
			c.must("umount", dir)
			if n := c.mounts(); n != 0 {
				t.Errorf("umount left %d mounts", n)
			}
			c.evictUnmounted("data")
		})
	}
}

// trace is a random sequence of reads of all sorts, in random company, each of
// which must give what the source has. Its seed says all.
type trace struct {
	source, view string
	seed         uint64
	steps        int
	advice       int // to the kernel, about each file: unix.FADV_…
}

func (x trace) run(t *testing.T) {
	t.Helper()
	for _, err := range x.differences(t) {
		t.Error(err)
	}
}

// differences are what the readers found that the source does not have, one of
// each reader at most.
func (x trace) differences(t *testing.T) (found []error) {
	files, dirs := listTree(t, x.source)
	bodies, largest := make([][]byte, len(files)), 0
	for i, name := range files {
		var err error
		if bodies[i], err = os.ReadFile(filepath.Join(x.source, name)); err != nil {
			t.Fatal(err)
		}
		if len(bodies[i]) > len(bodies[largest]) {
			largest = i
		}
	}
	r := rand.New(rand.NewPCG(x.seed, 9))
	readers, drops := 1+r.IntN(6), r.IntN(4) // one in so many files loses its pages first; 0: none
	differs := make(chan error, readers)     // one of each
	var wg sync.WaitGroup
	for k := range readers {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(x.seed, uint64(k)))
			for i := range x.steps / readers {
				at := r.IntN(len(files))
				if r.IntN(8) == 0 {
					at = largest
				}
				if err := x.step(r, files[at], bodies[at], dirs[r.IntN(len(dirs))], drops > 0 && r.IntN(drops) == 0); err != nil {
					differs <- fmt.Errorf("seed %d, reader %d of %d, step %d, %q: %w", x.seed, k, readers, i, files[at], err)
					return
				}
			}
		})
	}
	wg.Wait()
	close(differs)
	for err := range differs {
		found = append(found, err)
	}
	return found
}

func listTree(t *testing.T, root string) (files, dirs []string) {
	t.Helper()
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if d.IsDir() {
			dirs = append(dirs, rel)
		} else {
			files = append(files, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files, dirs
}

// step reads something of one file, or lists one folder.
func (x trace) step(r *rand.Rand, name string, want []byte, dir string, drop bool) error {
	f, err := os.Open(filepath.Join(x.view, name))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, x.advice); err != nil {
		return err
	}
	if drop {
		if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
			return err
		}
	}
	fi, err := f.Stat()
	if err != nil || fi.Size() != int64(len(want)) || fi.Mode() != 0o644 {
		return fmt.Errorf("%v (%w)", fi, err)
	}
	from := r.IntN(len(want) + 1)
	n := min(r.IntN(300<<10), len(want)-from)
	switch r.IntN(8) {
	case 0: // to the end and beyond
		got := make([]byte, len(want)-from+10)
		n, err := f.ReadAt(got, int64(from))
		if n != len(want)-from || err == nil || !bytes.Equal(got[:n], want[from:]) {
			return fmt.Errorf("read of all from %d on: %d bytes, %w", from, n, err)
		}
	case 1:
		return mapped(f.Name(), want, from, n)
	case 2:
		return sameNames(filepath.Join(x.source, dir), filepath.Join(x.view, dir))
	case 3:
		return inOrder(f, want, 1+r.IntN(1<<20))
	case 4:
		return inSteps(f, want, 1+r.IntN(64<<10), (1+r.IntN(2<<20))*(1-2*r.IntN(2)))
	default:
		got := make([]byte, n)
		if _, err := f.ReadAt(got, int64(from)); err != nil && n > 0 || !bytes.Equal(got, want[from:from+n]) {
			return fmt.Errorf("read of %d bytes at %d: %w", n, from, err)
		}
	}
	return nil
}

// inOrder reads a file from its start to its end in pieces of a size.
func inOrder(f *os.File, want []byte, size int) error {
	got, at := make([]byte, size), 0
	for {
		n, err := f.Read(got)
		if at+n > len(want) || !bytes.Equal(got[:n], want[at:at+n]) {
			return fmt.Errorf("read on from %d: other bytes", at)
		}
		at += n
		if err != nil || n == 0 {
			if at != len(want) || !errors.Is(err, io.EOF) {
				return fmt.Errorf("read in order: ended at %d of %d: %w", at, len(want), err)
			}
			return nil
		}
	}
}

// inSteps reads records of a size at equal distances, from the start on or, with
// a negative step, from the end back.
func inSteps(f *os.File, want []byte, size, step int) error {
	at := 0
	if step < 0 {
		at = max(0, len(want)-size)
	}
	for got := make([]byte, size); at >= 0 && at < len(want); at += step {
		n := min(size, len(want)-at)
		if _, err := f.ReadAt(got[:n], int64(at)); err != nil || !bytes.Equal(got[:n], want[at:at+n]) {
			return fmt.Errorf("read of %d bytes at %d, in steps of %d: %w", n, at, step, err)
		}
	}
	return nil
}

// mapped compares a range of a file through mmap(2), in another process: one
// that waits in a page fault cannot stop for the garbage collector, and the
// store that the fault waits for is counted in this one.
func mapped(path string, want []byte, from, n int) error {
	if len(want) == 0 {
		return nil
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestMappedRange$")
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0", "STOKER_E2E_MAP="+path, fmt.Sprintf("STOKER_E2E_RANGE=%d %d", from, n))
	out, err := cmd.Output()
	if sum := sha256.Sum256(want[from : from+n]); err != nil || !bytes.Contains(out, []byte(hex.EncodeToString(sum[:]))) {
		err = fmt.Errorf("mapped: %d bytes at %d differ: %s (%w)", n, from, out, err)
		return err
	}
	return nil
}

// TestMappedRange is the other process of mapped.
func TestMappedRange(t *testing.T) {
	path := os.Getenv("STOKER_E2E_MAP")
	if path == "" {
		t.Skip("run by the others")
	}
	var from, n int
	if _, err := fmt.Sscan(os.Getenv("STOKER_E2E_RANGE"), &from, &n); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m, err := unix.Mmap(int(f.Fd()), 0, from+n+1, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("%x\n", sha256.Sum256(bytes.Clone(m[from:from+n])))
	if err := unix.Munmap(m); err != nil {
		t.Fatal(err)
	}
}

func sameNames(source, view string) error {
	names := func(dir string) ([]string, error) {
		all, err := os.ReadDir(dir)
		var out []string
		for _, e := range all {
			out = append(out, fmt.Sprint(e.Name(), e.IsDir()))
		}
		return out, err
	}
	want, err := names(source)
	if err != nil {
		return err
	}
	if got, err := names(view); err != nil || !slices.Equal(got, want) {
		return fmt.Errorf("%s has %q, want %q (%w)", view, got, want, err)
	}
	return nil
}

// A kernel view of resident data reads on, byte for byte and with its pages
// dropped, while no worker lives, and while its worker's next life, which had no
// holder, puts a new one in its place no open fails.
func TestKernelViewOutlivesItsWorker(t *testing.T) {
	if !slices.Contains(viewKinds(t), "kernel") {
		testenv.Lacks(t, "this kernel has no EROFS")
	}
	c := up(t, 1, "1GiB", func(root string) { makeFiles(t, root, 100, 200<<10, 1, 66<<20+777) })
	c.add()
	c.must("preload", "data", "--wait")
	dir, source := c.mountAs("kernel", "data"), filepath.Join(c.root, "data")
	files, _ := listTree(t, source)
	open, err := os.Open(filepath.Join(dir, files[0]))
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	c.kill("holder")
	c.kill("worker-1")
	trace{source: source, view: dir, seed: 5, steps: 100}.run(t)
	dropAll(t, dir, files)
	sameTree(t, source, dir)

	stop, reading := make(chan struct{}), sync.WaitGroup{}
	opens := 0
	reading.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			name := files[opens%len(files)]
			got, err := os.ReadFile(filepath.Join(dir, name))
			want, werr := os.ReadFile(filepath.Join(source, name))
			if err != nil || werr != nil || !bytes.Equal(got, want) {
				t.Errorf("open number %d, of %q, while the worker comes back: %v, %v", opens, name, err, werr)
				return
			}
			opens++
		}
	})
	was := deviceOf(t, dir)
	c.dev("start", "worker-1", "--dir", c.dir)
	c.eventually("the view is mounted again", func() bool { return deviceOf(t, dir) != was })
	close(stop)
	reading.Wait()
	t.Logf("%d opens", opens)
	if n := c.mounts(); n != 1 {
		t.Errorf("%d mounts, want 1", n)
	}
	body, err := os.ReadFile(filepath.Join(source, files[0]))
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(body))
	if _, err := open.ReadAt(got, 0); err != nil || sha256.Sum256(got) != sha256.Sum256(body) {
		t.Errorf("a file that was open all the while: %v", err)
	}
	sameTree(t, source, dir)
	_ = open.Close()
	c.must("umount", dir)
	c.dev("down", "--dir", c.dir)
	if n := c.mounts(); n != 0 {
		t.Errorf("down left %d mounts", n)
	}
}

// auto gives a tree view of what is not here, and a kernel view, where the kernel
// has them, of what is. The mount and the status say which and why, and both stay
// what they are when their worker was killed.
func TestAutoViewStaysWhatItIs(t *testing.T) {
	c := up(t, 1, "1GiB", func(root string) { makeFiles(t, root, 100, 200<<10, 1, 66<<20+777) })
	c.add()
	whole := viewKinds(t)[len(viewKinds(t))-1]
	shown := map[string]api.MountInfo{}
	for _, want := range []string{"tree", whole} {
		dir := t.TempDir()
		var m api.MountInfo
		if err := json.Unmarshal([]byte(c.must("mount", "data", dir, "-o", "json")), &m); err != nil || m.View != want || m.Why == "" {
			t.Fatalf("%+v, %v, want a %s view", m, err, want)
		}
		shown[dir] = m
		c.must("preload", "data", "--wait")
	}
	same := func(when string) {
		t.Helper()
		views := c.detail("dataset", "show", "data").Views
		for _, v := range views {
			if m := shown[v.Dir]; v.View != m.View || v.Why != m.Why {
				t.Errorf("%s: %+v, mounted as %+v", when, v, m)
			}
			sameTree(t, filepath.Join(c.root, "data"), v.Dir)
		}
		if len(views) != len(shown) {
			t.Errorf("%s: %+v", when, views)
		}
	}
	same("at first")
	if unix.Access("/sys/class/bdi", unix.W_OK) == nil {
		for dir, m := range shown {
			if want := map[string]string{"tree": "4096", "kernel": "1024"}[m.View]; readAhead(t, dir) != want {
				t.Errorf("a %s view reads ahead %s KiB, want %s", m.View, readAhead(t, dir), want)
			}
		}
		if slices.Contains(viewKinds(t), "kernel") {
			c.must("evict", "data", "--force")
			dir := c.mountAs("kernel", "data")
			if got := readAhead(t, dir); got != "4096" {
				t.Errorf("a kernel view of nothing that is here reads ahead %s KiB, want 4096", got)
			}
			c.must("umount", dir)
		}
	}
	if out := c.must("status", "data"); !strings.Contains(out, ": "+whole+", ") || !strings.Contains(out, ": tree, ") {
		t.Errorf("status says\n%s", out)
	}
	c.kill("worker-1")
	c.dev("start", "worker-1", "--dir", c.dir)
	c.eventually("both are mounted again", func() bool { return len(c.workerStatus(1).Mounts) == 2 })
	same("in the next life")
	for dir := range shown {
		c.must("umount", dir)
	}
	if n := c.mounts(); n != 0 {
		t.Errorf("%d mounts are left", n)
	}
}

// readAhead is how many KiB the kernel reads ahead in a mount.
func readAhead(t *testing.T, dir string) string {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	dev := deviceOf(t, dir)
	bdi := fmt.Sprintf("%d:%d", unix.Major(dev), unix.Minor(dev)) // of a FUSE mount
	var path struct {                                             // fs_sysfs_path
		n    uint8
		name [128]byte
	}
	const fsGetSysPath = 0x80811501 // FS_IOC_GETFSSYSFSPATH of linux/fs.h
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), fsGetSysPath, uintptr(unsafe.Pointer(&path))); errno == 0 {
		bdi = filepath.Base(string(path.name[:path.n]))
	}
	kib, err := os.ReadFile(filepath.Join("/sys/class/bdi", bdi, "read_ahead_kb"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(kib))
}

func dropAll(t *testing.T, root string, files []string) {
	for _, name := range files {
		f, err := os.Open(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED), f.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

func deviceOf(t *testing.T, dir string) uint64 {
	var st syscall.Stat_t
	if err := syscall.Stat(dir, &st); err != nil {
		t.Error(err)
	}
	return uint64(st.Dev)
}

// What is not resident fails at once without its worker and a holder, never as
// zeros, and is right when the worker is back.
func TestKernelViewMissesWithoutItsWorker(t *testing.T) {
	if !slices.Contains(viewKinds(t), "kernel") {
		testenv.Lacks(t, "this kernel has no EROFS")
	}
	c := up(t, 1, "1GiB", func(root string) { makeFiles(t, root, 50, 100<<10, 0, 0) })
	c.add()
	dir, source := c.mountAs("kernel", "data"), filepath.Join(c.root, "data")
	files, _ := listTree(t, source)
	c.kill("holder")
	c.kill("worker-1")
	if b, err := os.ReadFile(filepath.Join(dir, files[0])); !errors.Is(err, syscall.EIO) || len(b) > 0 {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	was := deviceOf(t, dir)
	c.dev("start", "worker-1", "--dir", c.dir)
	c.eventually("the view is mounted again", func() bool { return deviceOf(t, dir) != was })
	sameTree(t, source, dir)
	c.must("umount", dir)
}
