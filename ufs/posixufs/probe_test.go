package posixufs

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"stoker.dev/ufs"
)

func TestProbe(t *testing.T) {
	f, dir := tree(t)
	look := func(f *FS) map[string]ufs.Level {
		out := map[string]ufs.Level{}
		for _, x := range f.Probe(t.Context(), "") {
			if out[x.Name] = x.Level; (x.Level == ufs.Fine) != (x.Hint == "") {
				t.Errorf("%+v", x)
			}
		}
		return out
	}
	if got := look(f); got["reachable"] != ufs.Fine || got["listing"] != ufs.Odd {
		t.Errorf("empty: %v", got)
	}
	must(t, unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600))
	if got := look(f); got["special-files"] != ufs.Odd || got["read"] != ufs.Odd {
		t.Errorf("a pipe: %v", got)
	}
	put(t, filepath.Join(dir, "k"), []byte("x"))
	if got := look(f); got["listing"] != ufs.Fine || got["read"] != ufs.Fine {
		t.Errorf("a file: %v", got)
	}
	must(t, os.Chmod(filepath.Dir(dir), 0o755), os.Chmod(dir, 0o755), os.Chmod(filepath.Join(dir, "k"), 0))
	asNobody(t, func() {
		if got := look(f); got["read"] != ufs.Bad {
			t.Errorf("a file that may not be read: %v", got)
		}
	})
	if got := look(openTree(t, Options{Folder: filepath.Join(dir, "none"), Allow: []string{dir}})); len(got) != 1 || got["reachable"] != ufs.Bad {
		t.Errorf("no folder: %v", got)
	}
}
