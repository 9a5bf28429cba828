package manifest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"stoker.dev"
	"stoker.dev/ufs"
)

func rootsOf(uris ...string) (rs []Root) {
	for _, u := range uris {
		rs = append(rs, Root{Location: ufs.Location{URI: u}})
	}
	return rs
}

func TestURIsOverlap(t *testing.T) {
	for pair, want := range map[[2]string]bool{
		{"s3://b/x", "s3://b/x"}:         true,
		{"s3://b/x/", "s3://b//x"}:       true,
		{"s3://b/x", "s3://b/x/y"}:       true,
		{"s3://b", "s3://b/x"}:           true,
		{"s3://b/x", "s3://b/xy"}:        false,
		{"s3://b", "s3://bc"}:            false,
		{"s3://b/x", "s3://b/y"}:         false,
		{"s3://b", "file:///b"}:          false,
		{"file:///", "file:///data"}:     true,
		{"file:///data/", "file:///dat"}: false,
	} {
		if URIsOverlap(pair[0], pair[1]) != want || URIsOverlap(pair[1], pair[0]) != want {
			t.Errorf("%q: want %v", pair, want)
		}
	}
}

// Whoever wants to read must be let in by every dataset with readers that has some of it.
func TestRestrictions(t *testing.T) {
	rs := Restrictions{
		{Dataset: "scans", Owner: "ann", URIs: []string{"s3://clinic/scans", "s3://more"}, Readers: []string{"bob", "@radiology"}},
		{Dataset: "faces", Owner: "eve", URIs: []string{"s3://clinic/scans/faces"}, Readers: []string{"eve"}},
	}
	for _, tc := range []struct {
		dataset, uri string
		others       []string
	}{{"scans", "s3://clinic/scans", []string{"faces"}}, {"faces", "s3://clinic/scans/faces", []string{"scans"}}, {"all", "s3://clinic", []string{"scans", "faces"}}, {"labels", "s3://clinic/labels", nil}} {
		if got := rs.Others(tc.dataset, rootsOf(tc.uri)); !slices.Equal(got, tc.others) {
			t.Errorf("the readers of %q hold for %s, want %q", got, tc.dataset, tc.others)
		}
	}
	in := func(groups ...string) func(string) bool {
		return func(g string) bool { return slices.Contains(groups, g) }
	}
	for name, tc := range map[string]struct {
		who     Reader
		uris    []string
		keptOut string // by this dataset
	}{
		"somebody elsewhere":             {Reader{Name: "joe"}, []string{"s3://clinic/labels"}, ""},
		"somebody":                       {Reader{Name: "joe"}, []string{"s3://more"}, "scans"},
		"of joined ones one is kept":     {Reader{Name: "joe"}, []string{"s3://free", "s3://more/x"}, "scans"},
		"a reader":                       {Reader{Name: "bob"}, []string{"s3://clinic/scans/chest"}, ""},
		"its owner":                      {Reader{Name: "ann"}, []string{"s3://more"}, ""},
		"a group":                        {Reader{Name: "joe", In: in("radiology")}, []string{"s3://more"}, ""},
		"another group":                  {Reader{Name: "joe", In: in("urology")}, []string{"s3://more"}, "scans"},
		"nobody knows whether he is her": {Reader{Name: "ann", Anonymous: true, In: in("radiology")}, []string{"s3://more"}, "scans"},
		"a user called as the group":     {Reader{Name: "@radiology"}, []string{"s3://more"}, "scans"},
		"below, a reader of what is up":  {Reader{Name: "bob"}, []string{"s3://clinic/scans/faces/1"}, "faces"},
		"above, a reader of a part":      {Reader{Name: "eve"}, []string{"s3://clinic"}, "scans"},
		"all of it, an admin":            {Reader{Name: "root", Admin: true}, []string{"s3://clinic"}, ""},
	} {
		roots := rootsOf(tc.uris...)
		err := rs.Check("asked", roots, tc.who)
		if tc.keptOut == "" && err != nil || tc.keptOut != "" && (stoker.KindOf(err) != stoker.KindDenied || err == nil || !strings.Contains(err.Error(), "the dataset "+tc.keptOut)) {
			t.Errorf("%s: %v", name, err)
		}
		if cover := name != "somebody elsewhere"; rs.Cover(roots) != cover {
			t.Errorf("%s: covered: %v", name, !cover)
		}
	}
	err := rs.Check("scans", rootsOf("s3://more"), Reader{Name: "joe"})
	if err == nil || !strings.Contains(err.Error(), "its owner ann") || !strings.Contains(err.Error(), "'stoker dataset set scans --readers +joe'") {
		t.Error(err)
	}
}

