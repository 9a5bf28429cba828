package prefetch

import (
	"slices"
	"sync"
)

const (
	beginners = 64 // files that may be begun before the first of them is read on: one reader begins each
	agree     = 8  // files of which it is known how far they are read, before a begin brings no more
)

// Heads tells how much of a file is to come when somebody begins it: as much as the most that was
// read, from its beginning on, of the last eight files of which that is known. It is known of a file
// that is read as far as a begin brings it, or farther, at once; of another one when 64 more were
// begun, each by a reader who got its first bytes. So a file that is read on counts before those
// that were only begun beside it. It may be used from any goroutine.
type Heads struct {
	mu    sync.Mutex
	begun []head // +checklocks:mu — not known yet, oldest first
	known []head // +checklocks:mu — oldest first
}

type head struct {
	object uint32
	blocks int // read, from the first one on
}

// Blocks returns how many blocks of a file come with its first one: FirstWindow at most.
func (h *Heads) Blocks() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.blocks()
}

// blocks is Blocks.
// REQUIRES: h.mu is held.
func (h *Heads) blocks() (most int) {
	if len(h.known) < agree {
		return FirstWindow
	}
	for _, k := range h.known {
		most = max(most, k.blocks)
	}
	return min(most, FirstWindow)
}

// Began takes in that somebody got the first bytes of a file, who asked for so many blocks of it.
func (h *Heads) Began(object uint32, blocks int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if raise(h.known, object, blocks) >= 0 || raise(h.begun, object, blocks) >= 0 {
		return
	}
	if len(h.begun) == beginners {
		h.settle(0)
	}
	h.begun = append(h.begun, head{object, blocks})
}

// Read takes in that a file was read on from its beginning as far as so many blocks.
func (h *Heads) Read(object uint32, blocks int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if raise(h.known, object, blocks) >= 0 {
		return
	}
	i := raise(h.begun, object, blocks)
	if blocks < h.blocks() {
		return
	}
	if i < 0 { // it was begun long ago
		i = len(h.begun)
		h.begun = append(h.begun, head{object, blocks})
	}
	h.settle(i)
}

// settle makes a file that was begun a known one.
// REQUIRES: h.mu is held.
func (h *Heads) settle(i int) {
	if len(h.known) == agree {
		h.known = slices.Delete(h.known, 0, 1)
	}
	h.known = append(h.known, h.begun[i])
	h.begun = slices.Delete(h.begun, i, i+1)
}

// raise notes how far an object was read if it is among some, and returns where; else -1.
func raise(some []head, object uint32, blocks int) int {
	i := slices.IndexFunc(some, func(k head) bool { return k.object == object })
	if i >= 0 {
		some[i].blocks = max(some[i].blocks, blocks)
	}
	return i
}
