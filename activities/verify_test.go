package activities

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/internal/api"
	"stoker.dev/planner"
)

// where are the shards and blocks of an object.
func (c *cluster) where(t testing.TB, path string) (out []manifest.Member, shards []uint32) {
	t.Helper()
	row, ok := c.m.LookupPath(path)
	if !ok {
		t.Fatalf("no %s", path)
	}
	for n := range uint32(c.m.Shards()) {
		for _, mem := range c.m.Members(n, nil) {
			if mem.Row == row {
				out, shards = append(out, mem), append(shards, n)
			}
		}
	}
	return out, shards
}

// all reports every shard as whole.
func (c *cluster) all() (r api.VerifyReport) {
	for n := range uint32(c.m.Shards()) {
		r.Shards = append(r.Shards, api.ShardReport{Shard: n})
	}
	return r
}

func (c *cluster) bitmap(n uint32) []byte {
	b := make([]byte, (c.m.Shard(n).Blocks+7)/8)
	for i := range b {
		b[i] = 0xff
	}
	return b
}

// without takes some blocks of an object's member off a report.
func (c *cluster) without(t testing.TB, r api.VerifyReport, path string, member, from, to int) api.VerifyReport {
	t.Helper()
	mems, shards := c.where(t, path)
	s := &r.Shards[shards[member]]
	if s.Present == nil {
		s.Present = c.bitmap(s.Shard)
	}
	for b := from; b < to; b++ {
		at := int(mems[member].FirstBlock) + b
		s.Present[at/8] &^= 1 << (at % 8)
	}
	return r
}

func drop(r api.VerifyReport, shards ...uint32) api.VerifyReport {
	r.Shards = slices.DeleteFunc(r.Shards, func(s api.ShardReport) bool { return slices.Contains(shards, s.Shard) })
	return r
}

