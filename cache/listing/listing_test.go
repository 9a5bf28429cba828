package listing

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"stoker.dev"
	"stoker.dev/ufs"
	"stoker.dev/ufs/memufs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// store is a memufs that a test may slow down, make ragged, or watch.
type store struct {
	*memufs.FS
	page    int           // the most entries of a page; 0 = memufs's own
	latency time.Duration // of each request

	mu      sync.Mutex
	ragged  *rand.Rand // pages end anywhere, some are empty
	asked   []ufs.ListOptions
	flight  int
	most    int // requests in flight
	before  func(n int, o ufs.ListOptions) error
	objects int // sent
}

func storeOf(keys ...string) *store {
	s := &store{FS: memufs.New()}
	for _, key := range keys {
		s.Put(key, nil)
	}
	return s
}

// emptyPage is the token of a page that follows an empty one.
const emptyPage = "empty:"

func (s *store) List(ctx context.Context, o ufs.ListOptions) (ufs.Page, error) {
	s.mu.Lock()
	s.asked = append(s.asked, o)
	n := len(s.asked)
	s.flight++
	s.most = max(s.most, s.flight)
	o.MaxKeys = s.page
	empty := false
	if s.ragged != nil {
		o.MaxKeys = 1 + s.ragged.IntN(max(s.page, 1))
		empty = s.ragged.IntN(4) == 0
	}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.flight--
	}()
	if s.latency > 0 {
		time.Sleep(s.latency) // a bubble's time
	}
	if s.before != nil {
		if err := s.before(n, o); err != nil {
			return ufs.Page{}, err
		}
	}
	if err := ctx.Err(); err != nil {
		return ufs.Page{}, err
	}
	if token, ok := strings.CutPrefix(o.Token, emptyPage); ok {
		_, o.Token, _ = strings.Cut(token, ":")
	} else if empty {
		return ufs.Page{Next: fmt.Sprint(emptyPage, n, ":", o.Token)}, nil
	}
	p, err := s.FS.List(ctx, o)
	s.mu.Lock()
	s.objects += len(p.Objects)
	s.mu.Unlock()
	return p, err
}

func (s *store) requests() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.asked)
}

// heard is what a listing handed on.
type heard struct {
	mu   sync.Mutex
	keys []string // ROOT KEY
}

func (h *heard) emit(root int, objects []ufs.Object) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, o := range objects {
		h.keys = append(h.keys, fmt.Sprint(root, " ", o.Key))
	}
	return nil
}

func (h *heard) sorted() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Sorted(slices.Values(h.keys))
}

// folder is the key prefix of a folder.
func folder(name string) string {
	if name == "" {
		return ""
	}
	return name + "/"
}

// optionsFor list some folders of one store.
func optionsFor(fs ufs.FS, parallel int, folders ...string) Options {
	o := Options{Parallel: parallel, Of: []byte(strings.Join(folders, "|"))}
	for _, f := range folders {
		o.Sources = append(o.Sources, Source{fs, folder(f)})
	}
	return o
}

func wantKind(t testing.TB, err error, kind stoker.Kind) {
	t.Helper()
	if err == nil || stoker.KindOf(err) != kind {
		t.Errorf("got %v (%v), want kind %v", err, stoker.KindOf(err), kind)
	}
}

// wantAll wants each key below each folder handed on exactly once.
func wantAll(t testing.TB, h *heard, keys []string, folders ...string) {
	t.Helper()
	var want []string
	for i, p := range folders {
		for _, k := range keys {
			if strings.HasPrefix(k, folder(p)) {
				want = append(want, fmt.Sprint(i, " ", k))
			}
		}
	}
	slices.Sort(want)
	if got := h.sorted(); !slices.Equal(got, want) {
		for i := range max(len(got), len(want)) {
			if i >= len(got) || i >= len(want) || got[i] != want[i] {
				t.Fatalf("%d keys listed, %d there; from %d on: got %q, want %q", len(got), len(want), i, got[i:min(i+3, len(got))], want[i:min(i+3, len(want))])
			}
		}
	}
}

