package control

import (
	"fmt"
	"strings"
	"testing"

	"stoker.dev"
	"stoker.dev/cache/placement"
	"stoker.dev/internal/api"
	"stoker.dev/workflows"
)

// A node is named by its name, or by its worker's id or the beginning of that.
func TestNodesNamed(t *testing.T) {
	live := []placement.Worker{
		{ID: "bbbbbbbbbbbb1111", Node: "n2", CapacityBytes: 1}, {ID: "aaaaaaaaaaaa1111", Node: "n1", CapacityBytes: 1},
		{ID: "aaaaaaaaaaaa2222", Node: "client"}, {ID: "cccccccccccc1111", Node: "laptop", CapacityBytes: 1}, {ID: "dddddddddddd1111", Node: "laptop", CapacityBytes: 1},
	}
	for _, c := range []struct {
		names []string
		want  string // ids, or a kind
		text  string
	}{
		{[]string{"n2", "n1"}, "[aaaaaaaaaaaa1111 bbbbbbbbbbbb1111]", ""},
		{[]string{"bbbbbbbb", "n2", "bbbbbbbbbbbb1111"}, "[bbbbbbbbbbbb1111]", ""},
		{nil, "[aaaaaaaaaaaa1111 bbbbbbbbbbbb1111 cccccccccccc1111 dddddddddddd1111]", ""},
		{[]string{"n1", "n7"}, "notexist", "node n7: has no live worker"},
		{[]string{"bbbbbbb"}, "notexist", "node bbbbbbb"}, // too short
		{[]string{"aaaaaaaaaaaa"}, "invalid", "is the name of 2 workers: say which by their ids: aaaaaaaaaaaa1111, aaaaaaaaaaaa2222"},
		{[]string{"laptop"}, "invalid", "2 workers"},
		{[]string{"client"}, "invalid", "caches nothing"},
	} {
		ids, err := nodesNamed(&api.ClaimRequest{Job: "j", Nodes: c.names}, live)
		got := fmt.Sprint(ids)
		if err != nil {
			got = stoker.KindOf(err).String()
		}
		if got != c.want || err != nil && !strings.Contains(err.Error(), c.text) {
			t.Errorf("%v: %s, %v; want %s", c.names, got, err, c.want)
		}
	}
	if _, err := nodesNamed(&api.ClaimRequest{Job: "j"}, live[2:3]); stoker.KindOf(err) != stoker.KindTransient || err == nil {
		t.Errorf("nobody caches anything: %v", err)
	}
}

// Copies on the nodes of a job are never too many while it holds them.
func TestLocalCopiesAreNotTooMany(t *testing.T) {
	sets := []workflows.DatasetState{
		{Manifest: stoker.ID{1}, Holders: []workflows.Holder{{Job: "a"}, {Job: "b", Nodes: []string{"w1"}}}},
		{Manifest: stoker.ID{2}, Holders: []workflows.Holder{{Job: "c", Nodes: []string{"w1"}, Auto: true, Spread: true}}},
	}
	for id, want := range map[byte]bool{1: true, 2: false, 3: false} {
		if got := heldOnNodes(sets, stoker.ID{id}); got != want {
			t.Errorf("manifest %d is held on nodes: %v", id, got)
		}
	}
}
