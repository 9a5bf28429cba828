package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"stoker.dev"
	"stoker.dev/cmd/stoker/internal/live"
	"stoker.dev/internal/api"
)

// examined is a check and where it was made.
type examined struct {
	On string `json:"on"` // node | worker | controller | ufs
	api.Check
}

// diagnosis is what doctor prints.
type diagnosis struct {
	State  string     `json:"state"` // the worst of all
	Checks []examined `json:"checks"`
}

func (a *app) doctorCommand() *cobra.Command {
	var uri string
	var at locationFlags
	cmd := &cobra.Command{
		Use: "doctor", Short: "check this node, its worker, the controller and all they need", Args: noArgs,
		Long: `Looks at this node (kernel, /dev/fuse, limits), asks its worker (cache folder,
space, descriptors, privileges, Redis, manifest store) and the controller (Redis,
Temporal, manifest store, clocks, all workers), all at once and each within some
seconds. Every check is one line: ok, warn (it works, but not as it should) or
fail, and below what is not ok what to do.

Exit code 0 if nothing fails, warnings included, else 5. It shows no secrets: its
output may be sent to whoever helps.

With --ufs URI it looks at that store instead, through the controller and with its
credentials, and registers nothing: can it be reached, do the clocks agree, may it
be listed and read, does it honour pages, folders, ranges and conditions. The
flags are those of 'stoker dataset add'.`,
		Example: `  stoker doctor
  stoker doctor --ufs s3://bucket/prefix --endpoint https://store --profile team-a
  stoker doctor -o json | jq '.checks[] | select(.state != "ok")'`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d := diagnosis{State: api.CheckOK}
			if cmd.Flags().Changed("ufs") {
				if err := a.examineStore(cmd.Context(), &d, uri, &at); err != nil {
					return err
				}
			} else if err := at.unused(cmd); err != nil {
				return err
			} else {
				d = a.diagnose(cmd.Context())
			}
			if err := cmd.Context().Err(); err != nil {
				return err
			}
			if err := a.print(d, func(w io.Writer) { a.writeDiagnosis(w, d, uri) }); err != nil {
				return err
			}
			return d.err()
		},
	}
	cmd.Flags().StringVar(&uri, "ufs", "", "look at this store: s3://bucket/prefix or file:///folder")
	at.add(cmd)
	return cmd
}

// examineStore asks the controller how a store behaves.
func (a *app) examineStore(ctx context.Context, d *diagnosis, uri string, at *locationFlags) error {
	root, err := parseRoot(uri)
	if err != nil {
		return err
	}
	if root.Folder != "" {
		return stoker.Errorf(stoker.KindInvalid, "doctor", printable(uri), "one store at a time: write its URI alone")
	}
	roots := []api.AddRoot{root}
	if err := at.apply("doctor", roots); err != nil {
		return err
	}
	c, err := a.controller()
	if err != nil {
		return err
	}
	rep, err := c.DoctorUFS(ctx, roots[0].Location)
	if err != nil {
		return err
	}
	d.add("ufs", rep.Checks)
	return nil
}

// diagnose examines the three places at the same time.
func (a *app) diagnose(ctx context.Context) diagnosis {
	var node, worker, controller []api.Check
	var workerAt, controllerAt reading
	var all sync.WaitGroup
	all.Go(func() { node = api.Diagnose(ctx, api.CheckTimeout, nodeProbes()) })
	all.Go(func() { worker, workerAt = a.examineWorker(ctx) })
	all.Go(func() { controller, controllerAt = a.examineController(ctx) })
	all.Wait()
	if workerAt.ok && controllerAt.ok {
		worker = append(worker, workerClock(workerAt, controllerAt))
	}
	d := diagnosis{State: api.CheckOK}
	d.add("node", node)
	d.add("worker", worker)
	d.add("controller", controller)
	return d
}

func (d *diagnosis) add(on string, checks []api.Check) {
	for _, c := range checks {
		d.State = api.WorseOf(d.State, c.State)
		d.Checks = append(d.Checks, examined{on, c})
	}
}

// err is the error that a diagnosis stands for.
func (d diagnosis) err() error {
	n := 0
	for _, c := range d.Checks {
		if c.State == api.CheckFail {
			n++
		}
	}
	if n == 0 {
		return nil
	}
	return stoker.Errorf(stoker.KindTransient, "doctor", "", "%d of %d checks failed: do what stands below them", n, len(d.Checks))
}

// reading is what a daemon's clock was ahead of ours, and how well that is
// known.
type reading struct {
	ok            bool
	ahead, within time.Duration
}

