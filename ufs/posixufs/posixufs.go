// Package posixufs reads a folder of a local or network file system. Nothing
// outside the folder is ever reached: symbolic links are listed as what they
// are and never followed, and what is no regular file is never opened. Folders
// must lie in one that the daemon was told to allow, since a daemon that runs
// as root could read any. An FS may be used from any goroutine. Its system
// calls do not end with their context: a server that hangs holds up those who
// ask it until it answers.
package posixufs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"stoker.dev"
	"stoker.dev/ufs"
)

var _ ufs.FS = (*FS)(nil)

// Options say which folder, and what its files are called.
type Options struct {
	Folder string   // absolute, without "." and ".."
	Prefix string   // what each key begins with, before its path below Folder: "" or ending in "/"
	Allow  []string // folders that may be read with all that is in them; Folder must be one or lie in one
}

// FS is one folder. Its keys are Prefix and the path below the folder.
type FS struct {
	folder string // as users name it
	top    string // the allowed folder that it is or lies in
	below  string // its path from there, "" = it is the same
	prefix string
	window int // windowNames
	scans  scans
}

// Open checks the folder's name against those that are allowed. Whether it is
// there is seen when it is read: it may be mounted later.
func Open(o Options) (*FS, error) {
	if !filepath.IsAbs(o.Folder) || filepath.Clean(o.Folder) != o.Folder {
		return nil, stoker.Errorf(stoker.KindInvalid, "file", o.Folder, "is no absolute path without '.', '..' and double slashes")
	}
	top := ""
	for _, a := range o.Allow {
		if err := CheckAllow(a); err != nil {
			return nil, err
		}
		if within(o.Folder, a) && len(a) > len(top) {
			top = a
		}
	}
	if top == "" {
		return nil, stoker.Errorf(stoker.KindDenied, "file", o.Folder,
			"may not be read by this daemon (%s): an administrator allows it with --allow-file FOLDER (STOKER_ALLOW_FILE) of controllers and workers; allowed now: %s", hostName(), shown(o.Allow))
	}
	below := strings.TrimPrefix(strings.TrimPrefix(o.Folder, top), "/")
	return &FS{folder: o.Folder, top: top, below: below, prefix: o.Prefix, window: windowNames}, nil
}

// CheckAllow refuses what cannot be the name of an allowed folder.
func CheckAllow(folder string) error {
	if !filepath.IsAbs(folder) || filepath.Clean(folder) != folder {
		return stoker.Errorf(stoker.KindInvalid, "allow-file", folder, "is no absolute path without '.', '..' and double slashes")
	}
	return nil
}

// within reports whether a path is a folder or lies in it, by name.
func within(path, folder string) bool {
	return path == folder || folder == "/" || strings.HasPrefix(path, folder+"/")
}

func shown(allow []string) string {
	if len(allow) == 0 {
		return "none"
	}
	return strings.Join(allow, ", ")
}

func hostName() string {
	if name, err := os.Hostname(); err == nil {
		return name
	}
	return "this machine"
}

// open opens what lies at a path below the folder, "" the folder itself. No
// symbolic link is followed, and nothing above the allowed folder is reached,
// whatever others do to the tree meanwhile.
func (f *FS) open(rel string, flags int) (int, error) {
	top, err := unix.Open(f.top, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(top)
	path := filepath.Join(".", f.below, rel)
	how := unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC | unix.O_NOFOLLOW),
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	for {
		fd, err := unix.Openat2(top, path, &how)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

// info is what statx says of a file.
type info struct {
	mode uint16
	v    ufs.Version
}

func (i info) is(kind uint16) bool { return i.mode&unix.S_IFMT == kind }

// stat asks for a name in a folder, or with "" for what fd itself is. A
// network file system asks its server if sync is set.
func stat(fd int, name string, sync bool) (info, error) {
	flags := unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	if sync {
		flags |= unix.AT_STATX_FORCE_SYNC
	}
	var st unix.Statx_t
	for {
		err := unix.Statx(fd, name, flags, unix.STATX_TYPE|unix.STATX_MODE|unix.STATX_INO|unix.STATX_SIZE|unix.STATX_MTIME, &st)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return info{}, err
		}
		return info{st.Mode, ufs.Version{
			Tag:     fmt.Sprintf("%d.%09d-%d-%d", st.Mtime.Sec, st.Mtime.Nsec, st.Size, st.Ino),
			ModTime: time.Unix(st.Mtime.Sec, int64(st.Mtime.Nsec)), Bytes: int64(st.Size),
		}}, nil
	}
}

// kindName says what a file is that cannot be read as one.
func kindName(mode uint16) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFIFO:
		return "a named pipe"
	case unix.S_IFSOCK:
		return "a socket"
	case unix.S_IFCHR, unix.S_IFBLK:
		return "a device"
	case unix.S_IFLNK:
		return "a symbolic link"
	case unix.S_IFDIR:
		return "a folder"
	}
	return "a special file"
}

