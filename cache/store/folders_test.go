package store

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"stoker.dev"
)

// openFolders opens folders of these capacities, made below root as a, b, c.
func openFolders(t testing.TB, root string, fail func(op, path string) error, capacities ...int64) *Store {
	t.Helper()
	s, err := Open(Options{Folders: foldersOf(root, capacities...), fail: fail})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func foldersOf(root string, capacities ...int64) (out []Folder) {
	for i, c := range capacities {
		out = append(out, Folder{filepath.Join(root, string(rune('a'+i))), c})
	}
	return out
}

// where returns the number of the folder that has a shard; -1 = none.
func where(s *Store, id stoker.ID) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, f := range s.folders {
		if sh := s.shards[id]; sh != nil && sh.f == f {
			return i
		}
	}
	return -1
}

// Folders of unlike sizes fill up evenly for their size, each stays below its
// limit, and a promise that fits their sum is kept to its last shard.
func TestFoldersFillEvenly(t *testing.T) {
	const a, b, c = baseOverhead + 2<<20, baseOverhead + 4<<20, baseOverhead + 1<<20
	s := openFolders(t, t.TempDir(), nil, a, b, c)
	if u := s.Usage(); u.CapacityBytes != a+b+c || u.UsedBytes != 3*baseOverhead {
		t.Fatalf("%+v, want the sum of the folders", u)
	}
	need := s.ChargeBytes(specOf(0, 50).Bytes, 50)
	count := s.FreeBytes(need) / need
	if err := s.ReserveFor("load", count*need, need); err != nil {
		t.Fatal(err)
	}
	wantKind(t, s.ReserveFor("more", 2*need, need), stoker.KindNoSpace)
	for n := range uint64(count) {
		sh, err := s.Create(specOf(n, 50), "load")
		if err != nil {
			t.Fatalf("shard %d of %d that were promised: %v", n, count, err)
		}
		sh.Release()
		if n == uint64(count)/2 {
			evenly(t, s, need)
		}
	}
	for i, f := range s.Folders() {
		if f.UsedBytes > f.CapacityBytes || f.CapacityBytes-f.UsedBytes > 2*need {
			t.Errorf("folder %d has %d of %d bytes used", i, f.UsedBytes, f.CapacityBytes)
		}
		if sum := allocated(t, f.Dir); sum > f.CapacityBytes {
			t.Errorf("folder %d takes %d bytes, its limit is %d", i, sum, f.CapacityBytes)
		}
	}
	if left := s.Reservations()["load"]; left != 0 {
		t.Errorf("%d bytes of the promise are left", left)
	}
}

// evenly wants that no folder is fuller than another by more than a shard.
func evenly(t *testing.T, s *Store, charge int64) {
	t.Helper()
	least, most := 2.0, 0.0
	for _, f := range s.Folders() {
		fill := float64(f.UsedBytes) / float64(f.CapacityBytes)
		least, most = min(least, fill), max(most, fill)
	}
	if slack := float64(charge) / float64(baseOverhead+1<<20); most-least > 2*slack {
		t.Errorf("the least full folder has %.2f of its size, the fullest %.2f", least, most)
	}
}

// What several folders may waste is set aside before anything is promised, so
// that a promise does not depend on how the free bytes are spread.
func TestPromiseSurvivesFragments(t *testing.T) {
	s := openFolders(t, t.TempDir(), nil, baseOverhead+500_000, baseOverhead+500_000, baseOverhead+500_000)
	small, large := specOf(1, 10), specOf(2, 80)
	need := s.ChargeBytes(large.Bytes, large.Blocks)
	if err := s.ReserveFor("large", need, need); err != nil {
		t.Fatal(err)
	}
	made := 0
	for n := uint64(10); ; n++ { // others take all that is not promised
		spec := small
		spec.ID = specOf(n, 10).ID
		sh, err := s.Create(spec, "")
		if err != nil {
			wantKind(t, err, stoker.KindNoSpace)
			break
		}
		sh.Release()
		made++
	}
	if made == 0 {
		t.Error("nothing else was taken in")
	}
	sh, err := s.Create(large, "large")
	if err != nil {
		t.Fatalf("after %d small shards: %v", made, err)
	}
	sh.Release()
}

