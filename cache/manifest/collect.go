package manifest

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"time"

	"stoker.dev"
	"stoker.dev/cache/listing"
)

// What nobody names any more is collected (docs/adr/0020). A document says of each
// manifest, plan and certificate that nobody was seen to name since when that is so.
// What was unnamed for long enough is entered there as going, and removed then. Who
// begins to name something takes it off first: of that and the entry, each a
// conditional write of the one document, only one can succeed.

// CollectOptions are those of one collection.
type CollectOptions struct {
	After time.Duration // what nobody has named for so long goes
	// Named returns the names, as NameOf makes them, that somebody names now. An error
	// of it ends the collection: then nothing goes.
	Named func(ctx context.Context) (map[string]bool, error)
}

// Collected is what a collection came to.
type Collected struct {
	Unnamed int  // objects that nobody names
	Removed int  // those that are gone now
	Passed  bool // another process changed the document meanwhile: the next collection goes on
}

// NameOf is the name of a manifest, or, by its kind, of a blob.
func NameOf(kind string, id stoker.ID) string { return kind + "/" + id.String() }

// Kinds of what is collected.
const (
	KindManifests, KindPlans, KindCertificates = "manifests", "plans", "certificates"
)

// unnamed is the document.
type unnamed struct {
	Looked time.Time            `json:"looked"` // when it was last collected
	Since  map[string]time.Time `json:"since"`
	Going  map[string]time.Time `json:"going,omitempty"` // entered when
}

const (
	unnamedName = "collect/unnamed.json"
	// A process that has entered objects as going removes them within removeFor. After
	// goingFor it is taken for dead: whoever comes then may finish, or name them again.
	removeFor, goingFor = time.Minute, 10 * time.Minute
	// lookedFor is how long at most a mark ages between two collections: while nobody
	// looked, nobody was seen to name anything.
	lookedFor = 2 * time.Hour
	// mostUnnamed bounds the document, mostGoing what one collection removes.
	mostUnnamed, mostGoing = 20_000, 1000
	touchTries             = 20
)

func (s *Store) unnamed(ctx context.Context) (u *unnamed, tag string, err error) {
	u = &unnamed{}
	body, tag, err := s.objects.Get(ctx, unnamedName)
	if err == nil {
		if jerr := json.Unmarshal(body, u); jerr != nil {
			err = stoker.Errorf(stoker.KindCorrupt, "store.collect", unnamedName, "%w: remove it, and all counts as named until now", jerr)
		}
	}
	if stoker.KindOf(err) == stoker.KindNotExist {
		err = nil
	}
	if u.Since == nil {
		u.Since = map[string]time.Time{}
	}
	if u.Going == nil {
		u.Going = map[string]time.Time{}
	}
	return u, tag, err
}

// putUnnamed writes the document; Held if it is not any more what tag says.
func (s *Store) putUnnamed(ctx context.Context, u *unnamed, tag string) error {
	body, err := json.Marshal(u)
	if err != nil {
		return stoker.Errorf(stoker.KindInternal, "store.collect", unnamedName, "%w", err)
	}
	if tag == "" {
		_, err = s.objects.PutIfAbsent(ctx, unnamedName, body)
	} else {
		_, err = s.objects.ReplaceIf(ctx, unnamedName, body, tag)
	}
	return err
}

// touch notes that somebody names an object from now on, before it is looked for or
// put. Transient: it is just being removed.
func (s *Store) touch(ctx context.Context, name string) error {
	for try := 1; ; try++ {
		u, tag, err := s.unnamed(ctx)
		if err != nil {
			return err
		}
		_, marked := u.Since[name]
		at, going := u.Going[name]
		if going && time.Since(at) < goingFor {
			return stoker.Errorf(stoker.KindTransient, "store.touch", name, "nobody named it, and it is just being removed: try again in a moment")
		}
		if !marked && !going {
			return nil
		}
		delete(u.Since, name)
		delete(u.Going, name)
		err = s.putUnnamed(ctx, u, tag)
		if stoker.KindOf(err) != stoker.KindHeld || try == touchTries {
			return err
		}
	}
}

