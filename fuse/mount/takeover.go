package mount

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"stoker.dev"
)

// Handle is what a later life must know of a mount to go on serving it, besides
// its descriptor of /dev/fuse (Mounted.Dup), which somebody must have kept open.
// The kernel says INIT once; both it and what was answered stand here.
type Handle struct {
	Dir    string `json:"dir"`
	Device string `json:"device"`           // as in /proc/self/mountinfo
	Kernel bool   `json:"kernel,omitempty"` // of the shards beneath a kernel view
	Init   []byte `json:"init"`
	Answer []byte `json:"answer"`
	// Drained says that its server has answered all that it had read, and reads
	// nothing any more. Who takes it over unsays that first, where it is written down.
	Drained bool `json:"drained,omitempty"`
}

const (
	inHeaderBytes, outHeaderBytes = 40, 16 // linux/fuse.h
	initFlags2At                  = inHeaderBytes + 16
	hasResend                     = gofuse.CAP_HAS_RESEND >> 32
	maxHandshake                  = 64 << 10 // the kernel refuses reads of less than 8 KiB
)

// Resends reports whether the kernel gives a new server the requests that a
// dead one had read and not answered: Linux 6.9 and later. Else those hang for
// ever, unless the mount is aborted.
func (h Handle) Resends() bool {
	return len(h.Init) >= initFlags2At+4 && binary.NativeEndian.Uint32(h.Init[initFlags2At:])&hasResend != 0
}

// Mounted reports whether any folder of this mount namespace shows the mount.
func (h Handle) Mounted() (bool, error) {
	all, err := table()
	for _, e := range all {
		if e.device == h.Device && ours(e.fsType) {
			return true, err
		}
	}
	return false, err
}

// TakeOver goes on serving a mount of an earlier life, which has ended, with
// its descriptor. fs must understand the node ids that its predecessor gave.
// The mount is not as it was promised to the kernel if this release has other
// settings: kind Invalid. It is for the caller to close dev then, and whoever
// keeps it, which aborts the mount. Else dev is the mount's.
func TakeOver(fs gofuse.RawFileSystem, dev *os.File, h Handle) (*Mounted, error) {
	switch {
	case len(h.Init) == 0 || len(h.Answer) == 0:
		return nil, stoker.Errorf(stoker.KindInvalid, "takeover", h.Dir, "what the kernel was promised is not known")
	case !h.Resends() && !h.Drained:
		return nil, stoker.Errorf(stoker.KindInvalid, "takeover", h.Dir, "the last life crashed, and the kernel is older than 6.9: it does not say what that had not answered")
	case Ended(dev):
		return nil, stoker.Errorf(stoker.KindNotExist, "takeover", h.Dir, "is not mounted any more")
	}
	if h.Kernel {
		return start(fs, shardOptions(), dev, h)
	}
	return start(fs, treeOptions(), dev, h)
}

// Ended reports whether the file system of a descriptor was unmounted, or
// aborted.
func Ended(dev *os.File) bool {
	fds := []unix.PollFd{{Fd: int32(dev.Fd())}}
	_, err := unix.Poll(fds, 0)
	return err == nil && fds[0].Revents&(unix.POLLERR|unix.POLLNVAL) != 0
}

// start serves a connection: a new one, whose handle has no INIT, or one that is
// taken over. Of a new one dev is closed if that fails.
func start(fs gofuse.RawFileSystem, o *gofuse.MountOptions, dev *os.File, h Handle) (*Mounted, error) {
	fresh := h.Init == nil
	h.Drained = false
	m := &Mounted{dir: h.Dir, device: h.Device, handle: h, dev: dev, gate: newGate(fs), served: make(chan struct{}), done: make(chan struct{})}
	server, err := m.handshake(o)
	if err == nil && !fresh && h.Resends() {
		if err = resend(dev); err != nil {
			quit(server)
		}
	}
	if err != nil {
		if fresh {
			_ = dev.Close()
		}
		if stoker.KindOf(err) == stoker.KindInvalid {
			return nil, err
		}
		return nil, stoker.Errorf(stoker.KindInternal, "mount", h.Dir, "%w", err)
	}
	m.fd = server.fd
	go m.serve(server)
	return m, nil
}

// serve serves until the mount has ended, or is drained.
func (m *Mounted) serve(server served) {
	server.Serve()
	m.mu.Lock()
	drained := m.draining && !Ended(m.dev)
	m.mu.Unlock()
	if !drained {
		_ = m.dev.Close()
		close(m.done)
	}
	close(m.served)
}

// served is go-fuse's server and its own descriptor.
type served struct {
	*gofuse.Server
	fd int
}