// readClock takes the clock of a report that was asked for at before.
func readClock(rep api.DoctorReport, before time.Time) reading {
	trip := time.Since(before)
	return reading{!rep.Time.IsZero(), rep.Time.Sub(before.Add(trip / 2)), trip / 2}
}

func workerClock(worker, controller reading) api.Check {
	c := api.ClockCheck("its clock against the controller's", worker.ahead-controller.ahead, worker.within+controller.within)
	c.Name = "clock"
	return c
}

// examineWorker asks this node's worker.
func (a *app) examineWorker(ctx context.Context) ([]api.Check, reading) {
	n, err := a.node()
	if err != nil {
		return []api.Check{unreachable(err, "--socket is the path of the worker's socket")}, reading{}
	}
	before := time.Now()
	rep, err := n.Doctor(ctx)
	return answered("worker", rep, err, "start 'stokerd worker' on this node (or 'stoker-dev up'), or say where its socket is with STOKER_SOCKET"), readClock(rep, before)
}

// examineController asks the controller.
func (a *app) examineController(ctx context.Context) ([]api.Check, reading) {
	c, err := a.controller()
	if err != nil {
		return []api.Check{unreachable(err, "see --controller and --token-file")}, reading{}
	}
	before := time.Now()
	rep, err := c.Doctor(ctx)
	return answered("controller", rep, err, "start 'stokerd controller' (or 'stoker-dev up'), or say where it is with STOKER_CONTROLLER"), readClock(rep, before)
}

// answered puts a check for the answer itself before those of the report. A
// daemon too old to know the question is no broken one.
func answered(role string, rep api.DoctorReport, err error, start string) []api.Check {
	switch {
	case err != nil && stoker.KindOf(err) == stoker.KindNotExist:
		c := api.Warn("update it: its own checks are missing here", "it answers, but is older than this stoker")
		c.Name = "answer"
		return []api.Check{c}
	case err != nil:
		return []api.Check{unreachable(err, start)}
	case rep.Role != role:
		c := api.Fail("see which address stands in --socket and which in --controller", "a %q answers there, not a %s", rep.Role, role)
		c.Name = "answer"
		return []api.Check{c}
	}
	c := api.Ok("it answers")
	if rep.ID != "" {
		c = api.Ok("worker %s answers", live.ShortID(rep.ID))
	}
	c.Name = "answer"
	return append([]api.Check{c}, rep.Checks...)
}

// unreachable is the check of a daemon that gives no report. What its error
// says to do is the hint.
func unreachable(err error, hint string) api.Check {
	switch stoker.KindOf(err) {
	case stoker.KindDenied:
		hint = "name a --token-file with your token, or call as a user who may"
	case stoker.KindInvalid:
		hint = "see the addresses and files in your settings: 'stoker --help' says where they come from"
	}
	detail, _, _ := strings.Cut(err.Error(), ": start '")
	c := api.Fail(hint, "%s", detail)
	c.Name = "answer"
	return c
}

// writeDiagnosis writes a line for each check.
func (a *app) writeDiagnosis(w io.Writer, d diagnosis, uri string) {
	_, isScreen := a.screen()
	color := isScreen && a.env("NO_COLOR") == ""
	longest := 0
	for _, c := range d.Checks {
		longest = max(longest, live.Width(printable(c.Name)))
	}
	titles := map[string]string{"node": "this node", "worker": "worker at " + a.chosen.Socket, "controller": "controller at " + a.chosen.Controller,
		"ufs": uri + " as the controller at " + a.chosen.Controller + " sees it"}
	last := ""
	for _, c := range d.Checks {
		if c.On != last {
			if last != "" {
				fmt.Fprintln(w)
			}
			last = c.On
			fmt.Fprintln(w, printable(titles[c.On]))
		}
		state := fmt.Sprintf("%-4s", c.State)
		if p := live.State(c.State).Paint; color && p != nil {
			state = p(state)
		}
		name := printable(c.Name)
		fmt.Fprintf(w, "  %s  %s%s  %s\n", state, name, strings.Repeat(" ", longest-live.Width(name)), oneLine(c.Detail))
		if c.State != api.CheckOK && c.Hint != "" {
			fmt.Fprintf(w, "  %s    %s\n", "    ", "-> "+oneLine(c.Hint))
		}
	}
	counts := map[string]int{}
	for _, c := range d.Checks {
		counts[c.State]++
	}
	var sum []string
	for _, s := range slices.Backward([]string{api.CheckFail, api.CheckWarn, api.CheckOK}) {
		sum = append(sum, fmt.Sprintf("%d %s", counts[s], s))
	}
	fmt.Fprintf(w, "\n%s\n", strings.Join(sum, ", "))
}