// Keep notes that somebody names a manifest from now on: it is not collected while
// he does, nor for a while after. NotExist: it is not there any more.
func (s *Store) Keep(ctx context.Context, id stoker.ID) error {
	if err := s.touch(ctx, manifestName(id)); err != nil {
		return err
	}
	names, err := s.objects.List(ctx, manifestName(id))
	if err == nil && len(names) == 0 {
		err = stoker.Errorf(stoker.KindNotExist, "manifest", id.Short(), "was removed: nobody had named it for long")
	}
	return err
}

// Collect removes what nobody has named for o.After. Any number of processes may do
// so at a time.
func (s *Store) Collect(ctx context.Context, o CollectOptions) (c Collected, err error) {
	u, tag, err := s.unnamed(ctx) // before anything is looked at: see touch
	if err != nil {
		return c, err
	}
	var there []string
	for _, kind := range []string{KindManifests, KindPlans, KindCertificates} {
		names, err := s.objects.List(ctx, kind+"/")
		if err != nil {
			return c, err
		}
		there = append(there, names...)
	}
	named, err := o.Named(ctx)
	if err != nil {
		return c, err
	}
	next := u.next(there, named, o.After, time.Now())
	going := next.takes(u)
	c.Unnamed = len(next.Since) + len(going)
	if err := s.putUnnamed(ctx, next, tag); stoker.KindOf(err) == stoker.KindHeld {
		c.Passed = true
		return c, nil
	} else if err != nil {
		return c, err
	}
	c.Removed, err = s.removeAll(ctx, going)
	return c, errors.Join(err, listing.Forget(ctx, s.objects))
}

// next is the document after a look at what is there, and named.
func (u *unnamed) next(there []string, named map[string]bool, after time.Duration, now time.Time) *unnamed {
	unseen := max(0, now.Sub(u.Looked)-lookedFor)
	n := &unnamed{Looked: now, Since: map[string]time.Time{}, Going: map[string]time.Time{}}
	isThere := map[string]bool{}
	going := 0
	for _, name := range there {
		isThere[name] = true
		at, goes := u.Going[name]
		since, marked := u.Since[name]
		if marked && !u.Looked.IsZero() {
			since = since.Add(unseen)
		}
		switch {
		case goes && now.Sub(at) < goingFor:
			n.Going[name] = at // another process is at it
		case named[name]:
		case goes, marked && now.Sub(since) >= after && going < mostGoing:
			n.Going[name] = now
			going++
		case marked:
			n.Since[name] = since
		case len(n.Since) < mostUnnamed:
			n.Since[name] = now
		}
	}
	for name, at := range u.Going { // removed, but not struck off yet: a delete may still be on its way
		if !isThere[name] && now.Sub(at) < goingFor {
			n.Going[name] = at
		}
	}
	return n
}

// takes are the objects that go now, and did not in the document before.
func (u *unnamed) takes(before *unnamed) (names []string) {
	for name, at := range u.Going {
		if was, there := before.Going[name]; !there || !was.Equal(at) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// removeAll removes what goes, and strikes it off.
func (s *Store) removeAll(ctx context.Context, names []string) (removed int, err error) {
	if len(names) == 0 {
		return 0, nil
	}
	deadline, cancel := context.WithTimeout(ctx, removeFor)
	defer cancel()
	for _, name := range names {
		if err = s.objects.Delete(deadline, name); err != nil {
			break // the rest is entered again by a later collection
		}
		removed++
	}
	for try := 1; ; try++ {
		u, tag, uerr := s.unnamed(ctx)
		if uerr != nil {
			return removed, errors.Join(err, uerr)
		}
		for _, name := range names[:removed] {
			delete(u.Going, name)
		}
		uerr = s.putUnnamed(ctx, u, tag)
		if stoker.KindOf(uerr) != stoker.KindHeld || try == touchTries {
			return removed, errors.Join(err, uerr)
		}
	}
}
