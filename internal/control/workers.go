package control

import (
	"context"
	"slices"
	"strings"
	"time"

	"stoker.dev"
	"stoker.dev/internal/api"
)

// worker is what is known of one: its last entry in the index, and what it
// says itself, if it answers.
type worker struct {
	info   api.WorkerInfo
	status api.WorkerStatus
}

const askWorker = 3 * time.Second // for what users look at; one that is slower is shown as the index has it

// workers asks all workers how they are, the lost ones last known.
func (c *Controller) workers(ctx context.Context) ([]worker, error) {
	live, lost, err := c.acts.Workers(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]worker, len(live), len(live)+len(lost))
	addresses := make([]string, len(live))
	for i, w := range live {
		addresses[i] = w.Address
	}
	err = c.acts.EachWorker(ctx, addresses, func(ctx context.Context, i int, wc *api.WorkerClient) error {
		w := live[i]
		out[i].info = api.WorkerInfo{ID: w.ID, Node: w.Node, Incarnation: w.Incarnation, Address: w.Address, Socket: w.Socket, PID: w.PID,
			State: api.WorkerLive, CapacityBytes: w.CapacityBytes, UsedBytes: w.UsedBytes, ReservedBytes: w.ReservedBytes}
		ctx, cancel := context.WithTimeout(ctx, askWorker)
		defer cancel()
		st, err := wc.Status(ctx)
		if stoker.KindOf(err) == stoker.KindTransient && err != nil {
			out[i].info.State = api.WorkerLost
			return nil
		} else if err != nil {
			return err
		}
		out[i].status, out[i].info = st, st.WorkerInfo
		out[i].info.Reads = &st.Reads
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, w := range lost {
		out = append(out, worker{info: api.WorkerInfo{ID: w.ID, Node: w.Node, Incarnation: w.Incarnation, Address: w.Address, Socket: w.Socket, PID: w.PID,
			State: api.WorkerLost, CapacityBytes: w.CapacityBytes, UsedBytes: w.UsedBytes, ReservedBytes: w.ReservedBytes}})
	}
	slices.SortFunc(out, func(a, b worker) int { return strings.Compare(a.info.ID, b.info.ID) })
	return out, nil
}

func infos(ws []worker) []api.WorkerInfo {
	out := []api.WorkerInfo{}
	for _, w := range ws {
		out = append(out, w.info)
	}
	return out
}

// holders says who keeps a manifest's data, each once.
func holders(ws []worker, id stoker.ID) []string {
	out := []string{}
	for _, w := range ws {
		for _, h := range w.status.Manifests {
			if h.Manifest == id {
				out = append(out, h.Holders...)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
