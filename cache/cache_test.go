package cache

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/cache/peer"
	"stoker.dev/cache/store"
	"stoker.dev/internal/api"
	"stoker.dev/planner"
	"stoker.dev/ufs"
	"stoker.dev/ufs/folder"
	"stoker.dev/ufs/guard"
	"stoker.dev/ufs/memufs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// cluster is several caches in one process that reach each other over real
// HTTP on loopback, above one UFS in memory.
type cluster struct {
	t       testing.TB
	ufs     *countingFS
	openUFS func() ufs.FS // instead of ufs, if not nil
	guard   guard.Options
	guarded ufs.FS // instead of a guard for each dataset, if not nil
	memory  int64  // of each node
	evict   Evict
	alone   bool // nodes reach no other
	store   *manifest.Store
	nodes   []*node
}

type node struct {
	cache *Cache
	store *store.Store
	dir   *fakeDirectory
	peer  Peer
}

// countingFS counts the data requests and bytes that reach the UFS.
type countingFS struct {
	*memufs.FS
	mu       sync.Mutex
	requests int
	bytes    int64
	hold     chan struct{} // not nil: Open waits until it is closed
	hook     func(n int)   // not nil: told of the n-th request before it is served
}

func (f *countingFS) Open(ctx context.Context, key string, v ufs.Version, off, n int64) (io.ReadCloser, error) {
	f.mu.Lock()
	f.requests++
	f.bytes += n
	hold, hook, nth := f.hold, f.hook, f.requests
	f.mu.Unlock()
	if hook != nil {
		hook(nth)
	}
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return f.FS.Open(ctx, key, v, off, n)
}

func (f *countingFS) counted() (int, int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.requests, f.bytes
}

// fakeDirectory knows the nodes and what they announced.
type fakeDirectory struct {
	c    *cluster
	self int
	mu   sync.Mutex
	held map[heldShard]bool // whole

	onWhole func() // not nil: told of each shard that is whole
}

type heldShard struct {
	id stoker.ID
	n  uint32
}

func (d *fakeDirectory) Holders(_ context.Context, id stoker.ID, n uint32) []Peer {
	var out []Peer
	for i, other := range d.c.nodes {
		other.dir.mu.Lock()
		whole, ok := other.dir.held[heldShard{id, n}]
		other.dir.mu.Unlock()
		if i != d.self && ok {
			p := other.peer
			p.Whole = whole
			out = append(out, p)
		}
	}
	return out
}

func (d *fakeDirectory) Owners(_ context.Context, plan *planner.Plan, _ stoker.ID, n uint32) (ask []Peer, self bool, lost []string) {
	if plan == nil {
		owner := int(n) % len(d.c.nodes)
		if owner == d.self {
			return nil, true, nil
		}
		return []Peer{d.c.nodes[owner].peer}, false, nil
	}
	for _, owner := range plan.Owners[n] {
		if int(owner) == d.self {
			return ask, true, nil
		}
		ask = append(ask, d.c.nodes[owner].peer)
	}
	return ask, false, nil
}

func (d *fakeDirectory) Begun(_ context.Context, workers []string, id stoker.ID, n uint32) bool {
	for _, other := range d.c.nodes {
		other.dir.mu.Lock()
		_, ok := other.dir.held[heldShard{id, n}]
		other.dir.mu.Unlock()
		if ok && slices.Contains(workers, other.peer.ID) {
			return true
		}
	}
	return false
}

func (d *fakeDirectory) Flush(context.Context) {}

func (d *fakeDirectory) Announce(id stoker.ID, n uint32, whole bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	key := heldShard{id, n}
	d.held[key] = d.held[key] || whole
	if whole && d.onWhole != nil {
		d.onWhole()
	}
}

func (d *fakeDirectory) Withdraw(id stoker.ID, shards []uint32) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, n := range shards {
		delete(d.held, heldShard{id, n})
	}
}

type testFetcher struct{ *peer.Client }

func (f testFetcher) Fetch(ctx context.Context, p Peer, id stoker.ID, n uint32, from, to int, through bool, got func(int, []byte) error) error {
	return f.Client.Fetch(ctx, p.Address, p.Incarnation, id, n, from, to, through, got)
}

