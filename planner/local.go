package planner

import (
	"cmp"
	"errors"
	"slices"

	"stoker.dev"
)

// PlaceLocal puts each shard on every node. The first of its workers is its
// source: it alone asks the under file system, or whoever outside has the shard,
// and the others copy it from there. Sources are placed as Place places single
// copies, so that each node sends about as much as it gets and none is the
// bottleneck, not even one that has everything already (scatter and allgather:
// van de Geijn 1994). The others follow by their scores: each is next in turn if
// those before it go away. has is as in PlaceOptions. A node without room for the
// whole is a *NoRoom in a stoker.Error of kind NoSpace.
func PlaceLocal(shards []Shard, nodes []Worker, has [][]int) ([][]int, error) {
	if err := RoomForAll(shards, nodes); err != nil {
		return nil, err
	}
	nodes = slices.Clone(nodes)
	for i := range nodes {
		nodes[i].Weight = 0 // all send and get as much, whatever their capacities
	}
	sources, err := Place(shards, nodes, PlaceOptions{Has: has})
	if err != nil {
		return nil, err
	}
	scores, order := make([]float64, len(nodes)), make([]int, len(nodes))
	seeds := make([]uint64, len(nodes))
	for i, w := range nodes {
		seeds[i] = seed(w.ID)
	}
	flat := make([]int, 0, len(shards)*len(nodes))
	out := make([][]int, len(shards))
	for n := range shards {
		for i := range nodes {
			order[i], scores[i] = i, score(&shards[n].ID, seeds[i], weightOf(nodes[i]))
		}
		source := sources[n][0]
		slices.SortFunc(order, func(a, b int) int {
			switch {
			case a == b:
				return 0
			case a == source:
				return -1
			case b == source:
				return 1
			}
			return cmp.Or(cmp.Compare(scores[b], scores[a]), cmp.Compare(nodes[a].ID, nodes[b].ID))
		})
		from := len(flat)
		flat = append(flat, order...)
		out[n] = flat[from:len(flat):len(flat)]
	}
	return out, nil
}

// NoRoom says which node cannot hold all shards.
type NoRoom struct {
	Node                 string // its worker's id
	NeedBytes, FreeBytes int64
	Nodes                int // of how many
}

// Error implements error.
func (e *NoRoom) Error() string {
	return "needs " + human(e.NeedBytes) + " on each of its nodes, worker " + e.Node + " has " + human(e.FreeBytes) + " free"
}

// RoomForAll is nil if each node has room for all shards; else it names the
// node that has the least.
func RoomForAll(shards []Shard, nodes []Worker) error {
	if len(nodes) == 0 {
		return &stoker.Error{Op: "plan", Kind: stoker.KindInvalid, Err: errors.New("local copies of no node: name the job's nodes")}
	}
	var need int64
	for _, s := range shards {
		need += s.Bytes
	}
	least := slices.MinFunc(nodes, func(a, b Worker) int {
		return cmp.Or(cmp.Compare(a.FreeBytes, b.FreeBytes), cmp.Compare(a.ID, b.ID))
	})
	if least.FreeBytes < need {
		return &stoker.Error{Op: "plan", Kind: stoker.KindNoSpace,
			Err: &NoRoom{Node: least.ID, NeedBytes: need, FreeBytes: max(0, least.FreeBytes), Nodes: len(nodes)}}
	}
	return nil
}

// Turns is the order in which worker part brings in shards that several workers
// have to hold: one after the other of each source, its own first, then that of
// the worker behind it, and so on round. So at any time each worker fetches its
// own share and serves one other, and none is asked by all at once. Shards of one
// worker, and plans without such, keep their order.
func (p *Plan) Turns(part int, shards []uint32) []uint32 {
	if !slices.ContainsFunc(shards, func(n uint32) bool { return len(p.Owners[n]) > 1 }) {
		return shards
	}
	type turn struct {
		n           uint32
		round, step int
	}
	turns, rounds := make([]turn, len(shards)), make([]int, len(p.Workers))
	for i, n := range shards {
		source := part
		if len(p.Owners[n]) > 0 {
			source = int(p.Owners[n][0])
		}
		turns[i] = turn{n, rounds[source], (source - part + len(p.Workers)) % len(p.Workers)}
		rounds[source]++
	}
	slices.SortStableFunc(turns, func(a, b turn) int { return cmp.Or(cmp.Compare(a.round, b.round), cmp.Compare(a.step, b.step)) })
	out := make([]uint32, len(turns))
	for i, t := range turns {
		out[i] = t.n
	}
	return out
}