// What workers say is counted block by block: an object is resident if each of
// its blocks is whole on some disk.
func TestCertify(t *testing.T) {
	missing := func(path string) api.Failure {
		return api.Failure{Path: path, Kind: "transient", Reason: "not resident on any live worker"}
	}
	wrong := func(path string) api.Failure {
		return api.Failure{Path: path, Kind: "corrupt", Reason: "its bytes on a worker's disk do not match their checksum"}
	}
	for name, c := range map[string]struct {
		reports func(t *testing.T, c *cluster) []api.VerifyReport
		failed  []api.Failure
		missing int64 // bytes
	}{
		"all on one": {reports: func(_ *testing.T, c *cluster) []api.VerifyReport { return []api.VerifyReport{c.all()} }},
		"halves": {reports: func(_ *testing.T, c *cluster) []api.VerifyReport {
			a, b := c.all(), c.all()
			return []api.VerifyReport{{Shards: a.Shards[:len(a.Shards)/2]}, {Shards: b.Shards[len(b.Shards)/2:]}}
		}},
		"a block here, the others there": {reports: func(t *testing.T, c *cluster) []api.VerifyReport {
			a := c.without(t, c.all(), "file-09", 0, 3, 4)
			b := c.without(t, c.without(t, c.all(), "file-09", 0, 0, 3), "file-09", 0, 4, 36)
			return []api.VerifyReport{a, b}
		}},
		"a block is nowhere": {
			reports: func(t *testing.T, c *cluster) []api.VerifyReport {
				return []api.VerifyReport{c.without(t, c.all(), "file-09", 0, 3, 4), c.without(t, c.all(), "file-09", 0, 3, 5)}
			},
			failed: []api.Failure{missing("file-09")}, missing: 256 << 10,
		},
		"an extent is nowhere": {
			reports: func(t *testing.T, c *cluster) []api.VerifyReport {
				_, shards := c.where(t, "big")
				return []api.VerifyReport{drop(c.all(), shards[1])}
			},
			failed: []api.Failure{missing("big")}, missing: 64 * mib,
		},
		"extents on different workers": {reports: func(t *testing.T, c *cluster) []api.VerifyReport {
			_, shards := c.where(t, "big")
			return []api.VerifyReport{drop(c.all(), shards[0]), drop(c.all(), shards[1:]...)}
		}},
		"the last, short block is nowhere": {
			reports: func(t *testing.T, c *cluster) []api.VerifyReport {
				return []api.VerifyReport{c.without(t, c.all(), "odd", 0, 1, 2)}
			},
			failed: []api.Failure{missing("odd")}, missing: 1,
		},
		"wrong bytes": {
			reports: func(t *testing.T, c *cluster) []api.VerifyReport {
				r := c.all()
				mems, shards := c.where(t, "file-20")
				r.Shards[shards[0]].Corrupt = []int{int(mems[0].FirstBlock), int(mems[0].FirstBlock) + 79}
				return []api.VerifyReport{r}
			},
			failed: []api.Failure{wrong("file-20")}, missing: 512 << 10,
		},
		"wrong bytes here, right ones there": {reports: func(t *testing.T, c *cluster) []api.VerifyReport {
			r := c.all()
			mems, shards := c.where(t, "file-20")
			r.Shards[shards[0]].Corrupt = []int{int(mems[0].FirstBlock)}
			return []api.VerifyReport{r, c.all()}
		}},
		"the load said why": {
			reports: func(t *testing.T, c *cluster) []api.VerifyReport {
				r := c.without(t, c.without(t, c.all(), "file-01", 0, 0, 4), "file-02", 0, 0, 8)
				r.Failed = []api.Failure{{Path: "file-01", Kind: "stale", Reason: "it changed"}, {Path: "file-03", Kind: "denied", Reason: "it is there now"}}
				return []api.VerifyReport{r, {Failed: []api.Failure{{Path: "file-01", Kind: "denied", Reason: "said later"}}}}
			},
			failed: []api.Failure{{Path: "file-01", Kind: "stale", Reason: "it changed"}, missing("file-02")}, missing: 3 * mib,
		},
		"nonsense is no data": {
			reports: func(t *testing.T, c *cluster) []api.VerifyReport {
				r := c.without(t, c.all(), "file-09", 0, 3, 4)
				_, shards := c.where(t, "file-09")
				short := api.VerifyReport{Shards: []api.ShardReport{
					{Shard: 1 << 30}, {Shard: shards[0], Present: []byte{0}, Corrupt: []int{-1, 1 << 30}},
					{Shard: shards[0], Present: slices.Repeat([]byte{0}, 1000)}}}
				return []api.VerifyReport{r, short}
			},
			failed: []api.Failure{missing("file-09")}, missing: 256 << 10,
		},
	} {
		t.Run(name, func(t *testing.T) {
			x := newCluster(t, 0)
			reports := c.reports(t, x)
			for _, r := range reports {
				x.addWorker(t).report = r
			}
			cert, err := x.Certify(t.Context(), VerifyInput{Dataset: "d", Generation: 3, Manifest: x.manifest, UFSBytes: 7, UFSRequests: 8, Refetched: api.Refetched{Lost: 9}, Deep: true})
			if err != nil {
				t.Fatal(err)
			}
			state := api.CertificateReady
			if len(c.failed) > 0 {
				state = api.CertificateFailed
			}
			want := &api.Certificate{
				Dataset: "d", Generation: 3, Manifest: x.manifest, State: state, Objects: 43, Bytes: x.m.Bytes(), Seconds: cert.Seconds,
				ResidentObjects: 43 - int64(len(c.failed)), ResidentBytes: x.m.Bytes() - c.missing, UFSBytes: 7, UFSRequests: 8,
				Refetched: api.Refetched{Lost: 9}, Failed: append([]api.Failure{}, c.failed...), Unmountable: []api.Unmountable{},
				Deep: true, Checksums: cert.Checksums, Workers: cert.Workers, Wrong: cert.Wrong, // see TestCertificateCountsEachWorker
			}
			if strings.Contains(name, "wrong") != (len(cert.Wrong) > 0) {
				t.Errorf("wrong are %+v", cert.Wrong)
			}
			if !reflect.DeepEqual(cert, want) {
				t.Errorf("got  %+v\nwant %+v", cert, want)
			}
			if !slices.Equal(x.workers[0].deep, []bool{true}) {
				t.Errorf("asked for deep: %v", x.workers[0].deep)
			}
		})
	}
}

