package planner

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"stoker.dev"
)

func placeLocal(t testing.TB, shards []Shard, nodes []Worker, has [][]int) [][]int {
	t.Helper()
	out, err := PlaceLocal(shards, nodes, has)
	if err != nil {
		t.Fatal(err)
	}
	for n, owners := range out {
		sorted := slices.Sorted(slices.Values(owners))
		for i := range nodes {
			if len(sorted) != len(nodes) || sorted[i] != i {
				t.Fatalf("shard %d is on %v, want all of %d nodes", n, owners, len(nodes))
			}
		}
	}
	return out
}

// checkLinks adds up what each node gets and sends: it gets every shard once, and
// none sends more than 1.1 times that, nor reads more than 1.1 of its share.
func checkLinks(t *testing.T, shards []Shard, nodes int, out [][]int) {
	t.Helper()
	in, sent, read := make([]int64, nodes), make([]int64, nodes), make([]int64, nodes)
	var total int64
	for n, owners := range out {
		total += shards[n].Bytes
		for at, w := range owners {
			in[w] += shards[n].Bytes
			if at > 0 {
				sent[owners[0]] += shards[n].Bytes
			}
		}
		read[owners[0]] += shards[n].Bytes
	}
	for w := range nodes {
		if in[w] != total {
			t.Errorf("node %d of %d gets %d bytes, want %d", w, nodes, in[w], total)
		}
		if float64(sent[w]) > 1.1*float64(total) {
			t.Errorf("node %d of %d sends %.2f of the dataset", w, nodes, float64(sent[w])/float64(total))
		}
		if share := float64(total) / float64(nodes); float64(read[w]) > 1.1*share {
			t.Errorf("node %d of %d reads %.2f of its share", w, nodes, float64(read[w])/share)
		}
	}
}

// Whatever is where before, and however different the nodes are: every link
// carries the dataset once, and no node sends much more than it gets.
func TestLocalLinks(t *testing.T) {
	r := rand.New(rand.NewPCG(21, 4))
	for _, nodes := range []int{1, 2, 3, 8, 40} {
		shards, ws := someShards(r, 30*nodes, packs), someWorkers(r, nodes, 4)
		one, some := make([][]int, len(shards)), make([][]int, len(shards))
		for n := range shards {
			one[n] = []int{0}
			for w := range nodes {
				if r.IntN(3) == 0 {
					some[n] = append(some[n], w)
				}
			}
		}
		for name, has := range map[string][][]int{"nobody has any": nil, "one has all": one, "some have some": some} {
			t.Run(fmt.Sprintf("%d nodes, %s", nodes, name), func(t *testing.T) {
				checkLinks(t, shards, nodes, placeLocal(t, shards, ws, has))
			})
		}
	}
}

// If a source goes away, those of the others stay, and its own are divided.
func TestLocalSourcesAreTakenOver(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 9))
	shards, ws := someShards(r, 400, extents), someWorkers(r, 5, 1)
	next := make([]int, len(ws))
	for _, owners := range placeLocal(t, shards, ws, nil) {
		if owners[0] == 0 {
			next[owners[1]]++
		}
	}
	for w := 1; w < len(ws); w++ {
		if next[w] < 8 || next[w] > 36 { // 80 shards, 20 each
			t.Errorf("worker %d takes over %d shards of 80", w, next[w])
		}
	}
}

// The order in which shards and nodes are listed decides nothing.
func TestLocalWithoutOrder(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	shards, ws := someShards(r, 100, packs), someWorkers(r, 7, 2)
	byID := func(shards []Shard, ws []Worker) map[stoker.ID]string {
		out := map[stoker.ID]string{}
		for n, owners := range placeLocal(t, shards, ws, nil) {
			for _, w := range owners {
				out[shards[n].ID] += ws[w].ID + " "
			}
		}
		return out
	}
	want := byID(shards, ws)
	for range 5 {
		r.Shuffle(len(shards), func(i, j int) { shards[i], shards[j] = shards[j], shards[i] })
		r.Shuffle(len(ws), func(i, j int) { ws[i], ws[j] = ws[j], ws[i] })
		for id, owners := range byID(shards, ws) {
			if want[id] != owners {
				t.Fatalf("shard %s: %s, then %s", id.Short(), want[id], owners)
			}
		}
	}
}

