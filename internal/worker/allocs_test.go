//go:build !race

package worker // the race detector drops what is pooled

import (
	"bytes"
	"testing"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"

	"stoker.dev/planner/order"
)

// A READ of what is resident takes nothing from the heap, from the request until its
// answer is given back, in either view, sampled or not.
func TestWarmReadsAllocateNothing(t *testing.T) {
	w := startWatched(t)
	body := bytes.Repeat([]byte("0123456789"), 50_000)
	w.ufs.Put("f", body)
	id := w.freeze(t)
	w.bringIn(t, id, "f")
	set := w.opened(t, id)
	sampler, err := order.Parse("pytorch:seed=0,world=1")
	if err != nil {
		t.Fatal(err)
	}
	plain, sampled := &view{set: set}, &view{set: set, sampled: set.Sampled(sampler, nil)}
	defer sampled.sampled.Close()
	row, _ := set.Manifest().LookupPath("f")
	file, shard := uint64(row)+gofuse.FUSE_ROOT_ID, uint64(gofuse.FUSE_ROOT_ID+1)
	for name, x := range map[string]struct {
		fs   gofuse.RawFileSystem
		node uint64
	}{
		"tree": {w.views.treeOf(plain), file}, "tree, sampled": {w.views.treeOf(sampled), file}, "kernel": {w.views.shardsOf(plain), shard},
	} {
		in, buf := &gofuse.ReadIn{Offset: 4096}, make([]byte, 128<<10)
		in.NodeId = x.node
		if n := testing.AllocsPerRun(500, func() {
			a, status := x.fs.Read(nil, in, buf)
			if !status.Ok() {
				t.Fatal(status)
			}
			if got, status := a.Bytes(nil); !status.Ok() || a.Size() != len(buf) || !bytes.Equal(got, body[4096:4096+len(buf)]) {
				t.Fatal("other bytes")
			}
			a.Done()
		}); n != 0 {
			t.Errorf("%s view: %v allocations for a READ", name, n)
		}
	}
	settle(w.Worker)
}
