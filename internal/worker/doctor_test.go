package worker

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"stoker.dev"
	"stoker.dev/cache/placement"
	"stoker.dev/internal/api"
	"stoker.dev/ufs/folder"
)

// silent is an index that does not answer.
type silent struct{ placement.Index }

func (silent) Workers(context.Context) ([]placement.Worker, error) {
	return nil, stoker.Errorf(stoker.KindTransient, "redis.workers", "", "connection refused")
}

func openWorker(t *testing.T, change func(*Options)) *Worker {
	t.Helper()
	dir := t.TempDir()
	objects, err := folder.Open(filepath.Join(dir, "store"))
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Dir: filepath.Join(dir, "cache"), CapacityBytes: 64 << 20, Objects: objects, Index: placement.NewMem(time.Now), Socket: filepath.Join(dir, "w.sock")}
	change(&o)
	w, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func byName(rep api.DoctorReport, name string) api.Check {
	i := slices.IndexFunc(rep.Checks, func(c api.Check) bool { return c.Name == name })
	if i < 0 {
		return api.Check{}
	}
	return rep.Checks[i]
}

// A running worker reports on itself over its socket, and leaves nothing behind
// in the cache folder or the store.
func TestDoctor(t *testing.T) {
	w := openWorker(t, func(*Options) {})
	ctx, cancel := context.WithCancel(t.Context())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- w.Run(ctx, func() { close(ready) }) }()
	<-ready
	before, err := os.ReadDir(w.o.Dir)
	if err != nil {
		t.Fatal(err)
	}
	n, err := api.NewNode(api.ClientOptions{URL: w.o.Socket})
	if err != nil {
		t.Fatal(err)
	}
	rep, err := n.Doctor(t.Context())
	if err != nil || rep.Role != "worker" || rep.ID != w.store.WorkerID() || time.Since(rep.Time).Abs() > time.Minute {
		t.Fatalf("%+v, %v", rep, err)
	}
	for name, part := range map[string]string{"cache-folder": "written and synced", "cache-space": "of 64.0 MiB used", "descriptors": "open", "index": "registered, 1 live in all", "manifest-store": "written, read and deleted"} {
		if c := byName(rep, name); c.State != api.CheckOK || !strings.Contains(c.Detail, part) {
			t.Errorf("%s: %+v", name, c)
		}
	}
	if byName(rep, "privilege").State == "" {
		t.Error("nothing is said of privileges")
	}
	if after, err := os.ReadDir(w.o.Dir); err != nil || len(after) != len(before) {
		t.Errorf("cache folder: %v before, %v after, %v", before, after, err)
	}
	if left, err := w.o.Objects.List(t.Context(), "doctor/"); err != nil || len(left) != 0 {
		t.Errorf("store: %v, %v", left, err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// What is broken is found, and says what to do.
func TestDoctorFindsWhatIsBroken(t *testing.T) {
	w := openWorker(t, func(o *Options) { o.CapacityBytes = 1 << 60; o.Index = silent{} })
	defer w.close()
	checks := api.Diagnose(t.Context(), api.CheckTimeout, w.probes())
	rep := api.DoctorReport{Checks: checks}
	for name, c := range map[string]struct{ state, part string }{
		"cache-space": {api.CheckWarn, "less than --capacity promises"}, "descriptors": {api.CheckWarn, "a full cache needs about"}, "index": {api.CheckFail, "connection refused"},
	} {
		if got := byName(rep, name); got.State != c.state || !strings.Contains(got.Detail, c.part) || got.Hint == "" {
			t.Errorf("%s: %+v", name, got)
		}
	}
	w.o.Index = placement.NewMem(time.Now)
	if got := w.checkIndex(t.Context()); got.State != api.CheckWarn || !strings.Contains(got.Detail, "does not list this worker") {
		t.Errorf("%+v", got)
	}
	if got := checkFolder(filepath.Join(t.TempDir(), "gone")); got.State != api.CheckFail || !strings.Contains(got.Detail, "cannot be written") {
		t.Errorf("%+v", got)
	}
}
