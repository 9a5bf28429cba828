package evict

import (
	"sync"
	"sync/atomic"
)

// Pattern watches a sample of a dataset's blocks and tells whether some are
// read much more often than others. Epochs are not skewed, whatever their order
// and whatever part of the dataset they read: each block that they read at all
// they read equally often. Nor are reads at random. Its methods may be called
// from any goroutine.
type Pattern struct {
	mask atomic.Uint64 // blocks whose hash has none of these bits are watched

	mu    sync.Mutex
	reads map[uint64]uint32 // +checklocks:mu — by hash of the block
	sum   uint64            // +checklocks:mu
}

const (
	mostWatched  = 1024
	leastWatched = 64 // fewer say nothing
	leastReads   = 1.5
	// skewed is the least square of the coefficient of variation of the rates at
	// which blocks are read. Half of the blocks read three times as often as the
	// others is 0.25, Zipf with exponent 0.8 over 1,000 blocks is 6.
	skewed   = 0.5
	forgetAt = 16 // reads of a block on average at which all counts are halved
)

// Read notes a read of a block. It does not allocate for blocks that are not
// watched, or were read before.
func (p *Pattern) Read(shard uint32, block int) {
	h := mix(uint64(shard)<<32 | uint64(uint32(block)))
	if h&p.mask.Load() != 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if h&p.mask.Load() != 0 {
		return
	}
	if p.reads == nil {
		p.reads = map[uint64]uint32{}
	}
	p.reads[h]++
	p.sum++
	for len(p.reads) > mostWatched {
		p.thin()
	}
	if p.sum > forgetAt*mostWatched && p.sum > forgetAt*uint64(len(p.reads)) {
		p.halve()
	}
}

// thin watches half as many blocks from now on. REQUIRES: p.mu is held.
func (p *Pattern) thin() {
	mask := p.mask.Load()<<1 | 1
	p.mask.Store(mask)
	for h, n := range p.reads {
		if h&mask != 0 {
			p.sum -= uint64(n)
			delete(p.reads, h)
		}
	}
}

// halve lets what was long ago count less. REQUIRES: p.mu is held.
func (p *Pattern) halve() {
	p.sum = 0
	for h, n := range p.reads {
		if n /= 2; n == 0 {
			delete(p.reads, h)
		} else {
			p.reads[h] = n
			p.sum += uint64(n)
		}
	}
}

// Skewed reports whether the reads so far are skewed. What chance alone would
// vary is taken off: with Poisson's law the variance of counts of equal rates is
// their mean.
func (p *Pattern) Skewed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := float64(len(p.reads))
	mean := float64(p.sum) / max(n, 1)
	if n < leastWatched || mean < leastReads {
		return false
	}
	squares := 0.0
	for _, c := range p.reads {
		squares += (float64(c) - mean) * (float64(c) - mean)
	}
	return (squares/n-mean)/(mean*mean) > skewed
}

// mix spreads a number over all bits (the finalizer of SplitMix64; Steele, Lea,
// Flood: Fast splittable pseudorandom number generators, OOPSLA 2014).
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
