package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"stoker.dev"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		child(dir)
		return
	}
	goleak.VerifyTestMain(m)
}

const (
	testBlock = 4096 // blocks of these tests: small, so that there are many
	roomy     = 64 << 20
)

func open(t testing.TB, dir string, capacity int64) *Store {
	t.Helper()
	s, err := Open(Options{Dir: dir, CapacityBytes: capacity})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// reopen ends a store and opens its folder anew.
func reopen(t testing.TB, s *Store) *Store {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return open(t, s.Dir(), s.folders[0].capacity)
}

// specOf describes a shard whose last block is short.
func specOf(n uint64, blocks int) Spec {
	var id stoker.ID
	binary.BigEndian.PutUint64(id[:], n*0x9e3779b97f4a7c15+1)
	return Spec{ID: id, Bytes: int64(blocks)*testBlock - 1000, Blocks: blocks}
}

// content is what a block of a shard holds in these tests.
func content(spec Spec, block int) (off int64, p []byte) {
	off = int64(block) * testBlock
	p = make([]byte, min(testBlock, spec.Bytes-off))
	r := rand.NewPCG(binary.BigEndian.Uint64(spec.ID[:]), uint64(block))
	for i := 0; i < len(p); i += 8 {
		var w [8]byte
		binary.LittleEndian.PutUint64(w[:], r.Uint64())
		copy(p[i:], w[:])
	}
	return off, p
}

func create(t testing.TB, s *Store, spec Spec) *Shard {
	t.Helper()
	sh, err := s.Create(spec, "")
	if err != nil {
		t.Fatal(err)
	}
	return sh
}

func write(t testing.TB, sh *Shard, blocks ...int) {
	t.Helper()
	for _, b := range blocks {
		off, p := content(sh.Spec(), b)
		if _, err := sh.Write(b, off, p); err != nil {
			t.Fatal(err)
		}
	}
}

func upTo(n int) []int {
	all := make([]int, n)
	for i := range all {
		all[i] = i
	}
	return all
}

// put makes a shard with some blocks, sealed or not, and releases it.
func put(t testing.TB, s *Store, spec Spec, seal bool, blocks ...int) {
	t.Helper()
	sh := create(t, s, spec)
	defer sh.Release()
	write(t, sh, blocks...)
	if seal {
		if err := sh.Seal(); err != nil {
			t.Fatal(err)
		}
	}
}

func get(t testing.TB, s *Store, id stoker.ID) *Shard {
	t.Helper()
	sh, ok := s.Get(id)
	if !ok {
		t.Fatalf("shard %s is not there", id.Short())
	}
	return sh
}

// read reads one block and compares it: an error, or the right bytes.
func read(t testing.TB, sh *Shard, block int) error {
	t.Helper()
	off, want := content(sh.Spec(), block)
	got := make([]byte, len(want))
	if err := sh.ReadBlock(block, off, got); err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("shard %s block %d: wrong bytes without an error", sh.ID().Short(), block)
	}
	return nil
}

// present wants exactly these blocks, all readable.
func present(t testing.TB, sh *Shard, want ...int) {
	t.Helper()
	have := map[int]bool{}
	for _, b := range want {
		have[b] = true
		if err := read(t, sh, b); err != nil {
			t.Error(err)
		}
	}
	if sh.Present() != len(want) {
		t.Errorf("%d blocks are present, want %d", sh.Present(), len(want))
	}
	for b := range sh.Spec().Blocks {
		if sh.Has(b) != have[b] {
			t.Errorf("Has(%d) = %v", b, sh.Has(b))
		}
	}
}

func wantKind(t testing.TB, err error, kind stoker.Kind) {
	t.Helper()
	if err == nil || stoker.KindOf(err) != kind {
		t.Errorf("got %v (%v), want kind %v", err, stoker.KindOf(err), kind)
	}
}

// allocated adds up what the file system has given to the folder's files.
func allocated(t testing.TB, dir string) (sum int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st syscall.Stat_t
		if err := syscall.Lstat(path, &st); err != nil {
			return err
		}
		sum += st.Blocks * 512
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	return sum
}

func TestFolderIsPrivateAndHasOneOwner(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cache")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s := open(t, dir, roomy)
	for _, d := range []string{"", "shards", "state"} {
		if fi, err := os.Stat(filepath.Join(dir, d)); err != nil || fi.Mode().Perm() != 0o700 {
			t.Errorf("%q: %v %v, want 0700", d, fi.Mode(), err)
		}
	}
	_, err := Open(Options{Dir: dir, CapacityBytes: roomy})
	wantKind(t, err, stoker.KindBusy)
	if err != nil && !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
		t.Errorf("%v does not name the process %d", err, os.Getpid())
	}
	if again := reopen(t, s); again.WorkerID() != s.WorkerID() || len(s.WorkerID()) != 32 {
		t.Errorf("worker id %q became %q", s.WorkerID(), again.WorkerID())
	}
}

