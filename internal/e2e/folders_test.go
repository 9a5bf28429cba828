package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stoker.dev/internal/api"
	"stoker.dev/internal/testenv"
)

// aDisk is a file system of its own, with a cache folder in it.
type aDisk struct {
	at    string // where it is mounted
	limit int64  // of the cache folder
}

func (d aDisk) folder() string { return filepath.Join(d.at, "cache") }

// tmpfsDisk mounts a tmpfs that has some room beside the cache folder's limit.
func tmpfsDisk(t *testing.T, limit int64) aDisk {
	t.Helper()
	d := aDisk{filepath.Join(t.TempDir(), "disk"), limit}
	options := fmt.Sprintf("size=%d", limit+limit/16)
	kept := d.at + ".kept" // the file system, however often it is unmounted at d.at
	if err := errors.Join(os.Mkdir(kept, 0o700), os.Mkdir(d.at, 0o700), unix.Mount("tmpfs", kept, "tmpfs", 0, options), bind(kept, d.at)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = unix.Unmount(d.at, unix.MNT_DETACH), unix.Unmount(kept, unix.MNT_DETACH) })
	return d
}

func bind(from, to string) error { return unix.Mount(from, to, "", unix.MS_BIND, "") }

// ext4Disk is tmpfsDisk with a file system that turns read-only at an error.
func ext4Disk(t *testing.T, limit int64) aDisk {
	t.Helper()
	d := aDisk{filepath.Join(t.TempDir(), "disk"), limit}
	image := d.at + ".kept"
	if out, err := exec.Command("mkfs.ext4", "-q", image, fmt.Sprint((limit+limit/4)>>20)+"m").CombinedOutput(); err != nil {
		testenv.Lacks(t, "no ext4: %s", out)
	}
	if err := os.Mkdir(d.at, 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mount", "-o", "loop", image, d.at).CombinedOutput(); err != nil {
		testenv.Lacks(t, "no loop mounts: %s", out)
	}
	t.Cleanup(func() { _ = unix.Unmount(d.at, unix.MNT_DETACH) })
	return d
}

// folders is a controller of its own, and its one worker on several disks.
type folders struct {
	*cluster
	t      *testing.T
	disks  []aDisk
	line   []string // that starts the worker
	worker *exec.Cmd
}

// withFolders starts them beside the cluster, whose S3 server they share
// through a proxy of their own; the dataset is added.
func (c *cluster) withFolders(t *testing.T, name string, disks ...aDisk) *folders {
	t.Helper()
	own := *c
	own.t, own.dir = t, t.TempDir()
	own.proxy = testenv.CountingProxy(t, c.getenv("STOKER_S3_ENDPOINT"))
	f := &folders{cluster: &own, t: t, disks: disks}
	common := []string{"--redis", "127.0.0.1:" + c.redisPort(), "--redis-prefix", name, "--store", filepath.Join(own.dir, "store"), "--token-file", filepath.Join(c.dir, "token")}
	control, socket := filepath.Join(own.dir, "c.sock"), filepath.Join(own.dir, "w.sock")
	f.daemon(append([]string{"controller", "--temporal", "127.0.0.1:" + c.port("temporal"), "--cluster", name, "--dir", filepath.Join(own.dir, "c"), "--listen-socket", control}, common...)...)
	f.line = append([]string{"worker", "--listen", testenv.FreeAddress(t), "--socket", socket}, common...)
	for _, d := range disks {
		f.line = append(f.line, "--dir", fmt.Sprintf("%s=%d", d.folder(), d.limit))
	}
	own.env = append(slices.Clone(c.env), "STOKER_CONTROLLER=unix://"+control, "STOKER_SOCKET="+socket)
	f.start()
	f.add()
	return f
}

// start starts the worker, for the first time or again.
func (f *folders) start() {
	f.t.Helper()
	f.worker = f.daemon(f.line...)
	f.eventually("the worker is there", func() bool {
		r := f.stoker("workers", "-o", "json")
		return r.code == 0 && strings.Contains(r.out, `"live"`) && strings.Contains(r.out, fmt.Sprintf(`"pid": %d,`, f.worker.Process.Pid))
	})
}

// shown is what `stoker workers` says of the folders, in their order.
func (f *folders) shown() []api.DiskInfo {
	f.t.Helper()
	ws := f.workers()
	if len(ws) != 1 || len(ws[0].Disks) != len(f.disks) {
		f.t.Fatalf("workers: %+v", ws)
	}
	return ws[0].Disks
}

