package mount

import (
	"os"
	"testing"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"stoker.dev/internal/testenv"
)

// What a request is read into is in memory when the kernel writes to it: go-fuse's pool is found, and what it
// makes is touched.
func TestRequestsHavePages(t *testing.T) {
	server := &gofuse.Server{}
	pool := requestPool(server)
	if pool == nil {
		t.Fatal("go-fuse's pool of buffers is not where it was")
	}
	page := os.Getpagesize()
	fresh, err := unix.Mmap(-1, 0, 8*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(fresh) }()
	pool.New = func() any { return fresh[40:] }
	keepPresent(server)
	if got := pool.Get().([]byte); &got[0] != &fresh[40] {
		t.Fatal("another buffer")
	}
	if here := testenv.PagesInMemory(t, fresh); !here[0] || !here[1] || here[7] {
		t.Errorf("pages in memory: %v", here)
	}
}
