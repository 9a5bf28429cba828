package store

import (
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"stoker.dev"
)

func TestWriteAndRead(t *testing.T) {
	s := open(t, t.TempDir(), roomy)
	sh := create(t, s, specOf(1, 40))
	wrote := []int{0, 31, 32, 39}
	for _, b := range wrote {
		off, p := content(sh.Spec(), b)
		crc, err := sh.Write(b, off, p)
		if want := crc32.Checksum(p, crc32.MakeTable(crc32.Castagnoli)); err != nil || crc != want || sh.CRC(b) != want {
			t.Errorf("block %d: %08x %v, CRC says %08x, want %08x", b, crc, err, sh.CRC(b), want)
		}
	}
	present(t, sh, wrote...)
	wantKind(t, read(t, sh, 5), stoker.KindNotExist)
	wantKind(t, sh.ReadBlock(-1, 0, nil), stoker.KindNotExist)
	wantKind(t, sh.ReadBlock(40, 0, nil), stoker.KindNotExist)
	if want := []byte{1, 0, 0, 0x80, 0x81}; !slices.Equal(sh.Bitmap(), want) {
		t.Errorf("bitmap %x, want %x", sh.Bitmap(), want)
	}
	if !sh.HasAll(31, 2) || sh.HasAll(30, 2) || sh.HasAll(39, 2) {
		t.Error("HasAll")
	}
	sh.Release()

	sh = get(t, reopen(t, s), sh.ID())
	defer sh.Release()
	present(t, sh, wrote...)
}

func TestWriteRefuses(t *testing.T) {
	s := open(t, t.TempDir(), roomy)
	sh := create(t, s, Spec{ID: stoker.ID{1}, Bytes: 2 << 20, Blocks: 8})
	defer sh.Release()
	for name, c := range map[string]struct {
		block int
		off   int64
		bytes int
	}{
		"block below":     {-1, 0, 10},
		"block above":     {8, 0, 10},
		"before the file": {0, -1, 10},
		"over its end":    {0, 2<<20 - 5, 10},
		"nothing":         {0, 0, 0},
		"too much":        {0, 0, stoker.BlockBytes + 1},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := sh.Write(c.block, c.off, make([]byte, c.bytes))
			wantKind(t, err, stoker.KindInvalid)
		})
	}
	if sh.Present() != 0 {
		t.Errorf("%d blocks are present", sh.Present())
	}
}

// What is present is never overwritten, not even by other bytes.
func TestPresentBlockIsNotWrittenAgain(t *testing.T) {
	s := open(t, t.TempDir(), roomy)
	sh := create(t, s, specOf(1, 2))
	defer sh.Release()
	write(t, sh, 0)
	crc, err := sh.Write(0, 0, make([]byte, testBlock))
	if err != nil || crc != sh.CRC(0) {
		t.Errorf("%08x %v, want the checksum that stands", crc, err)
	}
	present(t, sh, 0)
}

func TestWrongBytesAreFound(t *testing.T) {
	for _, sealed := range []bool{false, true} {
		s := open(t, t.TempDir(), roomy)
		spec := specOf(1, 4)
		put(t, s, spec, sealed, upTo(4)...)
		damage(t, s.folders[0].path(spec.ID, dataSuffix), 2*testBlock+17)
		for range 2 { // at once, and after a start
			sh := get(t, s, spec.ID)
			wantKind(t, read(t, sh, 2), stoker.KindCorrupt)
			if err := read(t, sh, 1); err != nil {
				t.Error(err)
			}
			sh.Release()
			s = reopen(t, s)
		}
		// The file lost its end while it is open: no block of it is right.
		sh := get(t, s, spec.ID)
		if err := os.Truncate(s.folders[0].path(spec.ID, dataSuffix), testBlock); err != nil {
			t.Fatal(err)
		}
		wantKind(t, read(t, sh, 3), stoker.KindCorrupt)
		sh.Release()
	}
}

// damage flips one byte of a file.
func damage(t testing.TB, path string, at int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x40
	if _, err := f.WriteAt(b[:], at); err != nil {
		t.Fatal(err)
	}
}

func TestDropForgetsUntilWrittenAgain(t *testing.T) {
	s := open(t, t.TempDir(), roomy)
	spec := specOf(1, 4)
	sh := create(t, s, spec)
	write(t, sh, 0, 1, 2)
	damage(t, s.folders[0].path(spec.ID, dataSuffix), testBlock)
	if err := sh.Drop(1, 3); err != nil {
		t.Fatal(err)
	}
	present(t, sh, 0, 2)
	sh.Release()

	sh = get(t, reopen(t, s), spec.ID)
	defer sh.Release()
	present(t, sh, 0, 2)
	write(t, sh, 1)
	present(t, sh, 0, 1, 2)
}

