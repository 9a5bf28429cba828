package e2e

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"stoker.dev/internal/api"
)

// A sync makes a generation only if something has changed; jobs that run keep
// theirs, new ones take the new one, and what is equal is not fetched again. A
// dataset that is held cannot be removed; removed, it is gone with its data.
func TestSyncAndRemove(t *testing.T) {
	c := up(t, 2, "512MiB", func(root string) { makeFiles(t, root, 300, 40<<10, 2, 80<<20) })
	c.add()
	c.must("preload", "data", "--wait")
	if d := c.detail("dataset", "sync", "data"); !d.Unchanged || d.Generation != 1 {
		t.Errorf("nothing has changed: %+v", d)
	}
	dir := t.TempDir()
	c.must("mount", "data", dir)
	changed := filepath.Join(c.root, "data", "train", "n000", "img_000000.jpg")
	old, err := os.ReadFile(changed)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(changed, []byte("another content: "+strings.Repeat("x", 50_000)), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(c.root, "data", "new.bin"), []byte("new"), 0o644); err != nil {
		t.Fatal(err)
	}
	d := c.detail("dataset", "sync", "data")
	if d.Unchanged || d.Generation != 2 || d.Objects != 303 {
		t.Errorf("after two changes: %+v", d)
	}
	if n := d.Changes; n == nil || n.Added != (api.Tally{Objects: 1, Bytes: 3}) || n.Changed.Objects != 1 || n.Removed.Objects != 0 {
		t.Errorf("the sync found %+v", n)
	}
	if out := c.must("dataset", "show", "data", "--changes"); !strings.Contains(out, "1..2") || !strings.Contains(out, "new.bin") {
		t.Errorf("the changes are\n%s", out)
	}
	c.proxy.Reset()
	cert := c.certificate(c.must("preload", "data", "--wait", "-o", "json"))
	if cert.State != api.CertificateReady || cert.Generation != 2 || cert.UFSBytes > 60<<20 || cert.UFSBytes != c.proxy.Bytes() {
		t.Errorf("the second generation cost %d bytes: %+v", c.proxy.Bytes(), cert)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "train", "n000", "img_000000.jpg")); err != nil || !bytes.Equal(got, old) {
		t.Errorf("the mounted generation has changed (%v)", err)
	}
	if r := c.stoker("dataset", "rm", "data"); r.code != 11 || !strings.Contains(r.stderr, "generation 1 is held") {
		t.Errorf("rm of held data: exit %d\n%s", r.code, r.stderr)
	}
	c.must("umount", dir)
	second := t.TempDir()
	c.must("mount", "data", second)
	sameTree(t, filepath.Join(c.root, "data"), second)
	c.must("umount", second)
	c.must("dataset", "rm", "data")
	if r := c.stoker("dataset", "show", "data"); r.code != 3 {
		t.Errorf("after rm show exits %d", r.code)
	}
	for _, w := range c.workers() {
		if w.UsedBytes > 16<<20 {
			t.Errorf("worker %s still has %d bytes", w.ID, w.UsedBytes)
		}
	}
	c.add() // the name is free
}

// --sync and --max-age list first.
func TestSyncBeforeUse(t *testing.T) {
	c := up(t, 1, "256MiB", func(root string) { makeFiles(t, root, 10, 10<<10, 0, 0) })
	c.must("dataset", "add", "data", "s3://data", "--endpoint", c.proxy.URL(), "--path-style")
	c.must("dataset", "add", "aging", "s3://data", "--endpoint", c.proxy.URL(), "--path-style", "--max-age", "1ms")
	if err := os.WriteFile(filepath.Join(c.root, "data", "new.bin"), []byte("new"), 0o644); err != nil {
		t.Fatal(err)
	}
	look := `test -e "$STOKER_MOUNT/new.bin"`
	if r := c.stoker("submit", "--dataset", "data", "--", "sh", "-c", look); r.code != 1 {
		t.Errorf("without --sync: exit %d\n%s", r.code, r.stderr)
	}
	c.must("submit", "--sync", "--dataset", "data", "--", "sh", "-c", look)
	c.must("submit", "--dataset", "aging", "--", "sh", "-c", look)
	if r := c.stoker("preload", "data@1", "--sync"); r.code != 2 {
		t.Errorf("--sync of a generation: exit %d, want 2\n%s", r.code, r.stderr)
	}
}

func (c *cluster) detail(args ...string) (d api.DatasetDetail) {
	c.t.Helper()
	if err := json.Unmarshal([]byte(c.must(append(args, "-o", "json")...)), &d); err != nil {
		c.t.Fatal(err)
	}
	return d
}
