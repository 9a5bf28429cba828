package evict

import (
	"math/rand/v2"
	"sync"
	"testing"

	"stoker.dev"
)

func nothing() []Shard { return nil }

// A share keeps what is here, until its reads are seen to be skewed or LFU is
// asked for; then what is here counts, and goes for what is read more often.
func TestShareChangesItsMode(t *testing.T) {
	var s Share
	if ok, victims := s.Admit(shard(0), 0, nothing); ok || len(victims) > 0 || s.InForce() != KeepMode {
		t.Errorf("without room, unknown reads: %v, %d victims, %s", ok, len(victims), s.InForce())
	}
	for _, n := range zipf(rand.New(rand.NewPCG(1, 1)), 500, 5000, 1, 0) {
		s.Read(uint32(n), 0)
	}
	if s.InForce() != LFUMode {
		t.Fatal("skewed reads are not seen")
	}
	var here []Shard
	for n := range 50 {
		here = append(here, shard(100+n))
	}
	var went []Shard
	for range 20 { // asked for again and again it takes the place of another
		_, victims := s.Admit(shard(7), 0, func() []Shard { return here })
		went = append(went, victims...)
	}
	if len(went) == 0 || len(went) > 3 || went[0].Number < 100 {
		t.Errorf("%d shards went for one: %+v", len(went), went)
	}
	if !s.Read(7, 0) {
		t.Error("uses do not count under LFU")
	}
	s.Use(KeepMode)
	if s.InForce() != KeepMode || s.Read(7, 0) {
		t.Error("Keep was asked for, and LFU is in force")
	}
	s.Use(LFUMode)
	if ok, _ := s.Admit(shard(1), shard(1).Bytes, nothing); !ok || s.InForce() != LFUMode {
		t.Error("what fits is not admitted")
	}
	s.Held()
	if s.Read(1, 0) {
		t.Error("uses count while a job holds the data")
	}
}

func TestShareIsSafeForConcurrentUse(t *testing.T) {
	var s Share
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 2000 {
				x := shard(i*g%97 + 1)
				s.Read(x.Number, i%3)
				s.Used(x.ID, 2)
				s.Admit(x, int64(i%50)*x.Bytes, nothing)
				switch i % 400 {
				case 1:
					s.Use(LFUMode)
				case 201:
					s.Use(Auto)
				case 301:
					s.Held()
				}
				s.Forget(shard(i % 97).ID)
			}
		})
	}
	wg.Wait()
}

func TestShareDoesNotAllocateForReads(t *testing.T) {
	var s Share
	s.Use(LFUMode)
	s.Admit(shard(1), 1<<40, nothing)
	id := stoker.ID{1}
	if n := testing.AllocsPerRun(2000, func() { s.Read(1, 0); s.Used(id, 4) }); n != 0 {
		t.Errorf("%v allocations a read", n)
	}
}
