package worker

import (
	"net/http"
	"slices"
	"strconv"
	"time"

	"stoker.dev"
	"stoker.dev/cache/peer"
	"stoker.dev/internal/api"
	"stoker.dev/internal/metrics"
)

// progressEvery is how often a load's stream says how far it is.
const progressEvery = 500 * time.Millisecond

// admin lets only the cluster's own daemons and root in: what these routes
// do concerns everybody's data.
func admin(h api.Handler) api.Handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		if p := api.PrincipalOf(r.Context()); !p.Admin {
			return stoker.Errorf(stoker.KindDenied, r.Method+" "+r.URL.Path, p.Name, "only root and the cluster's daemons may")
		}
		return h(w, r)
	}
}

// routes is the worker's API. Mounts are made for processes of this node
// only, whose uid the kernel vouches for.
func (w *Worker) routes(local bool) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /v1/version", api.Handler(w.version))
	mux.Handle("GET /v1/status", api.Handler(w.status))
	mux.Handle("GET /v1/doctor", api.Handler(w.doctor))
	mux.Handle("GET /metrics", w.metrics.Handler())
	mux.Handle("PUT /v1/reservations/{plan}/{part}", admin(w.reserve))
	mux.Handle("DELETE /v1/reservations/{plan}/{part}", admin(w.giveBack))
	mux.Handle("PUT /v1/loads/{plan}/{part}", admin(w.load))
	mux.Handle("GET /v1/loads/{plan}/{part}", api.Handler(w.loadProgress))
	mux.Handle("DELETE /v1/loads/{plan}/{part}", admin(w.stopLoad))
	mux.Handle("PUT /v1/leases", admin(w.leases))
	mux.Handle("PUT /v1/rules", admin(w.rules))
	mux.Handle("POST /v1/verify", api.Handler(w.verify))
	mux.Handle("POST /v1/reads", api.Handler(w.readsOf))
	mux.Handle("POST /v1/evict", admin(w.evict))
	mux.Handle("PUT /v1/drain", admin(w.drain))
	mux.Handle("DELETE /v1/drain", admin(w.undrain))
	mux.Handle("POST /v1/drop", admin(w.drop))
	mux.Handle("GET /v1/manifests/{manifest}/failed", admin(w.failed))
	mux.Handle("GET /v1/manifests/{manifest}/shards/{shard}/blocks", admin(func(rw http.ResponseWriter, r *http.Request) error {
		peer.Handler(w.incarnation, w.cache).ServeHTTP(rw, r)
		return nil
	}))
	if local {
		mux.Handle("POST /v1/mounts", api.Handler(w.mount))
		mux.Handle("GET /v1/mounts", api.Handler(w.listMounts))
		mux.Handle("DELETE /v1/mounts", api.Handler(w.umount))
		mux.Handle(metrics.DebugRoute, api.Handler(metrics.Debug))
	}
	return w.metrics.Requests(api.Versioned(mux))
}

// planPart reads {plan} and {part}.
func planPart(r *http.Request) (stoker.ID, int, error) {
	id, err := stoker.ParseID(r.PathValue("plan"))
	if err != nil {
		return id, 0, stoker.Errorf(stoker.KindInvalid, "plan", r.PathValue("plan"), "%w", err)
	}
	part, err := strconv.Atoi(r.PathValue("part"))
	if err != nil || part < 0 {
		return id, 0, stoker.Errorf(stoker.KindInvalid, "part", r.PathValue("part"), "want a number from 0 on")
	}
	return id, part, nil
}

func (w *Worker) version(rw http.ResponseWriter, _ *http.Request) error {
	api.WriteJSON(rw, http.StatusOK, api.VersionInfo{Version: w.o.Version, Role: "worker", ID: w.store.WorkerID()})
	return nil
}

func (w *Worker) status(rw http.ResponseWriter, r *http.Request) error {
	info, err := w.info(r.Context())
	if err != nil {
		return err
	}
	held, err := w.cache.Holdings(r.Context())
	if err != nil {
		return err
	}
	mounts, fuseReads := w.views.List()
	c := w.cache.Counters()
	reads := countersOf(&c.Reads)
	reads.FUSEReads, reads.ServedBytes = fuseReads, c.ServedBytes.Load()
	api.WriteJSON(rw, http.StatusOK, api.WorkerStatus{
		WorkerInfo: info, Mounts: mounts, Leases: w.cache.Leases(), Manifests: held, Reads: reads,
	})
	return nil
}

func (w *Worker) reserve(rw http.ResponseWriter, r *http.Request) error {
	var req api.ReserveRequest
	if err := api.ReadJSON(rw, r, &req); err != nil {
		return err
	}
	rep, err := w.cache.Reserve(r.Context(), req)
	if err != nil {
		return err
	}
	api.WriteJSON(rw, http.StatusOK, rep)
	return nil
}

func (w *Worker) giveBack(rw http.ResponseWriter, r *http.Request) error {
	plan, part, err := planPart(r)
	if err != nil {
		return err
	}
	if err := w.cache.GiveBack(plan, part); err != nil {
		return err
	}
	rw.WriteHeader(http.StatusNoContent)
	return nil
}

