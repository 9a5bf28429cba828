package cache

import (
	"cmp"
	"slices"
	"sort"

	"stoker.dev/cache/manifest"
	"stoker.dev/internal/api"
)

// samples are the files of a dataset, or those that a job wants of it, as its sampler
// numbers them: folder by folder, in each the files first, and all by name. That is
// the order of torchvision's ImageFolder, and of sorted paths of one depth.
type samples struct {
	runs  []series // by number
	byRow []uint32 // runs by row
	n     int
	bytes int64
}

// series is files that follow each other in the manifest.
type series struct {
	first uint32 // number of the first one
	row   manifest.Row
	n     uint32
}

// samplesOf numbers the files of a manifest. stop ends it early: then they are not
// all.
func samplesOf(m *manifest.Manifest, some *api.Selector, stop func() bool) *samples {
	s := &samples{}
	s.folder(m, 0, "", some, stop)
	s.byRow = make([]uint32, len(s.runs))
	for i := range s.byRow {
		s.byRow[i] = uint32(i)
	}
	slices.SortFunc(s.byRow, func(a, b uint32) int { return cmp.Compare(s.runs[a].row, s.runs[b].row) })
	return s
}

func (s *samples) folder(m *manifest.Manifest, dir manifest.Row, path string, some *api.Selector, stop func() bool) {
	if stop() {
		return
	}
	e := m.Entry(dir)
	var folders []manifest.Row
	add := func(r manifest.Row, e manifest.Entry) {
		if last := len(s.runs) - 1; last >= 0 && s.runs[last].row+manifest.Row(s.runs[last].n) == r {
			s.runs[last].n++
		} else {
			s.runs = append(s.runs, series{uint32(s.n), r, 1})
		}
		s.n++
		s.bytes += e.Bytes
	}
	if some == nil { // names say nothing
		for r := e.FirstChild; r < e.FirstChild+manifest.Row(e.Children); r++ {
			switch c := m.Entry(r); c.Kind {
			case manifest.Directory:
				folders = append(folders, r)
			case manifest.File:
				add(r, c)
			}
		}
	} else {
		m.ReadDir(dir, 0, func(r manifest.Row, name []byte) bool {
			switch c := m.Entry(r); {
			case c.Kind == manifest.Directory:
				folders = append(folders, r)
			case c.Kind == manifest.File && some.Has(path+string(name)):
				add(r, c)
			}
			return true
		})
	}
	for _, f := range folders {
		below := ""
		if some != nil {
			below = path + string(m.AppendName(nil, f)) + "/"
		}
		s.folder(m, f, below, some, stop)
	}
}

// number is that of a row; false if it is no sample.
func (s *samples) number(r manifest.Row) (uint32, bool) {
	i := sort.Search(len(s.byRow), func(i int) bool { return s.runs[s.byRow[i]].row > r })
	if i == 0 {
		return 0, false
	}
	u := &s.runs[s.byRow[i-1]]
	return u.first + uint32(r-u.row), r-u.row < manifest.Row(u.n)
}

// row is that of a number. REQUIRES: there is one.
func (s *samples) row(number uint32) manifest.Row {
	u := &s.runs[sort.Search(len(s.runs), func(i int) bool { return s.runs[i].first > number })-1]
	return u.row + manifest.Row(number-u.first)
}
