package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"stoker.dev"
	"stoker.dev/cmd/stoker/internal/live"
	"stoker.dev/internal/api"
)

func someStatus() api.Status {
	return api.Status{
		Jobs:     []api.JobLine{{Job: "train-17", State: api.JobWarming, Owner: "ann", Datasets: []string{"imagenet"}, Bytes: 1 << 30, ResidentBytes: 1 << 29, ETASeconds: 65}},
		Datasets: []api.DatasetInfo{{Name: "imagenet", Generation: 3, Objects: 1281167, Bytes: 1 << 30, ResidentBytes: 1 << 29, URIs: []string{"s3://datasets/imagenet"}, Owner: "ann", Manifest: stoker.ID{1}}},
		Workers: []api.WorkerInfo{{ID: "0123456789abcdef0123456789abcdef", Incarnation: 1, Address: "http://127.0.0.1:40000", Socket: "/w.sock", PID: 42, State: "live",
			CapacityBytes: 4 << 30, UsedBytes: 1 << 30, ReservedBytes: 1 << 29, Reads: &api.ReadCounters{UFSBytes: 3 << 20}}},
	}
}

// The tables as they are, within 80 columns without cutting anything.
func TestStatusGolden(t *testing.T) {
	g := newRig(t, routes{"GET /v1/status": answer(someStatus())}, nil)
	g.want(0, "status")
	want := `DATASET     OBJECTS    BYTES   RESIDENT     %  LISTED  URIS
imagenet@3  1281167  1.0 GiB  512.0 MiB  50 %       -  s3://datasets/imagenet

JOB       STATE    OWNER  DATASETS    BYTES     %    ETA
train-17  Warming  ann    imagenet  1.0 GiB  50 %  1 min

WORKER        STATE     USED   RESERVED  CAPACITY     %  ADDRESS
0123456789ab  live   1.0 GiB  512.0 MiB   4.0 GiB  25 %  127.0.0.1:40000
`
	if got := g.stdout.String(); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	for _, line := range strings.Split(g.stdout.String(), "\n") {
		if live.Width(line) > 80 {
			t.Errorf("wider than 80: %q", line)
		}
	}
}