func TestLocalNeedsRoomOnEachNode(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	shards, ws := someShards(r, 10, extents), someWorkers(r, 3, 1)
	ws[1] = Worker{ID: "small", FreeBytes: 640*mib - 1}
	_, err := PlaceLocal(shards, ws, nil)
	var no *NoRoom
	if !errors.As(err, &no) || stoker.KindOf(err) != stoker.KindNoSpace || *no != (NoRoom{"small", 640 * mib, 640*mib - 1, 3}) {
		t.Fatalf("%v", err)
	}
	if want := "needs 640.0 MiB on each of its nodes, worker small has 640.0 MiB free"; no.Error() != want {
		t.Errorf("%q, want %q", no.Error(), want)
	}
	ws[1].FreeBytes++
	placeLocal(t, shards, ws, nil)
	if _, err := PlaceLocal(shards, nil, nil); stoker.KindOf(err) != stoker.KindInvalid || err == nil {
		t.Errorf("of no node: %v", err)
	}
}

// At any time each worker brings in a shard of another source, its own first.
func TestTurns(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 8))
	shards, ws := someShards(r, 120, extents), someWorkers(r, 4, 1)
	p := &Plan{}
	for _, w := range ws {
		p.Workers = append(p.Workers, PlanWorker{ID: w.ID})
	}
	p.SetOwners(placeLocal(t, shards, ws, nil))
	orders := make([][]uint32, len(ws))
	for part := range ws {
		orders[part] = p.Turns(part, p.Part(part))
		if got := slices.Sorted(slices.Values(orders[part])); !slices.Equal(got, p.Part(part)) {
			t.Fatalf("part %d: the turns are not its shards: %v", part, got)
		}
	}
	for at := range 4 * 25 { // as long as every source has some left
		sources := map[uint16]bool{}
		for part := range ws {
			sources[p.Owners[orders[part][at]][0]] = true
		}
		if own := p.Owners[orders[0][at]][0]; at%4 == 0 && own != 0 {
			t.Errorf("turn %d of worker 0 is one of worker %d", at, own)
		}
		if len(sources) != 4 {
			t.Errorf("turn %d: %d sources are asked", at, len(sources))
		}
	}
	spread, _ := somePlan(r, 4, 50, 1)
	if part := spread.Part(2); !slices.Equal(spread.Turns(2, part), part) {
		t.Error("a plan with one worker a shard has turns")
	}
}

// What a node has to hold nobody takes over.
func TestMendLeavesNodes(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 4))
	p, shards := somePlan(r, 3, 60, 3)
	p.Nodes = []uint16{0, 2}
	o := MendOptions{Keep: func(uint32) bool { return false }, Round: 9,
		Workers:   []Worker{{ID: "w1", FreeBytes: 1 << 40}, {ID: "w2", FreeBytes: 1 << 40}, {ID: "joined", FreeBytes: 1 << 40}},
		Addresses: []string{"http://1", "http://2", "http://joined"}}
	m := Mend(p, shards, o)
	if m.Moved != nil || !slices.Equal(m.Kept.Part(0), p.Part(0)) || !slices.Equal(m.Kept.Nodes, p.Nodes) {
		t.Errorf("of node 0: %v moved, %v kept", m.Moved, m.Kept)
	}
	o.Lost, o.Workers[0].ID = 1, "w0"
	if m = Mend(p, shards, o); m.Kept != nil || len(m.Moved.Mended) != len(p.Part(1)) {
		t.Errorf("worker 1 is no node: %v moved, %v kept", m.Moved, m.Kept)
	}
}
