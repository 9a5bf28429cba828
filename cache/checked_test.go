package cache

import (
	"strings"
	"testing"

	"stoker.dev/cache/store"
)

// local asks what Local says of a dataset.
func (n *node) local(t *testing.T, s *Set, most int64) string {
	t.Helper()
	why, err := s.Local(t.Context(), most)
	if err != nil {
		t.Fatal(err)
	}
	return why
}

// A dataset may be read past the worker when all of it is sealed here and its bytes
// were written or read in this life; the next one reads it again, up to a
// limit, and gives up what has gone wrong meanwhile.
func TestLocalIsWhatWasRead(t *testing.T) {
	c := newCluster(t, 1, 1<<30)
	want := c.fillUFS(43, 60, 0)
	id := c.freeze()
	open := func() *Set {
		s, err := c.nodes[0].cache.Open(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		return s
	}
	s := open()
	if why := c.nodes[0].local(t, s, 1<<40); !strings.Contains(why, "1 of 1 shards are not on") {
		t.Errorf("nothing is here: %q", why)
	}
	c.load(0, c.plan(id))
	if why := c.nodes[0].local(t, s, 0); why != "" {
		t.Errorf("just written: %q", why)
	}

	again := func() {
		t.Helper()
		n := c.nodes[0]
		dir := n.storeDir()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if err := n.cache.Close(); err != nil {
			t.Fatal(err)
		}
		if err := n.store.Close(); err != nil {
			t.Fatal(err)
		}
		c.nodes = nil
		c.addFolders(0, store.Folder{Dir: dir, CapacityBytes: 1 << 30})
		s = open()
	}
	again()
	if why := c.nodes[0].local(t, s, total(want)-1); !strings.Contains(why, "not read since the worker started") {
		t.Errorf("more than may be read at once: %q", why)
	}
	if why := c.nodes[0].local(t, s, total(want)); why != "" {
		t.Errorf("read now: %q", why)
	}
	if why := c.nodes[0].local(t, s, 0); why != "" {
		t.Errorf("and remembered: %q", why)
	}

	again()
	onePass(t, c.nodes[0], 1<<40)
	if why := c.nodes[0].local(t, s, 0); why != "" {
		t.Errorf("a scrub has read it: %q", why)
	}

	again()
	spoil(t, c.nodes[0])
	if why := c.nodes[0].local(t, s, 1<<40); !strings.Contains(why, "wrong bytes were found in shard 0") {
		t.Errorf("a byte has changed on the disk: %q", why)
	}
	if why := c.nodes[0].local(t, s, 1<<40); !strings.Contains(why, "not on this worker's disks") {
		t.Errorf("given up: %q", why)
	}
	c.readAll(0, id, want)
}
