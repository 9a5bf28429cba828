package store

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"stoker.dev"
)

// A folder of another format is refused, and nothing in it is touched; one
// that does not say is of the first format.
func TestUnknownFormatIsRefused(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(Options{Dir: dir, CapacityBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, formatFile)
	if body, err := os.ReadFile(path); err != nil || string(body) != "1\n" {
		t.Fatalf("%q, %v", body, err)
	}
	foreign := filepath.Join(dir, "shards", "new-kind-of-file")
	for _, body := range []string{"2\n", "", "nonsense"} {
		for p, b := range map[string]string{path: body, foreign: "x"} {
			if err := os.WriteFile(p, []byte(b), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		_, err := Open(Options{Dir: dir, CapacityBytes: 1 << 20})
		if stoker.KindOf(err) != stoker.KindInvalid || err == nil || !strings.Contains(err.Error(), "this program knows 1") {
			t.Errorf("format %q: %v", body, err)
		}
		if _, err := os.Stat(foreign); err != nil {
			t.Errorf("format %q: a file was thrown away: %v", body, err)
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(Options{Dir: dir, CapacityBytes: 1 << 20}); err != nil {
		t.Fatalf("a folder that does not say: %v", err)
	}
	_ = s.Close()
}
