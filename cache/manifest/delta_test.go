package manifest

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"stoker.dev"
	"stoker.dev/ufs"
)

// flat is 100,000 images in 1,000 folders.
func flat() *source {
	r := rand.New(rand.NewPCG(7, 7))
	s := newSource()
	for i := range 100_000 {
		s.add(fmt.Sprintf("train/n%04d/img_%06d.jpg", i/100, i), 20_000+r.Int64N(200_000))
	}
	return s
}

// One percent appended, as folders or as files with the highest names, leaves
// 98 of 100 shards of 100,000 files as they are.
func TestAppendKeepsShards(t *testing.T) {
	before := shardIDs(freeze(t, flat()))
	for name, path := range map[string]string{
		"folders": "train/n1%03d/img_%06d.jpg",
		"files":   "train/n0999/img_9%03d%06d.jpg",
	} {
		t.Run(name, func(t *testing.T) {
			s := flat()
			for i := range 1000 {
				s.add(fmt.Sprintf(path, i/100, i), int64(20_000+i*200))
			}
			kept, after := 0, shardIDs(freeze(t, s))
			for id := range before {
				if after[id] {
					kept++
				}
			}
			if t.Logf("%d of %d shards are the same", kept, len(before)); kept*100 < len(before)*98 {
				t.Errorf("%d of %d shards are the same", kept, len(before))
			}
		})
	}
}

// Twins are objects with equal URI, key and version, wherever they are joined,
// and lie in the other manifest's shards with the same blocks.
func TestTwins(t *testing.T) {
	one := func(change func(s *source, o *BuildOptions)) *Manifest {
		s := newSource()
		for i := range 100 {
			s.add(fmt.Sprintf("d%d/f%02d", i%7, i), int64(1+i*7000))
		}
		s.add("large", stoker.ExtentBytes+5)
		s.add("d1/empty", 0)
		o := s.options(t)
		change(s, &o)
		return open(t, build(t, o).Path)
	}
	m := one(func(*source, *BuildOptions) {})
	for name, c := range map[string]struct {
		change func(s *source, o *BuildOptions)
		twins  int
		common bool
	}{
		"itself":       {func(*source, *BuildOptions) {}, 102, true},
		"other folder": {func(_ *source, o *BuildOptions) { o.Roots[0].Folder = "x/y" }, 102, true},
		"other URI":    {func(_ *source, o *BuildOptions) { o.Roots[0].URI = "mem://other" }, 0, false},
		"removed":      {func(s *source, _ *BuildOptions) { s.Delete("d3/f03") }, 101, true},
		"added":        {func(s *source, _ *BuildOptions) { s.add("d3/a", 5); s.add("a/b", 5) }, 102, true},
		"other tag": {func(s *source, _ *BuildOptions) {
			s.versions["d3/f03"] = ufs.Version{Tag: tagFor("new"), Bytes: 21001, ModTime: someTime}
		}, 101, true},
		"long tag": {func(s *source, _ *BuildOptions) {
			s.versions["d3/f03"] = ufs.Version{Tag: `"x"`, Bytes: 21001, ModTime: someTime}
		}, 101, true},
		"other size": {func(s *source, _ *BuildOptions) {
			s.versions["large"] = ufs.Version{Tag: tagFor("large"), Bytes: 10, ModTime: someTime}
		}, 101, true},
		"no version": {func(s *source, _ *BuildOptions) { s.versions["d3/f03"] = ufs.Version{Bytes: 21001} }, 101, true},
		"a folder":   {func(s *source, _ *BuildOptions) { s.Delete("large"); s.add("large/x", 5) }, 101, true},
	} {
		t.Run(name, func(t *testing.T) {
			other := one(c.change)
			twins, common := NewTwins(m, other)
			if common != c.common {
				t.Fatalf("in common: %v", common)
			}
			found := 0
			for r := range Row(m.Rows()) {
				twin, ok := twins.Row(r)
				if !ok {
					continue
				}
				found++
				if a, b := m.Source(r), other.Source(twin); a.Key != b.Key || a.Version != b.Version {
					t.Errorf("%+v and %+v are said to be the same", a, b)
				}
				for off := int64(0); off < m.Entry(r).Bytes; off += stoker.ExtentBytes {
					_, p, ok := m.Part(r, off)
					n, q, ok2 := other.Part(twin, off)
					if !ok || !ok2 || p.Bytes != q.Bytes || p.ObjectOff != off || BlocksOf(q.Bytes) > int(other.Shard(n).Blocks) {
						t.Errorf("%s at %d is %+v and %+v", m.Path(r), off, p, q)
					}
				}
			}
			if found != c.twins {
				t.Errorf("%d objects have a twin, want %d", found, c.twins)
			}
		})
	}
	if _, _, ok := m.Part(0, 0); ok {
		t.Error("a directory lies in a shard")
	}
	if _, ok := m.LookupPath("d1/empty"); !ok {
		t.Fatal("no empty file")
	}
}