// handshake lets go-fuse answer the kernel's INIT, of now or of an earlier life,
// over a socket, and then puts the connection in the socket's place. (go-fuse's
// DirectMount must stay off: it would mount over /dev/fuse itself.)
func (m *Mounted) handshake(o *gofuse.MountOptions) (served, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return served{}, os.NewSyscallError("socketpair", err)
	}
	theirs, ours := fds[0], fds[1]
	defer unix.Close(ours)
	fail := func(err error) (served, error) {
		_ = unix.Close(theirs)
		return served{}, err
	}
	promised := m.handle.Answer
	if m.handle.Init == nil {
		if m.handle.Init, err = readPacket(int(m.dev.Fd())); err != nil {
			return fail(os.NewSyscallError("read of INIT", err))
		}
		if older && m.handle.Resends() {
			m.handle.Init[initFlags2At] &^= hasResend
		}
	}
	if _, err := unix.Write(ours, m.handle.Init); err != nil {
		return fail(os.NewSyscallError("write of INIT", err))
	}
	server, err := gofuse.NewServer(m.gate, "/dev/fd/"+strconv.Itoa(theirs), o) // theirs is its own from here on
	if err != nil {
		return served{}, err
	}
	keepPresent(server)
	fail = func(err error) (served, error) {
		quit(served{server, theirs})
		return served{}, err
	}
	if m.handle.Answer, err = readPacket(ours); err != nil {
		return fail(os.NewSyscallError("read of INIT's answer", err))
	}
	if promised == nil {
		if _, err := unix.Write(int(m.dev.Fd()), m.handle.Answer); err != nil {
			return fail(os.NewSyscallError("write of INIT's answer", err))
		}
	} else if !bytes.Equal(promised, m.handle.Answer) {
		return fail(stoker.Errorf(stoker.KindInvalid, "takeover", m.dir, "was mounted by a release with other settings of FUSE"))
	}
	if err := unix.Dup3(int(m.dev.Fd()), theirs, unix.O_CLOEXEC); err != nil {
		return fail(os.NewSyscallError("dup3", err))
	}
	return served{server, theirs}, nil
}

func readPacket(fd int) ([]byte, error) {
	b := make([]byte, maxHandshake)
	for {
		n, err := unix.Read(fd, b)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return b[:max(n, 0):max(n, 0)], err
	}
}

// quit ends a server that is not to serve. Only its loop closes its
// descriptor; on one of /dev/fuse without a mount, that ends at once.
func quit(s served) {
	dead, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return // nor can anything be mounted, then
	}
	defer unix.Close(dead)
	if unix.Dup3(dead, s.fd, unix.O_CLOEXEC) == nil {
		s.Serve()
	}
}

// resend asks the kernel for what the last server had read and not answered.
func resend(dev *os.File) error {
	note := make([]byte, outHeaderBytes)
	binary.NativeEndian.PutUint32(note, outHeaderBytes)
	binary.NativeEndian.PutUint32(note[4:], uint32(-gofuse.NOTIFY_RESEND))
	_, err := unix.Write(int(dev.Fd()), note)
	return os.NewSyscallError("FUSE_NOTIFY_RESEND", err)
}

// Handle is what a later life needs to take the mount over.
func (m *Mounted) Handle() Handle {
	h := m.handle
	h.Drained = m.drained()
	return h
}

// Abort ends a mount that is not taken over: who waits for an answer gets an
// error. dev is closed; that alone does it once nobody else has the descriptor.
func Abort(dev *os.File, h Handle) {
	defer dev.Close()
	var major, minor int
	if _, err := fmt.Sscanf(h.Device, "%d:%d", &major, &minor); err != nil || h.Kernel || Ended(dev) {
		return // and the device may be another's by now; a kernel view's is not FUSE's
	}
	_ = os.WriteFile(filepath.Join("/sys/fs/fuse/connections", strconv.Itoa(minor), "abort"), []byte("1"), 0) // if fusectl is mounted
}

// Dup returns another descriptor of the mount's /dev/fuse, which is the
// caller's. As long as any process has one open, readers wait for a server, and
// do not fail.
func (m *Mounted) Dup() (*os.File, error) {
	conn, err := m.dev.SyscallConn()
	if err != nil {
		return nil, stoker.Errorf(stoker.KindInternal, "mount", m.dir, "%w", err)
	}
	fd := -1
	if cerr := conn.Control(func(dev uintptr) { fd, err = unix.FcntlInt(dev, unix.F_DUPFD_CLOEXEC, 3) }); cerr != nil || err != nil {
		return nil, stoker.Errorf(stoker.KindNotExist, "mount", m.dir, "its descriptor: %w", errors.Join(cerr, err))
	}
	return os.NewFile(uintptr(fd), "/dev/fuse"), nil
}

// Leave stops answering, without an error to anybody: whoever reads waits for
// the next life. The process must end soon. It is for mounts that somebody
// keeps the descriptor of.
func (m *Mounted) Leave() { m.gate.shut() }
