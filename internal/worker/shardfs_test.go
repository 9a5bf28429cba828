package worker

import (
	"bytes"
	"testing"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"

	"stoker.dev/cache/manifest"
)

// A READ of a shard has its members' bytes, and zeros before, between and behind them, whatever stood in the
// buffer before: go-fuse uses it again.
func TestShardsHaveZerosBetweenFiles(t *testing.T) {
	w := startWatched(t)
	bodies := map[string][]byte{"a": bytes.Repeat([]byte("a"), 5000), "b": bytes.Repeat([]byte("b"), 1), "c": bytes.Repeat([]byte("c"), 300_001)}
	for name, body := range bodies {
		w.ufs.Put(name, body)
	}
	id := w.freeze(t)
	set := w.opened(t, id)
	man := set.Manifest()
	size := int(man.Shard(0).Bytes)
	want := make([]byte, size)
	for name, body := range bodies {
		row, _ := man.LookupPath(name)
		e := man.Entry(row)
		if e.Kind != manifest.File || e.Shard != 0 {
			t.Fatalf("%s: %+v", name, e)
		}
		copy(want[e.Off:], body)
	}
	shards := w.views.shardsOf(&view{set: set})
	for _, at := range [][2]int{{0, size}, {0, 4096}, {4096, 8192}, {4999, 8193}, {5000, 8192}, {8193, 8200}, {8000, size}, {size - 1, size}} {
		in, buf := &gofuse.ReadIn{Offset: uint64(at[0])}, bytes.Repeat([]byte{0xee}, at[1]-at[0])
		in.NodeId = gofuse.FUSE_ROOT_ID + 1
		a, status := shards.Read(nil, in, buf)
		if !status.Ok() {
			t.Fatal(status)
		}
		if got, _ := a.Bytes(nil); !bytes.Equal(got, want[at[0]:at[1]]) {
			t.Errorf("bytes %d to %d are others", at[0], at[1])
		}
		a.Done()
	}
	settle(w.Worker)
}
