package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"sigs.k8s.io/yaml"

	"stoker.dev"
	"stoker.dev/cmd/stoker/internal/live"
	"stoker.dev/internal/api"
)

// statusFlags are those of status.
type statusFlags struct {
	watch, wide, failed, reads bool
	interval                   time.Duration
	after                      string
	limit                      int
}

const (
	screenEvery = time.Second     // how often a screen is drawn
	blockEvery  = 5 * time.Second // how often a log may get a block
	leastEvery  = 100 * time.Millisecond
)

func (a *app) statusCommand() *cobra.Command {
	var f statusFlags
	cmd := &cobra.Command{
		Use: "status [JOB|DATASET]", Short: "show datasets, jobs and workers, or one of them",
		Long: `Shows what goes on: which datasets are resident and how much of them, what the
jobs wait for, what the workers have room for. With the name of a job or a
dataset it shows that one in detail.

--watch stays and shows it anew each second: with rates, the time that loads take
yet, and what is read from the store and among the workers. On a terminal it is
drawn over the whole screen until Ctrl-C (exit code 130), and leaves it as it
was; elsewhere a block is printed when something changed, with -o json one line
of JSON, with -o yaml one document.

With --reads it shows what each worker did since it started, of all datasets or of
one: READ requests of its views, bytes that reads had from its disk, and bytes
that it brought in, for reads and loads, from other workers and the store. What
the kernel has in its page cache, and what kernel views have of the disk, asks no
worker and is not counted. A dataset's figures are those of all its generations;
NAME@GEN has those of one.

The second table is what came before anybody asked for it (AHEAD): how much of
that was read since (USED), may be read yet, or went, or was left when the last
view was unmounted, unread (WASTED). Much WASTED: readers stop early, or the space
is too small. The third says for whom it came: readers in order (streams), files
of who reads one after the other as listed (files), readers of pieces at equal
distances (steps), of the directory at the end of a container (footers), and
epochs of jobs whose sampler is known (epochs).

RANDOM are reads in no order of large files, for which no more came than they
asked for; SPARED is what else would have come, the rest of 4 MiB each. A job
with many of them reads a preloaded dataset far faster.

The last is how long readers waited for bytes that were not here, added up over
all of them, so that 8 readers may wait 8 seconds in one:
  STORE  the store was asked: it is far or slow, or 'stoker preload' did not run
  PEERS  another worker was looked for, sent, or fetched it for this one
  DISK   space was made, an older generation copied, or what a disk lost fetched
  QUEUE  --memory was used up, or the limits of the store (--ufs-bandwidth,
         --ufs-requests, what it throttles) had this one wait its turn
  LOADS  a preload had begun to bring it: the job began before its data was here

With --failed it lists the objects of a dataset that its loads could not bring
in, and why, by path: --limit of them, from the first or behind the path --after.

Names that do not fit into the terminal end in an ellipsis; --wide, a pipe, and
-o json or yaml show all of them.`,
		Example: `  stoker status
  stoker status imagenet
  stoker status --watch
  stoker status train-17 --watch --interval 5s
  stoker status imagenet --failed --limit 100
  stoker status --reads
  stoker status --reads imagenet
  stoker status --reads imagenet -o json | jq 'map(.reads.waits.ufsSeconds) | add'
  stoker status -o json | jq '.workers[] | {id, ufs: .reads.ufsBytes}'`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usagef(cmd, "one job or dataset at most")
			}
			if len(args) == 1 && args[0] == "" {
				return usagef(cmd, "the job or dataset is empty: leave it out for all of them")
			}
			if f.reads && (f.watch || f.failed) {
				return usagef(cmd, "--reads is shown once: it goes without --watch and --failed")
			}
			if cmd.Flags().Changed("interval") && (!f.watch || f.interval < leastEvery) {
				return usagef(cmd, "--interval %v: goes with --watch, and is %v or more", f.interval, leastEvery)
			}
			return f.paging(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.status(cmd.Context(), f, strings.Join(args, ""))
		},
	}
	cmd.Flags().BoolVarP(&f.watch, "watch", "w", false, "stay, and show it anew again and again")
	cmd.Flags().DurationVar(&f.interval, "interval", 0, "with --watch: how often (default 1s on a terminal, 5s elsewhere)")
	cmd.Flags().BoolVar(&f.reads, "reads", false, "what each worker read since it started, from where, and what readers waited for")
	cmd.Flags().BoolVar(&f.failed, "failed", false, "list the objects that could not be brought in")
	cmd.Flags().StringVar(&f.after, "after", "", "with --failed: those behind this `PATH`")
	cmd.Flags().IntVar(&f.limit, "limit", api.DefaultPage, "with --failed: how many at most")
	wideFlag(cmd, &f.wide)
	return cmd
}

func wideFlag(cmd *cobra.Command, wide *bool) {
	cmd.Flags().BoolVar(wide, "wide", false, "all columns, whole ids, nothing cut")
}

