package arch

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	declared = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Benchmark)\w*)\(|^\t\t\{"([A-Z]\w+)", \w+\},$`) // the second: parts of TestSlurm
	quoted   = regexp.MustCompile("`([A-Z]\\w*…?)`")
)

// Each test that docs/semantics.md names is there.
func TestPromisesHaveTests(t *testing.T) {
	there := map[string]bool{"Objects": true} // a suite that the text says who runs
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		source, err := os.ReadFile(path)
		for _, m := range declared.FindAllSubmatch(source, -1) {
			there[string(m[1])+string(m[2])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range namedIn(t, "../../docs/semantics.md") {
		if !declares(there, name) {
			t.Errorf("docs/semantics.md names %s, and there is no such test", name)
		}
	}
	if declares(there, "TestThatIsNot") || declares(there, "TestThatIsNot…") {
		t.Error("anything passes")
	}
}

// namedIn lists the tests in the last column of a page's tables.
func namedIn(t *testing.T, page string) (names []string) {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(text), "\n") {
		if !strings.HasPrefix(line, "|") {
			continue
		}
		cells := strings.Split(strings.TrimSuffix(line, "|"), "|")
		for _, m := range quoted.FindAllStringSubmatch(cells[len(cells)-1], -1) {
			names = append(names, m[1])
		}
	}
	if len(names) < 100 {
		t.Fatalf("%s names %d tests", page, len(names))
	}
	return names
}

// declares tells whether a test, or one of those that begin so, is there.
func declares(there map[string]bool, name string) bool {
	prefix, open := strings.CutSuffix(name, "…")
	if !open {
		return there[name]
	}
	for other := range there {
		if strings.HasPrefix(other, prefix) {
			return true
		}
	}
	return false
}
