package testenv

import (
	"os"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// CachedPages is how many pages of a file are in the page cache.
func CachedPages(t testing.TB, f *os.File) (n int) {
	t.Helper()
	fi, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	m, err := unix.Mmap(int(f.Fd()), 0, int(fi.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(m) }()
	for _, here := range PagesInMemory(t, m) {
		if here {
			n++
		}
	}
	return n
}

// PagesInMemory says which pages of a map are in memory.
func PagesInMemory(t testing.TB, m []byte) []bool {
	t.Helper()
	pages := make([]byte, (len(m)+os.Getpagesize()-1)/os.Getpagesize())
	if _, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&m[0])), uintptr(len(m)), uintptr(unsafe.Pointer(&pages[0]))); errno != 0 {
		t.Fatal(errno)
	}
	here := make([]bool, len(pages))
	for i, p := range pages {
		here[i] = p&1 != 0
	}
	return here
}
