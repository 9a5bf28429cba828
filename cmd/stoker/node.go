package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"stoker.dev/internal/api"
)

// nodeProbes look at the machine that doctor runs on.
func nodeProbes() []api.Probe {
	return []api.Probe{
		{Name: "kernel", Run: func(context.Context) api.Check { return checkKernel(uname(), filesystems()) }},
		{Name: "fuse", Run: func(context.Context) api.Check { return checkFuse("/dev/fuse") }},
		{Name: "descriptors", Run: func(context.Context) api.Check { return checkLimit() }},
	}
}

// uname is the kernel's name and release.
func uname() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Sysname[:]) + " " + unix.ByteSliceToString(u.Release[:])
}

// filesystems is what the kernel can mount without loading anything.
func filesystems() string {
	body, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return ""
	}
	return string(body)
}

// checkKernel names the kernel. What it says of EROFS is for information: views
// work without.
func checkKernel(release, known string) api.Check {
	_, number, _ := strings.Cut(release, " ")
	erofs := "no EROFS from files (needs Linux 6.12): tree views serve all"
	if atLeast(number, 6, 12) {
		erofs = "EROFS from files may be there, as a module"
		if strings.Contains(known, "erofs") {
			erofs = "EROFS from files"
		}
	}
	if !atLeast(number, 5, 4) {
		return api.Warn("take Linux 5.4 or newer", "%s is older than what this is tested with", release)
	}
	return api.Ok("%s, %s", release, erofs)
}

// atLeast compares the first two numbers of a release.
func atLeast(release string, major, minor int) bool {
	a, b := 0, 0
	for i, field := range strings.SplitN(release, ".", 3) {
		n := 0
		for _, r := range field {
			if r < '0' || r > '9' {
				break
			}
			n = 10*n + int(r-'0')
		}
		switch i {
		case 0:
			a = n
		case 1:
			b = n
		}
	}
	return a > major || a == major && b >= minor
}

// checkFuse opens the device that views are made of.
func checkFuse(path string) api.Check {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err == nil {
		_ = unix.Close(fd)
		return api.Ok("%s opens", path)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return api.Fail("load the module ('modprobe fuse'), or give the container the device (--device /dev/fuse)", "%s is not there: nothing can be mounted on this node", path)
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return api.Fail("load the module: 'modprobe fuse'", "%s has no driver", path)
	}
	return api.Warn("only the worker needs it: see its own checks", "%s: %v", path, err)
}

// fewFiles is too few for training jobs that keep their data open.
const fewFiles = 4096

func checkLimit() api.Check {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return api.Warn("see 'ulimit -n'", "the limit of open files is not known: %v", err)
	}
	if l.Max < fewFiles {
		return api.Warn("raise the hard limit: LimitNOFILE= of the service or limits.conf", "at most %d open files for a process of yours", l.Max)
	}
	return api.Ok("%d open files for a process of yours, at most %d", l.Cur, l.Max)
}
