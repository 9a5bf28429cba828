package worker

import (
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"stoker.dev/internal/api"
)

// removeOwn removes the folder of a view that was made for it, once the view
// has ended without the one who made it: his submit was killed. The folder
// around it goes too if it was made for the job's several views. Only empty
// folders of the view's owner go, and no link is followed to them; what cannot
// be removed stays.
func removeOwn(r api.MountRequest, owner uint32) {
	if !r.Own {
		return
	}
	removeEmpty(r.Dir, owner)
	if around := filepath.Dir(r.Dir); strings.HasPrefix(filepath.Base(around), "stoker-"+r.Holder+"-") {
		removeEmpty(around, owner)
	}
}

func removeEmpty(dir string, owner uint32) {
	parent, err := unix.Openat2(unix.AT_FDCWD, filepath.Dir(dir), &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return
	}
	defer unix.Close(parent)
	var st unix.Stat_t
	name := filepath.Base(dir)
	if unix.Fstatat(parent, name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && st.Uid == owner {
		_ = unix.Unlinkat(parent, name, unix.AT_REMOVEDIR) // see removeOwn
	}
}
