// Command stokerd holds stoker's daemons: `stokerd worker`, one on each node,
// `stokerd controller`, any number of them, and `stokerd hold`, which keeps a
// worker's mounts over its restarts where systemd does not. Every flag can also be given
// as STOKER_NAME in the environment or as a key of the config file; a flag
// wins over the environment, that over the file.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"stoker.dev"
	"stoker.dev/cmd/internal/config"
)

// version is set by the build.
var version = "unknown"

func main() {
	// A crash ends with SIGABRT and not with Go's exit code 2, which here means wrong
	// settings: who starts daemons does not start again what says so.
	debug.SetTraceback("crash")
	os.Exit(run(os.Args[1:]))
}

func run(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	root := rootCommand()
	root.SetArgs(args)
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "stokerd: %v\n", err)
		return exitCode(err)
	}
	return 0
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use: "stokerd", Short: "stoker's daemons: worker, controller, and the holder of mounts", Version: version,
		SilenceErrors: true, SilenceUsage: true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error { return fromOutside(cmd) },
	}
	root.PersistentFlags().String("config", "", "config file (default "+defaultConfig+" if it is there)")
	root.PersistentFlags().String("log-level", "info", "debug, info, warn or error")
	root.PersistentFlags().String("log-format", "text", "text (key=value) or json, one line each on stderr")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usage{err} })
	root.AddCommand(workerCommand(), controllerCommand(), holdCommand(), manCommand(root))
	return root
}

// usage marks errors of the command line.
type usage struct{ error }

func usagef(format string, args ...any) error { return usage{fmt.Errorf(format, args...)} }

func exitCode(err error) int {
	var u usage
	switch {
	case errors.As(err, &u), strings.HasPrefix(err.Error(), "unknown "):
		return 2
	}
	switch stoker.KindOf(err) {
	case stoker.KindInvalid:
		return 2
	case stoker.KindNotExist:
		return 3
	case stoker.KindTransient, stoker.KindBusy:
		return 5
	case stoker.KindNoSpace:
		return 8
	case stoker.KindDenied:
		return 10
	}
	return 1
}

// variable is the environment's name of a flag.
func variable(flag string) string {
	return "STOKER_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// ownFlag reports whether a flag is the command line's alone, no setting.
func ownFlag(name string) bool { return name == "config" || name == "help" || name == "version" }

// fromOutside fills flags that were not given from the environment, then from
// the config file. Keys that no flag has are errors: a typo must not be lost.
func fromOutside(cmd *cobra.Command) error {
	file, err := readConfig(cmd)
	if err != nil {
		return err
	}
	known := map[string]bool{}
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if ownFlag(f.Name) {
			return
		}
		known[f.Name] = true
		where := variable(f.Name)
		value, ok := os.LookupEnv(where)
		if v, there := file[f.Name]; !ok && there {
			value, where, ok = v.Text, v.Where+": "+f.Name, true
		}
		if !ok || f.Changed || err != nil {
			return
		}
		if e := cmd.Flags().Set(f.Name, value); e != nil {
			err = usage{fmt.Errorf("%s: %w", where, cmp.Or(errors.Unwrap(e), e))}
		}
	})
	for _, key := range slices.Sorted(maps.Keys(file)) {
		if !known[key] && err == nil {
			err = usage{fmt.Errorf("%s: no setting is named %q (stokerd %s --help lists them)", file[key].Where, key, cmd.Name())}
		}
	}
	return err
}

const defaultConfig = "/etc/stoker/stokerd.yaml"

func readConfig(cmd *cobra.Command) (map[string]config.Value, error) {
	path, err := cmd.Flags().GetString("config")
	if err != nil {
		return nil, err
	}
	values, err := config.Read(cmp.Or(path, defaultConfig))
	if errors.Is(err, os.ErrNotExist) && path == "" {
		return nil, nil
	} else if err != nil {
		return nil, usage{fmt.Errorf("config: %w", err)}
	}
	return values, nil
}

// logger writes structured lines to where the command's errors go.
func logger(cmd *cobra.Command) (*slog.Logger, error) {
	name, err := cmd.Flags().GetString("log-level")
	if err != nil {
		return nil, err
	}
	format, err := cmd.Flags().GetString("log-format")
	if err != nil {
		return nil, err
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(name)); err != nil {
		return nil, usage{fmt.Errorf("log-level %q: want debug, info, warn or error", name)}
	}
	o := &slog.HandlerOptions{Level: level}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), o)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(cmd.ErrOrStderr(), o)), nil
	}
	return nil, usage{fmt.Errorf("log-format %q: want text or json", format)}
}

// pidFile writes the daemon's process id and returns what removes it.
func pidFile(path string) (func(), error) {
	if path == "" {
		return func() {}, nil
	}
	tmp := path + ".new"
	if err := os.WriteFile(tmp, fmt.Appendf(nil, "%d\n", os.Getpid()), 0o644); err != nil {
		return nil, usage{fmt.Errorf("pid-file: %w", err)}
	}
	if err := os.Rename(tmp, path); err != nil {
		return nil, usage{fmt.Errorf("pid-file: %w", err)}
	}
	return func() { _ = os.Remove(path) }, nil
}

// required names the flags that must have a value.
func required(values map[string]string) error {
	for name, v := range values {
		if v == "" {
			return usage{fmt.Errorf("--%s is needed (or %s)", name, variable(name))}
		}
	}
	return nil
}

// absolute makes a path that outlives a change of folder.
func absolute(path string) string {
	if a, err := filepath.Abs(path); err == nil {
		return a
	}
	return path
}
