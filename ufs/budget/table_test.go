package budget_test

import (
	"testing"
	"time"

	"stoker.dev/ufs/budget"
	"stoker.dev/ufs/budget/budgettest"
)

// swapped is a table that can be replaced by an empty one.
type swapped struct{ budget.Table }

func TestMem(t *testing.T) {
	budgettest.Run(t, func(*testing.T) (budget.Table, func(time.Duration), func()) {
		x := &swapped{budget.NewMem()}
		return x, func(d time.Duration) { <-time.After(d) }, func() { x.Table = budget.NewMem() }
	})
}
