package control

import (
	"context"
	"fmt"
	"strings"

	"stoker.dev"
	"stoker.dev/cache/placement"
	"stoker.dev/internal/api"
)

const startWorkers = "start 'stokerd worker' on the nodes, with the same --redis and --redis-prefix as this controller"

// noneServes says why no worker takes anything new, and what to do; "" if one does.
func noneServes(live, lost []placement.Worker) (why, hint string) {
	var drained []string
	for _, w := range live {
		if !w.Draining {
			return "", ""
		}
		drained = append(drained, short(w.ID))
	}
	if len(drained) == 0 {
		return fmt.Sprintf("none is live, %d lost", len(lost)), startWorkers
	}
	return fmt.Sprintf("none is in service: %d drained, %d lost", len(drained), len(lost)),
		"'stoker workers undrain " + drained[0] + "' puts one back into service (drained: " + strings.Join(drained[:min(len(drained), 5)], ", ") + "), or start others"
}

// waitsForWorkers is what a claim waits for whose load is only planned while no
// worker takes anything new; nil if one does, or it is not known.
func (c *Controller) waitsForWorkers(ctx context.Context) *api.ErrorBody {
	live, lost, err := c.acts.Workers(ctx)
	if err != nil {
		return nil
	}
	why, hint := noneServes(live, lost)
	if why == "" {
		return nil
	}
	return &api.ErrorBody{Kind: stoker.KindTransient.String(), Message: "waits for workers: " + why + ": " + hint}
}