// A store that does not look at the host it is called by takes other names for a bucket.
func TestEndpointsThatMayBeAliases(t *testing.T) {
	rs := Restrictions{{Dataset: "scans", Owner: "ann", URIs: []string{"s3://clinic/scans"}, Readers: []string{"ann"}}}
	for _, tc := range []struct {
		uri, endpoint string
		pathStyle     bool
		kept          bool
	}{
		{"s3://free/x", "", false, false},
		{"s3://free/x", "http://store:9000", true, false},
		{"s3://free/x", "http://store:9000/", true, false},
		{"s3://free/x", "http://store:9000/clinic", true, true},
		{"s3://free/x", "http://store:9000/clinic", false, true},
		{"s3://free/x", "http://store:9000", false, false},
		{"s3://free/clinic/scans/1", "http://store:9000", false, true},
		{"s3://free/clinic", "http://store:9000", false, true},
		{"s3://free", "http://store:9000", false, true},
		{"s3://clinic/scans", "http://store:9000", true, true},
		{"s3://free/x", "http://store:%zz", true, true},
	} {
		roots := []Root{{Location: ufs.Location{URI: tc.uri, Endpoint: tc.endpoint, PathStyle: tc.pathStyle}}}
		if err := rs.CheckChosen("mine", roots, Reader{Name: "joe"}); (err != nil) != tc.kept {
			t.Errorf("%+v: %v", tc, err)
		}
		if err := rs.CheckChosen("mine", roots, Reader{Name: "ann"}); err != nil {
			t.Errorf("%+v: its reader: %v", tc, err)
		}
		if cover := strings.HasPrefix(tc.uri, "s3://clinic"); rs.Cover(roots) != cover { // of what was added once
			t.Errorf("%+v: covered: %v", tc, !cover)
		}
	}
}

func TestListsOfReaders(t *testing.T) {
	if err := ValidateReaders("d", []string{"alice", "@vision", "uid-12345", "@5000", "svc.ml", "host$", "a@b.example"}); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{"", "@", "@@a", "a b", "a,b", "-a", "a/b", "a\n", strings.Repeat("a", 66)} {
		wantKind(t, ValidateReaders("d", []string{bad}), stoker.KindInvalid)
	}
	wantKind(t, ValidateReaders("d", slices.Repeat([]string{"a"}, maxReaders+1)), stoker.KindInvalid)
}

// The restrictions are those of the registry, whatever is changed at a time; and an
// entry that has some is one that earlier releases refuse.
func TestRestrictionsFollowTheRegistry(t *testing.T) {
	s, _ := newStore(t)
	ctx := t.Context()
	_, err := s.Restrictions(ctx) // such as the folder below a mount that is not there
	wantKind(t, err, stoker.KindTransient)
	if err := s.SyncRestrictions(ctx); err != nil {
		t.Fatal(err)
	}
	if rs, err := s.Restrictions(ctx); err != nil || len(rs) != 0 {
		t.Fatalf("%v, %v", rs, err)
	}
	const n = 8
	for i := range n {
		d := &Dataset{Name: fmt.Sprint("d", i), Owner: "ann", Roots: rootsOf(fmt.Sprint("s3://b/", i))}
		if err := s.CreateDataset(ctx, d); err != nil || d.Format != 1 {
			t.Fatal(err, d.Format)
		}
	}
	var all sync.WaitGroup
	failed := make([]error, n)
	for i := range n {
		all.Go(func() {
			d, tag, err := s.Dataset(ctx, fmt.Sprint("d", i))
			if err == nil {
				d.Readers = []string{"bob"}
				err = s.UpdateDataset(ctx, d, tag)
			}
			failed[i] = errors.Join(err, s.SyncRestrictions(ctx))
		})
	}
	all.Wait()
	if err := errors.Join(failed...); err != nil {
		t.Fatal(err)
	}
	rs, err := s.Restrictions(ctx)
	if err != nil || len(rs) != n || rs[n-1].URIs[0] != "s3://b/7" || rs[0].Owner != "ann" || rs[0].Readers[0] != "bob" {
		t.Errorf("%+v, %v", rs, err)
	}
	d, tag, err := s.Dataset(ctx, "d0")
	if err != nil || d.Format != 2 {
		t.Fatal(d, err)
	}
	d.Readers = nil
	if err := s.UpdateDataset(ctx, d, tag); err != nil || d.Format != 1 {
		t.Fatal(err, d.Format)
	}
	entries, err := s.Datasets(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if same, err := s.RestrictionsAre(ctx, entries); same || err != nil {
		t.Error("the copy is old, and nobody sees it", err)
	}
	if rs, err := s.RestrictionsOf(ctx, d); err != nil || len(rs) != n-1 {
		t.Errorf("what an entry says counts at once: %v, %v", rs, err)
	}
	for _, d := range entries {
		if err := s.RemoveDataset(ctx, d.Name); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.SyncRestrictions(ctx); err != nil {
		t.Fatal(err)
	}
	if rs, err := s.Restrictions(ctx); err != nil || len(rs) != 0 {
		t.Errorf("%v, %v", rs, err)
	}
}

// What cannot be read, or is of a later release, lets nobody in.
func TestUnknownRestrictionsAreRefused(t *testing.T) {
	for body, kind := range map[string]stoker.Kind{`{`: stoker.KindCorrupt, `{"format": 2}`: stoker.KindInvalid, `{}`: stoker.KindInvalid} {
		s, objects := newStore(t)
		if _, err := objects.PutIfAbsent(t.Context(), readersName, []byte(body)); err != nil {
			t.Fatal(err)
		}
		_, err := s.Restrictions(t.Context())
		wantKind(t, err, kind)
		if same, _ := s.RestrictionsAre(t.Context(), nil); same {
			t.Errorf("%s is found to be right", body)
		}
		if kind == stoker.KindInvalid {
			wantKind(t, s.SyncRestrictions(t.Context()), kind)
			continue
		}
		if err := s.SyncRestrictions(t.Context()); err != nil { // the registry has it all
			t.Error(err)
		}
		if rs, err := s.Restrictions(t.Context()); err != nil || len(rs) != 0 {
			t.Errorf("%v, %v", rs, err)
		}
	}
}
