package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"stoker.dev/cmd/stoker/internal/live"
	"stoker.dev/internal/api"
)

// layouts are where the bytes of a claim's data may be.
var layouts = []string{"auto", "local", "spread"}

const (
	layoutHelp = `
--layout says where the bytes are: spread puts each shard on one worker, local all
of them on each node of the job, so that its reads ask nobody else; each node gets
them once, and the store sends them once in all. auto is local if the nodes are
known and have room for everything, else spread.`
	nodesWords = "nodes of the job, separated by commas: names of nodes, or ids of workers"
)

// checkLayout refuses what no controller would take. here: the job runs on this
// node, or a preload on all.
func checkLayout(cmd *cobra.Command, req *api.ClaimRequest, here bool) error {
	switch {
	case !slices.Contains(layouts, req.Layout):
		return usagef(cmd, "--layout %q: want auto or local or spread", req.Layout)
	case len(req.Nodes) > 0 && req.Layout == "spread":
		return usagef(cmd, "--nodes goes with --layout local or auto")
	case slices.Contains(req.Nodes, ""), len(req.Nodes) == 0 && cmd.Flags().Changed("nodes"):
		return usagef(cmd, "--nodes %q: a name is empty", strings.Join(req.Nodes, ","))
	case req.Layout == "local" && len(req.Nodes) == 0 && !here:
		return usagef(cmd, "--layout local needs the job's --nodes")
	case req.Layout == "local" && req.Replicas > 1:
		return usagef(cmd, "--replicas goes with --layout spread: local has a copy on each node")
	}
	return nil
}

// nodesShown is how many workers of a job's nodes are named.
const nodesShown = 8

// nodeList names the workers of a job's nodes.
func nodeList(ids []string) string {
	var names []string
	for _, id := range ids[:min(len(ids), nodesShown)] {
		names = append(names, live.ShortID(id))
	}
	if more := len(ids) - len(names); more > 0 {
		names = append(names, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(names, " ")
}