// At a restart folders may be swapped, added and removed: what is in those
// that are there is kept, with the id, documents and promises of the newest.
func TestFoldersComeAndGo(t *testing.T) {
	root := t.TempDir()
	dirs := foldersOf(root, roomy, roomy, roomy)
	boot := func(f ...Folder) *Store {
		t.Helper()
		s, err := Open(Options{Folders: f})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		return s
	}
	s := boot(dirs[0], dirs[1])
	id := s.WorkerID()
	for n := range uint64(6) {
		put(t, s, specOf(n, 4), true, upTo(4)...)
	}
	must(t, s.PutState("leases", []byte("first")), s.ReserveFor("r", 12345, 1000), s.Close())

	s = boot(dirs[1], dirs[0]) // swapped
	if len(s.Shards()) != 6 || s.WorkerID() != id || s.Reservations()["r"] != 12345 {
		t.Fatalf("%d shards, worker %s, %v", len(s.Shards()), s.WorkerID(), s.Reservations())
	}
	must(t, s.Close())

	s = boot(dirs[1], dirs[2]) // one is gone, a new one came
	if n := len(s.Shards()); n == 0 || n == 6 {
		t.Errorf("%d shards are in one of two folders", n)
	}
	body, err := s.GetState("leases")
	if s.WorkerID() != id || err != nil || string(body) != "first" || s.Reservations()["r"] != 12345 {
		t.Errorf("worker %s, document %q %v, %v", s.WorkerID(), body, err, s.Reservations())
	}
	must(t, s.PutState("leases", []byte("second")), s.PutState("new", []byte("x")), s.Unreserve("r"))
	for n := range uint64(6) { // fetched again, where they are missing
		put(t, s, specOf(n, 4), true, upTo(4)...)
	}
	must(t, s.Close())

	s = boot(dirs...) // it is back, with old documents and shards that are elsewhere too
	body, err = s.GetState("leases")
	names, _ := s.ListState("")
	if err != nil || string(body) != "second" || len(names) != 2 || len(s.Reservations()) != 0 || len(s.Shards()) != 6 {
		t.Errorf("document %q %v of %v, %v, %d shards", body, err, names, s.Reservations(), len(s.Shards()))
	}
	files := 0
	for _, d := range dirs {
		got, _ := filepath.Glob(filepath.Join(d.Dir, "shards", "*", "*"+dataSuffix))
		files += len(got)
	}
	if files != 6 {
		t.Errorf("%d files of 6 shards", files)
	}
}

// Each folder has every document: any of them can be lost.
func TestAnyFolderCanBeLost(t *testing.T) {
	for lost := range 3 {
		t.Run(fmt.Sprint(lost), func(t *testing.T) {
			root := t.TempDir()
			s := openFolders(t, root, nil, roomy, roomy, roomy)
			id := s.WorkerID()
			must(t, s.PutState("leases", []byte("held")), s.ReserveFor("r", 5000, 100), s.Close(),
				os.RemoveAll(foldersOf(root, 1, 1, 1)[lost].Dir))
			s = openFolders(t, root, nil, roomy, roomy, roomy)
			body, err := s.GetState("leases")
			if err != nil || string(body) != "held" || s.Reservations()["r"] != 5000 || s.WorkerID() != id {
				t.Errorf("%q %v, %v, %s", body, err, s.Reservations(), s.WorkerID())
			}
		})
	}
}

func TestFoldersThatAreRefused(t *testing.T) {
	root := t.TempDir()
	a, b := filepath.Join(root, "a"), filepath.Join(root, "b")
	must(t, openFolders(t, root, nil, roomy).Close())
	other := open(t, b, roomy)
	theirs := other.WorkerID()
	must(t, other.Close(), os.Symlink(a, filepath.Join(root, "link")))
	for name, c := range map[string]struct {
		folders []Folder
		say     string
	}{
		"of another worker": {[]Folder{{a, roomy}, {b, roomy}}, theirs[:8]},
		"twice":             {[]Folder{{a, roomy}, {filepath.Join(root, "link"), roomy}}, "same folder"},
		"one in another":    {[]Folder{{a, roomy}, {filepath.Join(a, "shards"), roomy}}, "lies in another"},
		"without a size":    {[]Folder{{a, roomy}, {filepath.Join(root, "c"), 0}}, "capacity of 0"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Open(Options{Folders: c.folders})
			wantKind(t, err, stoker.KindInvalid)
			if err == nil || !strings.Contains(err.Error(), c.say) || !strings.Contains(err.Error(), root) {
				t.Errorf("%v, want it to say %q", err, c.say)
			}
		})
	}
	busy := open(t, a, roomy)
	defer busy.Close()
	_, err := Open(Options{Folders: []Folder{{filepath.Join(root, "d"), roomy}, {a, roomy}}})
	wantKind(t, err, stoker.KindBusy)
}

