// Package listing lists object stores: by ranges of keys, several at once, with
// a journal from which another process can go on.
package listing

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"stoker.dev"
	"stoker.dev/ufs"
)

// Source is one store's prefix, all of which is listed.
type Source struct {
	FS     ufs.FS
	Prefix string // "" or ending in a slash
}

// Options say what to list.
type Options struct {
	Sources  []Source
	Parallel int                               // requests in flight, and pages in emit; below 1 = 1
	Progress func(objects, bytes, pages int64) // called after each page, from several goroutines; may be nil
	Journal  *Journal                          // so that another process can go on; may be nil
	Of       []byte                            // what the sources are, for the journal: one of anything else is thrown away
}

// List lists every source and hands each page's objects to emit with the
// source's number, from several goroutines, in no order. An error of emit ends
// it, as does a page that cannot be had, or one that cannot be right
// (KindCorrupt): a listing is complete or it fails. No page is kept.
func List(ctx context.Context, o Options, emit func(source int, objects []ufs.Object) error) error {
	l := &lister{sources: o.Sources, progress: o.Progress, emit: emit, journal: o.Journal, parallel: int64(max(o.Parallel, 1))}
	for i := range o.Sources {
		l.todo = append(l.todo, &span{source: i})
	}
	if err := l.resume(ctx, o.Of); err != nil {
		return err
	}
	l.changed.L = &l.mu
	outer := ctx
	g, ctx := errgroup.WithContext(ctx)
	stop := context.AfterFunc(ctx, func() { // those who wait for work look at the context
		l.mu.Lock()
		defer l.mu.Unlock()
		l.changed.Broadcast()
	})
	defer stop()
	for range max(o.Parallel, 1) {
		g.Go(func() error { return l.work(ctx) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if l.journal != nil { // whoever takes over while the manifest is built need not list at all
		l.flush(outer, true)
	}
	return nil
}

// lister lists sources by ranges of keys, without a delimiter: 1,000 keys for
// each request, whatever the folders are. S3 cannot be asked where the middle
// of a range is, so a worker with nothing to do guesses a key that halves the
// largest range under way and takes the part above it. A wrong guess costs one
// request that finds nothing, and those are bounded.
type lister struct {
	sources  []Source
	emit     func(source int, objects []ufs.Object) error
	progress func(objects, bytes, pages int64)
	journal  *Journal // may be nil
	parallel int64

	mu      sync.Mutex
	changed sync.Cond // of what follows
	todo    []*span   // not begun
	active  []*span   // each has a worker
	pages   int64     // that came and had keys
	hits    int64     // splits whose upper part had keys
	missed  int64     // splits whose upper part had none

	usual, best time.Duration // that a page takes, over the last ones, and the shortest that this was

	objects, bytes, asked int64
}

// work lists one range after the other until there is none left.
func (l *lister) work(ctx context.Context) error {
	for {
		s, err := l.take(ctx)
		if s == nil {
			return err
		}
		if err := l.list(ctx, s); err != nil {
			return err
		}
		l.mu.Lock()
		l.active = slices.DeleteFunc(l.active, func(a *span) bool { return a == s })
		l.changed.Broadcast()
		l.mu.Unlock()
	}
}

// take returns a range that is to be listed, nil when all are.
func (l *lister) take(ctx context.Context) (*span, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for ctx.Err() == nil {
		s := l.steal()
		if n := len(l.todo); n > 0 {
			s, l.todo = l.todo[n-1], l.todo[:n-1]
		}
		if s != nil {
			l.active = append(l.active, s)
			return s, nil
		}
		if len(l.active) == 0 {
			return nil, nil
		}
		l.changed.Wait()
	}
	return nil, ctx.Err()
}

// guesses is how many wrong guesses any listing may make, and one more for each
// right one. Where pages come sooner than near, it is the store's work that
// takes time and not the way to it: splits gain little there, and may be as
// many as there are workers. A long listing may make one more of each for each
// guessEvery pages.
const (
	guesses    = 4
	guessEvery = 8
	near       = 40 * time.Millisecond
)

// crowded is how many times as long as they did at best pages take when the
// store is busy with those that it has: more ranges would only cost more.
const crowded = 2

// steal splits the range that has most left, as far as can be guessed.
func (l *lister) steal() *span {
	if len(l.todo) > 0 || len(l.active) > 1 && l.usual > crowded*l.best {
		return nil
	}
	var best *span
	var border string
	most, open := float64(minPages), l.missed
	for _, s := range l.active {
		if s.held {
			continue
		}
		prefix := len(l.sources[s.source].Prefix)
		open += int64(s.pending)
		if n := s.left(prefix); n >= most {
			if at, ok := s.middle(prefix); ok {
				best, border, most = s, at, n
			}
		}
	}
	if best == nil || open >= guesses+l.hits+l.pages/guessEvery || l.best < near && open+l.hits >= l.parallel+l.pages/guessEvery {
		return nil
	}
	return best.split(border)
}

// maxEmpty is how many pages without a key a store may send in a row.
const maxEmpty = 1000

// list lists a range to its end, which moves down while others take parts of
// it away.
func (l *lister) list(ctx context.Context, s *span) error {
	from := l.sources[s.source]
	for empty := 0; ; {
		begun := time.Now()
		p, err := from.FS.List(ctx, ufs.ListOptions{Prefix: from.Prefix, StartAfter: s.after, Token: s.token})
		if err != nil {
			return err
		}
		if err := check(s, from.Prefix, p); err != nil {
			return err
		}
		if empty++; len(p.Objects) > 0 {
			empty = 0
		} else if empty > maxEmpty {
			return stoker.Errorf(stoker.KindCorrupt, "listing.list", from.Prefix, "the store sent %d pages without a key, and says that more follow", empty)
		}
		found, done, whole := l.advance(s, p, time.Since(begun))
		if err := l.page(ctx, s, found, done); err != nil || done {
			return err
		}
		if whole {
			if err := l.byFolders(ctx, s); err != nil {
				return err
			}
		}
	}
}

// folderDepth is how deep folders are looked for in which all keys lie.
const folderDepth = 8

// byFolders cuts a source of which more than a page follows at its uppermost
// folders, one part for each worker: one request finds borders that need no
// guess. A source with more folders than a page has, or with one alone, is left
// to guesses.
func (l *lister) byFolders(ctx context.Context, s *span) error {
	folders, err := l.uppermost(ctx, s)
	l.mu.Lock()
	defer l.mu.Unlock()
	s.held = false
	if err == nil {
		l.cutAt(s, folders)
	}
	l.changed.Broadcast()
	return err
}

// uppermost lists the folders of a source that has several; none if they are
// more than a page.
func (l *lister) uppermost(ctx context.Context, s *span) ([]string, error) {
	from := l.sources[s.source]
	prefix := from.Prefix
	for range folderDepth {
		p, err := from.FS.List(ctx, ufs.ListOptions{Prefix: prefix, Delimiter: "/"})
		switch {
		case err != nil:
			return nil, err
		case p.Next == "" && len(p.Prefixes) == 1 && len(p.Prefixes[0]) > len(prefix):
			prefix = p.Prefixes[0]
			continue
		case p.Next == "":
			return p.Prefixes, nil
		}
		break
	}
	return nil, nil
}

// cutAt takes the parts of s from some folders on away. REQUIRES: l.mu is held.
func (l *lister) cutAt(s *span, folders []string) {
	var borders []string
	for _, f := range folders {
		if at, ok := s.within(strings.TrimSuffix(f, "/")); ok {
			borders = append(borders, at)
		}
	}
	slices.Sort(borders) // a/ comes after a-b/, a before a-b
	parts := min(len(borders), int(l.parallel)-1)
	for i := parts; i > 0; i-- {
		t := s.split(borders[len(borders)*i/(parts+1)])
		s.pending--
		t.parent = nil // no guess
		l.todo = append(l.todo, t)
	}
}

// check refuses a page that would make a listing wrong or endless.
func check(s *span, prefix string, p ufs.Page) error {
	corrupt := func(format string, args ...any) error {
		return stoker.Errorf(stoker.KindCorrupt, "listing.list", prefix, format, args...)
	}
	if len(p.Prefixes) > 0 {
		return corrupt("the store folds keys below %q though it was not asked to: its listing is not complete", p.Prefixes[0])
	}
	last, first := s.after, !s.answered
	for i := range p.Objects {
		key := p.Objects[i].Key
		switch {
		case !strings.HasPrefix(key, prefix):
			return corrupt("the store lists %q, which does not begin with %q", key, prefix)
		case key <= last && first && last != "":
			return corrupt("asked for the keys after %q, the store lists %q: it does not know start-after", last, key)
		case key <= last:
			return corrupt("the store lists %q after %q: its listing is not in the order of keys, or loops", key, last)
		}
		last, first = key, false
	}
	if p.Next != "" && p.Next == s.token {
		return corrupt("the store sent one continuation token twice, after %q: its listing loops", last)
	}
	return nil
}

// advance enters a page and returns the part of it that belongs to the range.
// whole: it is the first page of a source, and nobody splits that by a guess
// before its folders were asked for.
func (l *lister) advance(s *span, p ufs.Page, took time.Duration) (found []ufs.Object, done, whole bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	whole = s.after == "" && s.until == "" && l.parallel > 1 && len(p.Objects) > 0
	s.held = whole
	if l.usual == 0 {
		l.usual, l.best = took, took
	}
	l.usual += (took - l.usual) / 8
	l.best = min(l.best, l.usual)
	found, done = cut(p.Objects, s.until)
	done = done || p.Next == ""
	if n := len(found); n > 0 {
		s.after = found[n-1].Key
		if n > 2 && !done {
			s.learn(found[0].Key, found[n/2].Key, s.after)
		}
	}
	s.token = p.Next
	l.settle(s, len(found) > 0, done)
	l.changed.Broadcast()
	return found, done, whole
}

// settle says of a guess whether it was right, when its first page has come.
func (l *lister) settle(s *span, hit, done bool) {
	if hit {
		l.pages++
	}
	if s.answered || !hit && !done { // an empty page before others says nothing
		return
	}
	s.answered = true
	if s.parent != nil {
		if s.parent.pending--; hit {
			l.hits++
			s.parent.misses = 0
		} else {
			l.missed++
			s.parent.misses++
		}
		s.parent = nil
	}
}

// page hands a page on, counts it, and has the journal know.
func (l *lister) page(ctx context.Context, s *span, found []ufs.Object, done bool) error {
	if len(found) > 0 {
		if err := l.emit(s.source, found); err != nil {
			return err
		}
	}
	l.log(ctx, s, found, done)
	l.count(found)
	return nil
}

func (l *lister) count(found []ufs.Object) {
	l.mu.Lock()
	l.objects += int64(len(found))
	l.bytes += bytesOf(found)
	l.asked++
	objects, bytes, pages := l.objects, l.bytes, l.asked
	l.mu.Unlock()
	if l.progress != nil {
		l.progress(objects, bytes, pages)
	}
}

// resume begins where the journal of an earlier try ends, if there is one.
func (l *lister) resume(ctx context.Context, of []byte) error {
	if l.journal == nil {
		return nil
	}
	rest, found, err := l.journal.open(ctx, len(l.sources), of, func(source int, objects []ufs.Object) error {
		l.count(objects)
		return l.emit(source, objects)
	})
	if found {
		l.todo = rest
	}
	return err
}

// log has the journal know a page, and what is left after it.
func (l *lister) log(ctx context.Context, s *span, found []ufs.Object, done bool) {
	if l.journal == nil {
		return
	}
	page := appendPage(nil, s.source, found)
	l.mu.Lock()
	s.logged, s.ended = s.after, done
	due := l.journal.add(page, len(found))
	l.mu.Unlock()
	if due {
		l.flush(ctx, false)
	}
}

// flush writes a batch. While one is written, those with the next one wait.
func (l *lister) flush(ctx context.Context, end bool) {
	l.journal.writing.Lock()
	defer l.journal.writing.Unlock()
	l.mu.Lock() // no page may come between what the batch has and what it says is left
	pages, ok := l.journal.take(end && l.journal.next > 0)
	var rest []restOf
	for _, s := range slices.Concat(l.todo, l.active) {
		if !s.ended {
			rest = append(rest, restOf{s.source, []byte(s.logged), []byte(s.until)})
		}
	}
	l.mu.Unlock()
	if ok {
		l.journal.write(ctx, pages, rest)
	}
}

func bytesOf(objects []ufs.Object) (n int64) {
	for _, o := range objects {
		n += o.Version.Bytes
	}
	return n
}
