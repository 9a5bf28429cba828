package control

import (
	"context"

	"stoker.dev"
	"stoker.dev/activities"
	"stoker.dev/internal/api"
	"stoker.dev/workflows"
)

// choose makes a claim one of some of a dataset's objects.
func (c *Controller) choose(ctx context.Context, d *workflows.JobDataset, s *api.Selection) (err error) {
	if s == nil || s.Empty() {
		return nil
	}
	if d.Select, err = s.Key(); err != nil {
		return err
	}
	m, err := c.manifests.Load(ctx, d.Manifest)
	if err != nil {
		return err
	}
	defer func() { _ = m.Close() }() // it was only read
	chosen, err := activities.Choose(m, d.Select)
	if err == nil {
		err = chosen.Nothing(d.Name, m)
	}
	if err == nil {
		d.Bytes = chosen.Bytes
	}
	return err
}

// selected counts what a selection has of a manifest.
func (c *Controller) selected(ctx context.Context, id stoker.ID, key string) (*api.Tally, error) {
	m, err := c.manifests.Load(ctx, id)
	if err != nil {
		return nil, err
	}
	defer func() { _ = m.Close() }() // it was only read
	chosen, err := activities.Choose(m, key)
	if err != nil {
		return nil, err
	}
	return &api.Tally{Objects: chosen.Objects, Bytes: chosen.Bytes}, nil
}

// selectionOf is what a claim wants of one of its datasets.
func selectionOf(req *api.ClaimRequest, ref *api.DatasetRef) *api.Selection {
	if ref.Selection != nil {
		return ref.Selection
	}
	return req.Selection
}

// selection is what a key says; nil: all.
func selection(key string) *api.Selection {
	s, err := api.ParseSelection(key)
	if key == "" || err != nil {
		return nil
	}
	return &s
}

// ofSelection counts what the loads still have to bring: what else is resident of
// the manifest says nothing of a selection. Its objects are not counted.
func ofSelection(st *api.LoadStatus, copies int64) {
	var left int64
	begun := false
	for _, w := range st.Workers {
		left += w.LoadBytes - w.LoadedBytes
		begun = begun || w.LoadBytes > 0
	}
	st.Objects, st.ResidentObjects = 0, 0
	if st.ResidentBytes = max(0, st.Bytes-left/copies); !begun {
		st.ResidentBytes = 0
	}
	if st.ETASeconds = unknownETA; st.BytesPerSec > 0 {
		st.ETASeconds = float64(st.Bytes-st.ResidentBytes) / st.BytesPerSec
	}
}
