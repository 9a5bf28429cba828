package main

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"stoker.dev"
	"stoker.dev/internal/api"
	"stoker.dev/ufs"
)

// locationFlags say how stores are reached: plain for all of them, or as
// FOLDER=VALUE for the URI that is joined under that folder.
type locationFlags struct {
	endpoint, region, profile perRoot
	pathStyle, anonymous      perRoot // of "true", or a folder
}

func (f *locationFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.Var(&f.endpoint, "endpoint", "URL of the store (default the daemons' AWS environment)")
	flags.Var(&f.region, "region", "region of the store (default the daemons' AWS environment)")
	flags.Var(&f.profile, "profile", "name of the credentials that the daemons have")
	f.pathStyle.word, f.anonymous.word = true, true
	flags.Var(&f.pathStyle, "path-style", "bucket in the path, not in the host name")
	flags.Var(&f.anonymous, "anonymous", "send no credentials")
	for _, name := range []string{"path-style", "anonymous"} {
		flags.Lookup(name).NoOptDefVal = "true"
	}
}

var _ pflag.Value = (*perRoot)(nil)

// perRoot is a flag that may be given once for all roots, and once for each.
type perRoot struct {
	word   bool // a switch: its value is "true", "false" or a folder
	values []string
}

// Set implements pflag.Value. Which folders there are is not known yet.
func (p *perRoot) Set(s string) error {
	p.values = append(p.values, s)
	return nil
}

// String implements pflag.Value.
func (p *perRoot) String() string { return strings.Join(p.values, " ") }

// Type implements pflag.Value. That of a switch shows none in the help.
func (p *perRoot) Type() string {
	if p.word {
		return "bool"
	}
	return "[FOLDER=]VALUE"
}

// split reads a value for one folder, or for all.
func (p *perRoot) split(s string) (folder, value string, one bool) {
	if p.word {
		if s == "true" || s == "false" {
			return "", s, false
		}
		return s, "true", true
	}
	i := strings.IndexByte(s, '=')
	if scheme := strings.Index(s, "://"); i < 0 || scheme >= 0 && scheme < i {
		return "", s, false
	}
	return s[:i], s[i+1:], true
}

// apply gives each root its values. What no root takes is an error.
func (f *locationFlags) apply(op string, roots []api.AddRoot) error {
	for name, set := range map[string]struct {
		of *perRoot
		to func(l *ufs.Location, v string)
	}{
		"endpoint":   {&f.endpoint, func(l *ufs.Location, v string) { l.Endpoint = v }},
		"region":     {&f.region, func(l *ufs.Location, v string) { l.Region = v }},
		"profile":    {&f.profile, func(l *ufs.Location, v string) { l.Profile = v }},
		"path-style": {&f.pathStyle, func(l *ufs.Location, v string) { l.PathStyle = v == "true" }},
		"anonymous":  {&f.anonymous, func(l *ufs.Location, v string) { l.Anonymous = v == "true" }},
	} {
		if err := set.of.apply(op+" --"+name, roots, set.to); err != nil {
			return err
		}
	}
	return nil
}

// unused refuses flags that nothing would take.
func (f *locationFlags) unused(cmd *cobra.Command) error {
	for _, name := range []string{"endpoint", "region", "profile", "path-style", "anonymous"} {
		if cmd.Flags().Changed(name) {
			return usagef(cmd, "--%s is of a store: say which with --ufs URI", name)
		}
	}
	return nil
}

func (p *perRoot) apply(op string, roots []api.AddRoot, to func(*ufs.Location, string)) error {
	given := map[string]bool{}
	for _, single := range []bool{false, true} { // a folder's own value wins, in whatever order
		for _, s := range p.values {
			folder, value, one := p.split(s)
			if one != single {
				continue
			}
			taken := func(r api.AddRoot) bool { return !one && isStore(r.URI) || one && r.Folder == folder }
			switch {
			case given[folder]:
				return stoker.Errorf(stoker.KindInvalid, op, printable(s), "is given twice: once for all, or once for each FOLDER")
			case one && !slices.ContainsFunc(roots, taken):
				return stoker.Errorf(stoker.KindInvalid, op, printable(s), "no URI is joined under the folder %q", folder)
			case one && !slices.ContainsFunc(roots, func(r api.AddRoot) bool { return taken(r) && isStore(r.URI) }),
				!one && value != "" && value != "false" && !slices.ContainsFunc(roots, taken):
				return stoker.Errorf(stoker.KindInvalid, op, printable(s), "is of a store: a file:// folder has none")
			}
			given[folder] = true
			for i := range roots {
				if taken(roots[i]) {
					to(&roots[i].Location, value)
				}
			}
		}
	}
	return nil
}

// isStore reports whether a URI's scheme has endpoints and credentials.
func isStore(uri string) bool { return !strings.HasPrefix(uri, "file://") }
