package fuse

import (
	"context"
	"errors"
	"syscall"
	"testing"

	"stoker.dev"
)

func TestErrno(t *testing.T) {
	for err, want := range map[error]syscall.Errno{
		nil: 0,
		stoker.Errorf(stoker.KindNotExist, "x", "", "gone"):                  syscall.ESTALE,
		stoker.Errorf(stoker.KindStale, "x", "", "changed"):                  syscall.ESTALE,
		stoker.Errorf(stoker.KindDenied, "x", "", "no"):                      syscall.EACCES,
		stoker.Errorf(stoker.KindCorrupt, "x", "", "bits"):                   syscall.EIO,
		stoker.Errorf(stoker.KindTransient, "x", "", "%w", context.Canceled): syscall.EIO,
		context.Canceled:   syscall.EINTR,
		errors.New("what"): syscall.EIO,
	} {
		if got := Errno(err); got != want {
			t.Errorf("%v: %v, want %v", err, got, want)
		}
	}
}
