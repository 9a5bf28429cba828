package posixufs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"stoker.dev/ufs"
)

var _ ufs.Prober = (*FS)(nil)

// Probe implements ufs.Prober: whether the folder is here, what it lies on, and
// how it is listed and read.
func (f *FS) Probe(ctx context.Context, prefix string) (found []ufs.Finding) {
	add := func(name string, level ufs.Level, hint, format string, args ...any) {
		found = append(found, ufs.Finding{Name: name, Level: level, Hint: hint, Detail: fmt.Sprintf(format, args...)})
	}
	const mount = "mount it at the same path on every controller and worker"
	if err := f.there(); err != nil {
		add("reachable", ufs.Bad, mount, "%v", err)
		return found
	}
	add("reachable", ufs.Fine, "", "%s is on %s, on a file system of type %s", f.folder, hostName(), f.kind())
	began := time.Now()
	page, err := f.List(ctx, ufs.ListOptions{Prefix: prefix})
	switch {
	case err != nil:
		add("listing", ufs.Bad, "see that the daemon may read every folder below it", "%v", err)
		return found
	case len(page.Objects) == 0:
		add("listing", ufs.Odd, "is its file system mounted? "+mount, "there is nothing in it")
		return found
	}
	add("listing", ufs.Fine, "", "%d files in a page, in %s", len(page.Objects), time.Since(began).Round(100*time.Microsecond))
	odd := 0
	for _, o := range page.Objects {
		if o.Unmountable != "" {
			odd++
		}
	}
	if odd > 0 {
		add("special-files", ufs.Odd, "take pipes, sockets and devices out of the folder, or live without them", "%d in the first page can be no file", odd)
	}
	i := slices.IndexFunc(page.Objects, func(o ufs.Object) bool {
		return o.Version.Bytes > 0 && o.Link == "" && o.Unmountable == ""
	})
	if i < 0 {
		add("read", ufs.Odd, "name a folder with files in its first page, to see how they are read", "there is no file with content to read")
		return found
	}
	began = time.Now()
	if err := f.readByte(ctx, page.Objects[i]); err != nil {
		add("read", ufs.Bad, "see that the daemon may read every file below it", "%v", err)
		return found
	}
	add("read", ufs.Fine, "", "a byte comes after %s; versions are mtime, size and inode", time.Since(began).Round(time.Microsecond))
	return found
}

func (f *FS) readByte(ctx context.Context, o ufs.Object) error {
	r, err := f.Open(ctx, o.Key, o.Version, 0, 1)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, r)
	return errors.Join(err, r.Close())
}

// kind names the type of the file system.
func (f *FS) kind() string {
	fd, err := f.open("", unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return "unknown"
	}
	defer unix.Close(fd)
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return "unknown"
	}
	names := map[int64]string{
		unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs", unix.TMPFS_MAGIC: "tmpfs",
		unix.NFS_SUPER_MAGIC: "nfs", unix.OVERLAYFS_SUPER_MAGIC: "overlay", unix.FUSE_SUPER_MAGIC: "fuse", unix.CEPH_SUPER_MAGIC: "ceph",
		unix.SMB2_SUPER_MAGIC: "smb", 0x0bd00bd0: "lustre", 0x47504653: "gpfs", 0x2fc12fc1: "zfs",
	}
	if name, ok := names[int64(st.Type)]; ok {
		return name
	}
	return fmt.Sprintf("%#x", st.Type)
}
