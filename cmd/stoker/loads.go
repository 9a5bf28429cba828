package main

import (
	"fmt"
	"io"
	"time"

	"stoker.dev/cmd/stoker/internal/live"
	"stoker.dev/internal/api"
)

func (a *app) printJob(st *api.JobStatus) error {
	st.Datasets = orEmpty(st.Datasets)
	return a.print(st, func(w io.Writer) {
		row(w, "job", st.Job)
		row(w, "state", st.State)
		if q := st.Queue; q != nil {
			row(w, "queue", fmt.Sprintf("place %d of %d, priority %d, needs %s, %s free", q.Place, q.Of, q.Priority, api.HumanBytes(q.NeededBytes), api.HumanBytes(q.FreeBytes)))
		}
		row(w, "owner", st.Owner)
		row(w, "submitted", when(st.Submitted))
		if st.Layout != "" {
			row(w, "layout", st.Layout+" on "+nodeList(st.Nodes))
		}
		if st.Sampler != "" {
			row(w, "sampler", st.Sampler)
		}
		row(w, "resident", fmt.Sprintf("%s of %s (%d %%)", api.HumanBytes(st.ResidentBytes), api.HumanBytes(st.Bytes), percent(st.ResidentBytes, st.Bytes)))
		if !api.Settled(st.State) {
			row(w, "rate", api.HumanBytes(int64(st.BytesPerSec))+"/s")
			row(w, "eta", eta(st.ETASeconds))
			if !st.Deadline.IsZero() {
				row(w, "deadline", deadline(st, time.Now()))
			}
			if !st.WaitingSince.IsZero() {
				row(w, "store", "has not answered since "+when(st.WaitingSince))
			}
		}
		for _, d := range st.Datasets {
			row(w, "dataset", fmt.Sprintf("%s, %s of %s, listed %s", refName(d.DatasetRef), api.HumanBytes(d.ResidentBytes), api.HumanBytes(d.Bytes), when(d.ListedAt)))
			if d.Load != nil {
				loadRows(w, d.Load)
			}
		}
		if !st.ExpiresAt.IsZero() {
			row(w, "expires", when(st.ExpiresAt))
		}
		if st.State == api.JobGrace {
			row(w, "grace until", when(st.GraceUntil))
		}
		if st.Error != nil {
			row(w, "error", st.Error.Message)
		}
	})
}

// deadline says when a job wants its data, and whether that will be in time.
func deadline(st *api.JobStatus, now time.Time) string {
	left := st.Deadline.Sub(now)
	line := "passed " + span(-left) + " ago"
	if left > 0 {
		line = "in " + span(left)
	}
	if st.ETASeconds < 0 || left <= 0 {
		return line
	}
	spare := left - time.Duration(min(st.ETASeconds, 1e9)*float64(time.Second))
	if spare >= 0 {
		return line + ", ready " + span(spare) + " before"
	}
	return line + ", ready " + span(-spare) + " late"
}

// loadRows say how far a load is, and who does what in it.
func loadRows(w io.Writer, l *api.LoadStatus) {
	line := l.State
	if l.PausedBy != "" {
		line += ", paused by " + l.PausedBy
	}
	if l.Objects > 0 {
		line += fmt.Sprintf(", %d of %d objects", l.ResidentObjects, l.Objects)
	}
	if l.BytesPerSec > 0 {
		line += ", " + api.HumanBytes(int64(l.BytesPerSec)) + "/s"
	}
	if l.ETASeconds > 0 {
		line += ", ready in " + eta(l.ETASeconds)
	}
	if l.FailedObjects > 0 {
		line += fmt.Sprintf(", %d objects failed", l.FailedObjects)
	}
	if l.LimitBytesPerSecond > 0 {
		line += ", at most " + api.HumanBytes(l.LimitBytesPerSecond) + "/s from the store"
	}
	row(w, "load", line)
	if c := l.Check; c != nil {
		row(w, "verifying", fmt.Sprintf("%s of %s (%d %%)", api.HumanBytes(c.Bytes), api.HumanBytes(c.TotalBytes), percent(c.Bytes, c.TotalBytes)))
	}
	for _, x := range l.Workers {
		row(w, "worker", loadWorker(x))
	}
}

func loadWorker(x api.LoadWorker) string {
	line := fmt.Sprintf("%s: %d objects, %s", live.ShortID(x.Worker), x.Objects, api.HumanBytes(x.ResidentBytes))
	if x.LoadBytes > 0 {
		line += fmt.Sprintf(", loading %s of %s (%d %%)", api.HumanBytes(x.LoadedBytes), api.HumanBytes(x.LoadBytes), percent(x.LoadedBytes, x.LoadBytes))
	}
	if x.BytesPerSec > 0 {
		line += ", " + api.HumanBytes(int64(x.BytesPerSec)) + "/s"
	}
	if x.CheckAllBytes > 0 {
		line += fmt.Sprintf(", verifying %d %%", percent(x.CheckedBytes, x.CheckAllBytes))
	}
	if x.FailedObjects > 0 {
		line += fmt.Sprintf(", %d failed", x.FailedObjects)
	}
	if !x.WaitingSince.IsZero() {
		line += ", the store has not answered since " + when(x.WaitingSince)
	}
	return line
}
