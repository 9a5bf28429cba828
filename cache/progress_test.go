package cache

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"stoker.dev"
	"stoker.dev/internal/api"
)

// 10,000 objects that cannot be had are told page by page, each once, in order,
// with its reason, and none is lost; after a restart the first 1,000 have one.
func TestFailuresArePaged(t *testing.T) {
	const gone = 10_000
	c := newCluster(t, 1, 1<<30)
	for i := range gone + 50 {
		c.ufs.Put(fmt.Sprintf("train/%05d", i), []byte("x"))
	}
	id := c.freeze()
	for i := range gone {
		c.ufs.Delete(fmt.Sprintf("train/%05d", i))
	}
	p := c.load(0, c.plan(id))
	if p.FailedObjects != gone || len(p.Failed) != maxFailures {
		t.Fatalf("%d failed, %d are in the last line of the stream", p.FailedObjects, len(p.Failed))
	}
	cache, after, seen := c.nodes[0].cache, "", []string{}
	for pages := 0; ; pages++ {
		page := cache.Failures(id, after, 700)
		if page.Total != gone || len(page.Failed) > 700 || pages > gone/700+1 {
			t.Fatalf("page %d: %d of %d", pages, len(page.Failed), page.Total)
		}
		for _, f := range page.Failed {
			if f.Kind != "notexist" || f.Reason == "" {
				t.Fatalf("%+v", f)
			}
			seen = append(seen, f.Path)
		}
		if after = page.Next; after == "" {
			break
		}
	}
	for i, path := range seen {
		if want := fmt.Sprintf("train/%05d", i); path != want {
			t.Fatalf("%d is %s", i, path)
		}
	}
	if len(seen) != gone {
		t.Errorf("%d were told", len(seen))
	}
	if page := cache.Failures(id, "train/09998", 10); len(page.Failed) != 1 || page.Next != "" {
		t.Errorf("the end: %+v", page)
	}
	if page := cache.Failures(stoker.ID{1}, "", 10); page.Failed == nil || len(page.Failed) != 0 {
		t.Errorf("of what is not known: %+v", page)
	}
	rep, err := cache.Verify(t.Context(), id, false)
	if err != nil || len(rep.Failed) != gone {
		t.Errorf("verify knows %d reasons, %v", len(rep.Failed), err)
	}
	held, err := cache.Holdings(t.Context())
	if err != nil || len(held) != 1 || held[0].Objects != 50 || held[0].Bytes != 50 || held[0].Load != nil {
		t.Errorf("%+v, %v", held, err)
	}
}

// A deep verification reads each block from the disk, tells how far it is, and
// counts what is right.
func TestDeepVerificationReadsEveryByte(t *testing.T) {
	c := newCluster(t, 1, 1<<30)
	want := c.fillUFS(3, 40, 70<<20)
	id := c.freeze()
	c.load(0, c.plan(id))
	cache := c.nodes[0].cache
	s, err := cache.Open(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	blocks := int64(0)
	for n := range uint32(s.man.Shards()) {
		blocks += int64(s.man.Shard(n).Blocks)
	}
	rep, err := cache.Verify(t.Context(), id, true)
	if err != nil || rep.ReadBlocks != blocks || rep.ReadBytes != total(want) {
		t.Fatalf("%d blocks, %d bytes of %d and %d: %v", rep.ReadBlocks, rep.ReadBytes, blocks, total(want), err)
	}
	if shallow, err := cache.Verify(t.Context(), id, false); err != nil || shallow.ReadBlocks != 0 {
		t.Errorf("%+v, %v", shallow, err)
	}
	reading := cache.checks.begin(s)
	_, _ = s.readAll(t.Context(), 0, reading)
	held, err := cache.Holdings(t.Context())
	if err != nil || held[0].Check == nil || held[0].Check.TotalBytes != total(want) || held[0].Check.Bytes == 0 || held[0].Check.Bytes >= total(want) {
		t.Errorf("in the middle: %+v, %v", held[0].Check, err)
	}
	cache.checks.end(id, reading)
	objects := int64(0)
	for _, body := range want {
		if len(body) > 0 { // an empty one is in no shard
			objects++
		}
	}
	if held, _ := cache.Holdings(t.Context()); held[0].Check != nil || held[0].Objects != objects {
		t.Errorf("at the end: %+v", held[0])
	}
	c.damage(t)
	rep, err = cache.Verify(t.Context(), id, true)
	bad := slices.DeleteFunc(rep.Shards, func(s api.ShardReport) bool { return len(s.Corrupt) == 0 })
	if err != nil || len(bad) != 1 || len(bad[0].Corrupt) != 1 || rep.ReadBlocks != blocks-1 {
		t.Errorf("after one bit: %+v, %d of %d blocks, %v", bad, rep.ReadBlocks, blocks, err)
	}
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if _, err := cache.Verify(ctx, id, true); err == nil {
		t.Error("one that was given up says that it is done")
	}
}

// damage flips a bit of a shard file's first block, past the page cache.
func (c *cluster) damage(t *testing.T) {
	t.Helper()
	var file string
	err := filepath.WalkDir(c.nodes[0].storeDir(), func(path string, d os.DirEntry, err error) error {
		if err == nil && strings.Contains(path, "shards") && !d.IsDir() && file == "" {
			if fi, ierr := d.Info(); ierr == nil && fi.Size() > 1<<20 {
				file = path
			}
		}
		return err
	})
	if err != nil || file == "" {
		t.Fatal(file, err)
	}
	if err := os.Chmod(file, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err = f.ReadAt(b, 10); err == nil {
		b[0] ^= 1
		_, err = f.WriteAt(b, 10)
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		t.Fatal(err)
	}
}
