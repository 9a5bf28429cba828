package main

import (
	"io"

	"github.com/spf13/cobra"

	"stoker.dev/cmd/stoker/internal/slurm"
)

// slurmCommand is what the hooks of Slurm run.
func (a *app) slurmCommand() *cobra.Command {
	cmd := slurm.Command(slurm.Env{
		Controller: a.controller, Node: a.node, Getenv: a.env, Note: a.console.Note,
		Out: func() io.Writer { return a.stdout },
	}, usagef)
	group(cmd)
	return cmd
}
