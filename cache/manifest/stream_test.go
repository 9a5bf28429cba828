package manifest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"stoker.dev"
	"stoker.dev/ufs"
)

// sameAsOracle wants the very bytes of the builder that holds all in memory,
// however little memory the one that streams is given.
func sameAsOracle(t *testing.T, o BuildOptions) {
	t.Helper()
	for _, memory := range []int{0, 1} { // 1: as little as there can be, so that all goes through files
		o.Memory = memory
		b, err := Build(context.Background(), o)
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(b.Path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(b.Path); err != nil {
			t.Fatal(err)
		}
		removed(t, o.TempDir)
		want, lost, err := oracle(context.Background(), o, b.ListedFrom, b.ListedTo)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("memory %d: %d bytes differ from the oracle's %d, at %d", memory, len(got), len(want), firstDifference(got, want))
		}
		if b.Lost != int64(len(lost)) || !slices.Equal(b.Unmountable, lost[:min(len(lost), maxUnmountable)]) {
			t.Fatalf("memory %d: %d unmountable keys, %d named; want %d", memory, b.Lost, len(b.Unmountable), len(lost))
		}
	}
}

func firstDifference(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// oddTree is a random tree with all that can happen to keys: markers, lost
// ones, files with the name of a folder.
func oddTree(r *rand.Rand, files int) *source {
	s := newSource()
	s.pageKeys = 1 + r.IntN(200)
	for _, o := range randomTree(r, files) {
		s.object(o, o.Version)
		switch r.IntN(12) {
		case 0:
			s.add(o.Key+"/", 0)
		case 1:
			s.add(o.Key+"/below", int64(r.IntN(1e6)))
		case 2:
			s.add(o.Key+"//lost", 1)
		case 3:
			s.add("lost/"+o.Key+"/../x\x00"+fmt.Sprint(r.IntN(9)), 1)
		case 4:
			s.add(o.Key+" \x01\xff.large", r.Int64N(5*stoker.ExtentBytes))
		case 5:
			s.add(o.Key+".medium", r.Int64N(stoker.ExtentBytes))
		}
	}
	return s
}

// Whatever is listed, the file is byte for byte what the oracle makes.
func TestBuildIsTheOracles(t *testing.T) {
	for seed := range uint64(30) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 77))
			sameAsOracle(t, oddTree(r, 1+r.IntN(1500)).options(t))
		})
	}
	t.Run("nothing", func(t *testing.T) { sameAsOracle(t, newSource().options(t)) })
	t.Run("roots joined", func(t *testing.T) {
		s := oddTree(rand.New(rand.NewPCG(5, 5)), 500)
		s.add("x/train/1", 5)
		s.add("x/train//odd", 5)
		o := s.options(t)
		o.Roots = []Root{{ufs.Location{URI: "mem://bucket/x/train"}, "b"}, {ufs.Location{URI: "mem://bucket"}, "a/c"},
			{ufs.Location{URI: "mem://bucket/none"}, "a/none"}, {ufs.Location{URI: "mem://bucket/x/train/"}, "a/d"}}
		sameAsOracle(t, o)
	})
	t.Run("keys outside the root's prefix", func(t *testing.T) {
		s := oddTree(rand.New(rand.NewPCG(6, 5)), 100)
		o := s.options(t)
		o.Roots = []Root{{ufs.Location{URI: "mem://bucket/none"}, "a"}} // a store that calls them by other names
		o.Open = func(context.Context, ufs.Location) (ufs.FS, string, error) { return s, "", nil }
		sameAsOracle(t, o)
	})
	t.Run("large sections", func(t *testing.T) {
		s := realistic(40_000, func(i int) string { return fmt.Sprintf(`"%032x-12"`, i) })
		for i := range 1500 {
			s.add(fmt.Sprintf("lost/%d//x", i), 1)
			s.add(fmt.Sprintf("%s%d/f", strings.Repeat("a folder with a long name/", 20), i), 300<<20)
		}
		s.pageKeys = 1000
		sameAsOracle(t, s.options(t))
	})
}

