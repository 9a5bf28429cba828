package control

import (
	"context"
	"math"
	"net/http"
	"time"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/internal/api"
	"stoker.dev/workflows"
)

// syncEvery checks how often a dataset is to be synced; 0 = never.
func syncEvery(name string, seconds float64) (time.Duration, error) {
	if seconds == 0 {
		return 0, nil
	}
	if math.IsNaN(seconds) || seconds < workflows.MinSyncEvery.Seconds() || seconds > workflows.MaxSyncEvery.Seconds() {
		return 0, stoker.Errorf(stoker.KindInvalid, "dataset", name, "a sync every %v seconds: want %v to %v, or 0 for none",
			seconds, workflows.MinSyncEvery.Seconds(), workflows.MaxSyncEvery.Seconds())
	}
	return time.Duration(seconds * float64(time.Second)).Truncate(time.Second), nil
}

// scheduleDataset is PUT /v1/datasets/{name}/schedule.
func (c *Controller) scheduleDataset(w http.ResponseWriter, r *http.Request) error {
	var req api.ScheduleRequest
	if err := api.ReadJSON(w, r, &req); err != nil {
		return err
	}
	d, err := c.toChange(r, "a schedule makes new generations")
	if err != nil {
		return err
	}
	every, err := syncEvery(d.Name, req.SyncEverySeconds)
	if err != nil {
		return err
	}
	if err := c.o.Flows.SetSchedule(r.Context(), d.entry, every); err != nil {
		return err
	}
	c.o.Log.Info("synced on schedule", "dataset", d.Name, "every", every, "by", api.PrincipalOf(r.Context()).Name)
	return c.answerDetail(w, r, d.Name)
}

// lastSync is what users see of how a dataset's last sync ended.
func lastSync(d *manifest.Dataset) *api.SyncResult {
	if d.LastSync == nil {
		return nil
	}
	out := &api.SyncResult{At: d.LastSync.At}
	if d.LastSync.Kind != "" {
		out.Error = &api.ErrorBody{Kind: d.LastSync.Kind, Message: d.LastSync.Message}
	}
	return out
}

// nextSync adds when the schedule has its next turn. While Temporal does not
// say, it is left out: all else is true without it.
func (c *Controller) nextSync(ctx context.Context, d *api.DatasetDetail) {
	if d.SyncEverySeconds == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, askReachable)
	defer cancel()
	next, err := c.o.Flows.NextSync(ctx, d.Name)
	if err != nil {
		c.o.Log.Debug("the next sync is not known", "dataset", d.Name, "error", err)
	}
	d.NextSync = next
}

// failedSync is 1 for a dataset whose last sync failed.
func failedSync(d api.DatasetInfo) float64 {
	if d.LastSync != nil && d.LastSync.Error != nil {
		return 1
	}
	return 0
}
