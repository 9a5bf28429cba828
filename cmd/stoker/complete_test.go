package main

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"stoker.dev"
	"stoker.dev/internal/api"
)

// offered runs what a shell asks for and returns the words, and the directive.
func offered(g *rig, args ...string) (string, string) {
	g.t.Helper()
	g.stdout.b.Reset()
	g.want(0, append([]string{"__complete"}, args...)...)
	var words []string
	lines := strings.Split(strings.TrimSpace(g.stdout.String()), "\n")
	for _, l := range lines[:len(lines)-1] {
		w, _, _ := strings.Cut(l, "\t")
		words = append(words, w)
	}
	return strings.Join(words, " "), lines[len(lines)-1]
}

func namesToOffer() routes {
	return routes{
		"GET /v1/datasets": answer([]api.DatasetInfo{{Name: "imagenet", Bytes: 1 << 30}, {Name: "images\x1b[2J"}, {Name: "speech"}}),
		"GET /v1/workers":  answer([]api.WorkerInfo{{ID: "1f0c", State: api.WorkerLive}, {ID: "2a", State: api.WorkerLost}}),
		"GET /v1/jobs":     answer([]api.JobLine{{Job: "train-1", State: api.JobWarming, Datasets: []string{"a\x1bb"}}, {Job: "train-0", State: api.JobReleased}, {Job: "$(rm)", State: api.JobReady}}),
	}
}

func TestCompletion(t *testing.T) {
	node := routes{"GET /v1/mounts": answer([]api.MountInfo{{MountRequest: api.MountRequest{Dir: "/mnt/a", Dataset: "imagenet"}}})}
	const files, none, dirs = ":0", ":4", ":16"
	for line, want := range map[string][2]string{
		"status |":   {"imagenet speech train-0 train-1", none},
		"status im|": {"imagenet", none}, "status a |": {"", none},
		"wait |": {"train-1", none}, "cancel tr|": {"train-1", none},
		"dataset show |": {"imagenet speech", none}, "preload |": {"imagenet speech", none}, "verify s|": {"speech", none}, "evict |": {"imagenet speech", none},
		"mount |": {"imagenet speech", none}, "mount imagenet |": {"", dirs}, "mount imagenet /x |": {"", none}, "umount |": {"/mnt/a", none},
		"submit --dataset |": {"imagenet speech", none}, "submit --dataset a --dataset s|": {"speech", none}, "dataset set |": {"imagenet speech", none}, "dataset set imagenet --evict |": {"auto keep lfu", none}, "submit --on-miss |": {"start wait fail", none}, "submit --dataset a -- |": {"", files},
		"jobs -o |": {"table json yaml", none}, "jobs |": {"", none}, "workers |": {"drain undrain", none}, "workers drain |": {"1f0c", none}, "workers undrain 1f|": {"1f0c", none}, "doctor |": {"", none}, "completion |": {"bash zsh fish", none}, "mount --view |": {"auto tree kernel", none},
	} {
		g := newRig(t, namesToOffer(), node)
		words := strings.Split(strings.TrimSuffix(line, "|"), " ")
		if got, directive := offered(g, words...); got != want[0] || directive != want[1] {
			t.Errorf("%s: %q %s, want %q %s", line, got, directive, want[0], want[1])
		}
		if strings.Contains(g.stdout.String(), "\x1b") {
			t.Errorf("%s: escapes reach the shell: %q", line, g.stdout.String())
		}
	}
}

// Without a controller, with one that refuses, and with wrong settings, there
// are no names, and no word about it.
func TestCompletionWithoutController(t *testing.T) {
	refuses := routes{"GET /v1/datasets": fail(stoker.KindInternal), "GET /v1/jobs": fail(stoker.KindDenied)}
	for name, g := range map[string]*rig{"nobody": newRig(t, nil, nil), "refuses": newRig(t, refuses, nil)} {
		if got, directive := offered(g, "status", ""); got != "" || directive != ":4" || strings.Contains(g.stderr.String(), "stoker:") {
			t.Errorf("%s: %q %s, stderr %q", name, got, directive, g.stderr.String())
		}
	}
	g := newRig(t, namesToOffer(), nil)
	write(t, g.etc, "nonsense: 1\n")
	if got, _ := offered(g, "status", ""); got != "" {
		t.Errorf("wrong settings: %q", got)
	}
}

// Who types does not wait for a controller that does not answer.
func TestCompletionGivesUp(t *testing.T) {
	stop := make(chan struct{})
	hang := func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-r.Context().Done():
		case <-stop:
		}
	}
	g := newRig(t, routes{"GET /v1/datasets": hang, "GET /v1/jobs": hang}, nil)
	defer close(stop)
	began := time.Now()
	if got, _ := offered(g, "status", ""); got != "" {
		t.Errorf("%q", got)
	}
	if took := time.Since(began); took < completeWithin/2 || took > 10*completeWithin {
		t.Errorf("it took %v", took)
	}
}

// Every command teaches: what it does at length, and an example.
func TestEveryCommandHasAnExample(t *testing.T) {
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Long == "" || !strings.Contains(c.Example, "stoker ") {
			t.Errorf("%s: long %q, example %q", c.CommandPath(), c.Long, c.Example)
		}
		for _, l := range strings.Split(c.Long, "\n") {
			if len(l) > 86 {
				t.Errorf("%s: a line of %d: %q", c.CommandPath(), len(l), l)
			}
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk((&app{}).rootCommand())
}

func TestManualPages(t *testing.T) {
	g := newRig(t, nil, nil)
	dir := filepath.Join(g.dir, "man", "man1")
	g.want(0, "man", dir)
	g.says("pages in " + dir)
	root := (&app{}).rootCommand()
	var walk func(c *cobra.Command)
	n := 0
	walk = func(c *cobra.Command) {
		if c.Hidden || c.Name() == "help" {
			return
		}
		n++
		page := strings.ReplaceAll(c.CommandPath(), " ", "-")
		body, err := os.ReadFile(filepath.Join(dir, page+".1"))
		if err != nil {
			t.Error(err)
			return
		}
		for _, part := range []string{".TH ", ".SH NAME\n", ".SH SYNOPSIS\n", ".SH DESCRIPTION\n", ".SH EXAMPLES\n", `\-\-output\fR`, ".SH GLOBAL OPTIONS"} {
			if part == ".SH GLOBAL OPTIONS" && c == root {
				continue
			}
			if !strings.Contains(string(body), part) {
				t.Errorf("%s has no %q", page, part)
			}
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(root)
	if files, _ := os.ReadDir(dir); len(files) != n || n < 15 {
		t.Errorf("%d pages of %d commands", len(files), n)
	}
	g.want(2, "man")
	g.want(2, "man", filepath.Join(g.etc, "x", strings.Repeat("y", 300)))
}