// stop ends the worker in order.
func (f *folders) stop() {
	f.t.Helper()
	if err := errors.Join(f.worker.Process.Signal(os.Interrupt), f.worker.Wait()); err != nil {
		f.t.Fatal(err)
	}
}

const (
	foldersLarge = 12 // files of 60 MiB
	shardMost    = 65 << 20
)

// upForFolders starts a cluster with the bucket of these tests.
func upForFolders(t *testing.T) (c *cluster, size int64) {
	t.Helper()
	if os.Geteuid() != 0 {
		testenv.Lacks(t, "only root can mount")
	}
	return up(t, 1, "64MiB", func(root string) {
		size = makeFiles(t, root, 800, 100<<10, foldersLarge, 60<<20)
		makeFiles(t, filepath.Join(filepath.Dir(root), "more"), 0, 1, 2, 60<<20)
	}), size
}

// A dataset that needs all of three folders of unlike sizes is preloaded:
// each is as full for its size as the others while it comes and in the end. What
// does not fit is refused with numbers that say why.
func TestFoldersAreUsedFully(t *testing.T) {
	c, size := upForFolders(t)
	f := c.withFolders(t, "even", tmpfsDisk(t, 192<<20), tmpfsDisk(t, 256<<20), tmpfsDisk(t, 448<<20))
	if size < (256+448)<<20 {
		t.Fatalf("two of the folders would do for %d bytes", size)
	}
	even := func() (used int64) {
		t.Helper()
		var all int64
		for _, d := range f.shown() {
			used, all = used+d.UsedBytes, all+d.CapacityBytes
		}
		for _, d := range f.shown() {
			if share := used * (d.CapacityBytes >> 20) / (all >> 20); d.State != "ok" || d.UsedBytes < share-shardMost || d.UsedBytes > min(share+shardMost, d.CapacityBytes) {
				t.Errorf("%+v, of %d bytes its share is %d", d, used, share)
			}
		}
		return used
	}
	reached, release := f.proxy.Hold(size / 2)
	defer release()
	done := f.preload()
	<-reached
	even()
	release()
	if cert := done(); cert.State != api.CertificateReady || cert.ResidentBytes != size || cert.UFSBytes != size {
		t.Errorf("%+v, the dataset has %d bytes", cert, size)
	}
	if used := even(); used < size || f.proxy.Bytes() != size {
		t.Errorf("%d bytes are used and %d came, the dataset has %d", used, f.proxy.Bytes(), size)
	}
	f.must("pin", "data", "--for", "1h", "--reason", "test")
	f.must("dataset", "add", "more", "s3://more", "--endpoint", f.proxy.URL(), "--path-style")
	r := f.stoker("preload", "more", "--wait")
	if r.code != 8 || f.proxy.Bytes() != size || !strings.Contains(r.stderr, "needs 120.7 MiB, 4.1 MiB of 896.0 MiB free; held: data by the pin") || !strings.Contains(r.stderr, "120.7 MiB more are set aside") {
		t.Errorf("exit %d, want 8; %d bytes came: %s", r.code, f.proxy.Bytes()-size, r.stderr)
	}
}

// ruin is a way in which a disk fails, and how it works again.
type ruin struct {
	disk   func(t *testing.T, limit int64) aDisk
	ruin   func(d aDisk) error
	state  string
	reason string
	repair func(d aDisk) error
}

func ruins() map[string]ruin {
	filler := func(d aDisk) string { return filepath.Join(d.at, "of-others") }
	return map[string]ruin{
		"full": {tmpfsDisk, func(d aDisk) error {
			err := exec.Command("dd", "if=/dev/zero", "of="+filler(d), "bs=1M", "status=none").Run()
			if err == nil {
				return errors.New("the disk does not fill up")
			}
			return nil
		}, "full", "no space left", func(d aDisk) error { return os.Remove(filler(d)) }},
		"unmounted": {tmpfsDisk, func(d aDisk) error { return unix.Unmount(d.at, unix.MNT_DETACH) },
			"failed", "no such file", func(d aDisk) error { return bind(d.at+".kept", d.at) }},
		"read-only": {ext4Disk, func(d aDisk) error { return unix.Mount("", d.at, "ext4", unix.MS_REMOUNT, "abort") },
			"readonly", "read-only file system", func(d aDisk) error {
				return errors.Join(unix.Unmount(d.at, 0), exec.Command("mount", "-o", "loop", d.at+".kept", d.at).Run())
			}},
	}
}

