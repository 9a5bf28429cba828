package testenv

import (
	"os"
	"testing"
)

// Lacks ends a test for want of something that this machine does not have and no
// installation brings: a newer kernel, root. Where CI=true that is a failure, for
// nobody would miss the test there; elsewhere it is skipped with the reason.
func Lacks(t testing.TB, format string, args ...any) {
	t.Helper()
	Without(t, format, args...)
	t.SkipNow()
}

// Without is Lacks for a test that goes on with less.
func Without(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("with CI=true nothing may be missing: "+format, args...)
	}
	t.Logf(format, args...)
}