// A folder of somebody's files is no cache folder: nothing of it changes.
func TestForeignFolderIsLeftAlone(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "thesis"), nil, 0o644), os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	_, err := Open(Options{Dir: dir, CapacityBytes: roomy})
	wantKind(t, err, stoker.KindInvalid)
	fi, serr := os.Stat(dir)
	left, rerr := os.ReadDir(dir)
	if serr != nil || rerr != nil || fi.Mode().Perm() != 0o755 || len(left) != 1 {
		t.Errorf("%v, %v, %v, %v", fi.Mode(), left, serr, rerr)
	}
	fresh := t.TempDir() // a new file system
	if err := os.Mkdir(filepath.Join(fresh, "lost+found"), 0o700); err != nil {
		t.Fatal(err)
	}
	open(t, fresh, roomy)
}

func TestOpenRefuses(t *testing.T) {
	_, err := Open(Options{Dir: t.TempDir()})
	wantKind(t, err, stoker.KindInvalid)

	s := open(t, t.TempDir(), roomy)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.Dir(), "id"), []byte("../../etc\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = Open(Options{Dir: s.Dir(), CapacityBytes: roomy})
	wantKind(t, err, stoker.KindCorrupt)
}

func TestCreateRefuses(t *testing.T) {
	s := open(t, t.TempDir(), roomy)
	spec := specOf(1, 4)
	put(t, s, spec, false)
	for name, c := range map[string]Spec{
		"no bytes":              {ID: stoker.ID{9}, Blocks: 1},
		"no blocks":             {ID: stoker.ID{9}, Bytes: 1},
		"more bytes than fit":   {ID: stoker.ID{9}, Bytes: 10 << 20, Blocks: 1},
		"known with other size": {ID: spec.ID, Bytes: spec.Bytes + 1, Blocks: spec.Blocks},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := s.Create(c, "")
			wantKind(t, err, stoker.KindInvalid)
		})
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []Spec{spec, specOf(2, 4)} {
		_, err := s.Create(c, "")
		wantKind(t, err, stoker.KindTransient)
	}
	if _, ok := s.Get(spec.ID); ok {
		t.Error("a closed store gave a shard")
	}
}

func TestShardsAreListedInOrder(t *testing.T) {
	s := open(t, t.TempDir(), roomy)
	for n := range uint64(5) {
		put(t, s, specOf(n, 3), n == 2, upTo(3)...)
	}
	got := reopen(t, s).Shards()
	if len(got) != 5 {
		t.Fatalf("%d shards", len(got))
	}
	for i, sh := range got {
		if i > 0 && bytes.Compare(got[i-1].ID[:], sh.ID[:]) >= 0 {
			t.Error("not sorted by id")
		}
		if sh.Present != 3 || sh.Blocks != 3 || sh.Sealed != (sh.ID == specOf(2, 3).ID) || sh.LastUsed.IsZero() {
			t.Errorf("shard %s: %+v", sh.ID.Short(), sh)
		}
	}
}

// Check sees the files as they are now, not as they were when they were made.
func TestCheck(t *testing.T) {
	for name, c := range map[string]struct {
		harm func(data, index string) error
		want stoker.Kind
	}{
		"data gone":          {func(d, _ string) error { return os.Remove(d) }, stoker.KindCorrupt},
		"index gone":         {func(_, i string) error { return os.Remove(i) }, stoker.KindCorrupt},
		"data cut":           {func(d, _ string) error { return os.Truncate(d, 10) }, stoker.KindCorrupt},
		"index longer":       {func(_, i string) error { return os.Truncate(i, 10000) }, stoker.KindCorrupt},
		"a link, not a file": {func(d, i string) error { return os.Rename(d, d+"x") }, stoker.KindCorrupt},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, t.TempDir(), roomy)
			spec := specOf(1, 3)
			put(t, s, spec, true, upTo(3)...)
			if err := s.Check(spec.ID); err != nil {
				t.Errorf("whole shard: %v", err)
			}
			data, index := s.folders[0].path(spec.ID, dataSuffix), s.folders[0].path(spec.ID, indexSuffix)
			if err := c.harm(data, index); err != nil {
				t.Fatal(err)
			}
			if name == "a link, not a file" {
				if err := os.Symlink(data+"x", data); err != nil {
					t.Fatal(err)
				}
			}
			wantKind(t, s.Check(spec.ID), c.want)
		})
	}
	s := open(t, t.TempDir(), roomy)
	wantKind(t, s.Check(stoker.ID{1}), stoker.KindNotExist)
}
