package control

import (
	"context"
	"net/http"
	"strings"
	"time"

	"stoker.dev"
	"stoker.dev/internal/api"
)

// shownMoves is of how many datasets of a worker that is drained it is asked how
// far their copies are.
const shownMoves = 50

// findWorker finds one by its id, or by what only its id begins with.
func (c *Controller) findWorker(ctx context.Context, name string) (worker, []worker, error) {
	ws, err := c.workers(ctx)
	if err != nil {
		return worker{}, nil, err
	}
	var found []worker
	for _, w := range ws {
		if w.info.ID == name {
			return w, ws, nil
		}
		if name != "" && strings.HasPrefix(w.info.ID, name) {
			found = append(found, w)
		}
	}
	switch len(found) {
	case 0:
		return worker{}, nil, stoker.Errorf(stoker.KindNotExist, "worker", name, "is not known: 'stoker workers' lists all")
	case 1:
		return found[0], ws, nil
	}
	return worker{}, nil, stoker.Errorf(stoker.KindInvalid, "worker", name, "is the beginning of %d ids: write more of it, as 'stoker workers --wide' shows it", len(found))
}

// operates lets operators change which workers are in service.
func operates(r *http.Request) error {
	if p := api.PrincipalOf(r.Context()); !p.Admin {
		return stoker.Errorf(stoker.KindDenied, "worker", r.PathValue("worker"), "only root and the cluster's operators may drain workers, not %s", p.Name)
	}
	return nil
}

// drainWorker is PUT /v1/workers/{worker}/drain.
func (c *Controller) drainWorker(rw http.ResponseWriter, r *http.Request) error {
	var req api.Drain
	if err := api.ReadJSON(rw, r, &req); err != nil {
		return err
	}
	if err := operates(r); err != nil {
		return err
	}
	c.draining.Lock()
	defer c.draining.Unlock()
	w, ws, err := c.findWorker(r.Context(), r.PathValue("worker"))
	if err != nil {
		return err
	}
	if err := mayLeave(w, ws); err != nil {
		return err
	}
	req.Since, req.By = time.Now().UTC(), api.PrincipalOf(r.Context()).Name
	wc, err := c.acts.Worker(w.info.Address)
	if err == nil {
		err = wc.Drain(r.Context(), req)
	}
	if err != nil {
		return err
	}
	c.o.Log.Info("a worker is drained", "worker", w.info.ID, "by", req.By, "drop", req.Drop)
	c.keeper.look()
	return c.answerDrain(rw, r, w.info.ID)
}

// mayLeave refuses to drain a worker whose data has nowhere to go.
func mayLeave(w worker, ws []worker) error {
	if w.info.State == api.WorkerLost {
		return stoker.Errorf(stoker.KindTransient, "drain", w.info.ID, "does not answer: start it to drain it; what others have is restored from them")
	}
	if w.info.Drain != nil {
		return nil
	}
	for _, x := range ws {
		if x.info.ID != w.info.ID && x.info.State == api.WorkerLive && x.info.CapacityBytes > 0 {
			return nil
		}
	}
	var bytes int64
	var who []string
	for _, h := range w.status.Manifests {
		if h.Bytes > 0 && held(ws, h.Manifest) {
			bytes += h.Bytes
			who = append(who, h.Dataset+" by "+strings.Join(h.Holders, " and "))
		}
	}
	if bytes == 0 {
		return nil
	}
	return stoker.Errorf(stoker.KindHeld, "drain", w.info.ID, "has %s that is held (%s), and no other worker is in service: start one, or release what is held",
		api.HumanBytes(bytes), strings.Join(who, "; "))
}

// undrainWorker is DELETE /v1/workers/{worker}/drain.
func (c *Controller) undrainWorker(rw http.ResponseWriter, r *http.Request) error {
	if err := operates(r); err != nil {
		return err
	}
	c.draining.Lock()
	defer c.draining.Unlock()
	w, _, err := c.findWorker(r.Context(), r.PathValue("worker"))
	if err != nil {
		return err
	}
	wc, err := c.acts.Worker(w.info.Address)
	if err == nil {
		err = wc.Undrain(r.Context())
	}
	if err != nil {
		return err
	}
	c.o.Log.Info("a worker is drained no more", "worker", w.info.ID, "by", api.PrincipalOf(r.Context()).Name)
	return c.answerDrain(rw, r, w.info.ID)
}

// showDrain is GET /v1/workers/{worker}/drain.
func (c *Controller) showDrain(rw http.ResponseWriter, r *http.Request) error {
	return c.answerDrain(rw, r, r.PathValue("worker"))
}

func (c *Controller) answerDrain(rw http.ResponseWriter, r *http.Request, name string) error {
	w, ws, err := c.findWorker(r.Context(), name)
	if err != nil {
		return err
	}
	api.WriteJSON(rw, http.StatusOK, c.drainStatus(r.Context(), w, ws))
	return nil
}

// drainStatus is what the worker says, and how far the copies of its data are.
func (c *Controller) drainStatus(ctx context.Context, w worker, ws []worker) api.DrainStatus {
	st := api.DrainStatus{Worker: w.info.ID, State: w.info.State, ReservedBytes: w.info.ReservedBytes, Datasets: []api.DrainDataset{}, Views: []api.DrainView{}}
	if w.info.Drain != nil {
		st.Drain = *w.info.Drain
	}
	for _, m := range w.status.Mounts {
		v := api.DrainView{Dir: m.Dir, Dataset: m.Dataset, Job: m.Holder}
		if m.UID != nil {
			v.UID = *m.UID
		}
		st.Views = append(st.Views, v)
	}
	for _, h := range w.status.Manifests {
		if h.Bytes == 0 && h.Load == nil {
			continue
		}
		d := api.DrainDataset{Dataset: h.Dataset, Manifest: h.Manifest, Bytes: h.Bytes, Holders: h.Holders, Loading: h.Load != nil}
		if d.Holders == nil {
			d.Holders = []string{}
		}
		st.Bytes += h.Bytes
		if held(ws, h.Manifest) {
			st.HeldBytes += h.Bytes
		}
		if len(st.Datasets) < shownMoves && w.info.State == api.WorkerDraining {
			c.moving(ctx, &d, st.Since)
		}
		st.Datasets = append(st.Datasets, d)
	}
	return st
}

// moving adds how far the copies of a dataset are, as its last repair says.
func (c *Controller) moving(ctx context.Context, d *api.DrainDataset, since time.Time) {
	s, at, running, err := c.o.Flows.RepairState(ctx, d.Manifest)
	if err != nil || at.Before(since) {
		return // there was none yet, or Temporal does not answer
	}
	d.Moving, d.Error = running, s.Error
}
