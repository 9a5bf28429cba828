package api

import (
	"context"
	"net"
	"os/user"
	"slices"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

type groupsKey struct{}

// GroupsOf returns the groups of the process at the other end of a Unix
// socket when it connected, its own first; nil for any other request.
func GroupsOf(ctx context.Context) []uint32 {
	gids, _ := ctx.Value(groupsKey{}).([]uint32)
	return gids
}

// peerGroups asks the kernel (SO_PEERCRED, SO_PEERGROUPS): a look-up by name
// would not know of groups that a directory server or a container gave.
func peerGroups(c *net.UnixConn) (gids []uint32, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	cerr := raw.Control(func(fd uintptr) {
		var cred *syscall.Ucred
		if cred, err = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED); err == nil {
			gids, err = moreGroups(fd, cred.Gid)
		}
	})
	if cerr != nil {
		return nil, cerr
	}
	return gids, err
}

// maxGroups is the kernel's own limit (NGROUPS_MAX).
const maxGroups = 65536

func moreGroups(fd uintptr, own uint32) ([]uint32, error) {
	for n := 64; ; n = maxGroups {
		gids := make([]uint32, 1+n)
		gids[0] = own
		size := uint32(4 * n)
		_, _, e := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&gids[1])), uintptr(unsafe.Pointer(&size)), 0)
		if e == 0 {
			return gids[:1+size/4], nil
		} else if e != unix.ERANGE || n == maxGroups {
			return nil, e
		}
	}
}

// MemberOf reports whether who sent a request is in a group, which is named or is a
// number: by the groups of the process at the other end of a Unix socket, and by the
// users that this node knows.
func MemberOf(ctx context.Context, group string) bool {
	gid, ok := gidOf(group)
	return ok && (slices.Contains(GroupsOf(ctx), gid) || userIn(PrincipalOf(ctx).Name, gid))
}

// UserIn reports whether a user is in a group by the users that this node knows.
func UserIn(name, group string) bool {
	gid, ok := gidOf(group)
	return ok && userIn(name, gid)
}

func gidOf(group string) (uint32, bool) {
	if g, err := user.LookupGroup(group); err == nil {
		group = g.Gid
	}
	n, err := strconv.ParseUint(group, 10, 32)
	return uint32(n), err == nil
}

func userIn(name string, gid uint32) bool {
	u, err := user.Lookup(name)
	if err != nil {
		return false
	}
	gids, err := u.GroupIds()
	return err == nil && slices.Contains(gids, strconv.FormatUint(uint64(gid), 10))
}
