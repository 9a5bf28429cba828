package peer

import (
	"bytes"
	"context"
	"errors"
	"hash/crc32"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"stoker.dev"
)

// onDisk serves blocks from a file; what it was asked for is in asked.
type onDisk struct {
	someBlocks
	t     *testing.T
	name  string
	plain *Plain
}

func (d *onDisk) OpenRun(_ context.Context, _ stoker.ID, _ uint32, from, to int, _ bool) (Run, error) {
	f, err := os.Open(d.name)
	if err != nil {
		return nil, err
	}
	p := &Plain{File: f}
	off := int64(0)
	for b := range to {
		if b == from {
			if _, err := f.Seek(off, io.SeekStart); err != nil {
				return nil, err
			}
			p.Bytes = -off
		}
		n := len(d.have[b])
		if b >= from {
			p.Blocks = append(p.Blocks, Sum{uint32(n), crc32.Checksum(d.have[b], castagnoli)})
		}
		if b == to-1 {
			p.Bytes += off + int64(n)
		}
		off += int64(Aligned(n))
	}
	return &onDisk{someBlocks: d.someBlocks, plain: p}, nil
}

func (d *onDisk) Plain() *Plain { return d.plain }

func (d *onDisk) Close() error { return d.plain.File.Close() }

// newOnDisk has blocks of some lengths.
func newOnDisk(t *testing.T, lengths ...int) *onDisk {
	t.Helper()
	d := &onDisk{t: t, name: filepath.Join(t.TempDir(), "shard")}
	d.have = map[int][]byte{}
	var file []byte
	for b, n := range lengths {
		d.have[b] = bytes.Repeat([]byte{byte(b + 1)}, n)
		file = append(append(file, d.have[b]...), make([]byte, Aligned(n)-n)...)
	}
	if err := os.WriteFile(d.name, file, 0o600); err != nil {
		t.Fatal(err)
	}
	return d
}

// requests serves a handler and notes what each request asked for and which were answered plainly.
type requests struct {
	next  http.Handler
	strip bool // plain=1, as a server of a release before does

	mu    sync.Mutex
	asked []string
}

func (r *requests) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	r.asked = append(r.asked, req.URL.RawQuery)
	r.mu.Unlock()
	if r.strip {
		req.URL.RawQuery = strings.TrimSuffix(req.URL.RawQuery, "&plain=1")
	}
	r.next.ServeHTTP(w, req)
}

func servePlain(t *testing.T, d *onDisk) (c *Client, url string, r *requests) {
	t.Helper()
	mux := http.NewServeMux()
	mux.Handle("GET /v1/manifests/{manifest}/shards/{shard}/blocks", Handler(7, d))
	r = &requests{next: mux}
	c, url = dial(t, r)
	return c, url, r
}

// Every block of a plain answer comes right, wherever the answer ends, and the
// connection serves the next request. A read that waited for bytes beyond the
// end would stall.
func TestPlainAnswers(t *testing.T) {
	const full = stoker.BlockBytes
	d := newOnDisk(t, 10, full, full, 5000, 1, full, full, full-1, 4096, full, 3)
	c, url, r := servePlain(t, d)
	for from := range len(d.have) {
		for to := from + 1; to <= len(d.have); to++ {
			got, err := fetch(c, url, 7, 1, from, to, false)
			if err != nil || len(got) != to-from {
				t.Fatalf("%d to %d: %d blocks, %v", from, to, len(got), err)
			}
			for b, data := range got {
				if !bytes.Equal(data, d.have[b]) {
					t.Errorf("%d to %d: block %d differs", from, to, b)
				}
			}
		}
	}
	if n := len(d.have); len(r.asked) != n*(n+1)/2 {
		t.Errorf("%d requests", len(r.asked))
	}
}

