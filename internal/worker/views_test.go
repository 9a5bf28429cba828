package worker

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"testing/synctest"

	"stoker.dev"
	"stoker.dev/internal/api"
)

// untilMounted is a request whose caller goes away in the moment in which
// something is mounted on a folder.
type untilMounted struct {
	context.Context
	t   *testing.T
	dir string
}

func (c untilMounted) Err() error {
	table, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		c.t.Error(err)
	}
	if strings.Contains(string(table), " "+c.dir+" ") {
		return context.Canceled
	}
	return nil
}

// Nothing stays mounted for a caller who has gone while it was.
func TestMountOfACallerWhoHasGone(t *testing.T) {
	w, dir := startWatched(t), t.TempDir()
	w.ufs.Put("f", []byte("x"))
	ctx := untilMounted{t.Context(), t, dir}
	_, err := w.views.Mount(ctx, 0, api.MountRequest{Dataset: "pets", Manifest: w.freeze(t), Dir: dir, Holder: "j1"})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if open, _ := w.views.List(); len(open) != 0 || ctx.Err() != nil {
		t.Errorf("views %+v, mounted: %v", open, ctx.Err() != nil)
	}
	w.afterViews(t)
}

// An unmount that comes while its view is being made waits for it.
func TestUnmountWaitsForItsMount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := &views{open: map[string]*view{}, making: map[string]chan struct{}{}}
		if err := v.claimDir("/d"); err != nil {
			t.Fatal(err)
		}
		if err := v.claimDir("/d"); stoker.KindOf(err) != stoker.KindHeld {
			t.Errorf("taken twice: %v", err)
		}
		patient, impatient := make(chan error, 1), make(chan error, 1)
		ctx, cancel := context.WithCancel(t.Context())
		go func() { patient <- v.Unmount(t.Context(), 0, "/d", true) }()
		go func() { impatient <- v.Unmount(ctx, 0, "/d", true) }()
		cancel()
		synctest.Wait()
		if err := <-impatient; stoker.KindOf(err) != stoker.KindBusy {
			t.Errorf("whose request ended: %v", err)
		}
		select {
		case err := <-patient:
			t.Fatalf("did not wait: %v", err)
		default:
		}
		v.mu.Lock()
		close(v.making["/d"]) // it could not be made
		delete(v.making, "/d")
		v.mu.Unlock()
		if err := <-patient; stoker.KindOf(err) != stoker.KindNotExist {
			t.Errorf("%v", err)
		}
	})
}
