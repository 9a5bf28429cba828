package control

import (
	"math"
	"net/http"
	"time"

	"stoker.dev"
	"stoker.dev/internal/api"
	"stoker.dev/workflows"
)

// changeJob is PATCH /v1/jobs/{job}.
func (c *Controller) changeJob(w http.ResponseWriter, r *http.Request) error {
	id := r.PathValue("job")
	var req api.JobChange
	if err := api.ReadJSON(w, r, &req); err != nil {
		return err
	}
	change, err := changeOf(id, &req, time.Now().UTC())
	if err != nil {
		return err
	}
	s, err := c.job(r.Context(), id)
	if err != nil {
		return err
	}
	if err := mayChange(r, "job", id, s.Input.Owner); err != nil {
		return err
	}
	if s.State == api.JobReleased || s.State == api.JobFailed {
		return stoker.Errorf(stoker.KindNotExist, "job", id, "its claim has ended: 'stoker jobs' lists those that have not")
	}
	if s, err = c.o.Flows.Change(r.Context(), id, change); err != nil {
		return err
	}
	c.o.Log.Info("changed", "job", id, "by", api.PrincipalOf(r.Context()).Name, "priority", s.Input.Priority, "limit", s.Input.LimitBytes, "deadline", s.Input.Deadline)
	st, err := c.jobStatus(r.Context(), s, withLoads)
	if err != nil {
		return err
	}
	api.WriteJSON(w, http.StatusOK, st)
	return nil
}

// changeOf checks what a claim is to wish.
func changeOf(job string, req *api.JobChange, now time.Time) (change workflows.Change, err error) {
	bad := func(format string, args ...any) (workflows.Change, error) {
		return change, stoker.Errorf(stoker.KindInvalid, "job", job, format, args...)
	}
	change.Priority, change.LimitBytes = req.Priority, req.LimitBytesPerSecond
	switch p, l, d := req.Priority, req.LimitBytesPerSecond, req.DeadlineSeconds; {
	case p == nil && l == nil && d == nil:
		return bad("nothing is to be changed: say its priority, deadline or limit")
	case p != nil && (*p < -maxPriority || *p > maxPriority):
		return bad("priority %d: want %d to %d", *p, -maxPriority, maxPriority)
	case l != nil && *l != 0 && *l < api.LeastRate:
		return bad("a limit of %d bytes a second: want %d or more, or 0 for none", *l, api.LeastRate)
	case d != nil && (math.IsNaN(*d) || *d > maxAhead):
		return bad("a deadline %.0f seconds from now: want %.0f (31 years) at most", *d, maxAhead)
	case d != nil && *d < 0:
		change.Deadline = &time.Time{}
	case d != nil:
		at := now.Add(time.Duration(*d * float64(time.Second)))
		change.Deadline = &at
	}
	return change, nil
}
