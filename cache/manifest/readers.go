package manifest

import (
	"context"
	"encoding/json"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"stoker.dev"
)

// Reader is who wants to read: a user, by name, and the groups that he is in.
type Reader struct {
	Name      string
	Admin     bool
	Anonymous bool // nobody vouches for the name: he is no owner, either
	In        func(group string) bool
}

// Restriction is a dataset that not everybody may read. It holds for everything
// below its URIs, however that is asked for.
type Restriction struct {
	Dataset string   `json:"dataset"`
	Owner   string   `json:"owner"`
	URIs    []string `json:"uris"`
	Readers []string `json:"readers"` // users, and groups as @group
}

// lets reports whether a reader may read what is restricted.
func (r *Restriction) lets(who Reader) bool {
	return who.Admin || !who.Anonymous && (who.Name == r.Owner || slices.ContainsFunc(r.Readers, func(name string) bool {
		if group, ok := strings.CutPrefix(name, "@"); ok {
			return who.In != nil && who.In(group)
		}
		return name == who.Name
	}))
}

// covers reports whether some of what lies at the roots is restricted.
func (r *Restriction) covers(roots []Root) bool {
	return slices.ContainsFunc(r.URIs, func(a string) bool {
		return slices.ContainsFunc(roots, func(b Root) bool { return URIsOverlap(a, b.URI) })
	})
}

// URIsOverlap reports whether one of two URIs is the other, or lies below it.
func URIsOverlap(a, b string) bool {
	a, b = place(a), place(b)
	return strings.HasPrefix(a, b) || strings.HasPrefix(b, a)
}

// place is a URI as all that lie below it begin.
func place(uri string) string {
	scheme, rest, _ := strings.Cut(uri, "://")
	store, prefix, _ := strings.Cut(rest, "/")
	if prefix = strings.Trim(prefix, "/"); prefix != "" {
		prefix += "/"
	}
	return scheme + "://" + store + "/" + prefix
}

// Restrictions are all that hold.
type Restrictions []Restriction

// Cover reports whether some of what lies at the roots is restricted.
func (rs Restrictions) Cover(roots []Root) bool {
	return slices.ContainsFunc(rs, func(r Restriction) bool { return r.covers(roots) })
}

// Check refuses a reader what lies at the roots, unless every dataset with readers
// that has a part of it lets him in. what is how he named it.
func (rs Restrictions) Check(what string, roots []Root, who Reader) error {
	for _, r := range rs {
		if !r.covers(roots) || r.lets(who) {
			continue
		}
		if r.Dataset == what {
			return stoker.Errorf(stoker.KindDenied, "dataset", what, "%s may not read it: its owner %s, or an admin, changes that with 'stoker dataset set %s --readers +%s'", who.Name, r.Owner, what, who.Name)
		}
		return stoker.Errorf(stoker.KindDenied, "dataset", what, "%s may not read it: the dataset %s has the same data, or a part of it, and readers of its own: its owner %s, or an admin, changes that with 'stoker dataset set %s --readers +%s'",
			who.Name, r.Dataset, r.Owner, r.Dataset, who.Name)
	}
	return nil
}

// Restriction is what keeps a dataset to its readers; nil: everybody may read it.
func (d *Dataset) Restriction() *Restriction {
	if len(d.Readers) == 0 {
		return nil
	}
	r := &Restriction{Dataset: d.Name, Owner: d.Owner, Readers: d.Readers}
	for _, root := range d.Roots {
		r.URIs = append(r.URIs, root.URI)
	}
	return r
}

// maxReaders bounds a list of readers; a group holds more.
const maxReaders = 1000

// readerName is a user as principals are called, or a group.
var readerName = regexp.MustCompile(`^@?[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63}\$?$`)

// ValidateReaders refuses what is no list of readers.
func ValidateReaders(dataset string, readers []string) error {
	if len(readers) > maxReaders {
		return stoker.Errorf(stoker.KindInvalid, "dataset", dataset, "%d readers: want %d at most, or a group as @group", len(readers), maxReaders)
	}
	for _, name := range readers {
		if !readerName.MatchString(name) {
			return stoker.Errorf(stoker.KindInvalid, "dataset", dataset, "%q is no reader: want a user's name, or a group as @group", name)
		}
	}
	return nil
}

