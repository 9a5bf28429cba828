package activities

import (
	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/internal/api"
)

// Chosen are the objects of a manifest that a selection has. A nil one has all.
type Chosen struct {
	Selection      api.Selection
	Objects, Bytes int64

	rows   []uint64 // bitmap
	shards []bool   // with one of them
}

// Choose looks at every path of a manifest; nil if the key selects all.
func Choose(m *manifest.Manifest, key string) (*Chosen, error) {
	if key == "" {
		return nil, nil
	}
	s, err := api.ParseSelection(key)
	if err != nil {
		return nil, err
	}
	sel := s.Selector()
	c := &Chosen{Selection: s, rows: make([]uint64, (m.Rows()+63)/64), shards: make([]bool, m.Shards())}
	for r := range manifest.Row(m.Rows()) {
		e := m.Entry(r)
		if e.Kind == manifest.Directory || !sel.Has(m.Path(r)) {
			continue
		}
		c.rows[r/64] |= 1 << (r % 64)
		c.Objects, c.Bytes = c.Objects+1, c.Bytes+e.Bytes
		for off := int64(0); off < e.Bytes; {
			n, member, ok := m.Part(r, off)
			if !ok {
				break
			}
			c.shards[n] = true
			off = member.ObjectOff + member.Bytes
		}
	}
	return c, nil
}

// Has reports whether an object is chosen.
func (c *Chosen) Has(r manifest.Row) bool { return c == nil || c.rows[r/64]&(1<<(r%64)) != 0 }

// hasShard reports whether a shard has a chosen object.
func (c *Chosen) hasShard(n uint32) bool { return c == nil || c.shards[n] }

// Nothing is the error of a selection that has no object.
func (c *Chosen) Nothing(dataset string, m *manifest.Manifest) error {
	if c == nil || c.Objects > 0 {
		return nil
	}
	return stoker.Errorf(stoker.KindNotExist, "selection", dataset, "matches none of %d objects: its paths and patterns are compared with those below the dataset's root", m.Objects())
}
