package budget

import (
	"cmp"
	"slices"

	"stoker.dev"
)

// Of the whole limit: what all members together hold without a want, so that a
// reader who comes is served at once, and what only demand is granted.
const (
	floorPart = 0.02
	slackPart = 0.02
)

// Share is what one member may take, and of it what each of its flows.
type Share struct {
	Sum   Amount
	Flows []Amount // of the member's own, in their order
}

// Fair divides total among the claims and returns the part of one member. A
// more urgent class is served first, within it a higher rank. Of one rank the datasets get equal parts,
// none more than it wants (max-min fairness, Bertsekas and Gallager, Data
// Networks, 1992, §6.5.2), and within a dataset its members likewise. Half of
// what nobody wants is spread over all members: it is what sudden readers take.
// The same claims give the same shares, whoever computes them.
func Fair(total Amount, claims []Entry, member stoker.Incarnation) Share {
	self := slices.IndexFunc(claims, func(e Entry) bool { return e.Member == member })
	if self < 0 {
		return Share{}
	}
	out := Share{Flows: make([]Amount, len(claims[self].Flows))}
	for k := range kinds {
		divide(total[k], claims, self, k, &out)
	}
	return out
}

// want is one member's for one dataset.
type want struct {
	name   string
	rank   int64
	amount float64
	own    int // number of the flow if it is the member's own, else -1
}

func divide(total float64, claims []Entry, self, k int, out *Share) {
	members := float64(len(claims))
	left := total * (1 - floorPart)
	out.Sum[k] = total * floorPart / members
	for class := Demand; class <= Repair; class++ {
		if class == Prefetch {
			left -= total * slackPart
		}
		var wants []want
		for i, e := range claims {
			for j, f := range e.Flows {
				if f.Class != class || !(f.Want[k] > 0) {
					continue
				}
				w := want{f.Name, f.Rank, f.Want[k], -1}
				if i == self {
					w.own = j
				}
				wants = append(wants, w)
			}
		}
		for _, equal := range byRank(wants) {
			if left <= 0 {
				break
			}
			left = serve(left, equal, func(own int, amount float64) {
				out.Flows[own][k] += amount
				out.Sum[k] += amount
			})
		}
	}
	out.Sum[k] += max(0, left) / 2 / members
}

// byRank parts the wants of one class by their rank, the highest first.
func byRank(wants []want) (parts [][]want) {
	slices.SortStableFunc(wants, func(a, b want) int { return cmp.Compare(b.rank, a.rank) })
	for from, i := 0, 1; i <= len(wants); i++ {
		if i == len(wants) || wants[i].rank != wants[from].rank {
			parts, from = append(parts, wants[from:i]), i
		}
	}
	return parts
}

// serve divides what is left among the wants of one rank and returns the rest.
func serve(left float64, wants []want, give func(own int, amount float64)) float64 {
	slices.SortStableFunc(wants, func(a, b want) int { return cmp.Compare(a.name, b.name) })
	var sums []float64 // of each dataset
	var of []int       // for each want its dataset
	for i, w := range wants {
		if i == 0 || w.name != wants[i-1].name {
			sums = append(sums, 0)
		}
		sums[len(sums)-1] += w.amount
		of = append(of, len(sums)-1)
	}
	top := level(left, sums)
	for from := 0; from < len(wants); {
		to := from
		var amounts []float64
		for ; to < len(wants) && of[to] == of[from]; to++ {
			amounts = append(amounts, wants[to].amount)
		}
		has := min(top, sums[of[from]])
		left -= has
		inner := level(has, amounts)
		for _, w := range wants[from:to] {
			if w.own >= 0 {
				give(w.own, min(inner, w.amount))
			}
		}
		from = to
	}
	return left
}

// level is the most that anyone gets of amount, so that those who want less
// get that and all others the same.
func level(amount float64, wants []float64) float64 {
	sorted := slices.Clone(wants)
	slices.Sort(sorted)
	for i, w := range sorted {
		each := amount / float64(len(sorted)-i)
		if w >= each {
			return each
		}
		amount -= w
	}
	return sorted[len(sorted)-1]
}
