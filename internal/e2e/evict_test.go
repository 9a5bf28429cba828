package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A dataset's --ttl frees its data on a real worker when nobody uses it, and
// nobody else's; never before its end, and not while somebody holds it. It comes
// again when it is read.
func TestTTLFreesWhatNobodyUses(t *testing.T) {
	c := up(t, 1, "256MiB", func(root string) {
		makeFiles(t, filepath.Join(root, "a"), 50, 100<<10, 0, 0)
		makeFiles(t, filepath.Join(root, "b"), 50, 100<<10, 0, 0)
	})
	view := filepath.Join(t.TempDir(), "view")
	if err := os.Mkdir(view, 0o755); err != nil {
		t.Fatal(err)
	}
	read := func(name string) { // by a view, which leaves no grace behind
		t.Helper()
		c.must("mount", "set-"+name, view)
		sameTree(t, filepath.Join(c.root, "data", name), view)
	}
	for name, ttl := range map[string]string{"a": "2s", "b": "never"} {
		c.must("dataset", "add", "set-"+name, "s3://data/"+name, "--endpoint", c.proxy.URL(), "--path-style", "--ttl", ttl)
		read(name)
		c.must("umount", view)
	}
	gone := func() bool { return c.detail("dataset", "show", "set-a").ResidentBytes == 0 }
	c.eventually("data that nobody uses has gone", gone)
	if d := c.detail("dataset", "show", "set-b"); d.ResidentBytes != d.Bytes || d.TTLSeconds != -1 {
		t.Errorf("of the other dataset %d of %d bytes are left; %+v", d.ResidentBytes, d.Bytes, d.Eviction)
	}
	if d := c.detail("dataset", "show", "set-a"); d.TTLSeconds != 2 || len(d.Holders) != 0 {
		t.Errorf("of %+v", d)
	}
	read("a")
	held := time.Now()
	c.eventually("the view has been there for more than twice the time to live", func() bool { return time.Since(held) > 5*time.Second })
	if d := c.detail("dataset", "show", "set-a"); d.ResidentBytes != d.Bytes {
		t.Errorf("of a mounted dataset %d of %d bytes are left", d.ResidentBytes, d.Bytes)
	}
	out := c.must("dataset", "set", "set-a", "--ttl", "default", "--evict", "lfu")
	if !strings.Contains(out, "eviction") || !strings.Contains(out, "lfu") {
		t.Errorf("set says\n%s", out)
	}
	c.must("umount", view)
	free := time.Now()
	c.eventually("nobody has held it for more than what was its time to live", func() bool { return time.Since(free) > 4*time.Second })
	if d := c.detail("dataset", "show", "set-a"); d.ResidentBytes != d.Bytes || d.Evict != "lfu" || d.TTLSeconds != 0 {
		t.Errorf("without a time to live %d of %d bytes are left; %+v", d.ResidentBytes, d.Bytes, d.Eviction)
	}
	c.must("dataset", "set", "set-a", "--ttl", "2s")
	c.eventually("it has gone again", gone)
}

// With --evict lfu the popular files of a mounted dataset larger than the cache
// come to be here, whatever came first; with keep what came first stays, and the
// popular ones are fetched each time. Every byte is right.
func TestEvictModesOfADataset(t *testing.T) {
	const files, size = 8, 50 << 20 // a shard each, of which three or four fit
	c := up(t, 1, "220MiB", func(root string) { makeFiles(t, root, 0, 1, files, size) })
	c.must("dataset", "add", "data", "s3://data", "--endpoint", c.proxy.URL(), "--path-style", "--evict", "keep")
	view := filepath.Join(t.TempDir(), "view")
	if err := os.Mkdir(view, 0o755); err != nil {
		t.Fatal(err)
	}
	mount := func() { c.must("mount", "data", view) } // a new view has nothing in the page cache
	read := func(n int) {
		t.Helper()
		name := fmt.Sprintf("shards/part-%02d.tar", n)
		want, err := digest(filepath.Join(c.root, "data", name))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := digest(filepath.Join(view, name)); err != nil || got != want {
			t.Fatalf("%s: %v, or it differs", name, err)
		}
	}
	popular := func() (fetched int64) { // the last file, again and again
		for range 4 {
			c.must("umount", view)
			mount()
			before := c.proxy.Bytes()
			read(files - 1)
			fetched = c.proxy.Bytes() - before
		}
		return fetched
	}
	mount()
	for n := range files - 1 {
		read(n)
	}
	if got := popular(); got < size/2 {
		t.Errorf("under keep only %d bytes were fetched of a file for which there is no space", got)
	}
	c.must("dataset", "set", "data", "--evict", "lfu")
	c.eventually("the popular file is here", func() bool { return popular() == 0 })
}
