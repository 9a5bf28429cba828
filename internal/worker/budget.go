package worker

import (
	"fmt"
	"strings"

	"stoker.dev/internal/api"
	"stoker.dev/internal/metrics"
	"stoker.dev/ufs/budget"
)

// uses tells what this worker uses of the budgets of under file systems.
func (w *Worker) uses() []api.UFSUse {
	var out []api.UFSUse
	for _, u := range w.budgets.Uses() {
		out = append(out, api.UFSUse{
			Endpoint: u.Endpoint, LimitBytes: int64(u.Limit[budget.Bytes]), LimitRequests: u.Limit[budget.Requests],
			ShareBytes: int64(u.Share[budget.Bytes]), ShareRequests: u.Share[budget.Requests],
			UsedBytes: int64(u.Used[budget.Bytes]), UsedRequests: u.Used[budget.Requests],
			Members: u.Members, WaitedSeconds: u.Waited.Seconds(), Alone: u.Alone,
		})
	}
	return out
}

// checkBudget says what this worker may ask of under file systems.
func (w *Worker) checkBudget() api.Check {
	if len(w.o.Limits.Bytes)+len(w.o.Limits.Requests) == 0 {
		return api.Ok("under file systems have no limit; --ufs-bandwidth and --ufs-requests set one")
	}
	var parts []string
	alone := false
	for _, u := range w.uses() {
		of := func(share, used, limit string) string {
			return fmt.Sprintf("%s of %s used, the cluster has %s", used, share, limit)
		}
		line := u.Endpoint + ":"
		if u.LimitBytes > 0 {
			line += " " + of(api.HumanBytes(u.ShareBytes)+"/s", api.HumanBytes(u.UsedBytes)+"/s", api.HumanBytes(u.LimitBytes)+"/s")
		}
		if u.LimitRequests > 0 {
			line += " " + of(fmt.Sprintf("%.0f requests/s", u.ShareRequests), fmt.Sprintf("%.0f", u.UsedRequests), fmt.Sprintf("%.0f", u.LimitRequests))
		}
		parts, alone = append(parts, line), alone || u.Alone
	}
	if len(parts) == 0 {
		return api.Ok("no limited under file system is in use here")
	}
	detail := strings.Join(parts, "; ")
	if alone {
		return api.Warn("start Redis: until then each worker has an equal share, whether it needs it or not", "%s; the index does not say what others need", detail)
	}
	return api.Ok("%s", detail)
}

// budgetMetrics sum up over all endpoints.
func (w *Worker) budgetMetrics(s *metrics.Samples) {
	var shareBytes, shareRequests, waited float64
	for _, u := range w.uses() {
		shareBytes, shareRequests, waited = shareBytes+float64(u.ShareBytes), shareRequests+u.ShareRequests, waited+u.WaitedSeconds
	}
	s.Gauge("stoker_ufs_budget_bytes_per_second", "What this worker may take at present of the limited under file systems.", shareBytes)
	s.Gauge("stoker_ufs_budget_requests_per_second", "Requests that this worker may send at present to the limited under file systems.", shareRequests)
	s.Counter("stoker_ufs_budget_wait_seconds_total", "Seconds that requests and bodies waited for the budget, added up.", int64(waited))
}
