// Package budgettest holds the suite that every table of claims passes.
package budgettest

import (
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"stoker.dev"
	"stoker.dev/ufs/budget"
)

// Run runs the suite. fresh makes an empty table, says how its clock is moved
// on, and how it is emptied.
func Run(t *testing.T, fresh func(t *testing.T) (x budget.Table, advance func(time.Duration), empty func())) {
	for name, test := range map[string]func(*suite){
		"SumIsKept": (*suite).sum, "WhoLeavesLeavesHisShare": (*suite).leave, "SilentOnesEnd": (*suite).silent,
		"Emptied": (*suite).emptied, "FlowsAreTold": (*suite).flows, "Concurrent": (*suite).concurrent,
	} {
		t.Run(name, func(t *testing.T) {
			s := &suite{T: t}
			s.x, s.advance, s.empty = fresh(t)
			test(s)
		})
	}
}

type suite struct {
	*testing.T
	x       budget.Table
	advance func(time.Duration)
	empty   func()
}

var total = budget.Amount{1000, 100}

const (
	endpoint = "store:9000"
	ttl      = time.Hour
)

// ask claims and returns what was granted, and how many claims are in force.
func (s *suite) ask(member stoker.Incarnation, held, ask budget.Amount) (budget.Amount, int) {
	s.Helper()
	return s.askFor(ttl, member, held, ask)
}

func (s *suite) askFor(ttl time.Duration, member stoker.Incarnation, held, ask budget.Amount) (budget.Amount, int) {
	s.Helper()
	all, err := s.x.Claim(s.Context(), endpoint, budget.Claim{Member: member, Ask: ask, Held: held}, total, ttl)
	if err != nil {
		s.Fatal(err)
	}
	sum := budget.Amount{}
	var own budget.Amount
	for _, e := range all {
		for k := range sum {
			sum[k] += e.Granted[k]
		}
		if e.Member == member {
			own = e.Granted
		}
	}
	for k := range sum {
		if sum[k] > total[k]+0.01 {
			s.Errorf("%v are granted, of %v", sum, total)
		}
	}
	return own, len(all)
}

func (s *suite) want(got budget.Amount, bytes, requests float64) {
	s.Helper()
	if math.Abs(got[budget.Bytes]-bytes) > 0.01 || math.Abs(got[budget.Requests]-requests) > 0.01 {
		s.Errorf("granted %v, want %v and %v", got, bytes, requests)
	}
}

func (s *suite) sum() {
	got, _ := s.ask(1, budget.Amount{}, budget.Amount{900, 10})
	s.want(got, 900, 10)
	got, n := s.ask(2, budget.Amount{}, budget.Amount{500, 50})
	if s.want(got, 100, 50); n != 2 {
		s.Errorf("%d claims", n)
	}
	got, _ = s.ask(1, budget.Amount{900, 10}, budget.Amount{400, 80})
	s.want(got, 400, 50)
	got, _ = s.ask(2, got, budget.Amount{700, 0})
	s.want(got, 600, 0)
}

func (s *suite) leave() {
	s.ask(1, budget.Amount{}, total)
	if err := s.x.Quit(s.Context(), endpoint, 1); err != nil {
		s.Fatal(err)
	}
	got, n := s.ask(2, budget.Amount{}, total)
	if s.want(got, 1000, 100); n != 1 {
		s.Errorf("%d claims", n)
	}
}

func (s *suite) silent() {
	const short = 2 * time.Second // a busy machine takes its time
	s.askFor(short, 1, budget.Amount{}, budget.Amount{600, 60})
	got, _ := s.ask(2, budget.Amount{}, total)
	s.want(got, 400, 40)
	s.advance(short + 50*time.Millisecond)
	got, n := s.ask(2, got, total)
	if s.want(got, 1000, 100); n != 1 {
		s.Errorf("%d claims", n)
	}
}

func (s *suite) emptied() {
	a, _ := s.ask(1, budget.Amount{}, budget.Amount{300, 30})
	b, _ := s.ask(2, budget.Amount{}, budget.Amount{700, 70})
	s.empty()
	got, _ := s.ask(1, a, total)
	s.want(got, 300, 30) // it does not know yet what others have
	got, _ = s.ask(3, budget.Amount{}, total)
	s.want(got, 0, 0)
	got, n := s.ask(2, b, budget.Amount{100, 100})
	if s.want(got, 700, 70); n != 3 {
		s.Errorf("%d claims", n)
	}
	got, _ = s.ask(2, got, budget.Amount{100, 100})
	s.want(got, 100, 70)
}

func (s *suite) flows() {
	want := []budget.Flow{{Class: budget.Demand, Name: "0123456789ab", Want: budget.Amount{1.5, 2}}, {Class: budget.Preload, Want: budget.Amount{1e12, 0}}}
	for _, f := range [][]budget.Flow{want, nil} {
		if _, err := s.x.Claim(s.Context(), endpoint, budget.Claim{Member: 7, Flows: f}, total, ttl); err != nil {
			s.Fatal(err)
		}
		all, err := s.x.Claim(s.Context(), endpoint, budget.Claim{Member: 8}, total, ttl)
		if err != nil || len(all) != 2 {
			s.Fatalf("%v: %v", all, err)
		}
		for _, e := range all {
			if e.Member == 7 && (len(e.Flows) != len(f) || len(f) > 0 && (e.Flows[0] != f[0] || e.Flows[1] != f[1])) {
				s.Errorf("told %v, heard %v", f, e.Flows)
			}
		}
	}
	if all, err := s.x.Claim(s.Context(), "other", budget.Claim{Member: 8}, total, ttl); err != nil || len(all) != 1 {
		s.Errorf("another endpoint has %v: %v", all, err)
	}
}

func (s *suite) concurrent() {
	var wg sync.WaitGroup
	for n := range stoker.Incarnation(8) {
		wg.Go(func() {
			var held budget.Amount
			for range 30 {
				held, _ = s.ask(n+1, held, budget.Amount{rand.Float64() * 1000, rand.Float64() * 100})
			}
		})
	}
	wg.Wait()
}
