package live

import (
	"time"

	"stoker.dev/internal/api"
)

// rateWindow smooths rates: workers write in bursts.
const rateWindow = 5 * time.Second

// rates makes rates of readings of counters. A counter that went back, such as
// one of a dataset that was evicted, begins anew.
type rates struct {
	marks map[string][]mark
}

type mark struct {
	at    time.Time
	value int64
}

// Note takes the readings of one moment. Counters that are not among them are
// forgotten.
func (r *rates) Note(now time.Time, readings map[string]int64) {
	next := make(map[string][]mark, len(readings))
	for key, value := range readings {
		old := r.marks[key]
		if n := len(old); n > 0 && value < old[n-1].value {
			old = nil
		}
		for len(old) > 1 && now.Sub(old[1].at) >= rateWindow { // one stays that is as old as the window
			old = old[1:]
		}
		next[key] = append(old, mark{now, value})
	}
	r.marks = next
}

// PerSecond is how fast a counter grew lately; 0 as long as nobody knows.
func (r *rates) PerSecond(key string) float64 {
	m := r.marks[key]
	if len(m) < 2 {
		return 0
	}
	first, last := m[0], m[len(m)-1]
	span := last.at.Sub(first.at).Seconds()
	if span <= 0 {
		return 0
	}
	return float64(last.value-first.value) / span
}

func ufsKey(w api.WorkerInfo) string       { return "ufs " + w.Incarnation.String() }
func peerKey(w api.WorkerInfo) string      { return "peer " + w.Incarnation.String() }
func residentKey(d api.DatasetInfo) string { return "resident " + d.Name + " " + d.Manifest.String() }
func reads(w api.WorkerInfo) api.ReadCounters {
	if w.Reads == nil {
		return api.ReadCounters{}
	}
	return *w.Reads
}

// readings are the counters of a status. Those of a worker carry its
// incarnation: a new life counts from 0.
func readings(st api.Status) map[string]int64 {
	out := map[string]int64{}
	for _, w := range st.Workers {
		if w.Reads != nil {
			out[ufsKey(w)], out[peerKey(w)] = w.Reads.UFSBytes, w.Reads.PeerBytes
		}
	}
	for _, d := range st.Datasets {
		out[residentKey(d)] = d.ResidentBytes
	}
	return out
}
