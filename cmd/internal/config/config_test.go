package config

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func file(t *testing.T, body string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(path, []byte(body), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// Each value comes with its file and line.
func TestRead(t *testing.T) {
	path := file(t, "# a comment\n\nred: 'r:1'\n\"quoted\": 2000000\nempty:\nyes-or-no: true\n'blue' : \"007\"\n")
	got, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]Value{
		"red": {"r:1", path + ":3"}, "quoted": {"2000000", path + ":4"}, "empty": {"", path + ":5"}, "yes-or-no": {"true", path + ":6"}, "blue": {"007", path + ":7"},
	} {
		if got[key] != want {
			t.Errorf("%s: %+v, want %+v", key, got[key], want)
		}
	}
	if len(got) != 5 {
		t.Errorf("%v", got)
	}
	if _, err := Read(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

// What is wrong is told with its line, in one line.
func TestReadErrors(t *testing.T) {
	for body, says := range map[string]string{
		"a: 1\nb: [1, 2]\n": ":2: b: want one value", "a: 1\nb: c: d\n": ":2: mapping values are not allowed", "a: 1\nb: 2\na: 3\n": ":3: key \"a\" already set",
		"a: 1\nb:\n  c: 2\n": ":2: b: want one value", "just words\n": "want lines of `key: value`", "a: 1\n\tb: 2\n": ":2: ",
	} {
		path := file(t, body)
		_, err := Read(path)
		if err == nil || !strings.HasPrefix(err.Error(), path) || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v, want %q", body, err, says)
		}
	}
	if got, err := Read(file(t, "")); err != nil || len(got) != 0 {
		t.Errorf("an empty file: %v, %v", got, err)
	}
}
