package posixufs

import (
	"slices"
	"sync"
)

// Bounds of the listings that wait for their next page. One that was dropped
// is begun again where its last page ended, which costs another reading of the
// folder.
const (
	keptScans = 64
	keptNames = 8 * windowNames
)

// scans keeps listings between their pages.
type scans struct {
	mu    sync.Mutex
	next  uint64  // +checklocks:mu
	kept  []*scan // +checklocks:mu — the oldest first
	names int     // +checklocks:mu — held by them
}

func (s *scan) held() (n int) {
	for _, l := range s.levels {
		n += l.held
	}
	return n
}

// keep keeps a listing for its next page and returns what it is taken by.
func (k *scans) keep(s *scan) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.next++
	s.id = formatID(k.next)
	k.kept = append(k.kept, s)
	k.names += s.held()
	for len(k.kept) > 1 && (len(k.kept) > keptScans || k.names > keptNames) {
		k.names -= k.kept[0].held()
		k.kept = slices.Delete(k.kept, 0, 1)
	}
	return s.id
}

// take returns the listing that was kept at a key, or nil.
func (k *scans) take(id, last string) *scan {
	k.mu.Lock()
	defer k.mu.Unlock()
	i := slices.IndexFunc(k.kept, func(s *scan) bool { return s.id == id && s.last == last })
	if i < 0 {
		return nil
	}
	s := k.kept[i]
	k.kept = slices.Delete(k.kept, i, i+1)
	k.names -= s.held()
	return s
}
