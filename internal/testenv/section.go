package testenv

import (
	"flag"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write generated sections of documents instead of comparing them")

// Section compares a generated part of a document, which stands between the
// lines <!-- begin NAME --> and <!-- end NAME -->, with want; with -update it
// writes it.
func Section(t testing.TB, path, name, want string) {
	t.Helper()
	body, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	begin, end := "<!-- begin "+name+" -->\n", "<!-- end "+name+" -->\n"
	before, rest, ok := strings.Cut(string(body), begin)
	got, after, closed := strings.Cut(rest, end)
	if !ok || !closed {
		t.Fatalf("%s has no section %q", path, name)
	}
	if got == want {
		return
	}
	if !*update {
		t.Fatalf("%s, section %q, is out of date: run `go test -run %s -update` in this package", path, name, t.Name())
	}
	if err := os.WriteFile(path, []byte(before+begin+want+end+after), 0o644); err != nil {
		t.Fatal(err)
	}
}
