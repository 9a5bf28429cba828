package listing

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"stoker.dev"
	"stoker.dev/ufs"
)

// shelf is a store of small objects in memory.
type shelf struct {
	mu   sync.Mutex
	has  map[string][]byte
	puts int
	put  func(n int, name string) (before, after error) // may be nil
}

func newShelf() *shelf { return &shelf{has: map[string][]byte{}} }

func (s *shelf) Get(ctx context.Context, name string) ([]byte, string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b, ok := s.has[name]; ok {
		return b, "", ctx.Err()
	}
	return nil, "", stoker.Errorf(stoker.KindNotExist, "shelf", name, "is not there")
}

func (s *shelf) PutIfAbsent(ctx context.Context, name string, body []byte) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.puts++
	var after error
	if s.put != nil {
		var before error
		if before, after = s.put(s.puts, name); before != nil {
			return "", before
		}
	}
	if _, ok := s.has[name]; ok {
		return "", stoker.Errorf(stoker.KindHeld, "shelf", name, "exists")
	}
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	s.has[name] = body
	return "", after
}

func (s *shelf) ReplaceIf(_ context.Context, name string, _ []byte, _ string) (string, error) {
	return "", stoker.Errorf(stoker.KindInternal, "shelf", name, "nothing is replaced here")
}

func (s *shelf) List(ctx context.Context, prefix string) ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for _, name := range slices.Sorted(maps.Keys(s.has)) {
		if strings.HasPrefix(name, prefix) {
			out = append(out, name)
		}
	}
	return out, ctx.Err()
}

func (s *shelf) Delete(_ context.Context, name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.has, name)
	return nil
}

// each writes a batch for each page.
var each = JournalOptions{Objects: 1}

// journal is one of a process of its own.
func (s *shelf) journal(name string, o JournalOptions) *Journal {
	return NewJournal(s, name, o)
}

// numbers are 60 keys below two prefixes, in pages of 5.
func numbers() (s *store, keys []string) {
	for i := range 60 {
		keys = append(keys, fmt.Sprintf("%s/%03d", []string{"a", "b\xff"}[i%2], i))
	}
	s = storeOf(keys...)
	s.page = 5
	return s, keys
}

var both = []string{"a", "b\xff"}

// until lists with a journal, and dies when request n is about to be sent; 0
// = not at all.
func until(s *store, shelf *shelf, parallel, n int) (*heard, *Journal, error) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	s.mu.Lock()
	at := len(s.asked) + n
	s.before = func(i int, _ ufs.ListOptions) error {
		if n > 0 && i >= at {
			cancel()
		}
		return ctx.Err()
	}
	s.mu.Unlock()
	h := new(heard)
	o := optionsFor(s, parallel, both...)
	o.Journal = shelf.journal("sync", each)
	err := List(ctx, o, h.emit)
	return h, o.Journal, err
}

// Whichever page a listing dies at, the next process asks for the rest only,
// and hands every key on once.
func TestListingGoesOnWhereItDied(t *testing.T) {
	for _, parallel := range []int{1, 4} {
		s, keys := numbers()
		h, j, err := until(s, newShelf(), parallel, 0)
		if wantAll(t, h, keys, both...); err != nil || j.Err() != nil {
			t.Fatal(err, j.Err())
		}
		pages := s.requests()
		for k := 1; k <= pages; k++ {
			s, _ := numbers()
			shelf := newShelf()
			if _, _, err := until(s, shelf, parallel, k); err == nil && parallel == 1 {
				t.Fatalf("it did not die at page %d", k)
			}
			h, j, err := until(s, shelf, parallel, 0)
			if err != nil || j.Err() != nil {
				t.Fatal(err, j.Err())
			}
			wantAll(t, h, keys, both...)
			// A page under way for each worker, and as many wrong guesses again.
			if most := len(keys)/s.page + parallel + (parallel-1)*2*guesses; s.requests() > most {
				t.Errorf("%d workers, died at page %d: %d requests, want at most %d", parallel, k, s.requests(), most)
			}
			// It may die again, when all is listed.
			before := s.requests()
			h, _, err = until(s, shelf, parallel, 0)
			if wantAll(t, h, keys, both...); err != nil || s.requests() != before {
				t.Errorf("%v, %d requests after all was listed", err, s.requests()-before)
			}
			if err := j.Remove(t.Context()); err != nil || len(shelf.has) > 0 {
				t.Errorf("%v, left are %v", err, shelf.has)
			}
		}
	}
}

// A listing that dies at every second request comes to its end.
func TestListingDiesAgainAndAgain(t *testing.T) {
	for _, parallel := range []int{1, 3} {
		s, keys := numbers()
		shelf := newShelf()
		for n := 0; ; n++ {
			h, _, err := until(s, shelf, parallel, 2+parallel)
			if err == nil {
				wantAll(t, h, keys, both...)
				break
			}
			if n > 100 {
				t.Fatal("it never ends")
			}
		}
	}
}

