package cache

import (
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"stoker.dev"
	"stoker.dev/cache/store"
	"stoker.dev/internal/api"
	"stoker.dev/internal/testenv"
)

// sickDisk is a folder on a file system of its own that can be broken.
type sickDisk struct {
	dir   string
	ruin  func() error // breaks it, once
	state store.State
}

func (d *sickDisk) folder() store.Folder { return store.Folder{Dir: d.dir, CapacityBytes: 1 << 30} }

// sickDisks are real file systems: one too small for its limit, one that is
// unmounted, one that the kernel makes read-only because of an error.
func sickDisks(t *testing.T) map[string]func(t *testing.T) *sickDisk {
	t.Helper()
	if os.Geteuid() != 0 {
		testenv.Lacks(t, "only root can mount")
	}
	mounted := func(t *testing.T, source, kind, options string, flags uintptr) string {
		t.Helper()
		dir := filepath.Join(t.TempDir(), "disk")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if kind == "loop" {
			if out, err := exec.Command("mount", "-o", "loop", source, dir).CombinedOutput(); err != nil {
				testenv.Lacks(t, "no loop mounts: %s", out)
			}
		} else if err := unix.Mount(source, dir, kind, flags, options); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
		return dir
	}
	return map[string]func(t *testing.T) *sickDisk{
		"full": func(t *testing.T) *sickDisk {
			return &sickDisk{mounted(t, "tmpfs", "tmpfs", "size=20m", 0), func() error { return nil }, store.Full}
		},
		"unmounted": func(t *testing.T) *sickDisk {
			dir := mounted(t, "tmpfs", "tmpfs", "size=400m", 0)
			return &sickDisk{dir, func() error { return unix.Unmount(dir, unix.MNT_DETACH) }, store.Failed}
		},
		"read-only": func(t *testing.T) *sickDisk {
			image := filepath.Join(t.TempDir(), "image")
			if out, err := exec.Command("mkfs.ext4", "-q", image, "400m").CombinedOutput(); err != nil {
				testenv.Lacks(t, "no ext4: %s", out)
			}
			dir := mounted(t, image, "loop", "", 0)
			return &sickDisk{dir, func() error { return unix.Mount("", dir, "ext4", unix.MS_REMOUNT, "abort") }, store.Readonly}
		},
	}
}

// breakAt breaks the disk before the n-th request to the UFS is served, and
// tries it, as a worker does every few seconds.
func (c *cluster) breakAt(n int, d *sickDisk) {
	var once sync.Once
	c.ufs.hook = func(nth int) {
		if nth >= n {
			once.Do(func() {
				if err := d.ruin(); err != nil {
					c.t.Error(err)
				}
				c.nodes[0].store.Probe()
			})
		}
	}
}

