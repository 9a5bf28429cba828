package main

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/spf13/cobra"

	"stoker.dev"
	"stoker.dev/internal/api"
)

func (a *app) waitCommand() *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use: "wait JOB", Short: "wait until a job's data is there, or will not come",
		Long: `Returns when the job is Ready, Degraded, Failed or Released. A Failed job's exit
code says why. With --timeout, for hooks, it gives up after that time, and when
nobody answers, with exit code 75; the job does not notice, and may be waited for
again.`,
		Example: `  job=$(stoker preload imagenet -o json | jq -r .job)
  stoker wait "$job" && echo ready`,
		Args: oneArg("a job's id"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.controller()
			if err != nil {
				return err
			}
			if timeout < 0 || timeout == 0 && cmd.Flags().Changed("timeout") {
				return usagef(cmd, "--timeout %v: want more than 0", timeout)
			}
			ctx := cmd.Context()
			if timeout > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, timeout)
				defer cancel()
			}
			st, err := a.watch(ctx, c, args[0])
			if err != nil && ctx.Err() != nil && cmd.Context().Err() == nil {
				return requeue{stoker.Errorf(stoker.KindTransient, "job", printable(args[0]), "is not ready after %v: wait again", timeout)}
			}
			if err != nil && timeout > 0 {
				return hook(err)
			} else if err != nil {
				return err
			}
			if err := a.printJob(st); err != nil {
				return err
			}
			if st.State == api.JobFailed {
				return jobError(st)
			}
			return nil
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", 0, "give up after this time, such as 30s (default never)")
	return cmd
}

// jobError is why a job is Failed. It is never nil: a job whose reason is not
// known is no good one.
func jobError(st *api.JobStatus) error {
	if err := st.Error.Err("job", st.Job); err != nil {
		return err
	}
	return stoker.Errorf(stoker.KindInternal, "job", printable(st.Job), "failed, and the controller does not say why: look into its log")
}

const watchAgain = time.Second // after a controller that went away

// claim makes a claim, over restarts of the controller: whoever asks again for
// the same job finds its claim. A controller that is not there at all is an error.
func (a *app) claim(ctx context.Context, c *api.Controller, req api.ClaimRequest) (*api.JobStatus, error) {
	if _, err := c.Version(ctx); err != nil {
		return nil, err
	}
	req.Nonce = stoker.NewToken()
	p := claiming(a.console, req)
	defer p.Done()
	return again(ctx, a.console, func() (*api.JobStatus, error) { return c.Claim(ctx, req, p.Listing) })
}

// again makes a request that may be repeated until it is answered: a controller
// that has stopped or died has a successor, or another one takes its place.
func again[T any](ctx context.Context, c *console, ask func() (*T, error)) (*T, error) {
	for told := false; ; told = true {
		v, err := ask()
		if !api.Lost(err) || ctx.Err() != nil {
			return v, err
		}
		if !told {
			c.Note("%v; waiting for it", err)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(watchAgain):
		}
	}
}

// claiming shows a claim: a URI is listed first.
func claiming(c *console, req api.ClaimRequest) *progress {
	for _, d := range req.Datasets {
		if isURI(d.Name) {
			return newListing(c)
		}
	}
	return newProgress(c, "claiming", askDoctor)
}

// watch follows a job until it is settled, over restarts of the controller.
func (a *app) watch(ctx context.Context, c *api.Controller, job string) (*api.JobStatus, error) {
	return a.watchUntil(ctx, c, job, func(*api.JobStatus) bool { return false })
}

// watchUntil is watch that ends when there is enough, too.
func (a *app) watchUntil(ctx context.Context, c *api.Controller, job string, enough func(*api.JobStatus) bool) (*api.JobStatus, error) {
	p := newProgress(a.console, "waiting for the job", askDoctor)
	defer p.Done()
	seen, told := false, false
	for {
		var early *api.JobStatus
		watching, end := context.WithCancel(ctx)
		st, err := c.Watch(watching, job, func(st api.JobStatus) {
			seen, told = true, false
			p.Job(st)
			if early == nil && enough(&st) {
				early = &st
				end()
			}
		})
		end()
		if early != nil && err != nil && ctx.Err() == nil {
			return early, nil
		}
		if err == nil || ctx.Err() != nil || stoker.KindOf(err) != stoker.KindTransient || !seen {
			return st, errors.Join(err, ctx.Err())
		}
		if !told {
			a.console.Note("%v; waiting for it", err)
			told = true
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(watchAgain):
		}
	}
}

