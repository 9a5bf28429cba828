package worker

import (
	"os"
	"path/filepath"
	"testing"

	"stoker.dev/internal/api"
)

// What was made for a view goes with it; what is somebody else's, not empty or
// behind a link stays.
func TestRemoveOwn(t *testing.T) {
	uid := uint32(os.Getuid())
	base := t.TempDir()
	make := func(path string) string {
		t.Helper()
		dir := filepath.Join(base, path)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	there := func(dir string) bool { _, err := os.Lstat(dir); return err == nil }

	one := make("one")
	removeOwn(api.MountRequest{Dir: one, Holder: "j"}, uid)
	if !there(one) {
		t.Error("a folder that was not made for the view is gone")
	}
	removeOwn(api.MountRequest{Dir: one, Holder: "j", Own: true}, uid+1)
	if !there(one) {
		t.Error("another user's folder is gone")
	}
	removeOwn(api.MountRequest{Dir: one, Holder: "j", Own: true}, uid)
	if there(one) {
		t.Error("the view's own folder stays")
	}
	several := make("stoker-j-1/a")
	make("stoker-j-1/b")
	removeOwn(api.MountRequest{Dir: several, Holder: "j", Own: true}, uid)
	if there(several) || !there(filepath.Dir(several)) {
		t.Error("want one of two folders to go")
	}
	removeOwn(api.MountRequest{Dir: filepath.Join(base, "stoker-j-1", "b"), Holder: "j", Own: true}, uid)
	if there(filepath.Dir(several)) {
		t.Error("the folder around the job's views stays")
	}
	full := make("full/x")
	removeOwn(api.MountRequest{Dir: filepath.Dir(full), Holder: "j", Own: true}, uid)
	if !there(full) {
		t.Error("a folder that is not empty is gone")
	}
	target := make("target/x")
	if err := os.Symlink(filepath.Dir(target), filepath.Join(base, "link")); err != nil {
		t.Fatal(err)
	}
	removeOwn(api.MountRequest{Dir: filepath.Join(base, "link", "x"), Holder: "j", Own: true}, uid)
	if !there(target) {
		t.Error("a folder behind a link is gone")
	}
}
