package control

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"stoker.dev/cache/manifest"
	"stoker.dev/cache/placement"
	"stoker.dev/internal/api"
	"stoker.dev/ufs"
)

// keep has a dataset of ann's be read by some only.
func (w *watchedController) keep(t *testing.T, name, token string, req api.ReadersRequest) {
	t.Helper()
	if a := w.ask(t, token, "PUT", "/v1/datasets/"+name+"/readers", req); a.status != http.StatusOK && a.status != http.StatusNotFound { // the manifest is none
		t.Fatalf("%d %s", a.status, a.body)
	}
}

// What is in a dataset with readers is for them, whatever is asked for it: by its
// name, by a URI, as another dataset.
func TestDatasetsWithReaders(t *testing.T) {
	flows, address := startFlows(t)
	w := startWatched(t, address, placement.NewMem(time.Now))
	w.register(t, "pets", 1000, number(1))
	w.register(t, "cars", 1000, number(2))
	w.keep(t, "pets", daemonToken, api.ReadersRequest{Readers: []string{"carol", "@nosuchgroup"}})
	claim := func(name string) api.ClaimRequest {
		return api.ClaimRequest{Job: "17", TTLSeconds: 3600, Datasets: []api.DatasetRef{{Name: name}}}
	}
	add := func(uri string) api.AddDatasetRequest {
		return api.AddDatasetRequest{Name: "mine", Roots: []api.AddRoot{{Location: ufs.Location{URI: uri}}}}
	}
	own := func(s string) bool {
		return strings.Contains(s, "its owner ann, or an admin, changes that with 'stoker dataset set pets --readers +bob'")
	}
	for _, x := range []struct {
		request string
		body    any
	}{
		{"POST /v1/jobs", claim("pets")},
		{"POST /v1/jobs", claim("pets@1")},
		{"POST /v1/jobs", claim("s3://bucket/pets/cats")},
		{"POST /v1/jobs", claim("s3://bucket")},
		{"POST /v1/datasets", add("s3://bucket/pets/cats")},
		{"POST /v1/datasets", add("s3://bucket/")},
		{"POST /v1/datasets/pets/verify", nil},
		{"POST /v1/datasets/pets/sync", nil},
		{"PUT /v1/datasets/pets/pin", api.PinRequest{ForSeconds: 60, Reason: "mine"}},
		{"GET /v1/datasets/pets/changes", nil},
		{"GET /v1/datasets/pets/failed", nil},
		{"GET /v1/datasets/pets?path=cats", nil},
		{"GET /v1/datasets/pets?reader=bob", nil},
		{"POST /v1/doctor/ufs", ufs.Location{URI: "s3://bucket/pets/f"}},
	} {
		method, path, _ := strings.Cut(x.request, " ")
		req := x.body
		if c, ok := req.(api.ClaimRequest); ok && strings.HasSuffix(c.Datasets[0].Name, "@1") {
			c.Datasets[0] = api.DatasetRef{Name: "pets", Generation: 1}
			req = c
		}
		a := w.ask(t, bobsToken, method, path, req)
		a.wantError(t, 403, "denied", "bob may not read it")
		if !own(string(a.body)) {
			t.Errorf("%s: %s", x.request, a.body)
		}
	}
	if len(flows.jobs) != 0 {
		t.Fatalf("claimed: %v", flows.jobs)
	}
	w.ask(t, bobsToken, "PUT", "/v1/datasets/pets/readers", api.ReadersRequest{Add: []string{"bob"}}).wantError(t, 403, "denied", "belongs to ann")
	for _, d := range decode[[]api.DatasetInfo](t, w.ask(t, bobsToken, "GET", "/v1/datasets", nil)) {
		if kept := slices.Equal(d.Readers, []string{"@nosuchgroup", "carol"}); kept != (d.Name == "pets") {
			t.Errorf("%s is read by %q", d.Name, d.Readers)
		}
	}
	w.keep(t, "pets", watchedToken, api.ReadersRequest{Add: []string{"bob"}, Remove: []string{"carol"}})
	w.ask(t, bobsToken, "POST", "/v1/jobs", claim("pets"))
	if in := flows.jobs["job-default-17"].Input; len(in.Datasets) != 1 || !in.Datasets[0].Private || in.Owner != "bob" {
		t.Errorf("%+v", in)
	}
	another := claim("cars")
	another.Job = "18"
	w.ask(t, bobsToken, "POST", "/v1/jobs", another)
	if in := flows.jobs["job-default-18"].Input; len(in.Datasets) != 1 || in.Datasets[0].Private {
		t.Errorf("%+v", in)
	}
}