// shapes make key sets as they are, and as they are not.
var shapes = map[string]func(r *rand.Rand, i int) string{
	"numbers":        func(_ *rand.Rand, i int) string { return fmt.Sprintf("img_%08d.jpg", i) },
	"no zeros ahead": func(_ *rand.Rand, i int) string { return fmt.Sprint(i) },
	"hashes":         func(r *rand.Rand, _ int) string { return fmt.Sprintf("%016x", r.Uint64()) },
	"folders":        func(_ *rand.Rand, i int) string { return fmt.Sprintf("train/n%08d/%05d.JPEG", i/20*137, i) },
	"one long prefix": func(_ *rand.Rand, i int) string {
		return strings.Repeat("deep/", 40) + fmt.Sprintf("%c/%d", 'a'+i%26, i)
	},
	"two clusters": func(_ *rand.Rand, i int) string { return fmt.Sprintf("%c%06d", "az"[i%2], i) },
	"any bytes":    func(r *rand.Rand, _ int) string { return anyBytes(r, 1+r.IntN(6), 256) },
	"few bytes":    func(r *rand.Rand, _ int) string { return anyBytes(r, 1+r.IntN(12), 3) },
	"letters beyond": func(r *rand.Rand, _ int) string {
		return "日本/" + string([]rune{rune(0x3040 + r.IntN(90)), rune(0x3040 + r.IntN(90))})
	},
	"ends of ASCII": func(r *rand.Rand, _ int) string {
		return strings.Repeat("~", r.IntN(40)) + strings.Repeat(" ", r.IntN(40)) + "x"
	},
	"each the other's prefix": func(_ *rand.Rand, i int) string { return strings.Repeat("a", 1+i%1000) },
}

func anyBytes(r *rand.Rand, n, of int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.IntN(of)) + "\x00/a"[r.IntN(3)]
	}
	return string(b)
}

// No key is lost or doubled, whatever keys there are, wherever pages end, and
// with keys that are a guessed border themselves.
func TestEveryKeyIsListedOnce(t *testing.T) {
	for name, shape := range shapes {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(8) {
				r := rand.New(rand.NewPCG(seed, 1))
				keys := map[string]bool{}
				for i := range r.IntN(700) {
					keys[shape(r, i)] = true
				}
				s := storeOf()
				s.page = 1 + r.IntN(40)
				if seed%2 == 1 {
					s.ragged = r
				}
				for range 3 {
					for k := range keys {
						s.Put(k, nil)
					}
					var h heard
					o := optionsFor(s, 1+r.IntN(20), "", "train", "a", "none")
					if err := List(context.Background(), o, h.emit); err != nil {
						t.Fatal(err)
					}
					var all []string
					for k := range keys {
						all = append(all, k)
					}
					wantAll(t, &h, all, "", "train", "a", "none")
					for _, a := range s.asked { // the next time, borders are keys
						if b := a.StartAfter; b != "" && r.IntN(4) == 0 {
							keys[b], keys[b+"\x00"], keys[b[:len(b)-1]+string([]byte{b[len(b)-1] - 1, 0xff})] = true, true, true
						}
					}
					s.asked = nil
				}
			}
		})
	}
}

