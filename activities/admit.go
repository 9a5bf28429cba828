package activities

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"stoker.dev"
	"stoker.dev/cache/placement"
	"stoker.dev/internal/api"
	"stoker.dev/planner"
)

// What becomes of a claim that asks for space.
const (
	AdmitNow   = "now"   // all its data is held already, or fits
	AdmitWait  = "wait"  // it would fit if others let go
	AdmitNever = "never" // all workers together have not that much
)

// AdmitDataset is one dataset of a claim.
type AdmitDataset struct {
	Dataset  string
	Manifest stoker.ID
	Select   string `json:",omitempty"` // see JoinInput
}

// WaitingClaim is a claim that asks for space: for all its datasets or none.
type WaitingClaim struct {
	Job, Owner, Run string // Run of the job's workflow
	Datasets        []AdmitDataset
	Replicas        int       `json:",omitempty"`
	Priority        int       `json:",omitempty"`
	Deadline        time.Time `json:",omitzero"` // zero: none
	Submitted       time.Time
	Nodes           []string `json:",omitempty"` // see LocalClaim
	Auto            bool     `json:",omitempty"` // likewise
}

// AdmitInput asks for a claim. Head says that it is the first of those that wait.
type AdmitInput struct {
	Claim WaitingClaim
	Head  bool `json:",omitempty"`
}

// Admission is the answer. NeedBytes counts what is not held yet, with all copies.
type Admission struct {
	State     string
	NeedBytes int64  `json:",omitempty"`
	FreeBytes int64  `json:",omitempty"` // what all workers could take now
	Why       string `json:",omitempty"` // if not now
	Spread    bool   `json:",omitempty"` // its nodes have no room for all of it: it fits on all workers
}

// Admit tells whether all datasets of a claim fit at once. It reserves nothing:
// the workers grant space, one claim of those that wait at a time.
func (a *Activities) Admit(ctx context.Context, in AdmitInput) (Admission, error) {
	defer alive(ctx)()
	out, err := a.admit(ctx, in)
	return out, ToTemporal(err)
}

func (a *Activities) admit(ctx context.Context, in AdmitInput) (out Admission, err error) {
	copies := max(1, in.Claim.Replicas)
	live, lost, err := a.Workers(ctx)
	if err != nil {
		return out, err
	}
	if len(in.Claim.Nodes) > 0 {
		if out, err := a.admitLocal(ctx, &in.Claim, live, lost); err != nil || !in.Claim.Auto || out.State == AdmitNow {
			return a.afterOthers(ctx, in, out, err)
		}
		in.Claim.Nodes = nil
		out, err = a.admit(ctx, in)
		out.Spread = true
		return out, err
	}
	if copies > 1 { // what others hold of it they may hold in fewer copies
		if why, err := a.tooMany(ctx, in.Claim.Datasets, copies, capacity(live, lost)); why != "" || err != nil {
			return Admission{State: AdmitNever, Why: why}, err
		}
	}
	asked, err := a.notHeld(ctx, in.Claim.Datasets)
	if err != nil || len(asked) == 0 {
		return Admission{State: AdmitNow}, err
	}
	shards, err := a.shardsOf(ctx, asked)
	if err != nil {
		return out, err
	}
	out.NeedBytes = bytesOf(shards) * int64(copies)
	rooms, why, err := a.rooms(ctx, live, asked)
	if err != nil {
		return out, err
	}
	for _, w := range rooms {
		out.FreeBytes += w.FreeBytes
	}
	whole := shards // with what others hold now: it takes space beside the rest
	if len(asked) < len(in.Claim.Datasets) {
		if whole, err = a.shardsOf(ctx, in.Claim.Datasets); err != nil {
			return out, err
		}
	}
	need := bytesOf(whole) * int64(copies)
	if all := capacity(live, lost); len(rooms) > 0 && (need > sum(all) || !fits(whole, all, copies)) {
		out.State, out.Why = AdmitNever, tooMuch(need, sum(all))
		return out, nil
	}
	// Without workers it is not space that is missing: whoever plans says so.
	if len(rooms) > 0 && (out.NeedBytes > out.FreeBytes || !fits(shards, rooms, copies)) {
		out.State, out.Why = AdmitWait, fmt.Sprintf("needs %s, %s free; %s", api.HumanBytes(out.NeedBytes), api.HumanBytes(out.FreeBytes), why)
		return out, nil
	}
	out.State = AdmitNow
	return a.afterOthers(ctx, in, out, nil)
}

// afterOthers lets a claim that fits wait behind those that wait already.
func (a *Activities) afterOthers(ctx context.Context, in AdmitInput, out Admission, err error) (Admission, error) {
	if err != nil || out.State != AdmitNow || in.Head {
		return out, err
	}
	first, err := a.o.Joiner.FirstWaiting(ctx)
	if err == nil && first != "" && first != in.Claim.Job {
		out.State, out.Why = AdmitWait, "needs "+api.HumanBytes(out.NeedBytes)+"; job "+first+" waits for space already"
	}
	return out, err
}

// shardsOf are those of several datasets.
func (a *Activities) shardsOf(ctx context.Context, datasets []AdmitDataset) (shards []planner.Shard, err error) {
	for _, d := range datasets {
		m, err := a.o.Store.Load(ctx, d.Manifest)
		if err != nil {
			return nil, err
		}
		chosen, err := Choose(m, d.Select)
		for n, s := range shardsOf(m) {
			if err == nil && chosen.hasShard(uint32(n)) {
				shards = append(shards, s)
			}
		}
		_ = m.Close() // it was only read
		if err != nil {
			return nil, err
		}
	}
	return shards, nil
}