// A certificate says what each worker has, with how many checksums, and of which
// files it had wrong bytes, also where another one has right ones; a load that
// is verified so may bring them again.
func TestCertificateCountsEachWorker(t *testing.T) {
	c := newCluster(t, 3)
	blocks := int64(0)
	for n := range uint32(c.m.Shards()) {
		blocks += int64(c.m.Shard(n).Blocks)
	}
	_, big := c.where(t, "big")
	c.workers[0].report = drop(c.all(), big[0])
	mems, shards := c.where(t, "file-20")
	b := c.all()
	b.Shards[shards[0]].Corrupt = []int{int(mems[0].FirstBlock)}
	b.ReadBlocks, b.ReadBytes = blocks-1, c.m.Bytes()-256<<10
	c.workers[1].report = b
	in := VerifyInput{Dataset: "d", Manifest: c.manifest, Deep: true}
	cert, err := c.Certify(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	extent := int64(c.m.Shard(big[0]).Blocks)
	want := []api.CertificateWorker{
		{Worker: c.workers[0].ID, Shards: c.m.Shards() - 1, Blocks: blocks - extent, Bytes: c.m.Bytes() - 64*mib},
		{Worker: c.workers[1].ID, Shards: c.m.Shards(), Blocks: blocks - 1, Bytes: c.m.Bytes() - 256<<10, WrongBlocks: 1},
	}
	slices.SortFunc(want, func(a, b api.CertificateWorker) int { return strings.Compare(a.Worker, b.Worker) })
	if !reflect.DeepEqual(cert.Workers, want) {
		t.Errorf("got  %+v\nwant %+v", cert.Workers, want)
	}
	if sums := (api.Checksums{Blocks: 2*blocks - extent - 1, ReadBlocks: blocks - 1, ReadBytes: c.m.Bytes() - 256<<10}); cert.Checksums != sums {
		t.Errorf("checksums %+v, want %+v", cert.Checksums, sums)
	}
	if wrong := []api.WrongFile{{Path: "file-20", Worker: c.workers[1].ID}}; cert.State != api.CertificateReady || !cert.Deep || !reflect.DeepEqual(cert.Wrong, wrong) {
		t.Errorf("%s, wrong %+v", cert.State, cert.Wrong)
	}
	a := c.all() // now wrong on both
	a.Shards[shards[0]].Corrupt = b.Shards[shards[0]].Corrupt
	c.workers[0].report = a
	v, err := c.Verify(t.Context(), in)
	if err != nil || v.State != api.CertificateFailed || !v.Again || v.Gone != 256<<10 {
		t.Errorf("%+v, %v: what was wrong is out of use, and a load brings it again", v, err)
	}
}

// A worker that does not answer, or answers wrongly, has nothing; nobody is
// Ready because of what it once had.
func TestSilentWorkersAreNotCounted(t *testing.T) {
	for name, away := range map[string]func(f *fakeWorker){
		"gone":      func(f *fakeWorker) { f.server.Close() },
		"failing":   func(f *fakeWorker) { f.fails = stoker.Errorf(stoker.KindInternal, "verify", "", "a bug") },
		"denies it": func(f *fakeWorker) { f.fails = stoker.Errorf(stoker.KindDenied, "verify", "", "who are you") },
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, 2)
			_, shards := c.where(t, "big")
			c.workers[0].report = drop(c.all(), shards[2])
			c.workers[1].report = c.all()
			away(c.workers[1])
			v, err := c.Verify(t.Context(), VerifyInput{Dataset: "d", Manifest: c.manifest, Started: time.Now().Add(-time.Minute)})
			if err != nil {
				t.Fatal(err)
			}
			if v.State != api.CertificateFailed || v.ResidentObjects != 42 || v.Kind != "incomplete" || !v.Again || v.Message != "preload d: 1 of 43 objects are not resident" {
				t.Errorf("%+v", v)
			}
			if v.Gone != 22*mib || len(v.Away) != 0 { // no plan is named
				t.Errorf("gone %d, away %v", v.Gone, v.Away)
			}
			cert, err := c.Certificate(t.Context(), v.Certificate)
			if err != nil || cert.State != api.CertificateFailed || cert.Seconds < 59 || len(cert.Failed) != 1 || cert.Failed[0].Path != "big" {
				t.Errorf("%+v, %v", cert, err)
			}
		})
	}
	t.Run("no worker at all", func(t *testing.T) {
		c := newCluster(t, 0)
		cert, err := c.Certify(t.Context(), VerifyInput{Dataset: "d", Manifest: c.manifest})
		if err != nil || cert.State != api.CertificateFailed || cert.ResidentObjects != 1 || cert.ResidentBytes != 0 {
			t.Errorf("%+v, %v: only the empty file is there", cert, err)
		}
	})
}