// object makes the row of a file, a link, or what can be neither. fd and name
// are as for stat.
func object(key string, fd int, name string, i info) (ufs.Object, error) {
	o := ufs.Object{Key: key, Version: i.v}
	switch {
	case i.is(unix.S_IFREG):
		o.Exec = i.mode&0o111 != 0
	case i.is(unix.S_IFLNK):
		target := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(fd, name, target)
		if err != nil {
			return o, err
		}
		o.Link = string(target[:n])
	default:
		o.Unmountable = kindName(i.mode)
	}
	return o, nil
}

// path returns where a key's file is below the folder.
func (f *FS) path(op, key string) (string, error) {
	rel, ok := strings.CutPrefix(key, f.prefix)
	if !ok || strings.IndexByte(rel, 0) >= 0 || slices.ContainsFunc(strings.Split(rel, "/"), func(s string) bool { return s == "" || s == "." || s == ".." }) {
		return "", stoker.Errorf(stoker.KindInvalid, op, key, "can be no file of %s", f.folder)
	}
	return rel, nil
}

// Stat implements ufs.FS. Folders do not exist, as in an object store.
func (f *FS) Stat(ctx context.Context, key string) (ufs.Object, error) {
	if err := ctx.Err(); err != nil {
		return ufs.Object{}, err
	}
	rel, err := f.path("file.stat", key)
	if err != nil {
		return ufs.Object{}, err
	}
	fd, err := f.open(rel, unix.O_PATH)
	if err != nil {
		return ufs.Object{}, f.failed("file.stat", key, err)
	}
	defer unix.Close(fd)
	i, err := stat(fd, "", true)
	if err != nil {
		return ufs.Object{}, f.failed("file.stat", key, err)
	}
	if i.is(unix.S_IFDIR) {
		return ufs.Object{}, stoker.Errorf(stoker.KindNotExist, "file.stat", key, "is a folder")
	}
	o, err := object(key, fd, "", i)
	if err != nil {
		return o, f.failed("file.stat", key, err)
	}
	return o, nil
}

// failed gives an error of the file system its kind.
func (f *FS) failed(op, key string, err error) error {
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		if err := f.there(); err != nil {
			return err
		}
		return stoker.Errorf(stoker.KindNotExist, op, key, "no such file below %s", f.folder)
	case errors.Is(err, unix.ELOOP):
		return stoker.Errorf(stoker.KindStale, op, key, "lies behind a symbolic link now: they are never followed")
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM), errors.Is(err, unix.EXDEV):
		return stoker.Errorf(stoker.KindDenied, op, key, "the daemon (uid %d on %s) may not read it: change its mode, or the export's root_squash (%w)", os.Getuid(), hostName(), err)
	case errors.Is(err, unix.ENAMETOOLONG), errors.Is(err, unix.EINVAL):
		return stoker.Errorf(stoker.KindInvalid, op, key, "%w", err)
	case errors.Is(err, unix.ENOSYS):
		return stoker.Errorf(stoker.KindInvalid, op, key, "needs openat2: Linux 5.6 or newer, and a sandbox that lets it through (%w)", err)
	}
	// ESTALE (the server's file was replaced), EIO, ETIMEDOUT, EAGAIN, EMFILE …: another try asks anew.
	return stoker.Errorf(stoker.KindTransient, op, key, "%w", err)
}

// there says what is wrong with the folder itself, if anything is.
func (f *FS) there() error {
	fd, err := f.open("", unix.O_PATH|unix.O_DIRECTORY)
	switch {
	case err == nil:
		return unix.Close(fd)
	case errors.Is(err, unix.ENOENT):
		return stoker.Errorf(stoker.KindNotExist, "file", f.folder, "is not there on %s: every controller and worker needs it, mounted at the same path", hostName())
	case errors.Is(err, unix.ELOOP), f.isLink():
		return stoker.Errorf(stoker.KindInvalid, "file", f.folder, "is or lies behind a symbolic link on %s: name the folder that it leads to", hostName())
	case errors.Is(err, unix.ENOTDIR):
		return stoker.Errorf(stoker.KindInvalid, "file", f.folder, "is no folder on %s", hostName())
	}
	return f.failed("file", f.folder, err)
}

// isLink reports whether the folder itself is a symbolic link.
func (f *FS) isLink() bool {
	fd, err := f.open("", unix.O_PATH)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	i, err := stat(fd, "", false)
	return err == nil && i.is(unix.S_IFLNK)
}
