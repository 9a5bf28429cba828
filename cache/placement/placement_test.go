package placement_test

import (
	"sync"
	"testing"
	"time"

	"stoker.dev/cache/placement"
	"stoker.dev/cache/placement/placementtest"
)

func TestMem(t *testing.T) {
	placementtest.Run(t, func(*testing.T) (placement.Index, func(time.Duration)) {
		var mu sync.Mutex
		now := time.Unix(1_000_000, 0)
		clock := func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
		return placement.NewMem(clock), func(d time.Duration) { mu.Lock(); defer mu.Unlock(); now = now.Add(d) }
	})
}
