package main

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"stoker.dev/internal/testenv"
)

// docs/config.md lists every setting of the daemons.
func TestReferenceIsUpToDate(t *testing.T) {
	root := rootCommand()
	commands := map[string]*cobra.Command{}
	for _, c := range root.Commands() {
		commands[c.Name()] = c
	}
	worker, controller := settingsOf(commands["worker"]), settingsOf(commands["controller"])
	table := func(all map[string]*pflag.Flag, in func(name string) bool) string {
		var b strings.Builder
		b.WriteString("| key and flag | variable | default | meaning |\n|---|---|---|---|\n")
		for _, name := range slices.Sorted(maps.Keys(all)) {
			if in(name) {
				b.WriteString(row(all[name]))
			}
		}
		return b.String()
	}
	both := func(name string) bool { // and of the same meaning
		w, c := worker[name], controller[name]
		return w != nil && c != nil && w.Usage == c.Usage && w.DefValue == c.DefValue
	}
	of := func(mine map[string]*pflag.Flag) string {
		return table(mine, func(n string) bool { return !both(n) })
	}
	doc := filepath.Join("..", "..", "docs", "config.md")
	testenv.Section(t, doc, "worker", of(worker))
	testenv.Section(t, doc, "controller", of(controller))
	testenv.Section(t, doc, "holder", table(settingsOf(commands["hold"]), func(n string) bool { return !strings.HasPrefix(n, "log-") }))
	testenv.Section(t, doc, "both", table(worker, both))
	var b strings.Builder
	b.WriteString("| variable | meaning |\n|---|---|\n")
	for _, v := range slices.Sorted(maps.Keys(outside)) {
		fmt.Fprintf(&b, "| `%s` | %s |\n", v, outside[v])
	}
	testenv.Section(t, doc, "environment alone", b.String())
}

// settingsOf are a daemon's flags that are settings.
func settingsOf(cmd *cobra.Command) map[string]*pflag.Flag {
	cmd.InitDefaultHelpFlag()
	out := map[string]*pflag.Flag{}
	add := func(f *pflag.Flag) {
		if !ownFlag(f.Name) {
			out[f.Name] = f
		}
	}
	cmd.LocalFlags().VisitAll(add)
	cmd.InheritedFlags().VisitAll(add)
	return out
}

func row(f *pflag.Flag) string {
	_, meaning := pflag.UnquoteUsage(f)
	value := f.DefValue
	if before, after, ok := strings.Cut(meaning, " (default "); ok {
		var rest string
		value, rest, _ = strings.Cut(after, ")")
		meaning = before + rest
	}
	return fmt.Sprintf("| `%s` | `%s` | %s | %s |\n", f.Name, variable(f.Name), strings.ReplaceAll(value, "|", `\|`), strings.ReplaceAll(meaning, "|", `\|`))
}
