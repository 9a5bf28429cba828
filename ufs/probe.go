package ufs

import "context"

// Level says how good a finding is.
type Level int

// Levels, from the best.
const (
	Fine Level = iota
	Odd        // it works, but not as it should
	Bad        // datasets cannot be read
)

// Finding is one thing that a probe found out about a store. It holds no
// secret, no key and nothing of what a store's bodies say.
type Finding struct {
	Name   string
	Level  Level
	Detail string
	Hint   string // what to do, unless Fine
}

// Prober is an FS that can tell how its store behaves. Probe reads only, some
// tens of requests at most, and ends with ctx.
type Prober interface {
	Probe(ctx context.Context, prefix string) []Finding
}
