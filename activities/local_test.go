package activities

import (
	"slices"
	"strings"
	"testing"

	"stoker.dev"
	"stoker.dev/cache/placement"
	"stoker.dev/internal/api"
	"stoker.dev/planner"
)

// named registers the workers with the names of nodes.
func (c *cluster) named(t *testing.T) {
	t.Helper()
	for _, w := range c.workers {
		w.Node = "node-" + w.ID
		c.register(t, w)
	}
}

func (c *cluster) planLocals(t *testing.T, locals ...LocalClaim) (Planned, *planner.Plan) {
	t.Helper()
	p, err := c.Plan(t.Context(), PlanInput{Dataset: "d", Manifest: c.manifest, Round: 3, Locals: locals})
	if err != nil {
		t.Fatal(err)
	}
	if p.Plan.IsZero() {
		return p, nil
	}
	plan, err := c.LoadPlan(t.Context(), p.Plan)
	if err != nil {
		t.Fatal(err)
	}
	return p, plan
}

// A plan of local copies has every shard on the nodes of those claims that fit, and
// says of the others why they do not.
func TestPlanLocal(t *testing.T) {
	c := newCluster(t, 6)
	need := int64(0)
	for _, s := range shardsOf(c.m) {
		need += s.Bytes
	}
	c.workers[2].status.UsedBytes = 2<<30 - need + 1
	c.workers[2].status.Manifests = []api.ManifestHolding{{Manifest: stoker.ID{9}, Dataset: "other", Bytes: 1 << 30, Holders: []string{"job x"}}}
	c.workers[3].CapacityBytes = 0
	c.named(t)
	c.workers[4].server.Close()
	c.workers[5].Node = "" // of an earlier release
	c.register(t, c.workers[5])

	p, plan := c.planLocals(t, LocalClaim{Job: "a", Nodes: []string{"w1"}}, LocalClaim{Job: "small", Nodes: []string{"w0", "w2"}},
		LocalClaim{Job: "auto", Nodes: []string{"w2"}, Auto: true}, LocalClaim{Job: "none", Nodes: []string{"w3"}}, LocalClaim{Job: "away", Nodes: []string{"w1", "w4"}},
		LocalClaim{Job: "old", Nodes: []string{"w5"}}, LocalClaim{Job: "b", Nodes: []string{"w0", "w1"}})
	var ids []string
	for _, w := range plan.Workers {
		ids = append(ids, w.ID)
	}
	if !slices.Equal(ids, []string{"w1", "w0"}) || !slices.Equal(plan.Nodes, []uint16{0, 1}) || plan.Round != 3 || p.Parts != 2 {
		t.Errorf("%d parts, workers %v, nodes %v, round %d", p.Parts, ids, plan.Nodes, plan.Round)
	}
	for n, owners := range plan.Owners {
		if len(owners) != 2 || owners[0] == owners[1] {
			t.Errorf("shard %d is on %v", n, owners)
		}
	}
	want := []struct{ job, kind, text string }{
		{"small", "nospace", "worker w2 has"}, {"auto", "nospace", "on each of its nodes"}, {"none", "invalid", "caches nothing"},
		{"away", "transient", "does not answer"}, {"old", "invalid", "earlier release"},
	}
	if len(p.Unfit) != len(want) {
		t.Fatalf("%+v", p.Unfit)
	}
	for i, w := range want {
		u := p.Unfit[i]
		if u.Job != w.job || u.Error.Kind != w.kind || !strings.Contains(u.Error.Message, w.text) || u.Spread != (w.job == "auto") {
			t.Errorf("%+v, want %v", u, w)
		}
	}
	if !strings.Contains(p.Unfit[0].Error.Message, "held: other by job x") {
		t.Errorf("it does not say who holds the space: %s", p.Unfit[0].Error.Message)
	}
	if p, plan := c.planLocals(t, LocalClaim{Job: "small", Nodes: []string{"w2"}}); plan != nil || len(p.Unfit) != 1 {
		t.Errorf("a plan for nobody: %+v, %+v", p, plan)
	}
}

