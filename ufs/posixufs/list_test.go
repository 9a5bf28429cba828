package posixufs

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"stoker.dev"
	"stoker.dev/ufs"
)

// A folder of more names than are in memory is listed whole and in order, and
// no more names are held than that, also between pages.
func TestLargeFoldersInBoundedMemory(t *testing.T) {
	f, dir := tree(t)
	f.window = 50
	var want []string
	for i := range 700 {
		name := fmt.Sprintf("n%03d", (i*387)%700)
		if i%3 == 0 {
			name += "/k"
		}
		put(t, filepath.Join(dir, name), nil)
		want = append(want, name)
	}
	slices.Sort(want)
	for _, delimiter := range []string{"", "/"} {
		var got []string
		for o := (ufs.ListOptions{Delimiter: delimiter, MaxKeys: 7}); ; {
			p, err := f.List(t.Context(), o)
			must(t, err)
			got = append(got, keysOf(p.Objects)...)
			for _, dir := range p.Prefixes {
				got = append(got, dir+"k")
			}
			for _, s := range f.scans.kept {
				for _, l := range s.levels {
					if cap(l.window) > 4*f.window {
						t.Fatalf("%d names are held of one folder", cap(l.window))
					}
				}
			}
			if o.Token = p.Next; o.Token == "" {
				break
			}
		}
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("delimiter %q: %d names, want %d", delimiter, len(got), len(want))
		}
	}
	if n := len(f.scans.kept); n != 0 {
		t.Errorf("%d listings are kept after their end", n)
	}
}

// Listings that nobody goes on with are dropped, the oldest first; who comes
// back to one all the same gets the rest of it.
func TestAbandonedListings(t *testing.T) {
	f, dir := tree(t)
	for i := range 20 {
		put(t, filepath.Join(dir, fmt.Sprintf("%02d/k", i)), nil)
	}
	first, err := f.List(t.Context(), ufs.ListOptions{MaxKeys: 5})
	must(t, err)
	for range 3 * keptScans {
		_, err := f.List(t.Context(), ufs.ListOptions{MaxKeys: 1})
		must(t, err)
	}
	if n := len(f.scans.kept); n > keptScans || f.scans.names > keptNames {
		t.Errorf("%d listings with %d names are kept", n, f.scans.names)
	}
	for range 2 { // a page may be asked for twice, too
		rest, _ := all(t, f, ufs.ListOptions{Token: first.Next})
		if len(rest) != 15 || rest[0].Key != "05/k" {
			t.Errorf("%v follow", keysOf(rest))
		}
	}
	_, err = f.List(t.Context(), ufs.ListOptions{Token: "x"})
	wantKind(t, err, stoker.KindInvalid, "token")
}

// What vanishes between its name and its row, or with its folder, is left out.
func TestFilesVanishWhileTheyAreListed(t *testing.T) {
	f, dir := tree(t)
	for _, name := range []string{"a", "b", "c", "d/1", "d/2", "d/3", "e/1", "f"} {
		put(t, filepath.Join(dir, name), nil)
	}
	p, err := f.List(t.Context(), ufs.ListOptions{MaxKeys: 1})
	must(t, err, os.Remove(filepath.Join(dir, "b")), os.RemoveAll(filepath.Join(dir, "e")))
	rest, err := f.List(t.Context(), ufs.ListOptions{Token: p.Next, MaxKeys: 2})
	must(t, err, os.RemoveAll(filepath.Join(dir, "d")))
	got := append(append(keysOf(p.Objects), keysOf(rest.Objects)...), func() []string {
		more, _ := all(t, f, ufs.ListOptions{Token: rest.Next})
		return keysOf(more)
	}()...)
	if want := []string{"a", "c", "d/1", "f"}; !slices.Equal(got, want) {
		t.Errorf("listed %v, want %v", got, want)
	}
}

// An empty folder is an object that ends in "/", listed once.
func TestEmptyFoldersAreKept(t *testing.T) {
	f, dir := tree(t)
	put(t, filepath.Join(dir, "a/k"), nil)
	must(t, os.MkdirAll(filepath.Join(dir, "empty/inner"), 0o755), os.Mkdir(filepath.Join(dir, "z"), 0o755))
	for _, size := range []int{0, 1, 2} {
		objects, _ := all(t, f, ufs.ListOptions{MaxKeys: size})
		if want := []string{"a/k", "empty/inner/", "z/"}; !slices.Equal(keysOf(objects), want) {
			t.Errorf("in pages of %d: %q, want %q", size, keysOf(objects), want)
		}
	}
	objects, prefixes := all(t, f, ufs.ListOptions{Prefix: "z/", Delimiter: "/"})
	if !slices.Equal(keysOf(objects), []string{"z/"}) || len(prefixes) > 0 {
		t.Errorf("%q, %q", keysOf(objects), prefixes)
	}
	if objects, _ := all(t, f, ufs.ListOptions{StartAfter: "z/"}); len(objects) > 0 {
		t.Errorf("%q come after the last", keysOf(objects))
	}
}

// Random trees are listed as their sorted keys say.
func TestRandomTrees(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	parts := []string{"a", "a-", "a.b", "a0", "A", "b", "\xff", "~", "\x01", "a b", "é"}
	f, dir := tree(t)
	f.window = 3
	seen := map[string]bool{}
	for range 150 {
		key := ""
		for range 1 + r.IntN(4) {
			key = filepath.Join(key, parts[r.IntN(len(parts))])
		}
		full := filepath.Join(dir, key)
		if os.MkdirAll(filepath.Dir(full), 0o755) != nil {
			continue // a file is there
		}
		if st, err := os.Lstat(full); err == nil && st.IsDir() {
			continue
		}
		put(t, full, nil)
		seen[key] = true
	}
	var keys []string
	for k := range seen {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for range 300 {
		o := ufs.ListOptions{MaxKeys: 1 + r.IntN(9)}
		if k := keys[r.IntN(len(keys))]; r.IntN(2) == 0 {
			o.Prefix = k[:r.IntN(len(k)+1)]
		}
		if r.IntN(2) == 0 {
			o.StartAfter = keys[r.IntN(len(keys))]
		}
		want := slices.DeleteFunc(slices.Clone(keys), func(k string) bool { return !strings.HasPrefix(k, o.Prefix) || k <= o.StartAfter })
		if objects, _ := all(t, f, o); !slices.Equal(keysOf(objects), want) && len(want)+len(objects) > 0 {
			t.Fatalf("%+v lists %q, want %q", o, keysOf(objects), want)
		}
	}
}