// Ranges are listed by several requests at once, also where all keys are in
// one folder, and wrong guesses are few.
func TestListingIsParallel(t *testing.T) {
	for name, c := range map[string]struct {
		key   func(r *rand.Rand, i int) string
		times float64 // as fast as one request after the other, at least
		most  int     // requests for the 100 pages
	}{
		"one folder, numbers": {shapes["numbers"], 4, 170},
		"one folder, hashes":  {shapes["hashes"], 4, 170},
		"many tiny folders":   {func(_ *rand.Rand, i int) string { return fmt.Sprintf("train/n%08d/%05d.JPEG", i/5*685, i) }, 4, 150},
		"two folders":         {func(_ *rand.Rand, i int) string { return fmt.Sprintf("%s/%08d", []string{"train", "val"}[i/18_000], i) }, 4, 170},
		// Borders that folders show, and no guess knows.
		"folders of a page each": {func(_ *rand.Rand, i int) string { return fmt.Sprintf("data/%x/%05d", (i/200*7919)%65536, i) }, 7, 145},
		// Each folder is one page: no guess can know.
		"one key each folder": {func(_ *rand.Rand, i int) string { return fmt.Sprintf("a/%d/b/c/%d/x", i%100, i) }, 3, 220},
	} {
		t.Run(name, func(t *testing.T) {
			const objects, page = 20_000, 200
			r := rand.New(rand.NewPCG(1, 2))
			s := storeOf()
			for i := range objects {
				s.Put(c.key(r, i), nil)
			}
			synctest.Test(t, func(t *testing.T) {
				s.page = page
				s.latency = 50 * time.Millisecond
				var n atomic.Int64
				begin := time.Now()
				err := List(t.Context(), optionsFor(s, 16, ""), func(_ int, objects []ufs.Object) error {
					n.Add(int64(len(objects)))
					return nil
				})
				if err != nil || n.Load() != objects {
					t.Fatalf("%d objects, %v", n.Load(), err)
				}
				took := time.Since(begin)
				times := float64(objects/page*s.latency) / float64(took)
				t.Logf("%.1f times as fast as one request after the other, %d requests for %d pages", times, s.requests(), objects/page)
				if times < c.times {
					t.Errorf("took %v: only %.1f times as fast as one request after the other", took, times)
				}
				if s.requests() > c.most {
					t.Errorf("%d requests for %d pages", s.requests(), objects/page)
				}
				if s.most > 16 {
					t.Errorf("%d requests in flight, 16 allowed", s.most)
				}
			})
		})
	}
}

// Pages wait while what they are handed to is busy: no more than the workers
// have are in memory.
func TestPagesUnderWayAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := storeOf()
		for i := range 20_000 {
			s.Put(fmt.Sprintf("%05d", i), nil)
		}
		s.page = 10
		busy := make(chan struct{})
		var inside, most atomic.Int64
		done := make(chan error)
		go func() {
			done <- List(t.Context(), optionsFor(s, 7, ""), func(int, []ufs.Object) error {
				most.Store(max(most.Load(), inside.Add(1)))
				defer inside.Add(-1)
				<-busy
				return nil
			})
		}()
		synctest.Wait()
		if asked := s.requests(); asked > 7+guesses+2 { // wrong guesses hand nothing on
			t.Errorf("%d pages asked for while 7 are held up", asked)
		}
		close(busy)
		if err := <-done; err != nil || most.Load() > 7 {
			t.Errorf("%d at a time, %v", most.Load(), err)
		}
	})
}

// lying lists what a function says.
type lying struct {
	ufs.FS
	page func(n int, o ufs.ListOptions) ufs.Page
	n    atomic.Int64
}

func (l *lying) List(ctx context.Context, o ufs.ListOptions) (ufs.Page, error) {
	return l.page(int(l.n.Add(1)), o), ctx.Err()
}

func page(next string, keys ...string) ufs.Page {
	p := ufs.Page{Next: next}
	for _, k := range keys {
		p.Objects = append(p.Objects, ufs.Object{Key: k})
	}
	return p
}