func (w *Worker) load(rw http.ResponseWriter, r *http.Request) error {
	plan, part, err := planPart(r)
	if err != nil {
		return err
	}
	var req api.LoadRequest
	if err := api.ReadJSON(rw, r, &req); err != nil {
		return err
	}
	begin := w.cache.Load
	if req.Copies {
		begin = w.cache.LoadCopies
	}
	if err := begin(r.Context(), plan, part); err != nil {
		return err
	}
	stream := api.NewStream(rw)
	err = w.cache.WatchLoad(r.Context(), plan, part, progressEvery, func(p api.LoadProgress) error {
		return stream.Send(api.Event{Load: &p})
	})
	if err != nil {
		stream.Fail(r.Context(), err)
	}
	return nil
}

func (w *Worker) loadProgress(rw http.ResponseWriter, r *http.Request) error {
	plan, part, err := planPart(r)
	if err != nil {
		return err
	}
	p, err := w.cache.LoadProgress(plan, part)
	if err != nil {
		return err
	}
	if !api.PrincipalOf(r.Context()).Admin { // as in verify
		p.Failed = nil
	}
	api.WriteJSON(rw, http.StatusOK, p)
	return nil
}

func (w *Worker) stopLoad(rw http.ResponseWriter, r *http.Request) error {
	plan, part, err := planPart(r)
	if err != nil {
		return err
	}
	w.cache.StopLoad(plan, part)
	rw.WriteHeader(http.StatusNoContent)
	return nil
}

func (w *Worker) leases(rw http.ResponseWriter, r *http.Request) error {
	var req api.LeaseRequest
	if err := api.ReadJSON(rw, r, &req); err != nil {
		return err
	}
	if err := w.cache.PutLeases(req); err != nil {
		return err
	}
	rw.WriteHeader(http.StatusNoContent)
	return nil
}

func (w *Worker) rules(rw http.ResponseWriter, r *http.Request) error {
	var req api.RulesRequest
	if err := api.ReadJSON(rw, r, &req); err != nil {
		return err
	}
	if err := w.cache.PutRules(req); err != nil {
		return err
	}
	rw.WriteHeader(http.StatusNoContent)
	return nil
}

func (w *Worker) verify(rw http.ResponseWriter, r *http.Request) error {
	var req api.VerifyRequest
	if err := api.ReadJSON(rw, r, &req); err != nil {
		return err
	}
	rep, err := w.cache.Verify(r.Context(), req.Manifest, req.Deep)
	if err != nil {
		return err
	}
	if !api.PrincipalOf(r.Context()).Admin { // names are for those who may read the dataset: the controller knows who
		rep.Failed = nil
	}
	api.WriteJSON(rw, http.StatusOK, rep)
	return nil
}

func (w *Worker) failed(rw http.ResponseWriter, r *http.Request) error {
	id, err := stoker.ParseID(r.PathValue("manifest"))
	if err != nil {
		return stoker.Errorf(stoker.KindInvalid, "manifest", r.PathValue("manifest"), "%w", err)
	}
	after, limit, err := api.PageOf(r)
	if err != nil {
		return err
	}
	api.WriteJSON(rw, http.StatusOK, w.cache.Failures(id, after, limit))
	return nil
}

func (w *Worker) evict(rw http.ResponseWriter, r *http.Request) error {
	var req api.EvictRequest
	if err := api.ReadJSON(rw, r, &req); err != nil {
		return err
	}
	rep, err := w.cache.Evict(r.Context(), req.Manifest, req.Force)
	if err != nil {
		return err
	}
	api.WriteJSON(rw, http.StatusOK, rep)
	return nil
}

func (w *Worker) mount(rw http.ResponseWriter, r *http.Request) error {
	var req api.MountRequest
	if err := api.ReadJSON(rw, r, &req); err != nil {
		return err
	}
	p := api.PrincipalOf(r.Context())
	if err := groupOf(p, api.GroupsOf(r.Context()), &req); err != nil {
		return err
	}
	if d := w.cache.Draining(); d != nil {
		return stoker.Errorf(stoker.KindBusy, "mount", req.Dir, "this worker is being drained by %s: mount on another node, or 'stoker workers undrain %s'", d.By, w.store.WorkerID())
	}
	info, err := w.views.Mount(r.Context(), uint32(p.UID), req)
	if err != nil {
		return err
	}
	api.WriteJSON(rw, http.StatusOK, info)
	return nil
}

// groupOf settles the group of a view's files: the caller's own, or one that
// he is a member of. Root may choose any.
func groupOf(p api.Principal, gids []uint32, req *api.MountRequest) error {
	switch {
	case p.UID == 0:
	case req.GID == nil && len(gids) > 0:
		req.GID = &gids[0]
	case req.GID != nil && !slices.Contains(gids, *req.GID):
		return stoker.Errorf(stoker.KindDenied, "mount", req.Dir, "you (%s) are no member of group %d: take one of your groups", p.Name, *req.GID)
	}
	return nil
}

func (w *Worker) listMounts(rw http.ResponseWriter, _ *http.Request) error {
	mounts, _ := w.views.List()
	api.WriteJSON(rw, http.StatusOK, mounts)
	return nil
}

func (w *Worker) umount(rw http.ResponseWriter, r *http.Request) error {
	dir := r.URL.Query().Get("dir")
	if dir == "" {
		return stoker.Errorf(stoker.KindInvalid, "umount", "", "which folder? ?dir=/absolute/path")
	}
	if err := w.views.Unmount(r.Context(), uint32(api.PrincipalOf(r.Context()).UID), dir, r.URL.Query().Get("lazy") == "true"); err != nil {
		return err
	}
	rw.WriteHeader(http.StatusNoContent)
	return nil
}