func must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// sick fails what an operation on files below a folder does.
type sick struct {
	dir string
	ops string // of disk.go, "*" = all changes
	err error
}

func (d *sick) fail(op, path string) error {
	if d.err == nil || !inside(d.dir, path) && path != d.dir || !strings.Contains(d.ops, op) && (d.ops != "*" || op == "readAt") {
		return nil
	}
	return &os.PathError{Op: op, Path: path, Err: d.err}
}

// told collects the shards that a store gave up by itself.
func watchRetired(s *Store) *[]*Shard {
	gone := &[]*Shard{}
	s.OnRetired(func(sh []*Shard) { *gone = append(*gone, sh...) })
	return gone
}

// A disk that refuses a change, whichever, is taken out of service: its
// capacity is gone, what is whole there is served, the shard that was being
// written is made in another folder, and nothing is promised beyond the rest.
func TestDiskThatRefusesWrites(t *testing.T) {
	for _, errno := range []error{unix.EIO, unix.EROFS} {
		for _, op := range []string{"create", "writeAt", "sync", "syncDir", "mkdir"} {
			t.Run(fmt.Sprint(op, " ", errno), func(t *testing.T) {
				d := &sick{ops: op}
				s := openFolders(t, t.TempDir(), d.fail, roomy, roomy)
				gone := watchRetired(s)
				whole := specOf(1, 4) // in a
				put(t, s, whole, true, upTo(4)...)
				if where(s, whole.ID) != 0 {
					t.Fatal("the first shard is not in the first folder")
				}
				put(t, s, specOf(2, 40), false, 0) // in b
				part := specOf(3, 4)               // in a
				put(t, s, part, false, 0, 1)
				d.dir, d.err = s.folders[0].dir, errno
				sh := get(t, s, part.ID)
				defer sh.Release()
				var werr error
				last := 4
				if op == "create" || op == "mkdir" { // met by a new shard alone
					last = 3
				}
				for b := 2; b < last && werr == nil; b++ {
					off, p := content(part, b)
					_, werr = sh.Write(b, off, p)
				}
				serr := sh.Seal()
				cre, cerr := s.Create(specOf(4, 4), "")
				s.Probe()
				if cerr != nil || where(s, cre.ID()) != 1 {
					t.Fatalf("a new shard is in folder %d: %v", where(s, specOf(4, 4).ID), cerr)
				}
				cre.Release()
				f := s.Folders()
				if f[0].State != Readonly || f[1].State != InService || f[0].Reason == "" || f[0].LimitBytes != 0 {
					t.Fatalf("write %v, seal %v: %+v", werr, serr, f)
				}
				if u := s.Usage(); u.CapacityBytes != roomy {
					t.Errorf("capacity is %d with one folder of two out of service", u.CapacityBytes)
				}
				wantKind(t, s.ReserveFor("much", roomy, 1000), stoker.KindNoSpace)
				if !sh.Retired() || sh.Has(0) || !sh.Had(0) || len(*gone) != 1 || (*gone)[0] != sh {
					t.Errorf("the shard being written: retired %v, told %d", sh.Retired(), len(*gone))
				}
				put(t, s, part, true, upTo(4)...)
				if where(s, part.ID) != 1 {
					t.Errorf("it was made anew in folder %d", where(s, part.ID))
				}
				w := get(t, s, whole.ID)
				if err := read(t, w, 3); err != nil {
					t.Errorf("what was whole on the disk: %v", err)
				}
				w.Release()
				must(t, s.PutState("leases", []byte("x")))
			})
		}
	}
}

