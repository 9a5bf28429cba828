package worker

import (
	"os/exec"
	"path/filepath"
	"testing"

	"stoker.dev/internal/api"
)

// A view that was unmounted holds its data no more: who evicts next is not refused. What
// was read through it stays counted.
func TestUnmountLetsGo(t *testing.T) {
	w := startWatched(t)
	w.ufs.Put("f", []byte("x"))
	id := w.freeze(t)
	for i := range int64(30) {
		dir := t.TempDir()
		if _, err := w.views.Mount(t.Context(), 0, api.MountRequest{Dataset: "pets", Manifest: id, Dir: dir, View: "tree"}); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("cat", filepath.Join(dir, "f")).Output(); err != nil || string(out) != "x" { // in another process: else it may wait for itself
			t.Errorf("%q, %v", out, err)
		}
		if err := w.views.Unmount(t.Context(), 0, dir, false); err != nil {
			t.Fatal(err)
		}
		if _, reads := w.views.List(); reads != i+1 {
			t.Errorf("%d READs are counted after %d", reads, i+1)
		}
		if _, err := w.cache.Evict(t.Context(), id, false); err != nil {
			t.Fatal(err)
		}
	}
	w.afterViews(t)
}
