package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// setting is one way to serve a dataset. Whatever it says, reads give the
// source's bytes.
type setting struct {
	Warm     string // what is resident before: cold, half, whole
	Replicas int
	Layout   string
	Evict    string      // of the dataset: auto, keep, lfu
	Sampler  string      // that the views are told of; none of them is how the trace reads
	Workers  [3][]string // options of each worker's new life; nil: it lives on
	Views    []shown
	Advice   int      // of the readers to the kernel: unix.FADV_NORMAL, _RANDOM (no read-ahead) or _SEQUENTIAL (twice as much)
	Between  string   // what happens between two traces: nothing, crash, remount
	During   []string // what happens during them
}

// shown is a view of a setting: its kind, and whose it is.
type shown struct {
	Kind   string
	Worker int
}

func drawSetting(t testing.TB, r *rand.Rand) (s setting) {
	one := func(of ...string) string { return of[r.IntN(len(of))] }
	s.Warm, s.Replicas, s.Layout = one("cold", "half", "whole"), 1+r.IntN(3), one("spread", "spread", "local")
	s.Evict, s.Sampler = one("auto", "keep", "lfu"), one("", "", "pytorch:seed=0,world=1", "pytorch:seed=7,world=8,drop_last")
	s.Advice = []int{unix.FADV_NORMAL, unix.FADV_RANDOM, unix.FADV_SEQUENTIAL}[r.IntN(3)]
	s.Between = one("nothing", "crash", "remount")
	for k := range s.Workers {
		if r.IntN(3) > 0 {
			continue
		}
		s.Workers[k] = []string{
			"--memory", one("64MiB", "128MiB", "512MiB"), "--capacity", one("48MiB", "160MiB", "1GiB"),
			"--scrub-rate", one("0", "1GiB"), "--streams", one("1", "16"),
			"--evict-high", one("60", "95", "100"), "--evict-low", "50",
			"--read-ahead", one("0", "8MiB", "64MiB"),
		}
	}
	kinds := append(viewKinds(t), "auto")
	for range 1 + r.IntN(2) {
		s.Views = append(s.Views, shown{kinds[r.IntN(len(kinds))], 1 + r.IntN(2)})
	}
	shows := fmt.Sprint("kill ", s.Views[0].Worker)
	// Worker 3 shows nothing: its death is no reader's concern. Who reads through one that
	// shows a view waits for its next life, since a holder keeps the mount.
	for range r.IntN(3) {
		s.During = append(s.During, one("evict", "preload", "kill 3", shows, shows, "drop caches"))
	}
	return s
}

// TestReadsUnderRandomSettings runs one random trace of reads for each seed
// under many random settings, with kills, evictions and remounts in between
// and, where no reader may notice, in the middle: bytes and names are the
// source's. STOKER_E2E_SEED is a seed to run alone; the long part takes new ones.
func TestReadsUnderRandomSettings(t *testing.T) {
	seeds, settings := []uint64{1, 2, 3}, 7
	if os.Getenv("STOKER_TEST_LONG") != "" {
		settings = 12
		for range 3 {
			seeds = append(seeds, uint64(rand.Uint32()))
		}
	}
	if s := os.Getenv("STOKER_E2E_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seeds = []uint64{n}
	}
	m := newMeta(t)
	t.Cleanup(func() { m.c.t = t })
	for _, seed := range seeds {
		t.Run(fmt.Sprint("seed-", seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 22))
			m.t, m.c.t = t, t
			m.baseline()
			for i := range settings {
				s := drawSetting(t, r)
				began := time.Now()
				m.run(s, seed)
				t.Logf("setting %d: %+v: %v", i, s, time.Since(began).Round(time.Millisecond))
				if t.Failed() {
					t.Fatalf("setting %d of STOKER_E2E_SEED=%d differs: %+v", i, seed, s)
				}
			}
		})
	}
}

