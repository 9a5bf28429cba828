package main

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"stoker.dev"
	"stoker.dev/internal/api"
)

// checkFlags refuses what no controller or worker would take.
func (s *submission) checkFlags(cmd *cobra.Command, deadline time.Duration) error {
	for _, f := range []struct {
		name, value string
		want        []string
	}{
		{"on-miss", s.req.OnMiss, []string{"start", "wait", "fail"}},
		{"layout", s.req.Layout, layouts},
		{"view", s.view, viewKinds()},
	} {
		if !slices.Contains(f.want, f.value) {
			return usagef(cmd, "--%s %q: want %s", f.name, f.value, strings.Join(f.want, " or "))
		}
	}
	if deadline < 0 {
		return usagef(cmd, "--deadline %v: want 0 or more", deadline)
	}
	return nil
}

// check finds what would fail behind a load, before anything is claimed.
func (s *submission) check() error {
	if err := checkJobID(s.req.Job); err != nil {
		return err
	}
	if _, err := folders(s.req.Datasets); err != nil {
		return err
	}
	if err := checkDirs(s.req.Datasets); err != nil {
		return err
	}
	return checkCommand(s.argv[0])
}

// checkCommand wants a command that is there and may be run.
func checkCommand(name string) error {
	_, err := exec.LookPath(name)
	switch {
	case err == nil:
		return nil
	case !strings.ContainsRune(name, '/'):
		return stoker.Errorf(stoker.KindNotExist, "submit", printable(name), "is no command on the PATH")
	case errors.Is(err, fs.ErrNotExist):
		return stoker.Errorf(stoker.KindNotExist, "submit", printable(name), "is not there: name a command")
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EISDIR):
		return stoker.Errorf(stoker.KindDenied, "submit", printable(name), "may not be run by you: is it a command, and executable?")
	}
	return stoker.Errorf(stoker.KindInvalid, "submit", printable(name), "%w", err)
}

// checkDirs wants every =DIR fit for a mount, and none within another.
func checkDirs(refs []api.DatasetRef) error {
	var taken []string
	for _, r := range refs {
		if r.Dir == "" {
			continue
		}
		dir, err := mountPoint(r.Dir)
		if err == nil {
			err = checkDir(dir)
		}
		if err != nil {
			return err
		}
		for _, other := range taken {
			if inside(dir, other) || inside(other, dir) {
				return stoker.Errorf(stoker.KindInvalid, "submit", printable(dir), "and %s would be mounted one over the other: name folders apart", printable(other))
			}
		}
		taken = append(taken, dir)
	}
	return nil
}

func inside(a, b string) bool {
	return a == b || strings.HasPrefix(a, strings.TrimSuffix(b, "/")+"/")
}

// checkDir wants an empty folder that is the caller's, or none where one can
// be made. The worker looks again.
func checkDir(dir string) error {
	bad := func(kind stoker.Kind, format string, args ...any) error {
		return stoker.Errorf(kind, "submit", printable(dir), format, args...)
	}
	st, err := os.Lstat(dir)
	switch uid := os.Geteuid(); {
	case errors.Is(err, fs.ErrNotExist):
		if err := unix.Faccessat(unix.AT_FDCWD, filepath.Dir(dir), unix.W_OK|unix.X_OK, unix.AT_EACCESS); err != nil {
			return bad(stoker.KindDenied, "you cannot make a folder there: %w", err)
		}
		return nil
	case errors.Is(err, fs.ErrPermission):
		return bad(stoker.KindDenied, "%w", err)
	case err != nil:
		return bad(stoker.KindInvalid, "%w", err)
	case !st.IsDir():
		return bad(stoker.KindInvalid, "is not a folder: name an empty one, or one that is not there yet")
	case uid != 0 && st.Sys().(*syscall.Stat_t).Uid != uint32(uid):
		return bad(stoker.KindDenied, "belongs to uid %d, not to you (%d)", st.Sys().(*syscall.Stat_t).Uid, uid)
	}
	return checkEmpty(dir)
}

func checkEmpty(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		kind := stoker.KindInvalid
		if errors.Is(err, fs.ErrPermission) {
			kind = stoker.KindDenied
		}
		return stoker.Errorf(kind, "submit", printable(dir), "%w", err)
	}
	defer f.Close()
	switch names, err := f.Readdirnames(1); {
	case len(names) > 0:
		return stoker.Errorf(stoker.KindInvalid, "submit", printable(dir), "is not empty: name an empty folder, or one that is not there yet")
	case err != nil && !errors.Is(err, io.EOF):
		return stoker.Errorf(stoker.KindInvalid, "submit", printable(dir), "%w", err)
	}
	return nil
}
