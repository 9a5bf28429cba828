package guard

import "testing"

// Whoever joins makes work no less urgent, also one without a priority.
func TestUrgencyOnlyRises(t *testing.T) {
	for _, c := range []struct{ first, second, want Priority }{
		{Demand, 0, Demand}, {Demand, Preload, Demand}, {Preload, 0, Prefetch}, {Preload, Demand, Demand}, {0, Preload, Prefetch}, {0, 0, Prefetch},
	} {
		u := NewUrgency(c.first)
		u.Join(c.second)
		if got := u.Priority(); got != c.want {
			t.Errorf("%d joined by %d is %d, want %d", c.first, c.second, got, c.want)
		}
	}
}
