package control

import (
	"cmp"
	"context"
	"net/http"
	"slices"
	"time"

	"stoker.dev"
	"stoker.dev/internal/api"
	"stoker.dev/internal/metrics"
	"stoker.dev/workflows"
)

const (
	askAll       = 5 * time.Second // what a scrape asks of workers and Temporal
	askReachable = 2 * time.Second // of it, whether Temporal is there
	datasetsSeen = 200             // the largest ones have series of their own
)

// watched makes the controller's metrics. The names are those of
// docs/adr/0007. What is true of the whole cluster every controller says.
func (c *Controller) watched() *metrics.Registry {
	r := metrics.New("controller", c.o.Version)
	r.Live(c.renewalMetrics)
	r.Asked(askAll, c.workerMetrics)
	r.Asked(askAll, c.flowMetrics)
	return r
}

func (c *Controller) scrape(w http.ResponseWriter, r *http.Request) error {
	c.metrics.Handler().ServeHTTP(w, r)
	return nil
}

// renewalMetrics say whether leases are kept alive.
func (c *Controller) renewalMetrics(s *metrics.Samples) {
	const failed, help = "stoker_lease_renewal_failures_total", "Renewals that failed: temporal did not say who holds what, index not where the workers are, worker did not take its leases."
	s.Counter("stoker_lease_renewals_total", "Rounds in which all workers were told all leases.", c.renewals.done.Load())
	s.Counter(failed, help, c.renewals.temporal.Load(), "reason", "temporal")
	s.Counter(failed, help, c.renewals.index.Load(), "reason", "index")
	s.Counter(failed, help, c.acts.LeasesRefused(), "reason", "worker")
}

// workerMetrics ask the index, which answers as long as Redis does, and all
// workers, once.
func (c *Controller) workerMetrics(ctx context.Context, s *metrics.Samples) {
	_, err := c.o.Index.Workers(ctx)
	s.Gauge("stoker_redis_up", "1 if the placement index answers.", up(err))
	ws, err := c.workers(ctx)
	c.datasetMetrics(ctx, s, ws, err == nil)
	if err != nil {
		return // how many there are is not known
	}
	count := map[string]int{api.WorkerLive: 0, api.WorkerDraining: 0, api.WorkerDrained: 0, api.WorkerLost: 0}
	for _, w := range ws {
		count[w.info.State]++
	}
	for state, n := range count {
		s.Gauge("stoker_workers", "Workers that answer (live), of those that are drained (draining, drained), or that did once and do not now (lost).", float64(n), "state", state)
	}
}

// datasetMetrics say how much of the registered datasets is resident, if the
// workers were asked.
func (c *Controller) datasetMetrics(ctx context.Context, s *metrics.Samples, ws []worker, asked bool) {
	all, err := c.datasets(ctx, ws)
	if err != nil {
		return // the manifest store does not answer
	}
	s.Gauge("stoker_datasets_registered", "Datasets in the registry.", float64(len(all)))
	for _, d := range largest(all) {
		s.Gauge("stoker_dataset_sync_failed", "1 if the last sync failed: the current generation is older than it should be.", failedSync(d), "dataset", d.Name)
		s.Gauge("stoker_dataset_listed_timestamp_seconds", "When the current generation was listed, in seconds since 1970.", float64(d.ListedAt.Unix()), "dataset", d.Name)
		s.Gauge("stoker_dataset_bytes", "Bytes of the current generation; the 200 largest datasets.", float64(d.Bytes), "dataset", d.Name)
		if !asked {
			continue
		}
		s.Gauge("stoker_dataset_resident_bytes", "Of those bytes: on the live workers.", float64(d.ResidentBytes), "dataset", d.Name)
		s.Gauge("stoker_dataset_resident_ratio", "Resident part of the current generation, 0 to 1.", ratio(d), "dataset", d.Name)
	}
}

// largest returns the datasets that have series of their own.
func largest(all []api.DatasetInfo) []api.DatasetInfo {
	all = slices.Clone(all)
	slices.SortStableFunc(all, func(a, b api.DatasetInfo) int { return cmp.Compare(b.Bytes, a.Bytes) })
	return all[:min(len(all), datasetsSeen)]
}

// ratio is 1 for a dataset of empty files: nothing of it is missing.
func ratio(d api.DatasetInfo) float64 {
	if d.Bytes == 0 {
		return 1
	}
	return float64(d.ResidentBytes) / float64(d.Bytes)
}

// flowMetrics ask Temporal.
func (c *Controller) flowMetrics(ctx context.Context, s *metrics.Samples) {
	short, cancel := context.WithTimeout(ctx, askReachable)
	defer cancel()
	_, _, err := c.o.Flows.Server(short)
	s.Gauge("stoker_temporal_up", "1 if Temporal answers and has the namespace.", up(err))
	if err != nil {
		return
	}
	sets, err := c.o.Flows.Datasets(ctx)
	if err != nil {
		return
	}
	for state, n := range datasetStates(sets) {
		s.Gauge("stoker_datasets", "Datasets that jobs hold, by the state of their load.", float64(n), "state", state)
	}
	jobs, err := c.o.Flows.Jobs(ctx, 0)
	if err != nil {
		return
	}
	for state, n := range jobStates(jobs, sets) {
		s.Gauge("stoker_jobs", "Jobs that have not ended, by state.", float64(n), "state", state)
	}
}

// datasetStates counts datasets; each state that they may have is there.
func datasetStates(sets []workflows.DatasetState) map[string]int {
	count := map[string]int{api.JobPlanned: 0, api.JobQueued: 0, api.JobWarming: 0, api.JobReady: 0, api.JobFailed: 0}
	for _, d := range sets {
		count[d.State]++
	}
	return count
}

// jobStates counts jobs by the state that users see: one whose data is not
// there yet is as far as its dataset that is furthest behind.
func jobStates(jobs []workflows.JobState, sets []workflows.DatasetState) map[string]int {
	loading := map[stoker.ID]string{}
	for _, d := range sets {
		loading[d.Manifest] = d.State
	}
	count := map[string]int{api.JobPlanned: 0, api.JobQueued: 0, api.JobWarming: 0, api.JobReady: 0, api.JobLeased: 0, api.JobDegraded: 0}
	for _, j := range jobs {
		state := j.State
		if j.Queued && state == api.JobPlanned { // it holds nothing, whatever others load
			count[api.JobQueued]++
			continue
		}
		for i, d := range j.Input.Datasets {
			known := i < len(j.Outcomes) && j.Outcomes[i].State != ""
			if now := loading[d.Manifest]; j.State == api.JobPlanned && !known && (now == api.JobQueued || now == api.JobWarming && state != api.JobQueued) {
				state = now
			}
		}
		count[state]++
	}
	return count
}

// up is a gauge of something that answers, or gives an error.
func up(err error) float64 {
	if err != nil {
		return 0
	}
	return 1
}
