package fuse

import (
	"sync"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
)

var _ gofuse.ReadResult = (*answer)(nil)

// answer is what a READ gives go-fuse, without an allocation for each. go-fuse
// calls Done once, when it has taken the bytes, and never looks at it again.
type answer struct{ p []byte }

var answers = sync.Pool{New: func() any { return new(answer) }}

// Answer makes the result of a READ of p, the buffer that go-fuse gave or a
// part of it.
func Answer(p []byte) gofuse.ReadResult {
	a := answers.Get().(*answer)
	a.p = p
	return a
}

// Bytes implements gofuse.ReadResult.
func (a *answer) Bytes([]byte) ([]byte, gofuse.Status) { return a.p, gofuse.OK }

// Size implements gofuse.ReadResult.
func (a *answer) Size() int { return len(a.p) }

// Done implements gofuse.ReadResult.
func (a *answer) Done() {
	a.p = nil
	answers.Put(a)
}