// A trace finds one byte that is wrong, and one name too few.
func TestTracesFindDifferences(t *testing.T) {
	x := trace{source: t.TempDir(), view: t.TempDir(), seed: 1, steps: 200}
	for i := range 20 {
		for _, dir := range []string{x.source, x.view} {
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), bytes.Repeat([]byte{byte(i)}, 1000*i), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	if found := x.differences(t); len(found) > 0 {
		t.Fatal(found)
	}
	for name, damage := range map[string]func(path string) error{
		"byte": func(path string) error {
			return os.WriteFile(path, append(bytes.Repeat([]byte{19}, 18_999), 18), 0o644)
		},
		"name": os.Remove,
	} {
		if err := damage(filepath.Join(x.view, "19")); err != nil {
			t.Fatal(err)
		}
		if found := x.differences(t); len(found) == 0 {
			t.Errorf("%s: not found", name)
		}
		if err := os.WriteFile(filepath.Join(x.view, "19"), bytes.Repeat([]byte{19}, 19_000), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// meta is a cluster whose workers come back with other options.
type meta struct {
	t      *testing.T
	c      *cluster
	source string
	first  [3][]string // the workers' command lines at first
	env    []string
}

func newMeta(t *testing.T) *meta {
	c := up(t, 3, "1GiB", func(root string) {
		makeFiles(t, root, 120, 200<<10, 1, 70<<20+12_345)
		tiny := filepath.Join(root, "tiny")
		if err := os.Mkdir(tiny, 0o755); err != nil {
			t.Fatal(err)
		}
		for i := range 600 {
			if err := os.WriteFile(filepath.Join(tiny, fmt.Sprintf("%d-ü", i)), bytes.Repeat([]byte{byte(i)}, i*i%9000), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	})
	c.add()
	m := &meta{t: t, c: c, source: filepath.Join(c.root, "data")}
	for k := range m.first {
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", m.pid(k)))
		if err != nil {
			t.Fatal(err)
		}
		m.first[k] = strings.Split(strings.TrimSuffix(string(line), "\x00"), "\x00")
	}
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", m.pid(0)))
	if err != nil {
		t.Fatal(err)
	}
	m.env = strings.Split(strings.TrimSuffix(string(env), "\x00"), "\x00")
	return m
}

func (m *meta) path(k int, name string) string {
	return filepath.Join(m.c.dir, fmt.Sprint("worker-", k+1), name)
}

func (m *meta) pid(k int) int {
	m.t.Helper()
	body, err := os.ReadFile(m.path(k, "worker.pid"))
	if err != nil {
		m.t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(body)))
	if err != nil {
		m.t.Fatal(err)
	}
	return pid
}

// restart kills a worker and starts it with its first options and some more.
func (m *meta) restart(k int, more ...string) {
	m.t.Helper()
	m.c.kill(fmt.Sprint("worker-", k+1))
	log, err := os.OpenFile(m.path(k, "worker.log"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		m.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(m.first[k][0], append(m.first[k][1:len(m.first[k]):len(m.first[k])], more...)...)
	cmd.Stdout, cmd.Stderr, cmd.Env, cmd.Dir = log, log, m.env, m.c.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	go func() { _ = cmd.Wait() }() // until `down`, which the cluster ends with
	if err := os.WriteFile(m.path(k, "worker.pid"), fmt.Appendf(nil, "%d\n", cmd.Process.Pid), 0o644); err != nil {
		m.t.Fatal(err)
	}
	m.c.eventually("a worker is there again", func() bool {
		return exec.Command("curl", "-sf", "--unix-socket", m.path(k, "worker.sock"), "http://worker/v1/status").Run() == nil
	})
}

// baseline is what each seed begins with: first options, nothing resident.
func (m *meta) baseline() {
	for k := range m.first {
		m.restart(k)
	}
	m.joined()
	m.c.insist("evict", "data", "--force")
}

// joined waits until the controller knows all workers' new lives.
func (m *meta) joined() {
	m.c.eventually("all workers are known", func() bool {
		here := map[int]bool{}
		for _, w := range m.c.workers() {
			here[w.PID] = true
		}
		return here[m.pid(0)] && here[m.pid(1)] && here[m.pid(2)]
	})
}

// run shows the dataset as a setting says and reads from all of its views.
func (m *meta) run(s setting, seed uint64) {
	for k, options := range s.Workers {
		if options != nil {
			m.restart(k, options...)
		}
	}
	m.joined()
	m.c.insist("dataset", "set", "data", "--evict", s.Evict)
	m.warm(s)
	dirs := make([]string, len(s.Views))
	for i, v := range s.Views {
		dirs[i] = m.mount(v, s.Sampler)
	}
	x := trace{source: m.source, seed: seed, steps: 90, advice: s.Advice}
	m.read(x, dirs, s)
	switch s.Between {
	case "crash": // what resident data of a kernel view does meanwhile: TestKernelViewOutlivesItsWorker
		for k := range m.first {
			m.restart(k, s.Workers[k]...)
		}
		for i, v := range s.Views {
			m.c.eventually("the view is mounted again", func() bool { return m.mounted(v.Worker, dirs[i]) })
		}
	case "remount":
		for i, v := range s.Views {
			m.umount(v, dirs[i])
			dirs[i] = m.mount(v, s.Sampler)
		}
	}
	x.steps = 40
	m.read(x, dirs, s)
	for i, v := range s.Views {
		m.umount(v, dirs[i])
	}
}

// warm makes the dataset as resident as a setting wants, if it fits.
func (m *meta) warm(s setting) {
	m.c.insist("evict", "data", "--force")
	args := []string{"preload", "data", "--wait", "--layout", s.Layout}
	if s.Layout == "spread" {
		args = append(args, "--replicas", fmt.Sprint(s.Replicas))
	}
	switch s.Warm {
	case "cold":
		return
	case "half":
		args = append(args, "--path", "train", "--exclude", "*[13579].jpg")
	}
	if res := m.c.stoker(args...); res.code != 0 && res.code != 8 && res.code != 4 {
		m.t.Fatalf("stoker %v: exit %d: %s", args, res.code, res.stderr)
	}
}

func (m *meta) mount(v shown, sampler string) (dir string) {
	m.t.Helper()
	dir = m.t.TempDir()
	args := []string{"mount", "data", dir}
	if sampler != "" {
		args = append(args, "--sampler", sampler)
	}
	res := m.c.stokerAt(v.Worker, append(args, "--view", v.Kind)...)
	if v.Kind == "kernel" && res.code == 8 { // a small worker may have no room for the image
		res = m.c.stokerAt(v.Worker, append(args, "--view", "tree")...)
	}
	if res.code != 0 {
		m.t.Fatalf("mount %+v: exit %d: %s", v, res.code, res.stderr)
	}
	return dir
}

func (m *meta) umount(v shown, dir string) {
	m.t.Helper()
	if res := m.c.stokerAt(v.Worker, "umount", dir); res.code != 0 {
		m.t.Fatalf("umount %+v: exit %d: %s", v, res.code, res.stderr)
	}
}

// mounted reports whether a worker serves a view.
func (m *meta) mounted(worker int, dir string) bool {
	for _, w := range m.c.workerStatus(worker).Mounts {
		if w.Dir == dir {
			return true
		}
	}
	return false
}

// read runs the trace through each view, again and again until all that
// happens meanwhile has happened.
func (m *meta) read(x trace, dirs []string, s setting) {
	var over sync.WaitGroup
	happened := make(chan struct{})
	for _, dir := range dirs {
		x.view = dir
		over.Go(func() {
			for {
				x.run(m.t)
				select {
				case <-happened:
					return
				default:
				}
			}
		})
	}
	for _, what := range s.During {
		m.happen(what, dirs, s)
	}
	close(happened)
	over.Wait()
}

func (m *meta) happen(what string, dirs []string, s setting) {
	switch what {
	case "evict":
		m.c.stoker("evict", "data", "--force") // refused while a worker is away
	case "preload":
		m.c.stoker("preload", "data", "--wait") // it may not fit
	case "kill 1", "kill 2", "kill 3":
		k := int(what[len(what)-1] - '1')
		m.restart(k, s.Workers[k]...)
	case "drop caches":
		files, _ := listTree(m.t, m.source)
		for _, dir := range dirs {
			dropAll(m.t, dir, files)
		}
	}
}
