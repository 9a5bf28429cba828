// Package fuse holds what the views have in common: the one table from kinds
// of errors to errno, a READ's deadline and its answer. The views themselves are in tree and mount.
package fuse

import (
	"context"
	"errors"
	"syscall"

	"stoker.dev"
)

// Errno is what a process that reads a view sees of an error. It is 0 for nil.
func Errno(err error) syscall.Errno {
	if err == nil {
		return 0
	}
	var e *stoker.Error
	if !errors.As(err, &e) && errors.Is(err, context.Canceled) {
		return syscall.EINTR
	}
	switch stoker.KindOf(err) {
	case stoker.KindNotExist, stoker.KindStale:
		// The listing promised the object and the store no longer has it.
		return syscall.ESTALE
	case stoker.KindInvalid:
		return syscall.EINVAL
	case stoker.KindBusy, stoker.KindHeld:
		return syscall.EBUSY
	case stoker.KindDenied:
		return syscall.EACCES
	default: // Internal, Transient, Corrupt, NoSpace, Deadline, Incomplete
		return syscall.EIO
	}
}
