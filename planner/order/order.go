// Package order computes the order in which a training job reads its samples,
// from what its user says of the job's sampler. It is pure: the same sampler gives
// the same order everywhere, to the last element that of the framework.
package order

import (
	"strconv"
	"strings"

	"stoker.dev"
)

const (
	framework = "pytorch"
	maxWorld  = 1 << 20
	maxSpec   = 128 // bytes

	// MostSamples is how many a dataset may have: from there on the order depends on
	// the version of PyTorch.
	MostSamples = (1<<32-1)/20 - 1
)

// Sampler is PyTorch's DistributedSampler with shuffle: all ranks shuffle the samples
// by seed + epoch, and rank r of world takes each world-th from the r-th on.
type Sampler struct {
	Seed     uint64
	World    int  // ranks: processes of the job that have a sampler each
	DropLast bool // samples that are left over are dropped, not filled up with the first ones
}

// Parse reads a sampler as users write it: pytorch:seed=0,world=8[,drop_last].
func Parse(spec string) (Sampler, error) {
	bad := func(format string, args ...any) (Sampler, error) {
		if len(spec) > maxSpec {
			spec = spec[:maxSpec] + "…"
		}
		return Sampler{}, stoker.Errorf(stoker.KindInvalid, "sampler", strconv.Quote(spec), format, args...)
	}
	kind, rest, _ := strings.Cut(spec, ":")
	if kind != framework || len(spec) > maxSpec {
		return bad("is not known: write pytorch:seed=0,world=8")
	}
	var s Sampler
	said := map[string]bool{}
	for _, part := range strings.Split(rest, ",") {
		if rest == "" {
			break
		}
		key, value, valued := strings.Cut(part, "=")
		if said[key] {
			return bad("says %s twice", key)
		}
		said[key] = true
		switch key {
		case "seed":
			n, err := strconv.ParseUint(value, 10, 63)
			if err != nil {
				return bad("seed=%s: want a whole number, 0 or more: that of DistributedSampler(seed=…)", value)
			}
			s.Seed = n
		case "world":
			n, err := strconv.Atoi(value)
			if err != nil || n < 1 || n > maxWorld {
				return bad("world=%s: want how many ranks the job has, 1 to %d", value, maxWorld)
			}
			s.World = n
		case "drop_last":
			if valued {
				return bad("drop_last has no value: write it alone, or leave it out")
			}
			s.DropLast = true
		default:
			return bad("has the key %q, which is not known: they are seed=, world= and drop_last", key)
		}
	}
	if s.World == 0 {
		return bad("lacks world=N: how many ranks (processes that train) the job has")
	}
	return s, nil
}

// String is what Parse reads; samplers that are the same are written the same.
func (s Sampler) String() string {
	text := framework + ":seed=" + strconv.FormatUint(s.Seed, 10) + ",world=" + strconv.Itoa(s.World)
	if s.DropLast {
		text += ",drop_last"
	}
	return text
}

// Steps is how many of n samples each rank reads in an epoch.
func (s Sampler) Steps(n int) int {
	if s.DropLast {
		return n / s.World
	}
	return (n + s.World - 1) / s.World
}

// At returns the sample that a rank reads at a step, of an epoch's permutation.
func (s Sampler) At(permutation []uint32, rank, step int) uint32 {
	return permutation[(step*s.World+rank)%len(permutation)] // the first ones fill up
}
