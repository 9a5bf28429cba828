package manifest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"stoker.dev"
	"stoker.dev/ufs"
)

// changes writes a diff down, one line a path.
func changes(t testing.TB, old, new *Manifest) (all []string) {
	t.Helper()
	err := Diff(context.Background(), old, new, func(c *Change) error {
		all = append(all, fmt.Sprintf("%s %s %d %d %v", c.Path, c.Kind, c.OldBytes, c.NewBytes, c.Content))
		if c.Old != 0 && old.Path(c.Old) != strings.TrimSuffix(string(c.Path), "/") || c.New != 0 && new.Path(c.New) != strings.TrimSuffix(string(c.Path), "/") {
			t.Errorf("%s has rows %d and %d of other paths", c.Path, c.Old, c.New)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// walkOrder sorts paths as a walk meets them: component by component.
func walkOrder(a, b string) int {
	return slices.Compare(strings.Split(a, "/"), strings.Split(b, "/"))
}

// expected is the diff of two models, by looking each path up in the other.
func expected(old, new model) (all []string) {
	paths := maps.Clone(old)
	maps.Copy(paths, new)
	for _, p := range slices.SortedFunc(maps.Keys(paths), walkOrder) {
		a, hadIt := old[p]
		b, hasIt := new[p]
		size := func(o ufs.Object) int64 { return max(o.Version.Bytes, int64(len(o.Link))) }
		content := a.Link != b.Link || a.Version.Bytes != b.Version.Bytes || a.Version.Tag != b.Version.Tag ||
			!a.Version.ModTime.Equal(b.Version.ModTime)
		switch {
		case !hadIt:
			all = append(all, fmt.Sprintf("%s added 0 %d true", p, size(b)))
		case !hasIt:
			all = append(all, fmt.Sprintf("%s removed %d 0 true", p, size(a)))
		case content || a.Exec != b.Exec:
			all = append(all, fmt.Sprintf("%s changed %d %d %v", p, size(a), size(b), content))
		}
	}
	return all
}

// mutate changes some of a model's objects.
func mutate(r *rand.Rand, w model) model {
	out := model{}
	for _, p := range slices.Sorted(maps.Keys(w)) {
		o := w[p]
		switch r.IntN(12) {
		case 0:
			continue
		case 1:
			o.Version.Bytes++
			o.Link = ""
		case 2:
			o.Version.Tag = tagFor(fmt.Sprint(r.Uint64()))
			o.Link = ""
		case 3:
			o.Exec = !o.Exec && o.Link == ""
		case 4:
			o.Version.ModTime = o.Version.ModTime.Add(time.Nanosecond)
		case 5:
			below := p + "/below" // the file becomes a folder
			o.Key = below
			out[below] = o
			continue
		case 6:
			o.Version.Tag = ""
		}
		out[p] = o
	}
	for i := range r.IntN(30) {
		p := fmt.Sprintf("new%d/%d", i%3, i)
		out[p] = ufs.Object{Key: p, Version: ufs.Version{Bytes: int64(i), Tag: tagFor(p)}}
	}
	return out
}

func frozen(t testing.TB, w model) *Manifest {
	t.Helper()
	s := newSource()
	for _, o := range w {
		if o.Link != "" {
			o.Version.Tag, o.Exec = "", false
		}
		s.object(o, o.Version)
	}
	return freeze(t, s)
}

// A diff is what looking every path up in the other generation finds.
func TestDiffIsThatOfTheTrees(t *testing.T) {
	for seed := range uint64(40) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 9))
			a := randomTree(r, r.IntN(600))
			b := mutate(r, a)
			for _, w := range []model{a, b} { // what a manifest keeps of links
				for p, o := range w {
					if o.Link != "" {
						o.Version.Tag, o.Version.Bytes, o.Exec = "", 0, false
						w[p] = o
					}
				}
			}
			old, new := frozen(t, a), frozen(t, b)
			for _, c := range []struct {
				old, new *Manifest
				want     []string
			}{{old, new, expected(a, b)}, {new, old, expected(b, a)}, {old, old, nil}, {new, frozen(t, b), nil}} {
				if got := changes(t, c.old, c.new); !slices.Equal(got, c.want) {
					t.Fatalf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(c.want, "\n"))
				}
			}
		})
	}
}

