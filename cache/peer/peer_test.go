package peer

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"go.uber.org/goleak"

	"stoker.dev"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// someBlocks serves blocks from a map; block -1 of nothing.
type someBlocks struct {
	have  map[int][]byte
	errs  map[int]error
	asked chan bool // whether through was asked for
}

func (s *someBlocks) OpenRun(_ context.Context, _ stoker.ID, n uint32, _, _ int, through bool) (Run, error) {
	if n == 9 {
		return nil, stoker.Errorf(stoker.KindNotExist, "peer.serve", "", "shard 9 is not here")
	}
	if s.asked != nil {
		s.asked <- through
	}
	return s, nil
}

func (s *someBlocks) Block(_ context.Context, b int, buf []byte) ([]byte, error) {
	if err := s.errs[b]; err != nil {
		return nil, err
	}
	return s.have[b], nil
}

func (s *someBlocks) Plain() *Plain { return nil }

func (s *someBlocks) Close() error { return nil }

func serveBlocks(t *testing.T, inc stoker.Incarnation, b Blocks) (*Client, string) {
	t.Helper()
	mux := http.NewServeMux()
	mux.Handle("GET /v1/manifests/{manifest}/shards/{shard}/blocks", Handler(inc, b))
	return dial(t, mux)
}

func dial(t *testing.T, h http.Handler) (*Client, string) {
	t.Helper()
	srv := httptest.NewServer(h)
	c := New(Options{Stall: 200 * time.Millisecond})
	t.Cleanup(func() { c.Close(); srv.Close() })
	return c, srv.URL
}

func fetch(c *Client, url string, inc stoker.Incarnation, n uint32, from, to int, through bool) (map[int][]byte, error) {
	got := map[int][]byte{}
	err := c.Fetch(context.Background(), url, inc, stoker.ID{1}, n, from, to, through, func(b int, data []byte) error {
		got[b] = bytes.Clone(data)
		return nil
	})
	return got, err
}

func TestFetchRun(t *testing.T) {
	full := bytes.Repeat([]byte("x"), stoker.BlockBytes)
	s := &someBlocks{have: map[int][]byte{3: []byte("three"), 4: full, 6: []byte("six")},
		errs:  map[int]error{5: stoker.Errorf(stoker.KindStale, "s3.get", "k", "changed")},
		asked: make(chan bool, 4)}
	c, url := serveBlocks(t, 7, s)
	got, err := fetch(c, url, 7, 1, 2, 8, true)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 3 || string(got[3]) != "three" || !bytes.Equal(got[4], full) || string(got[6]) != "six" {
		t.Errorf("got %d blocks", len(got))
	}
	if !<-s.asked {
		t.Error("through did not arrive")
	}
	if _, err := fetch(c, url, 7, 1, 2, 8, false); err != nil || <-s.asked {
		t.Error("through arrived unasked")
	}
}

func TestRefusals(t *testing.T) {
	c, url := serveBlocks(t, 7, &someBlocks{})
	for _, tc := range []struct {
		name     string
		inc      stoker.Incarnation
		shard    uint32
		from, to int
		want     stoker.Kind
	}{
		{"another life", 8, 1, 0, 1, stoker.KindNotExist},
		{"shard not here", 7, 9, 0, 1, stoker.KindNotExist},
		{"backwards", 7, 1, 4, 3, stoker.KindInvalid},
		{"negative", 7, 1, -1, 4, stoker.KindInvalid},
		{"too long", 7, 1, 0, maxRun + 1, stoker.KindInvalid},
	} {
		if _, err := fetch(c, url, tc.inc, tc.shard, tc.from, tc.to, false); stoker.KindOf(err) != tc.want {
			t.Errorf("%s: %v, want kind %v", tc.name, err, tc.want)
		}
	}
}

// The receiver believes no one: each broken answer is found before its bytes
// are handed out.
func TestBrokenAnswers(t *testing.T) {
	frame := func(h header, data string) []byte {
		b := make([]byte, headerBytes, headerBytes+len(data))
		h.put(b)
		return append(b, data...)
	}
	for _, tc := range []struct {
		name string
		body []byte
		want stoker.Kind
	}{
		{"wrong checksum", frame(header{0, 4, 12345}, "data"), stoker.KindCorrupt},
		{"another block", frame(header{1, 0, 0}, ""), stoker.KindCorrupt},
		{"too long", frame(header{0, stoker.BlockBytes + 1, 0}, "data"), stoker.KindCorrupt},
		{"broken off in the header", []byte{0, 0}, stoker.KindTransient},
		{"broken off in the data", frame(header{0, 400, 0}, "data"), stoker.KindTransient},
		{"nothing", nil, stoker.KindTransient},
	} {
		c, url := dial(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(tc.body) }))
		got, err := fetch(c, url, 7, 1, 0, 1, false)
		if len(got) != 0 || stoker.KindOf(err) != tc.want {
			t.Errorf("%s: %d blocks, %v, want kind %v", tc.name, len(got), err, tc.want)
		}
	}
}

// A peer that stops in mid-answer costs the stall time, not for ever.
func TestStall(t *testing.T) {
	release := make(chan struct{})
	c, url := dial(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "\x00")
		w.(http.Flusher).Flush()
		<-release
	}))
	defer close(release)
	_, err := fetch(c, url, 7, 1, 0, 1, false)
	if stoker.KindOf(err) != stoker.KindTransient || !errors.Is(err, errStalled) {
		t.Errorf("stalled peer: %v", err)
	}
}

func TestDeadPeerAndGivingUp(t *testing.T) {
	c := New(Options{})
	defer c.Close()
	if _, err := fetch(c, "http://127.0.0.1:1", 7, 1, 0, 1, false); stoker.KindOf(err) != stoker.KindTransient {
		t.Errorf("dead peer: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	err := c.Fetch(ctx, "http://127.0.0.1:1", 7, stoker.ID{}, 0, 0, 1, false, nil)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
}
