package store

import (
	"encoding/binary"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"stoker.dev"
)

// junk is what a case of TestRecoveryRemovesJunk works on: a closed folder
// with two shards of 6 blocks, one of which it may harm.
type junk struct {
	t           testing.TB
	dir         string // of the harmed shard's files
	data, index string
	spec        Spec // of the harmed shard
	root        string
}

func (j junk) write(path string, body string) {
	j.t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		j.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(body), 0o600); err != nil {
		j.t.Fatal(err)
	}
}

func (j junk) must(err error) {
	j.t.Helper()
	if err != nil {
		j.t.Fatal(err)
	}
}

func (j junk) header(change func(b []byte)) {
	j.t.Helper()
	b, err := os.ReadFile(j.index)
	j.must(err)
	change(b)
	j.must(os.WriteFile(j.index, b, 0o600))
}

// What is no shard is removed at the start, counts for nothing, and harms
// neither the start nor a shard beside it.
func TestRecoveryRemovesJunk(t *testing.T) {
	const keeps, loses = true, false
	for name, c := range map[string]struct {
		harm func(j junk)
		keep bool // the harmed shard
	}{
		"nothing":                  {func(j junk) {}, keeps},
		"file among the folders":   {func(j junk) { j.write(filepath.Join(j.root, "shards", "README"), "x") }, keeps},
		"file in a folder":         {func(j junk) { j.write(filepath.Join(j.dir, "notes.txt"), "x") }, keeps},
		"hidden file":              {func(j junk) { j.write(filepath.Join(j.dir, ".nfs0001"), "x") }, keeps},
		"file beside a shard":      {func(j junk) { j.write(j.data+".bak", "x") }, keeps},
		"shard without an ending":  {func(j junk) { j.write(strings.TrimSuffix(j.data, dataSuffix), "x") }, keeps},
		"folder in a folder":       {func(j junk) { j.write(filepath.Join(j.dir, "sub", "f"), "x") }, keeps},
		"folder of another name":   {func(j junk) { j.write(filepath.Join(j.root, "shards", "lost+found", "#1"), "x") }, keeps},
		"half-written id":          {func(j junk) { j.write(filepath.Join(j.root, ".new-1"), "x") }, keeps},
		"half-written document":    {func(j junk) { j.write(filepath.Join(j.root, "state", ".new-2"), "{") }, keeps},
		"folder as a document":     {func(j junk) { j.write(filepath.Join(j.root, "state", "a.json", "f"), "{") }, keeps},
		"name in capitals":         {func(j junk) { j.write(filepath.Join(j.dir, strings.ToUpper(j.spec.ID.String())+dataSuffix), "x") }, keeps},
		"data without index":       {func(j junk) { j.must(os.Remove(j.index)) }, loses},
		"index without data":       {func(j junk) { j.must(os.Remove(j.data)) }, loses},
		"index cut in an entry":    {func(j junk) { j.must(os.Truncate(j.index, headerBytes+13)) }, loses},
		"index cut in its header":  {func(j junk) { j.must(os.Truncate(j.index, 20)) }, loses},
		"empty index":              {func(j junk) { j.must(os.Truncate(j.index, 0)) }, loses},
		"longer index":             {func(j junk) { j.must(os.Truncate(j.index, 1<<20)) }, loses},
		"torn header":              {func(j junk) { j.header(func(b []byte) { clear(b[30:headerBytes]) }) }, loses},
		"header of no checksum":    {func(j junk) { j.header(func(b []byte) { b[57] = 1 }) }, loses},
		"header of another format": {func(j junk) { j.header(func(b []byte) { b[6] = '2'; sign(b) }) }, loses},
		"header of another shard":  {func(j junk) { j.header(func(b []byte) { b[12]++; sign(b) }) }, loses},
		"header with other bytes":  {func(j junk) { j.header(func(b []byte) { b[41] += 16; sign(b) }) }, loses},
		"header with other blocks": {func(j junk) { j.header(func(b []byte) { b[51] = 0xff; sign(b) }) }, loses},
		"data cut":                 {func(j junk) { j.must(os.Truncate(j.data, 100)) }, loses},
		"longer data":              {func(j junk) { j.must(os.Truncate(j.data, j.spec.Bytes+1)) }, loses},
		"data is a folder":         {func(j junk) { j.must(os.Remove(j.data)); j.must(os.Mkdir(j.data, 0o700)) }, loses},
		"index is a folder":        {func(j junk) { j.must(os.Remove(j.index)); j.must(os.Mkdir(j.index, 0o700)) }, loses},
		"wrong folder": {func(j junk) {
			other := filepath.Join(j.root, "shards", "00")
			j.must(os.Mkdir(other, 0o700))
			j.must(os.Rename(j.data, filepath.Join(other, filepath.Base(j.data))))
			j.must(os.Rename(j.index, filepath.Join(other, filepath.Base(j.index))))
		}, loses},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, t.TempDir(), roomy)
			harmed, beside := specOf(1, 6), specOf(2, 6)
			beside.ID[0] = harmed.ID[0] // in one folder
			put(t, s, harmed, true, upTo(6)...)
			put(t, s, beside, false, 1, 2, 5)
			used := s.Usage().UsedBytes
			data := s.folders[0].path(harmed.ID, dataSuffix)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			c.harm(junk{t, filepath.Dir(data), data, s.folders[0].path(harmed.ID, indexSuffix), harmed, s.Dir()})

			s = open(t, s.Dir(), roomy)
			sh := get(t, s, beside.ID)
			present(t, sh, 1, 2, 5)
			sh.Release()
			files := 4
			if sh, ok := s.Get(harmed.ID); ok != c.keep {
				t.Errorf("harmed shard found: %v", ok)
			} else if ok {
				present(t, sh, upTo(6)...)
				sh.Release()
			}
			if !c.keep {
				files, used = 2, used-s.ChargeBytes(harmed.Bytes, harmed.Blocks)
			}
			if s.Usage().UsedBytes != used {
				t.Errorf("%d bytes are charged, want %d", s.Usage().UsedBytes, used)
			}
			onlyShards(t, s.Dir(), files)
		})
	}
}