// A folder that goes out of service by what was written of a shard has, from then on,
// the older documents: neither at the next start, though it is named first, nor
// when it comes back before are they taken for the right ones.
func TestDocumentsOfAFolderThatWasOut(t *testing.T) {
	for _, back := range []bool{false, true} {
		t.Run(fmt.Sprint("back before the start: ", back), func(t *testing.T) {
			d := &sick{ops: "writeAt"}
			root := t.TempDir()
			s := openFolders(t, root, d.fail, roomy, roomy)
			must(t, s.PutState("leases", []byte("first")), s.PutState("gone", []byte("x")), s.ReserveFor("r", 5000, 100))
			d.dir, d.err = s.folders[0].dir, unix.EIO
			put(t, s, specOf(1, 4), true, upTo(4)...)
			if f := s.Folders()[0]; f.State != Readonly {
				t.Fatalf("%+v", f)
			}
			must(t, s.PutState("leases", []byte("second")), s.DeleteState("gone"), s.Unreserve("r"))
			if d.err = nil; back {
				for range goodProbes {
					s.Probe()
				}
				if f := s.Folders()[0]; f.State != InService {
					t.Fatalf("%+v", f)
				}
				must(t, s.Close(), os.RemoveAll(s.folders[1].dir)) // what the one that came back has is all
			} else {
				must(t, s.Close())
			}
			s = openFolders(t, root, nil, roomy, roomy)
			body, err := s.GetState("leases")
			names, _ := s.ListState("")
			if err != nil || string(body) != "second" || len(names) != 1 || len(s.Reservations()) != 0 {
				t.Errorf("%q %v of %v, %v", body, err, names, s.Reservations())
			}
		})
	}
}

// A disk that is full before its limit keeps what it has; a shard that does
// not fit any more is made elsewhere, and its limit follows what others leave.
func TestDiskFullOfOthers(t *testing.T) {
	d := &sick{ops: "writeAt"}
	s := openFolders(t, t.TempDir(), d.fail, roomy, roomy)
	part := specOf(1, 4)
	put(t, s, part, false, 0)
	d.dir, d.err = s.folders[0].dir, unix.ENOSPC
	sh := get(t, s, part.ID)
	off, p := content(part, 1)
	_, err := sh.Write(1, off, p)
	wantKind(t, err, stoker.KindNoSpace)
	sh.Release()
	if f := s.Folders()[0]; f.State != Full || f.LimitBytes > f.UsedBytes+s.ChargeBytes(part.Bytes, part.Blocks) {
		t.Errorf("%+v", f)
	}
	put(t, s, part, true, upTo(4)...)
	if where(s, part.ID) != 1 {
		t.Error("the shard was not made in the other folder")
	}
	must(t, s.PutState("doc", []byte("x"))) // the full one is left behind
	d.err = nil
	for range goodProbes {
		s.Probe()
	}
	if f := s.Folders()[0]; f.State != InService || f.LimitBytes != roomy {
		t.Errorf("there is space again: %+v", f)
	}
	if body, err := os.ReadFile(filepath.Join(s.folders[0].dir, "state", "doc.json")); err != nil || string(body) != "x" {
		t.Errorf("the document of the folder that was full: %q %v", body, err)
	}
}

// A shard has its place on the disk before its bytes come; without one it is made
// elsewhere, and nothing of it stays behind.
func TestShardsHaveTheirPlace(t *testing.T) {
	d := &sick{ops: "allocate"}
	root := t.TempDir()
	s := openFolders(t, root, d.fail, roomy, roomy)
	first, second := specOf(1, 700), specOf(2, 700)
	put(t, s, first, false, 0)
	var in unix.Statfs_t
	must(t, unix.Statfs(root, &in))
	if has := allocated(t, s.folders[0].path(first.ID, dataSuffix)); in.Type != unix.TMPFS_MAGIC && has < first.Bytes {
		t.Errorf("%d bytes of %d have their place", has, first.Bytes)
	}
	d.dir, d.err = s.folders[1].dir, unix.ENOSPC
	put(t, s, second, true, upTo(700)...)
	if f := s.Folders(); where(s, second.ID) != 0 || f[1].State != Full {
		t.Errorf("in folder %d; %+v", where(s, second.ID), f)
	}
	for _, suffix := range []string{dataSuffix, indexSuffix} {
		if _, err := os.Stat(s.folders[1].path(second.ID, suffix)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("left behind: %v", err)
		}
	}
}

// What a full folder has left is what its disk has, but for shards that have not their
// place on it yet: the others are not taken off twice.
func TestFullFolderCountsShardsOnce(t *testing.T) {
	d := &sick{ops: "allocate"}
	root := t.TempDir()
	s := openFolders(t, root, d.fail, roomy)
	placed, sparse := specOf(1, 700), specOf(2, 700)
	put(t, s, placed, false, 0)
	d.dir, d.err = s.folders[0].dir, unix.ENOTTY
	put(t, s, sparse, false, upTo(350)...)
	check := func(when string) {
		t.Helper()
		s.mu.Lock()
		defer s.mu.Unlock()
		for id, want := range map[stoker.ID]bool{placed.ID: allocated(t, s.folders[0].path(placed.ID, dataSuffix)) >= placed.Bytes, sparse.ID: false} {
			if s.shards[id].placed != want {
				t.Errorf("%s: shard %s has its place: %v", when, id.Short(), !want)
			}
		}
		s.shards[placed.ID].placed = true // so that the sum is the same on a tmpfs
		if got := s.folders[0].unplacedLocked(); got != sparse.Bytes-sparse.Bytes/2 {
			t.Errorf("%s: %d bytes have no place, want half of %d", when, got, sparse.Bytes)
		}
	}
	check("at first")
	must(t, s.Close())
	s = openFolders(t, root, nil, roomy)
	check("after a restart")
}

