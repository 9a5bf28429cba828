package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"stoker.dev/internal/api"
)

// The whole line: 20,000 small and 8 large objects are preloaded on three
// workers, each byte is fetched exactly once, and every file read through
// every worker's mount equals its source without one more request.
func TestPreloadThenReadEverywhere(t *testing.T) {
	small, largeBytes := 20_000, int64(256<<20)
	var bytes int64
	c := up(t, 3, "4GiB", func(root string) { bytes = makeFiles(t, root, small, 24<<10, 8, largeBytes) })
	c.add()
	cert := c.certificate(c.must("preload", "data", "--wait", "-o", "json"))
	if cert.State != "Ready" || cert.Objects != int64(small)+8 || cert.ResidentObjects != cert.Objects ||
		cert.Bytes != bytes || cert.ResidentBytes != bytes || cert.UFSBytes != bytes || len(cert.Failed) != 0 {
		t.Fatalf("certificate %+v, dataset has %d bytes", cert, bytes)
	}
	if got := c.proxy.Bytes(); got != bytes {
		t.Fatalf("the S3 side sent %d bytes, the dataset has %d", got, bytes)
	}
	for key, n := range c.proxy.BytesByKey() {
		fi, err := os.Stat(filepath.Join(c.root, strings.TrimPrefix(key, "/")))
		if err != nil || fi.Size() != n {
			t.Fatalf("%s: %d bytes were fetched (%v)", key, n, err)
		}
	}
	for w := 1; w <= 3; w++ {
		dir := t.TempDir()
		if r := c.stokerAt(w, "mount", "data", dir); r.code != 0 {
			t.Fatalf("mount on worker %d: exit %d %s", w, r.code, r.stderr)
		}
		if n := sameTree(t, filepath.Join(c.root, "data"), dir); n != small+8 {
			t.Fatalf("%d files compared", n)
		}
		if r := c.stokerAt(w, "umount", dir); r.code != 0 {
			t.Fatalf("umount on worker %d: exit %d %s", w, r.code, r.stderr)
		}
	}
	if got := c.proxy.Bytes(); got != bytes {
		t.Errorf("reading through the mounts fetched %d bytes more", got-bytes)
	}
	verified := c.certificate(c.must("verify", "data", "--deep", "-o", "json"))
	if verified.State != "Ready" || verified.ResidentBytes != bytes {
		t.Errorf("verify: %+v", verified)
	}
}

// One percent deleted or changed between listing and load: exit 4 and exactly
// those objects, never Ready.
func TestPreloadNamesWhatIsMissing(t *testing.T) {
	const files = 1000
	c := up(t, 3, "1GiB", func(root string) { makeFiles(t, root, files, 8<<10, 0, 0) })
	c.add()
	want := map[string]string{}
	for i := 0; i < files; i += 100 {
		rel := fmt.Sprintf("train/n%03d/img_%06d.jpg", i%200, i)
		p := filepath.Join(c.root, "data", rel)
		if i%200 == 0 {
			want[rel] = "notexist"
			if err := os.Remove(p); err != nil {
				t.Fatal(err)
			}
			continue
		}
		want[rel] = "stale"
		if err := os.WriteFile(p, []byte("another content, of another length: "+strings.Repeat("x", 9000)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range [][]string{{"preload", "data", "--wait", "-o", "json"}, {"verify", "data", "-o", "json"}} {
		r := c.stoker(args...)
		if r.code != 4 {
			t.Fatalf("stoker %v: exit %d, want 4\n%s%s", args, r.code, r.out, r.stderr)
		}
		cert := c.certificate(r.out)
		if cert.State != "Failed" || len(cert.Failed) != len(want) || cert.ResidentObjects != files-int64(len(want)) {
			t.Fatalf("stoker %v: %+v", args, cert)
		}
		for _, f := range cert.Failed {
			if want[f.Path] != f.Kind {
				t.Errorf("stoker %v: %s is %s, want %q", args, f.Path, f.Kind, want[f.Path])
			}
		}
	}
}

// Twenty submits of one dataset at once are one preload; each runs its
// command with the dataset mounted, passes its exit code on and leaves
// nothing behind.
func TestTwentySubmitsOnePreload(t *testing.T) {
	var bytes int64
	c := up(t, 3, "1GiB", func(root string) { bytes = makeFiles(t, root, 500, 64<<10, 0, 0) })
	c.add()
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			r := c.stokerAt(i%3+1, "submit", "--dataset", "data", "--", "sh", "-c",
				`test -n "$STOKER_JOB" && test $(find "$STOKER_MOUNT" -type f | wc -l) = 500 && cat $(find "$STOKER_MOUNT" -type f) | wc -c && exit 7`)
			if strings.Contains(r.stderr, "degraded") {
				t.Errorf("submit %d did not wait for its data: %s", i, r.stderr)
			}
			if r.code != 7 || strings.TrimSpace(r.out) != fmt.Sprint(bytes) || !strings.HasPrefix(r.stderr, "job ") {
				t.Errorf("submit %d: exit %d, out %q, stderr %s", i, r.code, r.out, r.stderr)
			}
		})
	}
	wg.Wait()
	if got := c.proxy.Bytes(); got != bytes {
		t.Errorf("the S3 side sent %d bytes for 20 jobs, the dataset has %d", got, bytes)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil || strings.Contains(string(mounts), c.dir) {
		t.Errorf("mounts are left behind (%v)", err)
	}
	var st api.Status
	if err := json.Unmarshal([]byte(c.must("status", "-o", "json")), &st); err != nil {
		t.Fatal(err)
	}
	if len(st.Workers) != 3 || len(st.Datasets) != 1 {
		t.Errorf("status: %+v", st)
	}
	if r := c.stoker("evict", "data"); r.code != 0 {
		t.Errorf("evict after the jobs: exit %d %s", r.code, r.stderr)
	}
}

// A dataset that does not fit is refused with numbers, exit 8; nothing stays
// reserved.
func TestTooLargeIsRefused(t *testing.T) {
	c := up(t, 2, "64MiB", func(root string) { makeFiles(t, root, 0, 1, 1, 200<<20) })
	c.add()
	r := c.stoker("preload", "data", "--wait", "-o", "json")
	if r.code != 8 || !strings.Contains(r.stderr, "MiB") {
		t.Fatalf("exit %d, want 8\n%s", r.code, r.stderr)
	}
	for range 3 { // also for those who do not wait
		if r := c.stoker("preload", "data"); r.code != 8 || !strings.Contains(r.stderr, "MiB") {
			t.Errorf("exit %d, want 8\n%s%s", r.code, r.out, r.stderr)
		}
	}
	var ws []api.WorkerInfo
	if err := json.Unmarshal([]byte(c.must("workers", "-o", "json")), &ws); err != nil {
		t.Fatal(err)
	}
	for _, w := range ws {
		if w.ReservedBytes != 0 {
			t.Errorf("worker %s keeps %d bytes reserved", w.ID, w.ReservedBytes)
		}
	}
}
