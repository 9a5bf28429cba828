package e2e

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// rereader reads the files of a view again and again, past the page cache.
type rereader struct {
	source, view string
	files        []string
	body         map[string][]byte
	open         map[string]*os.File // nil: each read opens its file
	done         atomic.Int64        // files read
	longest      atomic.Int64        // of one read since reset, in nanoseconds
	step         chan struct{}       // one for each file, while somebody listens
	failed       chan struct{}       // one for each of its goroutines that gave up
}

// run reads until stop is closed, or a file is not as it should be.
func (r *rereader) run(t *testing.T, first int, stop <-chan struct{}) {
	for i := first; ; i++ {
		name := r.files[i%len(r.files)]
		got, err := r.read(name)
		if err != nil || !bytes.Equal(got, r.body[name]) {
			t.Errorf("%s: %d bytes, want %d: %v", filepath.Join(r.view, name), len(got), len(r.body[name]), err)
			r.failed <- struct{}{}
			return
		}
		r.done.Add(1)
		select {
		case <-stop:
			return
		case r.step <- struct{}{}:
		default:
		}
	}
}

// next waits until one more file was read; false: some was not as it should be.
func (r *rereader) next() bool {
	select {
	case <-r.step:
		return true
	case <-r.failed:
		return false
	}
}

// read reads a file whose pages are dropped first, by 1 MiB at a time.
func (r *rereader) read(name string) (b []byte, err error) {
	began := time.Now()
	f := r.open[name]
	if f == nil {
		if f, err = os.Open(filepath.Join(r.view, name)); err != nil {
			return nil, err
		}
		defer f.Close()
	}
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	b = make([]byte, 0, st.Size())
	for int64(len(b)) < st.Size() && err == nil {
		var n int
		n, err = f.ReadAt(b[len(b):min(len(b)+1<<20, cap(b))], int64(len(b)))
		b = b[:len(b)+n]
		now := time.Now()
		r.waited(now.Sub(began))
		began = now
	}
	if errors.Is(err, io.EOF) && int64(len(b)) == st.Size() {
		err = nil
	}
	return b, err
}

// waited takes note of how long one read took.
func (r *rereader) waited(took time.Duration) {
	for {
		most := r.longest.Load()
		if int64(took) <= most || r.longest.CompareAndSwap(most, int64(took)) {
			return
		}
	}
}

// A worker is killed ten times while processes read through a tree view, a
// kernel view of what was not here when it was mounted, and one of what was: no
// read fails, all bytes are right, and the last goes on while no worker lives.
// How long readers waited is printed: half of the times not 2 s longer than the worker
// was away, never 10 s longer; and for resident data never a second, whoever lives.
func TestReadersOutliveTheirWorker(t *testing.T) {
	var size int64
	c := up(t, 1, "1GiB", func(root string) { size = makeFiles(t, root, 200, 100<<10, 1, 66<<20+777) })
	c.add()
	source := filepath.Join(c.root, "data")
	files, _ := listTree(t, source)
	body := map[string][]byte{}
	for _, name := range files {
		b, err := os.ReadFile(filepath.Join(source, name))
		if err != nil {
			t.Fatal(err)
		}
		body[name] = b
	}
	views := map[string]*rereader{}
	show := func(name, kind string) {
		views[name] = &rereader{source: source, view: c.mountAs(kind, "data"), files: files, body: body, step: make(chan struct{}), failed: make(chan struct{}, 2)}
		sameTree(t, source, views[name].view)
	}
	kernel := slices.Contains(viewKinds(t), "kernel")
	if kernel {
		show("kernel", "kernel")
	}
	show("tree", "tree")
	if c.must("preload", "data", "--wait"); kernel {
		show("resident", "kernel")
	}
	before := c.proxy.Bytes()
	stop, reading := make(chan struct{}), sync.WaitGroup{}
	for _, r := range views {
		for k := range 2 {
			reading.Go(func() { r.run(t, k*len(files)/2, stop) })
		}
	}
	var pauses, beyond, resident []time.Duration
	for range 10 {
		pause, away := c.outlive(views)
		pauses, beyond = append(pauses, pause), append(beyond, pause-away)
		if r := views["resident"]; r != nil {
			resident = append(resident, time.Duration(r.longest.Load()))
		}
		if t.Failed() {
			break
		}
	}
	close(stop)
	reading.Wait()
	for name, r := range views {
		t.Logf("%s view: %d files were read", name, r.done.Load())
		c.must("umount", r.view)
	}
	slices.Sort(pauses)
	slices.Sort(beyond)
	t.Logf("longest waits for one read over each kill and restart: %v, beyond the worker's absence: %v", pauses, beyond)
	if median, most := beyond[len(beyond)/2], slices.Max(beyond); median > 2*time.Second || most > 10*time.Second {
		t.Errorf("readers waited %v, and %v at most, after their worker was back", median, most)
	}
	if kernel {
		t.Logf("longest waits in the view of resident data: %v", resident)
		if most := slices.Max(resident); most > time.Second {
			t.Errorf("readers of resident data waited %v", most)
		}
	}
	if n := c.proxy.Bytes() - before; n != 0 {
		t.Errorf("%d bytes of %d were fetched again", n, size)
	}
	c.eventually("nothing is left", func() bool {
		left, err := filepath.Glob(filepath.Join(c.dir, "worker-1", "cache", "state", "held-*"))
		return err == nil && len(left) == 0 && c.mounts() == 0
	})
}

// outlive kills the worker beneath some views and starts it again. It returns
// the longest wait for one read in the views that need a worker, and how long there was
// none: on a busy machine a process takes its time to start.
func (c *cluster) outlive(views map[string]*rereader) (pause, away time.Duration) {
	c.t.Helper()
	for _, r := range views {
		r.next()
		r.longest.Store(0)
	}
	killed := time.Now()
	c.kill("worker-1")
	if r := views["resident"]; r != nil {
		for range 5 { // while no worker lives
			select {
			case <-r.step:
			case <-r.failed:
			case <-time.After(10 * time.Second):
				c.t.Error("resident data is not read while no worker lives")
			}
			if c.t.Failed() {
				break
			}
		}
	}
	c.dev("start", "worker-1", "--dir", c.dir)
	away = time.Since(killed)
	for name, r := range views {
		for range 3 { // of two goroutines: the last of these began after the kill
			r.next()
		}
		if name != "resident" {
			pause = max(pause, time.Duration(r.longest.Load()))
		}
	}
	return pause, away
}
