package store

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"stoker.dev"
)

// However many create, write, reserve and remove at the same time, the folder
// never takes more than its limit.
func TestLimitIsHard(t *testing.T) {
	const capacity = baseOverhead + 3<<20
	s := open(t, t.TempDir(), capacity)
	var work, watch sync.WaitGroup
	var refused, most atomic.Int64
	done := make(chan struct{})
	watch.Go(func() {
		for last := false; !last; {
			select {
			case <-done:
				last = true
			default:
			}
			// Under the lock no file comes or goes: the sum is of one moment.
			s.mu.Lock()
			sum, used, reserved := allocated(t, s.folders[0].dir), s.folders[0].usedLocked(), s.reservedLocked()
			s.mu.Unlock()
			most.Store(max(most.Load(), sum))
			if sum > capacity || used > capacity || used+reserved > capacity || sum > used {
				t.Errorf("%d bytes are allocated, %d charged, %d reserved, the limit is %d", sum, used, reserved, capacity)
				return
			}
		}
	})
	for g := range uint64(6) {
		work.Go(func() {
			r := rand.New(rand.NewPCG(7, g))
			for range 60 {
				refused.Add(int64(churn(t, s, r, fmt.Sprint("r", g))))
			}
		})
	}
	work.Wait()
	close(done)
	watch.Wait()
	if refused.Load() == 0 || most.Load() < capacity/2 {
		t.Errorf("the limit was not put to the test: %d refusals, %d bytes at most", refused.Load(), most.Load())
	}
}

// churn makes, fills and removes shards; it returns how often space was refused.
func churn(t *testing.T, s *Store, r *rand.Rand, name string) (refused int) {
	spec := specOf(r.Uint64N(40), 1+r.IntN(100))
	spec.Blocks = 1 + int(spec.ID[7])%100 // the same for all who make it
	spec.Bytes = int64(spec.Blocks)*testBlock - 1000
	from := ""
	if r.IntN(2) == 0 {
		from = name
		if err := s.Reserve(name, s.ChargeBytes(spec.Bytes, spec.Blocks)); err != nil {
			wantKind(t, err, stoker.KindNoSpace)
			refused++
		}
	}
	sh, err := s.Create(spec, from)
	if err != nil {
		wantKind(t, err, stoker.KindNoSpace)
		refused++
	} else {
		write(t, sh, r.Perm(spec.Blocks)...)
		if r.IntN(2) == 0 {
			if err := sh.Seal(); err != nil {
				t.Error(err)
			}
		}
	}
	if err != nil || r.IntN(3) == 0 {
		if err := s.Remove(specOf(r.Uint64N(40), 1).ID); err != nil {
			t.Error(err)
		}
	}
	if sh != nil {
		sh.Release()
	}
	if r.IntN(4) == 0 {
		if err := s.Unreserve(name); err != nil {
			t.Error(err)
		}
	}
	return refused
}

// Small blocks in any order make a file of many extents, and what the file
// system notes of them takes space too.
func TestChargeCoversExtents(t *testing.T) {
	const blocks = 8192
	s := open(t, t.TempDir(), 256<<20)
	sh := create(t, s, Spec{ID: stoker.ID{1}, Bytes: blocks * testBlock, Blocks: blocks})
	defer sh.Release()
	p := make([]byte, testBlock)
	p[0] = 1
	for i, b := range rand.New(rand.NewPCG(3, 4)).Perm(blocks) {
		if _, err := sh.Write(b, int64(b)*testBlock, p); err != nil {
			t.Fatal(err)
		}
		if i%64 == 63 { // now the file system must say where they lie
			if err := sh.File().Sync(); err != nil {
				t.Fatal(err)
			}
		}
	}
	var sum int64
	for _, suffix := range []string{dataSuffix, indexSuffix} {
		var st syscall.Stat_t
		if err := syscall.Stat(s.folders[0].path(sh.ID(), suffix), &st); err != nil {
			t.Fatal(err)
		}
		sum += st.Blocks * 512
	}
	if charge := s.ChargeBytes(sh.Spec().Bytes, blocks); sum > charge {
		t.Errorf("%d bytes are allocated, %d charged", sum, charge)
	}
}