// What workers read, with its sum; a lost one has no figures. JSON is that of the
// workers.
func TestStatusReads(t *testing.T) {
	st := someStatus()
	st.Workers[0].Reads = &api.ReadCounters{FUSEReads: 12, LocalBytes: 5 << 20, PeerBytes: 1 << 20, UFSBytes: 3 << 20, UFSRequests: 7}
	st.Workers = append(st.Workers, api.WorkerInfo{ID: "f123", State: "lost"}, api.WorkerInfo{ID: "f456", State: "live", Reads: &api.ReadCounters{FUSEReads: 1, UFSRequests: 1}})
	g := newRig(t, routes{"GET /v1/status": answer(st)}, nil)
	g.want(0, "status", "--reads")
	want := `WORKER        STATE  READS  FROM DISK  FROM PEERS  FROM STORE  REQUESTS
0123456789ab  live      12    5.0 MiB     1.0 MiB     3.0 MiB         7
f123          lost       -          -           -           -         -
f456          live       1        0 B         0 B         0 B         1
all           -         13    5.0 MiB     1.0 MiB     3.0 MiB         8
`
	if got := g.stdout.String(); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	st.Workers[0].Reads.Ahead = &api.AheadCounters{Bytes: 4 << 20, UsedBytes: 3 << 20, WastedBytes: 256 << 10, Streams: 2, Files: 40, Steps: 1, Footers: 5, Epochs: 3}
	g = newRig(t, routes{"GET /v1/status": answer(st)}, nil)
	g.want(0, "status", "--reads")
	if want += `
WORKER          AHEAD  USED    NOT YET     WASTED
0123456789ab  4.0 MiB  75 %  768.0 KiB  256.0 KiB

WORKER        STREAMS  FILES  STEPS  FOOTERS  EPOCHS
0123456789ab        2     40      1        5       3
`; g.stdout.String() != want {
		t.Errorf("got\n%swant\n%s", g.stdout.String(), want)
	}
	st.Workers[0].Reads.RandomReads, st.Workers[0].Reads.SparedBytes = 91, 300<<20
	g = newRig(t, routes{"GET /v1/status": answer(st)}, nil)
	g.want(0, "status", "--reads")
	if want += `
WORKER        RANDOM     SPARED
0123456789ab      91  300.0 MiB
`; g.stdout.String() != want {
		t.Errorf("got\n%swant\n%s", g.stdout.String(), want)
	}
	st.Workers[0].Reads.Waits = &api.ReadWaits{UFSSeconds: 61.2, PeerSeconds: 0.25, DiskSeconds: 0.001, LoadSeconds: 2}
	g = newRig(t, routes{"GET /v1/status": answer(st)}, nil)
	g.want(0, "status", "--reads")
	if want += `
WORKER        WAITED  STORE    PEERS     DISK    QUEUE    LOADS
0123456789ab    63 s   61 s  0.250 s  0.001 s  0.000 s  2.000 s
`; g.stdout.String() != want {
		t.Errorf("got\n%swant\n%s", g.stdout.String(), want)
	}
	much := st
	much.Workers = []api.WorkerInfo{{ID: st.Workers[0].ID, State: "draining", Reads: &api.ReadCounters{FUSEReads: 1e6, LocalBytes: 1023 << 40, PeerBytes: 1023 << 40, UFSBytes: 1023 << 40, UFSRequests: 1e7, RandomReads: 1e9, SparedBytes: 1023 << 40,
		Ahead: &api.AheadCounters{Bytes: 1023 << 40, WastedBytes: 1023 << 39, Streams: 1e9, Files: 1e9, Steps: 1e9, Footers: 1e9, Epochs: 1e9},
		Waits: &api.ReadWaits{UFSSeconds: 1e9, PeerSeconds: 1e9, DiskSeconds: 1e9, QueueSeconds: 1e9, LoadSeconds: 1e9}}}}
	g = newRig(t, routes{"GET /v1/status": answer(much)}, nil)
	g.want(0, "status", "--reads")
	for line := range strings.Lines(g.stdout.String()) {
		if w := live.Width(strings.TrimSuffix(line, "\n")); w > 80 {
			t.Errorf("%d columns: %q", w, line)
		}
	}
	var workers []api.WorkerInfo
	g = newRig(t, routes{"GET /v1/status": answer(st)}, nil)
	g.json(&workers, 0, "status", "--reads")
	if len(workers) != 3 || workers[0].Reads.LocalBytes != 5<<20 {
		t.Errorf("%+v", workers)
	}
	for _, args := range [][]string{{"--watch"}, {"--failed"}} {
		g.want(2, append([]string{"status", "--reads"}, args...)...)
	}
}

// With a name it is what was read of that dataset alone, by the same words; a name
// that is none is an error, not an empty table.
func TestStatusReadsOfADataset(t *testing.T) {
	all := []api.WorkerReads{{ID: "0123456789abcdef", State: "live", Reads: &api.ReadCounters{FUSEReads: 2, LocalBytes: 1 << 20, UFSRequests: 3,
		Ahead: &api.AheadCounters{}, Waits: &api.ReadWaits{QueueSeconds: 0.5}}}, {ID: "f123", State: "lost"}}
	rs := routes{"GET /v1/datasets/pets/reads": answer(all), "GET /v1/datasets/pets@2/reads": answer(all[1:])}
	g := newRig(t, rs, nil)
	g.want(0, "status", "--reads", "pets")
	want := `WORKER        STATE  READS  FROM DISK  FROM PEERS  FROM STORE  REQUESTS
0123456789ab  live       2    1.0 MiB         0 B         0 B         3
f123          lost       -          -           -           -         -
all           -          2    1.0 MiB         0 B         0 B         3

WORKER         WAITED    STORE    PEERS     DISK    QUEUE    LOADS
0123456789ab  0.500 s  0.000 s  0.000 s  0.000 s  0.500 s  0.000 s
`
	if got := g.stdout.String(); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	var got []api.WorkerReads
	g = newRig(t, rs, nil)
	g.json(&got, 0, "status", "--reads", "pets")
	if len(got) != 2 || got[0].Reads.Waits.QueueSeconds != 0.5 {
		t.Errorf("%+v", got)
	}
	g = newRig(t, rs, nil)
	g.want(0, "status", "--reads", "pets@2")
	g = newRig(t, routes{"GET /v1/datasets/cats/reads": fail(stoker.KindNotExist)}, nil)
	g.want(3, "status", "--reads", "cats")
	g.says("as told: do this")
}

