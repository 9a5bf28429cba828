package main

import (
	"io"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"stoker.dev/internal/api"
)

// maxPin is the longest that a controller grants.
const maxPin = 365 * 24 * time.Hour

func (a *app) pinCommand() *cobra.Command {
	var length, reason string
	cmd := &cobra.Command{
		Use:   "pin DATASET[@GEN]",
		Short: "keep a dataset's data from eviction for a time",
		Long: `Holds what the workers have of the dataset, and what comes, until the time is up:
it is not evicted for the space of others, nor by 'stoker evict' without --force.
A pin loads nothing: 'stoker preload' first. It names its owner, its reason and
its end to whoever needs the space, and stays with the generation that it was
made for. Pinning again changes end and reason, counted from now on.`,
		Example: `  stoker pin imagenet --for 2h --reason "sweep 12 resumes tonight"
  stoker pin imagenet@3 --for 7d --reason "paper deadline" -o json | jq -r .until`,
		Args: oneArg("a dataset's name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := datasetArg(args[0])
			if err != nil {
				return err
			}
			d, ok := parseSpan(length)
			switch {
			case length == "":
				return usagef(cmd, "--for is needed, such as 2h or 7d")
			case !ok || d <= 0 || d > maxPin:
				return usagef(cmd, "--for %q: want a time such as 90m, 2h or 7d, a year at most", length)
			case strings.TrimSpace(reason) == "":
				return usagef(cmd, "--reason is needed: those who need the space see it")
			}
			c, err := a.controller()
			if err != nil {
				return err
			}
			p, err := c.Pin(cmd.Context(), refName(ref), api.PinRequest{ForSeconds: d.Seconds(), Reason: reason})
			if err != nil {
				return err
			}
			return a.print(p, func(w io.Writer) { pinRows(w, ref.Name, []api.Pin{p}) })
		},
	}
	cmd.Flags().StringVar(&length, "for", "", "how long from now on, such as 90m, 2h or 7d; a year at most")
	cmd.Flags().StringVar(&reason, "reason", "", "why, for those who need the space")
	return cmd
}

func (a *app) unpinCommand() *cobra.Command {
	var owner string
	cmd := &cobra.Command{
		Use:   "unpin DATASET[@GEN]",
		Short: "end a pin before its time",
		Long: `Ends your pins of the dataset, those of all its generations unless one is named.
The pins of others are theirs to end (exit code 10); root, where it has none
itself, ends all of them, or those of one --owner.`,
		Example: `  stoker unpin imagenet
  sudo stoker unpin imagenet --owner ann`,
		Args: oneArg("a dataset's name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := datasetArg(args[0])
			if err != nil {
				return err
			}
			c, err := a.controller()
			if err != nil {
				return err
			}
			ended, err := c.Unpin(cmd.Context(), refName(ref), owner)
			if err != nil {
				return err
			}
			return a.print(orEmpty(ended), func(w io.Writer) { pinRows(w, ref.Name, ended) })
		},
	}
	cmd.Flags().StringVar(&owner, "owner", "", "whose pins (default yours)")
	return cmd
}

// pinRows shows pins of a dataset.
func pinRows(w io.Writer, dataset string, pins []api.Pin) {
	for _, p := range pins {
		row(w, "pin", refName(api.DatasetRef{Name: dataset, Generation: p.Generation})+", by "+p.Owner+", until "+when(p.Until)+": "+p.Reason)
	}
}

// pinned is how long a dataset's last pin lasts yet; "" without one.
func pinned(d api.DatasetInfo) string {
	var until time.Time
	for _, p := range d.Pins {
		if p.Until.After(until) {
			until = p.Until
		}
	}
	if until.IsZero() {
		return ""
	}
	return span(max(0, time.Until(until)))
}

var days = regexp.MustCompile(`^([0-9]{1,5})d$`)

// parseSpan reads a duration, which may be whole days, too.
func parseSpan(s string) (time.Duration, bool) {
	if m := days.FindStringSubmatch(s); m != nil {
		n, err := strconv.Atoi(m[1])
		return time.Duration(n) * 24 * time.Hour, err == nil
	}
	d, err := time.ParseDuration(s)
	return d, err == nil
}
