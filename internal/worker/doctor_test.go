package worker

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stoker.dev"
	"stoker.dev/cache/placement"
	"stoker.dev/cache/store"
	"stoker.dev/internal/api"
	"stoker.dev/internal/testenv"
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
	var log bytes.Buffer
	w := openWorker(t, func(o *Options) {
		o.CapacityBytes, o.Index, o.Log = 1<<60, silent{}, slog.New(slog.NewTextHandler(&log, nil))
	})
	defer w.close()
	if !strings.Contains(log.String(), "less than --capacity promises") { // at the start, too
		t.Errorf("the log says %s", log.String())
	}
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

// A cache folder that fails is told of: by doctor, by the worker's status and
// by a metric, and its capacity is not counted.
func TestDoctorNamesABadDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		testenv.Lacks(t, "only root can mount")
	}
	root := t.TempDir()
	bad, good := filepath.Join(root, "bad"), filepath.Join(root, "good")
	if err := errors.Join(os.Mkdir(bad, 0o700), unix.Mount("tmpfs", bad, "tmpfs", 0, "size=64m")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(bad, unix.MNT_DETACH) })
	w := openWorker(t, func(o *Options) {
		o.Dir, o.CapacityBytes = "", 0
		o.Folders = []store.Folder{{Dir: bad, CapacityBytes: 32 << 20}, {Dir: good, CapacityBytes: 64 << 20}}
	})
	defer w.close()
	if c := w.checkFolders(); c.State != api.CheckOK || !strings.Contains(c.Detail, bad) || !strings.Contains(c.Detail, good) {
		t.Errorf("%+v", c)
	}
	if c := w.self(); c.CapacityBytes != 96<<20 {
		t.Errorf("capacity %d of two folders", c.CapacityBytes)
	}
	if err := unix.Mount("tmpfs", bad, "tmpfs", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	w.store.Probe()
	if c := w.checkFolders(); c.State != api.CheckFail || !strings.Contains(c.Detail, bad+": out of service (readonly)") || c.Hint == "" {
		t.Errorf("%+v", c)
	}
	info, err := w.info(t.Context())
	if err != nil || info.CapacityBytes != 64<<20 || info.Disks[0].State != "readonly" || info.Disks[0].Reason == "" || info.Disks[1].State != "ok" {
		t.Errorf("%+v, %v", info, err)
	}
	var out bytes.Buffer
	rec := httptest.NewRecorder()
	w.metrics.Handler().ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if _, err := out.ReadFrom(rec.Body); err != nil || !strings.Contains(out.String(), `stoker_disks{state="readonly"} 1`) {
		t.Errorf("the metric does not say so: %v", err)
	}
}
