package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"stoker.dev"
	"stoker.dev/cmd/stoker/internal/live"
	"stoker.dev/internal/api"
)

const (
	drainEvery    = time.Second      // how often a drain is looked at
	drainPatience = 30 * time.Second // with a controller or a worker that does not answer
)

func (a *app) drainCommand() *cobra.Command {
	var wait, drop bool
	cmd := &cobra.Command{
		Use: "drain WORKER", Short: "have a worker give up what it has, so that it may be stopped", Args: oneArg("a worker's id"),
		Long: `Drains a worker, named by its id or the beginning of it. From now on it takes
nothing new: no loads, no copies, no views. Other workers copy what only it has and
a job, a pin or a view holds; the store is not asked for any of it. What nobody
holds is copied too where others have room without evicting anything, and dropped
where not, or with --drop at once. Then it waits for the views on its node to be
unmounted and for loads that began before. When it has nothing left it is
'drained', and may be stopped for good: no byte is lost with it.

--wait stays until then and says what is missing. Ctrl-C only ends the waiting
(exit code 130): the drain goes on, over restarts of any process, until 'stoker
workers undrain' puts the worker into service again, which keeps what it still
has. If no other worker has room for what is held, --wait ends with exit code 8
and the numbers; the worker stays as it is and keeps the data, and it is tried
again as space comes. The last worker is not drained while somebody holds its data
(exit code 11). Only root and the cluster's operators may (exit code 10).`,
		Example: `  stoker workers drain 1f0c2a --wait
  stoker workers drain 1f0c2a --drop
  stoker workers drain 1f0c2a -o json | jq '.heldBytes, .views'`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.controller()
			if err != nil {
				return err
			}
			st, err := c.Drain(cmd.Context(), args[0], api.Drain{Drop: drop})
			if err != nil {
				return err
			}
			if wait {
				if st, err = a.followDrain(cmd.Context(), c, st); st == nil {
					return err
				}
			}
			if perr := a.print(st, func(w io.Writer) { drainRows(w, st) }); err == nil {
				err = perr
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until it may be stopped")
	cmd.Flags().BoolVar(&drop, "drop", false, "drop what nobody holds at once, though others have room for it")
	return cmd
}

func (a *app) undrainCommand() *cobra.Command {
	return &cobra.Command{
		Use: "undrain WORKER", Short: "put a worker into service again", Args: oneArg("a worker's id"),
		Long: `Ends the drain of a worker, named by its id or the beginning of it: it takes loads
and views again, and keeps what it still has. One that is in service stays so.`,
		Example: `  stoker workers undrain 1f0c2a`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.controller()
			if err != nil {
				return err
			}
			st, err := c.Undrain(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return a.print(st, func(w io.Writer) { drainRows(w, st) })
		},
	}
}

// followDrain waits until a worker is drained, or cannot be. The state comes with
// an error, too, if it is known.
func (a *app) followDrain(ctx context.Context, c *api.Controller, st *api.DrainStatus) (*api.DrainStatus, error) {
	defer a.console.Clear()
	id, said, heard := st.Worker, "", time.Now()
	for {
		done, err := drained(st)
		if done || err != nil && (st.State != api.WorkerLost || time.Since(heard) > drainPatience) {
			return st, err
		}
		if line := drainLine(st); line != said {
			a.console.Draw(line)
			said = line
		}
		select {
		case <-ctx.Done():
			a.console.Note("the drain goes on: 'stoker workers drain %s --wait' follows it, 'stoker workers undrain %s' ends it", live.ShortID(id), live.ShortID(id))
			return nil, errInterrupted
		case <-time.After(drainEvery):
		}
		switch next, err := c.DrainStatus(ctx, id); {
		case err == nil:
			if st = next; st.State != api.WorkerLost { // its restart, or that of the index, is waited for
				heard = time.Now()
			}
		case ctx.Err() == nil && (stoker.KindOf(err) != stoker.KindTransient || time.Since(heard) > drainPatience):
			return nil, err
		}
	}
}

// drained reports whether there is nothing left to wait for.
func drained(st *api.DrainStatus) (bool, error) {
	switch st.State {
	case api.WorkerDrained:
		return true, nil
	case api.WorkerLost:
		return false, stoker.Errorf(stoker.KindTransient, "drain", live.ShortID(st.Worker), "does not answer: the drain goes on when it is back")
	case api.WorkerLive:
		return false, stoker.Errorf(stoker.KindBusy, "drain", live.ShortID(st.Worker), "was put into service again by somebody: drain it again if that is still wanted")
	}
	for _, d := range st.Datasets {
		if d.Error != nil && !d.Moving && d.Error.Kind == stoker.KindNoSpace.String() {
			err := d.Error.Err("drain", live.ShortID(st.Worker))
			return false, stoker.Errorf(stoker.KindNoSpace, "drain", live.ShortID(st.Worker), "%v; it stays draining and keeps the data, and it is tried again as space comes", err)
		}
	}
	return false, nil
}

// drainLine says in one line what a drain waits for.
func drainLine(st *api.DrainStatus) string {
	parts := []string{st.State + " " + live.ShortID(st.Worker)}
	if st.Bytes > 0 {
		parts = append(parts, fmt.Sprintf("%s left, %s of it held", api.HumanBytes(st.Bytes), api.HumanBytes(st.HeldBytes)))
	}
	for _, d := range st.Datasets {
		switch {
		case d.Loading:
			parts = append(parts, "waits for a load of "+d.Dataset)
		case d.Moving:
			parts = append(parts, d.Dataset+" moves")
		case d.Error != nil:
			parts = append(parts, d.Dataset+": "+d.Error.Message)
		}
	}
	for _, v := range st.Views {
		parts = append(parts, "waits for "+viewText(v))
	}
	return strings.Join(parts, "; ")
}

func viewText(v api.DrainView) string {
	text := "the view " + v.Dir + " of " + v.Dataset
	if v.Job != "" {
		return text + " (job " + v.Job + ")"
	}
	return text + fmt.Sprintf(" (uid %d)", v.UID)
}

// drainRows shows how far a drain is.
func drainRows(w io.Writer, st *api.DrainStatus) {
	row(w, "worker", st.Worker)
	row(w, "state", st.State)
	if !st.Since.IsZero() {
		row(w, "asked", "at "+when(st.Since)+" by "+st.By)
	}
	row(w, "left", fmt.Sprintf("%s, %s of it held", api.HumanBytes(st.Bytes), api.HumanBytes(st.HeldBytes)))
	for _, d := range st.Datasets {
		text := d.Dataset + ", " + api.HumanBytes(d.Bytes)
		if len(d.Holders) > 0 {
			text += ", held by " + strings.Join(d.Holders, " and ")
		}
		switch {
		case d.Error != nil:
			text += ": " + d.Error.Message
		case d.Moving:
			text += ": moves"
		}
		row(w, "dataset", text)
	}
	for _, v := range st.Views {
		row(w, "waits for", viewText(v))
	}
}
