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

// Left is a mount that an earlier life of a worker left.
type Left struct {
	Dir    string // where it is mounted
	Alive  bool   // a kernel view: what is local can be read without its worker
	device string
}

// Leftovers lists the mounts whose name begins with prefix, the newest first.
// The caller knows that their server is dead: a name is that of one worker, and
// the lock on its cache folder says that there is no other life of it.
func Leftovers(prefix string) ([]Left, error) {
	all, err := table()
	if err != nil {
		return nil, err
	}
	var left []Left
	for i := len(all) - 1; i >= 0; i-- {
		if e := all[i]; ours(e.fsType) && strings.HasPrefix(nameOf(e), source(prefix)) {
			left = append(left, Left{e.dir, e.fsType == erofsType, e.device})
		}
	}
	return left, nil
}

// Is reports whether it is the mount that m serves.
func (l Left) Is(m *Mounted) bool { return l.device == m.device }

// Unmount takes it from its folder; who has files of it open keeps them.
func (l Left) Unmount() error {
	if err := unmountAt(l.Dir, l.device, unix.MNT_DETACH); err != nil {
		return stoker.Errorf(stoker.KindInternal, "umount", l.Dir, "%w", err)
	}
	return nil
}

// setReadAhead raises the kernel's read-ahead of a new mount from 128 KiB.
// Where /sys is read-only the default stays.
func setReadAhead(device string, bytes int) {
	if bytes <= 0 {
		bytes = defaultAhead
	}
	_ = os.WriteFile(filepath.Join("/sys/class/bdi", device, "read_ahead_kb"), []byte(strconv.Itoa(bytes>>10)), 0) // see above
}