// Empty folders, roots that are joined elsewhere, and a name that is file here
// and folder there.
func TestDiffOfOddThings(t *testing.T) {
	base := func() *source {
		s := newSource()
		s.add("a/f", 3)
		s.add("a/g", 4)
		s.add("hollow/", 0)
		return s
	}
	for name, c := range map[string]struct {
		change func(s *source, o *BuildOptions)
		want   []string
	}{
		"nothing":             {func(*source, *BuildOptions) {}, nil},
		"an empty folder":     {func(s *source, _ *BuildOptions) { s.add("more/deep/", 0) }, []string{"more/deep/ added 0 0 false"}},
		"no empty folder":     {func(s *source, _ *BuildOptions) { s.Delete("hollow/") }, []string{"hollow/ removed 0 0 false"}},
		"folder becomes file": {func(s *source, _ *BuildOptions) { s.Delete("a/f"); s.Delete("a/g"); s.add("a", 9) }, []string{"a added 0 9 true", "a/f removed 3 0 true", "a/g removed 4 0 true"}},
		"hollow folder, file": {func(s *source, _ *BuildOptions) { s.Delete("hollow/"); s.add("hollow", 1) }, []string{"hollow added 0 1 true", "hollow/ removed 0 0 false"}},
		"another bucket":      {func(_ *source, o *BuildOptions) { o.Roots[0].URI = "mem://other" }, []string{"a/f changed 3 3 true", "a/g changed 4 4 true"}},
		"other credentials":   {func(_ *source, o *BuildOptions) { o.Roots[0].Profile = "x" }, nil},
		"joined elsewhere": {func(_ *source, o *BuildOptions) { o.Roots[0].Folder = "a" },
			[]string{"a/a/f added 0 3 true", "a/a/g added 0 4 true", "a/f removed 3 0 true", "a/g removed 4 0 true", "a/hollow/ added 0 0 false", "hollow/ removed 0 0 false"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := base()
			o := s.options(t)
			c.change(s, &o)
			if got := changes(t, freeze(t, base()), open(t, build(t, o).Path)); !slices.Equal(got, c.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(c.want, "\n"))
			}
		})
	}
}

// An error of the caller ends it, and so does the end of the context.
func TestDiffEnds(t *testing.T) {
	old, new := freeze(t, newSource()), freeze(t, realistic(9000, plainTag))
	stop, n := errors.New("enough"), 0
	if err := Diff(t.Context(), old, new, func(*Change) error {
		if n++; n == 5 {
			return stop
		}
		return nil
	}); !errors.Is(err, stop) || n != 5 {
		t.Errorf("%v after %d changes", err, n)
	}
	ctx, cancel := context.WithCancel(t.Context())
	n = 0
	if err := Diff(ctx, old, new, func(*Change) error { n++; cancel(); return nil }); !errors.Is(err, context.Canceled) || n > 5000 {
		t.Errorf("%v after %d changes", err, n)
	}
}

// A diff takes memory for each level of folders, not for each file.
func TestDiffTakesNoMemory(t *testing.T) {
	old := freeze(t, realistic(20_000, plainTag))
	new := freeze(t, realistic(20_000, func(i int) string { return plainTag(i + i%100/99) })) // each hundredth
	n := 0
	if allocs := testing.AllocsPerRun(3, func() {
		n = 0
		if err := Diff(context.Background(), old, new, func(*Change) error { n++; return nil }); err != nil {
			t.Fatal(err)
		}
	}); n != 200 || allocs > 40 {
		t.Errorf("%d changes in 20,000 files took %.0f allocations", n, allocs)
	}
}

// Damaged manifests give wrong answers or errors, and always an end.
func TestDiffOfDamagedManifests(t *testing.T) {
	h := newHostile(t)
	r := rand.New(rand.NewPCG(8, 8))
	good := freeze(t, some())
	for range 300 {
		b := bytes.Clone(h.good)
		for range 1 + r.IntN(20) {
			b[headerBytes+r.IntN(len(b)-headerBytes)] = byte(r.IntN(256))
		}
		b[16]++ // another id
		sign(b)
		if !h.try(t, b) {
			continue
		}
		bad, err := Open(h.path)
		if err != nil {
			t.Fatal(err)
		}
		n, enough := 0, errors.New("enough")
		err = Diff(t.Context(), good, bad, func(*Change) error {
			if n++; n > 100_000 {
				return enough
			}
			return nil
		})
		if err != nil && !errors.Is(err, enough) {
			wantKind(t, err, stoker.KindCorrupt)
		}
		_ = bad.Close()
	}
}
