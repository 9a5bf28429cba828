package worker

import (
	"bufio"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"stoker.dev/internal/api"
)

// MinMemory is the least that a worker can do with.
const MinMemory = 64 << 20

// AutoMemory is what a worker may use unless it is told: an eighth of what the
// machine, or its cgroup, has; at most 1 GiB, at least MinMemory.
func AutoMemory() int64 {
	return max(MinMemory, min(1<<30, memoryHere()/8))
}

// memoryHere is what the machine has, or what the process's cgroups allow.
func memoryHere() int64 {
	most := int64(math.MaxInt64)
	if f, err := os.Open("/proc/meminfo"); err == nil {
		defer f.Close()
		for s := bufio.NewScanner(f); s.Scan(); {
			if rest, ok := strings.CutPrefix(s.Text(), "MemTotal:"); ok {
				if kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64); err == nil {
					most = kib << 10
				}
				break
			}
		}
	}
	body, _ := os.ReadFile("/proc/self/cgroup") // no cgroups, no limit
	return min(most, cgroupMemory("/sys/fs/cgroup", string(body)))
}

// cgroupMemory is the least limit of the cgroups that /proc/self/cgroup names,
// and of those above them.
func cgroupMemory(root, groups string) int64 {
	least := int64(math.MaxInt64)
	for line := range strings.SplitSeq(strings.TrimSpace(groups), "\n") {
		_, rest, _ := strings.Cut(line, ":")
		controllers, path, ok := strings.Cut(rest, ":")
		if !ok {
			continue
		}
		base, name := root, "memory.max"
		if controllers == "memory" {
			base, name = filepath.Join(root, "memory"), "memory.limit_in_bytes"
		} else if controllers != "" {
			continue
		}
		for p := filepath.Clean("/" + path); ; p = filepath.Dir(p) {
			if body, err := os.ReadFile(filepath.Join(base, p, name)); err == nil {
				if n, err := strconv.ParseInt(strings.TrimSpace(string(body)), 10, 64); err == nil && n > 0 {
					least = min(least, n)
				}
			}
			if p == "/" {
				break
			}
		}
	}
	return least
}

// checkMemory says what the worker may use, and whether that is there.
func (w *Worker) checkMemory() api.Check {
	used, limit, waits := w.cache.MemoryUse()
	here := memoryHere()
	if limit > here/2 {
		return api.Warn("lower --memory: the rest is for jobs and the page cache", "may use %s of the %s that are here", api.HumanBytes(limit), api.HumanBytes(here))
	}
	return api.Ok("may use %s of the %s that are here; fills hold %s, and waited %d times", api.HumanBytes(limit), api.HumanBytes(here), api.HumanBytes(used), waits)
}
