package main

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"stoker.dev/internal/api"
)

const (
	everybody = "everybody"
	nobody    = "nobody"
)

const readersHelp = `--readers alice,@vision lets only those users and groups read it, besides its owner
and admins: claim it, preload it, mount it, verify it, pin it and see what is in it.
It holds for all that lies below its URIs, however that is asked for, also for other
datasets there. What it is called, and how large it is, all see. Its views are for
their user alone (--umask 0077, unless another is given). nobody is nobody else,
everybody all. Users are called as on the nodes, or in the controllers' token file;
who is in a group the controller's host, or the node, knows.`

// parseReaders reads --readers.
func parseReaders(cmd *cobra.Command, text string) (req api.ReadersRequest, err error) {
	switch text {
	case everybody:
		return api.ReadersRequest{Everybody: true}, nil
	case nobody:
		return api.ReadersRequest{Readers: []string{}}, nil
	}
	for _, name := range strings.Split(text, ",") {
		switch name = strings.TrimSpace(name); {
		case strings.HasPrefix(name, "+"):
			req.Add = append(req.Add, name[1:])
		case strings.HasPrefix(name, "-"):
			req.Remove = append(req.Remove, name[1:])
		default:
			req.Readers = append(req.Readers, name)
		}
	}
	all := slices.Concat(req.Readers, req.Add, req.Remove)
	if req.Readers != nil && len(all) > len(req.Readers) {
		return req, usagef(cmd, "--readers %q: want a list, such as alice,@vision, or changes of it, such as +bob,-alice, not both", text)
	}
	if slices.ContainsFunc(all, func(name string) bool { return name == "" || name == "@" || name == everybody || name == nobody }) {
		return req, usagef(cmd, "--readers %q: want users and groups, such as alice,@vision, or %s, or %s", text, nobody, everybody)
	}
	return req, nil
}

// readersText says who may read a dataset.
func readersText(d *api.DatasetDetail) string {
	text := everybody
	if len(d.Readers) > 0 {
		others := slices.DeleteFunc(slices.Clone(d.Readers), func(name string) bool { return name == d.Owner })
		text = strings.Join(append([]string{d.Owner}, others...), ", ")
	}
	if len(d.ReadersOf) > 0 {
		text += " who may read " + strings.Join(d.ReadersOf, ", ") + ", too: it has the same data, or a part of it"
	}
	return text
}
