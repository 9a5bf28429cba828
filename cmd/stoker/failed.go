package main

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"stoker.dev/internal/api"
)

// paging checks the flags of --failed.
func (f *statusFlags) paging(cmd *cobra.Command, args []string) error {
	set := cmd.Flags().Changed
	switch {
	case !f.failed && (set("after") || set("limit")):
		return usagef(cmd, "--after and --limit go with --failed")
	case f.failed && len(args) == 0:
		return usagef(cmd, "--failed is of one dataset: name it")
	case f.failed && f.watch:
		return usagef(cmd, "--failed and --watch do not go together")
	case f.failed && (f.limit < 1 || f.limit > api.MaxPage):
		return usagef(cmd, "--limit %d: want 1 to %d", f.limit, api.MaxPage)
	}
	return nil
}

// listFailed prints a page of the objects that could not be brought in.
func (a *app) listFailed(ctx context.Context, c *api.Controller, f statusFlags, name string) error {
	ref, err := datasetArg(name)
	if err != nil {
		return err
	}
	p, err := c.Failed(ctx, refName(ref), f.after, f.limit)
	if err != nil {
		return err
	}
	p.Failed = orEmpty(p.Failed)
	if p.Next != "" {
		a.console.Note("%d of %d; more: --after %q", len(p.Failed), p.Total, p.Next)
	}
	return a.print(p, func(w io.Writer) {
		t := table(left("PATH"), left("KIND"), cut("REASON"))
		for _, x := range p.Failed {
			t.Row(x.Path, x.Kind, x.Reason)
		}
		a.tables(w, f.wide, t)
	})
}
