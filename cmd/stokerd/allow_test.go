package main

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"stoker.dev"
)

func TestAllowedFolders(t *testing.T) {
	var l allowed
	for _, s := range []string{"", "/a", "/b/c:/d d", ":"} {
		if err := l.Set(s); err != nil {
			t.Errorf("%q: %v", s, err)
		}
	}
	if want := []string{"/a", "/b/c", "/d d"}; !slices.Equal(l, want) || l.String() != "/a:/b/c:/d d" {
		t.Errorf("%q, want %q", l, want)
	}
	for _, s := range []string{"a", "/a/", "/a/../b", "/a:b", "./a", "/a//b"} {
		if err := l.Set(s); stoker.KindOf(err) != stoker.KindInvalid || err == nil {
			t.Errorf("%q: %v", s, err)
		}
	}
}

// A folder that is not there may come later: it is only said.
func TestAllowedFoldersThatAreNotThere(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	l := allowed{dir, file, dir + "/none"}
	if got := l.missing(); !slices.Equal(got, []string{file, dir + "/none"}) {
		t.Errorf("missing: %q", got)
	}
}

// Both daemons take the folders from the flag, the environment or the file.
func TestAllowFile(t *testing.T) {
	t.Setenv("STOKER_ALLOW_FILE", "/env:/two")
	for _, role := range []string{"worker", "controller"} {
		for want, args := range map[string][]string{
			"/env:/two": {role}, "/flag:/more": {role, "--allow-file", "/flag", "--allow-file", "/more"}, "": {role, "--allow-file", ""},
		} {
			got, err := outcome(t, args...)
			if err != nil || got["allow-file"] != want {
				t.Errorf("%v: %q (%v), want %q", args, got["allow-file"], err, want)
			}
		}
	}
}
