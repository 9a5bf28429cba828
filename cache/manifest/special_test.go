package manifest

import (
	"slices"
	"testing"

	"stoker.dev/ufs"
)

// What a store says can be no file is named with the store's reason, and takes
// no row.
func TestSpecialFilesAreNamed(t *testing.T) {
	s := newSource()
	s.add("d/file", 7)
	s.object(ufs.Object{Key: "d/pipe", Unmountable: "a named pipe"}, ufs.Version{})
	m := freeze(t, s)
	if _, ok := m.LookupPath("d/pipe"); ok || m.Objects() != 1 || !slices.Equal(m.Unmountable(), []Unmountable{{"d/pipe", "a named pipe"}}) {
		t.Errorf("%d objects, unmountable %v", m.Objects(), m.Unmountable())
	}
}
