package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"stoker.dev/internal/api"
)

// One dataset of a bucket and a folder: each byte of both is fetched once, the
// mount shows both, links and executable bits included, and a change in either
// is a generation. What cannot be a file is named.
func TestOneNamespaceOfTwoStores(t *testing.T) {
	labels := t.TempDir()
	labelBytes := makeFiles(t, labels, 700, 4<<10, 2, 70<<20)
	var imageBytes int64
	c := up(t, 2, "1GiB", func(root string) { imageBytes = makeFiles(t, root, 500, 16<<10, 1, 80<<20) }, "--allow-file", labels)
	for _, err := range []error{
		os.WriteFile(filepath.Join(labels, "run.sh"), []byte("#!/bin/sh\necho ran\n"), 0o755), os.Symlink("run.sh", filepath.Join(labels, "link")),
		os.Symlink("/etc/passwd", filepath.Join(labels, "train/away")), os.Mkdir(filepath.Join(labels, "empty"), 0o755),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	labelBytes += int64(len("#!/bin/sh\necho ran\n"))
	c.must("dataset", "add", "mix", "images=s3://data", "meta/labels=file://"+labels, "--endpoint", "images="+c.proxy.URL(), "--path-style=images")

	cert := c.certificate(c.must("preload", "mix", "--wait", "-o", "json"))
	total := imageBytes + labelBytes
	if cert.State != "Ready" || cert.Bytes != total || cert.ResidentBytes != total || cert.UFSBytes != total || len(cert.Failed) != 0 {
		t.Fatalf("certificate %+v, the dataset has %d bytes", cert, total)
	}
	if got := c.proxy.Bytes(); got != imageBytes {
		t.Errorf("the S3 side sent %d bytes, the bucket has %d", got, imageBytes)
	}
	dir := t.TempDir()
	c.must("mount", "mix", dir)
	sameTree(t, filepath.Join(c.root, "data"), filepath.Join(dir, "images"))
	at := filepath.Join(dir, "meta/labels")
	for _, link := range []struct{ name, to string }{{"link", "run.sh"}, {"train/away", "/etc/passwd"}} {
		if to, err := os.Readlink(filepath.Join(at, link.name)); err != nil || to != link.to {
			t.Errorf("%s leads to %q (%v)", link.name, to, err)
		}
	}
	sameTree(t, labels, at)
	if st, err := os.Stat(filepath.Join(at, "run.sh")); err != nil || st.Mode().Perm() != 0o755 {
		t.Errorf("%v (%v)", st, err)
	}
	if entries, err := os.ReadDir(filepath.Join(at, "empty")); err != nil || len(entries) != 0 {
		t.Errorf("%v (%v)", entries, err)
	}
	c.must("umount", dir)
	if got := c.certificate(c.must("preload", "mix", "--wait", "-o", "json")); got.UFSBytes != 0 || got.UFSRequests != 0 {
		t.Errorf("a second preload fetched %d bytes", got.UFSBytes)
	}
	c.changeTheFolder(labels)
}

// changeTheFolder changes a file of the mix's folder: the old generation names
// it as stale, a new one has it.
func (c *cluster) changeTheFolder(labels string) {
	c.t.Helper()
	c.must("evict", "mix", "--force")                                                                             // the preload before may still hold it for a moment
	if err := os.WriteFile(filepath.Join(labels, "run.sh"), []byte("#!/bin/sh\necho two\n"), 0o755); err != nil { // as long as before
		c.t.Fatal(err)
	}
	r := c.stoker("preload", "mix", "--wait", "-o", "json")
	if cert := c.certificate(r.out); r.code != 4 || len(cert.Failed) != 1 || cert.Failed[0].Path != "meta/labels/run.sh" || cert.Failed[0].Kind != "stale" {
		c.t.Errorf("exit %d: %+v", r.code, cert.Failed)
	}
	if cert := c.certificate(c.must("preload", "mix", "--sync", "--wait", "-o", "json")); cert.State != "Ready" || cert.Generation != 2 {
		c.t.Errorf("%+v", cert)
	}
}

// Folders that no administrator allowed, names that meet, and options that fit
// no root are refused, and nothing is registered.
func TestNamespacesThatAreRefused(t *testing.T) {
	allowed, other := t.TempDir(), t.TempDir()
	if err := os.Symlink(other, filepath.Join(allowed, "out")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(other, "secret"), []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := up(t, 1, "256MiB", func(string) {}, "--allow-file", allowed)
	for args, want := range map[string]struct {
		code int
		says string
	}{
		"file://" + other:                                {10, "--allow-file"},
		"file:///etc":                                    {10, "STOKER_ALLOW_FILE"},
		"file://" + allowed + "/../etc":                  {2, "without '.', '..'"},
		"file://" + allowed + "/out":                     {2, "symbolic link"},
		"file://" + allowed + "/none":                    {3, "is not there on"},
		"file://data":                                    {2, "three slashes"},
		"file:data":                                      {2, "is no URI"},
		"a=file://" + allowed + " a=s3://data":           {2, "would both be at"},
		"a=file://" + allowed + " a/b=s3://data":         {2, "would both be at"},
		"file://" + allowed + " a=s3://data":             {2, "would both be at"},
		"a=file://" + allowed + " --profile a=p":         {2, "folder has none"},
		"a=file://" + allowed + " b=ftp://x":             {2, "file, s3"},
		"../a=file://" + allowed:                         {2, "no folder of a dataset"},
		"a=file://" + allowed + " b=s3://no-such-bucket": {3, "no-such-bucket"},
	} {
		r := c.stoker(append([]string{"dataset", "add", "bad"}, strings.Fields(args)...)...)
		if r.code != want.code || !strings.Contains(r.stderr, want.says) {
			t.Errorf("%s: exit %d, want %d and %q\n%s", args, r.code, want.code, want.says, r.stderr)
		}
	}
	if r := c.stoker("preload", "file://"+other, "--wait"); r.code != 10 {
		t.Errorf("by its URI: exit %d, want 10\n%s", r.code, r.stderr)
	}
	for uri, code := range map[string]int{"s3://data": 0, "file://" + allowed: 0, "file://" + other: 10, "file://" + allowed + "/none": 5, "s3://no-such-bucket": 5} {
		if r := c.stoker("doctor", "--ufs", uri); r.code != code || code == 0 && !strings.Contains(r.out, "reachable") {
			t.Errorf("doctor --ufs %s: exit %d, want %d\n%s%s", uri, r.code, code, r.out, r.stderr)
		}
	}
	var all []api.DatasetInfo
	if err := json.Unmarshal([]byte(c.must("dataset", "ls", "-o", "json")), &all); err != nil || len(all) != 0 {
		t.Errorf("registered: %+v (%v)", all, err)
	}
}
