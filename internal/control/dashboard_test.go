package control

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"stoker.dev/cache/placement"
	"stoker.dev/internal/api"
	node "stoker.dev/internal/worker"
	"stoker.dev/ufs"
	"stoker.dev/workflows"
)

// exported are the families that both daemons export, with their labels.
type exported map[string]map[string]bool

var (
	typeLine   = regexp.MustCompile(`^# TYPE (\S+) (\S+)`)
	sampleLine = regexp.MustCompile(`^([a-z_0-9]+)(?:\{(.*)\})? `)
	labelName  = regexp.MustCompile(`(\w+)="`)
)

// add takes in an answer of /metrics. Counters are held to their suffix.
func (e exported) add(t *testing.T, a answer) {
	t.Helper()
	series(t, a)
	for line := range strings.Lines(string(a.body)) {
		if m := typeLine.FindStringSubmatch(line); m != nil && strings.HasPrefix(m[1], "stoker_") {
			if (m[2] == "counter") != strings.HasSuffix(m[1], "_total") {
				t.Errorf("%s is a %s", m[1], m[2])
			}
		}
		if m := sampleLine.FindStringSubmatch(line); m != nil {
			if e[m[1]] == nil {
				e[m[1]] = map[string]bool{}
			}
			for _, l := range labelName.FindAllStringSubmatch(m[2], -1) {
				e[m[1]][l[1]] = true
			}
		}
	}
}

// scrapeBoth runs both daemons and reads what they export.
func scrapeBoth(t *testing.T) exported {
	t.Helper()
	flows, address := startFlows(t)
	flows.addSet(workflows.DatasetState{Dataset: "pets", Manifest: number(1), State: api.JobReady})
	w := startWatched(t, address, placement.NewMem(time.Now))
	w.register(t, "pets", 1000, number(1))
	dial := runWorker(t, w.index, w.objects)
	all := exported{}
	for range 2 { // the first one is counted in the second
		all.add(t, w.get(t, w.socket, "http://c/metrics", ""))
		all.add(t, w.get(t, dial, "http://w/metrics", ""))
	}
	return all
}

// runWorker runs a worker until the test ends, and returns a client of its
// socket.
func runWorker(t *testing.T, index placement.Index, objects ufs.Objects) *http.Client {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "w.sock")
	w, err := node.Open(node.Options{Dir: filepath.Join(t.TempDir(), "cache"), CapacityBytes: 1 << 28, Objects: objects, Index: index, Socket: socket})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx, func() {}) }()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return api.DialUnix(ctx, socket) }}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return &http.Client{Transport: transport}
}

// queries are the strings of a dashboard that Prometheus gets, by where they
// stand.
func queries(t *testing.T) map[string]string {
	t.Helper()
	body, err := os.ReadFile(filepath.Join("..", "..", "deploy", "grafana", "stoker.json"))
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr, RefID string }
		}
		Templating struct {
			List []struct{ Name, Type, Query string }
		}
	}
	if err := json.Unmarshal(body, &d); err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, p := range d.Panels {
		for _, target := range p.Targets {
			out[p.Title+" "+target.RefID] = target.Expr
		}
	}
	for _, v := range d.Templating.List {
		if v.Type == "query" {
			out["variable "+v.Name] = v.Query
		}
	}
	if len(out) < 20 {
		t.Fatalf("%d queries: the test does not see the dashboard", len(out))
	}
	return out
}

var (
	metricName = regexp.MustCompile(`\b(?:stoker|go|process)_[a-z_0-9]+`)
	selector   = regexp.MustCompile(`([a-z_0-9]+)\{([^}]*)\}`)
	matcher    = regexp.MustCompile(`(\w+)\s*(?:=~|!~|!=|=)`)
	grouping   = regexp.MustCompile(`by \(([^)]*)\)`)
)

// Every metric and label that the dashboard asks for is exported by one of the
// daemons.
func TestDashboardAsksForWhatIsExported(t *testing.T) {
	all := scrapeBoth(t)
	fromPrometheus := []string{"instance", "job", "le"}
	for at, q := range queries(t) {
		names := metricName.FindAllString(q, -1)
		if len(names) == 0 {
			t.Errorf("%s: %q names no metric", at, q)
		}
		labels := map[string]bool{}
		for _, name := range names {
			if all[name] == nil {
				t.Errorf("%s: nothing exports %s", at, name)
			}
			for l := range all[name] {
				labels[l] = true
			}
		}
		for _, m := range selector.FindAllStringSubmatch(q, -1) {
			for _, l := range matcher.FindAllStringSubmatch(m[2], -1) {
				if !all[m[1]][l[1]] && !slices.Contains(fromPrometheus, l[1]) {
					t.Errorf("%s: %s has no label %s", at, m[1], l[1])
				}
			}
		}
		for _, m := range grouping.FindAllStringSubmatch(q, -1) {
			for l := range strings.SplitSeq(m[1], ", ") {
				if !labels[l] && !slices.Contains(fromPrometheus, l) {
					t.Errorf("%s: %v have no label %s", at, names, l)
				}
			}
		}
	}
}

// The table of docs/adr/0007 has every metric of ours, and no other.
func TestMetricsAreDocumented(t *testing.T) {
	body, err := os.ReadFile(filepath.Join("..", "..", "docs", "adr", "0007-metrics.md"))
	if err != nil {
		t.Fatal(err)
	}
	said := map[string]bool{}
	for line := range strings.Lines(string(body)) {
		if cells := strings.Split(line, "|"); len(cells) > 3 {
			for _, name := range metricName.FindAllString(cells[1], -1) {
				said[name] = true
			}
		}
	}
	there := map[string]bool{}
	for name := range scrapeBoth(t) {
		for _, suffix := range []string{"_bucket", "_sum", "_count"} { // of a histogram
			name = strings.TrimSuffix(name, suffix)
		}
		if strings.HasPrefix(name, "stoker_") {
			there[name] = true
		}
	}
	for name := range there {
		if !said[name] {
			t.Errorf("%s is exported and not documented", name)
		}
	}
	for name := range said {
		if !there[name] {
			t.Errorf("%s is documented and not exported", name)
		}
	}
}
