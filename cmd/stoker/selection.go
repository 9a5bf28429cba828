package main

import (
	"strings"

	"github.com/spf13/cobra"

	"stoker.dev/internal/api"
)

// selectionWords explain the flags of selectionFlags.
const selectionWords = `

--path, --include and --exclude take some of the objects: those at or below a
path, of these those that a pattern includes, without those that one excludes. A
pattern without a slash is compared with each name on an object's path, one with a
slash with the path from the root on; * ? [a-z] stand for parts of a name, ** for
any folders, and what matches a folder matches all below it.`

// selectionFlags lets a command take some of a dataset's objects.
func selectionFlags(cmd *cobra.Command, s *api.Selection) {
	f := cmd.Flags()
	f.StringArrayVar(&s.Paths, "path", nil, "folder or object below the dataset's root; may be repeated (default all)")
	f.StringArrayVar(&s.Include, "include", nil, "pattern of objects to take, such as '*.jpg'; may be repeated (default all)")
	f.StringArrayVar(&s.Exclude, "exclude", nil, "pattern of objects to leave out, such as '*.tmp'; may be repeated")
}

// selected is what the flags say; nil: all.
func selected(cmd *cobra.Command, s *api.Selection) (*api.Selection, error) {
	if s.Empty() {
		return nil, nil
	}
	if _, err := s.Key(); err != nil {
		return nil, usagef(cmd, "%v", err)
	}
	return s, nil
}

// selectionLine is a selection for people.
func selectionLine(s *api.Selection) string {
	var parts []string
	for _, list := range []struct {
		flag string
		of   []string
	}{{"--path ", s.Paths}, {"--include ", s.Include}, {"--exclude ", s.Exclude}} {
		for _, p := range list.of {
			parts = append(parts, list.flag+printable(p))
		}
	}
	return strings.Join(parts, " ")
}
