package planner

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"testing"

	"stoker.dev"
)

// BenchmarkPlace plans from nothing; the largest is a million shards (64 TB)
// on a thousand workers, on one core.
func BenchmarkPlace(b *testing.B) {
	for _, size := range []struct{ shards, workers int }{{4_000, 200}, {100_000, 1000}, {1_000_000, 1000}} {
		for _, even := range []bool{true, false} {
			b.Run(fmt.Sprintf("%d-on-%d-even=%v", size.shards, size.workers, even), func(b *testing.B) {
				defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
				shards, workers := make([]Shard, size.shards), make([]Worker, size.workers)
				for i := range shards {
					var id stoker.ID
					binary.LittleEndian.PutUint64(id[:], uint64(i)*0x9e3779b97f4a7c15+1)
					shards[i] = Shard{ID: id, Bytes: 16<<20 + int64(i*7919%112)<<20}
				}
				for i := range workers {
					workers[i] = Worker{ID: fmt.Sprintf("%032x", i), FreeBytes: 1 << 50, Weight: 1}
					if !even {
						workers[i].Weight += float64(i % 4)
					}
				}
				b.ReportAllocs()
				for b.Loop() {
					if _, err := Place(shards, workers, PlaceOptions{}); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
