package activities

import (
	"context"
	"strings"
	"testing"
	"time"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/cache/placement"
	"stoker.dev/internal/api"
	"stoker.dev/ufs"
)

// joined plays the workflows that a claim asks.
type joined struct {
	granted map[stoker.ID]bool
	first   string // of those that wait
}

func (j *joined) Join(context.Context, JoinInput) error       { return nil }
func (j *joined) Leave(context.Context, LeaveInput) error     { return nil }
func (j *joined) Enqueue(context.Context, EnqueueInput) error { return nil }
func (j *joined) Dequeue(context.Context, DequeueInput) error { return nil }
func (j *joined) Requeue(context.Context, WaitingClaim) error { return nil }
func (j *joined) Wish(context.Context, WishInput) error       { return nil }
func (j *joined) Granted(_ context.Context, id stoker.ID, _ string) (bool, error) {
	return j.granted[id], nil
}
func (j *joined) FirstWaiting(context.Context) (string, error) { return j.first, nil }

// A claim is admitted if all that it needs fits at once; what is granted needs
// nothing, what is held by others is in the way, what no cluster of this size can
// hold is refused for ever; and none passes those that wait.
func TestAdmit(t *testing.T) {
	need := newCluster(t, 1).m.Bytes()
	held := func(id stoker.ID, bytes int64) api.WorkerStatus {
		return api.WorkerStatus{WorkerInfo: api.WorkerInfo{CapacityBytes: 2 << 30, UsedBytes: bytes},
			Manifests: []api.ManifestHolding{{Manifest: id, Dataset: "other", Bytes: bytes, Holders: []string{"job x"}}}}
	}
	for name, c := range map[string]struct {
		capacity int64 // of each of two workers; 0 = 2 GiB
		other    int64 // bytes of other data that a job holds on each
		own      int64 // bytes of this data that a job holds on each
		granted  bool
		first    string
		head     bool
		lost     bool // the second worker is away
		copies   int
		want     string
		why      string
	}{
		"fits":                                {want: AdmitNow},
		"held by others":                      {other: 2<<30 - need/2 + 1, want: AdmitWait, why: "held: other by job x"},
		"held, and the same data":             {own: 2 << 30, want: AdmitNow},
		"granted already":                     {other: 2 << 30, granted: true, first: "z", want: AdmitNow},
		"others wait":                         {first: "z", want: AdmitWait, why: "job z waits for space already"},
		"it is the first":                     {first: "z", head: true, want: AdmitNow},
		"can never fit":                       {capacity: need/2 - 1, want: AdmitNever, why: "all workers together hold"},
		"more copies than workers":            {copies: 3, granted: true, want: AdmitNever, why: "needs 3 workers"},
		"copies that fit":                     {copies: 2, granted: true, want: AdmitNow},
		"does not fit while a worker is away": {capacity: need * 3 / 4, lost: true, want: AdmitWait, why: "free"},
	} {
		t.Run(name, func(t *testing.T) {
			x := newCluster(t, 2)
			j := &joined{granted: map[stoker.ID]bool{x.manifest: c.granted}, first: c.first}
			x.o.Joiner = j
			for _, f := range x.workers {
				switch {
				case c.other > 0:
					f.status = held(stoker.ID{1}, c.other)
				case c.own > 0:
					f.status = held(x.manifest, c.own)
				}
				if c.capacity > 0 {
					f.CapacityBytes, f.status.CapacityBytes = c.capacity, c.capacity
					x.register(t, f)
				}
			}
			if _, _, err := x.Activities.Workers(t.Context()); err != nil { // both were seen
				t.Fatal(err)
			}
			if c.lost {
				x.index.Mem = placement.NewMem(time.Now)
				x.register(t, x.workers[0])
			}
			a, err := x.Admit(t.Context(), AdmitInput{Head: c.head, Claim: WaitingClaim{Job: "j", Replicas: c.copies, Datasets: []AdmitDataset{{Dataset: "d", Manifest: x.manifest}}}})
			if err != nil || a.State != c.want || !strings.Contains(a.Why, c.why) {
				t.Fatalf("%+v, %v", a, err)
			}
			if !c.granted && (a.NeedBytes < need || a.NeedBytes > need+mib) { // shards are whole blocks
				t.Errorf("it needs %d of %d", a.NeedBytes, need)
			}
			for _, f := range x.workers {
				if n := f.count("reserve"); n != 0 {
					t.Errorf("it reserved %d times", n)
				}
			}
		})
	}
}

// What others hold of a claim counts when it is asked whether it could ever fit:
// else it would wait for space that can never come.
func TestAdmitBesideWhatIsGranted(t *testing.T) {
	x := newCluster(t, 2)
	need := x.m.Bytes()
	b, err := manifest.Build(t.Context(), manifest.BuildOptions{Roots: []manifest.Root{{Location: ufs.Location{URI: "s3://other"}}}, Open: x.o.Open, TempDir: t.TempDir()})
	if err == nil {
		err = x.o.Store.Put(t.Context(), b)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range x.workers {
		f.CapacityBytes, f.status.CapacityBytes = need*3/4, need*3/4
		x.register(t, f)
	}
	x.o.Joiner = &joined{granted: map[stoker.ID]bool{x.manifest: true}}
	both := WaitingClaim{Job: "j", Datasets: []AdmitDataset{{Dataset: "d", Manifest: x.manifest}, {Dataset: "e", Manifest: b.ID}}}
	a, err := x.Admit(t.Context(), AdmitInput{Claim: both})
	if err != nil || a.State != AdmitNever || !strings.Contains(a.Why, " less: claim less") {
		t.Errorf("%+v, %v", a, err)
	}
	both.Datasets = both.Datasets[1:]
	if a, err := x.Admit(t.Context(), AdmitInput{Claim: both}); err != nil || a.State != AdmitNow {
		t.Errorf("alone: %+v, %v", a, err)
	}
}
