package main

import (
	"cmp"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// upOptions are the flags of up.
type upOptions struct {
	dir, capacity, s3Root string
	window                time.Duration
	workers               int
	allow                 []string // folders
	bandwidth, requests   string   // of under file systems, of the whole cluster
	detach                bool
	changed               func(flag string) bool
}

const (
	maxWorkers    = 64
	leastCapacity = 16 << 20 // below it a worker holds no shard
	defaultWindow = time.Minute
)

// check refuses what no cluster could be made of, before anything is made.
func (o *upOptions) check() error {
	if o.workers < 1 || o.workers > maxWorkers {
		return usagef("--workers %d: want 1 to %d", o.workers, maxWorkers)
	}
	n, err := parseBytes(o.capacity)
	if err != nil {
		return usagef("--capacity: %v", err)
	}
	if n < leastCapacity {
		return usagef("--capacity %s: want 16MiB or more", o.capacity)
	}
	for i, dir := range o.allow {
		if o.allow[i], err = filepath.Abs(dir); err != nil || strings.Contains(o.allow[i], ":") {
			return usagef("--allow-file %s: want a folder without ':' in its name", dir)
		}
	}
	for flag, v := range map[string]string{"ufs-bandwidth": o.bandwidth, "ufs-requests": o.requests} {
		if n, err := parseBytes(strings.TrimSuffix(v, "/s")); o.changed(flag) && v != "" && (err != nil || n < 10) {
			return usagef("--%s %s: is no rate; write 100MB/s or, of requests, 500/s", flag, v)
		}
	}
	if !o.changed("s3-root") {
		return nil
	}
	root, err := filepath.Abs(o.s3Root)
	if err == nil {
		root, err = filepath.EvalSymlinks(root)
	}
	if err != nil {
		return usagef("--s3-root: %v", err)
	}
	if st, err := os.Stat(root); err != nil || !st.IsDir() {
		return usagef("--s3-root %s: is no folder", root)
	}
	o.s3Root = root
	return nil
}

// parseBytes reads a number of bytes as stokerd does.
func parseBytes(s string) (int64, error) {
	number := strings.TrimRightFunc(s, func(r rune) bool { return r < '0' || r > '9' })
	factor, ok := map[string]float64{"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12,
		"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}[strings.ToUpper(strings.TrimSpace(s[len(number):]))]
	f, err := strconv.ParseFloat(number, 64)
	if err != nil || !ok || !(f >= 0 && f*factor <= math.MaxInt64/2) { // a NaN is neither
		return 0, fmt.Errorf("%q is no number of bytes; write 2GiB, 500MB or 1048576", s)
	}
	return int64(f * factor), nil
}

// refuseChanges wants a cluster that runs to be as it is: its processes would
// not learn of another capacity, folder or window.
func (c *cluster) refuseChanges(o *upOptions) error {
	if !slices.ContainsFunc(c.roles(), func(role string) bool { _, alive := c.pid(role); return alive }) {
		return nil
	}
	had, _ := parseBytes(c.Capacity) // a wrong one, 0, is another
	wants, _ := parseBytes(o.capacity)
	window, _ := time.ParseDuration(c.Window) // none is the default
	for _, f := range []struct {
		flag, was, is string
		same          bool
	}{
		{"capacity", c.Capacity, o.capacity, had == wants},
		{"s3-root", cmp.Or(c.S3Root, "none"), o.s3Root, c.S3Root == o.s3Root},
		{"allow-file", cmp.Or(strings.Join(c.Allow, ":"), "none"), strings.Join(o.allow, ":"), slices.Equal(c.Allow, o.allow)},
		{"ufs-bandwidth", cmp.Or(c.Budget, "none"), o.bandwidth, c.Budget == o.bandwidth},
		{"ufs-requests", cmp.Or(c.Requests, "none"), o.requests, c.Requests == o.requests},
		{"return-window", cmp.Or(c.Window, defaultWindow.String()), o.window.String(), o.window == window || c.Window == "" && o.window == defaultWindow},
	} {
		if o.changed(f.flag) && !f.same {
			return usagef("--%s %s: the cluster in %s runs with %s; run 'stoker-dev down --dir %s' first", f.flag, f.is, c.dir, f.was, c.dir)
		}
	}
	return nil
}

// refuseForeign wants the folder of a new cluster to be empty, or not there:
// what lies in it is somebody's.
func refuseForeign(dir string) error {
	entries, err := os.ReadDir(dir)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return usagef("--dir: %v", err)
	}
	if len(entries) > 0 {
		return usagef("--dir %s: is not empty and holds no cluster (no cluster.json): name an empty folder, or one that is not there yet", dir)
	}
	return nil
}
