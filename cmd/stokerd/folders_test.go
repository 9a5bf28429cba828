package main

import (
	"slices"
	"strings"
	"testing"

	"stoker.dev/cache/store"
)

// Several cache folders come from flags, the environment or the config file,
// and never together with the one of --cache-dir.
func TestFolders(t *testing.T) {
	const want = "/nvme0/a=b=536870912,/nvme1=1073741824"
	for name, args := range map[string][]string{
		"flags":       {"--dir", "/nvme0/a=b=512MiB", "--dir", "/nvme1=1GiB"},
		"one flag":    {"--dir", "/nvme0/a=b=512MiB,/nvme1=1GiB"},
		"config file": {"--config", configFile(t, "dir: /nvme0/a=b=512MiB,/nvme1=1GiB\n")},
	} {
		got, err := outcome(t, append([]string{"worker"}, args...)...)
		if err != nil || got["dir"] != want {
			t.Errorf("%s: %q, %v", name, got["dir"], err)
		}
	}
	t.Setenv("STOKER_DIR", "/nvme0/a=b=512MiB,/nvme1=1GiB")
	if got, err := outcome(t, "worker"); err != nil || got["dir"] != want {
		t.Errorf("environment: %q, %v", got["dir"], err)
	}
	var l folderList
	if err := l.Set("/a=1KiB,/b=2KiB"); err != nil || !slices.Equal(l.folders(), []store.Folder{{Dir: "/a", CapacityBytes: 1024}, {Dir: "/b", CapacityBytes: 2048}}) {
		t.Errorf("%v, %v", l, err)
	}
	for _, wrong := range []string{"", "/a", "/a=", "=1GiB", "/a=much", "/a=1GiB,", "/a=-1"} {
		var l folderList
		if err := l.Set(wrong); err == nil {
			t.Errorf("%q was taken as %v", wrong, l)
		}
	}
	for _, args := range [][]string{{"--cache-dir", "/c"}, {"--capacity", "1GiB"}} {
		root := rootCommand()
		root.SetArgs(append([]string{"worker", "--redis", "r", "--store", t.TempDir()}, args...))
		if err := root.ExecuteContext(t.Context()); exitCode(err) != 2 || !strings.Contains(err.Error(), "--dir has the capacity") {
			t.Errorf("%v beside STOKER_DIR: %v", args, err)
		}
	}
}
