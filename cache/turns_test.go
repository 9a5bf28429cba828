package cache

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
	"time"

	"stoker.dev/internal/api"
	"stoker.dev/ufs"
)

// heldFS notes whose bytes are asked for, in order, and answers when it is opened.
type heldFS struct {
	ufs.FS
	open chan struct{}

	mu   sync.Mutex
	keys []string // +checklocks:mu
	more *sync.Cond
}

func (f *heldFS) Open(ctx context.Context, key string, v ufs.Version, off, n int64) (io.ReadCloser, error) {
	f.mu.Lock()
	f.keys = append(f.keys, key)
	f.more.Broadcast()
	f.mu.Unlock()
	select {
	case <-f.open:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return f.FS.Open(ctx, key, v, off, n)
}

// until waits until what was asked for is as wanted, and returns it.
func (f *heldFS) until(is func(keys []string) bool) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	for !is(f.keys) {
		f.more.Wait()
	}
	return slices.Clone(f.keys)
}

// A job that reads while its data is loaded: the object that it waits for goes first,
// nothing of it is fetched twice, and the rest of its shard comes before shards that
// were not begun.
func TestReadsPullTheirShardForward(t *testing.T) {
	c := newCluster(t, 1, 512<<20)
	for i := range 8 {
		c.ufs.Put(fmt.Sprintf("o/%d", i), bytes.Repeat([]byte{byte(i)}, 40<<20))
	}
	id := c.freeze()
	plan := c.plan(id)
	fs := &heldFS{FS: c.ufs, open: make(chan struct{})}
	fs.more = sync.NewCond(&fs.mu)
	c.openUFS = func() ufs.FS { return fs }
	n := c.nodes[0].cache
	s, err := n.Open(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	row, _ := s.man.LookupPath("o/7")
	last := s.man.ShardOf(row, 0)
	shardOf := func(key string) uint32 {
		r, _ := s.man.LookupPath(key)
		return s.man.ShardOf(r, 0)
	}
	if _, err := n.Reserve(t.Context(), api.ReserveRequest{Plan: plan}); err != nil {
		t.Fatal(err)
	}
	if err := n.Load(t.Context(), plan, 0); err != nil {
		t.Fatal(err)
	}
	before := fs.until(func(keys []string) bool { return len(keys) >= 16 }) // its streams
	begun := map[uint32]bool{last: true}
	for _, k := range before {
		if shardOf(k) == last {
			t.Fatalf("the last shard is begun before anybody reads it: %v", before)
		}
		begun[shardOf(k)] = true
	}
	if len(begun) == s.man.Shards() {
		t.Fatalf("of %d shards all are begun", s.man.Shards())
	}
	read := make(chan error, 1)
	go func() {
		_, err := s.ReadAt(context.Background(), row, make([]byte, 10), 30<<20)
		read <- err
	}()
	for range time.Tick(time.Millisecond) { // until it waits
		a := s.accountOf(last)
		a.pulled.mu.Lock()
		waits := slices.Contains(a.pulled.next, last) && n.waiting() > 16
		a.pulled.mu.Unlock()
		if waits {
			break
		}
	}
	close(fs.open)
	if err := <-read; err != nil {
		t.Fatal(err)
	}
	var p api.LoadProgress
	if err := n.WatchLoad(t.Context(), plan, 0, 1e6, func(x api.LoadProgress) error { p = x; return nil }); err != nil {
		t.Fatal(err)
	}
	if p.UFSBytes != 8*40<<20 || p.Bytes != p.UFSBytes {
		t.Errorf("%+v", p)
	}
	keys := fs.until(func([]string) bool { return true })
	ahead := 0 // of the next 16, which the streams send together; the read's own request is one of them
	for _, k := range keys[16:32] {
		if shardOf(k) == last {
			ahead++
		}
	}
	if read := slices.Index(keys, "o/7"); read < 0 || read > 16+8 || ahead < 3 {
		t.Errorf("the read is request %d; %d of the next 16 are of its shard, which would come last: %v", read, ahead, keys)
	}
}

// Who watches a load that ends and is begun anew hears of that one, and not more often.
func TestALoadIsWatchedThatIsBegunAnew(t *testing.T) {
	c := newCluster(t, 1, 1<<30)
	c.ufs.Put("a", make([]byte, 1<<20))
	plan := c.plan(c.freeze())
	fs := &heldFS{FS: c.ufs, open: make(chan struct{})}
	fs.more = sync.NewCond(&fs.mu)
	c.openUFS = func() ufs.FS { return fs }
	n := c.nodes[0].cache
	begin := func() {
		if _, err := n.Reserve(t.Context(), api.ReserveRequest{Plan: plan}); err != nil {
			t.Fatal(err)
		}
		if err := n.Load(t.Context(), plan, 0); err != nil {
			t.Fatal(err)
		}
	}
	begin()
	heard := 0
	err := n.WatchLoad(t.Context(), plan, 0, time.Hour, func(p api.LoadProgress) error {
		switch heard++; heard {
		case 1:
			n.StopLoad(plan, 0)
			begin()
		case 2:
			close(fs.open)
		}
		if p.Done != (heard == 3) {
			t.Errorf("%d: %+v", heard, p)
		}
		return nil
	})
	if err != nil || heard != 3 {
		t.Errorf("heard %d times: %v", heard, err)
	}
}

// The next shard of many costs no more than that of few: nothing is copied.
func TestTurnsAreHandedOutInPlace(t *testing.T) {
	order := make([]uint32, 10_000)
	for i := range order {
		order[i] = uint32(i)
	}
	p := &pulled{}
	turns := newTurns(order, p)
	if n := testing.AllocsPerRun(1000, func() { turns.next() }); n > 0 {
		t.Errorf("%v allocations", n)
	}
	p.next = []uint32{9999, 5}
	for _, want := range []uint32{9999, 1001} {
		if n, ok := turns.next(); n != want || !ok {
			t.Errorf("%d comes next, want %d", n, want)
		}
	}
}
