package testenv

import (
	"runtime"
	"testing"
)

// ending notes how a test would end.
type ending struct {
	testing.TB
	failed, skipped bool
}

func (e *ending) Helper()               {}
func (e *ending) Logf(string, ...any)   {}
func (e *ending) Fatalf(string, ...any) { e.failed = true; runtime.Goexit() }
func (e *ending) SkipNow()              { e.skipped = true; runtime.Goexit() }

// What a machine lacks is a skip on a desk and a failure in CI.
func TestLacks(t *testing.T) {
	for ci, want := range map[string]ending{"true": {failed: true}, "": {skipped: true}} {
		t.Setenv("CI", ci)
		var e ending
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			Lacks(&e, "no %s", "moon")
			t.Error("it went on")
		}()
		if <-ended; e.failed != want.failed || e.skipped != want.skipped {
			t.Errorf("CI=%s: failed %v, skipped %v", ci, e.failed, e.skipped)
		}
	}
}
