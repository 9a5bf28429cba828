// Package ufstest holds the suite that every driver of package ufs passes.
package ufstest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"stoker.dev"
	"stoker.dev/ufs"
)

// Env is a driver under test over an empty store, and the way to write to it.
type Env struct {
	FS     ufs.FS
	Put    func(key string, body []byte)
	Delete func(key string)
	// NoTags: the store has no ETag for what Put writes; a change that keeps
	// size and second is then not seen, and not tested.
	NoTags bool
}

// Run runs the suite; fresh makes an empty store for each test.
func Run(t *testing.T, fresh func(t *testing.T) Env) {
	for name, test := range map[string]func(*testing.T, Env){
		"Stat": testStat, "Pages": testPages, "Delimiter": testDelimiter, "Order": testOrder, "Ranges": testRanges,
		"Stale": testStale, "NotExist": testNotExist, "Keys": testKeys, "Canceled": testCanceled,
	} {
		t.Run(name, func(t *testing.T) { test(t, fresh(t)) })
	}
}

func wantKind(t *testing.T, err error, kind stoker.Kind) {
	t.Helper()
	if err == nil || stoker.KindOf(err) != kind {
		t.Errorf("error %v has kind %v, want %v", err, stoker.KindOf(err), kind)
	}
}

func body(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

// read returns a range of an object.
func read(ctx context.Context, fs ufs.FS, key string, v ufs.Version, off, n int64) ([]byte, error) {
	r, err := fs.Open(ctx, key, v, off, n)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

func testStat(t *testing.T, e Env) {
	e.Put("a/b", body(1234))
	o, err := e.FS.Stat(t.Context(), "a/b")
	if err != nil || o.Version.Bytes != 1234 || o.Version.ModTime.IsZero() || (o.Version.Tag == "") != e.NoTags {
		t.Fatalf("%+v, %v", o, err)
	}
	p, err := e.FS.List(t.Context(), ufs.ListOptions{})
	if err != nil || len(p.Objects) != 1 || !p.Objects[0].Version.Same(o.Version) || p.Objects[0].Key != "a/b" {
		t.Fatalf("the listing says %+v (%v), Stat %+v", p, err, o)
	}
}

func listAll(t *testing.T, fs ufs.FS, o ufs.ListOptions) (keys, prefixes []string, pages int) {
	t.Helper()
	for {
		p, err := fs.List(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		pages++
		for _, obj := range p.Objects {
			keys = append(keys, obj.Key)
		}
		prefixes = append(prefixes, p.Prefixes...)
		if p.Next == "" {
			return keys, prefixes, pages
		}
		o.Token = p.Next
	}
}

func testPages(t *testing.T, e Env) {
	var want []string
	for i := range 1205 {
		k := fmt.Sprintf("p/%05d", i)
		e.Put(k, []byte{byte(i)})
		want = append(want, k)
	}
	e.Put("q", nil)
	got, _, pages := listAll(t, e.FS, ufs.ListOptions{Prefix: "p/"})
	if !slices.Equal(got, want) || pages != 2 {
		t.Errorf("%d keys in %d pages, want %d in 2", len(got), pages, len(want))
	}
	if got, _, pages = listAll(t, e.FS, ufs.ListOptions{Prefix: "p/", MaxKeys: 500}); !slices.Equal(got, want) || pages != 3 {
		t.Errorf("%d keys in %d pages of 500, want %d in 3", len(got), pages, len(want))
	}
	if got, _, _ = listAll(t, e.FS, ufs.ListOptions{Prefix: "p/", StartAfter: "p/01200"}); !slices.Equal(got, want[1201:]) {
		t.Errorf("after p/01200 come %v", got)
	}
	if got, _, _ = listAll(t, e.FS, ufs.ListOptions{Prefix: "nothing/"}); len(got) != 0 {
		t.Errorf("an empty prefix lists %v", got)
	}
}

func testDelimiter(t *testing.T, e Env) {
	for _, k := range []string{"d/a", "d/x/1", "d/x/2", "d/y/1", "d/z", "other"} {
		e.Put(k, []byte("x"))
	}
	keys, prefixes, _ := listAll(t, e.FS, ufs.ListOptions{Prefix: "d/", Delimiter: "/"})
	if !slices.Equal(keys, []string{"d/a", "d/z"}) || !slices.Equal(prefixes, []string{"d/x/", "d/y/"}) {
		t.Errorf("keys %v, prefixes %v", keys, prefixes)
	}
	keys, prefixes, pages := listAll(t, e.FS, ufs.ListOptions{Prefix: "d/", Delimiter: "/", MaxKeys: 1})
	if !slices.Equal(keys, []string{"d/a", "d/z"}) || !slices.Equal(prefixes, []string{"d/x/", "d/y/"}) || pages < 4 {
		t.Errorf("one by one: keys %v, prefixes %v in %d pages", keys, prefixes, pages)
	}
}

// entriesOf is what a listing of sorted keys must give, by the rule of S3.
func entriesOf(keys []string, o ufs.ListOptions) (objects, prefixes []string) {
	for _, k := range keys {
		rest, ok := strings.CutPrefix(k, o.Prefix)
		if !ok || o.StartAfter != "" && k <= o.StartAfter {
			continue
		}
		if i := strings.Index(rest, "/"); o.Delimiter != "" && i >= 0 {
			if p := o.Prefix + rest[:i+1]; !slices.Contains(prefixes, p) && o.StartAfter != p {
				prefixes = append(prefixes, p)
			}
			continue
		}
		objects = append(objects, k)
	}
	return objects, prefixes
}

// inFolder: the listing would begin in the middle of a folded folder. Stores do
// not agree on whether that is listed once more.
func inFolder(o ufs.ListOptions) bool {
	rest, ok := strings.CutPrefix(o.StartAfter, o.Prefix)
	i := strings.Index(rest, "/")
	return o.Delimiter != "" && ok && i >= 0 && i < len(rest)-1
}

// The order is that of the bytes of whole keys, not of a walk through folders;
// a listing may begin after any key, in pages of any size, at any prefix.
func testOrder(t *testing.T, e Env) {
	keys := []string{"w/a!", "w/a-b", "w/a-b.d/1", "w/a.txt", "w/a/1", "w/a/b-1", "w/a/b/1", "w/a/b/c/d", "w/a/b0", "w/a0", "w/a\u00e9/x", "w/b/1", "w/b1", "x"}
	if !slices.IsSorted(keys) {
		t.Fatal("the keys of this test are not sorted")
	}
	for _, k := range keys {
		e.Put(k, []byte(k))
	}
	afters := append([]string{"", "w/a/", "w/a/b", "w/a/b/", "w/a/b/c/", "w/a/zz", "w", "w/", "w/b0", "w/zz", "zz"}, keys...)
	for _, prefix := range []string{"", "w/", "w/a", "w/a/", "w/a/b", "w/b", "x", "xx"} {
		for _, delimiter := range []string{"", "/"} {
			for _, after := range afters {
				for _, size := range []int{0, 1, 3} {
					o := ufs.ListOptions{Prefix: prefix, Delimiter: delimiter, StartAfter: after, MaxKeys: size}
					if inFolder(o) {
						continue
					}
					wantKeys, wantPrefixes := entriesOf(keys, o)
					got, prefixes, _ := listAll(t, e.FS, o)
					if !slices.Equal(got, wantKeys) || !slices.Equal(prefixes, wantPrefixes) {
						t.Errorf("%+v lists\n     %q and %q,\nwant %q and %q", o, got, prefixes, wantKeys, wantPrefixes)
					}
				}
			}
		}
	}
}

func testRanges(t *testing.T, e Env) {
	const size = 1<<20 + 17
	want := body(size)
	e.Put("big", want)
	o, err := e.FS.Stat(t.Context(), "big")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range [][2]int64{{0, size}, {0, 1}, {size - 1, 1}, {4096, 65536}, {1, size - 1}} {
		got, err := read(t.Context(), e.FS, "big", o.Version, r[0], r[1])
		if err != nil || !bytes.Equal(got, want[r[0]:r[0]+r[1]]) {
			t.Errorf("range %v: %d bytes, %v", r, len(got), err)
		}
	}
	for _, r := range [][2]int64{{0, 0}, {-1, 2}, {0, size + 1}, {size, 1}} {
		_, err := read(t.Context(), e.FS, "big", o.Version, r[0], r[1])
		wantKind(t, err, stoker.KindInvalid)
	}
	// A reader that is closed early breaks nothing.
	r, err := e.FS.Open(t.Context(), "big", o.Version, 0, size)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

func testStale(t *testing.T, e Env) {
	e.Put("k", body(100))
	o, err := e.FS.Stat(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	if !e.NoTags {
		e.Put("k", bytes.Repeat([]byte{1}, 100)) // same size, perhaps the same second
		_, err = read(t.Context(), e.FS, "k", o.Version, 0, 100)
		wantKind(t, err, stoker.KindStale)
		_, err = read(t.Context(), e.FS, "k", o.Version, 10, 5)
		wantKind(t, err, stoker.KindStale)
	}
	e.Put("k", body(50))
	for _, r := range [][2]int64{{0, 100}, {60, 10}, {0, 10}} {
		_, err = read(t.Context(), e.FS, "k", o.Version, r[0], r[1])
		wantKind(t, err, stoker.KindStale)
	}
	// The same, told by a version without a tag.
	untagged := o.Version
	untagged.Tag = ""
	_, err = read(t.Context(), e.FS, "k", untagged, 0, 10)
	wantKind(t, err, stoker.KindStale)
}

func testNotExist(t *testing.T, e Env) {
	_, err := e.FS.Stat(t.Context(), "none")
	wantKind(t, err, stoker.KindNotExist)
	_, err = read(t.Context(), e.FS, "none", ufs.Version{Bytes: 5}, 0, 5)
	wantKind(t, err, stoker.KindNotExist)
	e.Put("k", body(9))
	o, err := e.FS.Stat(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	e.Delete("k")
	_, err = read(t.Context(), e.FS, "k", o.Version, 0, 9)
	wantKind(t, err, stoker.KindNotExist)
}

func testKeys(t *testing.T, e Env) {
	keys := []string{"plain", "with space", "a+b", "per%cent", "ümläut/日本", "q?m=1&x#y", "semi;colon", "quote'\"", "tilde~!*()", strings.Repeat("long", 50)}
	for i, k := range keys {
		e.Put(k, body(i+1))
	}
	got, _, _ := listAll(t, e.FS, ufs.ListOptions{})
	slices.Sort(keys)
	if !slices.Equal(got, keys) {
		t.Fatalf("listed %q\nwant   %q", got, keys)
	}
	for _, k := range keys {
		o, err := e.FS.Stat(t.Context(), k)
		if err != nil {
			t.Errorf("stat %q: %v", k, err)
			continue
		}
		if b, err := read(t.Context(), e.FS, k, o.Version, 0, o.Version.Bytes); err != nil || !bytes.Equal(b, body(int(o.Version.Bytes))) {
			t.Errorf("read %q: %d bytes, %v", k, len(b), err)
		}
	}
}

func testCanceled(t *testing.T, e Env) {
	e.Put("k", body(10))
	o, err := e.FS.Stat(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := read(ctx, e.FS, "k", o.Version, 0, 10); err == nil || ctx.Err() == nil {
		t.Error("a read in an ended context succeeds")
	} else if k := stoker.KindOf(err); k == stoker.KindTransient {
		t.Errorf("an ended context is reported as %v: it would be retried", k)
	}
}
