package cache

import (
	"slices"
	"strings"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/internal/api"
)

// keptFailures bounds the objects of one dataset of which a worker knows why it
// could not have them; the others are missing without a reason.
const keptFailures = 50_000

// shardSum is what a shard has. An object of several shards counts in the one
// that has its end.
type shardSum struct{ bytes, objects int64 }

// objectBytes is how many bytes of objects shard n has.
func (s *Set) objectBytes(n uint32) int64 { return s.sumOf(n).bytes }

// sumOf adds up a shard. All shards are added up when first asked for, and
// remembered while the dataset is known here.
func (s *Set) sumOf(n uint32) shardSum {
	sums := s.sums.Load()
	if sums == nil {
		sums = s.c.sumsOf(s)
		s.sums.Store(sums)
	}
	return (*sums)[n]
}

func (c *Cache) sumsOf(s *Set) *[]shardSum {
	c.mu.Lock()
	known := c.sums[s.id]
	c.mu.Unlock()
	if known != nil {
		return known
	}
	sums := make([]shardSum, len(s.slots))
	var members []manifest.Member
	for n := range sums {
		members = s.man.Members(uint32(n), members[:0])
		for i := range members {
			sums[n].bytes += members[i].Bytes
			if s.ends(&members[i]) {
				sums[n].objects++
			}
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sums[s.id] = &sums
	return &sums
}

// ends reports whether a member is the last of its object.
func (s *Set) ends(m *manifest.Member) bool {
	return m.ObjectOff+m.Bytes == s.man.Entry(m.Row).Bytes
}

// residentObjects counts the members of a shard that are here, each with its end.
func (s *Set) residentObjects(n uint32) (count int64) {
	sl := s.shard(n)
	defer sl.mu.RUnlock()
	if sl.sh == nil {
		return 0
	}
	for i := range sl.members {
		m := &sl.members[i]
		whole := s.ends(m)
		for b := int(m.FirstBlock); whole && b < int(m.FirstBlock)+manifest.BlocksOf(m.Bytes); b++ {
			whole = sl.sh.Has(b)
		}
		if whole {
			count++
		}
	}
	return count
}

// running adds up the loads of a manifest that run here; nil: none.
func (ls *loads) running(id stoker.ID) *api.HoldingLoad {
	var out *api.HoldingLoad
	for _, l := range ls.of(id) {
		if out == nil {
			out = &api.HoldingLoad{}
		}
		out.Bytes, out.TotalBytes = out.Bytes+l.bytes.Load(), out.TotalBytes+l.total
		spent := l.spent()
		out.UFSBytes, out.UFSRequests = out.UFSBytes+spent.UFSBytes, out.UFSRequests+spent.UFSRequests
		l.mu.Lock()
		out.FailedObjects += len(l.failed)
		l.mu.Unlock()
	}
	return out
}

// of are the loads of a manifest that run.
func (ls *loads) of(id stoker.ID) (out []*load) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	for _, l := range ls.all {
		if l.manifest != id {
			continue
		}
		select {
		case <-l.done:
		default:
			out = append(out, l)
		}
	}
	return out
}

// Failures tells which objects of a manifest could not be had, and why: so far by
// loads that run here, else by the last ones. They come by path, those behind
// after, limit at most; more says that there are others. total counts all.
func (c *Cache) Failures(id stoker.ID, after string, limit int) api.FailurePage {
	all, running := c.holds.failures(id), c.loads.of(id)
	if len(running) > 0 {
		all = nil
	}
	for _, l := range running {
		all = append(all, l.failures()...)
	}
	slices.SortStableFunc(all, func(a, b api.Failure) int { return strings.Compare(a.Path, b.Path) })
	all = slices.CompactFunc(all, func(a, b api.Failure) bool { return a.Path == b.Path })
	from, _ := slices.BinarySearchFunc(all, after, func(f api.Failure, path string) int {
		if f.Path <= path {
			return -1
		}
		return 1
	})
	if after == "" {
		from = 0
	}
	page := all[from:min(len(all), from+limit)]
	p := api.FailurePage{Failed: slices.Clone(page), Total: len(all)}
	if from+len(page) < len(all) {
		p.Next = page[len(page)-1].Path
	}
	if p.Failed == nil {
		p.Failed = []api.Failure{}
	}
	return p
}
