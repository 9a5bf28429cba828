package control

import (
	"context"
	"net/http"
	"slices"
	"strings"

	"stoker.dev"
	"stoker.dev/internal/api"
	"stoker.dev/workflows"
)

// steer is POST /v1/datasets/{name}/load.
func (c *Controller) steer(w http.ResponseWriter, r *http.Request) error {
	var req api.SteerRequest
	if err := api.ReadJSON(w, r, &req); err != nil {
		return err
	}
	if !slices.Contains([]string{api.SteerPause, api.SteerResume, api.SteerStop}, req.Action) {
		return stoker.Errorf(stoker.KindInvalid, "load", r.PathValue("name"), "%q: want pause, resume or stop", req.Action)
	}
	d, err := c.named(r)
	if err != nil {
		return err
	}
	st, err := c.o.Flows.DatasetState(r.Context(), d.Manifest)
	waiting := slices.DeleteFunc(st.Holders, func(h workflows.Holder) bool { return h.Served })
	if stoker.KindOf(err) == stoker.KindNotExist || err == nil && len(waiting) == 0 {
		return stoker.Errorf(stoker.KindNotExist, "load", d.Name, "nothing of it is loaded now: 'stoker jobs' lists what is")
	} else if err != nil {
		return err
	}
	who := api.PrincipalOf(r.Context())
	rep := api.SteerReport{Dataset: d.Name, State: "stopped", Jobs: []string{}}
	if req.Action == api.SteerStop {
		rep.Jobs, err = c.stopPreloads(r.Context(), d.Name, waiting, who)
	} else {
		by := ""
		if rep.State = "resumed"; req.Action == api.SteerPause {
			rep.State, by = "paused", who.Name
		}
		may := who.Admin || who.Name == d.entry.Owner || by == "" && st.PausedBy == who.Name
		if err := maySteer(d.Name, waiting, who, may, by != ""); err != nil {
			return err
		}
		for _, h := range waiting {
			rep.Jobs = append(rep.Jobs, h.Job)
		}
		_, err = c.o.Flows.Pause(r.Context(), d.Manifest, by)
	}
	if err != nil {
		return err
	}
	c.o.Log.Info("a load was "+rep.State, "dataset", d.Name, "manifest", d.Manifest.Short(), "by", who.Name, "jobs", len(rep.Jobs))
	api.WriteJSON(w, http.StatusOK, rep)
	return nil
}

// maySteer lets whoever owns all jobs that wait pause their load, and each of
// those resume it.
func maySteer(name string, waiting []workflows.Holder, who api.Principal, may, pause bool) error {
	var others []string
	for _, h := range waiting {
		if h.Owner != who.Name {
			others = append(others, h.Job+" of "+h.Owner)
		}
	}
	if may || len(others) == 0 || !pause && len(others) < len(waiting) {
		return nil
	}
	return stoker.Errorf(stoker.KindDenied, "load", name, "is needed by %s, not by you (%s) alone", strings.Join(others, ", "), who.Name)
}

// stopPreloads ends those of the caller, an admin's all. What other jobs need is
// loaded on.
func (c *Controller) stopPreloads(ctx context.Context, name string, waiting []workflows.Holder, who api.Principal) ([]string, error) {
	var jobs, others []string
	for _, h := range waiting {
		switch {
		case !h.Preload:
		case h.Owner == who.Name || who.Admin:
			jobs = append(jobs, h.Job)
		default:
			others = append(others, h.Job+" of "+h.Owner)
		}
	}
	switch {
	case len(jobs) == 0 && len(others) > 0:
		return nil, stoker.Errorf(stoker.KindDenied, "load", name, "is preloaded by %s, not by you (%s)", strings.Join(others, ", "), who.Name)
	case len(jobs) == 0:
		return nil, stoker.Errorf(stoker.KindNotExist, "load", name, "is preloaded by nobody; jobs that claimed it are ended by 'stoker cancel JOB'")
	}
	for _, job := range jobs {
		if err := c.o.Flows.Release(ctx, job); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, releaseIn)
	defer cancel()
	for _, job := range jobs {
		if err := c.o.Flows.Wait(ctx, job); err != nil && ctx.Err() == nil {
			return nil, err
		}
	}
	return jobs, nil
}