func newCluster(t testing.TB, nodes int, capacity int64) *cluster {
	t.Helper()
	c := &cluster{t: t, ufs: &countingFS{FS: memufs.New()}}
	objs, err := folder.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	c.store = manifest.NewStore(objs, t.TempDir())
	c.guard.HedgeAfter = time.Minute // a busy machine is no slow store: requests and bytes are counted
	for i := range nodes {
		c.add(i, filepath.Join(t.TempDir(), "cache"), capacity)
	}
	return c
}

// open guards the one UFS, as the daemons do: the guard counts.
func (c *cluster) open(context.Context, ufs.Location) (ufs.FS, string, error) {
	if c.guarded != nil {
		return c.guarded, "", nil
	}
	if c.openUFS != nil {
		return guard.New(c.openUFS(), c.guard), "", nil
	}
	return guard.New(c.ufs, c.guard), "", nil
}

func (c *cluster) add(i int, dir string, capacity int64) {
	c.addFolders(i, store.Folder{Dir: dir, CapacityBytes: capacity})
}

func (c *cluster) addFolders(i int, folders ...store.Folder) {
	t := c.t
	st, err := store.Open(store.Options{Folders: folders})
	if err != nil {
		t.Fatal(err)
	}
	n := &node{store: st, dir: &fakeDirectory{c: c, self: i, held: map[heldShard]bool{}}}
	client := peer.New(peer.Options{})
	n.cache, err = New(Options{Store: st, Manifests: c.store, Open: c.open, Directory: n.dir, Fetcher: testFetcher{client}, MemoryBytes: c.memory, Evict: c.evict})
	if err != nil {
		t.Fatal(err)
	}
	inc := stoker.NewIncarnation()
	n.peer = Peer{ID: st.WorkerID(), Incarnation: inc}
	if !c.alone {
		mux := http.NewServeMux()
		mux.Handle("GET /v1/manifests/{manifest}/shards/{shard}/blocks", peer.Handler(inc, n.cache))
		srv := httptest.NewServer(mux)
		n.peer.Address = srv.URL
		t.Cleanup(srv.Close)
	}
	c.nodes = append(c.nodes, n)
	t.Cleanup(func() {
		client.Close()
		if err := n.cache.Close(); err != nil {
			t.Error(err)
		}
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
}

// freeze lists what is in the UFS and stores the manifest.
func (c *cluster) freeze() stoker.ID { return c.freezeAfter(stoker.ID{}) }

// freezeAfter makes the generation that follows base.
func (c *cluster) freezeAfter(base stoker.ID) stoker.ID {
	c.t.Helper()
	return c.freezeFrom("mem://bucket", base)
}

func (c *cluster) freezeFrom(uri string, base stoker.ID) stoker.ID {
	c.t.Helper()
	b, err := manifest.Build(context.Background(), manifest.BuildOptions{
		Roots: []manifest.Root{{Location: ufs.Location{URI: uri}}}, Base: base, Open: c.open, TempDir: c.t.TempDir()})
	if err != nil {
		c.t.Fatal(err)
	}
	if err := c.store.Put(context.Background(), b); err != nil {
		c.t.Fatal(err)
	}
	return b.ID
}

// plan spreads the manifest's shards over the nodes, round and round.
func (c *cluster) plan(id stoker.ID) stoker.ID {
	c.t.Helper()
	m, err := c.store.Load(context.Background(), id)
	if err != nil {
		c.t.Fatal(err)
	}
	defer m.Close()
	p := planner.Plan{Dataset: "test", Generation: 1, Manifest: id, Replicas: 1}
	for _, n := range c.nodes {
		p.Workers = append(p.Workers, planner.PlanWorker{ID: n.store.WorkerID(), Address: n.peer.Address})
	}
	for n := range m.Shards() {
		p.Owners = append(p.Owners, []uint16{uint16(n % len(c.nodes))})
	}
	pid, err := c.store.PutBlob(context.Background(), "plans", p.Encode())
	if err != nil {
		c.t.Fatal(err)
	}
	return pid
}

func (c *cluster) load(i int, plan stoker.ID) api.LoadProgress {
	c.t.Helper()
	var last api.LoadProgress
	ctx := context.Background()
	if _, err := c.nodes[i].cache.Reserve(ctx, api.ReserveRequest{Plan: plan, Part: i}); err != nil {
		c.t.Fatal(err)
	}
	if err := c.nodes[i].cache.Load(ctx, plan, i); err != nil {
		c.t.Fatal(err)
	}
	err := c.nodes[i].cache.WatchLoad(ctx, plan, i, time.Millisecond, func(p api.LoadProgress) error { last = p; return nil })
	if err != nil {
		c.t.Fatal(err)
	}
	return last
}

// fillUFS puts small and one large object into the UFS.
func (c *cluster) fillUFS(seed uint64, small int, large int64) map[string][]byte {
	r := rand.New(rand.NewPCG(seed, 1))
	all := map[string][]byte{}
	noise := make([]byte, 1<<20)
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	put := func(key string, n int64) {
		b := make([]byte, n)
		for done := 0; done < len(b); { // from elsewhere in the noise each time
			done += copy(b[done:], noise[r.IntN(len(noise)/2):])
		}
		c.ufs.Put(key, b)
		all[key] = b
	}
	for i := range small {
		put(fmt.Sprintf("train/%02d/f%05d.bin", i%7, i), r.Int64N(300<<10))
	}
	put("train/empty", 0)
	if large > 0 {
		put("big/model.bin", large)
	}
	return all
}

// readAll compares every file, read through node i in pieces of odd size.
func (c *cluster) readAll(i int, id stoker.ID, want map[string][]byte) {
	c.t.Helper()
	ctx := context.Background()
	s, err := c.nodes[i].cache.Open(ctx, id)
	if err != nil {
		c.t.Fatal(err)
	}
	defer s.Close()
	if err := same(ctx, s, want); err != nil {
		c.t.Fatalf("node %d: %v", i, err)
	}
}

// same reads every file in pieces of odd size and compares it.
func same(ctx context.Context, s *Set, want map[string][]byte) error {
	p := make([]byte, 100_001)
	for key, body := range want {
		row, ok := s.Manifest().LookupPath(key)
		if !ok {
			return fmt.Errorf("%s is not in the manifest", key)
		}
		for at := 0; at < len(body); {
			n, err := s.ReadAt(ctx, row, p, int64(at))
			if err != nil || n == 0 {
				return fmt.Errorf("%s at %d: %d, %w", key, at, n, err)
			}
			if !bytes.Equal(p[:n], body[at:at+n]) {
				return fmt.Errorf("%s differs from the source at %d", key, at)
			}
			at += n
		}
	}
	return nil
}

func total(all map[string][]byte) (n int64) {
	for _, b := range all {
		n += int64(len(b))
	}
	return n
}

// One worker, nothing loaded: every byte comes from the UFS once.
func TestReadThrough(t *testing.T) {
	c := newCluster(t, 1, 1<<30)
	want := c.fillUFS(1, 50, 70<<20)
	id := c.freeze()
	c.readAll(0, id, want)
	if _, n := c.ufs.counted(); n != total(want) {
		t.Errorf("UFS bytes %d, dataset %d", n, total(want))
	}
	c.readAll(0, id, want)
	if _, n := c.ufs.counted(); n != total(want) {
		t.Errorf("the second pass asked the UFS: %d bytes", n-total(want))
	}
}

// Three workers load their parts; all data is then read through each of them,
// and the UFS has been read exactly once.
func TestLoadThenPeers(t *testing.T) {
	c := newCluster(t, 3, 1<<30)
	want := c.fillUFS(2, 400, 130<<20)
	id := c.freeze()
	plan := c.plan(id)
	var bytes, requests int64
	for i := range c.nodes {
		p := c.load(i, plan)
		if !p.Done || p.FailedObjects != 0 || p.Bytes != p.TotalBytes || p.Cursor != p.Shards {
			t.Fatalf("load of part %d ended as %+v", i, p)
		}
		bytes, requests = bytes+p.UFSBytes, requests+p.UFSRequests
	}
	if bytes != total(want) {
		t.Errorf("loads say %d UFS bytes, dataset has %d", bytes, total(want))
	}
	for i := range c.nodes {
		c.readAll(i, id, want)
	}
	if n, b := c.ufs.counted(); b != total(want) || int64(n) != requests {
		t.Errorf("UFS saw %d bytes in %d requests, want %d in %d", b, n, total(want), requests)
	}
	if u := c.nodes[0].store.Usage(); u.ReservedBytes != 0 {
		t.Errorf("%d bytes are reserved after the load", u.ReservedBytes)
	}
}

// Objects that are gone or changed fail by name; the others come in.
func TestLoadNamesWhatFails(t *testing.T) {
	c := newCluster(t, 1, 1<<30)
	want := c.fillUFS(3, 40, 0)
	id := c.freeze()
	c.ufs.Delete("train/01/f00001.bin")
	c.ufs.Put("train/02/f00002.bin", []byte("another content"))
	p := c.load(0, c.plan(id))
	if p.FailedObjects != 2 || p.Failed[0].Path != "train/01/f00001.bin" || p.Failed[0].Kind != "notexist" ||
		p.Failed[1].Path != "train/02/f00002.bin" || p.Failed[1].Kind != "stale" {
		t.Fatalf("failed: %+v", p.Failed)
	}
	delete(want, "train/01/f00001.bin")
	delete(want, "train/02/f00002.bin")
	c.readAll(0, id, want)
	rep, err := c.nodes[0].cache.Verify(context.Background(), id, true)
	if err != nil {
		t.Fatal(err)
	}
	if len(rep.Shards) != 1 || rep.Shards[0].Present == nil || len(rep.Failed) != 2 {
		t.Errorf("verify: %+v", rep)
	}
}

// A reader that gives up neither fails nor restarts the others' flight.
func TestFlightSurvivesItsFirstCaller(t *testing.T) {
	c := newCluster(t, 1, 1<<30)
	want := c.fillUFS(4, 1, 0)
	id := c.freeze()
	c.ufs.mu.Lock()
	c.ufs.hold = make(chan struct{})
	c.ufs.mu.Unlock()
	s, err := c.nodes[0].cache.Open(context.Background(), id)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	key := "train/00/f00000.bin"
	row, _ := s.Manifest().LookupPath(key)
	ctx, giveUp := context.WithCancel(context.Background())
	errs := make(chan error, 2)
	for _, ctx := range []context.Context{ctx, context.Background()} {
		go func() {
			_, err := s.ReadAt(ctx, row, make([]byte, 10), 0)
			errs <- err
		}()
	}
	for range time.Tick(time.Millisecond) { // until both wait for the one flight
		if c.nodes[0].cache.waiting() == 2 {
			break
		}
	}
	giveUp()
	if err := <-errs; err != context.Canceled {
		t.Fatalf("who gave up got %v", err)
	}
	close(c.ufs.hold)
	if err := <-errs; err != nil {
		t.Fatalf("who stayed got %v", err)
	}
	if n, _ := c.ufs.counted(); n != 1 {
		t.Errorf("%d requests for one object", n)
	}
	_ = want
}

// waiting counts the waiters of all flights.
func (c *Cache) waiting() int {
	c.fills.mu.Lock()
	defer c.fills.mu.Unlock()
	n := 0
	for _, run := range c.fills.runs {
		for _, f := range run {
			n += f.waiters
		}
	}
	return n
}

// Wrong bits on the disk are found by the read, and mended from the UFS.
func TestCorruptBlockIsRefilled(t *testing.T) {
	c := newCluster(t, 1, 1<<30)
	want := c.fillUFS(5, 30, 0)
	id := c.freeze()
	c.load(0, c.plan(id))
	files, err := filepath.Glob(filepath.Join(c.nodes[0].storeDir(), "shards", "*", "*.shard"))
	if err != nil || len(files) != 1 {
		t.Fatalf("%v %v", files, err)
	}
	if err := os.Chmod(files[0], 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(files[0], os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("garbage"), 4096); err != nil {
		t.Fatal(err)
	}
	f.Close()
	c.readAll(0, id, want)
	if n := c.nodes[0].cache.Counters().Corrupt.Load(); n != 1 {
		t.Errorf("%d corrupt blocks counted, want 1", n)
	}
}

func (n *node) storeDir() string { return n.store.Dir() }

// A dataset larger than the disk is still read right: what does not fit
// passes through memory.
func TestReadBeyondCapacity(t *testing.T) {
	c := newCluster(t, 1, 8<<20)
	want := c.fillUFS(7, 100, 0) // about 15 MB in one shard
	id := c.freeze()
	c.readAll(0, id, want)
	if u := c.nodes[0].store.Usage(); u.UsedBytes > 8<<20 {
		t.Errorf("%d bytes used of %d", u.UsedBytes, 8<<20)
	}
}