func TestSealMakesReadOnly(t *testing.T) {
	s := open(t, t.TempDir(), roomy)
	spec := specOf(1, 4)
	sh := create(t, s, spec)
	write(t, sh, 0, 1, 2)
	wantKind(t, sh.Seal(), stoker.KindInvalid)
	if sh.Sealed() {
		t.Error("sealed with a block missing")
	}
	write(t, sh, 3)
	for range 2 {
		if err := sh.Seal(); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // as it was sealed, and after a start
		if fi, err := os.Stat(s.folders[0].path(spec.ID, dataSuffix)); err != nil || fi.Mode().Perm() != 0o400 {
			t.Errorf("mode %v %v, want 0400", fi.Mode(), err)
		}
		if !sh.Sealed() {
			t.Error("not sealed")
		}
		wantKind(t, sh.Drop(1), stoker.KindInvalid)
		if crc, err := sh.Write(1, testBlock, make([]byte, testBlock)); err != nil || crc != sh.CRC(1) {
			t.Errorf("write to a sealed shard: %08x %v", crc, err)
		}
		present(t, sh, upTo(4)...)
		sh.Release()
		s = reopen(t, s)
		sh = get(t, s, spec.ID)
	}
	if _, err := sh.File().WriteAt([]byte("x"), 0); err == nil {
		t.Error("the file of a sealed shard was opened for writing")
	}
	sh.Release()
}

// Who reads a removed shard reads on; its space is free when it is released.
func TestRemoveUnderAReader(t *testing.T) {
	s := open(t, t.TempDir(), roomy)
	spec := specOf(1, 50)
	empty := s.Usage().UsedBytes
	first := create(t, s, spec)
	second := get(t, s, spec.ID)
	write(t, first, upTo(50)...)
	one := s.Usage().UsedBytes - empty
	if one != s.ChargeBytes(spec.Bytes, spec.Blocks) {
		t.Errorf("%d bytes are charged, want %d", one, s.ChargeBytes(spec.Bytes, spec.Blocks))
	}
	for range 2 { // the second time it is not there
		if err := s.Remove(spec.ID); err != nil {
			t.Fatal(err)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(s.Dir(), "shards", "*", "*")); len(left) > 0 {
		t.Errorf("files are left: %v", left)
	}
	if _, ok := s.Get(spec.ID); ok || len(s.Shards()) > 0 {
		t.Error("a removed shard was found")
	}
	used := func(want int64, when string) {
		t.Helper()
		if got := s.Usage().UsedBytes - empty; got != want {
			t.Errorf("%s: %d bytes are charged, want %d", when, got, want)
		}
	}
	used(one, "two readers")
	successor := create(t, s, spec)
	used(2*one, "two readers and a new file")
	if successor.Present() != 0 {
		t.Error("the new file has blocks of the old one")
	}
	first.Release()
	used(2*one, "one reader and a new file")
	present(t, second, upTo(50)...)
	second.Release()
	used(one, "a new file")
	successor.Release()
	used(one, "a new file that nobody reads")
}

// A block that is seen is whole, whoever writes it at the same time.
func TestReadersAmongWriters(t *testing.T) {
	s := open(t, t.TempDir(), roomy)
	sh := create(t, s, specOf(1, 300))
	defer sh.Release()
	var writers, readers sync.WaitGroup
	done := make(chan struct{})
	for range 3 {
		writers.Go(func() {
			for b := range sh.Spec().Blocks {
				off, p := content(sh.Spec(), b)
				if _, err := sh.Write(b, off, p); err != nil {
					t.Error(err)
				}
			}
		})
		readers.Go(func() {
			for b := 0; ; b = (b + 7) % sh.Spec().Blocks {
				select {
				case <-done:
					return
				default:
				}
				if !sh.Has(b) {
					continue
				}
				off, want := content(sh.Spec(), b)
				if err := sh.ReadBlock(b, off, make([]byte, len(want))); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	writers.Wait()
	close(done)
	readers.Wait()
	present(t, sh, upTo(300)...)
}

// A store that ends under a reader gives it an error that blames no block.
func TestCloseUnderAReader(t *testing.T) {
	s := open(t, t.TempDir(), roomy)
	sh := create(t, s, specOf(1, 8))
	write(t, sh, upTo(8)...)
	var reader sync.WaitGroup
	started := make(chan struct{})
	reader.Go(func() {
		off, want := content(sh.Spec(), 3)
		for got := make([]byte, len(want)); ; {
			err := sh.ReadBlock(3, off, got)
			if err != nil {
				wantKind(t, err, stoker.KindTransient)
				return
			}
			select {
			case <-started:
			default:
				close(started)
			}
		}
	})
	<-started
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	reader.Wait()
	sh.Release()
}

// While the disk takes its time with the seal of a shard, others get it, and the store
// goes on.
func TestSealKeepsNobodyWaiting(t *testing.T) {
	var slow atomic.Bool
	begun, goOn := make(chan bool), make(chan bool)
	s, err := Open(Options{Dir: t.TempDir(), CapacityBytes: roomy, fail: func(op, _ string) error {
		if op == "sync" && slow.CompareAndSwap(true, false) {
			begun <- true
			<-goOn
		}
		return nil
	}})
	must(t, err)
	t.Cleanup(func() { must(t, s.Close()) })
	spec := specOf(1, 4)
	put(t, s, spec, false, upTo(4)...)
	sh := get(t, s, spec.ID)
	slow.Store(true)
	sealed := make(chan error, 1)
	go func() { sealed <- sh.Seal() }()
	<-begun
	got := make(chan bool)
	go func() {
		get(t, s, spec.ID).Release()
		s.Usage()
		close(got)
	}()
	select {
	case <-got:
	case <-time.After(30 * time.Second):
		t.Error("the store waits for the disk")
	}
	close(goOn)
	must(t, <-sealed)
	<-got
	sh.Release()
}
