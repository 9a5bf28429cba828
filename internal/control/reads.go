package control

import (
	"context"
	"net/http"

	"stoker.dev"
	"stoker.dev/internal/api"
)

const mostGenerations = 1000 // of a dataset that are asked for, the newest

// datasetReads is GET /v1/datasets/{name}/reads: what each worker read of a dataset
// since it started. A worker that does not answer, or does not count, has no figures.
func (c *Controller) datasetReads(w http.ResponseWriter, r *http.Request) error {
	d, err := c.held(r)
	if err != nil {
		return err
	}
	ids := []stoker.ID{d.Manifest}
	if _, generation := splitRef(r.PathValue("name")); generation == 0 {
		all := d.entry.Generations
		for _, g := range all[max(0, len(all)-mostGenerations):] {
			if g.Manifest != d.Manifest {
				ids = append(ids, g.Manifest)
			}
		}
	}
	ws, err := c.workers(r.Context())
	if err != nil {
		return err
	}
	out, addresses, at := make([]api.WorkerReads, len(ws)), []string{}, []int{}
	for i, x := range ws {
		out[i] = api.WorkerReads{ID: x.info.ID, State: x.info.State}
		if x.info.Reads != nil { // it answers
			addresses, at = append(addresses, x.info.Address), append(at, i)
		}
	}
	err = c.acts.EachWorker(r.Context(), addresses, func(ctx context.Context, i int, wc *api.WorkerClient) error {
		ctx, cancel := context.WithTimeout(ctx, askWorker)
		defer cancel()
		reads, err := wc.Reads(ctx, api.ReadsRequest{Manifests: ids})
		switch k := stoker.KindOf(err); {
		case err == nil:
			out[at[i]].Reads = &reads
		case k == stoker.KindTransient || k == stoker.KindNotExist: // gone, or of an earlier release
		default:
			return err
		}
		return nil
	})
	if err != nil {
		return err
	}
	api.WriteJSON(w, http.StatusOK, out)
	return nil
}
