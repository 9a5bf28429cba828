package ufstest

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"stoker.dev"
	"stoker.dev/ufs"
)

// Objects is the suite that every ufs.Objects passes. open returns a client of
// a store: fresh asks for a new, empty one, else it is one more of the last.
func Objects(t *testing.T, open func(t *testing.T, fresh bool) ufs.Objects) {
	for name, test := range map[string]func(*testing.T, func(*testing.T, bool) ufs.Objects){
		"life": objectsLife, "list": objectsList, "one put wins": onePutWins, "one replace wins": oneReplaceWins,
		"no update is lost": noUpdateIsLost, "names": objectsNames, "large": largeObjects,
	} {
		t.Run(name, func(t *testing.T) { test(t, open) })
	}
}

func wantKindOf(t *testing.T, what string, err error, kind stoker.Kind) {
	t.Helper()
	if err == nil || stoker.KindOf(err) != kind {
		t.Errorf("%s: %v has kind %v, want %v", what, err, stoker.KindOf(err), kind)
	}
}

func wantObject(t *testing.T, o ufs.Objects, name, body string) (tag string) {
	t.Helper()
	got, tag, err := o.Get(t.Context(), name)
	if err != nil || string(got) != body {
		t.Errorf("%s holds %q (%v), want %q", name, got, err, body)
	}
	if streams, ok := o.(ufs.ObjectStreams); ok {
		var stream strings.Builder
		if err := streams.GetTo(t.Context(), name, &stream); err != nil || stream.String() != body {
			t.Errorf("%s streams %q (%v), want %q", name, stream.String(), err, body)
		}
	}
	return tag
}

func objectsLife(t *testing.T, open func(*testing.T, bool) ufs.Objects) {
	ctx, o := t.Context(), open(t, true)
	_, _, err := o.Get(ctx, "a/b.json")
	wantKindOf(t, "get of nothing", err, stoker.KindNotExist)
	_, err = o.ReplaceIf(ctx, "a/b.json", []byte("0"), "tag")
	wantKindOf(t, "replace of nothing", err, stoker.KindNotExist)
	if err := o.Delete(ctx, "a/b.json"); err != nil {
		t.Errorf("delete of nothing: %v", err)
	}

	first, err := o.PutIfAbsent(ctx, "a/b.json", []byte("1"))
	if err != nil || first != wantObject(t, o, "a/b.json", "1") {
		t.Fatalf("tag %q, %v", first, err)
	}
	_, err = o.PutIfAbsent(ctx, "a/b.json", []byte("other"))
	wantKindOf(t, "a second put", err, stoker.KindHeld)
	wantObject(t, o, "a/b.json", "1")

	second, err := o.ReplaceIf(ctx, "a/b.json", []byte("2"), first)
	if err != nil || second == first || second != wantObject(t, o, "a/b.json", "2") {
		t.Fatalf("tag %q, %v", second, err)
	}
	for _, tag := range []string{first, ""} {
		_, err = o.ReplaceIf(ctx, "a/b.json", []byte("3"), tag)
		wantKindOf(t, "replace with tag "+tag, err, stoker.KindHeld)
	}
	wantObject(t, o, "a/b.json", "2")

	if err := o.Delete(ctx, "a/b.json"); err != nil {
		t.Fatal(err)
	}
	_, _, err = o.Get(ctx, "a/b.json")
	wantKindOf(t, "get of what was deleted", err, stoker.KindNotExist)
	if _, err := o.PutIfAbsent(ctx, "a/b.json", nil); err != nil {
		t.Errorf("put after delete: %v", err)
	}
	wantObject(t, o, "a/b.json", "")
}

func objectsList(t *testing.T, open func(*testing.T, bool) ufs.Objects) {
	ctx, o := t.Context(), open(t, true)
	empty, err := o.List(ctx, "")
	if err != nil || empty == nil || len(empty) != 0 {
		t.Errorf("an empty folder: %v, %v", empty, err)
	}
	names := []string{"a", "b/x", "b/y/z", "b.json", "ba", "c-1/d_2"}
	for _, n := range names {
		if _, err := o.PutIfAbsent(ctx, n, []byte(n)); err != nil {
			t.Fatal(err)
		}
	}
	for prefix, want := range map[string][]string{
		"": {"a", "b.json", "b/x", "b/y/z", "ba", "c-1/d_2"}, "b": {"b.json", "b/x", "b/y/z", "ba"},
		"b/": {"b/x", "b/y/z"}, "b/y": {"b/y/z"}, "b/y/": {"b/y/z"}, "zz": {}, "../": {}, "/": {},
	} {
		got, err := o.List(ctx, prefix)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("list %q: %v (%v), want %v", prefix, got, err, want)
		}
	}
}

