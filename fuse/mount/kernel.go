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
	"unsafe"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"stoker.dev"
)

// KernelOptions say what a kernel view is made of.
type KernelOptions struct {
	Options
	// Images is a private folder; the image is the file ImageName(Name) in it.
	// Its name is what the mount table shows. It may be removed once mounted.
	Images *os.File
	// Devices are the image's devices but the last, in order: a local file, which
	// the kernel opens anew, or nil for the one that Shards serves.
	Devices []Device
	// Shards serves the devices that are not local, and the last one, the
	// sentinel: the kernel lets it go when the view has ended.
	Shards gofuse.RawFileSystem
	NameOf func(device uint32) string // of a device in Shards
	// Beneath is a view of an earlier life of this worker that is mounted on Dir:
	// the new one goes beneath it, and then it goes, so that no process finds
	// the folder empty. nil = Dir has no mount.
	Beneath *Left
}

// Device is one device of an image.
type Device struct {
	File  *os.File // nil: served
	Bytes int64    // that it must have at least
}

const (
	erofsType = "erofs"
	// maxShardRequest is the most bytes of one READ of a shard: EROFS asks for
	// what it reads ahead.
	maxShardRequest = 1 << 20
	// Read-ahead of a kernel view; from a local disk, more than 1 MiB was slower
	// (docs/adr/0016).
	localAhead  = 1 << 20
	servedAhead = 4 << 20
	// fsGetSysPath is FS_IOC_GETFSSYSFSPATH of linux/fs.h.
	fsGetSysPath = 0x80811501
)

// ImageName is the name of a view's image: it stands in /proc/mounts.
func ImageName(name string) string {
	name = strings.ReplaceAll(source(name), "/", "_")
	return name[:min(len(name), 200)] // an option of fsconfig(2) has less than 256 bytes
}

// Kernel mounts an image with its devices. Done of what it returns is closed
// when the kernel has let all devices go.
func Kernel(o KernelOptions) (*Mounted, error) {
	dir, err := openTop(o)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	if err := checkDevices(o); err != nil {
		return nil, err
	}
	served, m, err := serve(o)
	if err != nil {
		return nil, err
	}
	err = m.attach(o, dir, served)
	// The mount of the shards has no place in the tree of folders: it lives as
	// long as the kernel has files of it open.
	_ = unix.Close(served)
	if err != nil {
		<-m.done
		return nil, err
	}
	return m, nil
}

// attach mounts the image on its folder.
func (m *Mounted) attach(o KernelOptions, dir *os.File, served int) error {
	fd, err := mountImage(o, served)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, 0, &st); err != nil {
		return stoker.Errorf(stoker.KindInternal, "mount", o.Dir, "which device: %w", err)
	}
	m.device = fmt.Sprintf("%d:%d", st.Dev_major, st.Dev_minor)
	m.handle.Device = m.device
	setKernelReadAhead(fd, o)
	flags := unix.MOVE_MOUNT_F_EMPTY_PATH | unix.MOVE_MOUNT_T_EMPTY_PATH
	if o.Beneath != nil {
		flags |= moveBeneath
	}
	if err := unix.MoveMount(fd, "", int(dir.Fd()), "", flags); err != nil {
		return stoker.Errorf(stoker.KindInternal, "mount", o.Dir, "move_mount(2): %w", err)
	}
	if o.Beneath != nil {
		if err := o.Beneath.Unmount(); err != nil {
			return errors.Join(err, unmount(m.device, unix.MNT_DETACH))
		}
	}
	return nil
}

// moveBeneath is MOVE_MOUNT_BENEATH of linux/mount.h, since Linux 6.5.
const moveBeneath = 0x200

// openTop opens the folder, or the root of the view that is mounted on it.
func openTop(o KernelOptions) (*os.File, error) {
	if o.Beneath == nil {
		return openDir(o.Options)
	}
	fd, err := unix.Openat2(unix.AT_FDCWD, o.Dir, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, stoker.Errorf(stoker.KindInternal, "mount", o.Dir, "%w", err)
	}
	f := os.NewFile(uintptr(fd), o.Dir)
	if is, err := deviceOn(f); err != nil || is != o.Beneath.device {
		_ = f.Close()
		return nil, stoker.Errorf(stoker.KindBusy, "mount", o.Dir, "is not the view of the last life any more (%v)", err)
	}
	return f, nil
}

// checkDevices refuses a device that is shorter than the image says: the
// kernel would not notice, and read zeros.
func checkDevices(o KernelOptions) error {
	for i, d := range o.Devices {
		if d.File == nil {
			continue
		}
		fi, err := d.File.Stat()
		if err != nil {
			return stoker.Errorf(stoker.KindInternal, "mount", o.Dir, "device %d: %w", i, err)
		}
		if !fi.Mode().IsRegular() || fi.Size() < d.Bytes {
			return stoker.Errorf(stoker.KindCorrupt, "mount", o.Dir, "device %d: %s is %v of %d bytes, want a file of %d", i, d.File.Name(), fi.Mode().Type(), fi.Size(), d.Bytes)
		}
	}
	return nil
}

