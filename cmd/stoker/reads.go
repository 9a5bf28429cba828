package main

import (
	"context"
	"fmt"
	"io"
	"strconv"

	"stoker.dev/cmd/stoker/internal/live"
	"stoker.dev/internal/api"
)

// readsOf prints what each worker read of one dataset.
func (a *app) readsOf(ctx context.Context, c *api.Controller, f statusFlags, name string) error {
	ref, err := datasetArg(name)
	if err != nil {
		return err
	}
	all, err := c.Reads(ctx, refName(ref))
	if err != nil {
		return err
	}
	return a.print(orEmpty(all), func(w io.Writer) { a.tables(w, f.wide, readTables(all, f.wide)...) })
}

// ofAll are the counters of workers over all datasets.
func ofAll(workers []api.WorkerInfo) []api.WorkerReads {
	out := make([]api.WorkerReads, len(workers))
	for i, w := range workers {
		out[i] = api.WorkerReads{ID: w.ID, State: w.State, Reads: w.Reads}
	}
	return out
}

// readTables show what workers read, what came ahead of readers, and what these
// waited for.
func readTables(workers []api.WorkerReads, wide bool) []*live.Table {
	all := []*live.Table{readTable(workers, wide)}
	all = append(all, aheadTable(workers, wide)...)
	all = append(all, randomTable(workers, wide)...)
	return append(all, waitTable(workers, wide)...)
}

// idOf is a worker's id as a table shows it.
func idOf(id string, wide bool) string {
	if wide {
		return id
	}
	return live.ShortID(id)
}

// readTable shows what workers read, and brought in, since they started, and the
// sum; one that did not answer has no figures.
func readTable(workers []api.WorkerReads, wide bool) *live.Table {
	t := table(left("WORKER"), left("STATE"), number("READS"), number("FROM DISK"), number("FROM PEERS"), number("FROM STORE"), number("REQUESTS"))
	row := func(id string, state any, r *api.ReadCounters) {
		t.Row(id, state, r.FUSEReads, api.HumanBytes(r.LocalBytes), api.HumanBytes(r.PeerBytes), api.HumanBytes(r.UFSBytes), r.UFSRequests)
	}
	var sum api.ReadCounters
	for _, w := range workers {
		id := idOf(w.ID, wide)
		if w.Reads == nil {
			t.Row(id, live.State(w.State), "", "", "", "", "")
			continue
		}
		row(id, live.State(w.State), w.Reads)
		sum.Add(*w.Reads)
	}
	if len(workers) > 1 {
		row("all", "", &sum)
	}
	return t
}

// aheadTable shows what workers brought in before anybody asked for it, how much of
// it was of use, and beneath for whom it came; nothing if none did.
func aheadTable(workers []api.WorkerReads, wide bool) []*live.Table {
	t := table(left("WORKER"), number("AHEAD"), number("USED"), number("NOT YET"), number("WASTED"))
	whom := table(left("WORKER"), number("STREAMS"), number("FILES"), number("STEPS"), number("FOOTERS"), number("EPOCHS"))
	came := false
	for _, w := range workers {
		if w.Reads == nil || w.Reads.Ahead == nil || w.Reads.Ahead.Bytes == 0 {
			continue
		}
		came = true
		a := w.Reads.Ahead
		t.Row(idOf(w.ID, wide), api.HumanBytes(a.Bytes), fmt.Sprintf("%d %%", percent(a.UsedBytes, a.Bytes)),
			api.HumanBytes(max(0, a.Bytes-a.UsedBytes-a.WastedBytes)), api.HumanBytes(a.WastedBytes))
		whom.Row(idOf(w.ID, wide), a.Streams, a.Files, a.Steps, a.Footers, a.Epochs)
	}
	if !came {
		return nil
	}
	return []*live.Table{t, whom}
}

// randomTable shows how many reads were seen to be in no order, and what was not brought
// in for them; nothing if none were.
func randomTable(workers []api.WorkerReads, wide bool) []*live.Table {
	t := table(left("WORKER"), number("RANDOM"), number("SPARED"))
	seen := false
	for _, w := range workers {
		if w.Reads != nil && w.Reads.RandomReads > 0 {
			seen = true
			t.Row(idOf(w.ID, wide), w.Reads.RandomReads, api.HumanBytes(w.Reads.SparedBytes))
		}
	}
	if !seen {
		return nil
	}
	return []*live.Table{t}
}

// waitTable shows how long readers waited for bytes that were not here, and for
// what; nothing if none did.
func waitTable(workers []api.WorkerReads, wide bool) []*live.Table {
	t := table(left("WORKER"), number("WAITED"), number("STORE"), number("PEERS"), number("DISK"), number("QUEUE"), number("LOADS"))
	row := func(id string, w *api.ReadWaits) {
		t.Row(id, seconds(w.Seconds()), seconds(w.UFSSeconds), seconds(w.PeerSeconds), seconds(w.DiskSeconds), seconds(w.QueueSeconds), seconds(w.LoadSeconds))
	}
	var sum api.ReadCounters
	waited := 0
	for _, w := range workers {
		if w.Reads == nil || w.Reads.Waits == nil || w.Reads.Waits.Seconds() == 0 {
			continue
		}
		row(idOf(w.ID, wide), w.Reads.Waits)
		sum.Add(*w.Reads)
		waited++
	}
	switch waited {
	case 0:
		return nil
	case 1:
	default:
		row("all", sum.Waits)
	}
	return []*live.Table{t}
}

// seconds has milliseconds while there are few of them, and hours when there are many.
func seconds(s float64) string {
	switch {
	case s < 10:
		return strconv.FormatFloat(s, 'f', 3, 64) + " s"
	case s < 36_000:
		return strconv.FormatFloat(s, 'f', 0, 64) + " s"
	}
	return strconv.FormatFloat(s/3600, 'f', 0, 64) + " h"
}
