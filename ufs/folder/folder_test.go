package folder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"stoker.dev"
	"stoker.dev/ufs"
	"stoker.dev/ufs/ufstest"
)

func TestObjects(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "made", "by", "open")
	n := 0
	ufstest.Objects(t, func(t *testing.T, fresh bool) ufs.Objects {
		if fresh {
			n++
		}
		return open(t, filepath.Join(dir, strconv.Itoa(n)))
	})
}

func open(t testing.TB, dir string) *Objects {
	t.Helper()
	o, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func wantKind(t *testing.T, what string, err error, kind stoker.Kind) {
	t.Helper()
	if err == nil || stoker.KindOf(err) != kind {
		t.Errorf("%s: %v has kind %v, want %v", what, err, stoker.KindOf(err), kind)
	}
}

func want(t *testing.T, o *Objects, name, body string) (tag string) {
	t.Helper()
	got, tag, err := o.Get(t.Context(), name)
	if err != nil || string(got) != body {
		t.Errorf("%s holds %q (%v), want %q", name, got, err, body)
	}
	var stream strings.Builder
	if err := o.GetTo(t.Context(), name, &stream); err != nil || stream.String() != body {
		t.Errorf("%s streams %q (%v), want %q", name, stream.String(), err, body)
	}
	return tag
}

func TestNamesCannotEscape(t *testing.T) {
	base := t.TempDir()
	o := open(t, filepath.Join(base, "store"))
	outside := filepath.Join(base, "outside")
	if err := os.WriteFile(outside, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{
		"", ".", "..", "../outside", "a/../../outside", "/etc/passwd", outside, "a//b", "a/", "/a", "./a", "a/./b", "a/..",
		".lock", ".new-1", "a/.new-1", "-a", "_a", "a b", "a\n", "a\x00b", "é", `a\b`, "a/" + strings.Repeat("x/", 260) + "x",
	} {
		_, _, err := o.Get(t.Context(), name)
		wantKind(t, fmt.Sprintf("get %q", name), err, stoker.KindInvalid)
		wantKind(t, fmt.Sprintf("stream %q", name), o.GetTo(t.Context(), name, io.Discard), stoker.KindInvalid)
		_, err = o.PutIfAbsent(t.Context(), name, []byte("x"))
		wantKind(t, fmt.Sprintf("put %q", name), err, stoker.KindInvalid)
		_, err = o.ReplaceIf(t.Context(), name, []byte("x"), tagOf([]byte("secret")))
		wantKind(t, fmt.Sprintf("replace %q", name), err, stoker.KindInvalid)
		wantKind(t, fmt.Sprintf("delete %q", name), o.Delete(t.Context(), name), stoker.KindInvalid)
	}
	if body, err := os.ReadFile(outside); string(body) != "secret" {
		t.Errorf("outside: %q, %v", body, err)
	}
	for _, dir := range []string{base, o.dir} {
		if entries, err := os.ReadDir(dir); err != nil || dir == base && len(entries) != 2 || dir == o.dir && len(entries) != 0 {
			t.Errorf("%s holds %v (%v)", dir, entries, err)
		}
	}
}

// What another try cannot mend is not called Transient.
func TestNamesInEachOthersWay(t *testing.T) {
	ctx, o := t.Context(), open(t, t.TempDir())
	for _, n := range []string{"file", "folder/file"} {
		if _, err := o.PutIfAbsent(ctx, n, []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"file/below", "folder"} {
		_, _, err := o.Get(ctx, name)
		wantKind(t, "get "+name, err, stoker.KindNotExist)
		wantKind(t, "stream "+name, o.GetTo(ctx, name, io.Discard), stoker.KindNotExist)
		if err := o.Delete(ctx, name); err != nil {
			t.Errorf("delete %s: %v", name, err)
		}
	}
	_, err := o.PutIfAbsent(ctx, "file/below", nil)
	wantKind(t, "put below a file", err, stoker.KindInvalid)
	_, err = o.PutIfAbsent(ctx, strings.Repeat("x", 300), nil)
	wantKind(t, "put of a name longer than the file system's", err, stoker.KindInvalid)
	want(t, o, "folder/file", "x")
}

// What a crash left half-written, and what is not ours, is no object.
func TestLeftoversAreNotListed(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	o := open(t, dir)
	tag, err := o.PutIfAbsent(ctx, "a/real", []byte("1"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := o.ReplaceIf(ctx, "a/real", []byte("2"), tag); err != nil { // leaves .lock
		t.Fatal(err)
	}
	for _, path := range []string{tempPrefix + "123", "a/" + tempPrefix + "456", ".snapshot/hourly/real", "a/real~", "a/.nfs0001"} {
		path = filepath.Join(dir, path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte("half"), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "a", "empty"), 0o755), os.Symlink("/etc/passwd", filepath.Join(dir, "a", "link"))); err != nil {
		t.Fatal(err)
	}
	for _, again := range []*Objects{o, open(t, dir)} {
		got, err := again.List(ctx, "")
		if err != nil || !slices.Equal(got, []string{"a/real"}) {
			t.Errorf("listed %v (%v)", got, err)
		}
	}
}

// Nothing but the object is left of a write, whether it won or lost.
func TestWritesLeaveNoTemporaryFiles(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	o := open(t, dir)
	tag, _ := o.PutIfAbsent(ctx, "x", []byte("1"))
	_, lost := o.PutIfAbsent(ctx, "x", []byte("2"))
	_, err := o.ReplaceIf(ctx, "x", []byte("3"), tag)
	_, late := o.ReplaceIf(ctx, "x", []byte("4"), tag)
	if lost == nil || err != nil || late == nil {
		t.Fatal(lost, err, late)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 || entries[0].Name() != ".lock" || entries[1].Name() != "x" {
		t.Errorf("left: %v (%v)", entries, err)
	}
}

func TestEndedContextWritesNothing(t *testing.T) {
	o := open(t, t.TempDir())
	tag, err := o.PutIfAbsent(t.Context(), "x", []byte("1"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, _, get := o.Get(ctx, "x")
	_, put := o.PutIfAbsent(ctx, "y", nil)
	_, replace := o.ReplaceIf(ctx, "x", nil, tag)
	_, list := o.List(ctx, "")
	for what, err := range map[string]error{"get": get, "put": put, "replace": replace, "list": list, "delete": o.Delete(ctx, "x")} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", what, err)
		}
	}
	want(t, o, "x", "1")
}

// A folder that is a file, or cannot be written, is said to be so.
func TestFoldersThatCannotBe(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Open(file)
	wantKind(t, "a file", err, stoker.KindInvalid)
	_, err = Open(filepath.Join(file, "below"))
	wantKind(t, "below a file", err, stoker.KindInvalid)
	if os.Getuid() == 0 {
		return // root may write anywhere
	}
	dir := t.TempDir()
	o := open(t, dir)
	if err := os.Chmod(dir, 0o500); err != nil {
		t.Fatal(err)
	}
	_, err = o.PutIfAbsent(t.Context(), "x", nil)
	wantKind(t, "a folder without write permission", err, stoker.KindDenied)
}

// A replace that is under way does not bring a deleted object back.
func TestDeletedStaysDeleted(t *testing.T) {
	dir := t.TempDir()
	a, b := open(t, dir), open(t, dir)
	for range 30 {
		tag, err := a.PutIfAbsent(t.Context(), "x", []byte("1"))
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := a.ReplaceIf(t.Context(), "x", []byte("2"), tag); err != nil {
				wantKind(t, "replace", err, stoker.KindNotExist)
			}
		})
		wg.Go(func() {
			if err := b.Delete(t.Context(), "x"); err != nil {
				t.Error(err)
			}
		})
		wg.Wait()
		if body, _, err := b.Get(t.Context(), "x"); stoker.KindOf(err) != stoker.KindNotExist || err == nil {
			t.Fatalf("%q came back (%v)", body, err)
		}
	}
}