// A disk that is out of service or full is seen by a person: beneath the
// workers, within any terminal.
func TestBadDisksAreShown(t *testing.T) {
	st := someStatus()
	st.Workers[0].Disks = []api.DiskInfo{
		{Dir: "/nvme0", State: "ok", CapacityBytes: 1 << 30}, {Dir: "/nvme1", State: "full", Reason: "no space left on device", CapacityBytes: 1 << 30},
		{Dir: "/nvme2", State: "failed", Reason: "another folder shows: " + strings.Repeat("no such file ", 9), CapacityBytes: 2 << 30},
	}
	want := `
WORKER        DISK    CAPACITY  FOLDER  REASON
0123456789ab  failed   2.0 GiB  /nvme2  ` + strings.TrimSpace(st.Workers[0].Disks[2].Reason) + `
0123456789ab  full     1.0 GiB  /nvme1  no space left on device
`
	rs := routes{"GET /v1/status": answer(st), "GET /v1/workers": answer(st.Workers)}
	for _, command := range []string{"workers", "status"} {
		g := newRig(t, rs, nil)
		g.want(0, command)
		if got := g.stdout.String(); !strings.HasSuffix(got, want) {
			t.Errorf("%s: got\n%swant at its end\n%s", command, got, want)
		}
	}
	for _, line := range diskTable(st.Workers, false)[0].Lines(80, false) {
		if live.Width(line) > 80 || line == "" {
			t.Errorf("wider than 80: %q", line)
		}
	}
	g := newRig(t, rs, nil)
	g.want(0, "workers", "--wide")
	if !strings.Contains(g.stdout.String(), st.Workers[0].ID+"  failed") {
		t.Errorf("--wide has no whole id:\n%s", g.stdout.String())
	}
}

// Whole ids are to be had: --wide, and what programs read.
func TestWide(t *testing.T) {
	const id = "0123456789abcdef0123456789abcdef"
	rs := routes{"GET /v1/status": answer(someStatus()), "GET /v1/workers": answer(someStatus().Workers), "GET /v1/jobs": answer(someStatus().Jobs), "GET /v1/datasets": answer(someStatus().Datasets)}
	for line, part := range map[string]string{
		"workers": "0123456789ab  ", "workers --wide": id, "workers -o json": id, "workers -o yaml": id, "status --wide": id, "status -o json": `"ufsBytes": 3145728`,
		"jobs --wide": "512.0 MiB", "dataset ls --wide": stoker.ID{1}.String(), "jobs -o yaml": "job: train-17",
	} {
		g := newRig(t, rs, nil)
		g.want(0, strings.Fields(line)...)
		if !strings.Contains(g.stdout.String(), part) {
			t.Errorf("%s has no %q:\n%s", line, part, g.stdout.String())
		}
		if line == "workers" && strings.Contains(g.stdout.String(), id) {
			t.Errorf("the table has the whole id")
		}
	}
}

// watched serves a status that grows with each question, and ends the command
// with the n-th.
func watched(t testing.TB, n int64, args ...string) (*rig, int) {
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	var asked atomic.Int64
	g := newRig(t, routes{"GET /v1/status": func(w http.ResponseWriter, _ *http.Request) {
		k := asked.Add(1)
		if k > n {
			cancel()
		}
		st := someStatus()
		st.Datasets[0].ResidentBytes = min(k, n) << 20
		api.WriteJSON(w, 200, st)
	}}, nil)
	return g, g.runCtx(ctx, append([]string{"status", "--watch", "--interval", "100ms"}, args...)...)
}

