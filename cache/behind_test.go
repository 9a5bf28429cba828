package cache

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/internal/testenv"
)

// cachedBytes is how much the page cache has of a node's shard files.
func (n *node) cachedBytes(t *testing.T) (sum int) {
	t.Helper()
	err := filepath.WalkDir(n.storeDir(), func(path string, d fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".shard" {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		sum += testenv.CachedPages(t, f) * os.Getpagesize()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

// What one view has read of a large file leaves the page cache of the shards' files,
// when it was cold as well as from the disk; not what a job holds or another view may
// read, nor where pieces were read.
func TestPagesBehindAReader(t *testing.T) {
	const large, small, smallBytes = stoker.ExtentBytes + 3*window, 64, 100_000
	const whole, pieces = 2 * stoker.BlockBytes, 64 << 10
	for name, x := range map[string]struct {
		views  int
		leased bool
		read   int
		drops  bool
	}{
		"one view":  {1, false, whole, true},
		"two views": {2, false, whole, false},
		"a job":     {1, true, whole, false},
		"in pieces": {1, false, pieces, false},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, 1, 1<<30)
			var st unix.Statfs_t
			dir := c.nodes[0].storeDir()
			if err := unix.Statfs(dir, &st); err != nil || st.Type == unix.TMPFS_MAGIC {
				testenv.Lacks(t, "%s is in memory: its page cache is its disk (%v)", dir, err)
			}
			c.put("large", large, 1)
			for i := range small {
				c.put(string([]byte{'s', byte('0' + i/10), byte('0' + i%10)}), smallBytes, uint64(i))
			}
			id := c.freeze()
			n := c.nodes[0]
			s := n.open(t, id)
			if err := n.cache.Mounted(id, "test", x.views); err != nil {
				t.Fatal(err)
			}
			if x.leased {
				c.lease("job", id)
			}
			readAll := func() {
				t.Helper()
				got := make([]byte, x.read)
				for row := range manifest.Row(s.man.Rows()) {
					if s.man.Entry(row).Kind != manifest.File {
						continue
					}
					for off := int64(0); ; {
						k, err := s.ReadAt(context.Background(), row, got, off)
						if err != nil {
							t.Fatal(err)
						}
						if k == 0 {
							break
						}
						off += int64(k)
					}
				}
			}
			for round, pass := range []string{"cold", "from the disk"} {
				readAll()
				n.settle(t)
				waitFor(t, "all is sealed", func() bool {
					for n := range s.slots {
						if here, _ := s.unread(uint32(n)); !here {
							return false
						}
					}
					return true
				})
				if cached := n.cachedBytes(t); x.drops && cached > large/10+2*small*smallBytes || !x.drops && cached < large/2 {
					t.Errorf("%s, round %d: the page cache has %d bytes of files of %d", pass, round, cached, large+small*smallBytes)
				}
			}
		})
	}
}
