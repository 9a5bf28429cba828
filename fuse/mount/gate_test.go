package mount

import (
	"testing"
	"testing/synctest"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
)

// failing answers a READ once it may, with an error.
type failing struct {
	gofuse.RawFileSystem
	may chan struct{}
}

func (f failing) Read(<-chan struct{}, *gofuse.ReadIn, []byte) (gofuse.ReadResult, gofuse.Status) {
	<-f.may
	return nil, gofuse.EIO
}

// Nothing passes a gate that is shut: no request that comes, and no error of one
// that was on its way.
func TestGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := failing{gofuse.NewDefaultRawFileSystem(), make(chan struct{})}
		g := newGate(fs)
		g.reopen = make(chan struct{})
		answers := make(chan string, 10)
		go func() { _, _ = g.Read(nil, nil, nil); answers <- "READ" }()
		synctest.Wait()
		g.shut()
		close(fs.may)
		for what, ask := range map[string]func(){
			"LOOKUP": func() { g.Lookup(nil, nil, "", nil) }, "GETATTR": func() { g.GetAttr(nil, nil, nil) }, "READLINK": func() { g.Readlink(nil, nil) },
			"READDIR": func() { g.ReadDir(nil, nil, nil) }, "READDIRPLUS": func() { g.ReadDirPlus(nil, nil, nil) }, "STATFS": func() { g.StatFs(nil, nil, nil) },
			"READ, later": func() { _, _ = g.Read(nil, nil, nil) },
		} {
			go func() { ask(); answers <- what }()
		}
		synctest.Wait()
		select {
		case what := <-answers:
			t.Errorf("%s was answered", what)
		default:
		}
		close(g.reopen)
		for range 8 {
			<-answers
		}
	})
}
