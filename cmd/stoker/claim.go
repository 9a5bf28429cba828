package main

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"stoker.dev"
	"stoker.dev/internal/api"
)

// requeue is an error that passes: a hook that ends with its code is run again
// by its scheduler.
type requeue struct{ error }

func (r requeue) Unwrap() error { return r.error }

// hook gives the errors of a hook's command their code: 75 for what passes.
func hook(err error) error {
	if err != nil && (stoker.KindOf(err) == stoker.KindTransient || stoker.KindOf(err) == stoker.KindBusy) {
		return requeue{err}
	}
	return err
}

const (
	minTTL   = time.Second // what a controller grants
	maxTTL   = 30 * 24 * time.Hour
	maxGrace = 24 * time.Hour
)

// claimFlags are those of claim that have to be read.
type claimFlags struct {
	datasets             []string
	deadline, ttl, grace time.Duration
	submitted            string
}

func (a *app) claimCommand() *cobra.Command {
	var f claimFlags
	var sel api.Selection
	var req api.ClaimRequest
	cmd := &cobra.Command{
		Use:   "claim --job-id ID --dataset NAME|URI[@GEN]...",
		Short: "claim datasets for a job of a scheduler, and return at once (for hooks)",
		Long: `Claims the datasets for a job and returns: 'stoker wait' waits for them, 'stoker
release' ends the claim. Nothing has to stay behind to keep it alive; a claim
whose release is lost ends after --ttl.

It may be repeated: the same job id and --submitted are the same claim, which is
found as it is and lives for --ttl from then on. Schedulers use job ids again:
the claim of a later --submitted replaces that of an earlier one. After its
release a claim may be made anew; the data stays for the --grace of the
controller or of the claim unless its space is needed.
` + layoutHelp + `
Name the --nodes once the scheduler has chosen them.
` + samplerHelp + `
Its mounts are told of it: by 'stoker mount --sampler'.

Exit code 75 says that nobody answers now: run it again.` + selectionWords,
		Example: `  stoker claim --job-id "$SLURM_JOB_ID" --submitted "$SUBMIT_TIME" --dataset imagenet
  stoker claim --job-id 18 --dataset imagenet --layout local --nodes n1,n2
  stoker claim --job-id 17 --dataset imagenet --dataset labels@3 --on-miss fail --deadline 30m --ttl 48h`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.read(cmd, &req); err != nil {
				return err
			}
			var err error
			if req.Selection, err = selected(cmd, &sel); err != nil {
				return err
			}
			return hook(a.hookClaim(cmd.Context(), req))
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&req.Job, "job-id", "", "id of the job in its scheduler")
	fs.StringVar(&f.submitted, "submitted", "", "when the scheduler got the job: RFC 3339, or seconds since 1970")
	fs.StringArrayVar(&f.datasets, "dataset", nil, "dataset that the job reads; may be repeated")
	selectionFlags(cmd, &sel)
	fs.StringVar(&req.OnMiss, "on-miss", "start", "without the data at the deadline: start, wait or fail")
	fs.DurationVar(&f.deadline, "deadline", 0, "from submission on, such as 90s or 10m (default none)")
	fs.IntVar(&req.Priority, "priority", 0, priorityWords)
	fs.BoolVar(&req.Sync, "sync", false, "list the datasets again first")
	fs.StringVar(&req.Layout, "layout", "auto", "auto, local or spread")
	fs.StringSliceVar(&req.Nodes, "nodes", nil, nodesWords)
	samplerFlag(cmd, &req.Sampler)
	verifyFlag(cmd, &req.Verify)
	fs.DurationVar(&f.ttl, "ttl", 24*time.Hour, "how long it lives if it is neither repeated nor released")
	fs.DurationVar(&f.grace, "grace", 0, "how long after its release the data is evicted only after what nobody wanted (default the controller's)")
	return cmd
}

const (
	maxPriority   = 1000 // what a controller takes, and the negative of it
	priorityWords = "while space is short the highest is first, then the earliest deadline, then the oldest; -1000 to 1000"
)

func checkPriority(cmd *cobra.Command, n int) error {
	if n < -maxPriority || n > maxPriority {
		return usagef(cmd, "--priority %d: want %d to %d", n, -maxPriority, maxPriority)
	}
	return nil
}