func (a *app) cancelCommand() *cobra.Command {
	return &cobra.Command{
		Use: "cancel JOB", Short: "drop a job's claim",
		Long: `Ends the claim: what no other job needs stops loading, and may be evicted. The
command of a submit that runs already goes on, reading what is still there and
the store for the rest.`,
		Example: `  stoker cancel train-17`,
		Args:    oneArg("a job's id"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.controller()
			if err != nil {
				return err
			}
			return c.Release(cmd.Context(), args[0])
		},
	}
}

// maxReplicas is the most that a controller grants.
const maxReplicas = 16

func (a *app) preloadCommand() *cobra.Command {
	var wait bool
	var steer steering
	f := preloadFlags{req: api.ClaimRequest{Job: stoker.NewToken()[:12], Preload: true}}
	cmd := &cobra.Command{
		Use:   "preload DATASET[@GEN]|URI",
		Short: "bring a dataset onto the workers, and leave it there evictable",
		Long: `Loads every byte of the dataset onto the workers and counts it. With --wait the
certificate is printed: exit code 0 means that every object is resident with
known checksums, 4 that some are not (they are listed), 8 that it does not fit.
Ctrl-C drops the claim; without another one the load stops.

--pause stops a load that runs, for all who wait for it, until --resume or until
another job needs the data; what is there stays. --stop drops your preloads of the
dataset, and the load goes on only if a job needs it.

--bandwidth limits what the load reads from the store, while nobody waits for it who
set no limit or a higher one. Of loads at one store the one with the highest
--priority is served first, then that with the earliest --deadline, which also
bounds how long a lost worker is waited for. 'stoker change JOB' changes all three
while it runs.` + selectionWords + `
The certificate counts those, and names the selection.
` + layoutHelp + `
Of a preload without --nodes, auto is spread, and local is on all workers.`,
		Example: `  stoker preload imagenet --wait
  stoker preload imagenet --wait -o json | jq .residentBytes
  stoker preload imagenet --replicas 2 --verify deep
  stoker preload imagenet --path train --exclude '*.tmp' --wait
  stoker preload imagenet --bandwidth 200MiB/s --priority -10
  stoker preload imagenet --layout local --nodes n1,n2 --wait
  stoker preload imagenet --pause`,
		Args: oneArg("a dataset's name, or a URI"),
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := datasetArg(args[0])
			if err != nil {
				return err
			}
			action, err := steer.action(cmd)
			if err != nil {
				return err
			}
			if action != "" {
				return a.steer(cmd.Context(), ref, action)
			}
			if err := f.read(cmd, ref); err != nil {
				return err
			}
			return a.preload(cmd.Context(), f.req, wait)
		},
	}
	cmd.Flags().BoolVar(&wait, "wait", false, "wait for the certificate and print it")
	cmd.Flags().BoolVar(&f.req.Sync, "sync", false, "list the dataset again first")
	cmd.Flags().BoolVar(&steer.pause, "pause", false, "stop a running load for now")
	cmd.Flags().BoolVar(&steer.resume, "resume", false, "go on with a paused load")
	cmd.Flags().BoolVar(&steer.stop, "stop", false, "drop your preloads of the dataset")
	f.flags(cmd)
	return cmd
}

// preloadFlags are those of a preload that say what is wanted, and how.
type preloadFlags struct {
	req      api.ClaimRequest
	sel      api.Selection
	limit    bandwidth
	deadline time.Duration
}

