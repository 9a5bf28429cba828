package worker

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"stoker.dev/internal/api"
	"stoker.dev/internal/testenv"
)

// What is read through a kernel view is in memory once: as pages of the view's files.
// The kernel reads past those of the shard.
func TestKernelViewIsInMemoryOnce(t *testing.T) {
	w := startWatched(t)
	if w.views.kernel.err != nil {
		testenv.Lacks(t, "%v", w.views.kernel.err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(w.views.kernel.dir, &fs); err != nil {
		t.Fatal(err)
	} else if fs.Type == unix.TMPFS_MAGIC {
		testenv.Lacks(t, "the cache folder is on tmpfs, whose files are pages")
	}
	body := bytes.Repeat([]byte("0123456789"), 200_000)
	w.ufs.Put("f", body)
	id := w.freeze(t)
	w.bringIn(t, id, "f")
	sh, ok := w.store.Get(w.opened(t, id).Manifest().Shard(0).ID)
	if !ok {
		t.Fatal("no shard")
	}
	defer sh.Release()
	shard := sh.File()
	if err := unix.Fdatasync(int(shard.Fd())); err != nil {
		t.Fatal(err)
	}
	if err := unix.Fadvise(int(shard.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		t.Fatal(err)
	}
	if n := testenv.CachedPages(t, shard); n != 0 {
		t.Fatalf("%d pages of the shard are in memory though they were dropped", n)
	}
	dir := t.TempDir()
	if _, err := w.views.Mount(t.Context(), 0, api.MountRequest{Dataset: "pets", Manifest: id, Dir: dir, View: "kernel"}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := w.views.Unmount(t.Context(), 0, dir, false); err != nil {
			t.Error(err)
		}
		w.afterViews(t)
	}()
	f, err := os.Open(filepath.Join(dir, "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got := make([]byte, len(body))
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, body) {
		t.Errorf("other bytes, %v", err)
	}
	// Some machines drop pages of their own accord: not all of the view's need be there.
	if view, beneath := testenv.CachedPages(t, f), testenv.CachedPages(t, shard); view == 0 || beneath != 0 {
		t.Errorf("%d pages of the view's file and %d of the shard are in memory, want all of %d and none", view, beneath, len(body)/os.Getpagesize())
	}
}