// readersName is where all restrictions lie together: whoever asks reads one object,
// not every entry of the registry, of which they are a copy.
const readersName = "readers.json"

type restrictionsFile struct {
	Format       int          `json:"format"`
	Restrictions Restrictions `json:"restrictions"`
}

const restrictionsFormat = 1

// Restrictions reads what not everybody may read.
func (s *Store) Restrictions(ctx context.Context) (Restrictions, error) {
	rs, _, err := s.restrictions(ctx)
	return rs, err
}

// restrictions also returns the tag of what is there, "" for nothing.
func (s *Store) restrictions(ctx context.Context) (Restrictions, string, error) {
	body, tag, err := s.objects.Get(ctx, readersName)
	if stoker.KindOf(err) == stoker.KindNotExist {
		return nil, "", nil
	} else if err != nil {
		return nil, "", err
	}
	var f restrictionsFile
	if err := json.Unmarshal(body, &f); err != nil {
		return nil, "", stoker.Errorf(stoker.KindCorrupt, "readers", readersName, "%w", err)
	}
	if f.Format != restrictionsFormat {
		return nil, "", stoker.Errorf(stoker.KindInvalid, "readers", readersName, "has format %d, this program knows %d: upgrade it", f.Format, restrictionsFormat)
	}
	return f.Restrictions, tag, nil
}

// RestrictionsOf reads what not everybody may read, and adds what a registry entry
// says that was changed a moment ago.
func (s *Store) RestrictionsOf(ctx context.Context, d *Dataset) (Restrictions, error) {
	rs, err := s.Restrictions(ctx)
	if err != nil {
		return nil, err
	}
	rs = slices.DeleteFunc(rs, func(r Restriction) bool { return r.Dataset == d.Name })
	if r := d.Restriction(); r != nil {
		rs = append(rs, *r)
	}
	return rs, nil
}

// syncTries bounds how often others may change the restrictions in between.
const syncTries = 20

func restrictionsFor(entries []*Dataset) (rs Restrictions) {
	for _, d := range entries {
		if r := d.Restriction(); r != nil {
			rs = append(rs, *r)
		}
	}
	return rs
}

func (rs Restrictions) equal(other Restrictions) bool {
	return slices.EqualFunc(rs, other, func(a, b Restriction) bool { return reflect.DeepEqual(a, b) })
}

// RestrictionsAre reports whether the restrictions are those of these entries.
func (s *Store) RestrictionsAre(ctx context.Context, entries []*Dataset) (bool, error) {
	there, _, err := s.restrictions(ctx)
	return err == nil && there.equal(restrictionsFor(entries)), err
}

// SyncRestrictions makes the restrictions those of the registry. Whoever has changed
// an entry calls it then: of several at a time, the last to write has read the entries
// after all others changed theirs.
func (s *Store) SyncRestrictions(ctx context.Context) error {
	for try := 1; ; try++ {
		there, tag, err := s.restrictions(ctx)
		if err != nil {
			return err
		}
		entries, err := s.Datasets(ctx) // after the tag: who has it still has seen no older ones
		if err != nil {
			return err
		}
		now := restrictionsFor(entries)
		if now.equal(there) {
			return nil
		}
		body, err := json.MarshalIndent(restrictionsFile{restrictionsFormat, now}, "", "  ")
		if err != nil {
			return stoker.Errorf(stoker.KindInternal, "readers", readersName, "%w", err)
		}
		if tag == "" {
			_, err = s.objects.PutIfAbsent(ctx, readersName, body)
		} else {
			_, err = s.objects.ReplaceIf(ctx, readersName, body, tag)
		}
		if err == nil || stoker.KindOf(err) != stoker.KindHeld {
			return err
		}
		if try == syncTries {
			return stoker.Errorf(stoker.KindBusy, "readers", readersName, "others change it all the time: try again: %w", err)
		}
	}
}
