package mount

import (
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"stoker.dev"
)

// entry is one line of /proc/self/mountinfo (proc(5)).
type entry struct {
	device, dir, fsType, source string
}

// table reads the mounts of this mount namespace, the oldest first. It
// touches none of them.
func table() ([]entry, error) {
	body, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, stoker.Errorf(stoker.KindInternal, "mounts", "", "%w", err)
	}
	return parse(string(body)), nil
}

func parse(body string) []entry {
	var out []entry
	for line := range strings.Lines(body) {
		left, right, ok := strings.Cut(line, " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if !ok || len(l) < 6 || len(r) < 2 {
			continue
		}
		out = append(out, entry{device: l[2], dir: unescape(l[4]), fsType: r[0], source: unescape(r[1])})
	}
	return out
}

// ours reports whether a mount may be a view.
func ours(fs string) bool { return fs == fsType || fs == erofsType }

// nameOf is the name that a view was mounted with. That of a kernel view is
// the last part of its image's path.
func nameOf(e entry) string {
	if e.fsType == erofsType {
		return path.Base(e.source)
	}
	return e.source
}

// unescape undoes \040 and the like.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// CleanDead unmounts all stoker mounts whose source begins with prefix. The
// caller knows that their server is dead: a source names one worker, and the
// lock on its cache folder says that there is no other life of it. It returns
// the folders.
func CleanDead(prefix string) ([]string, error) {
	all, err := table()
	if err != nil {
		return nil, err
	}
	var dirs []string
	for i := len(all) - 1; i >= 0; i-- {
		e := all[i]
		if !ours(e.fsType) || !strings.HasPrefix(nameOf(e), source(prefix)) {
			continue
		}
		if uerr := unmountAt(e.dir, e.device, unix.MNT_DETACH); uerr != nil {
			err = stoker.Errorf(stoker.KindInternal, "umount", e.dir, "%w", uerr)
			continue
		}
		dirs = append(dirs, e.dir)
	}
	return dirs, err
}

// setReadAhead raises the kernel's read-ahead of a new mount from 128 KiB.
// Where /sys is read-only the default stays.
func setReadAhead(device string, bytes int) {
	if bytes <= 0 {
		bytes = defaultAhead
	}
	_ = os.WriteFile(filepath.Join("/sys/class/bdi", device, "read_ahead_kb"), []byte(strconv.Itoa(bytes>>10)), 0) // see above
}
