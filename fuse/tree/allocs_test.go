//go:build !race

package tree // the race detector drops what is pooled

import (
	"context"
	"path/filepath"
	"runtime"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"stoker.dev/cache/manifest"
)

// zeros is a reader that allocates nothing.
type zeros struct{}

func (zeros) ReadAt(_ context.Context, _ manifest.Row, p []byte, _ int64) (int, error) {
	clear(p)
	return len(p), nil
}

// A READ costs the heap what go-fuse (v2.12.1) takes to read and write its device: a dozen
// small things, such as a list of the parts of the answer. None is of the READ's size, and
// none is ours.
func TestAllocationsOfARequest(t *testing.T) {
	const reads, most, mostBytes = 1000, 15, 16 << 10
	v := newView(t, map[string][]byte{"f": make([]byte, 1<<20)}, 0o022)
	v.fs.o.Reader = zeros{}
	fd, err := unix.Open(filepath.Join(v.dir, "f"), unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	buf := make([]byte, 132<<10)
	buf = buf[4096-int(uintptr(unsafe.Pointer(&buf[0]))%4096):][:128<<10]
	first := v.fs.Reads()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	n := testing.AllocsPerRun(reads, func() {
		if n, err := unix.Pread(fd, buf, 4096); n != len(buf) || err != nil {
			t.Fatal(n, err)
		}
	})
	runtime.ReadMemStats(&after)
	got := v.fs.Reads() - first
	size := int64(after.TotalAlloc-before.TotalAlloc) / got
	if t.Logf("%v allocations of %d bytes in all", n, size); got != reads+1 || n > most || size > mostBytes {
		t.Errorf("%d READs cost %v allocations and %d bytes each, want %d, of %d and %d at most", got, n, size, reads+1, most, mostBytes)
	}
}
