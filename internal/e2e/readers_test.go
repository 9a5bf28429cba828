package e2e

import (
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
)

// A dataset with readers is theirs, by every way to its bytes and names: its name, its
// manifest, its URI, another dataset. What had begun before goes on, and so does who
// may read it after a restart.
func TestDatasetsHaveReaders(t *testing.T) {
	c := up(t, 1, "256MiB", func(root string) { makeFiles(t, root, 40, 64<<10, 0, 0) })
	a, n := c.user(alice, 5000), c.user(nosy)
	c.add()
	c.must("preload", "data", "--wait")
	before := n.folder("before")
	n.may("mount", "data", before)
	c.must("dataset", "set", "data", "--readers", "uid-12345")

	const why = "nobody may not read it"
	t.Run("kept out", func(t *testing.T) {
		dir := n.folder("mine")
		at := []string{"--endpoint", c.proxy.URL(), "--path-style"}
		for _, args := range [][]string{
			{"mount", "data", dir}, {"mount", "data@1", dir}, {"preload", "data"}, {"claim", "--job-id", "j", "--dataset", "data"},
			{"verify", "data"}, {"dataset", "sync", "data"}, {"pin", "data", "--for", "1h", "--reason", "mine"},
			append([]string{"dataset", "add", "mine", "s3://data/train"}, at...), append([]string{"dataset", "add", "mine", "x=s3://data"}, at...),
			{"preload", "s3://data/train"}, {"preload", "s3://data"},
		} {
			n.refused(10, why, args...)
		}
		if r := n.run(n.stoker, "submit", "--dataset", "data", "--", "touch", filepath.Join(n.home, "ran")); r.code != 10 || !strings.Contains(r.stderr, why) {
			t.Errorf("submit: exit %d\n%s", r.code, r.stderr)
		}
		id := c.datasets()["data"].Manifest
		for _, name := range []string{"data", "other", ""} {
			body := fmt.Sprintf(`{"dataset":%q,"manifest":%q,"dir":%q}`, name, id, dir)
			denied(t, "a mount by manifest", ask(t, over(t, nosy, c.getenv("STOKER_SOCKET")), http.MethodPost, "http://stoker/v1/mounts", body), "may not read it")
		}
		if out := n.run("ls", "-A", n.home, dir).out; strings.Contains(out, "ran") || strings.Contains(out, "train") {
			t.Errorf("he has\n%s", out)
		}
		n.refused(10, "belongs to root", "dataset", "set", "data", "--readers", "everybody")
		if out := n.may("dataset", "show", "data"); !strings.Contains(out, "root, uid-12345") { // whom to ask
			t.Errorf("show says\n%s", out)
		}
		c.must("dataset", "add", "part", "s3://data/train", "--endpoint", c.proxy.URL(), "--path-style")
		n.refused(10, why, "mount", "part", dir)
		if out := n.may("dataset", "show", "part"); !strings.Contains(out, "everybody who may read data, too") {
			t.Errorf("show of a part of it says\n%s", out)
		}
	})
	mine, roots := a.folder("mine"), t.TempDir()
	t.Run("let in", func(t *testing.T) {
		a.may("mount", "data", mine)
		a.may("verify", "data")
		c.must("mount", "data", roots)
		ownersOnly(t, c, a, n, mine)
		if r := a.run("ls", roots); r.code == 0 {
			t.Errorf("uid %d lists root's view: %s", a.uid, r.out)
		}
		if r := n.run("sh", "-c", "cat $(find "+before+" -type f) | wc -c"); r.code != 0 || strings.TrimSpace(r.out) == "0" {
			t.Errorf("what was mounted before: %+v", r)
		}
	})
	t.Run("after a restart", func(t *testing.T) {
		c.kill("worker-1")
		c.kill("controller")
		c.dev("start", "worker-1", "--dir", c.dir)
		c.dev("start", "controller", "--dir", c.dir)
		n.refused(10, why, "mount", "data", n.folder("later"))
		c.eventually("her view is back", func() bool { return a.run("ls", mine).code == 0 })
		ownersOnly(t, c, a, n, mine)
	})
	t.Run("groups", func(t *testing.T) {
		c.must("dataset", "set", "data", "--readers", "@5000")
		a.may("mount", "data", a.folder("group"))
		n.refused(10, why, "mount", "data", n.folder("group"))
		c.must("dataset", "set", "data", "--readers", "nobody")
		a.refused(10, "uid-12345 may not read it", "mount", "data", a.folder("no more"))
		c.must("dataset", "set", "data", "--readers", "everybody")
		n.may("mount", "data", n.folder("all"))
	})
}

// ownersOnly checks that she reads a view, and nobody else does.
func ownersOnly(t *testing.T, c *cluster, a, n *user, dir string) {
	t.Helper()
	if r := a.run("sh", "-c", "cat $(find "+dir+" -type f) | wc -c"); r.code != 0 || strings.TrimSpace(r.out) == "0" {
		t.Errorf("her own view: %+v", r)
	}
	if r := n.run("ls", dir); r.code == 0 {
		t.Errorf("uid %d lists her view: %s", n.uid, r.out)
	}
	if r := n.run("cat", filepath.Join(dir, "train", "000000.bin")); r.code == 0 || !strings.Contains(r.stderr, "Permission denied") {
		t.Errorf("uid %d reads her view: %+v", n.uid, r)
	}
}