// serve mounts the shards' file system nowhere and serves it. The descriptor
// is of its root.
func serve(o KernelOptions) (root int, m *Mounted, err error) {
	dev, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, nil, stoker.Errorf(stoker.KindInvalid, "mount", "/dev/fuse", "%w: load the module (modprobe fuse), or give the container the device", err)
	}
	root, err = newMount("fuse", []option{
		{"source", source(o.Name)}, {"fd", strconv.Itoa(dev)}, {"rootmode", "40000"}, {"user_id", "0"}, {"group_id", "0"},
		{"default_permissions", ""}, {"max_read", strconv.Itoa(maxShardRequest)},
	})
	if err != nil {
		_ = unix.Close(dev)
		return -1, nil, err
	}
	m, err = start(o.Shards, shardOptions(), os.NewFile(uintptr(dev), "/dev/fuse"), Handle{Dir: o.Dir, Kernel: true})
	if err != nil {
		_ = unix.Close(root)
		return -1, nil, err
	}
	return root, m, nil
}

// shardOptions are those of the server of a kernel view's shards, whose answers lie in
// memory, too.
func shardOptions() *gofuse.MountOptions {
	return &gofuse.MountOptions{
		MaxWrite: maxShardRequest, MaxBackground: maxBackground, DisableXAttrs: true, DisableSplice: true, ExplicitDataCacheControl: true,
		Logger:            log.New(io.Discard, "", 0),
		ExtraCapabilities: gofuse.CAP_ASYNC_DIO, // else one request of a reader is in flight at a time
		MaxStackDepth:     -1,                   // what lies on it must not count as stacked twice
	}
}

// mountImage makes the mount of the image and returns a descriptor of its root.
func mountImage(o KernelOptions, served int) (int, error) {
	options := []option{{"source", proc(int(o.Images.Fd())) + "/" + ImageName(o.Name)}, {"directio", ""}}
	for i, d := range o.Devices {
		at := proc(served) + "/" + o.NameOf(uint32(i))
		if d.File != nil {
			at = proc(int(d.File.Fd()))
		}
		options = append(options, option{"device", at})
	}
	return newMount(erofsType, append(options, option{"device", proc(served) + "/" + o.NameOf(uint32(len(o.Devices)))}))
}

func proc(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// option is one of a file system; without a value it is a flag.
type option struct{ key, value string }

// newMount makes a mount that is in no folder yet.
func newMount(fsType string, options []option) (int, error) {
	fs, err := unix.Fsopen(fsType, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, kernelError(-1, fsType, "fsopen(2)", err)
	}
	defer unix.Close(fs)
	for _, op := range options {
		if op.value == "" {
			err = unix.FsconfigSetFlag(fs, op.key)
		} else {
			err = unix.FsconfigSetString(fs, op.key, op.value)
		}
		if err != nil {
			return -1, kernelError(fs, fsType, "option "+op.key, err)
		}
	}
	if err := unix.FsconfigSetFlag(fs, "ro"); err != nil {
		return -1, kernelError(fs, fsType, "option ro", err)
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, kernelError(fs, fsType, "fsconfig(2)", err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOSUID)
	if err != nil {
		return -1, kernelError(fs, fsType, "fsmount(2)", err)
	}
	return fd, nil
}

// kernelError adds what the kernel says to a file system's descriptor.
func kernelError(fs int, fsType, what string, err error) error {
	kind := stoker.KindInvalid
	if errors.Is(err, unix.EPERM) {
		kind, what = stoker.KindDenied, what+" (the worker must be root, or have CAP_SYS_ADMIN)"
	}
	said := ""
	if fs >= 0 {
		line := make([]byte, 512)
		if n, rerr := unix.Read(fs, line); rerr == nil && n > 2 {
			said = ": " + strings.TrimSpace(string(line[2:n]))
		}
	}
	return stoker.Errorf(kind, "mount", fsType, "%s: %w%s", what, err, said)
}

// setKernelReadAhead sets the read-ahead of a new kernel view. Where /sys is
// read-only the kernel's 128 KiB stay.
func setKernelReadAhead(fd int, o KernelOptions) {
	ahead, local := o.ReadAheadBytes, 0
	for _, d := range o.Devices {
		if d.File != nil {
			local++
		}
	}
	switch {
	case ahead > 0:
	case 2*local >= len(o.Devices):
		ahead = localAhead
	default:
		ahead = servedAhead
	}
	root, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(root)
	var path struct { // fs_sysfs_path
		n    uint8
		name [128]byte
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(root), fsGetSysPath, uintptr(unsafe.Pointer(&path))); errno != 0 {
		return
	}
	name := string(path.name[:min(int(path.n), len(path.name))]) // "erofs/erofs-17"
	_ = os.WriteFile(filepath.Join("/sys/class/bdi", filepath.Base(name), "read_ahead_kb"), []byte(strconv.Itoa(ahead>>10)), 0)
}
