package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestFsx is fsx in its reading mode: one file after the other is read in every
// way there is, thousands of times at random, against a model of it; what would
// change it is refused. On both kinds of views, first with nothing resident, then
// with all of it. The long part takes a new seed and more steps.
func TestFsx(t *testing.T) {
	seed, steps := uint64(1), 3000
	if os.Getenv("STOKER_TEST_LONG") != "" {
		seed, steps = uint64(rand.Uint32()), 50_000
	}
	c := up(t, 1, "1GiB", func(root string) {
		noise := make([]byte, 66<<20)
		_, _ = rand.NewChaCha8([32]byte{22}).Read(noise)
		for _, n := range []int{0, 1, 4095, 4096, 4097, 256<<10 - 1, 256 << 10, 256<<10 + 1, 1<<20 + 3, 5 << 20, 64 << 20, 66<<20 - 777} {
			if err := os.WriteFile(filepath.Join(root, fmt.Sprint("of-", n)), noise[len(noise)-n:], 0o644); err != nil {
				t.Fatal(err)
			}
		}
	})
	c.add()
	for _, warm := range []string{"cold", "resident"} {
		for _, kind := range viewKinds(t) {
			t.Run(warm+"/"+kind, func(t *testing.T) {
				if warm == "resident" {
					c.must("preload", "data", "--wait")
				} else {
					c.evictUnmounted("data")
				}
				dir := c.mountAs(kind, "data")
				// In another process: see mapped.
				cmd := exec.Command(os.Args[0], "-test.run=^TestFsxReads$", "-test.v")
				cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0", "STOKER_E2E_FSX="+fmt.Sprint(seed, " ", steps),
					"STOKER_E2E_FSX_SOURCE="+filepath.Join(c.root, "data"), "STOKER_E2E_FSX_VIEW="+dir)
				if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), fmt.Sprint(steps, " steps")) {
					t.Errorf("seed %d, %d steps: %v\n%s", seed, steps, err, out)
				}
				c.must("umount", dir)
			})
		}
	}
}

// TestFsxReads is the other process of TestFsx.
func TestFsxReads(t *testing.T) {
	var seed uint64
	var steps int
	if n, _ := fmt.Sscan(os.Getenv("STOKER_E2E_FSX"), &seed, &steps); n != 2 {
		t.Skip("run by TestFsx")
	}
	x := &fsx{r: rand.New(rand.NewPCG(seed, 22)), source: os.Getenv("STOKER_E2E_FSX_SOURCE"), view: os.Getenv("STOKER_E2E_FSX_VIEW")}
	files, _ := listTree(t, x.source)
	for i := range steps {
		if i%100 == 0 {
			x.open(t, files[x.r.IntN(len(files))])
		}
		if err := x.step(); err != nil {
			t.Fatalf("seed %d, step %d, %s: %v; before that:\n%s", seed, i, x.f.Name(), err, strings.Join(x.log, "\n"))
		}
	}
	_ = x.f.Close()
	fmt.Println(steps, "steps")
}

// fsx is one reader of one file after the other.
type fsx struct {
	r            *rand.Rand
	source, view string
	f            *os.File
	want         []byte   // its bytes
	at           int64    // where the descriptor stands
	log          []string // the last steps
}

func (x *fsx) open(t *testing.T, name string) {
	t.Helper()
	if x.f != nil {
		_ = x.f.Close()
	}
	var err error
	if x.want, err = os.ReadFile(filepath.Join(x.source, name)); err != nil {
		t.Fatal(err)
	}
	if x.f, err = os.Open(filepath.Join(x.view, name)); err != nil {
		t.Fatal(err)
	}
	x.at = 0
}

// place draws an offset and a length, near the edges of pages, blocks and the
// file more often than elsewhere; it may lie behind the end.
func (x *fsx) place() (off int64, n int) {
	size := int64(len(x.want))
	off = x.r.Int64N(size + 1)
	edge := []int64{1, 4 << 10, 256 << 10, 1 << 20, 64 << 20, size + 1}[x.r.IntN(6)]
	if x.r.IntN(2) == 0 {
		off = max(0, off/edge*edge+x.r.Int64N(5)-2)
	}
	if x.r.IntN(8) == 0 {
		off = max(0, size-x.r.Int64N(9000)+100)
	}
	return off, 1 + x.r.IntN([]int{1, 4, 4096, 9000, 300 << 10, 3 << 20}[x.r.IntN(6)])
}

