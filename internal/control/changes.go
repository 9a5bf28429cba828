package control

import (
	"context"
	"net/http"
	"strconv"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/internal/api"
)

// maxPaths is how many changed paths an answer names.
const maxPaths = 1000

// datasetChanges compares a generation with an older one, from, or with the
// one before it.
func (c *Controller) datasetChanges(w http.ResponseWriter, r *http.Request) error {
	d, err := c.readable(r, c.named)
	if err != nil {
		return err
	}
	from, err := c.compared(d, r.URL.Query().Get("from"))
	if err != nil {
		return err
	}
	found, err := c.compare(r.Context(), from, d.Generation, maxPaths)
	if err != nil {
		return err
	}
	found.Name = d.Name
	api.WriteJSON(w, http.StatusOK, found)
	return nil
}

// compared finds the generation to compare d with.
func (c *Controller) compared(d *resolved, from string) (manifest.Generation, error) {
	var before manifest.Generation
	for _, g := range d.entry.Generations {
		if g.Number < d.Number {
			before = g
		}
	}
	if from == "" {
		if before.Number == 0 {
			return before, stoker.Errorf(stoker.KindNotExist, "dataset", d.Name, "generation %d has none before it to compare with: 'stoker dataset sync %s' makes the next one", d.Number, d.Name)
		}
		return before, nil
	}
	n, err := strconv.Atoi(from)
	if err != nil || n < 1 {
		return before, stoker.Errorf(stoker.KindInvalid, "dataset", d.Name, "from=%q: want the number of a generation", from)
	}
	g, ok := d.entry.Find(n)
	if !ok {
		return before, stoker.Errorf(stoker.KindNotExist, "dataset", d.Name, "has no generation %d; the current one is %d", n, d.entry.Current().Number)
	}
	return g, nil
}

// compare counts what is different, and names the first paths of it.
func (c *Controller) compare(ctx context.Context, from, to manifest.Generation, paths int) (*api.DatasetChanges, error) {
	old, err := c.manifests.Load(ctx, from.Manifest)
	if err != nil {
		return nil, err
	}
	defer func() { _ = old.Close() }() // it was only read
	now, err := c.manifests.Load(ctx, to.Manifest)
	if err != nil {
		return nil, err
	}
	defer func() { _ = now.Close() }()
	out := &api.DatasetChanges{ChangeCounts: api.ChangeCounts{From: from.Number, To: to.Number}, Paths: []api.PathChange{}}
	err = manifest.Diff(ctx, old, now, func(ch *manifest.Change) error {
		tally, bytes := &out.Added, ch.NewBytes
		switch ch.Kind {
		case manifest.Changed:
			tally = &out.Changed
		case manifest.Removed:
			tally, bytes = &out.Removed, ch.OldBytes
		}
		if ch.Path[len(ch.Path)-1] != '/' {
			tally.Objects++
			tally.Bytes += bytes
		}
		if out.More = len(out.Paths) == paths; !out.More {
			out.Paths = append(out.Paths, api.PathChange{Path: api.EscapePath(string(ch.Path)), Change: ch.Kind.String(), Bytes: ch.NewBytes, OldBytes: ch.OldBytes})
		}
		return nil
	})
	return out, err
}
