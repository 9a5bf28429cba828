package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"stoker.dev"
	"stoker.dev/internal/api"
)

const (
	renewEvery   = 5 * time.Second // a claim lives 20 s without
	renewTimeout = 5 * time.Second
)

// submission is one run of submit.
type submission struct {
	a     *app
	c     *api.Controller
	n     *api.Node
	req   api.ClaimRequest
	view  string
	ahead readAhead
	ready readyAt
	argv  []string
	undo  []func(context.Context) // the last first
	mount string                  // STOKER_MOUNT
	own   string                  // of it, what was made here; "" = nothing
}

func (a *app) submitCommand() *cobra.Command {
	s := &submission{a: a}
	var datasets []string
	var sel api.Selection
	var deadline, grace time.Duration
	cmd := &cobra.Command{
		Use:   "submit --dataset NAME|URI[@GEN][=DIR]... -- CMD...",
		Short: "run a command once its datasets are on the workers",
		Long: `Claims the datasets, waits until they are Ready, mounts them on this node and
runs the command in the foreground; its exit status is submit's. STOKER_MOUNT is
the dataset's root (of several: a folder with one sub-folder for each), and
STOKER_JOB the job's id. Everything is let go when the command ends.

If the data is not there by the --deadline, or cannot be had, --on-miss decides:
start runs the command anyway, reading the rest from the store; wait waits on;
fail gives up (exit code 9 for the deadline).

With --ready-at the command begins before all of its data is there: the load goes
on, and what the command reads goes first. auto begins when the load, at its
present rate, stays ahead of a command that reads everything once at --read-rate.

Of several datasets the job gets all or none: while they do not all fit it waits
in the queue of the cluster, and holds nothing. 'stoker jobs' shows its place,
'stoker status JOB' what it waits for. What can never fit is refused at once
(exit code 8).` + selectionWords + `
All of a dataset is mounted: what was not taken is read from the store.
` + layoutHelp + ` The job's node is this one.
` + samplerHelp,
		Example: `  stoker submit --dataset imagenet -- python train.py
  stoker submit --dataset imagenet=/data --dataset labels@3 --deadline 10m --on-miss fail -- ./train.sh
  stoker submit --dataset imagenet --ready-at auto --read-rate 800MB/s -- python train.py
  stoker submit --dataset imagenet --path train --sampler pytorch:seed=0,world=8 --deadline 0 -- torchrun --nproc-per-node 8 train.py
  stoker submit --dataset s3://bucket/prefix -- sh -c 'ls "$STOKER_MOUNT"'`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 || cmd.ArgsLenAtDash() != 0 {
				return usagef(cmd, "a command is needed, behind --")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			s.argv = args
			for _, d := range datasets {
				ref, err := parseRef(d)
				if err != nil {
					return err
				}
				s.req.Datasets = append(s.req.Datasets, ref)
			}
			if len(datasets) == 0 {
				return usagef(cmd, "--dataset is needed")
			}
			if err := s.checkFlags(cmd, deadline); err != nil {
				return err
			}
			if err := checkSampler(cmd, &s.req.Sampler); err != nil {
				return err
			}
			if s.req.Selection, err = selected(cmd, &sel); err != nil {
				return err
			}
			if err := checkVerify(cmd, s.req.Verify); err != nil {
				return err
			}
			if err := s.ready.check(cmd, s.req.Verify); err != nil {
				return err
			}
			if err := checkPriority(cmd, s.req.Priority); err != nil {
				return err
			}
			if cmd.Flags().Changed("deadline") {
				seconds := deadline.Seconds()
				s.req.DeadlineSeconds = &seconds
			}
			if grace < 0 || grace > maxGrace {
				return usagef(cmd, "--grace %v: want 0 to %v", grace, maxGrace)
			}
			if cmd.Flags().Changed("grace") {
				seconds := grace.Seconds()
				s.req.GraceSeconds = &seconds
			}
			return s.run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&datasets, "dataset", nil, "dataset that the job reads, where it is mounted behind =; may be repeated")
	selectionFlags(cmd, &sel)
	s.ready.flags(cmd)
	f.StringVar(&s.req.OnMiss, "on-miss", "start", "without the data at the deadline: start, wait or fail")
	f.DurationVar(&deadline, "deadline", 0, "from now on, such as 90s or 10m (default none)")
	f.IntVar(&s.req.Priority, "priority", 0, priorityWords)
	f.DurationVar(&grace, "grace", 0, "how long after its end the data is evicted only after what nobody wanted (default the controller's)")
	f.BoolVar(&s.req.Sync, "sync", false, "list the datasets again first")
	f.StringVar(&s.req.Layout, "layout", "auto", "auto, local (all of it on this node) or spread")
	samplerFlag(cmd, &s.req.Sampler)
	verifyFlag(cmd, &s.req.Verify)
	f.StringVar(&s.req.Job, "job-id", "", "id of the job (default a generated one)")
	f.StringVar(&s.view, "view", "auto", viewWords)
	readAheadFlag(cmd, &s.ahead)
	return cmd
}

func (s *submission) run(ctx context.Context) error {
	if s.req.Job == "" {
		s.req.Job = stoker.NewToken()[:12]
	}
	if err := s.check(); err != nil {
		return err
	}
	var err error
	if s.c, err = s.a.controller(); err != nil {
		return err
	}
	if s.n, err = s.a.node(); err != nil {
		return err
	}
	here, err := s.n.Version(ctx)
	if err != nil {
		return err // nothing could be mounted here: say so before anything is claimed
	}
	if s.req.Layout != "spread" {
		s.req.Nodes = []string{here.ID}
	}
	s.a.console.Line("job %s", s.req.Job)
	st, err := s.a.claim(ctx, s.c, s.req)
	if err != nil {
		if ctx.Err() != nil { // it may have arrived
			s.a.release(ctx, s.c, s.req.Job)
			return errInterrupted
		}
		return err
	}
	defer s.cleanUp(ctx)
	s.undo = append(s.undo, func(ctx context.Context) { s.a.release(ctx, s.c, s.req.Job) })
	started := s.renew(ctx)
	for _, d := range st.Datasets {
		s.a.noteAge(d.Name, d.Generation, d.ListedAt)
	}
	if st, err = s.a.watchUntil(ctx, s.c, s.req.Job, s.ready.enough); err != nil {
		if ctx.Err() != nil {
			return errInterrupted
		}
		return err
	}
	if err := s.settled(st); err != nil {
		return err
	}
	err = s.mountAll(ctx, st)
	if err == nil {
		err = s.stillClaimed(ctx)
	}
	if err != nil {
		if ctx.Err() != nil {
			return errInterrupted
		}
		return err
	}
	return s.execute(ctx, started)
}

// settled says what became of the claim; an error ends the submit.
func (s *submission) settled(st *api.JobStatus) error {
	for _, d := range st.Datasets {
		if d.Certificate != nil {
			s.a.listFailures(d.Certificate.Failed)
		}
	}
	switch st.State {
	case api.JobFailed:
		return jobError(st)
	case api.JobReleased, api.JobGrace:
		return cancelledEarly(st.Job)
	case api.JobWarming:
		if st.ResidentBytes < st.Bytes {
			s.a.console.Note("starting with %d %% of the data here: the rest is on its way, and what is read goes first", percent(st.ResidentBytes, st.Bytes))
		}
	case api.JobDegraded:
		if st.Error != nil {
			s.a.console.Note("starting without all of the data: %s", st.Error.Message)
		} else {
			s.a.console.Note("the deadline has passed with %d %% of the data here: starting, the rest is read from the store", percent(st.ResidentBytes, st.Bytes))
		}
	}
	return nil
}

// stillClaimed fails if the claim was cancelled while the views were made. A
// controller that does not answer is not waited for: its claims live on.
func (s *submission) stillClaimed(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, renewTimeout)
	defer cancel()
	if err := s.c.Renew(ctx, s.req.Job, false); stoker.KindOf(err) == stoker.KindNotExist {
		return cancelledEarly(s.req.Job)
	}
	return nil
}

