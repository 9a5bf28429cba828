package e2e

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// fuseRequests is how many requests of any kind came to the worker's views so far.
func (c *cluster) fuseRequests() int64 {
	c.t.Helper()
	page, err := metricsAt(filepath.Join(c.dir, "worker-1", "worker.sock"))
	if err != nil {
		c.t.Fatal(err)
	}
	for line := range strings.Lines(page) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), "stoker_fuse_requests_total "); ok {
			n, err := strconv.ParseFloat(value, 64)
			if err != nil {
				c.t.Fatal(err)
			}
			return int64(n)
		}
	}
	c.t.Fatal("the worker does not count its requests")
	return 0
}

// Small files read in random order through a cold tree view cost one READ and one
// request to the store each, and each byte once; read again while their pages are in
// memory, they cost no request of any kind.
func TestSmallFilesCostOneRequestEach(t *testing.T) {
	const files, size = 200, 100 << 10
	body := make([]byte, files*1024+size)
	r := rand.NewChaCha8([32]byte{7})
	_, _ = r.Read(body)
	of := func(i int) []byte { return body[i*1024:][:size] }
	name := func(i int) string { return filepath.Join("train", strconv.Itoa(i%10), strconv.Itoa(i)) }
	c := up(t, 1, "1GiB", func(root string) {
		for i := range files {
			if err := os.MkdirAll(filepath.Dir(filepath.Join(root, name(i))), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(root, name(i)), of(i), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	})
	c.add()
	dir := c.mountAs("tree", "data")
	read := func() {
		t.Helper()
		for _, i := range rand.New(rand.NewPCG(3, 5)).Perm(files) {
			if got, err := os.ReadFile(filepath.Join(dir, name(i))); err != nil || !bytes.Equal(got, of(i)) {
				t.Fatalf("%s: %d bytes, %v", name(i), len(got), err)
			}
		}
	}
	before, reads := c.sentSoFar(), c.fuseReads()
	read()
	c.still()
	c.sentOnce(before, files*size)
	gets, second := len(c.proxy.Log())-before.gets, int(c.secondRequests()-before.second)
	if gets < files || gets > files+second {
		t.Errorf("%d requests for %d files, and the worker tells of %d second ones", gets, files, second)
	}
	if n := c.fuseReads() - reads; n != files {
		t.Errorf("%d READs for %d files", n, files)
	}
	hot := func() int64 {
		before := c.fuseRequests()
		read()
		return c.fuseRequests() - before
	}
	// Some machines drop pages of their own accord, hence one pass of three.
	if first, second, third := hot(), hot(), hot(); first != 0 && second != 0 && third != 0 {
		t.Errorf("hot passes over %d files cost %d, %d and %d requests", files, first, second, third)
	}
	c.must("umount", dir)
}

// What the kernel reads ahead is what the mount says, in either view, and in the worker's next
// life. With none a plainly mapped file that is read at random, of which nothing is here, brings what
// other random reads bring: blocks, but for the first windows.
func TestKernelReadAheadIsChosen(t *testing.T) {
	const size, reads = 512 << 20, 40
	c := up(t, 1, "1GiB", func(root string) { makeFiles(t, root, 0, 0, 1, size) })
	// Not through this process' proxy: a fault that waits for the store stops whoever waits for its thread.
	c.must("dataset", "add", "data", "s3://data", "--endpoint", c.getenv("STOKER_S3_ENDPOINT"), "--path-style")
	file, _ := listTree(t, filepath.Join(c.root, "data"))
	for _, kind := range viewKinds(t) {
		dirs := map[string]string{"64KiB": t.TempDir(), "0": t.TempDir()}
		for ahead, dir := range dirs {
			c.must("mount", "data", dir, "--view", kind, "--kernel-read-ahead", ahead)
		}
		for life := range 2 {
			if unix.Access("/sys/class/bdi", unix.W_OK) == nil {
				for ahead, dir := range dirs {
					if got := readAhead(t, dir); got != strings.TrimSuffix(ahead, "KiB") {
						t.Errorf("life %d, %s: the kernel reads %s KiB ahead, want %s", life, kind, got, ahead)
					}
				}
			}
			if life == 0 {
				c.kill("worker-1")
				c.dev("start", "worker-1", "--dir", c.dir)
				c.eventually("both are mounted again", func() bool { return len(c.workerStatus(1).Mounts) == 2 })
			}
		}
		offsets := offsetsIn(size, reads, 4096)
		before := c.readsOfWorker().UFSBytes
		if _, err := plainlyMappedReads(filepath.Join(dirs["0"], file[0]), offsets, 4096); err != nil {
			t.Fatal(err)
		}
		if got, most := c.readsOfWorker().UFSBytes-before, int64(reads*256<<10+12*4<<20); got > most && unix.Access("/sys/class/bdi", unix.W_OK) == nil {
			t.Errorf("%s: %d bytes came for %d reads of 4 KiB, want %d at most", kind, got, reads, most)
		}
		for _, dir := range dirs {
			c.must("umount", dir)
		}
		c.must("evict", "data", "--force")
	}
}
