package main

import (
	"context"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"stoker.dev"
	"stoker.dev/internal/api"
)

// steering are the flags of preload that are for a load that runs.
type steering struct{ pause, resume, stop bool }

// action is what they ask for, "" for nothing. They stand alone.
func (s steering) action(cmd *cobra.Command) (string, error) {
	var asked []string
	for name, on := range map[string]bool{api.SteerPause: s.pause, api.SteerResume: s.resume, api.SteerStop: s.stop} {
		if on {
			asked = append(asked, name)
		}
	}
	slices.Sort(asked)
	if len(asked) == 0 {
		return "", nil
	}
	for _, other := range []string{"wait", "sync", "replicas", "verify", "priority", "deadline", "bandwidth", "path", "include", "exclude", "layout", "nodes"} {
		if cmd.Flags().Changed(other) {
			asked = append(asked, other)
		}
	}
	if len(asked) > 1 {
		return "", usagef(cmd, "--%s do not go together", strings.Join(asked, " and --"))
	}
	return asked[0], nil
}

// steer pauses, resumes or stops a load.
func (a *app) steer(ctx context.Context, ref api.DatasetRef, action string) error {
	if isURI(ref.Name) {
		return stoker.Errorf(stoker.KindInvalid, "preload", printable(ref.Name), "the load of a URI is ended by 'stoker cancel JOB'; only those of registered datasets pause")
	}
	c, err := a.controller()
	if err != nil {
		return err
	}
	rep, err := c.Steer(ctx, refName(ref), action)
	if err != nil {
		return err
	}
	rep.Jobs = orEmpty(rep.Jobs)
	return a.print(rep, func(w io.Writer) {
		row(w, "load", rep.Dataset+" "+rep.State)
		row(w, "jobs", strings.Join(rep.Jobs, ", "))
	})
}