func cancelledEarly(job string) error {
	return stoker.Errorf(stoker.KindIncomplete, "job", job, "its claim was cancelled before its command began")
}

// renew keeps the claim alive until the submission ends. Closing the channel
// that it returns tells that the command runs.
func (s *submission) renew(ctx context.Context) (started chan struct{}) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx)) // a signal ends the command, not the claim
	started = make(chan struct{})
	done := make(chan struct{})
	s.undo = append(s.undo, func(context.Context) { cancel(); <-done })
	go func() {
		defer close(done)
		tick := time.NewTicker(renewEvery)
		defer tick.Stop()
		runs, begun := started, false
		for lost := false; !lost; {
			select {
			case <-ctx.Done():
				return
			case <-runs:
				runs, begun = nil, true
			case <-tick.C:
			}
			one, stop := context.WithTimeout(ctx, renewTimeout)
			err := s.c.Renew(one, s.req.Job, begun)
			stop()
			begun = begun && err != nil && ctx.Err() == nil
			if err != nil && stoker.KindOf(err) == stoker.KindNotExist {
				lost = true
				select {
				case <-started:
					s.a.console.Note("job %s: its claim has ended; the command goes on, its data may be evicted", s.req.Job)
				default: // whoever watches the job says so
				}
			}
		}
	}()
	return started
}

func (s *submission) cleanUp(ctx context.Context) {
	ctx = context.WithoutCancel(ctx)
	for i := len(s.undo) - 1; i >= 0; i-- {
		s.undo[i](ctx)
	}
}