// part is what a read of n bytes at off gives.
func (x *fsx) part(off int64, n int) []byte {
	off = min(off, int64(len(x.want)))
	return x.want[off:min(off+int64(n), int64(len(x.want)))]
}

func (x *fsx) same(what string, off int64, got, want []byte, err error) error {
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("%s at %d: %w", what, off, err)
	}
	if !bytes.Equal(got, want) {
		for i := range min(len(got), len(want)) {
			if got[i] != want[i] {
				return fmt.Errorf("%s at %d: byte %d of %d is %#x, want %#x", what, off, i, len(want), got[i], want[i])
			}
		}
		return fmt.Errorf("%s at %d: %d bytes, want %d", what, off, len(got), len(want))
	}
	return nil
}

func (x *fsx) step() error {
	off, n := x.place()
	kinds := []struct {
		name string
		do   func(off int64, n int) error
	}{
		{"pread", x.pread}, {"pread", x.pread}, {"preadv", x.preadv}, {"read", x.read}, {"read", x.read}, {"seek", x.seek}, {"mmap", x.mmap}, {"mmap", x.mmap},
		{"copy", x.copyOut}, {"drop", x.drop}, {"refused", x.refused}, {"reopen", x.reopen}, {"stat", x.stat},
	}
	k := kinds[x.r.IntN(len(kinds))]
	x.log = append(x.log[max(0, len(x.log)-20):], fmt.Sprintf("%s %d at %d of %d", k.name, n, off, len(x.want)))
	return k.do(off, n)
}

func (x *fsx) pread(off int64, n int) error {
	got := make([]byte, n)
	k, err := x.f.ReadAt(got, off)
	return x.same("pread", off, got[:k], x.part(off, n), err)
}

func (x *fsx) preadv(off int64, n int) error {
	bufs := [][]byte{make([]byte, n/3), make([]byte, n-n/3)}
	k, err := unix.Preadv(int(x.f.Fd()), bufs, off)
	want := x.part(off, n)
	if err == nil && k < len(want) { // a signal may cut it short
		want = want[:k]
	}
	return x.same("preadv", off, slicesOf(bufs, k), want, err)
}

func slicesOf(bufs [][]byte, n int) []byte { return bytes.Join(bufs, nil)[:max(n, 0)] }

// read goes on where the descriptor stands, as often by a seek as not.
func (x *fsx) read(off int64, n int) error {
	if x.r.IntN(2) == 0 {
		to, err := x.f.Seek(off, io.SeekStart)
		if err != nil || to != off {
			return fmt.Errorf("seek to %d: %d, %w", off, to, err)
		}
		x.at = off
	}
	got := make([]byte, n)
	k, err := io.ReadFull(x.f, got)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil
	}
	was := x.at
	x.at += int64(k)
	return x.same("read", was, got[:k], x.part(was, n), err)
}

// seek asks where data and holes are: there are none but behind the end.
func (x *fsx) seek(off int64, _ int) error {
	size := int64(len(x.want))
	for _, s := range []struct {
		whence int
		off    int64
		to     int64 // -1: ENXIO
	}{{unix.SEEK_DATA, off, off}, {unix.SEEK_HOLE, off, size}, {unix.SEEK_END, -off, size - off}, {unix.SEEK_CUR, off, x.at + off}} {
		to, err := unix.Seek(int(x.f.Fd()), s.off, s.whence)
		switch {
		case s.whence >= unix.SEEK_DATA && off >= size:
			if !errors.Is(err, unix.ENXIO) {
				return fmt.Errorf("lseek(%d, %d) of %d bytes: %d, %w, want ENXIO", s.off, s.whence, size, to, err)
			}
			continue
		case s.to < 0:
			if !errors.Is(err, unix.EINVAL) {
				return fmt.Errorf("lseek(%d, %d) of %d bytes: %d, %w, want EINVAL", s.off, s.whence, size, to, err)
			}
			continue
		case s.whence == unix.SEEK_CUR: // the others have moved it
		case err != nil || to != s.to:
			return fmt.Errorf("lseek(%d, %d) of %d bytes: %d, %w, want %d", s.off, s.whence, size, to, err, s.to)
		}
		x.at = to
	}
	return nil
}

