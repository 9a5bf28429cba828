package live

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"stoker.dev/internal/api"
)

// ShortID is as much of a worker's id as people need.
func ShortID(id string) string {
	const n = 12
	if len(id) <= n {
		return id
	}
	return id[:n]
}

// BadDisk is a cache folder that is full of others' files or out of service,
// and the id of the worker that has it.
type BadDisk struct {
	Worker string
	api.DiskInfo
}

// BadDisks lists those of all workers, what is out of service first.
func BadDisks(workers []api.WorkerInfo) []BadDisk {
	var full, out []BadDisk
	for _, w := range workers {
		for _, d := range w.Disks {
			switch d.State {
			case "ok":
			case "full":
				full = append(full, BadDisk{w.ID, d})
			default:
				out = append(out, BadDisk{w.ID, d})
			}
		}
	}
	return append(out, full...)
}

// Generation is the name of a dataset's generation.
func Generation(name string, generation int) string {
	if generation == 0 {
		return name
	}
	return name + "@" + strconv.Itoa(generation)
}

// Span prints a duration for people, in its largest unit.
func Span(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%d s", max(0, int(d.Seconds())))
	case d < time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	default:
		return fmt.Sprintf("%d d", int(d.Hours()/24))
	}
}

// Every prints an interval as it is written in flags: 90 s is 1m30s, a day 24h.
func Every(seconds float64) string {
	s := (time.Duration(seconds) * time.Second).String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// ETA prints the seconds that something takes yet; nothing if that is unknown.
func ETA(seconds float64) string {
	if seconds < 0 {
		return ""
	}
	return Span(time.Duration(min(seconds, 1e9) * float64(time.Second)))
}

// Percent of part in whole; the whole of nothing is there.
func Percent(part, whole int64) int {
	if whole <= 0 {
		return 100
	}
	return int(min(100, max(0, float64(part)/float64(whole)*100)))
}

func percentCell(part, whole int64) string { return strconv.Itoa(Percent(part, whole)) + " %" }

// rate prints bytes per second; nothing for none.
func rate(perSecond float64) string {
	if perSecond < 1 {
		return ""
	}
	return api.HumanBytes(int64(perSecond)) + "/s"
}

// State paints a state by what it means: fine, on its way, bad, over.
func State(state string) Cell {
	c := Cell{Text: state}
	switch state {
	case api.JobReady, api.JobLeased, "resident", api.WorkerLive, api.CheckOK:
		c.Paint = Green
	case api.JobPlanned, api.JobQueued, api.JobWarming, "partial", api.WorkerDraining:
		c.Paint = Cyan
	case api.JobDegraded, api.CheckWarn, "full":
		c.Paint = Yellow
	case api.JobFailed, api.WorkerLost, "readonly", "failed", api.CheckFail:
		c.Paint = Red
	default:
		c.Paint = Dim
	}
	return c
}
