// Package hold keeps open descriptors over the death of the process that uses
// them: those of /dev/fuse, so that a worker can die and its next life go on
// serving its mounts. There are two holders: Server, a small process of its own
// (`stokerd hold`), and systemd's fd store. A Holder is the side of the
// process that may die. The package knows nothing of what the descriptors
// are for. All methods may be called concurrently.
package hold

import (
	"os"

	"golang.org/x/sys/unix"

	"stoker.dev"
)

// Holder keeps descriptors by name. What Taken returns is what the last life
// had put there; it stays held until it is dropped. It answers once: the files
// are the caller's.
type Holder interface {
	Taken() map[string]*os.File
	Put(name string, f *os.File) error // f stays the caller's
	Drop(name string) error            // one that is not there is fine
	Close() error                      // what is held stays so
}

const maxName = 200 // systemd takes 255

// checkName says what is wrong with a name: both holders have to understand it.
func checkName(name string) error {
	if name == "" || len(name) > maxName {
		return stoker.Errorf(stoker.KindInvalid, "hold", name, "a name has 1 to %d bytes", maxName)
	}
	for _, c := range []byte(name) {
		if c <= ' ' || c == ':' || c > '~' {
			return stoker.Errorf(stoker.KindInvalid, "hold", name, "a name is printable ASCII without ':' and spaces")
		}
	}
	return nil
}

// ended reports whether nobody can use a descriptor any more: that of a FUSE
// connection says so once its file system was unmounted.
func ended(f *os.File) bool {
	conn, err := f.SyscallConn()
	if err != nil {
		return true
	}
	gone := false
	err = conn.Control(func(fd uintptr) {
		fds := []unix.PollFd{{Fd: int32(fd)}}
		_, perr := unix.Poll(fds, 0)
		gone = perr == nil && fds[0].Revents&(unix.POLLERR|unix.POLLHUP|unix.POLLNVAL) != 0
	})
	return gone || err != nil
}

// duplicate returns another descriptor of the same file.
func duplicate(f *os.File) (*os.File, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	cerr := conn.Control(func(old uintptr) { fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 3) })
	if cerr != nil {
		return nil, cerr
	}
	if err != nil {
		return nil, os.NewSyscallError("dup", err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}
