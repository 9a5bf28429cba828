// Package folder keeps small objects with conditional writes in a folder of a
// local or shared file system. A write is whole or not there; what a call
// returned survives power loss. Any number of processes may use one folder.
package folder

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"stoker.dev"
	"stoker.dev/ufs"
)

var (
	_ ufs.Objects       = (*Objects)(nil)
	_ ufs.ObjectStreams = (*Objects)(nil)
)

// Objects is one folder. Open makes it.
type Objects struct {
	dir string
}

const tempPrefix = ".new-" // no name can begin with it: words begin with a letter or digit

// Open takes the folder, and makes it if it is not there.
func Open(dir string) (*Objects, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, stoker.Errorf(stoker.KindInvalid, "store", dir, "%w", err)
	}
	return &Objects{filepath.Clean(dir)}, nil
}

func (o *Objects) path(name string) (string, error) {
	if err := ufs.CheckObjectName(name); err != nil {
		return "", err
	}
	return filepath.Join(o.dir, filepath.FromSlash(name)), nil
}

func tagOf(body []byte) string {
	sum := sha256.Sum256(body)
	return hex.EncodeToString(sum[:16])
}

// failed gives an error of the file system its kind.
func failed(op, name string, err error) error {
	kind := stoker.KindTransient
	switch {
	case errors.Is(err, fs.ErrNotExist):
		kind = stoker.KindNotExist
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.EISDIR), errors.Is(err, unix.ENAMETOOLONG):
		kind = stoker.KindInvalid // no other try helps
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS):
		kind = stoker.KindDenied
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		kind = stoker.KindNoSpace
	}
	return stoker.Errorf(kind, op, name, "%w", err)
}

// Get implements ufs.Objects.
func (o *Objects) Get(ctx context.Context, name string) ([]byte, string, error) {
	path, err := o.path(name)
	if err != nil {
		return nil, "", err
	}
	if err := ctx.Err(); err != nil {
		return nil, "", err
	}
	body, err := os.ReadFile(path)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.EISDIR) { // an object is where a folder would be, or the other way round
		return nil, "", stoker.Errorf(stoker.KindNotExist, "store.get", name, "%w", err)
	} else if err != nil {
		return nil, "", failed("store.get", name, err)
	}
	return body, tagOf(body), nil
}

// GetTo implements ufs.ObjectStreams.
func (o *Objects) GetTo(ctx context.Context, name string, w io.Writer) error {
	path, err := o.path(name)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return err
	}
	f, err := os.Open(path)
	if err == nil {
		_, err = io.Copy(w, f)
		_ = f.Close() // it was only read
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.EISDIR): // as in Get
		return stoker.Errorf(stoker.KindNotExist, "store.get", name, "%w", err)
	}
	return failed("store.get", name, err)
}

// temp writes body to a synced file beside path.
func temp(path string, body []byte) (string, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", err
	}
	f, err := os.CreateTemp(filepath.Dir(path), tempPrefix)
	if err != nil {
		return "", err
	}
	_, err = f.Write(body)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return "", err
	}
	return f.Name(), nil
}

// syncDirs makes the entry of path survive power loss, and those of the folders
// above it up to the store's own: another process may have just made them.
func (o *Objects) syncDirs(path string) error {
	for path != o.dir {
		path = filepath.Dir(path)
		d, err := os.Open(path)
		if err != nil {
			return err
		}
		if err := errors.Join(d.Sync(), d.Close()); err != nil {
			return err
		}
	}
	return nil
}

// PutIfAbsent implements ufs.Objects: link(2) makes the name or fails.
func (o *Objects) PutIfAbsent(ctx context.Context, name string, body []byte) (string, error) {
	path, err := o.path(name)
	if err != nil {
		return "", err
	}
	if err := ctx.Err(); err != nil {
		return "", err
	}
	tmp, err := temp(path, body)
	if err != nil {
		return "", failed("store.put", name, err)
	}
	defer func() { _ = os.Remove(tmp) }()
	if err := os.Link(tmp, path); errors.Is(err, fs.ErrExist) {
		return "", stoker.Errorf(stoker.KindHeld, "store.put", name, "exists already")
	} else if err != nil {
		return "", failed("store.put", name, err)
	}
	if err := o.syncDirs(path); err != nil {
		return "", failed("store.put", name, err)
	}
	return tagOf(body), nil
}

// ReplaceIf implements ufs.Objects. A lock on the folder makes comparing and
// renaming one step for all processes that replace or delete; PutIfAbsent
// needs none, since the name is there all the while.
func (o *Objects) ReplaceIf(ctx context.Context, name string, body []byte, tag string) (string, error) {
	path, err := o.path(name)
	if err != nil {
		return "", err
	}
	if err := ctx.Err(); err != nil {
		return "", err
	}
	unlock, err := o.lock()
	if err != nil {
		return "", failed("store.replace", name, err)
	}
	defer unlock()
	_, now, err := o.Get(ctx, name)
	if err != nil {
		return "", err
	}
	if now != tag {
		return "", stoker.Errorf(stoker.KindHeld, "store.replace", name, "was changed by another")
	}
	tmp, err := temp(path, body)
	if err != nil {
		return "", failed("store.replace", name, err)
	}
	if err := os.Rename(tmp, path); err != nil {
		_ = os.Remove(tmp)
		return "", failed("store.replace", name, err)
	}
	if err := o.syncDirs(path); err != nil {
		return "", failed("store.replace", name, err)
	}
	return tagOf(body), nil
}

// lock takes the folder's lock, waiting for its present holder.
func (o *Objects) lock() (func(), error) {
	f, err := os.OpenFile(filepath.Join(o.dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		_ = f.Close()
		return nil, err
	}
	return func() { _ = f.Close() }, nil
}

// List implements ufs.Objects.
func (o *Objects) List(ctx context.Context, prefix string) ([]string, error) {
	names := []string{}
	err := filepath.WalkDir(o.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		switch {
		case d == nil || path == o.dir:
			return nil
		case strings.HasPrefix(d.Name(), ".") && d.IsDir(): // a file server's snapshots
			return filepath.SkipDir
		case !d.Type().IsRegular():
			return nil
		}
		rel, err := filepath.Rel(o.dir, path)
		if err != nil {
			return err
		}
		if name := filepath.ToSlash(rel); strings.HasPrefix(name, prefix) && ufs.IsObjectName(name) {
			names = append(names, name)
		}
		return nil
	})
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, failed("store.list", prefix, err)
	}
	slices.Sort(names)
	return names, nil
}

// Delete implements ufs.Objects. It takes the lock, so that a ReplaceIf that is
// under way does not bring the object back.
func (o *Objects) Delete(ctx context.Context, name string) error {
	path, err := o.path(name)
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	unlock, err := o.lock()
	if err != nil {
		return failed("store.delete", name, err)
	}
	defer unlock()
	switch err := unix.Unlink(path); {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.EISDIR):
		return nil
	case err != nil:
		return failed("store.delete", name, err)
	}
	if err := o.syncDirs(path); err != nil {
		return failed("store.delete", name, err)
	}
	return nil
}