// What a node has counts as its room, and its shards are read by it for the others.
func TestPlanLocalRegardsWhatIsThere(t *testing.T) {
	c := newCluster(t, 2)
	c.named(t)
	c.workers[0].status.UsedBytes = 2 << 30
	c.workers[0].status.Manifests = []api.ManifestHolding{{Manifest: c.manifest, Bytes: 2 << 30, Holders: []string{"j"}}}
	marks := []placement.Mark{}
	for n := range uint32(c.m.Shards()) {
		if n%2 == 0 {
			marks = append(marks, placement.Mark{Shard: n, Whole: true})
		}
	}
	if err := c.index.Announce(t.Context(), c.workers[0].Incarnation, c.manifest, marks); err != nil {
		t.Fatal(err)
	}
	_, plan := c.planLocals(t, LocalClaim{Job: "a", Nodes: []string{"w0", "w1"}})
	var has, kept int
	for _, m := range marks {
		if has++; plan.Workers[plan.Owners[m.Shard][0]].ID == "w0" {
			kept++
		}
	}
	if kept < has*3/4 {
		t.Errorf("of %d shards that one node has it is the source of %d", has, kept)
	}
}

// Local is Ready when each node has every block: what others have does not count.
func TestCertifyOnNodes(t *testing.T) {
	c := newCluster(t, 3)
	c.named(t)
	p, _ := c.planLocals(t, LocalClaim{Job: "a", Nodes: []string{"w2", "w0"}})
	verify := func() *api.Certificate {
		t.Helper()
		cert, err := c.Certify(t.Context(), VerifyInput{Dataset: "d", Manifest: c.manifest, Plan: p.Plan})
		if err != nil {
			t.Fatal(err)
		}
		if cert.Layout != "local" || !slices.Equal(cert.Nodes, []string{"w0", "w2"}) {
			t.Fatalf("layout %q on %v", cert.Layout, cert.Nodes)
		}
		return cert
	}
	for i := range 3 {
		c.workers[i].report = c.all()
	}
	if cert := verify(); cert.State != api.CertificateReady || !cert.Workers[0].Whole {
		t.Errorf("all have all: %+v", cert)
	}
	c.workers[1].report = api.VerifyReport{} // no node
	if cert := verify(); cert.State != api.CertificateReady || len(cert.Workers) != 2 {
		t.Errorf("both nodes have all: %+v", cert)
	}
	c.workers[1].report = c.all()
	c.workers[2].report = c.without(t, c.all(), "file-09", 0, 3, 4)
	c.workers[2].report.Failed = []api.Failure{{Path: "file-09", Kind: "nospace", Reason: "no disk"}}
	cert := verify()
	want := api.Failure{Path: "file-09", Kind: "nospace", Reason: "not on worker w2, which has to have all: no disk"}
	if cert.State != api.CertificateFailed || len(cert.Failed) != 1 || cert.Failed[0] != want || cert.ResidentObjects != 43 || cert.Workers[2].Whole {
		t.Errorf("a block lacks on one: %+v", cert)
	}
	if got := missing(cert); got != "1 of 43 objects are not on each of 2 nodes" {
		t.Error(got)
	}
	c.workers[2].report = api.VerifyReport{}
	if cert := verify(); len(cert.Failed) != 42 || cert.ResidentBytes != c.m.Bytes() { // the empty one is nowhere
		t.Errorf("one has nothing: %d failed", len(cert.Failed))
	}
	v, err := c.Verify(t.Context(), VerifyInput{Dataset: "d", Manifest: c.manifest, Plan: p.Plan})
	if err != nil || v.State != api.CertificateFailed || !v.Again {
		t.Errorf("%+v, %v", v, err)
	}
}

// Of a selection each node has to have the objects that it names, and no others.
func TestCertifySelectionOnNodes(t *testing.T) {
	c := newCluster(t, 2)
	c.named(t)
	key := `{"paths":["file-09"]}`
	p, err := c.Plan(t.Context(), PlanInput{Dataset: "d", Manifest: c.manifest, Select: key, Locals: []LocalClaim{{Job: "a", Nodes: []string{"w0", "w1"}}}})
	if err != nil {
		t.Fatal(err)
	}
	plan, err := c.LoadPlan(t.Context(), p.Plan)
	if err != nil {
		t.Fatal(err)
	}
	_, shards := c.where(t, "file-09")
	if part := plan.Part(0); plan.Select != key || !slices.Equal(part, shards) || !slices.Equal(plan.Part(1), shards) {
		t.Errorf("%q: parts %v and %v, want %v", plan.Select, part, plan.Part(1), shards)
	}
	c.workers[0].report = c.all()
	for lacks, want := range map[string]string{"file-09": api.CertificateFailed, "file-10": api.CertificateReady} {
		c.workers[1].report = c.without(t, c.all(), lacks, 0, 3, 4)
		cert, err := c.Certify(t.Context(), VerifyInput{Dataset: "d", Manifest: c.manifest, Plan: p.Plan, Select: key})
		if err != nil || cert.State != want || cert.Objects != 1 {
			t.Errorf("without %s: %+v, %v", lacks, cert, err)
		}
	}
}