// A process may die before or after a batch is written, and the store may say
// that it was not written when it was: what is listed is the same.
func TestListingDiesAtAWrite(t *testing.T) {
	lost := errors.New("connection lost")
	for n := 1; n <= 14; n++ {
		for name, fail := range map[string]func() (error, error){
			"not written": func() (error, error) { return lost, nil },
			"written":     func() (error, error) { return nil, lost },
		} {
			for _, alive := range []bool{true, false} {
				s, keys := numbers()
				shelf := newShelf()
				ctx, cancel := context.WithCancel(context.Background())
				shelf.put = func(i int, _ string) (before, after error) {
					if i != n {
						return nil, nil
					}
					if !alive {
						cancel()
					}
					return fail()
				}
				var h heard
				o := optionsFor(s, 2, both...)
				o.Journal = shelf.journal("sync", each)
				err := List(ctx, o, h.emit)
				cancel()
				if alive { // it lists on without a journal
					if wantAll(t, &h, keys, both...); err != nil || shelf.puts >= n && !errors.Is(o.Journal.Err(), lost) {
						t.Errorf("%s, write %d: %v, journal: %v", name, n, err, o.Journal.Err())
					}
				}
				again, _, err := until(s, shelf, 2, 0)
				if err != nil {
					t.Fatal(err)
				}
				wantAll(t, again, keys, both...)
			}
		}
	}
}

// Two processes go on with one listing, since one was only thought to be dead:
// one of them gives its journal up, and a third finds no key twice.
func TestTwoGoOnWithOneListing(t *testing.T) {
	for k := 2; k < 10; k++ {
		s, keys := numbers()
		shelf := newShelf()
		if _, _, err := until(s, shelf, 1, k); err == nil {
			t.Fatal("it did not die")
		}
		s.before = nil
		var wg sync.WaitGroup
		journals := make([]*Journal, 2)
		for i := range journals {
			journals[i] = shelf.journal("sync", each)
			wg.Go(func() {
				var h heard
				o := optionsFor(s, 2, both...)
				o.Journal = journals[i]
				if err := List(t.Context(), o, h.emit); err != nil {
					t.Error(err)
				}
				wantAll(t, &h, keys, both...)
			})
		}
		wg.Wait()
		h, _, err := until(s, shelf, 1, 0)
		if err != nil {
			t.Fatal(err)
		}
		wantAll(t, h, keys, both...)
	}
}

// A journal that is of no use is thrown away: all is listed anew.
func TestJournalsOfNoUse(t *testing.T) {
	for name, spoil := range map[string]func(shelf *shelf, o *Options){
		"too old":       func(*shelf, *Options) { time.Sleep(time.Hour + time.Second) },
		"other sources": func(_ *shelf, o *Options) { o.Of = []byte("elsewhere") },
		"other listing": func(shelf *shelf, o *Options) { o.Journal = shelf.journal("another", each) },
		"first batch damaged": func(shelf *shelf, _ *Options) {
			name := slices.Min(slices.Collect(maps.Keys(shelf.has)))
			shelf.has[name] = slices.Replace(slices.Clone(shelf.has[name]), 50, 51, 0)
		},
		"first batch gone": func(shelf *shelf, _ *Options) {
			delete(shelf.has, slices.Min(slices.Collect(maps.Keys(shelf.has))))
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, keys := numbers()
				shelf := newShelf()
				if _, _, err := until(s, shelf, 1, 8); err == nil || len(shelf.has) != 7 {
					t.Fatalf("%v, %d batches", err, len(shelf.has))
				}
				s.before, s.asked = nil, nil
				time.Sleep(time.Second)
				var h heard
				o := optionsFor(s, 1, both...)
				o.Journal = shelf.journal("sync", each)
				spoil(shelf, &o)
				if err := List(t.Context(), o, h.emit); err != nil || o.Journal.Err() != nil {
					t.Fatal(err, o.Journal.Err())
				}
				wantAll(t, &h, keys, both...)
				if s.requests() < len(keys)/s.page {
					t.Errorf("only %d requests", s.requests())
				}
			})
		})
	}
}

// Journals that nobody will go on with do not pile up; those of others that
// are at work are left alone.
func TestOldJournalsAreRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		shelf := newShelf()
		list := func(name string) {
			s, _ := numbers()
			o := optionsFor(s, 1, both...)
			o.Journal = shelf.journal(name, each)
			if err := List(t.Context(), o, (&heard{}).emit); err != nil {
				t.Fatal(err)
			}
		}
		list("one")
		shelf.has["manifests/x"], shelf.has[listings+"odd"] = nil, nil
		time.Sleep(forgotten / 2)
		list("two")
		two := len(shelf.has)
		time.Sleep(forgotten/2 + time.Second)
		list("three")
		if one := 13; len(shelf.has) != two {
			t.Errorf("%d objects, want those of one gone (%d) and those of three there: %d", len(shelf.has), one, two)
		}
		if _, ok := shelf.has["manifests/x"]; !ok {
			t.Error("a manifest is gone")
		}
	})
}

// A short listing writes no journal at all, one that takes long writes one now
// and then.
func TestJournalsAreWrittenNowAndThen(t *testing.T) {
	for latency, most := range map[time.Duration]int{100 * time.Millisecond: 0, 2 * time.Second: 6} {
		synctest.Test(t, func(t *testing.T) {
			s, _ := numbers()
			shelf := newShelf()
			s.latency = latency
			o := optionsFor(s, 1, both...)
			o.Journal = shelf.journal("x", JournalOptions{})
			if err := List(t.Context(), o, (&heard{}).emit); err != nil {
				t.Fatal(err)
			}
			if n := len(shelf.has); n > most || most > 0 && n < most-2 {
				t.Errorf("%v a request: %d batches, want about %d", latency, n, most)
			}
		})
	}
}
