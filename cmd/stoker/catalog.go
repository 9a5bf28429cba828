package main

import (
	"io"
	"strings"

	"github.com/spf13/cobra"

	"stoker.dev/internal/api"
)

func (a *app) datasetSyncCommand() *cobra.Command {
	return &cobra.Command{
		Use: "sync NAME", Short: "list a dataset again: what changed is its new generation", Args: oneArg("a dataset's name"),
		Long: `Lists the dataset's prefixes again. If anything was added, changed or removed, the
new listing becomes the current generation: jobs that are submitted from then on
take it, running jobs keep theirs. If nothing has changed no generation is made.
What the workers have of unchanged shards is not fetched again. How many files
were added, changed and removed is said; 'stoker dataset show NAME --changes'
names them.`,
		Example: `  stoker dataset sync imagenet
  stoker submit --sync --dataset imagenet -- python train.py   # the same, first`,
		RunE: func(cmd *cobra.Command, args []string) error {
			name, c, err := a.plainDataset(cmd, args[0])
			if err != nil {
				return err
			}
			p := newListing(a.console)
			d, err := c.SyncDataset(cmd.Context(), name, p.Event)
			p.Done()
			if err != nil {
				return err
			}
			a.noteChanges(d)
			return a.printDetail(d)
		},
	}
}

func (a *app) datasetRmCommand() *cobra.Command {
	return &cobra.Command{
		Use: "rm NAME", Short: "free a dataset's space and forget its name", Args: oneArg("a dataset's name"),
		Long: `Frees what the workers have of all generations of the dataset and takes its name
out of the registry; the store is not touched. Data that a job or a mounted view
holds is refused (exit code 11), and nothing is done.`,
		Example: `  stoker dataset rm imagenet-old`,
		RunE: func(cmd *cobra.Command, args []string) error {
			name, c, err := a.plainDataset(cmd, args[0])
			if err != nil {
				return err
			}
			rep, err := c.RemoveDataset(cmd.Context(), name)
			if err != nil {
				return err
			}
			return a.printFreed(rep)
		},
	}
}

// plainDataset reads a name without a generation.
func (a *app) plainDataset(cmd *cobra.Command, arg string) (string, *api.Controller, error) {
	ref, err := datasetArg(arg)
	if err != nil {
		return "", nil, err
	}
	if ref.Generation != 0 {
		return "", nil, usagef(cmd, "it concerns the whole dataset: leave @%d out", ref.Generation)
	}
	c, err := a.controller()
	return ref.Name, c, err
}

// printFreed prints what an eviction has freed, and who was not reached.
func (a *app) printFreed(rep api.EvictReport) error {
	if len(rep.Missed) > 0 {
		a.console.Note("%d workers did not answer and keep what they have: %s", len(rep.Missed), strings.Join(rep.Missed, ", "))
	}
	return a.print(rep, func(w io.Writer) { row(w, "freed", api.HumanBytes(rep.Bytes)); row(w, "shards", rep.Shards) })
}
