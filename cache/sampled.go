package cache

import (
	"context"
	"sync/atomic"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/cache/prefetch"
	"stoker.dev/internal/api"
	"stoker.dev/planner/order"
)

const (
	// ordersPart is which part of the process's memory the orders of samplers take.
	ordersPart = 4
	runBytes   = 16 // of samples
)

// Sampled reads a dataset for a job whose sampler is known. It reads as the Set does,
// and brings in what the job's ranks will read next, once their reads show that they
// keep to the order.
type Sampled struct {
	s       *Set
	sampler order.Sampler
	ended   atomic.Bool
	known   atomic.Pointer[known] // nil: not yet, or never
}

type known struct {
	files  *samples
	epochs *prefetch.Epochs
	bytes  int64 // of memory
}

// Sampled is for the files that some has; nil: all. Close it before the Set.
func (s *Set) Sampled(sampler order.Sampler, some *api.Selector) *Sampled {
	r := &Sampled{s: s, sampler: sampler}
	if s.c.o.ReadAheadBytes < 0 {
		s.log().Info("the job's order is not followed: nothing is read ahead here", "sampler", sampler.String())
		return r
	}
	r.background(func() { r.learn(some) })
	return r
}

// background runs f unless the cache is closing.
func (r *Sampled) background(f func()) {
	if r.s.c.stop.Err() == nil {
		r.s.background(f)
	}
}

func (r *Sampled) stopped() bool { return r.ended.Load() || r.s.c.stop.Err() != nil }

// learn numbers the files. Data of which the order would take too much memory is read
// as any other.
func (r *Sampled) learn(some *api.Selector) {
	c := r.s.c
	files := samplesOf(r.s.man, some, r.stopped)
	log := r.s.log().With("sampler", r.sampler.String(), "samples", files.n)
	switch {
	case r.stopped():
		return
	case files.n < prefetch.LeastSamples:
		log.Info("the job's order is not followed: these are few files")
		return
	case files.n > order.MostSamples:
		log.Warn("the job's order is not followed: that of so many samples depends on the version of PyTorch")
		return
	}
	k := &known{files: files, bytes: prefetch.Memory(files.n) + runBytes*int64(len(files.runs))}
	if most := c.memory.limit / ordersPart; c.orders.Add(k.bytes) > most {
		c.orders.Add(-k.bytes)
		log.Warn("the job's order is not followed: there is too little memory for it, give the worker more with --memory", "needs", api.HumanBytes(k.bytes), "all orders may take", api.HumanBytes(most))
		return
	}
	k.epochs = prefetch.NewEpochs(r.sampler, files.n, files.bytes)
	k.epochs.Limit(c.o.ReadAheadBytes)
	k.epochs.Found = func() { r.s.count(func(x *Reads) { x.Epochs.Add(1) }) }
	r.known.Store(k)
	if r.ended.Load() {
		r.forget()
	}
}

// forget gives the memory back, once.
func (r *Sampled) forget() {
	if k := r.known.Swap(nil); k != nil {
		r.s.c.orders.Add(-k.bytes)
	}
}

// Close ends what it does by itself.
func (r *Sampled) Close() {
	r.ended.Store(true)
	r.forget()
}

// ReadAt is Set.ReadAt.
func (r *Sampled) ReadAt(ctx context.Context, row manifest.Row, p []byte, off int64) (int, error) {
	n, waited, err := r.s.read(ctx, row, p, off)
	if off == 0 && err == nil {
		r.opened(row, waited)
	}
	return n, err
}

// opened takes in that a file is read from its beginning, and begins to bring in
// those that its rank reads next.
func (r *Sampled) opened(row manifest.Row, waited bool) {
	k := r.known.Load()
	if k == nil {
		return
	}
	number, ok := k.files.number(row)
	if !ok {
		return
	}
	turn, think := k.epochs.Note(number, waited)
	if think {
		r.background(func() { k.epochs.Think(r.stopped) })
	}
	for i, sample := range turn.Samples[:turn.N] {
		if !r.bring(k.files.row(sample)) {
			k.epochs.Return(turn, i)
			return
		}
	}
}

// bring begins to bring in a file, or of a very large one what a stream has ahead of
// its reader at most. false: no more may run now.
func (r *Sampled) bring(row manifest.Row) bool {
	const window = demandWindow * stoker.BlockBytes
	e := r.s.man.Entry(row)
	for off, end := int64(0), min(e.Bytes, r.s.c.o.ReadAheadBytes); off < end; off += window {
		if !r.s.fillPiece(row, e, off, min(off+window, end)) {
			return false
		}
	}
	return true
}