// sign makes a changed header valid.
func sign(b []byte) {
	binary.LittleEndian.PutUint32(b[60:], crc32.Checksum(b[:60], castagnoli))
}

// onlyShards wants so many files of shards and nothing unknown in the folder.
func onlyShards(t testing.TB, root string, want int) {
	t.Helper()
	files := 0
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		if _, shard := idOf(d.Name()); shard {
			files++
		} else if !d.IsDir() && rel != "lock" && rel != "id" && rel != membersFile && rel != formatFile {
			t.Errorf("%s is still there", rel)
		}
		return nil
	})
	if err != nil || files != want {
		t.Errorf("%d files of shards are left, want %d (%v)", files, want, err)
	}
}

// Links out of the folder are removed, not followed.
func TestRecoveryFollowsNoLinks(t *testing.T) {
	s := open(t, t.TempDir(), roomy)
	spec := specOf(1, 3)
	put(t, s, spec, true, upTo(3)...)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	outside := filepath.Join(t.TempDir(), "file")
	data := s.folders[0].path(spec.ID, dataSuffix)
	if err := os.Rename(data, outside); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, data); err != nil {
		t.Fatal(err)
	}
	folder := filepath.Join(s.Dir(), "shards", "zz")
	if err := os.Symlink(filepath.Dir(outside), folder); err != nil {
		t.Fatal(err)
	}
	s = open(t, s.Dir(), roomy)
	if len(s.Shards()) != 0 {
		t.Error("a link was taken for a shard")
	}
	if fi, err := os.Stat(outside); err != nil || fi.Size() != roundUp(spec.Bytes) {
		t.Errorf("the link's target was touched: %v", err)
	}
	if _, err := os.Lstat(folder); err == nil {
		t.Error("a link among the folders is still there")
	}
}

// A mark that was written in another boot says nothing, since the bytes may
// never have reached the disk; the marks of a sealed shard hold for ever, and so do
// those of a part that was flushed.
func TestMarksOfAnotherBoot(t *testing.T) {
	s := open(t, t.TempDir(), roomy)
	open, sealed := specOf(1, 6), specOf(2, 6)
	put(t, s, open, false, 0, 3, 4)
	put(t, s, sealed, true, upTo(6)...)
	partly := specOf(3, 6)
	put(t, s, partly, false, 0, 2)
	sh := get(t, s, partly.ID)
	defer sh.Release()
	if err := sh.Flush(); err != nil {
		t.Fatal(err)
	}
	write(t, sh, 5)
	for name, c := range map[string]struct {
		epoch                      uint32
		wantOpen, want, wantPartly int
	}{
		"this boot":    {s.epoch, 3, 6, 3},
		"another boot": {s.epoch + 1, 0, 6, 2},
	} {
		t.Run(name, func(t *testing.T) {
			later := &folder{s: &Store{log: s.log, epoch: c.epoch}, dir: s.Dir()}
			a, err := later.scanShard(open.ID)
			if err != nil {
				t.Fatal(err)
			}
			b, err := later.scanShard(sealed.ID)
			if err != nil {
				t.Fatal(err)
			}
			p, err := later.scanShard(partly.ID)
			if err != nil {
				t.Fatal(err)
			}
			if p.Present() != c.wantPartly || p.Sealed() || !p.Has(0) || !p.Has(2) {
				t.Errorf("flushed shard: %d blocks, sealed %v", p.Present(), p.Sealed())
			}
			if a.Present() != c.wantOpen || a.Sealed() || b.Present() != c.want || !b.Sealed() {
				t.Errorf("open shard: %d blocks, sealed %v; sealed shard: %d, %v", a.Present(), a.Sealed(), b.Present(), b.Sealed())
			}
		})
	}
}

