package worker

import (
	"context"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"stoker.dev/internal/api"
	"stoker.dev/internal/testenv"
	"stoker.dev/ufs"
	"stoker.dev/ufs/memufs"
)

// hungUFS hangs while it is told to, until its caller gives up.
type hungUFS struct {
	*memufs.FS
	hangs atomic.Bool
}

func (f *hungUFS) Open(ctx context.Context, key string, want ufs.Version, off, length int64) (io.ReadCloser, error) {
	if f.hangs.Load() {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return f.FS.Open(ctx, key, want, off, length)
}

// A store that hangs does not hang readers for ever, in either view: EIO at the
// deadline, and what is read once it answers again is right.
func TestHungFill(t *testing.T) {
	for _, view := range []string{"tree", "kernel"} {
		t.Run(view, func(t *testing.T) {
			w := startWatched(t)
			if view == "kernel" && w.views.kernel.err != nil {
				testenv.Lacks(t, "%v", w.views.kernel.err)
			}
			hung := &hungUFS{FS: w.ufs}
			w.mounts.Register("mem", func(context.Context, string, ufs.Location) (ufs.FS, error) { return hung, nil })
			w.views.deadline = 300 * time.Millisecond
			w.ufs.Put("f", []byte("right"))
			dir := t.TempDir()
			if _, err := w.views.Mount(t.Context(), 0, api.MountRequest{Dataset: "pets", Manifest: w.freeze(t), Dir: dir, View: view}); err != nil {
				t.Fatal(err)
			}
			hung.hangs.Store(true)
			out, err := exec.Command("cat", filepath.Join(dir, "f")).CombinedOutput()
			if err == nil || !strings.Contains(string(out), "Input/output error") {
				t.Errorf("while it hangs: %q, %v", out, err)
			}
			hung.hangs.Store(false)
			if out, err := exec.Command("cat", filepath.Join(dir, "f")).CombinedOutput(); err != nil || string(out) != "right" {
				t.Errorf("afterwards: %q, %v", out, err)
			}
			if err := w.views.Unmount(t.Context(), 0, dir, false); err != nil {
				t.Error(err)
			}
			w.afterViews(t)
		})
	}
}
