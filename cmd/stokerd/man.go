package main

import (
	"github.com/spf13/cobra"

	"stoker.dev/cmd/internal/man"
)

// manCommand is for those who make packages. It reads no settings: what stands
// in the config file is for the daemons.
func manCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use: "man DIR", Short: "write the manual pages into a folder", Hidden: true, Args: cobra.ExactArgs(1),
		PersistentPreRunE: func(*cobra.Command, []string) error { return nil },
		RunE: func(_ *cobra.Command, args []string) error {
			_, err := man.Write(args[0], root, version)
			return err
		},
	}
}
