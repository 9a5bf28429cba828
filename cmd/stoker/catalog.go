package main

import (
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"stoker.dev/internal/api"
)

func (a *app) datasetSyncCommand() *cobra.Command {
	var every string
	cmd := &cobra.Command{
		Use: "sync NAME", Short: "list a dataset again, now or on schedule: what changed is its new generation", Args: oneArg("a dataset's name"),
		Long: `Lists the dataset's prefixes again. If anything was added, changed or removed, the
new listing becomes the current generation: jobs that are submitted from then on
take it, running jobs keep theirs. If nothing has changed no generation is made.
What the workers have of unchanged shards is not fetched again. How many files
were added, changed and removed is said; 'stoker dataset show NAME --changes'
names them. A listing that fails makes no generation either: the old one stays
current, and 'stoker dataset show' says why.

With --every it is listed again on schedule from then on, and now; --every off
ends the schedule, and lists nothing. If a sync takes longer than that, the next
one is left out.`,
		Example: `  stoker dataset sync imagenet
  stoker dataset sync imagenet --every 10m
  stoker dataset sync imagenet --every off
  stoker submit --sync --dataset imagenet -- python train.py   # the same, first`,
		RunE: func(cmd *cobra.Command, args []string) error {
			name, c, err := a.plainDataset(cmd, args[0])
			if err != nil {
				return err
			}
			if cmd.Flags().Changed("every") {
				often, err := parseEvery(cmd, every)
				if err != nil {
					return err
				}
				d, err := c.Schedule(cmd.Context(), name, often)
				if err != nil {
					return err
				}
				if often == 0 {
					return a.printDetail(d)
				}
			}
			d, err := a.syncDataset(cmd.Context(), c, name)
			if err != nil {
				return err
			}
			a.noteChanges(d)
			return a.printDetail(d)
		},
	}
	cmd.Flags().StringVar(&every, "every", "", "from now on each `TIME` from 1m to 366 days, such as 10m or 24h; off or 0: no more")
	return cmd
}

// parseEvery reads how often a dataset is to be synced; 0 is never.
func parseEvery(cmd *cobra.Command, s string) (time.Duration, error) {
	if s == "" && !cmd.Flags().Changed("every") || s == "off" || s == "0" {
		return 0, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < minEvery || d > maxEvery {
		return 0, usagef(cmd, "--every %q: want a time from 1m to 366 days, such as 10m or 24h, or off", s)
	}
	return d, nil
}

// The controller refuses what is beyond these.
const (
	minEvery = time.Minute
	maxEvery = 366 * 24 * time.Hour
)

func (a *app) datasetRmCommand() *cobra.Command {
	return &cobra.Command{
		Use: "rm NAME", Short: "free a dataset's space and forget its name", Args: oneArg("a dataset's name"),
		Long: `Frees what the workers have of all generations of the dataset, takes its name out
of the registry and ends its schedule; the store is not touched. Data that a job
or a mounted view holds is refused (exit code 11), and nothing is done.`,
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
