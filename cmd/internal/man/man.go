// Package man writes the manual pages of a program from what its commands say
// of themselves: a page for each command, in section 1. It is used by one
// goroutine and touches only the folder it is given.
package man

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Write writes the pages of root and of all commands below it into dir, and
// returns their paths. Hidden commands have none.
func Write(dir string, root *cobra.Command, version string) ([]string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	var paths []string
	var walk func(cmd *cobra.Command) error
	walk = func(cmd *cobra.Command) error {
		path := filepath.Join(dir, pageName(cmd)+".1")
		if err := os.WriteFile(path, Page(cmd, version), 0o644); err != nil {
			return err
		}
		paths = append(paths, path)
		for _, sub := range cmd.Commands() {
			if !sub.Hidden && sub.Name() != "help" {
				if err := walk(sub); err != nil {
					return err
				}
			}
		}
		return nil
	}
	return paths, walk(root)
}

// pageName is "stoker-dataset-add".
func pageName(cmd *cobra.Command) string { return strings.ReplaceAll(cmd.CommandPath(), " ", "-") }

// Page is the manual page of one command, in roff.
func Page(cmd *cobra.Command, version string) []byte {
	var b bytes.Buffer
	p := page{&b}
	cmd.InitDefaultHelpFlag()
	p.line(`.TH "%s" "1" "" "%s %s" "%s"`, quoted(strings.ToUpper(pageName(cmd))), quoted(cmd.Root().Name()), quoted(version), quoted(cmd.Root().Name()+" manual"))
	p.line(`.nh`) // names are not hyphenated
	p.line(`.ad l`)
	p.section("NAME")
	p.line(`%s \- %s`, escape(pageName(cmd)), escape(cmd.Short))
	p.section("SYNOPSIS")
	p.line(`.nf`)
	p.line(`\fB%s\fR`, escape(strings.TrimSuffix(cmd.UseLine(), " [flags]")+flagsWord(cmd)))
	p.line(`.fi`)
	p.section("DESCRIPTION")
	p.text(long(cmd))
	p.commands(cmd)
	p.flags("OPTIONS", cmd.NonInheritedFlags())
	p.flags("GLOBAL OPTIONS", cmd.InheritedFlags())
	if cmd.Example != "" {
		p.section("EXAMPLES")
		p.text(cmd.Example)
	}
	p.also(cmd)
	return b.Bytes()
}

func flagsWord(cmd *cobra.Command) string {
	if cmd.HasAvailableFlags() && !strings.Contains(cmd.Use, "--") {
		return " [OPTIONS]"
	}
	return ""
}

func long(cmd *cobra.Command) string {
	if cmd.Long != "" {
		return cmd.Long
	}
	return cmd.Short + "."
}

// page writes roff.
type page struct{ b *bytes.Buffer }

func (p page) line(format string, args ...any) { fmt.Fprintf(p.b, format+"\n", args...) }

func (p page) section(name string) { p.line(".SH %s", escape(name)) }

// text sets paragraphs; lines that begin with blanks stand as they are.
func (p page) text(s string) {
	asIs := false
	set := func(on bool) {
		if on && !asIs {
			p.line(".PP\n.RS 4\n.nf")
		} else if !on && asIs {
			p.line(".fi\n.RE")
		}
		asIs = on
	}
	for _, l := range strings.Split(strings.Trim(s, "\n"), "\n") {
		switch {
		case strings.HasPrefix(l, "  "):
			set(true)
			p.line("%s", escape(l[2:]))
		case strings.TrimSpace(l) == "":
			set(false)
			p.line(".PP")
		default:
			set(false)
			p.line("%s", escape(l))
		}
	}
	set(false)
}

func (p page) commands(cmd *cobra.Command) {
	first := true
	for _, sub := range cmd.Commands() {
		if sub.Hidden || sub.Name() == "help" {
			continue
		}
		if first {
			p.section("COMMANDS")
			first = false
		}
		p.line(".TP\n\\fB%s\\fR(1)\n%s", escape(pageName(sub)), escape(sub.Short))
	}
}

func (p page) flags(title string, set *pflag.FlagSet) {
	first := true
	set.VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		if first {
			p.section(title)
			first = false
		}
		kind, usage := pflag.UnquoteUsage(f)
		name := `\fB` + escape("--"+f.Name) + `\fR`
		if f.Shorthand != "" {
			name = `\fB` + escape("-"+f.Shorthand) + `\fR, ` + name
		}
		if kind != "" {
			name += ` \fI` + escape(kind) + `\fR`
		}
		p.line(".TP\n%s\n%s%s", name, escape(usage), escape(fallback(f)))
	})
}

// fallback is the default of a flag, where it is not nothing and its usage does
// not tell.
func fallback(f *pflag.Flag) string {
	switch f.DefValue {
	case "", "0", "0s", "false", "[]":
		return ""
	}
	if strings.Contains(f.Usage, "(default") {
		return ""
	}
	return " (default " + f.DefValue + ")"
}

func (p page) also(cmd *cobra.Command) {
	var names []string
	if cmd.HasParent() {
		names = append(names, pageName(cmd.Parent()))
		for _, sibling := range cmd.Parent().Commands() {
			if sibling != cmd && !sibling.Hidden && sibling.Name() != "help" {
				names = append(names, pageName(sibling))
			}
		}
	}
	if len(names) == 0 {
		return
	}
	for i, n := range names {
		names[i] = `\fB` + escape(n) + `\fR(1)`
	}
	p.section("SEE ALSO")
	p.line("%s", strings.Join(names, ", "))
}

// escape makes text stand as it is: no request, no escape sequence, and '-' as
// it is typed.
func escape(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`, "'", `\(aq`, "`", "\\(ga", "^", `\(ha`, "~", `\(ti`).Replace(s)
	if strings.HasPrefix(s, ".") {
		s = `\&` + s
	}
	return s
}

// quoted escapes for an argument in quotation marks.
func quoted(s string) string { return strings.ReplaceAll(escape(s), `"`, `\(dq`) }