// The same through Open: entries as an earlier boot would have left them.
func TestOpenAfterAnotherBoot(t *testing.T) {
	s := open(t, t.TempDir(), roomy)
	spec := specOf(1, 4)
	put(t, s, spec, false, upTo(4)...)
	index := s.folders[0].path(spec.ID, indexSuffix)
	b, err := os.ReadFile(index)
	if err != nil {
		t.Fatal(err)
	}
	entry := func(block int, epoch uint32) {
		_, p := content(spec, block)
		putEntry(b[headerBytes+entryBytes*block:], &spec.ID, block, crc32.Checksum(p, castagnoli), epoch)
	}
	entry(0, s.epoch+1)
	entry(1, durable)
	copy(b[headerBytes+entryBytes*2:], b[headerBytes+entryBytes*3:][:entryBytes]) // another block's mark
	if err := os.WriteFile(index, b, 0o600); err != nil {
		t.Fatal(err)
	}
	sh := get(t, reopen(t, s), spec.ID)
	defer sh.Release()
	present(t, sh, 1, 3)
	write(t, sh, 0, 2)
	if err := sh.Seal(); err != nil {
		t.Error(err)
	}
	present(t, sh, upTo(4)...)
}

// A crash in the middle of sealing leaves a read-only file with a header that
// says nothing; a damaged mark one with a header that says too much. Both
// shards must be writable again, also for an owner who is not root.
func TestHalfSealedShardIsWrittenOn(t *testing.T) {
	s := open(t, t.TempDir(), roomy)
	crashed, damaged := specOf(1, 4), specOf(2, 4)
	put(t, s, crashed, false, 0, 1, 2, 3)
	put(t, s, damaged, true, 0, 1, 2, 3)
	if err := os.Chmod(s.folders[0].path(crashed.ID, dataSuffix), 0o400); err != nil {
		t.Fatal(err)
	}
	damage(t, s.folders[0].path(damaged.ID, indexSuffix), headerBytes+entryBytes*2)
	s = reopen(t, s)
	for _, spec := range []Spec{crashed, damaged} {
		if fi, err := os.Stat(s.folders[0].path(spec.ID, dataSuffix)); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("mode %v %v, want 0600", fi.Mode(), err)
		}
		sh := get(t, s, spec.ID)
		if sh.Sealed() || sh.Has(2) != (spec == crashed) {
			t.Errorf("sealed %v, block 2 present %v", sh.Sealed(), sh.Has(2))
		}
		write(t, sh, 2)
		if err := sh.Seal(); err != nil {
			t.Error(err)
		}
		present(t, sh, upTo(4)...)
		sh.Release()
	}
}

// Whatever happens to index files, a start succeeds and no block is answered
// with bytes that are not its own.
func TestDamagedIndexNeverLies(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	dir := t.TempDir()
	claimed := 0
	for round := range 150 {
		s := open(t, dir, roomy)
		specs := []Spec{specOf(uint64(2*round), 1+r.IntN(60)), specOf(uint64(2*round+1), 1+r.IntN(60))}
		put(t, s, specs[0], true, upTo(specs[0].Blocks)...)
		put(t, s, specs[1], false, r.Perm(specs[1].Blocks)[:1+r.IntN(specs[1].Blocks)]...)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		for _, spec := range specs {
			scramble(t, r, s.folders[0].path(spec.ID, indexSuffix))
		}
		s = open(t, dir, roomy)
		for _, st := range s.Shards() {
			sh := get(t, s, st.ID)
			for b := range st.Blocks {
				if !sh.Has(b) {
					continue
				}
				claimed++
				if err := read(t, sh, b); err != nil {
					wantKind(t, err, stoker.KindCorrupt)
				}
			}
			sh.Release()
			if err := s.Remove(st.ID); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if claimed == 0 {
		t.Error("no block survived any damage: the test proves nothing")
	}
}

// scramble damages a file: bytes, a run of them, its length.
func scramble(t testing.TB, r *rand.Rand, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	switch r.IntN(4) {
	case 0:
		b = b[:r.IntN(len(b)+1)]
	case 1:
		b = append(b, make([]byte, r.IntN(5000))...)
	case 2:
		from := r.IntN(len(b))
		clear(b[from:min(len(b), from+r.IntN(200))])
	}
	for i := 0; i < r.IntN(6) && len(b) > headerBytes; i++ {
		at := r.IntN(len(b))
		if r.IntN(4) > 0 { // mostly entries: a damaged header ends the shard
			at = headerBytes + r.IntN(len(b)-headerBytes)
		}
		b[at] ^= byte(1 + r.IntN(255))
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}
