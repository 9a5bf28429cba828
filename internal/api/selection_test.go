package api

import (
	"strings"
	"testing"

	"stoker.dev"
)

func TestSelection(t *testing.T) {
	for _, c := range []struct {
		s       Selection
		has, no string
	}{
		{Selection{}, "a a/b", ""},
		{Selection{Paths: []string{"train/"}}, "train train/x train/n1/x", "training/x val/train a/train/x"},
		{Selection{Paths: []string{"a/b", "c"}}, "a/b a/b/x c/y", "a/x a/bc"},
		{Selection{Exclude: []string{"*.tmp"}}, "x x.tmp2 a/x.jpg", "x.tmp a/x.tmp cache.tmp/x"},
		{Selection{Include: []string{"*.jpg"}}, "x.jpg a/b/x.jpg", "x.png jpg"},
		{Selection{Include: []string{"/x"}}, "x x/y", "a/x"},
		{Selection{Include: []string{"train/*.jpg"}}, "train/x.jpg train/d.jpg/y", "train/a/x.jpg x.jpg val/x.jpg"},
		{Selection{Include: []string{"train/**/*.jpg"}}, "train/x.jpg train/a/b/x.jpg", "train/x.png a/train/x.jpg"},
		{Selection{Include: []string{"**/n[0-9]/"}}, "n1/x a/n2/y/z", "n1 a/n2 n10/x"},
		{Selection{Exclude: []string{"tmp/"}}, "tmp a/tmp x", "tmp/x a/tmp/b/c"},
		{Selection{Exclude: []string{"a/**"}}, "b ab/x", "a/x a/b/c"},
		{Selection{Paths: []string{"train"}, Include: []string{"*.jpg", "*.png"}, Exclude: []string{"b*"}}, "train/x.jpg train/y.png", "train/b.jpg train/z.txt x.jpg train/bad/x.jpg"},
		{Selection{Include: []string{`?[^a]\*`}}, "xb*", "xa* xbc"},
	} {
		key, err := c.s.Key()
		if err != nil || (key == "") != c.s.Empty() {
			t.Fatalf("%+v: %q, %v", c.s, key, err)
		}
		again, err := ParseSelection(key)
		if err != nil {
			t.Fatal(err)
		}
		sel := again.Selector()
		for _, p := range strings.Fields(c.has) {
			if !sel.Has(p) {
				t.Errorf("%s lacks %s", key, p)
			}
		}
		for _, p := range strings.Fields(c.no) {
			if sel.Has(p) {
				t.Errorf("%s has %s", key, p)
			}
		}
	}
}

// Equal selections have one key; wrong ones say why.
func TestSelectionKeys(t *testing.T) {
	a, errA := Selection{Paths: []string{"b/", "a", "/a"}, Exclude: []string{"y", "x", "y"}}.Key()
	b, errB := Selection{Paths: []string{"a", "b"}, Exclude: []string{"x", "y"}}.Key()
	if a != b || errA != nil || errB != nil || a != `{"paths":["a","b"],"exclude":["x","y"]}` {
		t.Errorf("%s and %s, %v, %v", a, b, errA, errB)
	}
	for _, s := range []Selection{{Paths: []string{"/"}}, {Paths: []string{"a/../b"}}, {Include: []string{"[a"}}, {Exclude: []string{""}}, {Exclude: []string{"a//b"}},
		{Include: []string{"**/**/**/**/x"}}, {Include: []string{strings.Repeat("x", 3000)}}} {
		if key, err := s.Key(); stoker.KindOf(err) != stoker.KindInvalid || err == nil {
			t.Errorf("%+v: %q, %v", s, key, err)
		}
	}
}
