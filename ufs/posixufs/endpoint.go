package posixufs

import (
	"os"
	"regexp"
	"strconv"
	"strings"
)

// Endpoint is the file system that the folder lies in, as file: and where it is
// mounted: what limits are set for. The file system itself is not asked: it may
// hang.
func (f *FS) Endpoint() string {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "file:/"
	}
	return "file:" + mountOf(f.folder, string(mounts))
}

var escaped = regexp.MustCompile(`\\[0-7]{3}`)

// mountOf is where that is mounted which a folder lies in, by a mountinfo (proc(5)).
func mountOf(folder, mountinfo string) string {
	best := "/"
	for line := range strings.Lines(mountinfo) {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		at := escaped.ReplaceAllStringFunc(fields[4], func(s string) string {
			n, _ := strconv.ParseUint(s[1:], 8, 8)
			return string([]byte{byte(n)})
		})
		if within(folder, at) && len(at) > len(best) {
			best = at
		}
	}
	return best
}
