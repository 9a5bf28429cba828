package control

import (
	"net/http"

	"stoker.dev"
	"stoker.dev/internal/api"
	"stoker.dev/internal/metrics"
)

// patterns is the controller's API; docs/openapi.yaml describes it.
func (c *Controller) patterns() map[string]api.Handler {
	return map[string]api.Handler{
		"GET /v1/version":                   c.version,
		"POST /v1/datasets":                 c.addDataset,
		"GET /v1/datasets":                  c.listDatasets,
		"GET /v1/datasets/{name}":           c.showDataset,
		"GET /v1/datasets/{name}/failed":    c.failed,
		"GET /v1/datasets/{name}/reads":     c.datasetReads,
		"GET /v1/datasets/{name}/changes":   c.datasetChanges,
		"DELETE /v1/datasets/{name}":        c.removeDataset,
		"POST /v1/datasets/{name}/sync":     c.syncDataset,
		"PUT /v1/datasets/{name}/schedule":  c.scheduleDataset,
		"PUT /v1/datasets/{name}/eviction":  c.setEviction,
		"PUT /v1/datasets/{name}/replicas":  c.setReplicas,
		"PUT /v1/datasets/{name}/readers":   c.setReaders,
		"POST /v1/datasets/{name}/verify":   c.verify,
		"POST /v1/datasets/{name}/evict":    c.evict,
		"POST /v1/datasets/{name}/load":     c.steer,
		"PUT /v1/datasets/{name}/pin":       c.pin,
		"DELETE /v1/datasets/{name}/pin":    c.unpin,
		"POST /v1/jobs":                     c.claim,
		"GET /v1/jobs":                      c.listJobs,
		"GET /v1/jobs/{job}":                c.showJob,
		"GET /v1/jobs/{job}/watch":          c.watchJob,
		"POST /v1/jobs/{job}/renew":         c.renewJob,
		"DELETE /v1/jobs/{job}":             c.releaseJob,
		"PATCH /v1/jobs/{job}":              c.changeJob,
		"GET /v1/workers":                   c.listWorkers,
		"GET /v1/workers/{worker}/drain":    c.showDrain,
		"PUT /v1/workers/{worker}/drain":    c.drainWorker,
		"DELETE /v1/workers/{worker}/drain": c.undrainWorker,
		"GET /v1/status":                    c.status,
		"GET /v1/doctor":                    c.doctor,
		"POST /v1/doctor/ufs":               c.doctorUFS,
		"GET /metrics":                      c.scrape,
		metrics.DebugRoute:                  metrics.Debug,
	}
}

// routes serves the controller's API.
func (c *Controller) routes() http.Handler {
	mux := http.NewServeMux()
	for pattern, h := range c.patterns() {
		mux.Handle(pattern, h)
	}
	return c.metrics.Requests(api.Versioned(mux))
}

func (c *Controller) version(w http.ResponseWriter, _ *http.Request) error {
	api.WriteJSON(w, http.StatusOK, api.VersionInfo{Version: c.o.Version, Role: "controller"})
	return nil
}

func (c *Controller) listWorkers(w http.ResponseWriter, r *http.Request) error {
	ws, err := c.workers(r.Context())
	if err != nil {
		return err
	}
	api.WriteJSON(w, http.StatusOK, infos(ws))
	return nil
}

func (c *Controller) status(w http.ResponseWriter, r *http.Request) error {
	ws, err := c.workers(r.Context())
	if err != nil {
		return err
	}
	datasets, err := c.datasets(r.Context(), ws)
	if err != nil {
		return err
	}
	jobs, err := c.jobs(r.Context())
	if err != nil {
		return err
	}
	api.WriteJSON(w, http.StatusOK, api.Status{Jobs: jobs, Workers: infos(ws), Datasets: datasets})
	return nil
}

// mayChange lets the owner of something and admins change it.
func mayChange(r *http.Request, what, name, owner string) error {
	p := api.PrincipalOf(r.Context())
	if owner == "" && !p.Admin {
		return stoker.Errorf(stoker.KindDenied, what, name, "is not registered and belongs to nobody: only an admin may")
	}
	if !p.Admin && p.Name != owner {
		return stoker.Errorf(stoker.KindDenied, what, name, "belongs to %s, not to you (%s)", owner, p.Name)
	}
	return nil
}
