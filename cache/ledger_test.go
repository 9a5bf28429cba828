package cache

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"stoker.dev"
	"stoker.dev/cache/store"
	"stoker.dev/internal/api"
	"stoker.dev/ufs/guard"
)

// written is what the document says that loads have spent.
func (n *node) written(t *testing.T) (spent int64) {
	t.Helper()
	body, err := n.store.GetState(accountsState)
	if stoker.KindOf(err) == stoker.KindNotExist {
		return 0
	}
	var all []spending
	if err != nil || json.Unmarshal(body, &all) != nil {
		t.Fatalf("%s, %v", body, err)
	}
	for _, e := range all {
		spent += e.UFSBytes
	}
	return spent
}

// A worker dies in mid-load. Its next life goes on with what that one spent, under
// the same plan or the one that replaces it: each byte that the UFS sent is counted,
// and what was sent beyond the dataset is lost.
func TestSpendingOutlivesItsWorker(t *testing.T) {
	const objects, before, size = 24, 9, 1 << 20
	for _, replaced := range []bool{false, true} {
		t.Run(fmt.Sprintf("replaced=%v", replaced), func(t *testing.T) {
			c := newCluster(t, 0, 0)
			c.guard = guard.Options{MaxInFlight: 1} // a request begins when the one before has ended
			dir := filepath.Join(t.TempDir(), "cache")
			c.add(0, dir, 1<<30)
			for i := range objects {
				c.ufs.Put(fmt.Sprintf("f%02d", i), bytes.Repeat([]byte{byte(i)}, size))
			}
			id := c.freeze()
			plan := c.plan(id)
			there, goes := make(chan struct{}), make(chan struct{})
			c.ufs.hook = func(n int) {
				if n == before+1 {
					close(there)
					<-goes
				}
			}
			n := c.nodes[0]
			if _, err := n.cache.Reserve(t.Context(), api.ReserveRequest{Plan: plan}); err != nil {
				t.Fatal(err)
			}
			if err := n.cache.Load(t.Context(), plan, 0); err != nil {
				t.Fatal(err)
			}
			<-there
			first, err := n.cache.LoadProgress(plan, 0)
			if err != nil || first.UFSBytes != before*size || first.Earlier != nil {
				t.Fatalf("%+v, %v", first, err)
			}
			waitFor(t, "that to be written down", func() bool { return n.written(t) == before*size })
			killed := filepath.Join(t.TempDir(), "cache") // as kill -9 leaves it
			if err := os.CopyFS(killed, os.DirFS(dir)); err != nil {
				t.Fatal(err)
			}
			close(goes)
			n.cache.StopLoad(plan, 0)
			c.ufs.mu.Lock()
			c.ufs.hook, c.ufs.bytes, c.ufs.requests = nil, 0, 0
			c.ufs.mu.Unlock()
			c.nodes = nil
			c.add(0, killed, 1<<30)
			n = c.nodes[0]
			c.readAll(0, id, map[string][]byte{"f23": bytes.Repeat([]byte{23}, size)}) // before the load goes on: it is the load's, too
			again := plan
			if replaced {
				again = (&generations{cluster: c}).planFor(id, 2, func(int) int { return 0 })
				if _, err := n.cache.Reserve(t.Context(), api.ReserveRequest{Plan: again, Replaces: plan}); err != nil {
					t.Fatal(err)
				}
			}
			last := c.load(0, again)
			requests, sent := c.ufs.counted()
			want := api.LoadSpent{Run: first.Run, UFSRequests: before + 1 + int64(requests), UFSBytes: before*size + sent}
			run := sent // of the account of that load alone
			if replaced {
				run -= size
			}
			want.Died = want.UFSBytes - objects*size
			want.Refetched.Lost = want.Died
			if got := last.Spent(); got != want || last.Bytes != objects*size || last.UFSBytes != run || last.Run == first.Run {
				t.Errorf("got  %+v\nwant %+v (%+v)", got, want, last)
			}
			if got := n.written(t); got != want.UFSBytes { // and a third life would know, too
				t.Errorf("%d bytes are written down, want %d", got, want.UFSBytes)
			}
		})
	}
}

// A document that is damaged, as power loss may leave one, costs figures, no load.
func TestDamagedSpending(t *testing.T) {
	dir := t.TempDir()
	st, err := store.Open(store.Options{Dir: dir, CapacityBytes: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	if err := st.PutState(accountsState, []byte("\x00\x00")); err != nil {
		t.Fatal(err)
	}
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	c := newCluster(t, 0, 0)
	c.add(0, dir, 1<<30)
	want := c.fillUFS(51, 20, 0)
	if last := c.load(0, c.plan(c.freeze())); last.Spent().UFSBytes != total(want) {
		t.Errorf("%+v, want %d bytes", last, total(want))
	}
}

// What is remembered of closed accounts is bounded.
func TestSpendingIsBounded(t *testing.T) {
	var a accounts
	for i := range 2 * endedKept {
		a.endedLocked(spending{Reservation: fmt.Sprint(i)})
	}
	if len(a.ended) != endedKept || a.resumeLocked(fmt.Sprint(endedKept), 0) == nil || a.resumeLocked("0", 0) != nil {
		t.Errorf("%d accounts are remembered", len(a.ended))
	}
}
