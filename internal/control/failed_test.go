package control

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"stoker.dev/internal/api"
)

// Pages of several workers make pages of the dataset: whatever each of them has,
// every failing object is told once, in order.
func TestMergedPagesLoseNothing(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for round := range 200 {
		workers, want := make([][]string, 1+r.IntN(4)), map[string]bool{}
		for range r.IntN(60) {
			path := fmt.Sprintf("p%03d", r.IntN(80))
			want[path] = true
			for range 1 + r.IntN(2) {
				w := r.IntN(len(workers))
				workers[w] = append(workers[w], path)
			}
		}
		for w := range workers {
			slices.Sort(workers[w])
			workers[w] = slices.Compact(workers[w])
		}
		limit, after, got := 1+r.IntN(9), "", []string{}
		for n := 0; ; n++ {
			var pages []api.FailurePage
			for _, all := range workers {
				pages = append(pages, cut(all, after, limit))
			}
			p := mergePages(pages, limit)
			if len(p.Failed) > limit || n > 100 {
				t.Fatalf("round %d: a page of %d, the %d-th", round, len(p.Failed), n)
			}
			for _, f := range p.Failed {
				got = append(got, f.Path)
			}
			if after = p.Next; after == "" {
				break
			}
		}
		all := []string{}
		for path := range want {
			all = append(all, path)
		}
		slices.Sort(all)
		if !slices.Equal(got, all) {
			t.Fatalf("round %d, %d a page: got %v, want %v of %v", round, limit, got, all, workers)
		}
	}
}

func cut(all []string, after string, limit int) (p api.FailurePage) {
	for _, path := range all {
		if strings.Compare(path, after) > 0 && len(p.Failed) < limit {
			p.Failed = append(p.Failed, api.Failure{Path: path})
		} else if path > after && p.Next == "" {
			p.Next = p.Failed[limit-1].Path
		}
	}
	p.Total = len(all)
	return p
}
