package hold

import (
	"errors"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"stoker.dev"
)

var _ Holder = (*Systemd)(nil)

// Systemd is a Holder that leaves descriptors in the store of the unit
// (FileDescriptorStoreMax=). systemd gives no answer: what it does not keep is
// not there in the next life. It lets go of what was unmounted by itself, and of
// all when the unit is stopped for good.
type Systemd struct {
	conn *net.UnixConn // of NOTIFY_SOCKET

	mu    sync.Mutex
	taken map[string]*os.File
}

// NewSystemd uses the connection to the service manager, which stays the
// caller's, and what Passed found.
func NewSystemd(conn *net.UnixConn, passed map[string]*os.File) *Systemd {
	return &Systemd{conn: conn, taken: passed}
}

const firstPassed = 3 // sd_listen_fds(3)

// Passed finds the descriptors that the service manager gave to this process, by
// name, and takes the variables that tell of them out of the environment. It is
// called once, at the start. Of several with one name the last counts.
func Passed() map[string]*os.File {
	pid, n, names := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS"), strings.Split(os.Getenv("LISTEN_FDNAMES"), ":")
	for _, v := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		_ = os.Unsetenv(v) // else a child would look for them
	}
	count, err := strconv.Atoi(n)
	if err != nil || pid != strconv.Itoa(os.Getpid()) {
		return nil
	}
	return passed(firstPassed, count, names)
}

func passed(first, count int, names []string) map[string]*os.File {
	files := map[string]*os.File{}
	for i := range count {
		fd := first + i
		unix.CloseOnExec(fd)
		name := ""
		if i < len(names) {
			name = names[i]
		}
		if old := files[name]; old != nil {
			_ = old.Close()
		}
		files[name] = os.NewFile(uintptr(fd), name)
	}
	return files
}

// Taken implements Holder.
func (s *Systemd) Taken() map[string]*os.File {
	s.mu.Lock()
	defer s.mu.Unlock()
	files := s.taken
	s.taken = nil
	return files
}

// Put implements Holder.
func (s *Systemd) Put(name string, f *os.File) error {
	if err := checkName(name); err != nil {
		return err
	}
	if err := s.tell("FDSTORE=1\nFDNAME="+name, f); err != nil {
		return stoker.Errorf(stoker.KindTransient, "hold", name, "systemd: %w", err)
	}
	return nil
}

// tell sends a datagram with a descriptor. (Go's WriteMsgUnix refuses to, on a
// socket that is connected.)
func (s *Systemd) tell(text string, f *os.File) error {
	file, err := f.SyscallConn()
	if err != nil {
		return err
	}
	conn, err := s.conn.SyscallConn()
	if err != nil {
		return err
	}
	var sent, wrote error
	err = file.Control(func(fd uintptr) {
		wrote = conn.Write(func(socket uintptr) bool {
			sent = unix.Sendmsg(int(socket), []byte(text), unix.UnixRights(int(fd)), nil, 0)
			return !errors.Is(sent, unix.EAGAIN)
		})
	})
	return errors.Join(err, wrote, sent)
}

// Drop implements Holder.
func (s *Systemd) Drop(name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	if _, err := s.conn.Write([]byte("FDSTOREREMOVE=1\nFDNAME=" + name)); err != nil {
		return stoker.Errorf(stoker.KindTransient, "hold", name, "systemd: %w", err)
	}
	return nil
}

// Close implements Holder.
func (s *Systemd) Close() error {
	closeFiles(s.Taken())
	return nil
}