// A hook, which is an admin, is granted what the job's user may read, not what it may.
func TestHooksClaimWhatTheUserMayRead(t *testing.T) {
	flows, address := startFlows(t)
	w := startWatched(t, address, placement.NewMem(time.Now))
	w.register(t, "pets", 1000, number(1))
	w.keep(t, "pets", daemonToken, api.ReadersRequest{Readers: []string{"bob", "@daemon"}}) // in which nobody is but daemon
	claim := api.ClaimRequest{Job: "17", TTLSeconds: 3600, Datasets: []api.DatasetRef{{Name: "pets"}}}
	claim.For = "carol"
	a := w.ask(t, daemonToken, "POST", "/v1/jobs", claim)
	a.wantError(t, 403, "denied", "carol may not read it")
	if strings.Contains(string(a.body), api.NotForAnother) {
		t.Errorf("the hook would claim for itself: %s", a.body)
	}
	w.ask(t, daemonToken, "GET", "/v1/datasets/pets?reader=carol", nil).wantError(t, 403, "denied", "carol may not read it")
	w.ask(t, daemonToken, "GET", "/v1/datasets/pets?reader=a%20b", nil).wantError(t, 400, "invalid", "no user's name")
	for i, name := range []string{"bob", "ann", "daemon"} {
		claim.Job, claim.For = string(rune('a'+i)), name
		w.ask(t, daemonToken, "POST", "/v1/jobs", claim)
		if in := flows.jobs["job-default-"+claim.Job].Input; in.Owner != name {
			t.Errorf("%s: %+v", name, in)
		}
		w.ask(t, daemonToken, "GET", "/v1/datasets/pets?reader="+name, nil).wantError(t, 404, "notexist", "") // the manifest is none
	}
}

// Only admins begin to keep data to readers, so that nobody locks others out of what they
// read; who its readers are its owner says.
func TestWhoMayRestrict(t *testing.T) {
	_, address := startFlows(t)
	w := startWatched(t, address, placement.NewMem(time.Now))
	w.register(t, "pets", 1000, number(1))
	some := api.ReadersRequest{Readers: []string{"bob"}}
	w.ask(t, watchedToken, "PUT", "/v1/datasets/pets/readers", some).wantError(t, 403, "denied", "only an admin may begin")
	add := api.AddDatasetRequest{Name: "mine", Readers: []string{}, Roots: []api.AddRoot{{Location: ufs.Location{URI: "s3://another"}}}}
	w.ask(t, bobsToken, "POST", "/v1/datasets", add).wantError(t, 403, "denied", "only an admin may begin")
	w.keep(t, "pets", daemonToken, some)
	w.keep(t, "pets", watchedToken, api.ReadersRequest{Add: []string{"carol"}})
	w.ask(t, bobsToken, "PUT", "/v1/datasets/pets/readers", some).wantError(t, 403, "denied", "belongs to ann")
	w.keep(t, "pets", watchedToken, api.ReadersRequest{Everybody: true})
	if rs, err := w.manifests.Restrictions(t.Context()); err != nil || len(rs) != 0 {
		t.Errorf("%v, %v", rs, err)
	}
}

func TestChangesOfReaders(t *testing.T) {
	d := func(readers ...string) *manifest.Dataset {
		return &manifest.Dataset{Name: "pets", Owner: "ann", Readers: readers}
	}
	for name, tc := range map[string]struct {
		d    *manifest.Dataset
		req  api.ReadersRequest
		want []string
		says string
	}{
		"nothing":               {d(), api.ReadersRequest{}, nil, "want one of"},
		"two things":            {d(), api.ReadersRequest{Everybody: true, Add: []string{"a"}}, nil, "want one of"},
		"everybody":             {d("a"), api.ReadersRequest{Everybody: true}, nil, ""},
		"a list":                {d("a"), api.ReadersRequest{Readers: []string{"c", "@b", "c"}}, []string{"@b", "c"}, ""},
		"nobody else":           {d(), api.ReadersRequest{Readers: []string{}}, []string{"ann"}, ""},
		"one more":              {d("b"), api.ReadersRequest{Add: []string{"a", "b"}}, []string{"a", "b"}, ""},
		"one less":              {d("a", "b"), api.ReadersRequest{Remove: []string{"b"}}, []string{"a"}, ""},
		"the last one":          {d("b"), api.ReadersRequest{Remove: []string{"b"}}, []string{"ann"}, ""},
		"one who is none":       {d("b"), api.ReadersRequest{Remove: []string{"c"}}, nil, "c is not among its readers"},
		"one more of everybody": {d(), api.ReadersRequest{Add: []string{"a"}}, nil, "everybody may read it"},
		"no name":               {d(), api.ReadersRequest{Readers: []string{"a b"}}, nil, "is no reader"},
	} {
		got, err := changedReaders(tc.d, &tc.req)
		if !slices.Equal(got, tc.want) || (err == nil) != (tc.says == "") || err != nil && !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

// What a controller left undone that died after it had changed an entry is done with
// the next renewal.
func TestReadersAreMended(t *testing.T) {
	_, address := startFlows(t)
	w := startWatched(t, address, placement.NewMem(time.Now))
	w.register(t, "pets", 1000, number(1))
	if _, err := w.changeEntry(t.Context(), "pets", func(d *manifest.Dataset) error { d.Readers = []string{"carol"}; return nil }); err != nil {
		t.Fatal(err)
	}
	claim := api.ClaimRequest{Job: "17", Datasets: []api.DatasetRef{{Name: "pets"}}}
	w.ask(t, bobsToken, "POST", "/v1/jobs", claim).wantError(t, 403, "denied", "may not read it") // its own entry counts at once
	w.renewOnce(t.Context())
	claim.Datasets[0].Name = "s3://bucket/pets"
	w.ask(t, bobsToken, "POST", "/v1/jobs", claim).wantError(t, 403, "denied", "may not read it")
}
