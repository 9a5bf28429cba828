package cache

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"stoker.dev/cache/peer"
)

// spoil overwrites some bytes of a sealed shard, as a bad disk does.
func spoil(t *testing.T, n *node) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(n.storeDir(), "shards", "*", "*.shard"))
	if err != nil || len(files) != 1 {
		t.Fatalf("%v, %v", files, err)
	}
	if err := os.Chmod(files[0], 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(files[0], os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("garbage"), 4096); err != nil {
		t.Fatal(err)
	}
}

// A bad block that is found while a peer is served is counted, does not go
// out, and the log says whose data it is.
func TestCorruptBlockIsSeenWhenServed(t *testing.T) {
	c := newCluster(t, 1, 1<<30)
	n := c.nodes[0]
	var log bytes.Buffer
	n.cache.o.Log = slog.New(slog.NewJSONHandler(&log, nil))
	c.fillUFS(5, 30, 0)
	id := c.freeze()
	c.load(0, c.plan(id))
	spoil(t, n)
	client := peer.New(peer.Options{})
	defer client.Close()
	m, err := c.store.Load(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	blocks := int(m.Shard(0).Blocks)
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	got := map[int]bool{}
	err = client.Fetch(t.Context(), n.peer.Address, n.peer.Incarnation, id, 0, 0, blocks, false, func(block int, _ []byte) error { got[block] = true; return nil })
	if err != nil || got[0] && got[1] {
		t.Errorf("%v, blocks %v", err, got)
	}
	if n := n.cache.Counters().Corrupt.Load(); n != 1 {
		t.Errorf("%d corrupt blocks counted, want 1", n)
	}
	var ended, corrupt bool
	for line := range strings.Lines(log.String()) {
		var v struct{ Msg, Dataset, Manifest, Load string }
		if err := json.Unmarshal([]byte(line), &v); err != nil || v.Dataset != "test" || v.Manifest != id.Short() {
			t.Errorf("%v: %s", err, line)
		}
		ended = ended || v.Msg == "a load has ended" && v.Load != ""
		corrupt = corrupt || v.Msg == "block does not match its checksum"
	}
	if !ended || !corrupt {
		t.Errorf("the end of the load: %v, the bad block: %v; in %s", ended, corrupt, log.String())
	}
}

// What is under way is counted while it is, and no longer.
func TestRunningIsCounted(t *testing.T) {
	c := newCluster(t, 1, 1<<30)
	c.fillUFS(6, 3, 0)
	id := c.freeze()
	n := c.nodes[0].cache
	hold := make(chan struct{})
	c.ufs.hold = hold
	s, err := n.Open(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	f := s.joinFlight(0, 0, 1, why{})
	if loads, flights := n.Running(); loads != 0 || flights != 1 {
		t.Errorf("%d loads, %d flights; want 0 and 1", loads, flights)
	}
	close(hold)
	<-f.done
	n.leave(f, true)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	c.load(0, c.plan(id))
	if loads, flights := n.Running(); loads != 0 || flights != 0 {
		t.Errorf("after all: %d loads, %d flights", loads, flights)
	}
}