// A peer whose file has wrong bytes, or ends too soon, is asked again for the rest, and
// looks at its blocks then; what was right before is not asked for twice.
func TestPlainIsWrong(t *testing.T) {
	for name, spoil := range map[string]func(name string) error{
		"flipped": func(name string) error {
			f, err := os.OpenFile(name, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = f.WriteAt([]byte("x"), 4096+100)
			return err
		},
		"cut off": func(name string) error { return os.Truncate(name, 4096+100) },
	} {
		d := newOnDisk(t, 4096, 4096, 4096)
		if err := spoil(d.name); err != nil {
			t.Fatal(err)
		}
		c, url, r := servePlain(t, d)
		got, err := fetch(c, url, 7, 1, 0, 3, false)
		if err != nil || len(got) != 3 || !bytes.Equal(got[1], d.have[1]) {
			t.Errorf("%s: %d blocks, %v", name, len(got), err)
		}
		if want := []string{"from=0&to=3&plain=1", "from=1&to=3"}; !slices.Equal(r.asked, want) {
			t.Errorf("%s: asked %q", name, r.asked)
		}
	}
}

// A peer of a release before plain answers does not know the wish, and an asker of
// one does not have it.
func TestPlainAndOlderPeers(t *testing.T) {
	d := newOnDisk(t, 4096, 10, 4096)
	c, url, r := servePlain(t, d)
	r.strip = true
	got, err := fetch(c, url, 7, 1, 0, 3, false)
	if err != nil || len(got) != 3 || !bytes.Equal(got[1], d.have[1]) || len(r.asked) != 1 {
		t.Errorf("%d blocks, %v, asked %q", len(got), err, r.asked)
	}
	resp, err := http.Get(url + "/v1/manifests/" + stoker.ID{1}.String() + "/shards/1/blocks?from=0&to=3")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || len(body) != 3*headerBytes+4096+10+4096 || resp.Header.Get(plainHeader) != "" {
		t.Errorf("%d bytes, %v, %v", len(body), err, resp.Header)
	}
	http.DefaultClient.CloseIdleConnections()
}

// A peer that stops in mid-answer, with less than a block under way, costs the stall time
// and is not asked again; one that dies is, once, and is gone then.
func TestPlainPeerGoesAway(t *testing.T) {
	for name, want := range map[string]struct {
		err   error
		asked int32
	}{"stalls": {errStalled, 1}, "dies": {io.EOF, 2}} {
		var asked atomic.Int32
		release := make(chan struct{})
		c, url := dial(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			if asked.Add(1) > 1 {
				panic(http.ErrAbortHandler)
			}
			full := bytes.Repeat([]byte{1}, stoker.BlockBytes)
			h := make([]byte, 3*headerBytes)
			for b := range 3 {
				header{uint32(b), stoker.BlockBytes, crc32.Checksum(full, castagnoli)}.put(h[headerBytes*b:])
			}
			w.Header().Set(plainHeader, "1")
			w.Header().Set("Content-Length", strconv.Itoa(len(h)+3*len(full)))
			_, _ = w.Write(append(append(h, full...), full[:1000]...))
			_ = http.NewResponseController(w).Flush()
			if name == "stalls" {
				<-release
			}
			panic(http.ErrAbortHandler)
		}))
		got, err := fetch(c, url, 7, 1, 0, 3, false)
		close(release)
		if len(got) != 1 || stoker.KindOf(err) != stoker.KindTransient || !errors.Is(err, want.err) || asked.Load() != want.asked {
			t.Errorf("%s: %d blocks, %v, asked %d times", name, len(got), err, asked.Load())
		}
	}
}

// hanging is an answer whose asker reads nothing after some steps.
type hanging struct {
	http.ResponseWriter
	steps     int
	deadlines []time.Duration
}

func (h *hanging) SetWriteDeadline(t time.Time) error {
	h.deadlines = append(h.deadlines, time.Until(t))
	return nil
}

func (h *hanging) ReadFrom(r io.Reader) (int64, error) {
	if h.steps--; h.steps < 0 {
		return 0, os.ErrDeadlineExceeded
	}
	return io.Copy(io.Discard, r)
}

// An asker that hangs keeps an answer for no longer than with frames: each step has its
// own deadline, and the first one that is missed ends it.
func TestPlainAskerHangs(t *testing.T) {
	lengths := make([]int, 16)
	for i := range lengths {
		lengths[i] = stoker.BlockBytes
	}
	run, err := newOnDisk(t, lengths...).OpenRun(t.Context(), stoker.ID{}, 1, 0, len(lengths), false)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = run.Close() }()
	w := &hanging{ResponseWriter: httptest.NewRecorder(), steps: 2}
	sendPlain(w, http.NewResponseController(w), run.Plain(), 0)
	if len(w.deadlines) != 4 || w.steps != -1 { // the headers, two steps, and the one that fails
		t.Errorf("%d deadlines, %d steps left", len(w.deadlines), w.steps)
	}
	for _, d := range w.deadlines {
		if d <= 0 || d > slowest {
			t.Errorf("a deadline of %v", d)
		}
	}
}

// Headers of a plain answer that cannot be are refused before a byte of it is read.
func TestBrokenPlainAnswers(t *testing.T) {
	heads := func(of ...header) (b []byte) {
		for _, h := range of {
			b = append(b, make([]byte, headerBytes)...)
			h.put(b[len(b)-headerBytes:])
		}
		return b
	}
	for name, body := range map[string][]byte{
		"another block": heads(header{0, 4, 0}, header{7, 4, 0}),
		"too long":      heads(header{0, 4, 0}, header{1, stoker.BlockBytes + 1, 0}),
		"nothing":       heads(header{0, 0, 0}, header{1, 0, 0}),
	} {
		c, url := dial(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set(plainHeader, "1")
			_, _ = w.Write(body)
		}))
		if got, err := fetch(c, url, 7, 1, 0, 2, false); len(got) != 0 || stoker.KindOf(err) != stoker.KindCorrupt {
			t.Errorf("%s: %d blocks, %v", name, len(got), err)
		}
	}
}
