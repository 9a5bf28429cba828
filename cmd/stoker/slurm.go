package main

import (
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"stoker.dev/cmd/stoker/internal/slurm"
	"stoker.dev/internal/api"
)

// hookToken is the file with the token of Slurm's hooks, beside the site's config
// file: that one is for all users, and an admin's token is not.
const hookToken = "slurm.token"

// slurmCommand is what the hooks of Slurm run.
func (a *app) slurmCommand() *cobra.Command {
	cmd := slurm.Command(slurm.Env{
		Controller: a.hooksController, Node: a.node, Getenv: a.env, Note: a.console.Note,
		Out: func() io.Writer { return a.stdout },
	}, usagef)
	group(cmd)
	return cmd
}

// hooksController is the controller as the hooks call it: with their own token if
// there is one that they may read, and none is named.
func (a *app) hooksController() (*api.Controller, error) {
	if a.flags.TokenFile == "" && a.env("STOKER_TOKEN_FILE") == "" {
		path := filepath.Join(filepath.Dir(a.etc), hookToken)
		if f, err := os.Open(path); err == nil {
			_ = f.Close() // it was only tried
			a.chosen.TokenFile = path
		}
	}
	return a.controller()
}
