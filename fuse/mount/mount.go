// Package mount makes and ends mounts of FUSE file systems. The caller's
// process opens /dev/fuse and calls mount(2) itself (it must be root), so that
// the descriptor can be handed over later and no helper is needed. Mounts are
// read-only, nodev and nosuid. All functions may be called concurrently.
package mount

import (
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"stoker.dev"
)

const (
	// fsType is what /proc/mounts shows.
	fsType = "fuse.stoker"
	// maxRequest is the most bytes of one READ.
	maxRequest    = 512 << 10
	defaultAhead  = 4 << 20
	maxBackground = 64
)

// Options say where and how.
type Options struct {
	Dir            string                   // absolute; an empty folder, opened without following symbolic links
	Name           string                   // source in /proc/mounts
	Check          func(*unix.Stat_t) error // of the opened folder, before anything is mounted on it; may be nil
	ReadAheadBytes int                      // of the kernel, for each open file; 0 = 4 MiB, or of a kernel view 1 MiB if most is local; whole KiB count, so 1 is none
}

// Mounted is one mount and its server.
type Mounted struct {
	dir    string // where it was mounted; its folder may have been moved since
	device string // what it is known by: see place.go
	handle Handle
	dev    *os.File // of the connection, until done
	gate   *gate
	fd     int           // that go-fuse reads from
	served chan struct{} // closed when go-fuse has ended: with the mount, or before it, drained
	done   chan struct{}

	mu       sync.Mutex
	gone     bool // +checklocks:mu — unmounted by us
	draining bool // +checklocks:mu
}

// Mount mounts fs and serves it until it is unmounted. The view is readable
// when Mount returns.
func Mount(fs gofuse.RawFileSystem, o Options) (*Mounted, error) {
	dir, err := openDir(o)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, stoker.Errorf(stoker.KindInvalid, "mount", "/dev/fuse", "%w: load the module (modprobe fuse), or give the container the device", err)
	}
	data := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions,max_read=%d", fd, maxRequest)
	at := "/proc/self/fd/" + strconv.Itoa(int(dir.Fd()))
	if err := unix.Mount(source(o.Name), at, fsType, unix.MS_RDONLY|unix.MS_NODEV|unix.MS_NOSUID, data); err != nil {
		_ = unix.Close(fd)
		kind := stoker.KindInternal
		if errors.Is(err, unix.EPERM) {
			kind = stoker.KindDenied
		}
		return nil, stoker.Errorf(kind, "mount", o.Dir, "mount(2): %w (the worker must be root, or have CAP_SYS_ADMIN)", err)
	}
	device, err := deviceOn(dir)
	if err != nil {
		_ = unix.Close(fd) // the mount is dead, the next life finds it among its Leftovers
		return nil, stoker.Errorf(stoker.KindInternal, "mount", o.Dir, "which device: %w", err)
	}
	m, err := start(fs, treeOptions(), os.NewFile(uintptr(fd), "/dev/fuse"), Handle{Dir: o.Dir, Device: device})
	if err != nil {
		_ = unmount(device, unix.MNT_DETACH)
		return nil, err
	}
	setReadAhead(device, o.ReadAheadBytes)
	return m, nil
}

// treeOptions are those of a tree view's server. Answers lie in memory: not told so, go-fuse
// writes the head of each into a pipe first, to splice a file behind it, and empties it again.
func treeOptions() *gofuse.MountOptions {
	return &gofuse.MountOptions{
		MaxWrite: maxRequest, MaxBackground: maxBackground, DisableXAttrs: true, DisableSplice: true,
		ExplicitDataCacheControl: true, EnableSymlinkCaching: true, Logger: log.New(io.Discard, "", 0),
		ExtraCapabilities: gofuse.CAP_NO_OPENDIR_SUPPORT, MaxStackDepth: -1,
	}
}

// source makes a name fit for /proc/mounts' first column.
func source(name string) string { return strings.Map(oneWord, name) }

func oneWord(r rune) rune {
	if r <= ' ' || r == '\\' || r == 0x7f {
		return '_'
	}
	return r
}

// openDir opens the folder and checks it. Links on the way are refused: a
// user could let them point at somebody else's folder.
func openDir(o Options) (*os.File, error) {
	if !filepath.IsAbs(o.Dir) || filepath.Clean(o.Dir) != o.Dir || o.Dir == "/" {
		return nil, stoker.Errorf(stoker.KindInvalid, "mount", o.Dir, "must be an absolute path of a folder")
	}
	fd, err := unix.Openat2(unix.AT_FDCWD, o.Dir, &unix.OpenHow{
		Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil, stoker.Errorf(stoker.KindNotExist, "mount", o.Dir, "there is no such folder: make it first")
	case errors.Is(err, unix.ENOTDIR):
		return nil, stoker.Errorf(stoker.KindInvalid, "mount", o.Dir, "is not a folder")
	case errors.Is(err, unix.ENOSYS):
		return nil, stoker.Errorf(stoker.KindInvalid, "mount", o.Dir, "openat2(2) is forbidden here: take RestrictSUIDSGID= out of the worker's unit, or let the container's seccomp profile pass it")
	case errors.Is(err, unix.ELOOP):
		return nil, stoker.Errorf(stoker.KindInvalid, "mount", o.Dir, "leads over a symbolic link: name the folder itself")
	case err != nil:
		return nil, stoker.Errorf(stoker.KindInvalid, "mount", o.Dir, "%w", err)
	}
	f := os.NewFile(uintptr(fd), o.Dir)
	if err := checkDir(f, o); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

func checkDir(f *os.File, o Options) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return stoker.Errorf(stoker.KindInternal, "mount", o.Dir, "%w", err)
	}
	if o.Check != nil {
		if err := o.Check(&st); err != nil {
			return err
		}
	}
	names, err := f.Readdirnames(1)
	if len(names) > 0 {
		return stoker.Errorf(stoker.KindInvalid, "mount", o.Dir, "is not empty: name an empty folder")
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return stoker.Errorf(stoker.KindInternal, "mount", o.Dir, "%w", err)
	}
	return nil
}

// Dir is where it is mounted.
func (m *Mounted) Dir() string { return m.dir }

// Done is closed when the mount has ended, by whomever, and no process has
// anything of it open any more.
func (m *Mounted) Done() <-chan struct{} { return m.done }

// Unmount takes the mount from its folder. While a process uses it, that is
// refused with kind Held; lazily the folder is freed at once, and Done is
// closed when the last user has gone. It may be repeated.
func (m *Mounted) Unmount(lazy bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.gone {
		return nil
	}
	select {
	case <-m.done: // somebody else unmounted it
		m.gone = true
		return nil
	default:
	}
	flags := 0
	if lazy {
		flags = unix.MNT_DETACH
	}
	switch err := unmount(m.device, flags); {
	case errors.Is(err, unix.EBUSY):
		return stoker.Errorf(stoker.KindHeld, "umount", m.dir, "a process still uses it (fuser -vm %s shows which)", m.dir)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
		// It is no mount point any more.
	case errors.Is(err, unix.EAGAIN):
		return stoker.Errorf(stoker.KindBusy, "umount", m.dir, "its folder is just being moved: try again")
	case err != nil:
		return stoker.Errorf(stoker.KindInternal, "umount", m.dir, "%w", err)
	}
	m.gone = true
	return nil
}
