package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"

	"stoker.dev"
)

// Before Linux 6.9 nobody gives a next life what this one has read and not
// answered, so it must leave nothing like that. go-fuse cannot be told to stop
// reading, and its readers wait in read(2). So the kernel is told: a seccomp
// filter refuses this process read(2) of these descriptors, and no other call, and
// a signal lets those who wait there try again. Each of go-fuse's loops ends with
// that error once it has answered what it had read; when all have, Serve returns.
// A request is either answered or was never read.

// Drain stops reading requests of mounts that somebody keeps the descriptors of,
// and waits until all that were read are answered, or ctx ends. Handle says of
// each whether it is drained. It may be called again, to wait longer. The
// process must end soon: it will never read from these descriptors again.
func Drain(ctx context.Context, all []*Mounted) error {
	var fds []int
	for _, m := range all {
		m.mu.Lock()
		if !m.draining {
			m.draining = true
			fds = append(fds, m.fd)
		}
		m.mu.Unlock()
	}
	for some := range slices.Chunk(fds, maxRefused) {
		if err := refuseReads(some); err != nil {
			return stoker.Errorf(stoker.KindInternal, "drain", "", "seccomp(2): %w (in a unit: SystemCallFilter=seccomp)", err)
		}
	}
	if err := wakeReaders(); err != nil {
		return stoker.Errorf(stoker.KindInternal, "drain", "", "%w", err)
	}
	for _, m := range all {
		select {
		case <-m.served:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// drained reports whether the mount stands, and all that was read from it is
// answered.
func (m *Mounted) drained() bool {
	select {
	case <-m.served:
	default:
		return false
	}
	select {
	case <-m.done:
		return false
	default:
		return true
	}
}

const (
	// maxRefused is how many descriptors one filter has: a program has at most
	// BPF_MAXINSNS (4096) instructions, two for each.
	maxRefused = 1000
	// leastRefused is less than go-fuse's buffer and more than any other read(2)
	// here asks for: a number that is given anew meanwhile is not harmed.
	leastRefused = 64 << 10
)

// refuseReads makes all large reads of these descriptors, by any thread of this
// process, fail with EAGAIN for ever.
func refuseReads(fds []int) error {
	const ( // of linux/seccomp.h: struct seccomp_data, on machines whose low words come first
		nrAt, fdAt, bytesAt = 0, 16, 32
		allow               = 0x7fff0000
		refuse              = 0x00050000 | uint32(unix.EAGAIN)
	)
	load := func(at uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: at}
	}
	give := func(k uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: k}
	}
	program := []unix.SockFilter{
		load(nrAt),
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_READ, Jt: 1},
		give(allow),
		load(bytesAt),
		{Code: unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K, K: leastRefused, Jt: 1},
		give(allow),
		load(fdAt),
	}
	for _, fd := range fds {
		program = append(program, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(fd), Jf: 1}, give(refuse))
	}
	program = append(program, give(allow))
	prog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	const setModeFilter, allThreads = 1, 1 // SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC
	thread, _, errno := unix.Syscall(unix.SYS_SECCOMP, setModeFilter, allThreads, uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(program)
	switch {
	case errno != 0:
		return errno
	case thread != 0:
		return errors.New("thread " + strconv.Itoa(int(thread)) + " has filters of its own")
	}
	return nil
}

// wakeReaders lets every system call that can be begun again begin again. Go
// sends itself this signal all the time, and takes one more for nothing.
func wakeReaders() error {
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, t := range threads {
		if tid, err := strconv.Atoi(t.Name()); err == nil {
			if err := unix.Tgkill(os.Getpid(), tid, unix.SIGURG); err != nil && !errors.Is(err, unix.ESRCH) {
				return os.NewSyscallError("tgkill", err)
			}
		}
	}
	return nil
}

// Resends reports whether this machine's kernel gives a new server what a dead one
// had not answered; of a mount its Handle knows it better.
func Resends() bool {
	var u unix.Utsname
	if older || unix.Uname(&u) != nil {
		return false
	}
	return since69(unix.ByteSliceToString(u.Release[:]))
}

// since69 reports whether a release of Linux is 6.9 or later.
func since69(release string) bool {
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return false
	}
	return major > 6 || major == 6 && minor >= 9
}

// older lets the tests of this and other packages take the kernel for one before
// 6.9: it is then not asked to resend.
var older = os.Getenv("STOKER_TEST_LINUX_6_8") != ""
