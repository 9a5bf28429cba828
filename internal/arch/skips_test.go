package arch

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// mayskip are the reasons for which a test is skipped: it is a part of another one,
// of no use in this run, or of the long part. What a machine lacks is not among them:
// testenv.Lacks says so, and fails in CI.
var mayskip = []string{
	"the other tests start it", "run by the others", "run by TestFsx", "set STOKER_RECORD to record",
	"the race detector", "nearly every worker has everything", "EROFS has no O_DIRECT", "make test-long",
}

var skips = regexp.MustCompile(`\b[tb]\.Skip(f|Now)?\(`)

// A missing part is a failure in CI, never a skip.
func TestSkips(t *testing.T) {
	seen := 0
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") || strings.HasSuffix(path, "/skips_test.go") {
			return err
		}
		body, err := os.ReadFile(path)
		for line := range bytes.Lines(body) {
			if !skips.Match(line) {
				continue
			}
			if seen++; !excused(string(line)) {
				t.Errorf("%s: %s skips for want of something: use testenv.Lacks", path, bytes.TrimSpace(line))
			}
		}
		return err
	})
	if err != nil || seen == 0 {
		t.Errorf("%d skips were found, %v", seen, err)
	}
	if excused(`t.Skip("only root can")`) {
		t.Error("any reason will do")
	}
}

func excused(line string) bool {
	for _, reason := range mayskip {
		if strings.Contains(line, reason) {
			return true
		}
	}
	return false
}
