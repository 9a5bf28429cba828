package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"stoker.dev/cmd/stoker/internal/live"
	"stoker.dev/internal/api"
)

// maxEnded is the most that a controller tells.
const maxEnded = 1000

// endedJobs prints the history.
func (a *app) endedJobs(ctx context.Context, c *api.Controller, limit int, wide bool) error {
	all, err := c.EndedJobs(ctx, limit)
	if err != nil {
		return err
	}
	return a.print(orEmpty(all), func(w io.Writer) { a.tables(w, wide, endedTable(all, wide)) })
}

// endedTable sums a job's certificates up.
func endedTable(jobs []api.JobLine, wide bool) *live.Table {
	columns := []live.Column{cut("JOB"), left("STATE"), cut("OWNER"), cut("DATASETS"), number("ENDED"), number("OBJECTS"), number("FAILED"), number("BYTES"),
		number("FETCHED"), number("REQUESTS"), number("TOOK")}
	if wide {
		columns = append(columns, left("SUBMITTED"), left("ENDED AT"), left("ERROR"))
	}
	t := table(columns...)
	for _, j := range jobs {
		var sum api.CertificateLine
		for _, c := range j.Certificates {
			sum.Objects, sum.ResidentObjects = sum.Objects+c.Objects, sum.ResidentObjects+c.ResidentObjects
			sum.FailedObjects, sum.UFSBytes, sum.UFSRequests = sum.FailedObjects+c.FailedObjects, sum.UFSBytes+c.UFSBytes, sum.UFSRequests+c.UFSRequests
			sum.Seconds = max(sum.Seconds, c.Seconds)
		}
		cells := []any{j.Job, live.State(j.State), j.Owner, strings.Join(j.Datasets, ","), span(time.Since(j.Ended))}
		if len(j.Certificates) > 0 {
			cells = append(cells, fmt.Sprintf("%d/%d", sum.ResidentObjects, sum.Objects), sum.FailedObjects, api.HumanBytes(j.Bytes),
				api.HumanBytes(sum.UFSBytes), sum.UFSRequests, span(time.Duration(sum.Seconds*float64(time.Second))))
		} else {
			cells = append(cells, "", "", api.HumanBytes(j.Bytes), "", "", "")
		}
		why := ""
		if j.Error != nil {
			why = j.Error.Message
		}
		t.Row(append(cells, when(j.Submitted), when(j.Ended), why)...)
	}
	return t
}
