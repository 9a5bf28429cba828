package workflows

import (
	"context"

	"stoker.dev"
)

// Named is what running workflows name of the manifest store.
type Named struct{ Manifests, Plans, Certificates []stoker.ID }

// mostNamed bounds the workflows that are asked.
const mostNamed = 100_000

// Named asks all running jobs and datasets. One that does not say is an error: what it
// names is not known.
func (c *Client) Named(ctx context.Context) (n Named, err error) {
	err = c.eachRunning(ctx, jobWorkflow, func(id, run string) error {
		s, err := c.jobState(ctx, id, run)
		for _, d := range s.Input.Datasets {
			n.Manifests = append(n.Manifests, d.Manifest)
		}
		for _, o := range s.Outcomes {
			n.Certificates = append(n.Certificates, o.Certificate)
		}
		return err
	})
	if err != nil {
		return n, err
	}
	return n, c.eachRunning(ctx, datasetWorkflow, func(id, _ string) error {
		s, err := c.datasetState(ctx, id)
		n.Manifests, n.Plans = append(n.Manifests, s.Manifest), append(n.Plans, s.Plan)
		return err
	})
}

// eachRunning calls ask for each running workflow of a kind. One that has ended
// meanwhile is fine.
func (c *Client) eachRunning(ctx context.Context, name string, ask func(id, run string) error) error {
	type execution struct{ id, run string }
	var all []execution
	err := c.list(ctx, name, "ExecutionStatus = 'Running'", mostNamed, func(id, run string, _ bool) { all = append(all, execution{id, run}) })
	if err == nil && len(all) >= mostNamed {
		err = stoker.Errorf(stoker.KindTransient, "list", name, "%d run: too many to ask", len(all))
	}
	for _, e := range all {
		if err != nil {
			return err
		}
		if err = ask(e.id, e.run); stoker.KindOf(err) == stoker.KindNotExist {
			err = nil
		}
	}
	return err
}
