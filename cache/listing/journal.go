package listing

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"stoker.dev"
	"stoker.dev/ufs"
)

// JournalOptions tune a journal; the zero value is useful.
type JournalOptions struct {
	Objects int           // of one batch, about; 0 = 50,000
	Every   time.Duration // a batch is written at least so often; 0 = 5 s
	MaxAge  time.Duration // one whose last batch is older is thrown away; 0 = 1 h
}

// Journal keeps in a store of small objects what a listing has found so far, and
// which ranges of keys are left, so that another process can go on with it. It
// is a chain of batches: each holds objects and, with them in one write, what
// is left after them, so a chain is sound wherever it ends. Batches are only
// ever added: of two processes that go on with one chain, one gives up its
// journal and lists on without it. A journal that cannot be written is no
// reason to fail a listing; Err says why it ended. One Journal is for one
// listing at a time.
type Journal struct {
	store ufs.Objects
	dir   string // "listings/NAME/"
	o     JournalOptions

	options [32]byte // hash of what is listed
	began   time.Time

	// Lock order: writing, the lister's own, mu.
	writing sync.Mutex // held while a batch is written
	next    int        // +checklocks:writing — number of the next batch

	mu      sync.Mutex
	wrote   time.Time // +checklocks:mu
	pages   []byte    // +checklocks:mu — of the next batch
	objects int       // +checklocks:mu — in them
	err     error     // +checklocks:mu
}

const (
	listings  = "listings/"
	forgotten = 24 * time.Hour // journals of listings that nobody went on with are removed after it
)

// NewJournal is the journal, in store, of the listing that a name stands for:
// any text that every try of this listing has, and no other listing.
func NewJournal(store ufs.Objects, name string, o JournalOptions) *Journal {
	o.Objects, o.Every, o.MaxAge = cmp.Or(o.Objects, 50_000), cmp.Or(o.Every, 5*time.Second), cmp.Or(o.MaxAge, time.Hour)
	sum := sha256.Sum256([]byte(name))
	return &Journal{store: store, dir: listings + hex.EncodeToString(sum[:16]) + "/", o: o}
}

// Err says why the journal was given up, nil if it was not.
func (j *Journal) Err() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.err
}

func (j *Journal) giveUp(err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.err, j.pages = err, nil
}

// Since is when the listing began, by the first process that had part in it;
// now if it has no journal, or has not begun.
func (j *Journal) Since(now time.Time) time.Time {
	if j == nil || j.began.IsZero() {
		return now
	}
	return j.began
}

// Remove deletes the journal: the manifest is stored, or will never be.
func (j *Journal) Remove(ctx context.Context) error {
	names, err := j.store.List(ctx, j.dir)
	for _, name := range names {
		err = errors.Join(err, j.store.Delete(ctx, name))
	}
	return err
}

func (j *Journal) name(began time.Time, n int) string {
	return fmt.Sprintf("%s%016x-%06d", j.dir, began.UnixNano(), n)
}

// open hands what the newest chain has to emit, and returns what is left to
// list; found is false if there is none to go on with. Errors are emit's and
// the context's alone: whatever cannot be read is listed again.
func (j *Journal) open(ctx context.Context, sources int, of []byte, emit func(source int, objects []ufs.Object) error) (rest []*span, found bool, err error) {
	now := time.Now()
	j.options, j.began, j.next, j.wrote, j.err = sha256.Sum256(of), now, 0, now, nil
	names, err := j.store.List(ctx, listings)
	if err != nil {
		j.giveUp(err)
		return nil, false, ctx.Err()
	}
	began, batches := j.newest(ctx, names, now)
	for n := range batches {
		b, err := j.read(ctx, j.name(began, n), sources)
		if ctx.Err() != nil {
			return nil, false, ctx.Err()
		}
		if err != nil {
			if found { // what comes before is sound, but nothing can be added to it
				j.giveUp(err)
			}
			break
		}
		if err := b.each(emit); err != nil {
			return nil, false, err
		}
		found, j.began, j.next, rest = true, began, n+1, nil
		for _, r := range b.Rest {
			rest = append(rest, &span{source: r.Source, after: string(r.After), until: string(r.Until), logged: string(r.After)})
		}
	}
	return rest, found, nil
}

// newest finds the chain to go on with, and removes what nobody will.
func (j *Journal) newest(ctx context.Context, names []string, now time.Time) (began time.Time, batches int) {
	chains := map[int64]int{}
	for _, name := range names {
		at, n, ok := batchOf(name)
		switch {
		case !ok || now.Sub(time.Unix(0, at)) > forgotten:
			_ = j.store.Delete(ctx, name) // else with the next listing
		case strings.HasPrefix(name, j.dir) && n == chains[at]: // names are sorted
			chains[at]++
		}
	}
	var best int64
	for at := range chains {
		best = max(best, at)
	}
	began, batches = time.Unix(0, best), chains[best]
	if batches > 0 {
		last, err := j.read(ctx, j.name(began, batches-1), maxSources)
		if err == nil && (!bytes.Equal(last.Options, j.options[:]) || now.Sub(last.Written) > j.o.MaxAge) {
			batches = 0
		}
	}
	if batches == 0 {
		for _, name := range names {
			if strings.HasPrefix(name, j.dir) {
				_ = j.store.Delete(ctx, name)
			}
		}
	}
	return began, batches
}

// Forget removes the batches of journals that nobody goes on with any more.
func Forget(ctx context.Context, store ufs.Objects) error {
	names, err := store.List(ctx, listings)
	for _, name := range names {
		if at, _, ok := batchOf(name); !ok || time.Since(time.Unix(0, at)) > forgotten {
			err = errors.Join(err, store.Delete(ctx, name))
		}
	}
	return err
}

// batchOf takes a batch's name apart.
func batchOf(name string) (began int64, n int, ok bool) {
	at, number, ok := strings.Cut(name[strings.LastIndexByte(name, '/')+1:], "-")
	began, err := strconv.ParseInt(at, 16, 64)
	n, err2 := strconv.Atoi(number)
	return began, n, ok && err == nil && err2 == nil
}

// add takes a page and reports whether a batch is due.
func (j *Journal) add(page []byte, objects int) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.err != nil {
		return false
	}
	j.pages = append(j.pages, page...)
	j.objects += objects
	return j.due()
}

func (j *Journal) due() bool {
	return j.objects >= j.o.Objects || time.Since(j.wrote) >= j.o.Every
}

// take returns the pages of the next batch, if one is due or must be.
func (j *Journal) take(must bool) (pages []byte, ok bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.err != nil || !j.due() && !must {
		return nil, false
	}
	pages, j.pages, j.objects, j.wrote = j.pages, nil, 0, time.Now()
	return pages, true
}

// write adds a batch. It is called with writing held.
func (j *Journal) write(ctx context.Context, pages []byte, rest []restOf) {
	b := batch{batchHead{j.options[:], time.Now().UTC(), rest}, pages}
	body, err := b.encode()
	if err == nil {
		_, err = j.store.PutIfAbsent(ctx, j.name(j.began, j.next), body)
	}
	if err != nil {
		j.giveUp(err)
		return
	}
	j.next++
}

func (j *Journal) read(ctx context.Context, name string, sources int) (*batch, error) {
	body, _, err := j.store.Get(ctx, name)
	if err != nil {
		return nil, err
	}
	b, err := decodeBatch(body, sources)
	if err != nil {
		return nil, stoker.Errorf(stoker.KindCorrupt, "listing.journal", name, "%w", err)
	}
	return b, nil
}