// Where the disk cannot give a shard its place it is made without, sparse.
func TestShardsWithoutTheirPlace(t *testing.T) {
	d := &sick{ops: "allocate"}
	s := openFolders(t, t.TempDir(), d.fail, roomy)
	d.dir, d.err = s.folders[0].dir, unix.ENOTTY
	put(t, s, specOf(1, 700), true, upTo(700)...)
	if f := s.Folders()[0]; f.State != InService {
		t.Errorf("%+v", f)
	}
}

// The only folder, full: what is there is kept, and the rest has no space.
func TestOnlyDiskFullOfOthers(t *testing.T) {
	d := &sick{ops: "writeAt"}
	s := openFolders(t, t.TempDir(), d.fail, roomy)
	part := specOf(1, 4)
	put(t, s, part, false, 0)
	d.dir, d.err = s.folders[0].dir, unix.ENOSPC
	sh := get(t, s, part.ID)
	defer sh.Release()
	off, p := content(part, 1)
	_, err := sh.Write(1, off, p)
	wantKind(t, err, stoker.KindNoSpace)
	_, err = s.Create(specOf(2, 4), "")
	wantKind(t, err, stoker.KindNoSpace)
	if sh.Retired() || read(t, sh, 0) != nil {
		t.Error("the block that was there is gone")
	}
}

// A disk whose files cannot be read, or have wrong bytes, is not trusted.
func TestDiskThatCannotBeRead(t *testing.T) {
	for name, c := range map[string]struct {
		err error
		n   int
	}{"no bytes": {unix.EIO, faultsMost}, "wrong bytes": {errors.New("checksum"), wrongMost}} {
		t.Run(name, func(t *testing.T) {
			s := openFolders(t, t.TempDir(), nil, roomy, baseOverhead+1<<20)
			gone := watchRetired(s)
			for n := range uint64(20) {
				put(t, s, specOf(n, 4), true, upTo(4)...)
			}
			bad := 0
			for _, st := range s.Shards() {
				if where(s, st.ID) != 0 || bad == c.n {
					continue
				}
				if s.Folders()[0].State != InService {
					t.Fatalf("out of service after %d files", bad)
				}
				s.Retire(st.ID, c.err)
				bad++
			}
			f := s.Folders()
			if f[0].State != Failed || f[0].Shards != 0 || f[1].State != InService || len(*gone) == 0 {
				t.Errorf("after %d bad files: %+v, told %d", bad, f, len(*gone))
			}
			for range 2 * goodProbes {
				s.Probe()
			}
			if s.Folders()[0].State != Failed {
				t.Error("it came back before the next start")
			}
		})
	}
}

// A folder that could not be taken at the start is named and left out; the
// only one ends the start.
func TestStartWithoutADisk(t *testing.T) {
	root := t.TempDir()
	d := &sick{dir: filepath.Join(root, "a"), ops: "*", err: unix.EIO}
	s := openFolders(t, root, d.fail, roomy, roomy)
	if f := s.Folders(); f[0].State != Failed || !strings.Contains(f[0].Reason, "input/output") {
		t.Errorf("%+v", f)
	}
	put(t, s, specOf(1, 4), true, upTo(4)...)
	must(t, s.Close())
	_, err := Open(Options{Dir: d.dir, CapacityBytes: roomy, fail: d.fail})
	if err == nil || !errors.Is(err, unix.EIO) {
		t.Errorf("the only folder: %v", err)
	}
}

// Reservations of a store with one folder stay readable by older releases, and
// theirs by this one.
func TestReservationsOfOneFolder(t *testing.T) {
	s := open(t, t.TempDir(), roomy)
	must(t, s.ReserveFor("r", 777, 100))
	body, err := os.ReadFile(filepath.Join(s.Dir(), reservationsFile))
	if err != nil || !bytes.Equal(body, []byte(`{"r":777}`)) {
		t.Errorf("%s %v", body, err)
	}
}
