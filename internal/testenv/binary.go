package testenv

import (
	"os"
	"path/filepath"
	"testing"
)

// Binary is the path of a program of this module that was built: in bin/, or in the
// folder that STOKER_BIN names.
func Binary(t testing.TB, name string) string {
	t.Helper()
	dir := os.Getenv("STOKER_BIN")
	if dir == "" {
		dir = filepath.Join(module(t), "bin")
	}
	p, err := filepath.Abs(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(p); err != nil {
		t.Fatalf("%v: run `make build` first", err)
	}
	return p
}

// module is the folder that has go.mod, at or above the one that tests run in.
func module(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	for ; err == nil; dir = filepath.Dir(dir) {
		if _, e := os.Stat(filepath.Join(dir, "go.mod")); e == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			break
		}
	}
	t.Fatalf("no go.mod at or above %s (%v)", dir, err)
	return ""
}

// Races has programs that were built with -race write what they find into a file each,
// also when they are killed later, and returns what fails the test if there is one.
// Call that when they have ended. Programs without the race detector write nothing.
func Races(t testing.TB) (check func()) {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("GORACE", "atexit_sleep_ms=0 log_path="+filepath.Join(dir, "race"))
	return func() {
		t.Helper()
		found, err := filepath.Glob(filepath.Join(dir, "race.*"))
		if err != nil {
			t.Error(err)
		}
		for _, file := range found {
			body, err := os.ReadFile(file)
			if err != nil {
				t.Error(err)
			}
			t.Errorf("a daemon or command has a data race:\n%s", body[:min(len(body), 16<<10)])
		}
	}
}
