package manifest

import (
	"context"
	"encoding/json"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"stoker.dev"
	"stoker.dev/ufs"
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

// mayCover reports whether that may be so by another name.
func (r *Restriction) mayCover(roots []Root) bool {
	return slices.ContainsFunc(r.URIs, func(a string) bool {
		return slices.ContainsFunc(roots, func(b Root) bool {
			alias, any := aliasOf(b.Location)
			return any || alias != "" && URIsOverlap(a, alias)
		})
	})
}

// aliasOf is what else a location may be for a store that does not look at the host it is
// called by: without PathStyle the bucket stands there, and the first folder of a key can be
// taken for it; any: it may be any bucket, since the endpoint has a path, or keys no folder.
func aliasOf(l ufs.Location) (alias string, any bool) {
	if l.Endpoint == "" {
		return "", false
	}
	u, err := url.Parse(l.Endpoint)
	scheme, rest, _ := strings.Cut(l.URI, "://")
	_, prefix, _ := strings.Cut(rest, "/")
	prefix = strings.Trim(prefix, "/")
	switch {
	case err != nil || strings.Trim(u.Path, "/") != "" || !l.PathStyle && prefix == "":
		return "", true
	case l.PathStyle:
		return "", false
	}
	return scheme + "://" + prefix, false
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

// Others names the other datasets that have some of what lies at a dataset's roots, and
// readers of their own.
func (rs Restrictions) Others(dataset string, roots []Root) (names []string) {
	for _, r := range rs {
		if r.Dataset != dataset && r.covers(roots) {
			names = append(names, r.Dataset)
		}
	}
	return names
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

// CheckChosen is Check of roots whose endpoints the reader has chosen: by one of his own he
// may reach the same store with other names. What was added once is not looked at like that.
func (rs Restrictions) CheckChosen(what string, roots []Root, who Reader) error {
	for _, r := range rs {
		if !r.covers(roots) && r.mayCover(roots) && !r.lets(who) {
			return stoker.Errorf(stoker.KindDenied, "dataset", what, "%s may not add it: with this endpoint it may be the data of %s, which has readers, by another name: leave the endpoint out, give --path-style and an endpoint without a path, or ask an admin", who.Name, r.Dataset)
		}
	}
	return rs.Check(what, roots, who)
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

// Restrictions reads what not everybody may read. A store that does not have it is none
// that a controller has begun with, such as the folder below a mount that is not there: nobody
// is let in then.
func (s *Store) Restrictions(ctx context.Context) (Restrictions, error) {
	rs, tag, err := s.restrictions(ctx)
	if err == nil && tag == "" {
		err = stoker.Errorf(stoker.KindTransient, "readers", readersName, "is not in the manifest store, so that it is not known who may read what: see that --store is mounted; a controller writes it when it starts")
	}
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
		return nil, tag, stoker.Errorf(stoker.KindCorrupt, "readers", readersName, "%w", err)
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
	there, tag, err := s.restrictions(ctx)
	if stoker.KindOf(err) == stoker.KindCorrupt && err != nil {
		return false, nil
	}
	return err == nil && tag != "" && there.equal(restrictionsFor(entries)), err
}

// SyncRestrictions makes the restrictions those of the registry, also where there are none
// yet, or what is there is damaged. Whoever has changed
// an entry calls it then: of several at a time, the last to write has read the entries
// after all others changed theirs.
func (s *Store) SyncRestrictions(ctx context.Context) error {
	for try := 1; ; try++ {
		there, tag, err := s.restrictions(ctx)
		damaged := err != nil && stoker.KindOf(err) == stoker.KindCorrupt
		if err != nil && !damaged {
			return err
		}
		entries, err := s.Datasets(ctx) // after the tag: who has it still has seen no older ones
		if err != nil {
			return err
		}
		now := restrictionsFor(entries)
		if now.equal(there) && tag != "" && !damaged {
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
