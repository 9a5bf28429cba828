package mount

import (
	"os"
	"reflect"
	"sync"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
)

// keepPresent has the buffers that requests are read into touched when they are made. The kernel
// ends a request with EIO if it cannot copy it to who reads it (fuse_dev_do_read), and
// that is so if a page must be made for it while the process is being killed. With the page
// there, the request waits for the next life of this process. Requests of read-only views take
// no more than two pages.
func keepPresent(s *gofuse.Server) {
	pool := requestPool(s)
	if pool == nil || pool.New == nil {
		return // TestRequestsHavePages tells
	}
	made := pool.New
	pool.New = func() any {
		b := made()
		if buf, ok := b.([]byte); ok {
			for i := 0; i < min(len(buf), 2*os.Getpagesize()+1); i += os.Getpagesize() {
				buf[i] = 0
			}
		}
		return b
	}
}

// requestPool is where go-fuse has these buffers; nil: not where it was. It has no setting for it.
func requestPool(s *gofuse.Server) *sync.Pool {
	f := reflect.ValueOf(s).Elem().FieldByName("readPool")
	if !f.IsValid() || f.Type() != reflect.TypeFor[sync.Pool]() {
		return nil
	}
	return (*sync.Pool)(f.Addr().UnsafePointer())
}
