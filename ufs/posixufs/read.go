package posixufs

import (
	"context"
	"errors"
	"io"
	"strconv"

	"golang.org/x/sys/unix"

	"stoker.dev"
	"stoker.dev/ufs"
)

// Open implements ufs.FS. The version is compared before a byte is read and
// again before the last one is handed out, so that a file which is written to
// meanwhile is Stale, as far as its modification time tells.
func (f *FS) Open(ctx context.Context, key string, want ufs.Version, off, length int64) (io.ReadCloser, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if length <= 0 || off < 0 || length > want.Bytes-off {
		return nil, stoker.Errorf(stoker.KindInvalid, "file.open", key, "bytes %d+%d of %d", off, length, want.Bytes)
	}
	rel, err := f.path("file.open", key)
	if err != nil {
		return nil, err
	}
	fd, err := f.regular(key, rel)
	if err != nil {
		return nil, err
	}
	b := &body{ctx: ctx, f: f, fd: fd, key: key, want: want, off: off, left: length}
	if err := b.check(); err != nil {
		_ = b.Close() // nothing was read
		return nil, err
	}
	return b, nil
}

// regular opens a file for reading. It is looked at first through a descriptor
// that opens nothing: a device may act on being opened, a pipe waits for it.
func (f *FS) regular(key, rel string) (int, error) {
	at, err := f.open(rel, unix.O_PATH)
	if err != nil {
		return -1, f.failed("file.open", key, err)
	}
	defer unix.Close(at)
	i, err := stat(at, "", false)
	if err != nil {
		return -1, f.failed("file.open", key, err)
	}
	if !i.is(unix.S_IFREG) {
		return -1, stoker.Errorf(stoker.KindStale, "file.open", key, "was a file when it was listed, and is %s now", kindName(i.mode))
	}
	for {
		fd, err := unix.Open("/proc/self/fd/"+strconv.Itoa(at), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
		switch {
		case err == nil:
			return fd, nil
		case errors.Is(err, unix.ENOENT):
			return -1, stoker.Errorf(stoker.KindInternal, "file.open", key, "/proc is not mounted where the daemon runs (%w)", err)
		case err != unix.EINTR:
			return -1, f.failed("file.open", key, err)
		}
	}
}

// body reads a range of an open file.
type body struct {
	ctx       context.Context // of the Open: a reader lives in it
	f         *FS
	fd        int // -1: closed
	key       string
	want      ufs.Version
	off, left int64
	err       error // what Read returned and returns from now on
}

// check compares the file's version with the one asked for.
func (b *body) check() error {
	i, err := stat(b.fd, "", true)
	switch {
	case err != nil:
		return b.f.failed("file.read", b.key, err)
	case !b.want.Same(i.v):
		return stoker.Errorf(stoker.KindStale, "file.read", b.key, "changed since it was listed: it was %s, now %s (modified-bytes-inode)", described(b.want), i.v.Tag)
	}
	return nil
}

func described(v ufs.Version) string {
	if v.Tag != "" {
		return v.Tag
	}
	return strconv.FormatInt(v.Bytes, 10) + " bytes"
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	switch {
	case b.err != nil:
		return 0, b.err
	case b.left == 0:
		return 0, io.EOF
	case len(p) == 0:
		return 0, nil
	}
	n, err := b.read(p[:min(int64(len(p)), b.left)])
	if err == nil && int64(n) == b.left {
		err = b.check() // the last bytes are handed out only if all were of this version
	}
	if err != nil {
		b.err = err
		return 0, err
	}
	b.off, b.left = b.off+int64(n), b.left-int64(n)
	return n, nil
}

func (b *body) read(p []byte) (int, error) {
	for {
		if err := b.ctx.Err(); err != nil {
			return 0, err
		}
		n, err := unix.Pread(b.fd, p, b.off)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return 0, b.f.failed("file.read", b.key, err)
		case n > 0:
			return n, nil
		}
		if err := b.check(); err != nil { // it was cut off
			return 0, err
		}
		return 0, stoker.Errorf(stoker.KindTransient, "file.read", b.key, "ended with %d bytes left", b.left)
	}
}

// Close implements io.Closer.
func (b *body) Close() error {
	if b.fd < 0 {
		return nil
	}
	fd := b.fd
	b.fd, b.err = -1, stoker.Errorf(stoker.KindInvalid, "file.read", b.key, "closed")
	return unix.Close(fd)
}
