package worker

import (
	"math"
	"os"
	"path/filepath"
	"testing"

	"stoker.dev/internal/api"
)

// The least limit of a process's cgroups, or of those above them, counts.
func TestCgroupMemory(t *testing.T) {
	root := t.TempDir()
	write := func(path, body string) {
		t.Helper()
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("a/memory.max", "1000000\n")
	write("a/b/memory.max", "max\n")
	write("c/memory.max", "max\n")
	write("memory/d/memory.limit_in_bytes", "7000\n")
	for groups, want := range map[string]int64{
		"0::/a/b\n": 1000000, "0::/c\n": math.MaxInt64, "0::/\n": math.MaxInt64, "": math.MaxInt64, "nonsense": math.MaxInt64,
		"5:cpu:/d\n4:memory:/d/e\n0::/a\n": 7000, "0::/../a\n": 1000000,
	} {
		if got := cgroupMemory(root, groups); got != want {
			t.Errorf("%q: %d, want %d", groups, got, want)
		}
	}
	if got := AutoMemory(); got < MinMemory || got > 1<<30 {
		t.Errorf("%d bytes by itself", got)
	}
}

func TestDoctorShowsMemory(t *testing.T) {
	w := openWorker(t, func(o *Options) { o.MemoryBytes = MinMemory })
	defer w.close()
	if c := w.checkMemory(); c.State != api.CheckOK || c.Detail == "" {
		t.Errorf("%+v", c)
	}
	big := openWorker(t, func(o *Options) { o.MemoryBytes = 1 << 60 })
	defer big.close()
	if c := big.checkMemory(); c.State != api.CheckWarn || c.Hint == "" {
		t.Errorf("%+v", c)
	}
}