// The format is for ever, at size too: what was frozen has the id that it had.
func TestIDAtSize(t *testing.T) {
	s := realistic(30_000, plainTag)
	s.pageKeys = 1000
	o := s.options(t)
	o.Memory = 1 << 20
	const want = "86f0003522d5edd81ddbf1962f6c68a74760b491ed343d288c189e8578e52f24"
	if got := build(t, o).ID.String(); got != want {
		t.Errorf("id %s, want %s", got, want)
	}
}

// Two objects of one path are refused wherever they meet: in memory, or in
// runs that were written apart.
func TestOverlapIsFoundAmongRuns(t *testing.T) {
	for name, both := range map[string]bool{"files": false, "files and a folder": true} {
		t.Run(name, func(t *testing.T) {
			s := realistic(5000, plainTag)
			s.add("train/n01440764/twice", 5)
			s.add("twice", 6)
			if both {
				s.add("train/n01440764/twice/", 0)
			}
			o := s.options(t)
			o.Memory = 1
			o.Roots = append(o.Roots, Root{ufs.Location{URI: "mem://bucket/train"}, "train"})
			_, err := Build(context.Background(), o)
			wantKind(t, err, stoker.KindInvalid)
			if _, _, want := oracle(context.Background(), o, someTime, someTime); stoker.KindOf(want) != stoker.KindInvalid {
				t.Errorf("the oracle says %v", want)
			}
			if !strings.Contains(fmt.Sprint(err), "have the same path") {
				t.Errorf("%v does not say what is wrong", err)
			}
			removed(t, o.TempDir)
		})
	}
}

// A sorter gives back what it got, in order, whatever went to files.
func TestSorter(t *testing.T) {
	for _, long := range []int{10, 3000, 200_000} {
		r := rand.New(rand.NewPCG(uint64(long), 3))
		s := newSorter(t.TempDir(), 1)
		var want []string
		for range 3_000_000 / (long + 300) {
			key, value := []byte(strings.Repeat("k", r.IntN(long))+fmt.Sprint(r.IntN(1000))), []byte(fmt.Sprint(r.IntN(5)))
			want = append(want, string(key)+"\x00"+string(value))
			if err := s.add(key, value); err != nil {
				t.Fatal(err)
			}
		}
		slices.SortFunc(want, strings.Compare)
		if long > 10 && len(s.runs) < 5 {
			t.Errorf("only %d runs were written", len(s.runs))
		}
		m, n, err := s.sorted()
		if err != nil || int(n) != len(want) {
			t.Fatalf("%d records, %v; want %d", n, err, len(want))
		}
		for i, w := range want {
			key, value := m.head()
			if got := string(key) + "\x00" + string(value); got != w {
				t.Fatalf("record %d is %.40q, want %.40q", i, got, w)
			}
			if err := m.next(); err != nil {
				t.Fatal(err)
			}
		}
		if m.ok() {
			t.Error("there is more than was added")
		}
		s.close()
	}
}

// A folder for temporary files that goes away fails the build with its name.
func TestTempDirGoesAway(t *testing.T) {
	s := realistic(5000, plainTag)
	s.pageKeys = 0
	o := s.options(t)
	o.Memory, o.TempDir = 1, filepath.Join(o.TempDir, "none")
	_, err := Build(context.Background(), o)
	wantKind(t, err, stoker.KindInternal)
	if !strings.Contains(fmt.Sprint(err), o.TempDir) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v does not name the folder", err)
	}
}

// A full disk is not called an error of stoker's own, and says what to do.
func TestFullTempDir(t *testing.T) {
	err := tempError("/scratch", &os.PathError{Op: "write", Path: "/scratch/manifest-1", Err: syscall.ENOSPC})
	wantKind(t, err, stoker.KindNoSpace)
	if !strings.Contains(fmt.Sprint(err), "free space") || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("%v does not say what to do", err)
	}
}
