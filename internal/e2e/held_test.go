package e2e

import (
	"bytes"
	"errors"
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
	longest      atomic.Int64        // of one file since reset, in nanoseconds
	step         chan struct{}       // one for each file, while somebody listens
	failed       chan struct{}       // one for each of its goroutines that gave up
}

// run reads until stop is closed, or a file is not as it should be.
func (r *rereader) run(t *testing.T, first int, stop <-chan struct{}) {
	for i := first; ; i++ {
		name := r.files[i%len(r.files)]
		began := time.Now()
		got, err := r.read(name)
		took := time.Since(began)
		if err != nil || !bytes.Equal(got, r.body[name]) {
			t.Errorf("%s: %d bytes, want %d: %v", filepath.Join(r.view, name), len(got), len(r.body[name]), err)
			r.failed <- struct{}{}
			return
		}
		r.done.Add(1)
		for {
			most := r.longest.Load()
			if int64(took) <= most || r.longest.CompareAndSwap(most, int64(took)) {
				break
			}
		}
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

func (r *rereader) read(name string) ([]byte, error) {
	if f := r.open[name]; f != nil {
		return readOpenPastCache(f)
	}
	return readPastCache(filepath.Join(r.view, name))
}

// readPastCache reads a file whose pages are dropped first.
func readPastCache(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	b, err := readOpenPastCache(f)
	return b, errors.Join(err, f.Close())
}

func readOpenPastCache(f *os.File) ([]byte, error) {
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	b := make([]byte, st.Size())
	n, err := f.ReadAt(b, 0)
	return b[:n], err
}

// A worker is killed ten times while processes read through a tree view, a
// kernel view of what was not here when it was mounted, and one of what was: no
// read fails, all bytes are right, and the last goes on while no worker lives.
// How long readers waited is printed; half of the times it is not 2 s longer than the
// worker was away, and 10 s at most.
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
	var pauses, beyond []time.Duration
	for range 10 {
		pause, away := c.outlive(views)
		pauses, beyond = append(pauses, pause), append(beyond, pause-away)
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
	t.Logf("longest waits for one file over each kill and restart: %v, beyond the worker's absence: %v", pauses, beyond)
	if most, median := beyond[len(beyond)/2], pauses[len(pauses)/2]; most > 2*time.Second || median > 10*time.Second {
		t.Errorf("readers waited %v, and %v after their worker was back", median, most)
	}
	if r := views["resident"]; r != nil {
		t.Logf("longest wait in the view of resident data: %v", time.Duration(r.longest.Load()))
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
// the longest wait for one file in the views that need a worker, and how long there was
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
			r.next()
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