// mountAll mounts every dataset: one at STOKER_MOUNT, several in folders
// below it, those with =DIR where that says.
func (s *submission) mountAll(ctx context.Context, st *api.JobStatus) error {
	names, err := folders(s.req.Datasets)
	if err != nil {
		return err
	}
	single := len(st.Datasets) == 1
	if single && st.Datasets[0].Dir != "" {
		s.mount, err = mountPoint(st.Datasets[0].Dir)
	} else {
		s.mount, err = s.root()
	}
	if err != nil {
		return err
	}
	for i, d := range st.Datasets {
		dir := s.mount
		if !single {
			dir = filepath.Join(s.mount, names[i])
		}
		if d.Dir != "" {
			if dir, err = mountPoint(d.Dir); err != nil {
				return err
			}
		}
		if err := s.mountOne(ctx, d, dir); err != nil {
			return err
		}
		if d.Dir != "" && !single {
			link := filepath.Join(s.mount, names[i])
			if err := os.Symlink(dir, link); err != nil {
				return stoker.Errorf(stoker.KindInternal, "submit", link, "%w", err)
			}
			s.undo = append(s.undo, func(context.Context) { _ = os.Remove(link) }) // its folder is of this job alone
		}
	}
	return nil
}

// root makes the job's own folder.
func (s *submission) root() (string, error) {
	base, err := filepath.EvalSymlinks(os.TempDir())
	if err == nil {
		base, err = os.MkdirTemp(base, "stoker-"+s.req.Job+"-")
	}
	if err != nil {
		return "", stoker.Errorf(stoker.KindInvalid, "submit", os.TempDir(), "%w: no folder for the mount; set TMPDIR, or say where with =DIR", err)
	}
	s.removeLater(base)
	s.own = base
	return base, nil
}

func (s *submission) removeLater(dir string) {
	s.undo = append(s.undo, func(context.Context) {
		if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
			s.a.console.Note("%s stays behind: %v", dir, err)
		}
	})
}

func (s *submission) mountOne(ctx context.Context, d api.JobDataset, dir string) error {
	own := dir == s.own
	if err := os.Mkdir(dir, 0o755); err == nil {
		own = true
		s.removeLater(dir)
	} else if !errors.Is(err, os.ErrExist) {
		return stoker.Errorf(stoker.KindInvalid, "submit", dir, "%w", err)
	}
	r := api.MountRequest{Dataset: d.Name, Manifest: d.Manifest, Generation: d.Generation, Dir: dir, View: s.view, Holder: s.req.Job, Own: own, KernelReadAheadBytes: s.ahead.bytes}
	r.ReadAs(s.req.Sampler, d.Selection)
	r.KeepTo(d.Private)
	_, err := s.n.Mount(ctx, r)
	if err != nil {
		if ctx.Err() != nil { // it may have been mounted
			_ = s.n.Unmount(context.WithoutCancel(ctx), dir, true)
		}
		return err
	}
	s.undo = append(s.undo, func(ctx context.Context) {
		err := s.n.Unmount(ctx, dir, false)
		if err != nil && stoker.KindOf(err) == stoker.KindHeld || stoker.KindOf(err) == stoker.KindBusy {
			err = s.n.Unmount(ctx, dir, true) // something of the command still runs: it keeps what it has open
		}
		if err != nil && stoker.KindOf(err) != stoker.KindNotExist {
			s.a.console.Note("%s: not unmounted: %v", dir, err)
		}
	})
	return nil
}

// passedOn are the signals that the command gets, too.
var passedOn = []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGCONT, syscall.SIGWINCH}

// execute runs the command to its end, whatever signals come; those that came
// before, and ended ctx, keep it from beginning.
func (s *submission) execute(ctx context.Context, started chan struct{}) error {
	cmd := exec.Command(s.argv[0], s.argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = s.a.stdin, s.a.stdout, s.a.console.w
	cmd.Env = append(s.a.environ, "STOKER_JOB="+s.req.Job, "STOKER_MOUNT="+s.mount)
	signals := make(chan os.Signal, 16) // a burst of them while the command starts
	signal.Notify(signals, passedOn...)
	defer signal.Stop(signals)
	if ctx.Err() != nil {
		return errInterrupted
	}
	if err := cmd.Start(); err != nil {
		kind := stoker.KindInvalid
		if errors.Is(err, os.ErrNotExist) {
			kind = stoker.KindNotExist
		} else if errors.Is(err, os.ErrPermission) {
			kind = stoker.KindDenied
		}
		return stoker.Errorf(kind, "submit", printable(s.argv[0]), "%w", err)
	}
	close(started)
	// From a terminal Ctrl-C and Ctrl-\ reach the command by themselves.
	terminal := term.IsTerminal(int(os.Stdin.Fd()))
	ended := make(chan error, 1) // the one end
	go func() { ended <- cmd.Wait() }()
	for {
		select {
		case sig := <-signals:
			if terminal && (sig == syscall.SIGINT || sig == syscall.SIGQUIT || sig == syscall.SIGWINCH) {
				continue
			}
			_ = cmd.Process.Signal(sig) // it may just have ended
		case err := <-ended:
			return status(cmd, err)
		}
	}
}

// status makes submit's exit status of the command's.
func status(cmd *exec.Cmd, err error) error {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &exit):
		if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			return exitStatus(128 + int(ws.Signal()))
		}
		return exitStatus(exit.ExitCode())
	}
	return stoker.Errorf(stoker.KindInternal, "submit", printable(cmd.Path), "%w", err)
}
