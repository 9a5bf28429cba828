package api

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"stoker.dev"
)

// maxSocketPath is what fits into the kernel's sockaddr_un with its final NUL.
const maxSocketPath = 107

// throughParent calls do with a path to the socket that the kernel takes,
// however long path is: through a descriptor of the socket's folder.
func throughParent(path string, do func(short string) error) error {
	if len(path) <= maxSocketPath {
		return do(path)
	}
	dir, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: filepath.Dir(path), Err: err}
	}
	defer unix.Close(dir)
	return do("/proc/self/fd/" + strconv.Itoa(dir) + "/" + filepath.Base(path))
}

// DialUnix connects to the Unix socket at path, which may be longer than the
// kernel's limit for socket addresses.
func DialUnix(ctx context.Context, path string) (net.Conn, error) {
	var c net.Conn
	err := throughParent(path, func(short string) (err error) {
		c, err = new(net.Dialer).DialContext(ctx, "unix", short)
		return err
	})
	return c, err
}

// ListenUnix opens a Unix socket at path, which may be longer than the
// kernel's limit for socket addresses, with mode 0666: who calls is known from
// SO_PEERCRED. A socket file left there by a process that no longer listens is
// replaced; a live one is KindHeld. Closing the listener removes the file.
func ListenUnix(path string) (net.Listener, error) {
	if err := removeDeadSocket(path); err != nil {
		return nil, err
	}
	var l *net.UnixListener
	err := throughParent(path, func(short string) (err error) {
		l, err = net.ListenUnix("unix", &net.UnixAddr{Name: short, Net: "unix"})
		return err
	})
	if err != nil {
		return nil, stoker.Errorf(stoker.KindInvalid, "listen", path, "%w", err)
	}
	l.SetUnlinkOnClose(false) // it would use the short name; unixListener does it
	if err := os.Chmod(path, 0o666); err != nil {
		return nil, stoker.Errorf(stoker.KindInternal, "listen", path, "%w", errors.Join(err, l.Close()))
	}
	return &unixListener{UnixListener: l, path: path}, nil
}

// unixListener removes its socket file when it is closed.
type unixListener struct {
	*net.UnixListener
	path string
	once sync.Once
}

// Close stops listening and removes the socket file.
func (l *unixListener) Close() error {
	l.once.Do(func() { _ = os.Remove(l.path) }) // the next ListenUnix replaces what is left
	return l.UnixListener.Close()
}

// Addr names the socket by its full path.
func (l *unixListener) Addr() net.Addr { return &net.UnixAddr{Name: l.path, Net: "unix"} }

func removeDeadSocket(path string) error {
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return stoker.Errorf(stoker.KindInvalid, "listen", path, "%w", err)
	case st.Mode().Type() != fs.ModeSocket:
		return stoker.Errorf(stoker.KindInvalid, "listen", path, "is there and is no socket: remove it or name another path")
	}
	if c, err := DialUnix(context.Background(), path); err == nil { // a Unix connect does not block for long
		_ = c.Close() // it was only a question
		return stoker.Errorf(stoker.KindHeld, "listen", path, "another process listens there")
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return stoker.Errorf(stoker.KindInvalid, "listen", path, "%w", err)
	}
	return nil
}
