package worker

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/cache/placement"
	"stoker.dev/fuse/hold"
	"stoker.dev/internal/api"
	"stoker.dev/internal/testenv"
	"stoker.dev/ufs"
	"stoker.dev/ufs/folder"
	"stoker.dev/ufs/memufs"
)

// The dataset of these tests: "early" is a shard of its own, and resident;
// "late" is not.
const earlyBytes, lateBytes = stoker.ExtentBytes, 300_000

func lifeUFS() *memufs.FS {
	f := memufs.New()
	f.PutAt("early", bytes.Repeat([]byte("0123456789abcdef"), earlyBytes/16), time.Unix(1_700_000_000, 0))
	f.PutAt("late", lateBody(), time.Unix(1_700_000_000, 0))
	return f
}

func lateBody() []byte {
	b := make([]byte, lateBytes)
	for i := range b {
		b[i] = byte(i * i / 251)
	}
	return b
}

// stuckUFS gives nothing of "late", and says when it was asked for it.
type stuckUFS struct {
	*memufs.FS
	once *sync.Once
}

func (f stuckUFS) Open(ctx context.Context, key string, want ufs.Version, off, length int64) (io.ReadCloser, error) {
	if key != "late" {
		return f.FS.Open(ctx, key, want, off, length)
	}
	f.once.Do(func() { fmt.Println("stuck") })
	<-ctx.Done()
	return nil, ctx.Err()
}

// lifeOf says what a life of a worker does, as JSON in STOKER_TEST_LIFE.
type lifeOf struct {
	Base     string    // folder of all that stays
	Manifest stoker.ID // of lifeUFS
	Mount    string    // folder to mount on; "" = nothing
	View     string
	Stuck    bool   // of its UFS
	Umount   string // folder to unmount, and wait for its end
}

