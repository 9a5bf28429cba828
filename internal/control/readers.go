package control

import (
	"context"
	"net/http"
	"slices"
	"time"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/internal/api"
)

// readerOf is who sent a request, as one who reads.
func readerOf(ctx context.Context) manifest.Reader {
	p := api.PrincipalOf(ctx)
	return manifest.Reader{Name: p.Name, Admin: p.Admin, Anonymous: p.Anonymous, In: func(group string) bool { return api.MemberOf(ctx, group) }}
}

// readerNamed is a user whom an admin names, as a scheduler's hook does.
func readerNamed(name string) manifest.Reader {
	return manifest.Reader{Name: name, In: func(group string) bool { return api.UserIn(name, group) }}
}

// claimReader is for whom a claim reads.
func claimReader(ctx context.Context, req *api.ClaimRequest) manifest.Reader {
	if who := readerOf(ctx); req.Owner == who.Name {
		return who
	}
	return readerNamed(req.Owner)
}

// askedFor is the user about whom an admin asks (?reader=), else who sent the request:
// the claim of a hook that is no admin is its own, too.
func askedFor(r *http.Request) (manifest.Reader, error) {
	who, name := readerOf(r.Context()), r.URL.Query().Get("reader")
	switch {
	case name == "" || name == who.Name || !who.Admin:
		return who, nil
	case !userName.MatchString(name):
		return who, stoker.Errorf(stoker.KindInvalid, "dataset", r.PathValue("name"), "%q is no user's name", name)
	}
	return readerNamed(name), nil
}

// check refuses a reader a dataset, or a URI, that is not for him. private reports
// whether it is for some only.
func (c *Controller) check(ctx context.Context, d *manifest.Dataset, who manifest.Reader) (private bool, err error) {
	rs, err := c.manifests.RestrictionsOf(ctx, d)
	if err != nil {
		return false, err
	}
	return rs.Cover(d.Roots), rs.Check(d.Name, d.Roots, who)
}

// readable finds what a request names, and refuses it to those who may not read it.
func (c *Controller) readable(r *http.Request, find func(*http.Request) (*resolved, error)) (*resolved, error) {
	d, err := find(r)
	if err != nil {
		return nil, err
	}
	_, err = c.check(r.Context(), d.entry, readerOf(r.Context()))
	return d, err
}

// readersOf makes a list of readers as the registry has it, where none is everybody.
func readersOf(d *manifest.Dataset, names []string) ([]string, error) {
	if err := manifest.ValidateReaders(d.Name, names); err != nil {
		return nil, err
	}
	if len(names) == 0 {
		return []string{d.Owner}, nil
	}
	names = slices.Clone(names)
	slices.Sort(names)
	return slices.Compact(names), nil
}

// mayRestrict lets only admins begin to keep data to readers: it closes what lies there
// to all others, by whatever name they read it. Who its readers are its owner says, too.
func mayRestrict(ctx context.Context, d *manifest.Dataset, restricted bool) error {
	if p := api.PrincipalOf(ctx); !p.Admin && !restricted {
		return stoker.Errorf(stoker.KindDenied, "dataset", d.Name, "only an admin may begin to keep data to some readers, for that closes it to all others, by whatever name they read it; then its owner changes who they are")
	}
	return nil
}

// mayAdd lets nobody add what he may not read, nor keep from others what is theirs.
func (c *Controller) mayAdd(ctx context.Context, d *manifest.Dataset) error {
	if len(d.Readers) > 0 {
		if err := mayRestrict(ctx, d, false); err != nil {
			return err
		}
	}
	return c.mayChoose(ctx, d)
}

// mayChoose is check of what a request names with an endpoint of its own.
func (c *Controller) mayChoose(ctx context.Context, d *manifest.Dataset) error {
	rs, err := c.manifests.Restrictions(ctx)
	if err != nil {
		return err
	}
	return rs.CheckChosen(d.Name, d.Roots, readerOf(ctx))
}

// setReaders is PUT /v1/datasets/{name}/readers. It holds for claims, views and
// questions from now on; what has begun goes on, as an open file does.
func (c *Controller) setReaders(w http.ResponseWriter, r *http.Request) error {
	var req api.ReadersRequest
	if err := api.ReadJSON(w, r, &req); err != nil {
		return err
	}
	d, err := c.toChange(r, "all generations have the same readers")
	if err != nil {
		return err
	}
	if !req.Everybody {
		if err := mayRestrict(r.Context(), d.entry, len(d.entry.Readers) > 0); err != nil {
			return err
		}
	}
	entry, err := c.changeEntry(r.Context(), d.Name, func(d *manifest.Dataset) (err error) {
		d.Readers, err = changedReaders(d, &req)
		return err
	})
	if err != nil {
		return err
	}
	if err := c.manifests.SyncRestrictions(r.Context()); err != nil {
		return err
	}
	c.o.Log.Info("has other readers", "dataset", d.Name, "readers", entry.Readers, "by", api.PrincipalOf(r.Context()).Name)
	return c.answerDetail(w, r, d.Name)
}

// changedReaders are a dataset's readers after a change; none: everybody.
func changedReaders(d *manifest.Dataset, req *api.ReadersRequest) ([]string, error) {
	change, kinds := len(req.Add)+len(req.Remove) > 0, 0
	for _, given := range []bool{req.Everybody, req.Readers != nil, change} {
		if given {
			kinds++
		}
	}
	switch {
	case kinds != 1:
		return nil, stoker.Errorf(stoker.KindInvalid, "dataset", d.Name, "want one of everybody, readers, and a change of them")
	case req.Everybody:
		return nil, nil
	case req.Readers != nil:
		return readersOf(d, req.Readers)
	case len(d.Readers) == 0:
		return nil, stoker.Errorf(stoker.KindInvalid, "dataset", d.Name, "everybody may read it, so that nobody can be added or removed: give all who may, as in --readers alice,@vision")
	}
	for _, name := range req.Remove {
		if !slices.Contains(d.Readers, name) {
			return nil, stoker.Errorf(stoker.KindInvalid, "dataset", d.Name, "%s is not among its readers (%q)", name, d.Readers)
		}
	}
	names := slices.DeleteFunc(slices.Concat(d.Readers, req.Add), func(name string) bool { return slices.Contains(req.Remove, name) })
	return readersOf(d, names)
}

// mendRestrictions makes good what a controller did not come to that died just after it
// had changed an entry.
func (c *Controller) mendRestrictions(ctx context.Context, entries []*manifest.Dataset) {
	same, err := c.manifests.RestrictionsAre(ctx, entries)
	if err == nil && !same {
		err = c.manifests.SyncRestrictions(ctx)
	}
	if ctx.Err() == nil {
		c.warnOfReaders(err)
	}
}

// beginIn is how long a controller's start waits for the manifest store.
const beginIn = 10 * time.Second

// beginRestrictions has the copy of all readers be there: without it nobody is let in.
func (c *Controller) beginRestrictions(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, beginIn)
	defer cancel()
	c.warnOfReaders(c.manifests.SyncRestrictions(ctx))
}

// warnOfReaders says, with an error, why the copy may not be what the registry says.
func (c *Controller) warnOfReaders(err error) {
	if err != nil {
		c.o.Log.Warn("the copy of all readers is not compared with the registry", "dataset", "all", "error", err)
	}
}