// Workers of the plan that do not answer are named, also if the index has
// forgotten them; what a load could not have was never there.
func TestVerifyNamesWhoIsAway(t *testing.T) {
	c := newCluster(t, 3)
	_, shards := c.where(t, "big")
	c.workers[0].report = drop(c.without(t, c.all(), "file-01", 0, 0, 1), shards[2])
	c.workers[0].report.Failed = []api.Failure{{Path: "file-01", Kind: "transient", Reason: "busy"}}
	plan := planner.Plan{Dataset: "d", Manifest: c.manifest, Replicas: 1}
	for _, w := range c.workers {
		plan.Workers = append(plan.Workers, planner.PlanWorker{ID: w.ID, Address: w.Address})
	}
	for n := range c.m.Shards() {
		plan.Owners = append(plan.Owners, []uint16{uint16(n % 2)}) // none is the third's
	}
	id, err := c.o.Store.PutBlob(t.Context(), "plans", plan.Encode())
	if err != nil {
		t.Fatal(err)
	}
	c.workers[1].server.Close()
	c.workers[2].server.Close()
	for _, forgotten := range []bool{false, true} {
		if forgotten {
			if err := c.index.Leave(t.Context(), c.workers[1].Incarnation); err != nil {
				t.Fatal(err)
			}
		}
		v, err := c.Verify(t.Context(), VerifyInput{Dataset: "d", Manifest: c.manifest, Plan: id, Started: time.Now()})
		if err != nil || !slices.Equal(v.Away, []int{1}) || v.Gone != 22*mib || !v.Again {
			t.Errorf("forgotten %v: %+v, %v", forgotten, v, err)
		}
	}
}

// Another round is worth it only if nothing that is missing was refused.
func TestVerifyAgain(t *testing.T) {
	for name, c := range map[string]struct {
		kinds []string
		again bool
	}{
		"away":               {nil, true},
		"busy":               {[]string{"busy"}, true},
		"changed":            {[]string{"stale"}, false},
		"away, and changed":  {[]string{"transient", "stale"}, false},
		"not there any more": {[]string{"notexist"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			x := newCluster(t, 1)
			r := x.all()
			for n, kind := range append(c.kinds, "transient") {
				path := fmt.Sprintf("file-%02d", n+1)
				r = x.without(t, r, path, 0, 0, 1)
				r.Failed = append(r.Failed, api.Failure{Path: path, Kind: kind, Reason: "because"})
			}
			x.workers[0].report = r
			v, err := x.Verify(t.Context(), VerifyInput{Dataset: "d", Manifest: x.manifest, Started: time.Now()})
			if err != nil || v.Again != c.again || v.State != api.CertificateFailed {
				t.Errorf("%+v, %v", v, err)
			}
		})
	}
	x := newCluster(t, 1)
	x.workers[0].report = x.all()
	v, err := x.Verify(t.Context(), VerifyInput{Dataset: "d", Manifest: x.manifest, Started: time.Now()})
	if err != nil || v.State != api.CertificateReady || v.Again || v.Kind != "" || v.Certificate.IsZero() {
		t.Errorf("%+v, %v", v, err)
	}
	if _, err := x.Certificate(t.Context(), stoker.ID{1}); stoker.KindOf(err) != stoker.KindNotExist {
		t.Errorf("a certificate that was never made: %v", err)
	}
}

