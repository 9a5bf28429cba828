package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"stoker.dev"
	"stoker.dev/internal/api"
	"stoker.dev/ufs"
)

func TestParseRef(t *testing.T) {
	for _, c := range []struct {
		in, name string
		gen      int
		dir      string
	}{
		{"data", "data", 0, ""},
		{"data@3", "data", 3, ""},
		{"data@3=/mnt", "data", 3, "/mnt"},
		{"data=/mnt", "data", 0, "/mnt"},
		{"data=/mnt/../a//b/", "data", 0, "/a/b"},
		{"data=/a=b", "data", 0, "/a=b"},
		{"data=/a@3", "data", 0, "/a@3"},
		{"data@999999999", "data", 999999999, ""},
		{"0a.b_c-d", "0a.b_c-d", 0, ""},
		{strings.Repeat("a", 63) + "@1", strings.Repeat("a", 63), 1, ""},
		{"s3://bucket", "s3://bucket", 0, ""},
		{"s3://bucket/a=b", "s3://bucket/a=b", 0, ""},
		{"s3://bucket/a=b@2", "s3://bucket/a=b", 2, ""},
		{"s3://bucket/a=b/c=d=/mnt", "s3://bucket/a=b/c=d", 0, "/mnt"},
		{"s3://bucket/date=2024/x@4=/mnt/y", "s3://bucket/date=2024/x", 4, "/mnt/y"},
		{"s3://bucket/a=/b=/c", "s3://bucket/a=/b", 0, "/c"},
		{"s3://bucket/me@x", "s3://bucket/me@x", 0, ""},
		{"s3://bucket/me@12/", "s3://bucket/me@12/", 0, ""},
		{"s3://bucket/me@12", "s3://bucket/me", 12, ""},
	} {
		got, err := parseRef(c.in)
		if want := (api.DatasetRef{Name: c.name, Generation: c.gen, Dir: c.dir}); err != nil || got != want {
			t.Errorf("%q: %+v (%v), want %+v", c.in, got, err, want)
		}
	}
	const folder, name, none = "write NAME=/absolute/folder", "1 to 63 of a-z 0-9 . _ -", ""
	for in, says := range map[string]string{
		"": name, "@3": name, "=/mnt": name, "@1=/mnt": name, "Data": name, "data@v3": name, "data@": name, "me@host@7": name, "data@3@x": name, "-a": name, "a/b": name,
		strings.Repeat("a", 64): name, "data=": folder, "data@3=": folder, "data=rel": folder, "data=.": folder, "data=s3://x/y": folder,
		"s3://bucket/a=./b": folder, "s3://bucket/a=../b": folder, "s3://bucket/a=.": folder,
		"data@0": none, "data@00": none, "data@1234567890": none, "data@99999999999999999999": none, "a\x00b": none, "data=/\x00": none,
	} {
		if got, err := parseRef(in); err == nil || stoker.KindOf(err) != stoker.KindInvalid || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %+v, %v", in, got, err)
		}
	}
}

// What is printed as a reference is read as the same one.
func TestRefNameIsReadBack(t *testing.T) {
	for _, r := range []api.DatasetRef{{Name: "a"}, {Name: "a", Generation: 12}, {Name: "s3://b/x=y", Generation: 1}, {Name: "s3://b/me@host", Generation: 3}} {
		if got, err := parseRef(refName(r)); err != nil || got != r {
			t.Errorf("%+v: %+v, %v", r, got, err)
		}
	}
}

func TestParseRoot(t *testing.T) {
	for _, c := range []struct{ in, folder, uri string }{
		{"s3://b/p", "", "s3://b/p"}, {"audio=s3://b/p", "audio", "s3://b/p"}, {"a/b=s3://b", "a/b", "s3://b"},
		{"s3://b/x=y", "", "s3://b/x=y"}, {"a=s3://b/x=y://z", "a", "s3://b/x=y://z"}, {"..a=s3://b", "..a", "s3://b"},
		{"file:///a/b=c", "", "file:///a/b=c"}, {"x=file:///a", "x", "file:///a"},
	} {
		if got, err := parseRoot(c.in); err != nil || got.Folder != c.folder || got.Location != (ufs.Location{URI: c.uri}) {
			t.Errorf("%q: %+v, %v", c.in, got, err)
		}
	}
	for _, in := range []string{"", "bucket", "://b", "=s3://b", "/a=s3://b", "../a=s3://b", "a/../..=s3://b", ".=s3://b", "..=s3://b", "a/=s3://b", "a//b=s3://b", "./a=s3://b"} {
		if got, err := parseRoot(in); stoker.KindOf(err) != stoker.KindInvalid || err == nil {
			t.Errorf("%q: %+v, %v", in, got, err)
		}
	}
}

func TestFoldersOfSeveralDatasets(t *testing.T) {
	refs := func(names ...string) (out []api.DatasetRef) {
		for _, n := range names {
			out = append(out, api.DatasetRef{Name: n})
		}
		return out
	}
	got, err := folders(refs("a", "s3://b/x/y/", "s3://bucket", "b"))
	if err != nil || strings.Join(got, " ") != "a y bucket b" {
		t.Errorf("%v, %v", got, err)
	}
	for _, names := range [][]string{{"a", "a"}, {"x", "s3://b/x"}, {"s3://b/.."}, {"s3://b/."}, {"s3://"}} {
		if got, err := folders(refs(names...)); stoker.KindOf(err) != stoker.KindInvalid || err == nil {
			t.Errorf("%v: %v, %v", names, got, err)
		}
	}
}

func TestJobIDs(t *testing.T) {
	for id, fine := range map[string]bool{
		"a": true, "1234.batch@host+x=y_z-0:1": true, strings.Repeat("a", 128): true, stoker.NewToken()[:12]: true,
		"": false, "-a": false, ".a": false, "a b": false, "a/b": false, "a\n": false, "é": false, "a\x00": false, strings.Repeat("a", 129): false,
	} {
		if err := checkJobID(id); (err == nil) != fine {
			t.Errorf("%q: %v", id, err)
		}
	}
}

// The mount point is absolute, its parents free of links, itself as it is.
func TestMountPoint(t *testing.T) {
	base, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(base, "real", "dir"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(base, "real"), filepath.Join(base, "link")); err != nil {
		t.Fatal(err)
	}
	t.Chdir(base)
	for in, want := range map[string]string{
		"real/dir": "real/dir", "link/dir": "real/dir", base + "/link/new": "real/new", "link": "link", "real/../link/dir/": "real/dir",
	} {
		if got, err := mountPoint(in); err != nil || got != filepath.Join(base, want) {
			t.Errorf("%q: %q (%v), want %q", in, got, err, want)
		}
	}
	if _, err := mountPoint("none/dir"); stoker.KindOf(err) != stoker.KindNotExist {
		t.Errorf("%v", err)
	}
}