// A listing that would be wrong or endless is refused.
func TestListingsThatLie(t *testing.T) {
	for name, c := range map[string]struct {
		page func(n int, o ufs.ListOptions) ufs.Page
		says string
	}{
		"one page for ever":        {func(n int, _ ufs.ListOptions) ufs.Page { return page(fmt.Sprint(n), "a", "b") }, "order"},
		"one token for ever":       {func(int, ufs.ListOptions) ufs.Page { return page("t") }, "token twice"},
		"empty for ever":           {func(n int, _ ufs.ListOptions) ufs.Page { return page(fmt.Sprint(n)) }, "without a key"},
		"not sorted":               {func(int, ufs.ListOptions) ufs.Page { return page("", "b", "a") }, "order"},
		"a key twice":              {func(int, ufs.ListOptions) ufs.Page { return page("", "b", "b") }, "order"},
		"an empty key":             {func(int, ufs.ListOptions) ufs.Page { return page("", "") }, "order"},
		"not sorted across pages":  {func(n int, _ ufs.ListOptions) ufs.Page { return page(fmt.Sprint(n), fmt.Sprint(9-n)) }, "order"},
		"folders though not asked": {func(int, ufs.ListOptions) ufs.Page { return ufs.Page{Prefixes: []string{"a/"}} }, "folds"},
		"start-after is not known": {func(_ int, o ufs.ListOptions) ufs.Page {
			at := o.Token + "z"
			return page(at, at+"a", at+"b", at+"c")
		}, "start-after"},
	} {
		t.Run(name, func(t *testing.T) {
			err := List(t.Context(), optionsFor(&lying{page: c.page}, 4, ""), (&heard{}).emit)
			if wantKind(t, err, stoker.KindCorrupt); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, want %q in it", err, c.says)
			}
		})
	}
	t.Run("another folder's keys", func(t *testing.T) {
		l := &lying{page: func(int, ufs.ListOptions) ufs.Page { return page("", "b/1") }}
		wantKind(t, List(t.Context(), optionsFor(l, 4, "a"), (&heard{}).emit), stoker.KindCorrupt)
	})
}

// An error of whoever takes the pages ends the listing.
func TestListingEnds(t *testing.T) {
	s := storeOf()
	for i := range 5000 {
		s.Put(fmt.Sprintf("%05d", i), nil)
	}
	s.page = 10
	full := errors.New("full")
	var pages atomic.Int64
	err := List(t.Context(), optionsFor(s, 8, "", ""), func(int, []ufs.Object) error {
		if pages.Add(1) > 5 {
			return full
		}
		return nil
	})
	if !errors.Is(err, full) || s.requests() > 5+2*8 {
		t.Errorf("%v after %d requests", err, s.requests())
	}
}

var aTime = time.Date(2026, 3, 1, 12, 0, 0, 500, time.UTC)

// What a page is written as in a journal comes back.
func TestPagesComeBack(t *testing.T) {
	var want []ufs.Object
	for i, tag := range []string{"", `"0123456789abcdef0123456789abcdef"`, `"0123456789ABCDEF0123456789abcdef"`, `W/"x"`, strings.Repeat("v", 300)} {
		for _, mod := range []time.Time{{}, aTime, time.Unix(-5, 7).UTC(), time.Date(9999, 1, 1, 0, 0, 0, 5, time.UTC)} {
			want = append(want, ufs.Object{Key: fmt.Sprintf("k\xff/%d/%d", i, len(want)), Exec: i%2 == 1, Link: strings.Repeat("l", i*50), Unmountable: strings.Repeat("u", i%3),
				Version: ufs.Version{Tag: tag, ModTime: mod, Bytes: int64(i) << 40}})
		}
	}
	b := batch{batchHead{[]byte{1}, aTime, []restOf{{1, []byte("\xff"), nil}}}, appendPage(appendPage(appendPage(nil, 1, want), 0, nil), 0, want[:1])}
	body, err := b.encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeBatch(body, 2)
	if err != nil {
		t.Fatal(err)
	}
	var pages [][]ufs.Object
	err = got.each(func(root int, objects []ufs.Object) error {
		if root != 1-len(pages) {
			t.Errorf("root %d", root)
		}
		pages = append(pages, objects)
		return nil
	})
	if err != nil || len(pages) != 2 || !slices.Equal(pages[0], want) || !slices.Equal(pages[1], want[:1]) {
		t.Errorf("%v, %v, want %v", err, pages, want)
	}
	if !bytes.Equal(got.Rest[0].After, []byte("\xff")) || got.Rest[0].Source != 1 {
		t.Errorf("left is %v", got.Rest)
	}
	for i := range body {
		bad := bytes.Clone(body)
		bad[i] ^= 1 << (i % 8)
		if _, err := decodeBatch(bad, 2); err == nil {
			t.Errorf("byte %d was changed and nobody saw it", i)
		}
		if _, err := decodeBatch(body[:i], 2); err == nil {
			t.Errorf("only %d bytes, and nobody saw it", i)
		}
	}
	if _, err := decodeBatch(body, 1); err == nil {
		t.Error("root 1 of 1 root")
	}
}