func (f *preloadFlags) flags(cmd *cobra.Command) {
	selectionFlags(cmd, &f.sel)
	cmd.Flags().IntVar(&f.req.Priority, "priority", 0, "among loads at one store the highest is served first; -1000 to 1000")
	cmd.Flags().DurationVar(&f.deadline, "deadline", 0, "by when it is wanted, from now on, such as 10m (default none)")
	cmd.Flags().Var(&f.limit, "bandwidth", bandwidthWords)
	cmd.Flags().IntVar(&f.req.Replicas, "replicas", 0, "workers that hold each shard (default: as 'dataset set --replicas' says, else 1)")
	cmd.Flags().StringVar(&f.req.Layout, "layout", "auto", "auto, local (all of it on each of --nodes) or spread")
	cmd.Flags().StringSliceVar(&f.req.Nodes, "nodes", nil, nodesWords+" (default all workers)")
	verifyFlag(cmd, &f.req.Verify)
}

// read checks them, and makes the request of them.
func (f *preloadFlags) read(cmd *cobra.Command, ref api.DatasetRef) error {
	req := &f.req
	if req.Replicas < 1 && cmd.Flags().Changed("replicas") || req.Replicas > maxReplicas {
		return usagef(cmd, "--replicas %d: want 1 to %d", req.Replicas, maxReplicas)
	}
	if err := checkLayout(cmd, req, true); err != nil {
		return err
	}
	if err := checkVerify(cmd, req.Verify); err != nil {
		return err
	}
	if err := checkPriority(cmd, req.Priority); err != nil {
		return err
	}
	req.Datasets, req.LimitBytesPerSecond = []api.DatasetRef{ref}, int64(f.limit)
	var err error
	if req.Selection, err = selected(cmd, &f.sel); err != nil {
		return err
	}
	if cmd.Flags().Changed("deadline") {
		seconds := f.deadline.Seconds()
		req.DeadlineSeconds = &seconds
	}
	return nil
}

// verifyFlag lets a job ask for more than that each block is there.
func verifyFlag(cmd *cobra.Command, verify *string) {
	cmd.Flags().StringVar(verify, "verify", "", "deep: Ready only when every byte was read again from the workers' disks and matches its checksum")
}

func checkVerify(cmd *cobra.Command, verify string) error {
	if verify != "" && verify != api.VerifyDeep {
		return usagef(cmd, "--verify %q: want deep", verify)
	}
	return nil
}

func (a *app) preload(ctx context.Context, req api.ClaimRequest, wait bool) error {
	c, err := a.controller()
	if err != nil {
		return err
	}
	st, err := a.claim(ctx, c, req)
	if err == nil && wait {
		for _, d := range st.Datasets {
			a.noteAge(d.Name, d.Generation, d.ListedAt)
		}
		st, err = a.watch(ctx, c, req.Job)
	}
	if err != nil {
		if ctx.Err() != nil {
			a.release(ctx, c, req.Job)
			return errInterrupted
		}
		return err
	}
	if !wait {
		out := struct {
			Job string `json:"job"`
		}{st.Job}
		return a.print(out, func(w io.Writer) { row(w, "job", st.Job) })
	}
	return a.preloaded(st)
}

// preloaded prints how a preload ended.
func (a *app) preloaded(st *api.JobStatus) error {
	if len(st.Datasets) == 0 {
		return jobError(st)
	}
	d := st.Datasets[0]
	said := st.Error.Err("preload", d.Name)
	switch {
	case d.Certificate != nil:
		return a.certified(d.Certificate, said)
	case said != nil: // no load began: there is nothing to certify
		return said
	}
	return a.certified(&api.Certificate{Dataset: d.Name, Generation: d.Generation, Manifest: d.Manifest,
		State: api.CertificateCancelled, Bytes: d.Bytes, ResidentBytes: d.ResidentBytes}, nil)
}

const releaseTimeout = 20 * time.Second

// release drops a claim, also when ctx has ended. What it cannot tell, the
// claim's own end within a minute does.
func (a *app) release(ctx context.Context, c *api.Controller, job string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTimeout)
	defer cancel()
	err := c.Release(ctx, job)
	if err != nil && stoker.KindOf(err) != stoker.KindNotExist {
		a.console.Note("job %s: its claim could not be released and ends within a minute: %v", job, err)
	}
}
