package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"stoker.dev/internal/api"
)

// What would fail behind the load is said before anything is claimed.
func TestSubmitChecksBeforeItClaims(t *testing.T) {
	base, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(base)
	write(t, "plain", "no program")
	write(t, "full/file", "")
	for _, dir := range []string{"empty", "other"} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("empty", "link"); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		dirs    []string
		command string
		code    int
		says    string
	}{
		"no such command":         {command: "./none", code: 3, says: "./none: is not there"},
		"no executable":           {command: "./plain", code: 10, says: "./plain: may not be run"},
		"a folder":                {command: "./full", code: 10, says: "./full: may not be run"},
		"absolute, no command":    {command: base + "/none", code: 3, says: "is not there"},
		"a folder with files":     {dirs: []string{base + "/full"}, code: 2, says: "is not empty"},
		"a file":                  {dirs: []string{base + "/plain"}, code: 2, says: "is not a folder"},
		"a link":                  {dirs: []string{base + "/link"}, code: 2, says: "is not a folder"},
		"below a file":            {dirs: []string{base + "/plain/x"}, code: 2},
		"no parent":               {dirs: []string{base + "/none/x"}, code: 3},
		"the second":              {dirs: []string{base + "/empty", base + "/full"}, code: 2, says: "is not empty"},
		"twice":                   {dirs: []string{base + "/empty", base + "/empty"}, code: 2, says: "one over the other"},
		"one in the other":        {dirs: []string{base + "/empty/x", base + "/empty"}, code: 2, says: "one over the other"},
		"an empty folder":         {dirs: []string{base + "/empty"}, code: 0},
		"a folder yet to be made": {dirs: []string{base + "/new"}, code: 0},
		"names alike":             {dirs: []string{base + "/other", base + "/other2"}, code: 0},
	} {
		t.Run(name, func(t *testing.T) {
			g := submitRig(t, job(api.JobReady))
			args := []string{"submit", "--job-id", "j"}
			for i, dir := range c.dirs {
				args = append(args, "--dataset", string(rune('a'+i))+"="+dir)
			}
			if len(c.dirs) == 0 {
				args = append(args, "--dataset", "a")
			}
			command := c.command
			if command == "" {
				command = "true"
			}
			g.want(c.code, append(args, "--", command)...)
			g.says(c.says)
			if c.code == 0 {
				g.tidy("j")
			} else if g.calledLike("controller") != 0 || strings.Contains(g.stderr.String(), "job j") {
				t.Errorf("calls %v\n%s", g.calls, g.stderr.String())
			}
		})
	}
}
