package mount

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// The owner of a folder above a view moves it and puts a symbolic link to
// somebody else's mount in its place: unmounting the view ends the view, where
// it is now, and nothing else.
func TestUnmountFollowsTheFolderThatWasMoved(t *testing.T) {
	for name, lazy := range map[string]bool{"at once": false, "lazily": true} {
		t.Run(name, func(t *testing.T) {
			base := t.TempDir()
			view, victim := filepath.Join(base, "a", "b"), filepath.Join(base, "other", "b")
			for _, d := range []string{view, victim} {
				if err := os.MkdirAll(d, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			if err := unix.Mount("victim", victim, "tmpfs", 0, "size=64k"); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = unix.Unmount(victim, unix.MNT_DETACH) })
			m, err := Mount(newEmpty(), Options{Dir: view, Name: "test:moved"})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				left, err := Leftovers("test:moved")
				if err != nil {
					t.Error(err)
				}
				for _, l := range left {
					_ = l.Unmount() // only if the test has failed
				}
			})
			if err := os.Rename(filepath.Join(base, "a"), filepath.Join(base, "a2")); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(filepath.Join(base, "other"), filepath.Join(base, "a")); err != nil {
				t.Fatal(err)
			}
			if err := m.Unmount(lazy); err != nil {
				t.Error(err)
			}
			if find(t, victim) == nil {
				t.Error("somebody else's mount is gone")
			}
			if find(t, filepath.Join(base, "a2", "b")) != nil {
				t.Error("the view is still mounted")
			}
		})
	}
}
