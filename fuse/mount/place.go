package mount

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// Who owns a folder above a mount may move it and put a symbolic link in its
// place. A mount is therefore known by the device of its file system, which
// nothing else has while it is served, and never unmounted by path alone: the
// path might lead to somebody else's mount by then.

// deviceOn returns the device of what was just mounted on an open folder.
func deviceOn(dir *os.File) (string, error) {
	// A folder that is a mount point cannot be renamed: its name is settled.
	path, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(int(dir.Fd())))
	if err != nil {
		return "", err
	}
	parent, err := unix.Openat(int(dir.Fd()), "..", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(parent)
	return deviceAt(parent, filepath.Base(path))
}

// deviceAt asks the kernel alone, not the server of what is mounted there.
func deviceAt(parent int, name string) (string, error) {
	var st unix.Statx_t
	err := unix.Statx(parent, name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT, 0, &st)
	return fmt.Sprintf("%d:%d", st.Dev_major, st.Dev_minor), err
}

// unmount unmounts the file system with this device from wherever its folder
// is now. EINVAL: it is mounted nowhere.
func unmount(device string, flags int) error {
	all, err := table()
	if err != nil {
		return err
	}
	for _, e := range all { // the oldest first: a bind mount of it is not ours
		if e.device == device && ours(e.fsType) {
			return unmountAt(e.dir, device, flags)
		}
	}
	return unix.EINVAL
}

func unmountAt(dir, device string, flags int) error {
	parent, err := unix.Openat2(unix.AT_FDCWD, filepath.Dir(dir), &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return moved(err)
	}
	defer unix.Close(parent)
	switch is, err := deviceAt(parent, filepath.Base(dir)); {
	case err != nil:
		return moved(err)
	case is != device:
		return unix.EAGAIN
	}
	return unix.Unmount("/proc/self/fd/"+strconv.Itoa(parent)+"/"+filepath.Base(dir), flags|unix.UMOUNT_NOFOLLOW)
}

// moved makes EAGAIN of what is found when the folder was moved since the
// table was read.
func moved(err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) {
		return unix.EAGAIN
	}
	return err
}
