package control

import (
	"context"
	"net/http"
	"slices"
	"strings"

	"stoker.dev"
	"stoker.dev/activities"
	"stoker.dev/internal/api"
)

// failed is GET /v1/datasets/{name}/failed: a page of the objects that the
// workers could not have. Each worker gives its page, and what comes first of
// all of them is the page of the dataset: nothing has to hold the whole list.
func (c *Controller) failed(w http.ResponseWriter, r *http.Request) error {
	after, limit, err := api.PageOf(r)
	if err != nil {
		return err
	}
	d, err := c.readable(r, c.held)
	if err != nil {
		return err
	}
	p, err := failedOn(r.Context(), c.acts, d.Manifest, after, limit)
	if err != nil {
		return err
	}
	api.WriteJSON(w, http.StatusOK, p)
	return nil
}

// failedOn merges the pages of all live workers.
func failedOn(ctx context.Context, acts *activities.Activities, id stoker.ID, after string, limit int) (api.FailurePage, error) {
	live, _, err := acts.Workers(ctx)
	if err != nil {
		return api.FailurePage{}, err
	}
	addresses := make([]string, len(live))
	for i, x := range live {
		addresses[i] = x.Address
	}
	pages := make([]api.FailurePage, len(live))
	err = acts.EachWorker(ctx, addresses, func(ctx context.Context, i int, wc *api.WorkerClient) (err error) {
		pages[i], err = wc.Failures(ctx, id, after, limit)
		if api.Lost(err) && ctx.Err() == nil {
			err = nil // it has nothing that could be told now
		}
		return err
	})
	if err != nil {
		return api.FailurePage{}, err
	}
	return mergePages(pages, limit), nil
}

// mergePages makes one page of several, each sorted and of limit at most. One
// that has more does not reach beyond its own end: nothing between is left out.
func mergePages(pages []api.FailurePage, limit int) api.FailurePage {
	out := api.FailurePage{Failed: []api.Failure{}}
	until, more := "", false
	for _, p := range pages {
		out.Total += p.Total
		out.Failed = append(out.Failed, p.Failed...)
		if p.Next != "" && (!more || p.Next < until) {
			until, more = p.Next, true
		}
	}
	slices.SortStableFunc(out.Failed, func(a, b api.Failure) int { return strings.Compare(a.Path, b.Path) })
	out.Failed = slices.CompactFunc(out.Failed, func(a, b api.Failure) bool { return a.Path == b.Path })
	if more {
		at, found := slices.BinarySearchFunc(out.Failed, until, func(f api.Failure, path string) int { return strings.Compare(f.Path, path) })
		if found {
			at++
		}
		out.Failed = out.Failed[:at]
	}
	if len(out.Failed) > limit {
		out.Failed, more = out.Failed[:limit], true
	}
	if more {
		out.Next = out.Failed[len(out.Failed)-1].Path
	}
	return out
}
