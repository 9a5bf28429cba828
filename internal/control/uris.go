package control

import (
	"context"
	"net/http"
	"slices"
	"strings"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/internal/api"
)

func isURI(name string) bool { return strings.Contains(name, "://") }

// held finds what the request's path names: a registered dataset, or a URI of
// which the workers have something, as it was listed last.
func (c *Controller) held(r *http.Request) (*resolved, error) {
	name, generation := splitRef(r.PathValue("name"))
	if !isURI(name) {
		return c.find(r.Context(), name, generation)
	}
	if generation != 0 {
		return nil, stoker.Errorf(stoker.KindInvalid, "dataset", name, "a URI has no generations: leave @%d out", generation)
	}
	ws, err := c.workers(r.Context())
	if err != nil {
		return nil, err
	}
	var ids []stoker.ID
	for _, w := range ws {
		for _, h := range w.status.Manifests {
			if !slices.Contains(ids, h.Manifest) {
				ids = append(ids, h.Manifest)
			}
		}
	}
	var last *resolved
	for _, id := range ids {
		d, err := c.listedFrom(r.Context(), name, id)
		if err != nil {
			return nil, err
		}
		if d != nil && (last == nil || d.ListedAt.After(last.ListedAt)) {
			last = d
		}
	}
	if last == nil {
		return nil, stoker.Errorf(stoker.KindNotExist, "dataset", name, "no worker has anything of it: 'stoker preload %s' loads it", name)
	}
	return last, nil
}

// listedFrom describes a manifest; nil if it is none of that URI alone.
func (c *Controller) listedFrom(ctx context.Context, uri string, id stoker.ID) (*resolved, error) {
	m, err := c.manifests.Load(ctx, id)
	if stoker.KindOf(err) == stoker.KindNotExist {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	defer func() { _ = m.Close() }() // it was only read
	roots := slices.Clone(m.Roots())
	if len(roots) != 1 || roots[0].Folder != "" || strings.TrimRight(roots[0].URI, "/") != strings.TrimRight(uri, "/") {
		return nil, nil
	}
	at := m.Header().ListedTo.UTC()
	return &resolved{entry: &manifest.Dataset{Name: uri, Roots: roots}, DatasetRef: api.DatasetRef{Name: uri},
		Generation: manifest.Generation{Manifest: id, ListedAt: at, Objects: m.Objects(), Bytes: m.Bytes()}}, nil
}

// pinsOf reads the pins of a dataset; a URI has none.
func (c *Controller) pinsOf(ctx context.Context, d *resolved) (*manifest.DatasetPins, error) {
	if isURI(d.Name) {
		return &manifest.DatasetPins{Dataset: d.Name}, nil
	}
	return c.manifests.Pins(ctx, d.Name)
}