// mmap reads through a map, private and written to half of the time: that
// changes nothing for others. Behind the end, up to the end of its page, are
// zeros.
func (x *fsx) mmap(off int64, n int) error {
	off = off / 4096 * 4096
	if off >= int64(len(x.want)) {
		return nil
	}
	want := x.part(off, n)
	pages := (len(want) + 4095) / 4096 * 4096
	flags, prot := unix.MAP_SHARED, unix.PROT_READ
	if x.r.IntN(2) == 0 {
		flags, prot = unix.MAP_PRIVATE, unix.PROT_READ|unix.PROT_WRITE
	}
	m, err := unix.Mmap(int(x.f.Fd()), off, pages, prot, flags)
	if err != nil {
		return fmt.Errorf("mmap at %d: %w", off, err)
	}
	defer func() { _ = unix.Munmap(m) }()
	if x.r.IntN(4) == 0 {
		if err := unix.Madvise(m, []int{unix.MADV_RANDOM, unix.MADV_SEQUENTIAL, unix.MADV_WILLNEED}[x.r.IntN(3)]); err != nil {
			return fmt.Errorf("madvise: %w", err)
		}
	}
	tail := make([]byte, pages)
	copy(tail, x.part(off, pages))
	err = x.same("mmap", off, m, tail, nil)
	if prot&unix.PROT_WRITE != 0 {
		m[x.r.IntN(len(want))] ^= 0xff
		return errors.Join(err, x.pread(off, min(n, 4096)))
	}
	return err
}

// copyOut lets the kernel copy to another file.
func (x *fsx) copyOut(off int64, n int) error {
	to, err := os.CreateTemp("", "fsx")
	if err != nil {
		return err
	}
	defer to.Close()
	if err := os.Remove(to.Name()); err != nil {
		return err
	}
	want, from := x.part(off, n), off
	for from < off+int64(len(want)) {
		k, err := unix.Sendfile(int(to.Fd()), int(x.f.Fd()), &from, int(off)+len(want)-int(from))
		if err != nil || k == 0 {
			return fmt.Errorf("sendfile at %d: %d, %w", from, k, err)
		}
	}
	got := make([]byte, len(want))
	if _, err := to.ReadAt(got, 0); err != nil && len(got) > 0 {
		return err
	}
	return x.same("sendfile", off, got, want, nil)
}

func (x *fsx) drop(off int64, n int) error {
	return unix.Fadvise(int(x.f.Fd()), off, int64(n), []int{unix.FADV_DONTNEED, unix.FADV_WILLNEED, unix.FADV_RANDOM, unix.FADV_NORMAL}[x.r.IntN(4)])
}

// refused is all that would change the file.
func (x *fsx) refused(off int64, n int) error {
	fd, name := int(x.f.Fd()), x.f.Name()
	errs := map[string][2]error{
		"truncate":  {unix.Truncate(name, off), unix.EROFS},
		"ftruncate": {unix.Ftruncate(fd, off), unix.EINVAL},
		"chmod":     {unix.Chmod(name, 0o600), unix.EROFS},
		"unlink":    {unix.Unlink(name), unix.EROFS},
		"fallocate": {unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, int64(n)), unix.EBADF},
		"open":      {openFor(name, os.O_RDWR), unix.EROFS},
	}
	_, werr := unix.Pwrite(fd, []byte{0}, off)
	errs["pwrite"] = [2]error{werr, unix.EBADF}
	if m, merr := unix.Mmap(fd, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); merr == nil {
		_ = unix.Munmap(m)
		return errors.New("a shared map that can be written")
	}
	for what, e := range errs {
		if !errors.Is(e[0], e[1]) {
			return fmt.Errorf("%s: %w, want %w", what, e[0], e[1])
		}
	}
	return nil
}

func (x *fsx) reopen(int64, int) error {
	// A second descriptor, by the first one's place in /proc, then the name.
	for _, name := range []string{"/proc/self/fd/" + strconv.Itoa(int(x.f.Fd())), x.f.Name()} {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		if strings.HasPrefix(name, "/proc") {
			_ = f.Close()
			continue
		}
		_ = x.f.Close()
		x.f, x.at = f, 0
	}
	return nil
}

func (x *fsx) stat(int64, int) error {
	fi, err := x.f.Stat()
	if err != nil || fi.Size() != int64(len(x.want)) {
		return fmt.Errorf("fstat: %v, %w, want %d bytes", fi, err, len(x.want))
	}
	return nil
}
