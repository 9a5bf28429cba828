package redisplace

import (
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"

	"stoker.dev/internal/testenv"
	"stoker.dev/ufs/budget"
	"stoker.dev/ufs/budget/budgettest"
)

func TestClaims(t *testing.T) {
	address := testenv.StartRedis(t)
	budgettest.Run(t, func(t *testing.T) (budget.Table, func(time.Duration), func()) {
		x := open(t, address)
		return x, func(d time.Duration) { <-time.After(d) }, func() {
			if err := x.c.Del(t.Context(), x.claims("store:9000")).Err(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestClaimsInProcess(t *testing.T) {
	budgettest.Run(t, func(t *testing.T) (budget.Table, func(time.Duration), func()) {
		m := miniredis.RunT(t)
		now := time.Now()
		m.SetTime(now)
		return open(t, m.Addr()), func(d time.Duration) { now = now.Add(d); m.SetTime(now) }, m.FlushAll
	})
}
