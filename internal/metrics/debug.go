package metrics

import (
	"net/http"
	"net/http/pprof"

	"stoker.dev"
	"stoker.dev/internal/api"
)

// DebugRoute is the ServeMux pattern of Debug.
const DebugRoute = "GET /debug/pprof/{profile...}"

// Debug serves Go's profiles to root and the daemon's own user, over the Unix
// socket alone: profiles show what is in memory, and cost CPU. By TCP there is
// nothing at that path, for anybody.
func Debug(w http.ResponseWriter, r *http.Request) error {
	switch p := api.PrincipalOf(r.Context()); {
	case p.UID < 0:
		return stoker.Errorf(stoker.KindNotExist, r.Method+" "+r.URL.Path, "", "is only on the daemon's Unix socket")
	case !p.Admin:
		return stoker.Errorf(stoker.KindDenied, r.Method+" "+r.URL.Path, p.Name, "only root and the daemon's own user may")
	}
	switch name := r.PathValue("profile"); name {
	case "":
		pprof.Index(w, r)
	case "cmdline":
		pprof.Cmdline(w, r)
	case "profile":
		pprof.Profile(w, r)
	case "symbol":
		pprof.Symbol(w, r)
	case "trace":
		pprof.Trace(w, r)
	default:
		pprof.Handler(name).ServeHTTP(w, r)
	}
	return nil
}