func TestWatchElsewhere(t *testing.T) {
	g, code := watched(t, 2)
	if out := g.stdout.String(); code != 130 || strings.Count(out, "imagenet@3") < 2 || strings.Contains(out, "\x1b") || g.stderr.String() != "" {
		t.Errorf("exit %d, stderr %q:\n%s", code, g.stderr.String(), out)
	}
	g, code = watched(t, 2, "-o", "json")
	lines := strings.Split(strings.TrimSpace(g.stdout.String()), "\n")
	var st api.Status
	if code != 130 || len(lines) != 2 || json.Unmarshal([]byte(lines[1]), &st) != nil || st.Datasets[0].ResidentBytes != 2<<20 {
		t.Errorf("exit %d, %d lines: %q", code, len(lines), g.stdout.String())
	}
	g, _ = watched(t, 2, "-o", "yaml")
	if n := strings.Count(g.stdout.String(), "---\n"); n != 2 {
		t.Errorf("%d documents:\n%s", n, g.stdout.String())
	}
	g, code = watched(t, 2, "nothing")
	if code != 3 {
		t.Errorf("an unknown name: exit %d", code)
	}
	g.says("is neither a job nor a dataset")
	if g, _ = watched(t, 1, "imagenet@3"); !strings.Contains(g.stdout.String(), "train-17") {
		t.Errorf("a dataset's job is missing:\n%s", g.stdout.String())
	}
}

func TestWatchUsage(t *testing.T) {
	for _, line := range []string{"status --interval 1s", "status --watch --interval 1ms", "status --watch --interval x", "status -w a b"} {
		g := newRig(t, routes{}, nil)
		g.want(2, strings.Fields(line)...)
		if len(g.calls) != 0 {
			t.Errorf("%s asked %v", line, g.calls)
		}
	}
}

// openTerminal makes a terminal of 80 columns and 24 rows.
func openTerminal(t testing.TB) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	fd := int(master.Fd())
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		err = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 80})
	}
	if err == nil {
		slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	return master, slave
}

// On a real terminal the view takes the alternate screen, keeps to its size,
// and gives it back when a signal ends it.
func TestWatchOnATerminal(t *testing.T) {
	for name, environ := range map[string][]string{"colours": {"LANG=C.UTF-8"}, "none": {"NO_COLOR=1"}, "dumb": {"TERM=dumb"}} {
		master, slave := openTerminal(t)
		ctx, cancel := context.WithCancel(t.Context())
		var asked atomic.Int64
		g := newRig(t, routes{"GET /v1/status": func(w http.ResponseWriter, _ *http.Request) {
			if asked.Add(1) > 2 {
				cancel()
			}
			api.WriteJSON(w, 200, someStatus())
		}}, nil)
		g.environ = append(g.environ, environ...)
		var out bytes.Buffer
		read := make(chan struct{})
		go func() {
			defer close(read)
			_, _ = out.ReadFrom(master) // ends with EIO, when the last slave is closed
		}()
		a := g.app()
		a.stdout = slave
		code := a.run(ctx, []string{"status", "--watch", "--interval", "100ms"})
		_ = slave.Close()
		<-read
		_ = master.Close()
		cancel()
		got := out.String()
		if code != 130 || !strings.Contains(got, "imagenet@3") {
			t.Errorf("%s: exit %d: %q", name, code, got)
		}
		if name == "dumb" {
			if strings.Contains(got, "\x1b") {
				t.Errorf("%s: %q", name, got)
			}
			continue
		}
		if !strings.HasPrefix(got, "\x1b[?1049h\x1b[?25l") || !strings.HasSuffix(got, "\x1b[?25h\x1b[?1049l") {
			t.Errorf("%s: not taken, or not given back: %q … %q", name, got[:min(20, len(got))], got[max(0, len(got)-20):])
		}
		if colored := strings.Contains(got, "\x1b[32m"); colored != (name == "colours") {
			t.Errorf("%s: colours: %v", name, colored)
		}
		if blocks := strings.Contains(got, "█"); blocks != (name == "colours") {
			t.Errorf("%s: block elements: %v", name, blocks)
		}
	}
}