// tooMany says why workers, all empty, could not hold so many copies; "" if they could.
func (a *Activities) tooMany(ctx context.Context, datasets []AdmitDataset, copies int, workers []planner.Worker) (string, error) {
	if len(workers) == 0 {
		return "", nil // whoever plans says that there are none
	}
	shards, err := a.shardsOf(ctx, datasets)
	if err != nil {
		return "", err
	}
	var no *planner.NoFit
	if _, err = planner.Place(shards, workers, planner.PlaceOptions{Replicas: copies}); errors.As(err, &no) {
		return no.Error(), nil
	}
	return "", err
}

// notHeld are those datasets for which nobody has been granted space.
func (a *Activities) notHeld(ctx context.Context, datasets []AdmitDataset) (asked []AdmitDataset, err error) {
	for _, d := range datasets {
		granted, err := a.o.Joiner.Granted(ctx, d.Manifest, d.Select)
		if err != nil {
			return nil, err
		}
		if !granted {
			asked = append(asked, d)
		}
	}
	return asked, nil
}

// rooms are what each worker that answers could take of some manifests together,
// and by whom the others are held.
func (a *Activities) rooms(ctx context.Context, live []placement.Worker, asked []AdmitDataset) (rooms []planner.Worker, why string, err error) {
	all := make([]*api.WorkerStatus, len(live))
	err = a.EachWorker(ctx, addressesOf(live), func(ctx context.Context, i int, w *api.WorkerClient) error {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		st, err := w.Status(ctx)
		if err != nil {
			a.o.Log.Warn("a worker does not say what it could take", "manifest", asked[0].Manifest.Short(), "worker", live[i].ID, "error", err)
			return nil
		}
		all[i] = &st
		return nil
	})
	names := map[stoker.ID]string{} // a worker that has nothing of it yet knows the holder alone
	for _, st := range all {
		if st == nil {
			continue
		}
		for _, h := range st.Manifests {
			names[h.Manifest] = cmp.Or(names[h.Manifest], h.Dataset)
		}
	}
	held := map[string][]string{} // holders by dataset
	for i, st := range all {
		if st == nil || st.Drain != nil || live[i].CapacityBytes == 0 {
			continue
		}
		free := max(0, st.CapacityBytes-st.ReservedBytes-st.UsedBytes+st.FreeableBytes)
		for _, h := range st.Manifests {
			if len(h.Holders) == 0 {
				continue // among the freeable
			}
			if slices.ContainsFunc(asked, func(d AdmitDataset) bool { return d.Manifest == h.Manifest }) {
				free += h.Bytes
				continue
			}
			name := cmp.Or(names[h.Manifest], h.Manifest.Short())
			for _, who := range h.Holders {
				if !slices.Contains(held[name], who) {
					held[name] = append(held[name], who)
				}
			}
		}
		rooms = append(rooms, planner.Worker{ID: live[i].ID, FreeBytes: free, Weight: float64(live[i].CapacityBytes)})
	}
	return rooms, heldBy(held), err
}

// heldBy says who holds what.
func heldBy(held map[string][]string) string {
	if len(held) == 0 {
		return "nothing is held"
	}
	var all []string
	for _, name := range slices.Sorted(maps.Keys(held)) {
		slices.Sort(held[name])
		all = append(all, name+" by "+strings.Join(held[name], " and "))
	}
	return "held: " + strings.Join(all, "; ")
}

// capacity is what all workers have, those too that are away for a moment.
func capacity(live, lost []placement.Worker) (all []planner.Worker) {
	for _, w := range slices.Concat(live, lost) {
		if w.CapacityBytes > 0 && !w.Draining {
			all = append(all, planner.Worker{ID: w.ID, FreeBytes: w.CapacityBytes, Weight: float64(w.CapacityBytes)})
		}
	}
	return all
}

// tooMuch says of a claim that all workers, empty, could not hold it.
func tooMuch(need, all int64) string {
	short := "but not where its shards fit"
	if need > all {
		short = api.HumanBytes(need-all) + " less"
	}
	return fmt.Sprintf("needs %s, all workers together hold %s, %s: claim less, or add workers", api.HumanBytes(need), api.HumanBytes(all), short)
}

func bytesOf(shards []planner.Shard) (bytes int64) {
	for _, s := range shards {
		bytes += s.Bytes
	}
	return bytes
}

func sum(workers []planner.Worker) (bytes int64) {
	for _, w := range workers {
		bytes += w.FreeBytes
	}
	return bytes
}

func fits(shards []planner.Shard, workers []planner.Worker, copies int) bool {
	_, err := planner.Place(shards, workers, planner.PlaceOptions{Replicas: copies})
	return err == nil
}

// Enqueue makes a claim one of those that wait for space, or puts it back after
// its turn. Try sets its tries apart.
func (a *Activities) Enqueue(ctx context.Context, in EnqueueInput) error {
	return ToTemporal(a.o.Joiner.Enqueue(ctx, in))
}

// EnqueueInput is a claim that waits, and why.
type EnqueueInput struct {
	Claim WaitingClaim
	Why   Admission
	Try   int `json:",omitempty"`
}

// Dequeue ends that.
func (a *Activities) Dequeue(ctx context.Context, in DequeueInput) error {
	return ToTemporal(a.o.Joiner.Dequeue(ctx, in))
}

// Requeue changes a claim that waits.
func (a *Activities) Requeue(ctx context.Context, in WaitingClaim) error {
	return ToTemporal(a.o.Joiner.Requeue(ctx, in))
}

// DequeueInput names a claim that waits no longer.
type DequeueInput struct{ Job, Run string }