// contest lets n goroutines, half on each of two opened stores, do the same
// thing at once, and returns how many did; the others must be told Held.
func contest(t *testing.T, open func(*testing.T, bool) ufs.Objects, n int, do func(o ufs.Objects, i int) error) int {
	t.Helper()
	stores := []ufs.Objects{open(t, false), open(t, false)}
	var won atomic.Int64
	var wg sync.WaitGroup
	start := make(chan struct{})
	for i := range n {
		wg.Go(func() {
			<-start
			switch err := do(stores[i%2], i); {
			case err == nil:
				won.Add(1)
			case stoker.KindOf(err) != stoker.KindHeld:
				t.Errorf("a loser was told %v", err)
			}
		})
	}
	close(start)
	wg.Wait()
	return int(won.Load())
}

func onePutWins(t *testing.T, open func(*testing.T, bool) ufs.Objects) {
	o := open(t, true)
	for round := range 10 {
		name := fmt.Sprintf("r%d/x", round)
		if n := contest(t, open, 8, func(o ufs.Objects, i int) error {
			_, err := o.PutIfAbsent(t.Context(), name, bytes.Repeat([]byte{byte('a' + i)}, 10_000))
			return err
		}); n != 1 {
			t.Fatalf("%d puts won", n)
		}
		body, _, err := o.Get(t.Context(), name)
		if err != nil || len(body) != 10_000 || len(bytes.Trim(body, string(body[:1]))) != 0 {
			t.Fatalf("%d bytes, mixed or cut (%v)", len(body), err)
		}
	}
}

func oneReplaceWins(t *testing.T, open func(*testing.T, bool) ufs.Objects) {
	o := open(t, true)
	tag, err := o.PutIfAbsent(t.Context(), "x", []byte("0"))
	if err != nil {
		t.Fatal(err)
	}
	for round := range 10 {
		var mu sync.Mutex
		next := ""
		if n := contest(t, open, 8, func(o ufs.Objects, i int) error {
			got, err := o.ReplaceIf(t.Context(), "x", fmt.Appendf(nil, "%d by %d", round, i), tag)
			if err == nil {
				mu.Lock()
				next = got
				mu.Unlock()
			}
			return err
		}); n != 1 {
			t.Fatalf("%d replaces of one content won", n)
		}
		_, tag, err = o.Get(t.Context(), "x")
		if err != nil || tag != next {
			t.Fatalf("the winner's tag is %q, the object's %q (%v)", next, tag, err)
		}
	}
}

// Counting up by compare and swap loses no step.
func noUpdateIsLost(t *testing.T, open func(*testing.T, bool) ufs.Objects) {
	o := open(t, true)
	if _, err := o.PutIfAbsent(t.Context(), "n", []byte("0")); err != nil {
		t.Fatal(err)
	}
	const each = 5
	contest(t, open, 4, func(o ufs.Objects, _ int) error {
		for done := 0; done < each; {
			body, tag, err := o.Get(t.Context(), "n")
			if err != nil {
				return err
			}
			var n int
			if _, err := fmt.Sscan(string(body), &n); err != nil {
				return err
			}
			_, err = o.ReplaceIf(t.Context(), "n", fmt.Appendf(nil, "%d", n+1), tag)
			if err == nil {
				done++
			} else if stoker.KindOf(err) != stoker.KindHeld {
				return err
			}
		}
		return nil
	})
	wantObject(t, o, "n", fmt.Sprint(4*each))
}

func objectsNames(t *testing.T, open func(*testing.T, bool) ufs.Objects) {
	o := open(t, true)
	for _, name := range []string{"", "/", "a/", "/a", "..", "a/../b", "a//b", ".a", "a b", "a\x00", strings.Repeat("a", 513)} {
		_, _, err := o.Get(t.Context(), name)
		wantKindOf(t, "get of "+name, err, stoker.KindInvalid)
		_, err = o.PutIfAbsent(t.Context(), name, nil)
		wantKindOf(t, "put of "+name, err, stoker.KindInvalid)
		wantKindOf(t, "delete of "+name, o.Delete(t.Context(), name), stoker.KindInvalid)
	}
}

func largeObjects(t *testing.T, open func(*testing.T, bool) ufs.Objects) {
	o := open(t, true)
	body := bytes.Repeat([]byte("0123456789abcdef"), 1<<20) // 16 MiB
	if _, err := o.PutIfAbsent(t.Context(), "large", body); err != nil {
		t.Fatal(err)
	}
	wantObject(t, o, "large", string(body))
}
