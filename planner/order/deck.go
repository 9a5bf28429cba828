package order

import "slices"

// Deck shuffles n samples, as torch.randperm does with a generator of the CPU. It
// holds 4 bytes for each sample, and may be used from one goroutine at a time.
type Deck struct {
	cards []uint32
	swaps []uint32 // of the last deal, if it was short: undone before the next
	dealt bool
	mt    twister
}

// NewDeck has the samples 0 to n-1. REQUIRES: 0 < n <= MostSamples.
func NewDeck(n int) *Deck { return &Deck{cards: make([]uint32, n)} }

// Deal returns the first most samples of an epoch, or all. They are valid until the
// next deal.
func (d *Deck) Deal(s Sampler, epoch uint64, most int) []uint32 {
	n := len(d.cards)
	most = min(most, n)
	d.gather()
	d.dealt = true
	keep := most < n/8 // putting the deck in order costs more than that
	d.mt.seed(uint32(s.Seed + epoch))
	var to [words]uint32
	for i := 0; i < min(most, n-1); {
		block := d.mt.next()
		k := min(len(to), min(most, n-1)-i)
		for j := range k { // apart from the swaps, whose reads of memory overlap then
			to[j] = uint32(i+j) + block[j]%uint32(n-i-j)
		}
		for j, at := range to[:k] {
			d.cards[i+j], d.cards[at] = d.cards[at], d.cards[i+j]
		}
		if keep {
			d.swaps = append(d.swaps, to[:k]...)
		}
		i += k
	}
	return d.cards[:most]
}

// Take is Deal of all of an epoch, into memory that is the caller's.
func (d *Deck) Take(s Sampler, epoch uint64) []uint32 {
	d.Deal(s, epoch, len(d.cards))
	all := d.cards
	d.cards, d.dealt = nil, false
	return all
}

// gather puts the samples in order again.
func (d *Deck) gather() {
	if d.dealt && len(d.swaps) > 0 {
		for i, at := range slices.Backward(d.swaps) {
			d.cards[i], d.cards[at] = d.cards[at], d.cards[i]
		}
		d.swaps = d.swaps[:0]
		return
	}
	for i := range d.cards {
		d.cards[i] = uint32(i)
	}
}

// Permutation is the order of n samples in an epoch, of all ranks together.
func (s Sampler) Permutation(n int, epoch uint64) []uint32 { return NewDeck(n).Take(s, epoch) }

const (
	words = 624 // of the twister's state
	ahead = 397
)

// twister is mt19937, of which PyTorch takes the low 32 bits of a seed.
type twister struct {
	state [words]uint32
	out   [words]uint32
}

func (t *twister) seed(seed uint32) {
	t.state[0] = seed
	for i := 1; i < words; i++ {
		p := t.state[i-1]
		t.state[i] = 1812433253*(p^p>>30) + uint32(i)
	}
}

func twist(a, b, far uint32) uint32 {
	y := a&0x80000000 | b&0x7fffffff
	return far ^ y>>1 ^ -(b&1)&0x9908b0df
}

// next returns the next 624 words, valid until it is called again.
func (t *twister) next() *[words]uint32 {
	s := &t.state
	for i := range words - ahead {
		s[i] = twist(s[i], s[i+1], s[i+ahead])
	}
	for i := words - ahead; i < words-1; i++ {
		s[i] = twist(s[i], s[i+1], s[i+ahead-words])
	}
	s[words-1] = twist(s[words-1], s[0], s[ahead-1])
	for i, y := range s {
		y ^= y >> 11
		y ^= y << 7 & 0x9d2c5680
		y ^= y << 15 & 0xefc60000
		t.out[i] = y ^ y>>18
	}
	return &t.out
}
