// Package metrics is how a daemon is watched: a Prometheus registry of its
// own, whose samples are taken when somebody scrapes, a count of the HTTP
// requests answered, and Go's profiles for those who may see them. It is the
// home of prometheus/client_golang: daemons only say names and values. What
// the names mean stands in docs/adr/0007.
package metrics

import (
	"context"
	"net/http"
	"runtime"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Registry holds the metrics of one daemon. Live and Asked belong to its
// making; the rest may be called from any goroutine. Close ends it.
type Registry struct {
	reg      *prometheus.Registry
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec

	stop context.Context // of questions that are under way; cancelled by Close
	end  context.CancelFunc
	busy sync.WaitGroup
}

// New makes the registry of a daemon: what it is, Go's runtime, the process.
func New(role, version string) *Registry {
	r := &Registry{reg: prometheus.NewRegistry()}
	r.stop, r.end = context.WithCancel(context.Background())
	r.reg.MustRegister(
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		live{func(s *Samples) {
			s.Gauge("stoker_build_info", "1; what runs is in the labels.", 1, "role", role, "version", version, "goversion", runtime.Version())
		}},
	)
	r.watchRequests()
	return r
}

// maxScrapes is how many scrapes are answered at a time; more get a 503.
const maxScrapes = 8

// Handler answers GET /metrics. A sample that cannot be had is missing from
// the answer; the others are not.
func (r *Registry) Handler() http.Handler {
	return promhttp.HandlerFor(r.reg, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: maxScrapes})
}

// Live adds samples that cost nothing to take, such as counters in memory.
func (r *Registry) Live(take func(*Samples)) { r.reg.MustRegister(live{take}) }

// Close ends the questions that are under way and waits for them.
func (r *Registry) Close() {
	r.end()
	r.busy.Wait()
}

// Samples are values of one moment.
type Samples struct{ all []prometheus.Metric }

// Counter adds the value of something that only grows while the process
// lives. labels are pairs of name and value.
func (s *Samples) Counter(name, help string, v int64, labels ...string) {
	s.add(prometheus.CounterValue, name, help, float64(v), labels)
}

// Seconds adds a count of seconds, which only grows.
func (s *Samples) Seconds(name, help string, v float64, labels ...string) {
	s.add(prometheus.CounterValue, name, help, v, labels)
}

// Gauge adds a value that goes up and down.
func (s *Samples) Gauge(name, help string, v float64, labels ...string) {
	s.add(prometheus.GaugeValue, name, help, v, labels)
}

func (s *Samples) add(kind prometheus.ValueType, name, help string, v float64, labels []string) {
	names, values := make([]string, 0, len(labels)/2), make([]string, 0, len(labels)/2)
	for i := 0; i+1 < len(labels); i += 2 {
		names, values = append(names, labels[i]), append(values, labels[i+1])
	}
	desc := prometheus.NewDesc(name, help, names, nil)
	m, err := prometheus.NewConstMetric(desc, kind, v, values...)
	if err != nil { // such as a label that is no UTF-8: the scrape names it
		m = prometheus.NewInvalidMetric(desc, err)
	}
	s.all = append(s.all, m)
}

// live takes its samples with each scrape.
type live struct{ take func(*Samples) }

// Describe implements prometheus.Collector. What comes is known when it comes.
func (live) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (l live) Collect(ch chan<- prometheus.Metric) {
	var s Samples
	l.take(&s)
	for _, m := range s.all {
		ch <- m
	}
}
