package worker

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"stoker.dev"
	"stoker.dev/cache"
	"stoker.dev/internal/api"
	"stoker.dev/internal/testenv"
	"stoker.dev/ufs"
)

// show mounts a view and returns what find(1) says of it: names, kinds, modes,
// times, owners, link targets, and the sizes of all but folders.
func (w *watchedWorker) show(t *testing.T, id stoker.ID, kind string) (dir, said string) {
	t.Helper()
	dir = t.TempDir()
	info, err := w.views.Mount(t.Context(), 0, api.MountRequest{Dataset: "pets", Manifest: id, Dir: dir, View: kind})
	if err != nil {
		t.Fatal(err)
	}
	if info.View != kind {
		t.Errorf("is a %s view, want %s", info.View, kind)
	}
	t.Cleanup(func() {
		if err := w.views.Unmount(t.Context(), 0, dir, true); err != nil {
			t.Error(err)
		}
	})
	out, err := exec.Command("find", dir, "-mindepth", "1", "(", "-type", "d", "-printf", `%P %y %m %U:%G %n\0`, "-o", "-printf", `%P %y %m %U:%G %n %s %T@ %l\0`, ")").Output()
	if err != nil {
		t.Fatal(err)
	}
	return dir, string(out)
}

// Both kinds of views show the same names in the same order, with the same
// attributes and links, and the same bytes.
func TestViewsAreAlike(t *testing.T) {
	w := startWatched(t)
	if w.views.kernel.err != nil {
		testenv.Lacks(t, "%v", w.views.kernel.err)
	}
	mod := time.Unix(1_650_000_000, 123_000_000)
	for i, name := range []string{"a/b/c", "a/b/run.sh", "empty", "odd/\xff", "odd/ü\n", "odd/!", "odd/.h", "odd/..x", "odd/" + strings.Repeat("n", 255), "z"} {
		body := bytes.Repeat([]byte(name), 1000*i%7000)
		if name == "empty" {
			body = nil
		}
		w.ufs.PutObject(ufs.Object{Key: name, Exec: strings.HasSuffix(name, ".sh"), Version: ufs.Version{ModTime: mod.Add(time.Duration(i) * time.Hour)}}, body)
	}
	for name, target := range map[string]string{"link": "a/b/c", "a/up": "../z", "dead": strings.Repeat("x", 4090), "dir": "a"} {
		w.ufs.PutObject(ufs.Object{Key: name, Link: target, Version: ufs.Version{ModTime: mod}}, nil)
	}
	for i := range 700 { // a folder of more than one block
		w.ufs.PutAt(fmt.Sprintf("many/file-%04d", i), []byte{byte(i)}, mod)
	}
	id := w.freeze(t)
	treeDir, tree := w.show(t, id, "tree")
	kernelDir, kernel := w.show(t, id, "kernel")
	if tree != kernel || strings.Count(tree, "\x00") < 700 {
		t.Errorf("the tree view shows\n%q\nthe kernel view\n%q", tree, kernel)
	}
	if out, err := exec.Command("diff", "-r", "--no-dereference", treeDir, kernelDir).CombinedOutput(); err != nil {
		t.Errorf("%s: %v", out, err)
	}
}

// settle waits until fills have ended: who has read need not wait for the disk.
func settle(w *Worker) {
	for {
		if _, flights := w.cache.Running(); flights == 0 {
			return
		}
		runtime.Gosched()
	}
}

// opened is an open dataset, which is closed when the test ends.
func (w *watchedWorker) opened(t *testing.T, id stoker.ID) *cache.Set {
	t.Helper()
	set, err := w.cache.Open(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = set.Close() })
	return set
}

