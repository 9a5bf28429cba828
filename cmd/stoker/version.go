package main

import (
	"fmt"
	"io"
	"runtime"

	"github.com/spf13/cobra"

	"stoker.dev"
	"stoker.dev/cmd/internal/man"
)

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "print the version", Args: noArgs,
		Long: `Prints the version of this command, with -o json also that of the Go it was built
with.`,
		Example: `  stoker version -o json`,
		RunE: func(*cobra.Command, []string) error {
			v := struct {
				Version string `json:"version"`
				Go      string `json:"go"`
			}{version, runtime.Version()}
			return a.print(v, func(w io.Writer) { fmt.Fprintln(w, "stoker "+v.Version) })
		},
	}
}

func (a *app) completionCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use: "completion bash|zsh|fish", Short: "print the completion script of a shell",
		Long: `Prints a script that teaches a shell to complete commands, flags and the names of
datasets and jobs. The names are asked from the controller, for a second at most.`,
		Example: `  source <(stoker completion bash)
  stoker completion bash > /etc/bash_completion.d/stoker
  stoker completion zsh > "${fpath[1]}/_stoker"
  stoker completion fish > ~/.config/fish/completions/stoker.fish`,
		Args: oneArg("bash, zsh or fish"),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(a.stdout, true)
			case "zsh":
				return root.GenZshCompletion(a.stdout)
			case "fish":
				return root.GenFishCompletion(a.stdout, true)
			}
			return usagef(cmd, "%q is no shell of these: bash, zsh, fish", args[0])
		},
	}
}

// manCommand is for those who make packages.
func (a *app) manCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use: "man DIR", Short: "write the manual pages into a folder", Hidden: true, Args: oneArg("a folder"),
		Long: `Writes a manual page for each command into DIR, made if need be, for packages and
for MANPATH: DIR is a man1 folder.`,
		Example: `  stoker man ./man/man1 && MANPATH=./man man stoker-submit`,
		RunE: func(_ *cobra.Command, args []string) error {
			paths, err := man.Write(args[0], root, version)
			if err != nil {
				return stoker.Errorf(stoker.KindInvalid, "man", printable(args[0]), "%w", err)
			}
			a.console.Line("%d pages in %s", len(paths), args[0])
			return nil
		},
	}
}
