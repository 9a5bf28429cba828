package metrics

import (
	"cmp"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// watchRequests makes the families of Requests.
func (r *Registry) watchRequests() {
	r.requests = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "stoker_http_requests_total", Help: "Requests answered, by route and status.",
	}, []string{"method", "route", "code"})
	r.seconds = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "stoker_http_request_duration_seconds", Help: "How long answers took; a stream takes until its end.",
		Buckets: []float64{.001, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60},
	}, []string{"method", "route"})
	r.reg.MustRegister(r.requests, r.seconds)
}

// Requests counts what next answers, and how long it takes, by the route of
// the ServeMux that took the request. What no route takes is counted under the
// route "none", whatever its path or method: both come from outside.
func (r *Registry) Requests(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		began, rec, silent := time.Now(), &recorder{ResponseWriter: w}, http.StatusInternalServerError
		defer func() { // a handler that gives up panics
			method, route := routeOf(req.Pattern)
			r.requests.WithLabelValues(method, route, strconv.Itoa(cmp.Or(rec.code, silent))).Inc()
			r.seconds.WithLabelValues(method, route).Observe(time.Since(began).Seconds())
		}()
		next.ServeHTTP(rec, req)
		silent = http.StatusOK // what a handler that says nothing has said
	})
}

// routeOf splits a pattern, which ServeMux has written into the request.
func routeOf(pattern string) (method, route string) {
	method, route, found := strings.Cut(pattern, " ")
	if !found {
		return "none", "none"
	}
	return method, route
}

// recorder remembers the status of an answer.
type recorder struct {
	http.ResponseWriter
	code int
}

// WriteHeader implements http.ResponseWriter.
func (r *recorder) WriteHeader(code int) {
	if r.code == 0 && code >= 200 { // those below are not the answer yet
		r.code = code
	}
	r.ResponseWriter.WriteHeader(code)
}

// Write implements http.ResponseWriter.
func (r *recorder) Write(p []byte) (int, error) {
	r.code = cmp.Or(r.code, http.StatusOK)
	return r.ResponseWriter.Write(p)
}

// ReadFrom lets the kernel send what comes from a file.
func (r *recorder) ReadFrom(src io.Reader) (int64, error) {
	r.code = cmp.Or(r.code, http.StatusOK)
	return io.Copy(r.ResponseWriter, src)
}

// Unwrap lets http.ResponseController through: streams flush.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }
