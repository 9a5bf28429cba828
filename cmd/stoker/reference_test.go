package main

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"stoker.dev/internal/testenv"
)

// docs/config.md lists every setting of the command line.
func TestReferenceIsUpToDate(t *testing.T) {
	root := newRig(t, nil, nil).app().rootCommand()
	var b strings.Builder
	b.WriteString("| key and flag | variable | meaning |\n|---|---|---|\n")
	for _, key := range slices.Sorted(maps.Keys(new(settings).keys())) {
		f := root.PersistentFlags().Lookup(key)
		if f == nil {
			t.Fatalf("no flag for the key %s", key)
		}
		fmt.Fprintf(&b, "| `%s` | `%s` | %s |\n", key, variable(key), f.Usage)
	}
	testenv.Section(t, filepath.Join("..", "..", "docs", "config.md"), "stoker", b.String())
}
