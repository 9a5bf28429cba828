package worker

import (
	"context"
	"net/http"
	"time"

	"stoker.dev/internal/api"
)

// drain is PUT /v1/drain. It answers when it is written down, and others are told.
func (w *Worker) drain(rw http.ResponseWriter, r *http.Request) error {
	var req api.Drain
	if err := api.ReadJSON(rw, r, &req); err != nil {
		return err
	}
	if req.By == "" {
		req.By = api.PrincipalOf(r.Context()).Name
	}
	if req.Since.IsZero() {
		req.Since = time.Now().UTC()
	}
	if err := w.cache.Drain(req); err != nil {
		return err
	}
	w.directory.renew(r.Context()) // an index that does not answer hears of it with the next renewal
	w.o.Log.Info("this worker is being drained", "by", req.By, "drop", req.Drop)
	rw.WriteHeader(http.StatusNoContent)
	return nil
}

// undrain is DELETE /v1/drain.
func (w *Worker) undrain(rw http.ResponseWriter, r *http.Request) error {
	was := w.cache.Draining()
	if err := w.cache.Undrain(); err != nil {
		return err
	}
	w.directory.renew(r.Context())
	if was != nil {
		w.o.Log.Info("this worker is drained no more", "since", was.Since)
	}
	rw.WriteHeader(http.StatusNoContent)
	return nil
}

func (w *Worker) drop(rw http.ResponseWriter, r *http.Request) error {
	var req api.DropRequest
	if err := api.ReadJSON(rw, r, &req); err != nil {
		return err
	}
	rep, err := w.cache.DropCopies(r.Context(), req.Manifest, req.Shards)
	if err != nil {
		return err
	}
	api.WriteJSON(rw, http.StatusOK, rep)
	return nil
}

// state is live, draining or drained.
func (w *Worker) state(ctx context.Context) (string, error) {
	if w.cache.Draining() == nil {
		return api.WorkerLive, nil
	}
	drained, err := w.cache.Drained(ctx)
	if drained {
		return api.WorkerDrained, err
	}
	return api.WorkerDraining, err
}
