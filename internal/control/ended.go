package control

import (
	"context"
	"net/http"
	"strconv"

	"golang.org/x/sync/errgroup"

	"stoker.dev"
	"stoker.dev/internal/api"
	"stoker.dev/workflows"
)

const (
	maxEnded  = 1000 // of one answer; how long Temporal knows of them its retention says
	readAhead = 16   // certificates read at a time
)

// listEnded is GET /v1/jobs?ended=N.
func (c *Controller) listEnded(w http.ResponseWriter, r *http.Request) error {
	n, err := strconv.Atoi(r.URL.Query().Get("ended"))
	if err != nil || n < 1 || n > maxEnded {
		return stoker.Errorf(stoker.KindInvalid, "jobs", "", "ended=%q: want 1 to %d", r.URL.Query().Get("ended"), maxEnded)
	}
	all, err := c.o.Flows.Ended(r.Context(), n)
	if err != nil {
		return err
	}
	out := make([]api.JobLine, len(all))
	g, ctx := errgroup.WithContext(r.Context())
	g.SetLimit(readAhead)
	for i, s := range all {
		g.Go(func() (err error) {
			out[i], err = c.endedLine(ctx, s)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	api.WriteJSON(w, http.StatusOK, out)
	return nil
}

// endedLine says how a job ended, and what its loads came to.
func (c *Controller) endedLine(ctx context.Context, s workflows.JobState) (api.JobLine, error) {
	in := s.Input
	l := api.JobLine{Job: in.Job, State: s.State, Owner: in.Owner, Datasets: []string{}, ETASeconds: unknownETA,
		Submitted: in.Submitted, Ended: s.Ended, Error: s.Error, Certificates: []api.CertificateLine{}}
	for i, d := range in.Datasets {
		l.Datasets, l.Bytes = append(l.Datasets, d.Name), l.Bytes+d.Bytes
		id := s.Outcomes[i].Certificate
		if id.IsZero() {
			continue // no load of it came to its end
		}
		cert, err := c.acts.Certificate(ctx, id)
		if stoker.KindOf(err) == stoker.KindNotExist && err != nil {
			continue // it was kept for less long than the job
		} else if err != nil {
			return l, err
		}
		l.ResidentBytes += cert.ResidentBytes
		l.Certificates = append(l.Certificates, api.CertificateLine{
			Dataset: d.Name, Generation: d.Generation, Manifest: d.Manifest, Certificate: id, State: cert.State, Deep: cert.Deep,
			Objects: cert.Objects, ResidentObjects: cert.ResidentObjects, Bytes: cert.Bytes, ResidentBytes: cert.ResidentBytes,
			UFSRequests: cert.UFSRequests, UFSBytes: cert.UFSBytes, Refetched: cert.Refetched, FailedObjects: len(cert.Failed), Seconds: cert.Seconds,
		})
	}
	return l, nil
}