func (a *app) status(ctx context.Context, f statusFlags, name string) error {
	c, err := a.controller()
	switch {
	case err != nil:
		return err
	case f.failed:
		return a.listFailed(ctx, c, f, name)
	case f.reads && name != "":
		return a.readsOf(ctx, c, f, name)
	case f.watch:
		return a.watchStatus(ctx, c, f, name)
	case name != "":
		return a.statusOf(ctx, c, name)
	}
	st, err := c.Status(ctx)
	if err != nil {
		return err
	}
	fill(&st)
	if f.reads {
		return a.print(st.Workers, func(w io.Writer) {
			a.tables(w, f.wide, readTables(ofAll(st.Workers), f.wide)...)
		})
	}
	return a.print(st, func(w io.Writer) {
		all := []*live.Table{datasetTable(st.Datasets, f.wide), jobTable(st.Jobs, f.wide), workerTable(st.Workers, f.wide)}
		all = append(all, diskTable(st.Workers, f.wide)...)
		a.tables(w, f.wide, append(all, budgetTable(st.Workers)...)...)
	})
}

// fill makes lists of those that are not there.
func fill(st *api.Status) {
	st.Jobs, st.Workers, st.Datasets = orEmpty(st.Jobs), orEmpty(st.Workers), orEmpty(st.Datasets)
}

// statusOf shows a job, or else a dataset of that name.
func (a *app) statusOf(ctx context.Context, c *api.Controller, name string) error {
	st, err := c.Job(ctx, name)
	if err == nil {
		return a.printJob(st)
	} else if stoker.KindOf(err) != stoker.KindNotExist {
		return err
	}
	d, err := c.Dataset(ctx, name)
	if stoker.KindOf(err) == stoker.KindNotExist && err != nil {
		return noSuch(name)
	} else if err != nil {
		return err
	}
	return a.printDetail(d)
}

// screen says whether stdout is a terminal that can be drawn on, and which.
func (a *app) screen() (fd int, ok bool) {
	f, isFile := a.stdout.(*os.File)
	if !isFile || !term.IsTerminal(int(f.Fd())) || a.env("TERM") == "dumb" {
		return 0, false
	}
	return int(f.Fd()), true
}

// width is that of the terminal; 0 elsewhere: nothing is cut there.
func (a *app) width() int {
	fd, ok := a.screen()
	if !ok {
		return 0
	}
	w, _ := sizeOf(fd)
	return w
}

// sizeOf is the size of a terminal, or what is common if it does not say.
func sizeOf(fd int) (width, height int) {
	w, h, err := term.GetSize(fd)
	if err != nil || w <= 0 || h <= 0 {
		return 80, 24
	}
	return w, h
}

// unicode reports whether the locale has more than ASCII.
func (a *app) unicode() bool {
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if v := a.env(name); v != "" {
			v = strings.ToLower(v)
			return strings.Contains(v, "utf-8") || strings.Contains(v, "utf8")
		}
	}
	return false
}

// watchStatus shows the status until a signal comes.
func (a *app) watchStatus(ctx context.Context, c *api.Controller, f statusFlags, name string) error {
	fd, isScreen := a.screen()
	o := live.Options{
		Source: a.chosen.Controller, Out: a.stdout, Every: f.interval, Unicode: a.unicode(),
		Screen: isScreen && a.chosen.Output == "table", Color: isScreen && a.env("NO_COLOR") == "",
		Encode: encoder(a.chosen.Output),
		Note:   func(err error) { a.console.Note("%v; waiting for it", err) },
	}
	o.Fetch = func(ctx context.Context) (api.Status, error) {
		st, err := c.Status(ctx)
		if err == nil && name != "" {
			st, err = only(st, name)
		}
		fill(&st)
		return st, err
	}
	if o.Every == 0 {
		o.Every = blockEvery
	}
	if o.Screen {
		if f.interval == 0 {
			o.Every = screenEvery
		}
		o.Size = func() (int, int) { return sizeOf(fd) }
		resized, suspend := make(chan os.Signal, 1), make(chan os.Signal, 1) // one of each is as good as several
		signal.Notify(resized, syscall.SIGWINCH)
		signal.Notify(suspend, syscall.SIGTSTP)
		defer signal.Stop(resized)
		defer signal.Stop(suspend)
		o.Resized, o.Suspend = resized, suspend
		o.Stop = func() { _ = syscall.Kill(os.Getpid(), syscall.SIGSTOP) } // it comes back with SIGCONT
	}
	err := live.Run(ctx, o)
	if ctx.Err() != nil { // that is how a view ends: no words about it
		return exitStatus(exitCode(errInterrupted))
	}
	return err
}

// only keeps what concerns one job or dataset.
func only(st api.Status, name string) (api.Status, error) {
	if ref, err := datasetArg(name); err == nil {
		name = ref.Name
	}
	out, ok := live.Only(st, name)
	if !ok {
		return out, noSuch(name)
	}
	return out, nil
}