// Asked for two copies, a certificate is Ready if two workers have each shard
// whole, and else names what too few have.
func TestCertificateCountsCopies(t *testing.T) {
	c := newCluster(t, 2)
	_, big := c.where(t, "big")
	verify := func(a, b api.VerifyReport) Verified {
		c.workers[0].report, c.workers[1].report = a, b
		v, err := c.Verify(t.Context(), VerifyInput{Dataset: "d", Manifest: c.manifest, Copies: 2, Started: time.Now()})
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	if v := verify(c.all(), c.all()); v.State != api.CertificateReady {
		t.Errorf("two copies: %+v", v)
	}
	v := verify(c.all(), drop(c.all(), big[0]))
	cert, err := c.Certificate(t.Context(), v.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	want := []api.Failure{{Path: "big", Kind: "transient", Reason: "whole on 1 of 2 workers"}}
	if v.State != api.CertificateFailed || !v.Again || v.Message != "preload d: 1 of 43 objects are on fewer than 2 workers" || cert.Replicas != 2 ||
		cert.ResidentObjects != cert.Objects || !slices.Equal(cert.Failed, want) {
		t.Errorf("one of two copies of a shard: %+v, %+v", v, cert)
	}
}

// Of a selection only the shards with its objects are planned, and only these
// objects are counted, in one copy or in two; one that has none is an error.
func TestSelectionIsPlannedAndCounted(t *testing.T) {
	c := newCluster(t, 2)
	key, err := api.Selection{Include: []string{"file-0*", "odd"}}.Key()
	if err != nil {
		t.Fatal(err)
	}
	chosen, err := Choose(c.m, key)
	if err != nil || chosen.Objects == 0 || chosen.Objects >= c.m.Objects() {
		t.Fatalf("%+v, %v", chosen, err)
	}
	p, err := c.Plan(t.Context(), PlanInput{Dataset: "d", Manifest: c.manifest, Select: key, Round: 1})
	if err != nil {
		t.Fatal(err)
	}
	plan, err := c.LoadPlan(t.Context(), p.Plan)
	if err != nil {
		t.Fatal(err)
	}
	var here api.VerifyReport
	for n, owners := range plan.Owners {
		if wanted := chosen.hasShard(uint32(n)); (len(owners) == 1) != wanted {
			t.Errorf("shard %d has the workers %v; it is wanted: %v", n, owners, wanted)
		} else if wanted {
			here.Shards = append(here.Shards, api.ShardReport{Shard: uint32(n)})
		}
	}
	if plan.Select != key || len(here.Shards) == 0 || len(here.Shards) == c.m.Shards() {
		t.Fatalf("the plan is for %q, %d shards", plan.Select, len(here.Shards))
	}
	certify := func(copies int, a, b api.VerifyReport) *api.Certificate {
		c.workers[0].report, c.workers[1].report = a, b
		cert, err := c.Certify(t.Context(), VerifyInput{Dataset: "d", Manifest: c.manifest, Select: key, Copies: copies})
		if err != nil {
			t.Fatal(err)
		}
		if cert.Objects != chosen.Objects || cert.Bytes != chosen.Bytes || cert.Selection == nil || !slices.Equal(cert.Selection.Include, chosen.Selection.Include) {
			t.Errorf("%+v", cert)
		}
		return cert
	}
	if cert := certify(1, here, api.VerifyReport{}); cert.State != api.CertificateReady || cert.ResidentBytes != chosen.Bytes {
		t.Errorf("with all of it %+v", cert)
	}
	_, other := c.where(t, "file-10") // in the same pack, not selected
	partly := func() api.VerifyReport { return c.without(t, c.all(), "file-10", 0, 0, 4) }
	if !chosen.hasShard(other[0]) {
		t.Fatal("file-10 lies elsewhere: the test is of nothing")
	}
	if cert := certify(2, partly(), partly()); cert.State != api.CertificateReady {
		t.Errorf("without others' blocks %+v", cert)
	}
	lacks := c.without(t, c.all(), "file-05", 0, 0, 1)
	if cert := certify(1, lacks, api.VerifyReport{}); len(cert.Failed) != 1 || cert.Failed[0].Path != "file-05" || cert.ResidentObjects != chosen.Objects-1 {
		t.Errorf("without a block %+v", cert)
	}
	if cert := certify(2, lacks, c.all()); len(cert.Failed) == 0 || cert.ResidentObjects != chosen.Objects {
		t.Errorf("a block is there once %+v", cert)
	}
	_, err = c.Certify(t.Context(), VerifyInput{Dataset: "d", Manifest: c.manifest, Select: `{"paths":["none"]}`})
	if stoker.KindOf(err) != stoker.KindNotExist || !strings.Contains(err.Error(), "matches none of 43 objects") {
		t.Errorf("nothing selected: %v", err)
	}
}