// A disk fails while readers fill the cache: each gets the right bytes and no
// error, what was on the disk is filled again elsewhere, and the disk is out of
// service and its capacity gone.
func TestReadsOutliveADisk(t *testing.T) {
	for name, disk := range sickDisks(t) {
		t.Run(name, func(t *testing.T) {
			d := disk(t)
			c := newCluster(t, 0, 0)
			c.addFolders(0, d.folder(), store.Folder{Dir: filepath.Join(t.TempDir(), "b"), CapacityBytes: 1 << 30})
			want := c.fillUFS(21, 300, 70<<20)
			id := c.freeze()
			c.breakAt(100, d)
			s, err := c.nodes[0].cache.Open(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			var readers errgroup.Group
			for range 4 {
				readers.Go(func() error { return same(t.Context(), s, want) })
			}
			if err := readers.Wait(); err != nil {
				t.Fatal(err)
			}
			st := c.nodes[0].store
			st.Probe()
			if f := st.Folders()[0]; f.State != d.state || f.Reason == "" {
				t.Errorf("the disk: %+v", f)
			}
			if u := st.Usage(); d.state != store.Full && u.CapacityBytes != 1<<30 {
				t.Errorf("the capacity is %d", u.CapacityBytes)
			}
			c.readAll(0, id, want)
			if _, bytes := c.ufs.counted(); bytes < total(want) || bytes > 2*total(want) {
				t.Errorf("%d bytes of %d came from the UFS", bytes, total(want))
			}
		})
	}
}

// A disk fails in mid-load: the load ends with everything resident, and what
// had to come twice is counted as lost.
func TestLoadOutlivesADisk(t *testing.T) {
	for name, disk := range sickDisks(t) {
		t.Run(name, func(t *testing.T) {
			d := disk(t)
			c := newCluster(t, 0, 0)
			c.addFolders(0, d.folder(), store.Folder{Dir: filepath.Join(t.TempDir(), "b"), CapacityBytes: 1 << 30})
			want := c.fillUFS(22, 300, 70<<20)
			id := c.freeze()
			c.breakAt(200, d)
			p := c.load(0, c.plan(id))
			if !p.Done || p.FailedObjects != 0 || p.Bytes != total(want) {
				t.Errorf("%+v, want %d bytes", p, total(want))
			}
			_, bytes := c.ufs.counted()
			if extra := bytes - total(want); p.Refetched.Lost < extra || p.Refetched.Lost > 2*extra {
				t.Errorf("%d bytes came twice, %d are counted as lost", extra, p.Refetched.Lost)
			}
			rep, err := c.nodes[0].cache.Verify(t.Context(), id, true)
			if err != nil {
				t.Fatal(err)
			}
			for _, sh := range rep.Shards {
				if sh.Present != nil || len(sh.Corrupt) > 0 {
					t.Errorf("shard %d is not whole: %+v", sh.Shard, sh)
				}
			}
			c.readAll(0, id, want)
			if _, again := c.ufs.counted(); again != bytes {
				t.Errorf("reading it cost %d further bytes", again-bytes)
			}
		})
	}
}

// What somebody holds is fetched again from the other disks by itself; a
// promise that went with the disk is refused, not over-committed.
func TestHeldDataIsFetchedAgain(t *testing.T) {
	d := sickDisks(t)["unmounted"](t)
	c := newCluster(t, 0, 0)
	const rest = 400 << 20
	c.addFolders(0, d.folder(), store.Folder{Dir: filepath.Join(t.TempDir(), "b"), CapacityBytes: rest})
	want := c.fillUFS(23, 300, 70<<20)
	id := c.freeze()
	c.load(0, c.plan(id))
	n := c.nodes[0]
	if err := n.cache.PutLeases(api.LeaseRequest{Leases: []api.Lease{{Holder: "job", Manifest: id, TTLSeconds: 600}}}); err != nil {
		t.Fatal(err)
	}
	on := n.store.Folders()[0].Shards
	if on == 0 {
		t.Fatal("nothing lies on the disk that fails")
	}
	whole := n.dir.wholes(on)
	if err := d.ruin(); err != nil {
		t.Fatal(err)
	}
	n.store.Probe()
	<-whole
	f := n.store.Folders()
	if f[0].Shards != 0 || f[1].UsedBytes > rest || n.cache.Counters().LostBytes.Load() == 0 {
		t.Errorf("%+v, %d bytes lost", f, n.cache.Counters().LostBytes.Load())
	}
	_, before := c.ufs.counted()
	c.readAll(0, id, want)
	if _, after := c.ufs.counted(); after != before {
		t.Errorf("%d bytes were still missing", after-before)
	}
	if err := n.store.ReserveFor("more", rest, 1<<20); stoker.KindOf(err) != stoker.KindNoSpace {
		t.Errorf("a promise of the lost capacity: %v", err)
	}
}

// wholes returns what is closed when so many shards have been announced as
// whole from now on.
func (d *fakeDirectory) wholes(n int) <-chan struct{} {
	done := make(chan struct{})
	d.mu.Lock()
	defer d.mu.Unlock()
	d.onWhole = func() {
		if n--; n == 0 {
			close(done)
		}
	}
	return done
}

// Bits that went wrong on the disk are found by a READ, by a peer's request
// and by verify --deep; each serves, or names, the right thing.
func TestFlippedBits(t *testing.T) {
	c := newCluster(t, 2, 1<<30)
	want := c.fillUFS(24, 40, 0)
	id := c.freeze()
	c.load(0, c.plan(id))
	n := c.nodes[0]
	spoil(t, n)
	c.readAll(1, id, want) // through node 0, which owns the only shard
	if got := n.cache.Counters().Corrupt.Load(); got != 1 {
		t.Errorf("%d blocks were found bad when served", got)
	}
	c.readAll(0, id, want)
	again := c.load(0, c.plan(id))
	if !again.Done || again.Bytes != total(want) {
		t.Errorf("%+v", again)
	}
	spoil(t, n)
	rep, err := n.cache.Verify(t.Context(), id, true)
	if err != nil || len(rep.Shards) != 1 || len(rep.Shards[0].Corrupt) != 1 {
		t.Errorf("%+v, %v", rep, err)
	}
	if files, _ := filepath.Glob(filepath.Join(n.storeDir(), "shards", "*", "*.shard")); len(files) != 0 {
		t.Errorf("the file is still there: %v", files)
	}
	c.readAll(0, id, want)
}

// Shards of a folder that is gone after a restart are missing, no more: they
// are read, and loaded, again.
func TestRestartWithoutAFolder(t *testing.T) {
	c := newCluster(t, 0, 0)
	root := t.TempDir()
	a := store.Folder{Dir: filepath.Join(root, "a"), CapacityBytes: 1 << 30}
	b := store.Folder{Dir: filepath.Join(root, "b"), CapacityBytes: 1 << 30}
	st, err := store.Open(store.Options{Folders: []store.Folder{a, b}})
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	c.addFolders(0, a, b)
	want := c.fillUFS(25, 200, 70<<20)
	id := c.freeze()
	plan := c.plan(id)
	c.load(0, plan)
	_, first := c.ufs.counted()
	n := c.nodes[0]
	lost := n.store.Folders()[1].Shards
	if lost == 0 || lost == len(n.store.Shards()) {
		t.Fatalf("%d shards of %d are in the folder that goes", lost, len(n.store.Shards()))
	}
	if err := n.cache.Close(); err != nil {
		t.Fatal(err)
	}
	if err := n.store.Close(); err != nil {
		t.Fatal(err)
	}
	c.nodes = nil
	c.addFolders(0, a)
	if got := c.nodes[0].store.WorkerID(); got != n.store.WorkerID() {
		t.Fatalf("it became worker %s", got)
	}
	p := c.load(0, plan)
	_, second := c.ufs.counted()
	if !p.Done || p.Bytes != total(want) || second == first || second >= 2*first {
		t.Errorf("%+v; %d bytes from the UFS before, %d after", p, first, second)
	}
	c.readAll(0, id, want)
}

// The only disk fills up in the middle of what readers fetch and of what comes ahead of
// them: reads go on through memory, and when they have ended they hold none.
func TestFullDiskLeavesNoMemoryBehind(t *testing.T) {
	d := sickDisks(t)["full"](t)
	c := newCluster(t, 0, 0)
	c.addFolders(0, d.folder())
	want := c.fillUFS(6, 200, 40<<20)
	id := c.freeze()
	n := c.nodes[0].cache
	s, err := n.Open(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for range 3 {
		var readers errgroup.Group
		for range 3 {
			readers.Go(func() error { return same(t.Context(), s, want) })
		}
		if err := readers.Wait(); err != nil {
			t.Fatal(err)
		}
	}
	if state := c.nodes[0].store.Folders()[0].State; state != store.Full {
		t.Errorf("the disk is %q", state)
	}
	waitFor(t, "the flights to end", func() bool { _, flights := n.Running(); return flights == 0 })
	n.fills.forget(n.memory, stoker.ID{})
	waitFor(t, "the memory", func() bool { used, _, _ := n.MemoryUse(); return used == 0 })
}