// read makes a request of the flags.
func (f *claimFlags) read(cmd *cobra.Command, req *api.ClaimRequest) error {
	switch {
	case req.Job == "":
		return usagef(cmd, "--job-id is needed")
	case len(f.datasets) == 0:
		return usagef(cmd, "--dataset is needed")
	case !slices.Contains([]string{"start", "wait", "fail"}, req.OnMiss):
		return usagef(cmd, "--on-miss %q: want start or wait or fail", req.OnMiss)
	case f.deadline < 0:
		return usagef(cmd, "--deadline %v: want 0 or more", f.deadline)
	case f.ttl < minTTL || f.ttl > maxTTL:
		return usagef(cmd, "--ttl %v: want %v to %v", f.ttl, minTTL, maxTTL)
	case f.grace < 0 || f.grace > maxGrace:
		return usagef(cmd, "--grace %v: want 0 to %v", f.grace, maxGrace)
	}
	if err := checkJobID(req.Job); err != nil {
		return err
	}
	if err := checkLayout(cmd, req, false); err != nil {
		return err
	}
	if err := checkSampler(cmd, &req.Sampler); err != nil {
		return err
	}
	if err := checkVerify(cmd, req.Verify); err != nil {
		return err
	}
	if err := checkPriority(cmd, req.Priority); err != nil {
		return err
	}
	for _, d := range f.datasets {
		ref, err := datasetArg(d)
		if err != nil {
			return err
		}
		req.Datasets = append(req.Datasets, ref)
	}
	at, ok := parseTime(f.submitted)
	if !ok {
		return usagef(cmd, "--submitted %q: want RFC 3339, or seconds since 1970", f.submitted)
	}
	req.Submitted, req.TTLSeconds = at, f.ttl.Seconds()
	if cmd.Flags().Changed("deadline") {
		seconds := f.deadline.Seconds()
		req.DeadlineSeconds = &seconds
	}
	if cmd.Flags().Changed("grace") {
		seconds := f.grace.Seconds()
		req.GraceSeconds = &seconds
	}
	return nil
}

// parseTime reads what schedulers give for a time; "" is the zero time.
func parseTime(s string) (time.Time, bool) {
	if s = strings.TrimSpace(s); s == "" {
		return time.Time{}, true
	}
	if n, err := strconv.ParseInt(s, 10, 64); err == nil && n > 0 && n < 1<<40 {
		return time.Unix(n, 0).UTC(), true
	}
	at, err := time.Parse(time.RFC3339Nano, s)
	return at.UTC(), err == nil && !at.IsZero()
}

// hookClaim makes or repeats a claim. A controller that goes away meanwhile is
// left to the next try.
func (a *app) hookClaim(ctx context.Context, req api.ClaimRequest) error {
	c, err := a.controller()
	if err != nil {
		return err
	}
	p := claiming(a.console, req)
	st, err := c.Claim(ctx, req, p.Listing)
	p.Done()
	if err != nil {
		return err
	}
	return a.printJob(st)
}

func (a *app) releaseCommand() *cobra.Command {
	var submitted string
	cmd := &cobra.Command{
		Use:   "release JOB",
		Short: "end a job's claim (for hooks)",
		Long: `Ends the claim of a job; its data stays, evictable, and for the grace of the
claim it goes last. It may be repeated: a claim that has ended, or was never made,
is fine. With --submitted the claim of a later submission with the same job id
lives on.

Exit code 75 says that nobody answers now: run it again; a claim whose release is
lost ends after its --ttl.`,
		Example: `  stoker release "$SLURM_JOB_ID" --submitted "$SUBMIT_TIME"`,
		Args:    oneArg("a job's id"),
		RunE: func(cmd *cobra.Command, args []string) error {
			at, ok := parseTime(submitted)
			if !ok {
				return usagef(cmd, "--submitted %q: want RFC 3339, or seconds since 1970", submitted)
			}
			c, err := a.controller()
			if err != nil {
				return err
			}
			if at.IsZero() {
				err = c.Release(cmd.Context(), args[0])
			} else {
				err = c.ReleaseSubmitted(cmd.Context(), args[0], at)
			}
			if err != nil && stoker.KindOf(err) == stoker.KindNotExist {
				return nil
			}
			return hook(err)
		},
	}
	cmd.Flags().StringVar(&submitted, "submitted", "", "that of the claim: RFC 3339, or seconds since 1970")
	return cmd
}
