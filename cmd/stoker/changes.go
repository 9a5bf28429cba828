package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"stoker.dev"
	"stoker.dev/internal/api"
)

// previous is what --changes without a value stands for.
const previous = "previous"

// parseChanges reads FROM or FROM..TO; 0 is the default of either.
func parseChanges(s string) (from, to int, err error) {
	if s == previous {
		return 0, 0, nil
	}
	a, b, both := strings.Cut(s, "..")
	from, err = generationNumber(a)
	if err == nil && both {
		to, err = generationNumber(b)
	}
	return from, to, err
}

func generationNumber(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 {
		return 0, stoker.Errorf(stoker.KindInvalid, "usage", "--changes", "%q is no generation: want FROM or FROM..TO, such as --changes=2..3", s)
	}
	return n, nil
}

// showChanges prints what is different between two generations.
func (a *app) showChanges(cmd *cobra.Command, ref api.DatasetRef, which string) error {
	from, to, err := parseChanges(which)
	if err != nil {
		return err
	}
	if to != 0 && ref.Generation != 0 && to != ref.Generation {
		return usagef(cmd, "@%d and --changes=%s name two generations to end with", ref.Generation, which)
	}
	if to != 0 {
		ref.Generation = to
	}
	c, err := a.controller()
	if err != nil {
		return err
	}
	found, err := c.Changes(cmd.Context(), refName(ref), from)
	if err != nil {
		return err
	}
	found.Paths = orEmpty(found.Paths)
	return a.print(found, func(w io.Writer) {
		row(w, "dataset", found.Name)
		row(w, "generations", fmt.Sprintf("%d..%d", found.From, found.To))
		row(w, "added", tally(found.Added))
		row(w, "changed", tally(found.Changed))
		row(w, "removed", tally(found.Removed))
		for i, p := range found.Paths {
			if i == maxListed {
				row(w, "", "and more: '-o json' names the first 1,000")
				break
			}
			row(w, p.Change, printable(p.Path))
		}
	})
}

func tally(t api.Tally) string { return fmt.Sprintf("%d (%s)", t.Objects, api.HumanBytes(t.Bytes)) }

// noteChanges says what a sync has found.
func (a *app) noteChanges(d *api.DatasetDetail) {
	switch c := d.Changes; {
	case d.Unchanged:
		a.console.Line("nothing has changed: generation %d stays the current one", d.Generation)
	case c != nil:
		a.console.Line("generation %d: %s added, %s changed, %s removed since generation %d", c.To, tally(c.Added), tally(c.Changed), tally(c.Removed), c.From)
	}
}
