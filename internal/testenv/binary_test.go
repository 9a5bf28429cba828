package testenv

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// recorder is a test that may fail.
type recorder struct {
	testing.TB
	said []string
}

func (r *recorder) Errorf(format string, args ...any) { r.said = append(r.said, format) }

// A race in a program that was killed right after it is found; of one that has none,
// nothing is said.
func TestRacesOfProgramsAreFound(t *testing.T) {
	dir := t.TempDir()
	source := filepath.Join(dir, "main.go")
	if err := os.WriteFile(source, []byte(`package main

import (
	"os"
	"syscall"
)

func main() {
	n, done := 0, make(chan struct{})
	go func() { n++; close(done) }()
	if len(os.Args) > 1 {
		n++
	}
	<-done
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
}
`), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("go", "build", "-race", "-o", filepath.Join(dir, "racy"), source).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Setenv("STOKER_BIN", dir)
	for _, args := range [][]string{{"race"}, nil} {
		r := &recorder{TB: t}
		check := Races(r)
		if out, err := exec.Command(Binary(t, "racy"), args...).CombinedOutput(); err == nil || len(out) > 0 {
			t.Fatalf("%v, %s", err, out)
		}
		if check(); len(r.said) != len(args) || len(args) > 0 && !strings.Contains(r.said[0], "data race") {
			t.Errorf("racy %v: %q", args, r.said)
		}
	}
}