func noSuch(name string) error {
	return stoker.Errorf(stoker.KindNotExist, "status", printable(name), "is neither a job nor a dataset: 'stoker jobs' and 'stoker dataset ls' list them")
}

// encoder prints a status for programs; nil for people.
func encoder(format string) func(api.Status) ([]byte, error) {
	switch format {
	case "json":
		return func(st api.Status) ([]byte, error) {
			body, err := json.Marshal(st)
			return append(body, '\n'), err
		}
	case "yaml":
		return func(st api.Status) ([]byte, error) {
			body, err := yaml.Marshal(st)
			return bytes.Join([][]byte{[]byte("---\n"), body}, nil), err
		}
	}
	return nil
}

func (a *app) jobsCommand() *cobra.Command {
	var wide, ended bool
	var limit int
	cmd := &cobra.Command{
		Use: "jobs", Short: "list the running jobs and those that ended last", Args: noArgs,
		Long: `Lists the jobs that hold or wait for data, and the last that ended. A job is
Planned, Queued (it waits for space), Warming (it is loaded), Ready, Leased (its
command runs), Degraded (it runs without all of its data), Grace, Released or
Failed.

With --ended it lists those that ended, the last ones first, for as long as
Temporal keeps them: when they ended, how many objects were resident, what was
fetched from the store, and how long that took.`,
		Example: `  stoker jobs
  stoker jobs --ended --limit 20
  stoker jobs -o json | jq '.[] | select(.state == "Warming").job'`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.controller()
			if err != nil {
				return err
			}
			if limit < 1 || limit > maxEnded || !ended && cmd.Flags().Changed("limit") {
				return usagef(cmd, "--limit %d: goes with --ended, from 1 to %d", limit, maxEnded)
			}
			if ended {
				return a.endedJobs(cmd.Context(), c, limit, wide)
			}
			all, err := c.Jobs(cmd.Context())
			if err != nil {
				return err
			}
			return a.print(orEmpty(all), func(w io.Writer) { a.tables(w, wide, jobTable(all, wide)) })
		},
	}
	cmd.Flags().BoolVar(&ended, "ended", false, "those that ended, with what their loads came to")
	cmd.Flags().IntVar(&limit, "limit", 100, "with --ended: how many at most")
	wideFlag(cmd, &wide)
	return cmd
}

func (a *app) workersCommand() *cobra.Command {
	var wide bool
	cmd := &cobra.Command{
		Use: "workers", Short: "list the cache workers", Args: noArgs,
		Long: `Lists the workers that the controller knows: live ones, and lost ones as they
were last. USED is what lies in the cache folder, RESERVED what is promised to
loads beyond that. Ids are shortened; --wide and -o json have them whole.

A second table names the disks that are full of others' files, or out of service
(readonly, failed), and why: what is out of service counts in none of the sums.

A third one shows, where --ufs-bandwidth or --ufs-requests limit an under file
system, how much of that all workers use, and whether it is shared by need or,
while Redis does not answer, equally.

A worker that is being drained is 'draining', and 'drained' when it may be stopped.`,
		Example: `  stoker workers
  stoker workers --wide
  stoker workers -o json | jq 'map(.capacityBytes) | add'
  stoker workers -o json | jq '.[] | .id as $w | .disks[]? | select(.state != "ok") | [$w, .dir, .reason]'`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.controller()
			if err != nil {
				return err
			}
			all, err := c.Workers(cmd.Context())
			if err != nil {
				return err
			}
			return a.print(orEmpty(all), func(w io.Writer) {
				tables := append([]*live.Table{workerTable(all, wide)}, diskTable(all, wide)...)
				a.tables(w, wide, append(tables, budgetTable(all)...)...)
			})
		},
	}
	wideFlag(cmd, &wide)
	cmd.AddCommand(a.drainCommand(), a.undrainCommand())
	return cmd
}

func (a *app) datasetLsCommand() *cobra.Command {
	var wide bool
	cmd := &cobra.Command{
		Use: "ls", Short: "list the registered datasets", Args: noArgs,
		Long: `Lists the registered datasets with their current generation: how much that is,
how much of it is on the workers, and how long ago it was listed.`,
		Example: `  stoker dataset ls
  stoker dataset ls -o json | jq -r '.[].name'`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.controller()
			if err != nil {
				return err
			}
			all, err := c.Datasets(cmd.Context())
			if err != nil {
				return err
			}
			return a.print(orEmpty(all), func(w io.Writer) { a.tables(w, wide, datasetTable(all, wide)) })
		},
	}
	wideFlag(cmd, &wide)
	return cmd
}

// tables writes tables with a blank line between, within the terminal's width
// unless they are to be wide.
func (a *app) tables(w io.Writer, wide bool, all ...*live.Table) {
	width := a.width()
	_, isScreen := a.screen()
	if wide {
		width = 0
	}
	for i, t := range all {
		if i > 0 {
			fmt.Fprintln(w)
		}
		for _, line := range t.Lines(width, isScreen && a.env("NO_COLOR") == "") {
			fmt.Fprintln(w, line)
		}
	}
}
