package main

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"stoker.dev/cmd/stoker/internal/live"
	"stoker.dev/internal/api"
)

// narrow is how few cells a name keeps in a narrow terminal.
const narrow = 8

// table begins one; columns that are only shown wide are left out by the rows,
// too.
func table(columns ...live.Column) *live.Table {
	return &live.Table{Columns: columns, Empty: "-"}
}

func left(head string) live.Column   { return live.Column{Head: head} }
func number(head string) live.Column { return live.Column{Head: head, Right: true} }

// cut is a column that shrinks where the terminal is narrow.
func cut(head string) live.Column { return live.Column{Head: head, Min: narrow} }

func percentOf(part, whole int64) string { return strconv.Itoa(percent(part, whole)) + " %" }

func jobTable(jobs []api.JobLine, wide bool) *live.Table {
	columns := []live.Column{cut("JOB"), left("STATE"), cut("OWNER"), cut("DATASETS"), number("BYTES"), number("%"), number("ETA")}
	if wide {
		columns = append(columns, number("RESIDENT"))
	}
	t := table(columns...)
	for _, j := range jobs {
		ready := ""
		if !api.Settled(j.State) {
			ready = eta(j.ETASeconds)
		}
		state := live.State(j.State)
		if q := j.Queue; q != nil {
			state.Text += fmt.Sprintf(" %d/%d", q.Place, q.Of)
		}
		t.Row(j.Job, state, j.Owner, strings.Join(j.Datasets, ","), api.HumanBytes(j.Bytes),
			percentOf(j.ResidentBytes, j.Bytes), ready, api.HumanBytes(j.ResidentBytes))
	}
	return t
}

func workerTable(workers []api.WorkerInfo, wide bool) *live.Table {
	columns := []live.Column{left("WORKER"), left("STATE"), number("USED"), number("RESERVED"), number("CAPACITY"), number("%"), cut("ADDRESS")}
	if wide {
		columns = append(columns, number("PID"), number("UFS"), number("PEERS"), left("SOCKET"), left("NODE"))
	}
	t := table(columns...)
	for _, w := range workers {
		id, address := live.ShortID(w.ID), strings.TrimPrefix(w.Address, "http://")
		if wide {
			id, address = w.ID, w.Address
		}
		ufs, peers := "", ""
		if w.Reads != nil {
			ufs, peers = api.HumanBytes(w.Reads.UFSBytes), api.HumanBytes(w.Reads.PeerBytes)
		}
		full := ""
		if w.CapacityBytes > 0 {
			full = percentOf(w.UsedBytes, w.CapacityBytes)
		}
		t.Row(id, live.State(w.State), api.HumanBytes(w.UsedBytes), api.HumanBytes(w.ReservedBytes), api.HumanBytes(w.CapacityBytes),
			full, address, w.PID, ufs, peers, w.Socket, w.Node)
	}
	return t
}

// diskTable lists the cache folders that are out of service or full; nothing
// if all are well.
func diskTable(workers []api.WorkerInfo, wide bool) []*live.Table {
	bad := live.BadDisks(workers)
	if len(bad) == 0 {
		return nil
	}
	t := table(left("WORKER"), left("DISK"), number("CAPACITY"), cut("FOLDER"), cut("REASON"))
	for _, d := range bad {
		id := live.ShortID(d.Worker)
		if wide {
			id = d.Worker
		}
		t.Row(id, live.State(d.State), api.HumanBytes(d.CapacityBytes), d.Dir, d.Reason)
	}
	return []*live.Table{t}
}

// budgetTable sums up, for each under file system that has a limit, what all
// workers use of it; nothing if none has.
func budgetTable(workers []api.WorkerInfo) []*live.Table {
	byEndpoint := map[string]api.UFSUse{}
	for _, w := range workers {
		for _, u := range w.UFS {
			sum, known := byEndpoint[u.Endpoint]
			if !known {
				sum.Endpoint = u.Endpoint
			}
			sum.LimitBytes, sum.LimitRequests = max(sum.LimitBytes, u.LimitBytes), max(sum.LimitRequests, u.LimitRequests)
			sum.UsedBytes, sum.UsedRequests = sum.UsedBytes+u.UsedBytes, sum.UsedRequests+u.UsedRequests
			sum.Members, sum.Alone = sum.Members+1, sum.Alone || u.Alone
			byEndpoint[u.Endpoint] = sum
		}
	}
	if len(byEndpoint) == 0 {
		return nil
	}
	t := table(cut("UFS"), number("WORKERS"), number("BYTES/S"), number("OF"), number("REQUESTS/S"), number("OF"), left("SHARED"))
	for _, name := range slices.Sorted(maps.Keys(byEndpoint)) {
		u := byEndpoint[name]
		bytes, requests, shared := "", "", "by need"
		if u.LimitBytes > 0 {
			bytes = api.HumanBytes(u.LimitBytes)
		}
		if u.LimitRequests > 0 {
			requests = strconv.FormatFloat(u.LimitRequests, 'f', 0, 64)
		}
		if u.Alone {
			shared = "equally"
		}
		t.Row(name, u.Members, api.HumanBytes(u.UsedBytes), bytes, strconv.FormatFloat(u.UsedRequests, 'f', 0, 64), requests, shared)
	}
	return []*live.Table{t}
}

func datasetTable(datasets []api.DatasetInfo, wide bool) *live.Table {
	anyPin := slices.ContainsFunc(datasets, func(d api.DatasetInfo) bool { return len(d.Pins) > 0 })
	columns := []live.Column{cut("DATASET"), number("OBJECTS"), number("BYTES"), number("RESIDENT"), number("%"), number("LISTED")}
	anySync := slices.ContainsFunc(datasets, func(d api.DatasetInfo) bool { return d.SyncEverySeconds > 0 || failedSync(d) })
	if anySync {
		columns = append(columns, left("SYNC"))
	}
	if anyPin {
		columns = append(columns, number("PINNED"))
	}
	columns = append(columns, cut("URIS"))
	if wide {
		columns = append(columns, left("OWNER"), left("LISTED AT"), left("MANIFEST"))
	}
	t := table(columns...)
	for _, d := range datasets {
		age := ""
		if !d.ListedAt.IsZero() {
			age = span(time.Since(d.ListedAt))
		}
		cells := []any{live.Generation(d.Name, d.Generation), d.Objects, api.HumanBytes(d.Bytes), api.HumanBytes(d.ResidentBytes),
			percentOf(d.ResidentBytes, d.Bytes), age}
		if anySync {
			cells = append(cells, syncCell(d))
		}
		if anyPin {
			cells = append(cells, pinned(d))
		}
		t.Row(append(cells, strings.Join(d.URIs, ","), d.Owner, when(d.ListedAt), d.Manifest.String())...)
	}
	return t
}

// failedSync reports whether the last sync of a dataset failed.
func failedSync(d api.DatasetInfo) bool { return d.LastSync != nil && d.LastSync.Error != nil }

// syncCell says how often a dataset is synced, and whether that goes wrong.
func syncCell(d api.DatasetInfo) live.Cell {
	c := live.Cell{}
	if d.SyncEverySeconds > 0 {
		c.Text = live.Every(d.SyncEverySeconds)
	}
	if failedSync(d) {
		c.Text, c.Paint = strings.TrimSpace(c.Text+" failed"), live.Red
	}
	return c
}
