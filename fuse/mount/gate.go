package mount

import (
	"sync/atomic"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
)

// gate lies between go-fuse and a file system. Once it is shut no request is
// answered any more: the next life answers it. Requests that touch no data are
// not counted; they are answered from what lives as long as the process.
type gate struct {
	gofuse.RawFileSystem
	closed atomic.Bool
	reopen chan struct{} // nil, but in tests: nothing opens it again
}

func newGate(fs gofuse.RawFileSystem) *gate { return &gate{RawFileSystem: fs} }

func (g *gate) shut() { g.closed.Store(true) }

// pass lets a request through, or keeps it until the process ends.
func (g *gate) pass() {
	if g.closed.Load() {
		<-g.reopen
	}
}

// Lookup implements gofuse.RawFileSystem.
func (g *gate) Lookup(cancel <-chan struct{}, h *gofuse.InHeader, name string, out *gofuse.EntryOut) gofuse.Status {
	g.pass()
	return g.RawFileSystem.Lookup(cancel, h, name, out)
}

// GetAttr implements gofuse.RawFileSystem.
func (g *gate) GetAttr(cancel <-chan struct{}, in *gofuse.GetAttrIn, out *gofuse.AttrOut) gofuse.Status {
	g.pass()
	return g.RawFileSystem.GetAttr(cancel, in, out)
}

// Readlink implements gofuse.RawFileSystem.
func (g *gate) Readlink(cancel <-chan struct{}, h *gofuse.InHeader) ([]byte, gofuse.Status) {
	g.pass()
	return g.RawFileSystem.Readlink(cancel, h)
}

// ReadDir implements gofuse.RawFileSystem.
func (g *gate) ReadDir(cancel <-chan struct{}, in *gofuse.ReadIn, out *gofuse.DirEntryList) gofuse.Status {
	g.pass()
	return g.RawFileSystem.ReadDir(cancel, in, out)
}

// ReadDirPlus implements gofuse.RawFileSystem.
func (g *gate) ReadDirPlus(cancel <-chan struct{}, in *gofuse.ReadIn, out *gofuse.DirEntryList) gofuse.Status {
	g.pass()
	return g.RawFileSystem.ReadDirPlus(cancel, in, out)
}

// StatFs implements gofuse.RawFileSystem.
func (g *gate) StatFs(cancel <-chan struct{}, h *gofuse.InHeader, out *gofuse.StatfsOut) gofuse.Status {
	g.pass()
	return g.RawFileSystem.StatFs(cancel, h, out)
}

// Read implements gofuse.RawFileSystem. What failed after the gate was shut did
// so because the process ends, which is no reader's business.
func (g *gate) Read(cancel <-chan struct{}, in *gofuse.ReadIn, buf []byte) (gofuse.ReadResult, gofuse.Status) {
	g.pass()
	res, st := g.RawFileSystem.Read(cancel, in, buf)
	if st != gofuse.OK {
		g.pass()
	}
	return res, st
}
