package worker

import (
	"os/user"
	"strconv"
	"testing"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/internal/api"
	"stoker.dev/ufs"
)

// A view is made for those who may read what it shows, and of what not everybody may
// read for its owner alone. Whatever a request calls its manifest, where that lies is
// what counts.
func TestMountsAreForReaders(t *testing.T) {
	w := startWatched(t)
	w.ufs.Put("f", []byte("x"))
	id := w.freeze(t)
	roots := []manifest.Root{{Location: ufs.Location{URI: "mem://data"}}}
	for _, d := range []*manifest.Dataset{
		{Name: "pets", Owner: "ann", Roots: roots, Readers: []string{"bob"}, Generations: []manifest.Generation{{Number: 1, Manifest: id}}},
		{Name: "cars", Owner: "joe", Roots: []manifest.Root{{Location: ufs.Location{URI: "mem://cars"}}}, Generations: []manifest.Generation{{Number: 1, Manifest: id}}},
	} {
		if err := w.manifests.CreateDataset(t.Context(), d); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.manifests.SyncRestrictions(t.Context()); err != nil {
		t.Fatal(err)
	}
	umask := uint32(0o027)
	for name, tc := range map[string]struct {
		who   api.Principal
		req   api.MountRequest
		kind  stoker.Kind // of the refusal; KindInternal = none
		umask uint32      // 0 = as without readers
	}{
		"a reader":                          {api.Principal{Name: "bob", UID: 7}, api.MountRequest{Dataset: "pets"}, 0, 0o077},
		"its owner":                         {api.Principal{Name: "ann", UID: 7}, api.MountRequest{Dataset: "pets"}, 0, 0o077},
		"who wants others to see it":        {api.Principal{Name: "bob", UID: 7}, api.MountRequest{Dataset: "pets", Umask: &umask}, 0, 0o027},
		"somebody":                          {api.Principal{Name: "joe", UID: 7}, api.MountRequest{Dataset: "pets"}, stoker.KindDenied, 0},
		"somebody, by manifest":             {api.Principal{Name: "joe", UID: 7}, api.MountRequest{Manifest: id}, stoker.KindDenied, 0},
		"somebody, as if it were another":   {api.Principal{Name: "joe", UID: 7}, api.MountRequest{Dataset: "cars", Manifest: id}, stoker.KindDenied, 0},
		"a reader, by manifest":             {api.Principal{Name: "bob", UID: 7}, api.MountRequest{Manifest: id}, 0, 0o077},
		"what all may read":                 {api.Principal{Name: "joe", UID: 7}, api.MountRequest{Dataset: "cars"}, 0, 0},
		"for another":                       {api.Principal{Name: "joe", UID: 7}, api.MountRequest{Dataset: "cars", For: "bob"}, stoker.KindDenied, 0},
		"root":                              {api.Principal{Name: "root", Admin: true}, api.MountRequest{Dataset: "pets"}, 0, 0o077},
		"root for a claim":                  {api.Principal{Name: "root", Admin: true}, api.MountRequest{Manifest: id}, 0, 0},
		"root for a reader":                 {api.Principal{Name: "root", Admin: true}, api.MountRequest{Dataset: "pets", For: "bob"}, 0, 0o077},
		"root for somebody":                 {api.Principal{Name: "root", Admin: true}, api.MountRequest{Dataset: "pets", For: "joe"}, stoker.KindDenied, 0},
		"root for somebody, by manifest":    {api.Principal{Name: "root", Admin: true}, api.MountRequest{Manifest: id, For: "joe"}, stoker.KindDenied, 0},
		"the worker's own user for another": {api.Principal{Name: "stoker", UID: 9, Admin: true}, api.MountRequest{Dataset: "pets", For: "joe"}, stoker.KindDenied, 0},
	} {
		ctx := api.WithPrincipal(t.Context(), tc.who)
		r := tc.req
		d, _, err := w.views.resolve(ctx, &r)
		if err != nil {
			t.Fatal(err)
		}
		err = w.views.mayRead(ctx, uint32(tc.who.UID), &r, d)
		if (err != nil) != (tc.kind != 0) || err != nil && stoker.KindOf(err) != tc.kind {
			t.Errorf("%s: %v", name, err)
		}
		got := uint32(0)
		if r.Umask != nil {
			got = *r.Umask
		}
		if err == nil && got != tc.umask {
			t.Errorf("%s: umask %#o, want %#o", name, got, tc.umask)
		}
	}
	if _, err := w.views.Mount(api.WithPrincipal(t.Context(), api.Principal{Name: "joe", UID: 7}), 7, api.MountRequest{Manifest: id, Dir: t.TempDir()}); stoker.KindOf(err) != stoker.KindDenied {
		t.Errorf("mounted: %v", err)
	}
}

// Who is in a group this node's users say, or the groups of the process that asks.
func TestMembersOfGroups(t *testing.T) {
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	g, err := user.LookupGroupId(me.Gid)
	if err != nil {
		t.Fatal(err)
	}
	ctx := api.WithPrincipal(t.Context(), api.Principal{Name: me.Username})
	for _, group := range []string{g.Name, me.Gid} {
		if !api.MemberOf(ctx, group) || !api.UserIn(me.Username, group) {
			t.Errorf("%s is not in his own group %s", me.Username, group)
		}
		if api.UserIn("nosuchuser", group) {
			t.Errorf("nobody knows him, and he is in %s", group)
		}
	}
	for _, group := range []string{"nosuchgroup", "", "-1", strconv.Itoa(1 << 33), "4000000000"} {
		if api.MemberOf(ctx, group) || api.UserIn(me.Username, group) {
			t.Errorf("%s is in %q", me.Username, group)
		}
	}
}
