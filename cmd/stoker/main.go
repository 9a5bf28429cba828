// Command stoker is what users and scheduler hooks run: it talks to the
// controller's API and, for mounts, to this node's worker over its Unix
// socket. It holds no SDK and no state: whatever it began ends with it, or
// within a minute of its death, but for preloads, pins and hooks' claims, which
// live on by themselves.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"stoker.dev"
)

// version is set by the build.
var version = "unknown"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	a := &app{environ: os.Environ(), etc: "/etc/stoker/config.yaml", stdin: os.Stdin, stdout: os.Stdout, console: newConsole(os.Stderr, os.Environ())}
	code := a.run(ctx, os.Args[1:])
	stop()
	os.Exit(code)
}

// app is one run of the command. It is used by one goroutine; console may be
// used by several.
type app struct {
	environ []string // NAME=value
	etc     string   // path of the site's config file
	stdin   io.Reader
	stdout  io.Writer
	console *console

	flags  settings // as given on the command line
	chosen settings // after environment and files; set before a command runs
	ran    bool     // the command line was understood
}

// run executes one command line and returns the exit code.
func (a *app) run(ctx context.Context, args []string) int {
	root := a.rootCommand()
	root.SetArgs(args)
	root.SetOut(a.stdout)
	root.SetErr(a.console)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	var status exitStatus
	if errors.As(err, &status) {
		return int(status)
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		err = errInterrupted
	} else if known := new(stoker.Error); !a.ran && !errors.As(err, &known) { // cobra's own errors have no kind
		err = usagef(root, "%s", lowerFirst(oneLine(err.Error())))
	}
	a.console.Fail(err)
	return exitCode(err)
}

// errInterrupted ends a command that a signal stopped.
var errInterrupted = errors.New("interrupted")

// exitStatus is the status of the user's own command, passed through.
type exitStatus int

func (s exitStatus) Error() string { return fmt.Sprintf("the command ended with status %d", int(s)) }

// exitCode is the one table from errors to exit codes.
func exitCode(err error) int {
	if errors.Is(err, errInterrupted) {
		return 130
	}
	if again := (requeue{}); errors.As(err, &again) {
		return 75
	}
	switch stoker.KindOf(err) {
	case stoker.KindInvalid:
		return 2
	case stoker.KindNotExist:
		return 3
	case stoker.KindIncomplete:
		return 4
	case stoker.KindTransient, stoker.KindBusy:
		return 5
	case stoker.KindCorrupt:
		return 6
	case stoker.KindStale:
		return 7
	case stoker.KindNoSpace:
		return 8
	case stoker.KindDeadline:
		return 9
	case stoker.KindDenied:
		return 10
	case stoker.KindHeld:
		return 11
	default:
		return 1
	}
}

// usagef makes an error of the command line of cmd.
func usagef(cmd *cobra.Command, format string, args ...any) error {
	return stoker.Errorf(stoker.KindInvalid, "usage", "", "%s: see '%s --help'", fmt.Sprintf(format, args...), cmd.CommandPath())
}

func (a *app) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "stoker",
		Short: "bring datasets to the nodes before their jobs start",
		Long: `stoker brings the dataset of a training job from the object store to the cache
of the nodes before the job starts, keeps it there while it is needed, and
mounts it as an ordinary read-only folder.

Settings come from flags, then STOKER_CONTROLLER, STOKER_SOCKET,
STOKER_TOKEN_FILE and STOKER_OUTPUT, then the keys controller, socket,
token-file and output of $XDG_CONFIG_HOME/stoker/config.yaml, then of
/etc/stoker/config.yaml.

Exit codes: 0 done, 1 internal, 2 usage, 3 not found, 4 incomplete,
5 unavailable (try again), 6 wrong bytes, 7 stale, 8 no capacity, 9 deadline
passed, 10 not permitted, 11 held by others, 75 temporary (hooks: run it again),
130 interrupted.`,
		Example: `  stoker dataset add imagenet s3://datasets/imagenet
  stoker preload imagenet --wait
  stoker submit --dataset imagenet -- python train.py --data '$STOKER_MOUNT'`,
		SilenceErrors: true, SilenceUsage: true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) (err error) {
			a.ran = true
			if cmd.Name() == cobra.ShellCompRequestCmd || cmd.Name() == cobra.ShellCompNoDescRequestCmd {
				return nil // it reads them itself, and is silent about what is wrong
			}
			a.chosen, err = a.settings()
			return err
		},
	}
	group(root)
	p := root.PersistentFlags()
	p.StringVar(&a.flags.Controller, "controller", "", "controller's address: http, https or unix URL (default "+defaultController+")")
	p.StringVar(&a.flags.Socket, "socket", "", "socket of this node's worker (default "+defaultSocket+")")
	p.StringVar(&a.flags.TokenFile, "token-file", "", "file with the bearer token for http and https")
	p.StringVarP(&a.flags.Output, "output", "o", "", "table, json or yaml (default table)")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usagef(cmd, "%s", oneLine(err.Error())) })
	root.SetHelpCommand(a.helpCommand(root))
	root.AddCommand(
		a.submitCommand(), a.statusCommand(), a.waitCommand(), a.changeCommand(), a.cancelCommand(), a.jobsCommand(),
		a.datasetCommand(), a.preloadCommand(), a.verifyCommand(), a.evictCommand(), a.pinCommand(), a.unpinCommand(),
		a.claimCommand(), a.releaseCommand(), a.slurmCommand(),
		a.mountCommand(), a.umountCommand(), a.workersCommand(), a.doctorCommand(), a.completionCommand(root), a.versionCommand(), a.manCommand(root),
	)
	a.completions(root)
	return root
}

// group makes cmd print its help when called alone and refuse words that are
// no command of it.
func group(cmd *cobra.Command) {
	cmd.Args = noArgs
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	cmd.ValidArgsFunction = cobra.NoFileCompletions
}

// noArgs takes nothing but commands below cmd, which cobra has found.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usagef(cmd, "unknown command %q", args[0])
	}
	return nil
}

func (a *app) helpCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use: "help [COMMAND]", Short: "help about a command",
		Long:    `Prints what a command does, its flags and examples: the same as COMMAND --help.`,
		Example: `  stoker help dataset add`,
		RunE: func(cmd *cobra.Command, args []string) error {
			about, rest, err := root.Find(args)
			if err != nil || len(rest) > 0 {
				return usagef(root, "unknown command %q", strings.Join(args, " "))
			}
			return about.Help()
		},
	}
}
