package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"stoker.dev/internal/api"
)

// completeWithin is how long a shell waits for names: who types does not wait.
const completeWithin = time.Second

// completions tells all commands below root what may follow. Names come from
// the controller; without one there are none, and no word about it.
func (a *app) completions(root *cobra.Command) {
	dataset := a.first(a.datasetNames)
	for path, f := range map[string]cobra.CompletionFunc{
		"status": a.first(a.jobNames, a.datasetNames), "wait": a.first(a.activeJobs), "cancel": a.first(a.activeJobs),
		"dataset show": dataset, "dataset sync": dataset, "dataset set": dataset, "dataset rm": dataset, "preload": dataset, "verify": dataset, "evict": dataset,
		"pin": dataset, "unpin": dataset, "release": a.first(a.activeJobs), "claim": cobra.NoFileCompletions,
		"mount": a.mountWords, "umount": a.first(a.mountedFolders),
		"completion": cobra.FixedCompletions([]string{"bash", "zsh", "fish"}, cobra.ShellCompDirectiveNoFileComp),
		"jobs":       cobra.NoFileCompletions, "workers": cobra.NoFileCompletions, "workers drain": a.first(a.workerIDs), "workers undrain": a.first(a.workerIDs), "version": cobra.NoFileCompletions,
		"doctor": cobra.NoFileCompletions, "dataset ls": cobra.NoFileCompletions, "dataset add": cobra.NoFileCompletions,
	} {
		if cmd, rest, err := root.Find(strings.Fields(path)); err == nil && len(rest) == 0 {
			cmd.ValidArgsFunction = f
		}
	}
	a.flagWords(root, "", "output", "table", "json", "yaml")
	a.flagWords(root, "submit", "on-miss", "start", "wait", "fail")
	a.flagWords(root, "submit", "layout", layouts...)
	a.flagWords(root, "submit", "view", viewKinds()...)
	a.flagWords(root, "claim", "on-miss", "start", "wait", "fail")
	a.flagWords(root, "claim", "layout", layouts...)
	a.flagWords(root, "preload", "layout", layouts...)
	a.flagWords(root, "mount", "view", viewKinds()...)
	for _, path := range []string{"dataset add", "dataset set"} {
		a.flagWords(root, path, "evict", evictModes...)
		a.flagWords(root, path, "ttl", "default", "never")
	}
	for _, name := range []string{"submit", "claim"} {
		cmd, _, err := root.Find([]string{name})
		if err != nil {
			continue
		}
		_ = cmd.RegisterFlagCompletionFunc("dataset", func(cmd *cobra.Command, _ []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
			return a.names(cmd.Context(), typed, a.datasetNames), cobra.ShellCompDirectiveNoFileComp
		}) // fails only for a flag that is not there: a test looks
	}
}

// workerIDs are those of the workers that answer.
func (a *app) workerIDs(ctx context.Context, c *api.Controller) ([]string, error) {
	all, err := c.Workers(ctx)
	var out []string
	for _, w := range all {
		if w.State != api.WorkerLost {
			out = append(out, w.ID+"\t"+w.State+", "+api.HumanBytes(w.UsedBytes)+" used")
		}
	}
	return out, err
}

// flagWords gives a flag its values.
func (a *app) flagWords(root *cobra.Command, path, flag string, words ...string) {
	if cmd, _, err := root.Find(strings.Fields(path)); err == nil {
		_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)) // likewise
	}
}

// source asks for names: "name\tdescription".
type source func(ctx context.Context, c *api.Controller) ([]string, error)

// first completes the first argument from sources.
func (a *app) first(sources ...source) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return a.names(cmd.Context(), typed, sources...), cobra.ShellCompDirectiveNoFileComp
	}
}

// mountWords completes a dataset, then a folder.
func (a *app) mountWords(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	switch len(args) {
	case 0:
		return a.names(cmd.Context(), typed, a.datasetNames), cobra.ShellCompDirectiveNoFileComp
	case 1:
		return nil, cobra.ShellCompDirectiveFilterDirs
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}

// names asks all sources at most completeWithin, and keeps what begins as
// typed. A name that would need quoting is left out: shells take it apart.
func (a *app) names(ctx context.Context, typed string, sources ...source) []cobra.Completion {
	if ctx == nil {
		ctx = context.Background() // the completion of a shell has none
	}
	ctx, cancel := context.WithTimeout(ctx, completeWithin)
	defer cancel()
	var err error
	if a.chosen, err = a.settings(); err != nil {
		return nil
	}
	c, err := a.controller()
	if err != nil {
		return nil
	}
	var out []cobra.Completion
	for _, ask := range sources {
		words, err := ask(ctx, c)
		if err != nil {
			continue // the others may answer
		}
		for _, w := range words {
			name, _, _ := strings.Cut(w, "\t")
			if strings.HasPrefix(name, typed) && strings.IndexFunc(name, unquoted) < 0 {
				out = append(out, printableWord(w))
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// unquoted finds what a shell would not take as part of a word.
func unquoted(r rune) bool {
	return r <= ' ' || r >= 0x7f || strings.ContainsRune("\"'`$&|;<>()[]{}*?!\\~#", r)
}

func printableWord(w string) string {
	name, about, _ := strings.Cut(w, "\t")
	return name + "\t" + printable(about)
}

func (a *app) datasetNames(ctx context.Context, c *api.Controller) ([]string, error) {
	all, err := c.Datasets(ctx)
	var out []string
	for _, d := range all {
		out = append(out, fmt.Sprintf("%s\tdataset, %s, %d %% resident", d.Name, api.HumanBytes(d.Bytes), percent(d.ResidentBytes, d.Bytes)))
	}
	return out, err
}

func (a *app) jobNames(ctx context.Context, c *api.Controller) ([]string, error) {
	all, err := c.Jobs(ctx)
	return jobWords(all), err
}

func jobWords(all []api.JobLine) (out []string) {
	for _, j := range all {
		out = append(out, fmt.Sprintf("%s\tjob, %s, %s", j.Job, j.State, strings.Join(j.Datasets, ",")))
	}
	return out
}

// activeJobs are those that have not ended.
func (a *app) activeJobs(ctx context.Context, c *api.Controller) ([]string, error) {
	all, err := c.Jobs(ctx)
	all = slices.DeleteFunc(all, func(j api.JobLine) bool {
		return j.State == api.JobReleased || j.State == api.JobGrace || j.State == api.JobFailed
	})
	return jobWords(all), err
}

// mountedFolders asks this node's worker, not the controller.
func (a *app) mountedFolders(ctx context.Context, _ *api.Controller) ([]string, error) {
	n, err := a.node()
	if err != nil {
		return nil, err
	}
	all, err := n.Mounts(ctx)
	var out []string
	for _, m := range all {
		out = append(out, m.Dir+"\t"+m.Dataset)
	}
	return out, err
}