// TestHelperWorker is no test: it is a life of a worker, for others to end.
func TestHelperWorker(t *testing.T) {
	var l lifeOf
	if said := os.Getenv("STOKER_TEST_LIFE"); said == "" {
		t.Skip("the other tests start it")
	} else if err := json.Unmarshal([]byte(said), &l); err != nil {
		t.Fatal(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	objects, err := folder.Open(filepath.Join(l.Base, "objects"))
	if err != nil {
		t.Fatal(err)
	}
	w, err := Open(Options{
		Dir: filepath.Join(l.Base, "cache"), CapacityBytes: 1 << 30, Objects: objects, Index: placement.NewMem(time.Now),
		Socket: filepath.Join(l.Base, "w.sock"), Version: "v-test",
		Hold: func(id string) (hold.Holder, error) {
			return hold.Dial(ctx, filepath.Join(l.Base, "hold.sock"), id, nil)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	w.mounts.Register("mem", func(context.Context, string, ufs.Location) (ufs.FS, error) {
		if l.Stuck {
			return stuckUFS{lifeUFS(), new(sync.Once)}, nil
		}
		return lifeUFS(), nil
	})
	err = w.Run(ctx, func() {
		if l.Mount != "" {
			l.mount(t, w)
		}
		if l.Umount != "" {
			if err := w.views.Unmount(ctx, 0, l.Umount, false); err != nil {
				t.Error(err)
			}
			ended := make(chan struct{})
			go func() { w.views.serving.Wait(); close(ended) }()
			select {
			case <-ended:
			case <-time.After(10 * time.Second):
				fmt.Println("ready, but another mount namespace has a copy of the view")
				return
			}
		}
		open, _ := w.views.List()
		held, err := w.cache.Holdings(ctx)
		if err != nil {
			t.Error(err)
		}
		holders := 0
		for _, h := range held {
			holders += len(h.Holders)
		}
		fmt.Println("ready", len(open), holders)
	})
	if err != nil {
		t.Error(err)
	}
}

// mount makes "early" resident and mounts the view.
func (l lifeOf) mount(t *testing.T, w *Worker) {
	set, err := w.cache.Open(t.Context(), l.Manifest)
	if err != nil {
		t.Fatal(err)
	}
	row, _ := set.Manifest().LookupPath("early")
	for off := int64(0); off < earlyBytes; off += 1 << 20 {
		if _, err := set.ReadAt(t.Context(), row, make([]byte, 1<<20), off); err != nil {
			t.Fatal(err)
		}
	}
	settle(w)
	sh, ok := w.store.Get(set.Manifest().Shard(set.Manifest().ShardOf(row, 0)).ID)
	if !ok {
		t.Fatal("no shard")
	}
	if err := sh.Seal(); err != nil {
		t.Fatal(err)
	}
	sh.Release()
	if _, err := w.views.Mount(t.Context(), 0, api.MountRequest{Dataset: "pets", Manifest: l.Manifest, Dir: l.Mount, View: l.View}); err != nil {
		t.Fatal(err)
	}
	if err := set.Close(); err != nil {
		t.Fatal(err)
	}
}

// lives starts the lives of one worker, one after the other.
type lives struct {
	of   lifeOf
	dir  string // that the first life mounts on
	env  []string
	ctx  context.Context // ends before the test hangs: then no process has a descriptor any more, and what waits fails
	cmd  *exec.Cmd
	said *bufio.Reader
}

func newLives(t *testing.T) *lives {
	t.Helper()
	l := &lives{of: lifeOf{Base: t.TempDir(), Mount: t.TempDir()}}
	objects, err := folder.Open(filepath.Join(l.of.Base, "objects"))
	if err != nil {
		t.Fatal(err)
	}
	source := lifeUFS()
	b, err := manifest.Build(t.Context(), manifest.BuildOptions{
		Roots: []manifest.Root{{Location: ufs.Location{URI: "mem://data"}}}, TempDir: t.TempDir(),
		Open: func(context.Context, ufs.Location) (ufs.FS, string, error) { return source, "", nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := manifest.NewStore(objects, t.TempDir()).Put(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	l.of.Manifest = b.ID
	h, err := hold.Listen(hold.ServerOptions{Socket: filepath.Join(l.of.Base, "hold.sock")})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	l.ctx = ctx
	ended := make(chan error, 1)
	go func() { ended <- h.Run(ctx) }()
	l.dir = l.of.Mount
	t.Cleanup(func() {
		l.end(t, syscall.SIGKILL)
		cancel() // and with it what is mounted still
		if err := <-ended; err != nil {
			t.Error(err)
		}
		_ = unix.Unmount(l.dir, unix.MNT_DETACH)
	})
	return l
}

// begin starts a life and waits until it serves.
func (l *lives) begin(t *testing.T) (said string) {
	t.Helper()
	body, err := json.Marshal(l.of)
	if err != nil {
		t.Fatal(err)
	}
	l.cmd = exec.CommandContext(l.ctx, os.Args[0], "-test.run=^TestHelperWorker$")
	l.cmd.Env, l.cmd.Stderr = append(append(os.Environ(), "STOKER_TEST_LIFE="+string(body)), l.env...), os.Stderr
	out, err := l.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	l.said = bufio.NewReader(out)
	if err := l.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return l.hears(t, "ready")
}

func (l *lives) hears(t *testing.T, begins string) string {
	t.Helper()
	var all strings.Builder
	for {
		line, err := l.said.ReadString('\n')
		all.WriteString(line)
		if err != nil {
			t.Fatalf("the life ended without saying %q: %s", begins, all.String())
		}
		if strings.HasPrefix(line, begins) {
			return strings.TrimSpace(line)
		}
	}
}

func (l *lives) end(t *testing.T, by syscall.Signal) {
	t.Helper()
	if l.cmd == nil {
		return
	}
	if err := l.cmd.Process.Signal(by); err != nil {
		t.Error(err)
	}
	_, _ = io.Copy(io.Discard, l.said)
	_ = l.cmd.Wait()
	l.cmd = nil
}

// flushed lets the kernel learn that closing costs no request. This process has
// files of the view open when it starts the next life, and the fork closes its
// copies of them: it would wait for the worker that it is about to become.
func flushed(t *testing.T, dir string) {
	t.Helper()
	f, err := os.Open(filepath.Join(dir, "early"))
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func deviceOf(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Dev
}

// A worker ends, killed or in order, while a process waits for a block: it gets
// it from the next life, through the same mount, also through a file that was
// open all the while. What is resident in a kernel view needs no worker. After
// all of it nothing is left at the holder or in the cache folder.
func TestViewsOutliveTheirWorker(t *testing.T) {
	for _, view := range []string{"tree", "kernel"} {
		for how, by := range map[string]syscall.Signal{"killed": syscall.SIGKILL, "stopped": syscall.SIGTERM} {
			t.Run(view+" "+how, func(t *testing.T) { testOutlives(t, view, by) })
		}
	}
}

func testOutlives(t *testing.T, view string, by syscall.Signal) {
	if k := newKernel(t.TempDir()); view == "kernel" && k.err != nil {
		testenv.Lacks(t, "%v", k.err)
	}
	l := newLives(t)
	dir := l.of.Mount
	l.of.View, l.of.Stuck = view, true
	l.begin(t)
	device := deviceOf(t, dir)
	flushed(t, dir)
	open, err := os.Open(filepath.Join(dir, "early"))
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	type read struct {
		body []byte
		err  error
	}
	got := make(chan read, 1)
	go func() {
		body, err := os.ReadFile(filepath.Join(dir, "late"))
		got <- read{body, err}
	}()
	l.hears(t, "stuck")
	l.end(t, by)
	if view == "kernel" {
		if body, err := os.ReadFile(filepath.Join(dir, "early")); err != nil || len(body) != earlyBytes || !bytes.HasSuffix(body, []byte("abcdef")) {
			t.Errorf("without a worker: %d bytes, %v", len(body), err)
		}
	}
	select {
	case r := <-got:
		t.Fatalf("answered without a worker: %d bytes, %v", len(r.body), r.err)
	default:
	}
	l.of.Mount, l.of.Stuck = "", false
	if said := l.begin(t); said != "ready 1 1" {
		t.Errorf("the next life says %q", said)
	}
	if r := <-got; r.err != nil || !bytes.Equal(r.body, lateBody()) {
		t.Errorf("who waited got %d bytes, %v", len(r.body), r.err)
	}
	for range 2 { // each life hands on what it was handed
		l.end(t, by)
		if said := l.begin(t); said != "ready 1 1" {
			t.Errorf("a later life says %q", said)
		}
		if err := unix.Fadvise(int(open.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
			t.Fatal(err)
		}
		const part = 4 << 20
		if body, err := io.ReadAll(io.NewSectionReader(open, earlyBytes-part, part)); err != nil || len(body) != part || !bytes.HasSuffix(body, []byte("abcdef")) {
			t.Errorf("through the open file: %d bytes, %v", len(body), err)
		}
		if now := deviceOf(t, dir); now != device {
			t.Errorf("it was mounted anew: device %x, was %x", now, device)
		}
	}
	l.end(t, by)
	_ = open.Close()
	if err := unix.Unmount(dir, 0); err != nil { // while no worker lives
		t.Fatal(err)
	}
	if said := l.begin(t); said != "ready 1 1" { // as it was told to
		t.Errorf("after the unmount a life says %q", said)
	}
	l.end(t, by)
	l.of.Umount = dir
	if said := l.begin(t); strings.Contains(said, "namespace") {
		t.Log(said) // a process that was started meanwhile: the view ends with it
		return
	} else if said != "ready 0 0" {
		t.Errorf("after its own unmount a life says %q", said)
	}
	l.end(t, syscall.SIGTERM)
	for _, begins := range []string{heldState, viewState} {
		if left, err := filepath.Glob(filepath.Join(l.of.Base, "cache", "state", begins+"*")); err != nil || len(left) > 0 {
			t.Errorf("left: %v, %v", left, err)
		}
	}
}

// A view that nobody can take over is aborted, so that who waits gets an error,
// and mounted anew: written by another release here.
func TestViewOfAnotherRelease(t *testing.T) {
	l := newLives(t)
	dir := l.of.Mount
	l.of.View, l.of.Stuck = "tree", true
	l.begin(t)
	flushed(t, dir)
	got := make(chan error, 1)
	go func() {
		_, err := os.ReadFile(filepath.Join(dir, "late"))
		got <- err
	}()
	l.hears(t, "stuck")
	l.end(t, syscall.SIGKILL)
	docs, err := filepath.Glob(filepath.Join(l.of.Base, "cache", "state", heldState+"*"))
	if err != nil || len(docs) != 1 {
		t.Fatal(docs, err)
	}
	body, err := os.ReadFile(docs[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(docs[0], bytes.Replace(body, []byte(`"format":1`), []byte(`"format":7`), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	l.of.Mount, l.of.Stuck = "", false
	if said := l.begin(t); said != "ready 1 1" {
		t.Errorf("the next life says %q", said)
	}
	if err := <-got; err == nil {
		t.Error("who waited got an answer")
	}
	if body, err := os.ReadFile(filepath.Join(dir, "late")); err != nil || !bytes.Equal(body, lateBody()) {
		t.Errorf("mounted anew: %d bytes, %v", len(body), err)
	}
}