// bringIn reads a file of a dataset and seals the shard that it lies in.
func (w *watchedWorker) bringIn(t *testing.T, id stoker.ID, path string) {
	t.Helper()
	set, err := w.cache.Open(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	row, _ := set.Manifest().LookupPath(path)
	if _, err := set.ReadAt(t.Context(), row, make([]byte, set.Manifest().Entry(row).Bytes), 0); err != nil {
		t.Fatal(err)
	}
	settle(w.Worker)
	sh, ok := w.store.Get(set.Manifest().Shard(0).ID)
	if !ok {
		t.Fatal("no shard")
	}
	err = sh.Seal()
	sh.Release()
	if err := errors.Join(err, set.Close()); err != nil {
		t.Fatal(err)
	}
}

// auto is a tree view while something is missing, a kernel view once all is here
// and known to be right, and says why. Later lives of the worker keep to it.
func TestAutoView(t *testing.T) {
	w := startWatched(t)
	if w.views.kernel.err != nil {
		testenv.Lacks(t, "%v", w.views.kernel.err)
	}
	w.ufs.Put("f", bytes.Repeat([]byte("0123456789"), 50_000))
	id := w.freeze(t)
	mount := func(kind string) (m api.MountInfo) {
		t.Helper()
		m, err := w.views.Mount(t.Context(), 0, api.MountRequest{Dataset: "pets", Manifest: id, Dir: t.TempDir(), View: kind, Holder: "job"})
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	cold := mount("auto")
	if cold.View != "tree" || !strings.Contains(cold.Why, "1 of 1 shards are not on this worker's disks") {
		t.Errorf("cold: %s, %q", cold.View, cold.Why)
	}
	w.bringIn(t, id, "f")
	warm, asked := mount(""), mount("tree")
	if warm.View != "kernel" || !strings.Contains(warm.Why, "read or written since it started") {
		t.Errorf("all is here: %s, %q", warm.View, warm.Why)
	}
	if asked.View != "tree" || asked.Why != "asked for" {
		t.Errorf("asked for: %s, %q", asked.View, asked.Why)
	}
	want := map[string]api.MountInfo{cold.Dir: cold, warm.Dir: warm, asked.Dir: asked}
	for _, life := range []string{"second", "third"} {
		w = w.again(t)
		open, _ := w.views.List()
		for len(open) < len(want) { // they are mounted again while it answers already
			open, _ = w.views.List()
		}
		for _, m := range open {
			if m.View != want[m.Dir].View || m.Why != want[m.Dir].Why {
				t.Errorf("%s life: %+v, was %+v", life, m, want[m.Dir])
			}
		}
	}
	w.views.kernel.err = stoker.Errorf(stoker.KindInvalid, "mount", "erofs", "the kernel is too old")
	if m := mount("auto"); m.View != "tree" || !strings.Contains(m.Why, "there are no kernel views here") {
		t.Errorf("without kernel views: %s, %q", m.View, m.Why)
	}
	open, _ := w.views.List()
	for _, m := range open {
		if err := w.views.Unmount(t.Context(), 0, m.Dir, true); err != nil {
			t.Error(err)
		}
	}
	w.afterViews(t)
}

// doctor is the worker's report on itself.
func (w *watchedWorker) doctor(t *testing.T) (report api.DoctorReport) {
	t.Helper()
	if err := json.Unmarshal(w.do(t, "GET", "/v1/doctor", nil), &report); err != nil {
		t.Fatal(err)
	}
	return report
}

// What a kernel view cannot be made for is a tree view, and says why; asked for
// by name it is an error. A forced failure stands for an older kernel.
func TestFallbackToTheTreeView(t *testing.T) {
	w := startWatched(t)
	if c := byName(w.doctor(t), "kernel-view"); w.views.kernel.err == nil && (c.State != api.CheckOK || !strings.Contains(c.Detail, "mounted and read")) {
		t.Errorf("doctor, with kernel views: %+v", c)
	}
	w.ufs.Put("f", []byte("x"))
	id := w.freeze(t)
	w.views.kernel.err = stoker.Errorf(stoker.KindInvalid, "mount", "erofs", "the kernel is too old")
	_, err := w.views.Mount(t.Context(), 0, api.MountRequest{Dataset: "pets", Manifest: id, Dir: t.TempDir(), View: "kernel"})
	if stoker.KindOf(err) != stoker.KindInvalid || !strings.Contains(err.Error(), "too old") {
		t.Errorf("by name: %v", err)
	}
	dir := t.TempDir()
	info, err := w.views.Mount(t.Context(), 0, api.MountRequest{Dataset: "pets", Manifest: id, Dir: dir, View: "auto"})
	if err != nil || info.View != "tree" {
		t.Fatalf("auto: %+v, %v", info, err)
	}
	if err := w.views.Unmount(t.Context(), 0, dir, false); err != nil {
		t.Error(err)
	}
	if c := byName(w.doctor(t), "kernel-view"); c.State != api.CheckOK || !strings.Contains(c.Detail, "not here") || !strings.Contains(c.Detail, "too old") {
		t.Errorf("doctor, without: %+v", c)
	}
	w.afterViews(t)
}

// A kernel view holds its shards: their space counts until it has ended, also
// if they were evicted by force. Nothing of its image stays in the cache folder.
func TestKernelViewHoldsItsShards(t *testing.T) {
	w := startWatched(t)
	if w.views.kernel.err != nil {
		testenv.Lacks(t, "%v", w.views.kernel.err)
	}
	body := bytes.Repeat([]byte("0123456789"), 50_000)
	w.ufs.Put("f", body)
	id := w.freeze(t)
	w.bringIn(t, id, "f")
	dir := t.TempDir()
	if _, err := w.views.Mount(t.Context(), 0, api.MountRequest{Dataset: "pets", Manifest: id, Dir: dir, View: "kernel"}); err != nil {
		t.Fatal(err)
	}
	if n := w.store.Usage().ReservedBytes; n < 4096 || n%4096 != 0 {
		t.Errorf("%d bytes are promised for the image", n)
	}
	used := w.store.Usage().UsedBytes
	if _, err := w.cache.Evict(t.Context(), id, false); stoker.KindOf(err) != stoker.KindHeld {
		t.Errorf("evicted beneath a view: %v", err)
	}
	if _, err := w.cache.Evict(t.Context(), id, true); err != nil {
		t.Error(err)
	}
	if now := w.store.Usage().UsedBytes; now < used-100_000 {
		t.Errorf("%d bytes are used after the eviction, %d before: the kernel has the file still", now, used)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "f")); err != nil || !bytes.Equal(got, body) {
		t.Errorf("after the eviction: %d bytes, %v", len(got), err)
	}
	if _, reads := w.views.List(); reads != 0 {
		t.Errorf("%d READs came to the worker", reads)
	}
	if err := w.views.Unmount(t.Context(), 0, dir, false); err != nil {
		t.Error(err)
	}
	w.afterViews(t)
	if now := w.store.Usage().UsedBytes; now > used-400_000 {
		t.Errorf("%d bytes are used after the view, %d during it", now, used)
	}
	if n := w.store.Usage().ReservedBytes; n != 0 {
		t.Errorf("%d bytes are promised after the view", n)
	}
	if left, err := os.ReadDir(w.views.kernel.dir); err != nil || len(left) > 0 {
		t.Errorf("images left: %v, %v", left, err)
	}
}

// A kernel view whose image does not fit is refused, and leaves nothing; the last
// life's promises for images end with the next one.
func TestImagesCount(t *testing.T) {
	w := startWatched(t)
	if w.views.kernel.err != nil {
		testenv.Lacks(t, "%v", w.views.kernel.err)
	}
	w.ufs.Put("f", []byte("x"))
	id := w.freeze(t)
	u := w.store.Usage()
	if err := w.store.Reserve("all", w.store.FreeBytes(0)); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if _, err := w.views.Mount(t.Context(), 0, api.MountRequest{Dataset: "pets", Manifest: id, Dir: dir, View: "kernel"}); stoker.KindOf(err) != stoker.KindNoSpace {
		t.Errorf("mounted without room for its image: %v", err)
	}
	if err := errors.Join(w.store.Unreserve("all"), w.store.Reserve(imagePromise+"old", 1<<20), w.store.Reserve("load", 1<<20), dropImagePromises(w.store)); err != nil {
		t.Fatal(err)
	}
	if now := w.store.Reservations(); len(now) != 1 || now["load"] != 1<<20 {
		t.Errorf("promised: %v; at first %+v", now, u)
	}
	if left, err := os.ReadDir(w.views.kernel.dir); err != nil || len(left) > 0 {
		t.Errorf("images left: %v, %v", left, err)
	}
}
