// Command stoker-dev runs a whole stoker cluster on one machine, for laptops,
// tests and the demo: Temporal, Redis, an S3 server over a folder, a controller
// and some workers, each a process of its own. The daemons are the same
// binaries as in a real cluster, wired by the same flags; only this command
// chooses ports and folders by itself. It is a module of its own because the
// embedded servers are heavy.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

// version is set by the build.
var version = "unknown"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	root := rootCommand()
	err := root.ExecuteContext(ctx)
	interrupted := ctx.Err() != nil
	stop()
	var u usage
	switch {
	case err == nil:
		return
	case interrupted && errors.Is(err, context.Canceled):
		fmt.Fprintln(os.Stderr, "stoker-dev: interrupted")
		os.Exit(130)
	case errors.As(err, &u), strings.HasPrefix(err.Error(), "unknown "):
		fmt.Fprintf(os.Stderr, "stoker-dev: %v: see 'stoker-dev --help'\n", err)
		os.Exit(2)
	}
	fmt.Fprintf(os.Stderr, "stoker-dev: %v\n", err)
	os.Exit(1)
}

// usage marks errors of the command line.
type usage struct{ error }

func usagef(format string, args ...any) error { return usage{fmt.Errorf(format, args...)} }

func noArgs(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usagef("%q is not wanted here", args[0])
	}
	return nil
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use: "stoker-dev", Short: "a whole stoker cluster on this machine", Version: version,
		SilenceErrors: true, SilenceUsage: true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
		Example: `  stoker-dev up --dir /tmp/dev --workers 3 --s3-root /srv/buckets --detach
  . /tmp/dev/env && stoker workers
  stoker-dev down --dir /tmp/dev`,
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usage{err} })
	root.AddCommand(upCommand(), startCommand(), downCommand(), demoCommand(), serveCommand(), trainCommand())
	return root
}

func upCommand() *cobra.Command {
	var o upOptions
	cmd := &cobra.Command{
		Use: "up --dir D", Short: "start a cluster, or the rest of it", Args: noArgs,
		Long: `Starts Temporal, Redis, an S3 server (with --s3-root), a controller and workers,
and waits until all are ready. D/env is a shell file that tells stoker where they
are. On a folder that was used before, its data and ports are taken again.
Without --detach it stays until Ctrl-C, which stops everything.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.changed = cmd.Flags().Changed
			return up(cmd.Context(), &o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.dir, "dir", "", "folder of the cluster")
	f.IntVar(&o.workers, "workers", 3, "number of workers")
	f.StringVar(&o.capacity, "capacity", "2GiB", "most bytes of each worker's cache folder")
	f.StringVar(&o.s3Root, "s3-root", "", "serve this folder by S3; its sub-folders are the buckets")
	f.StringArrayVar(&o.allow, "allow-file", nil, "folder whose files every user of the cluster may read as file:///folder datasets; may be repeated (default none)")
	f.StringVar(&o.bandwidth, "ufs-bandwidth", "", "most bytes per second that all workers together take from the store, as 100MB/s (default no limit)")
	f.StringVar(&o.requests, "ufs-requests", "", "most requests per second that they send to it, as 500/s (default no limit)")
	f.DurationVar(&o.window, "return-window", defaultWindow, "how long a load waits for a worker that went away")
	f.BoolVar(&o.detach, "detach", false, "return when all is ready")
	return cmd
}

func startCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use: "start ROLE --dir D", Short: "start one process again: temporal, redis, s3, controller, holder or worker-K",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usagef("one role is needed: temporal, redis, s3, controller, holder or worker-K")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return startRole(cmd.Context(), dir, args[0]) },
	}
	cmd.Flags().StringVar(&dir, "dir", "", "folder of the cluster")
	return cmd
}

func downCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use: "down --dir D", Short: "unmount, stop all processes, keep the data", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return downDir(dir) },
	}
	cmd.Flags().StringVar(&dir, "dir", "", "folder of the cluster")
	return cmd
}
