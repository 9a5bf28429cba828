package manifest

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"stoker.dev"
	"stoker.dev/ufs"
)

func shardIDs(m *Manifest) map[stoker.ID]bool {
	ids := map[stoker.ID]bool{}
	for n := range uint32(m.Shards()) {
		ids[m.Shard(n).ID] = true
	}
	return ids
}

func TestLargeObjectsAreExtents(t *testing.T) {
	for _, c := range []struct {
		size   int64
		shards int
		extent bool
	}{
		{0, 0, false},
		{1, 1, false},
		{stoker.ExtentBytes - 1, 1, false},
		{stoker.ExtentBytes, 1, true},
		{stoker.ExtentBytes + 1, 2, true},
		{5*stoker.ExtentBytes - 1, 5, true},
		{3 << 40, 3 << 14, true},
	} {
		s := newSource()
		s.add("f", c.size)
		m := freeze(t, s)
		checkShards(t, m)
		if m.Shards() != c.shards || c.shards > 0 && (m.Shard(0).Extent == 0) != c.extent {
			t.Errorf("%d bytes are %d shards, want %d; the first is %+v", c.size, m.Shards(), c.shards, m.Shard(0))
		}
		if len(shardIDs(m)) != c.shards {
			t.Errorf("%d bytes: %d shards share ids", c.size, c.shards-len(shardIDs(m)))
		}
	}
}

// Whatever the sizes, members and blocks are in order and aligned, and packs
// have 16 to 128 MiB.
func TestPacksOfAnySizes(t *testing.T) {
	for name, size := range map[string]func(r *rand.Rand) int64{
		"tiny":               func(r *rand.Rand) int64 { return 1 + r.Int64N(3000) },
		"images":             func(r *rand.Rand) int64 { return 20000 + r.Int64N(200000) },
		"around a block":     func(r *rand.Rand) int64 { return stoker.BlockBytes - 1 + r.Int64N(3) },
		"just below extents": func(r *rand.Rand) int64 { return stoker.ExtentBytes - 1 - r.Int64N(100) },
		"mixed":              func(r *rand.Rand) int64 { return int64(1) << r.IntN(29) },
	} {
		t.Run(name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(1, 9))
			s := newSource()
			for i := range 6000 {
				s.add(fmt.Sprintf("d%02d/f%04d", i%20, i), size(r))
			}
			m := freeze(t, s)
			checkShards(t, m)
			if m.Shards() < 1 {
				t.Error("no shards")
			}
		})
	}
}

// imagenet is many folders of images; changed by change.
func imagenet(change func(s *source)) *source {
	r := rand.New(rand.NewPCG(5, 5))
	s := newSource()
	for class := range 120 {
		for i := range 120 {
			s.add(fmt.Sprintf("train/n%08d/n%08d_%d.JPEG", 1440764+class*137, 1440764+class*137, i*7), 400_000+r.Int64N(1_600_000))
		}
	}
	change(s)
	return s
}

// A change of the listing moves only the cuts next to it.
func TestPacksAreStable(t *testing.T) {
	before := shardIDs(freeze(t, imagenet(func(*source) {})))
	if len(before) < 200 {
		t.Fatalf("only %d shards", len(before))
	}
	folder := func(name string) func(s *source) {
		return func(s *source) {
			for i := range 120 {
				s.add(fmt.Sprintf("%s/new_%d.JPEG", name, i), int64(700_000+i))
			}
		}
	}
	for name, c := range map[string]struct {
		change func(s *source)
		keeps  float64
	}{
		"nothing changed":        {func(*source) {}, 1},
		"folder appended":        {folder("train/n99999999"), .98},
		"folder before all":      {folder("train/a"), .98},
		"folder in the middle":   {folder("train/n01450000"), .98},
		"folder at another root": {folder("val"), .98},
		"one file removed":       {func(s *source) { s.Delete("train/n01440764/n01440764_49.JPEG") }, .98},
		"one file grown": {func(s *source) {
			s.versions["train/n01440764/n01440764_49.JPEG"] = ufs.Version{Tag: tagFor("new"), Bytes: 3_000_000}
		}, .98},
	} {
		t.Run(name, func(t *testing.T) {
			kept, after := 0, shardIDs(freeze(t, imagenet(c.change)))
			for id := range before {
				if after[id] {
					kept++
				}
			}
			t.Logf("%d of %d shards are the same", kept, len(before))
			if share := float64(kept) / float64(len(before)); share < c.keeps {
				t.Errorf("%d of %d shards are the same, %.1f %%; want %.0f %%", kept, len(before), share*100, c.keeps*100)
			}
		})
	}
}

// A shard's id is of its members: not of where they stand in the listing, or
// under which folder a root is joined.
func TestShardIDIsOfItsMembers(t *testing.T) {
	size := int64(packMin + 5)
	for name, c := range map[string]struct {
		change func(s *source, o *BuildOptions)
		same   bool
	}{
		"rows before it": {func(s *source, _ *BuildOptions) { s.add("a", 0) }, true},
		"root's folder":  {func(_ *source, o *BuildOptions) { o.Roots[0].Folder = "x" }, true},
		"credentials":    {func(_ *source, o *BuildOptions) { o.Roots[0].Profile = "x" }, true},
		"root's URI":     {func(_ *source, o *BuildOptions) { o.Roots[0].URI = "mem://other" }, false},
		"tag": {func(s *source, _ *BuildOptions) {
			s.versions["f"] = ufs.Version{Tag: "x", Bytes: size, ModTime: someTime}
		}, false},
		"time": {func(s *source, _ *BuildOptions) { s.versions["f"] = ufs.Version{Tag: tagFor("f"), Bytes: size} }, false},
		"size": {func(s *source, _ *BuildOptions) {
			s.versions["f"] = ufs.Version{Tag: tagFor("f"), Bytes: size + 1, ModTime: someTime}
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			ids := make([]stoker.ID, 2)
			for i := range ids {
				s := newSource()
				s.add("f", size)
				o := s.options(t)
				if i == 1 {
					c.change(s, &o)
				}
				ids[i] = open(t, build(t, o).Path).Shard(0).ID
			}
			if (ids[0] == ids[1]) != c.same {
				t.Errorf("ids %s and %s", ids[0].Short(), ids[1].Short())
			}
		})
	}
}