// A node that does not come back keeps its part: nobody takes over for it.
func TestMendOfANode(t *testing.T) {
	c := newCluster(t, 3)
	c.named(t)
	p, plan := c.planLocals(t, LocalClaim{Job: "a", Nodes: []string{"w0", "w1"}})
	for _, all := range []bool{false, true} {
		m, err := c.Mend(t.Context(), MendInput{Plan: p.Plan, Part: 1, All: all, Round: 4})
		if err != nil || !m.Moved.IsZero() || m.Node != "w1" {
			t.Fatalf("%+v, %v", m, err)
		}
		kept, err := c.LoadPlan(t.Context(), m.Kept)
		if err != nil || !slices.Equal(kept.Part(1), plan.Part(1)) {
			t.Errorf("kept: %v", err)
		}
		if err := c.Reserve(t.Context(), ReserveInput{Plan: m.Kept, Replaces: p.Plan, Parts: []int{1}}); err != nil {
			t.Fatal(err)
		}
		if n := c.workers[0].count("reserve"); n != 0 {
			t.Error("who goes on by the plan that it has was asked for its space again")
		}
	}
}

// A claim of local copies is admitted if each node has room for all its datasets.
func TestAdmitLocal(t *testing.T) {
	need := int64(0)
	for _, s := range shardsOf(newCluster(t, 0).m) {
		need += s.Bytes
	}
	for name, c := range map[string]struct {
		used, capacity int64 // of the second node
		auto, away     bool
		granted        bool
		first          string
		want, why      string
	}{
		"fits":                           {want: AdmitNow},
		"one node is full":               {used: 2<<30 - need + 1, want: AdmitWait, why: "worker w1 has"},
		"likewise, and it is granted":    {used: 2<<30 - need + 1, granted: true, want: AdmitWait, why: "held: other by job x"},
		"or else spread":                 {used: 2<<30 - need + 1, auto: true, want: AdmitNow},
		"one node is too small":          {capacity: need - 1, want: AdmitNever, why: "worker w1 holds"},
		"too small, or else spread":      {capacity: need - 1, auto: true, want: AdmitNow},
		"too small, and is away":         {capacity: need - 1, away: true, want: AdmitNever, why: "holds"},
		"is away: whoever plans says it": {away: true, want: AdmitNow},
		"others wait":                    {first: "z", want: AdmitWait, why: "job z waits"},
	} {
		t.Run(name, func(t *testing.T) {
			x := newCluster(t, 3)
			x.o.Joiner = &joined{granted: map[stoker.ID]bool{x.manifest: c.granted}, first: c.first}
			w := x.workers[1]
			if w.status.UsedBytes = c.used; c.used > 0 {
				w.status.Manifests = []api.ManifestHolding{{Manifest: stoker.ID{9}, Dataset: "other", Bytes: c.used, Holders: []string{"job x"}}}
			}
			if c.capacity > 0 {
				w.CapacityBytes, w.status.CapacityBytes = c.capacity, c.capacity
			}
			x.named(t)
			if c.away {
				if _, _, err := x.Workers(t.Context()); err != nil { // it was seen
					t.Fatal(err)
				}
				if err := x.index.Leave(t.Context(), w.Incarnation); err != nil {
					t.Fatal(err)
				}
			}
			got, err := x.Admit(t.Context(), AdmitInput{Claim: WaitingClaim{Job: "j", Nodes: []string{"w0", "w1"}, Auto: c.auto,
				Datasets: []AdmitDataset{{Dataset: "d", Manifest: x.manifest}}}})
			if err != nil || got.State != c.want || !strings.Contains(got.Why, c.why) || got.Spread != (c.auto && (c.used > 0 || c.capacity > 0)) {
				t.Errorf("%+v, %v; want %s, %q", got, err, c.want, c.why)
			}
		})
	}
}