// One of three folders fails in mid-preload, while a job reads: the preload is
// Ready, nobody reads a wrong byte or an error, no more comes again than lay
// there, and everybody sees which folder it is and why. When the worker starts
// again, the folder is as good as the others.
func TestFolderFailsInMidPreload(t *testing.T) {
	c, size := upForFolders(t)
	for name, r := range ruins() {
		t.Run(name, func(t *testing.T) {
			f := c.withFolders(t, name, r.disk(t, 256<<20), tmpfsDisk(t, 416<<20), tmpfsDisk(t, 448<<20))
			view := filepath.Join(t.TempDir(), "view")
			f.mount(view)
			want := digests(t, filepath.Join(f.root, "data")) // takes long: not while the store stands still, which nobody waits for over 30 s
			reached, release := f.proxy.Hold(size / 2)
			defer release()
			done := f.preload()
			<-reached
			lay := f.shown()[0].UsedBytes
			job := readAgain(want, view)
			defer job.end()
			if err := r.ruin(f.disks[0]); err != nil {
				t.Fatal(err)
			}
			release()
			cert := done()
			if cert.State != api.CertificateReady || cert.ResidentBytes != size || len(cert.Failed) != 0 {
				t.Errorf("%+v", cert)
			}
			passes := job.passed()
			f.within(5*time.Minute, "the job has read all once more", func() bool { return job.passed() >= passes+2 })
			if errs := job.errors(); len(errs) > 0 {
				t.Errorf("%d reads failed: %v", len(errs), errs[0])
			}
			f.eventually("the folder is shown", func() bool { return f.shown()[0].State == r.state })
			if d := f.shown(); !strings.Contains(d[0].Reason, r.reason) || d[1].State != "ok" || d[2].State != "ok" {
				t.Errorf("%+v", d)
			}
			if again := f.proxy.Bytes() - size; again > lay || again > cert.Refetched.Lost+slack { // the job's reads are hedged, too
				t.Errorf("%d bytes came again, %d lay on the folder; %+v", again, lay, cert.Refetched)
			}
			f.backInService(r)
		})
	}
}

// backInService repairs the folder while the worker is away.
func (f *folders) backInService(r ruin) {
	f.t.Helper()
	f.stop()
	if err := r.repair(f.disks[0]); err != nil {
		f.t.Fatal(err)
	}
	before := f.proxy.Bytes()
	f.start()
	used := int64(0)
	for i, d := range f.shown() {
		if d.State != "ok" || d.CapacityBytes != f.disks[i].limit {
			f.t.Errorf("after the start: %+v", d)
		}
		used += d.UsedBytes
	}
	cert := f.preload()()
	if cert.State != api.CertificateReady || cert.UFSBytes != 0 || f.proxy.Bytes() != before {
		f.t.Errorf("%d bytes came again: %+v", f.proxy.Bytes()-before, cert)
	}
	first := f.shown()[0].UsedBytes
	f.must("dataset", "add", "more", "s3://more", "--endpoint", f.proxy.URL(), "--path-style")
	f.must("preload", "more", "--wait")
	f.must("verify", "data", "--deep")
	f.must("verify", "more", "--deep")
	if d := f.shown()[0]; d.UsedBytes <= first || d.State != "ok" {
		f.t.Errorf("nothing was put there: %+v, %d bytes before", d, first)
	}
}

// A folder fails in mid-preload and the others have no space for the rest: the
// preload says so, with numbers, and reads of all of it go on.
func TestFolderFailsWithoutSpaceElsewhere(t *testing.T) {
	c, size := upForFolders(t)
	f := c.withFolders(t, "less", tmpfsDisk(t, 192<<20), tmpfsDisk(t, 256<<20), tmpfsDisk(t, 448<<20))
	view := filepath.Join(t.TempDir(), "view")
	f.mount(view)
	reached, release := f.proxy.Hold(size / 2)
	defer release()
	cmd, said := f.background("preload", "data", "--wait", "-o", "json")
	<-reached
	if err := unix.Unmount(f.disks[1].at, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	release()
	err := cmd.Wait()
	if cmd.ProcessState.ExitCode() != 8 || !strings.Contains(said.String(), "of 640.0 MiB free") || !strings.Contains(said.String(), f.disks[1].folder()+" is failed (") {
		t.Errorf("%v, want exit 8: %s", err, said)
	}
	sameTree(t, filepath.Join(f.root, "data"), view)
	d := f.shown()
	if d[1].State != "failed" || d[1].Reason == "" || d[0].UsedBytes > d[0].CapacityBytes || d[2].UsedBytes > d[2].CapacityBytes {
		t.Errorf("%+v", d)
	}
	if reserved := f.reserved(); reserved != 0 {
		t.Errorf("%d bytes stay reserved", reserved)
	}
}
