package worker

import (
	"os"
	"path/filepath"
	"testing"

	"stoker.dev/internal/api"
)

// A view that was unmounted holds its data no more: who evicts next is not refused.
func TestUnmountLetsGo(t *testing.T) {
	w := startWatched(t)
	w.ufs.Put("f", []byte("x"))
	id := w.freeze(t)
	for range 30 {
		dir := t.TempDir()
		if _, err := w.views.Mount(t.Context(), 0, api.MountRequest{Dataset: "pets", Manifest: id, Dir: dir, View: "tree"}); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(dir, "f")); err != nil {
			t.Error(err)
		}
		if err := w.views.Unmount(t.Context(), 0, dir, false); err != nil {
			t.Fatal(err)
		}
		if _, err := w.cache.Evict(t.Context(), id, false); err != nil {
			t.Fatal(err)
		}
	}
	w.afterViews(t)
}
