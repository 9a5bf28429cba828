package main

import (
	"strings"
	"time"

	"github.com/spf13/cobra"

	"stoker.dev"
	"stoker.dev/internal/api"
)

// bandwidth is a flag in bytes a second.
type bandwidth int64

// Set implements pflag.Value.
func (b *bandwidth) Set(s string) error {
	n, err := api.ParseRate(s)
	*b = bandwidth(n)
	return ofFlag(err)
}

// ofFlag is what is wrong with a flag's value: the flag's name stands before it.
func ofFlag(err error) error {
	if e, ok := err.(*stoker.Error); ok {
		return e.Err
	}
	return err
}

// String implements pflag.Value.
func (b *bandwidth) String() string {
	if *b == 0 {
		return "none"
	}
	return api.HumanBytes(int64(*b)) + "/s"
}

// Type implements pflag.Value.
func (b *bandwidth) Type() string { return "rate" }

func (a *app) changeCommand() *cobra.Command {
	var limit bandwidth
	var priority int
	var deadline string
	cmd := &cobra.Command{
		Use: "change JOB", Short: "change a claim's priority, deadline or bandwidth while it waits or loads",
		Long: `Changes what a claim wishes, a preload's too: its place in the queue of those that
wait for space, and its loads while they run. When it returns the workers know.

A load that several claims wait for has the highest of their priorities, the
earliest of their deadlines, and the highest of their bandwidths: one without a
limit lifts it. --bandwidth is what all workers together read from the store for
each of its datasets; what a reader waits for, and what workers have from each
other, does not count. Of loads at one store the one with the higher priority, then
with the earlier deadline, is served first.`,
		Example: `  stoker change train-17 --priority 10
  stoker change "$job" --bandwidth 100MiB/s --deadline 2h
  stoker change "$job" --bandwidth none --deadline none`,
		Args: oneArg("a job's id"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var req api.JobChange
			if cmd.Flags().Changed("priority") {
				req.Priority = &priority
			}
			if cmd.Flags().Changed("bandwidth") {
				n := int64(limit)
				req.LimitBytesPerSecond = &n
			}
			if cmd.Flags().Changed("deadline") {
				seconds := -1.0
				if strings.TrimSpace(deadline) != "none" {
					d, err := time.ParseDuration(deadline)
					if err != nil || d < 0 {
						return usagef(cmd, "--deadline %q: want a time such as 90s or 10m, or none", deadline)
					}
					seconds = d.Seconds()
				}
				req.DeadlineSeconds = &seconds
			}
			if req == (api.JobChange{}) {
				return usagef(cmd, "say what is to change: --priority, --deadline or --bandwidth")
			}
			if err := checkPriority(cmd, priority); err != nil {
				return err
			}
			c, err := a.controller()
			if err != nil {
				return err
			}
			st, err := c.Change(cmd.Context(), args[0], req)
			if err != nil {
				return err
			}
			return a.printJob(st)
		},
	}
	cmd.Flags().IntVar(&priority, "priority", 0, priorityWords)
	cmd.Flags().StringVar(&deadline, "deadline", "", "from now on, such as 90s or 10m; none")
	cmd.Flags().Var(&limit, "bandwidth", bandwidthWords)
	return cmd
}

const bandwidthWords = "most that its load reads from the store, of all workers together, such as 100MiB/s; none"
