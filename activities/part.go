package activities

import (
	"context"
	"time"

	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/temporal"

	"stoker.dev"
	"stoker.dev/internal/api"
)

// PartInput is one worker's part of a plan.
type PartInput struct {
	Plan stoker.ID
	Part int
	// Copies: others have its shards, and only from them they come.
	Copies bool          `json:",omitempty"`
	Had    int64         `json:",omitempty"` // bytes that an earlier life of the worker had of it; see PartLoaded
	Told   api.LoadSpent `json:",omitzero"`  // what was counted of those lives; see PartLoaded
}

// PartLoaded is what loading it cost.
type PartLoaded struct {
	UFSRequests int64 `json:",omitempty"`
	UFSBytes    int64 `json:",omitempty"`
	Refetched   api.Refetched
	Failed      int           `json:",omitempty"` // objects
	Lost        bool          `json:",omitempty"` // the worker went away
	Had         int64         `json:",omitempty"` // Lost: bytes that it had, as far as it was heard
	Told        api.LoadSpent `json:",omitzero"`  // Lost: what it had spent, as far as it was heard and stands in the sums
	Evicted     int64         `json:",omitempty"` // of Refetched.Lost, what went although the worker lived
}

const (
	lostTries = 3                      // in a row that a worker does not answer before it is lost
	lostPause = 400 * time.Millisecond // between them
)

// LoadPart drives one worker's load to its end. Its heartbeats carry what it
// has cost so far. It may be repeated: the worker goes on from what is on its
// disk, or was never disturbed: a Temporal that is away for a while, or a
// controller that is stopped, ends this try and not the load. A worker that does not answer, three times within about a second, ends
// it without an error, as Lost.
func (a *Activities) LoadPart(ctx context.Context, in PartInput) (PartLoaded, error) {
	plan, err := a.LoadPlan(ctx, in.Plan)
	if err != nil {
		return PartLoaded{}, ToTemporal(err)
	}
	if in.Part < 0 || in.Part >= len(plan.Workers) {
		return PartLoaded{}, ToTemporal(stoker.Errorf(stoker.KindInvalid, "load", in.Plan.Short(), "no part %d", in.Part))
	}
	t := partTally{Last: api.LoadProgress{StartBytes: in.Had}, Told: in.Told}
	if in.Told.Run != "" {
		t.Last.Earlier = &in.Told
	}
	if activity.HasHeartbeatDetails(ctx) {
		var told partTally
		if activity.GetHeartbeatDetails(ctx, &told) == nil {
			t = told
		}
	}
	log := a.o.Log.With("dataset", plan.Dataset, "manifest", plan.Manifest.Short(), "plan", in.Plan.Short(), "worker", plan.Workers[in.Part].ID)
	for try := 1; ; try++ {
		err := a.drive(ctx, a.addressOf(ctx, plan.Workers[in.Part]), in, func(p api.LoadProgress) {
			try = 1
			t.hear(p)
			activity.RecordHeartbeat(ctx, t)
		})
		switch {
		case err == nil:
			return t.sum(false), nil
		case ctx.Err() != nil:
			if !unheard(ctx) { // nobody needs it any more
				a.stopPart(context.WithoutCancel(ctx), plan.Workers[in.Part].Address, in)
			}
			return PartLoaded{}, ended(ctx)
		case stoker.KindOf(err) != stoker.KindTransient:
			return PartLoaded{}, ToTemporal(err)
		case try >= lostTries:
			log.Warn("a worker went away in mid-load", "error", err)
			return t.sum(true), nil
		}
		activity.RecordHeartbeat(ctx, t)
		select {
		case <-ctx.Done():
		case <-time.After(lostPause):
		}
	}
}

// unheard reports whether an activity's context ended though Temporal has not
// cancelled it: its heartbeats did not arrive in time, or its controller is
// being stopped.
func unheard(ctx context.Context) bool {
	return ctx.Err() != nil && !temporal.IsCanceledError(context.Cause(ctx))
}

// ended is the error of an activity whose context has ended: another try
// follows, unless it was cancelled.
func ended(ctx context.Context) error {
	if unheard(ctx) {
		return ToTemporal(stoker.Errorf(stoker.KindTransient, "activity", "", "Temporal does not hear of it, or its controller is being stopped: %v", context.Cause(ctx)))
	}
	return ctx.Err()
}

// drive follows one load on one worker.
func (a *Activities) drive(ctx context.Context, address string, in PartInput, each func(api.LoadProgress)) error {
	w, err := a.Worker(address)
	if err != nil {
		return err
	}
	load := w.Load
	if in.Copies {
		load = w.LoadCopies
	}
	p, err := load(ctx, in.Plan, in.Part, each)
	if err == nil {
		each(p)
	}
	return err
}

func (a *Activities) stopPart(ctx context.Context, address string, in PartInput) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if w, err := a.Worker(address); err == nil {
		_ = w.StopLoad(ctx, in.Plan, in.Part) // GiveBack does it again
	}
}

// partTally counts one part over the lives of its worker.
type partTally struct {
	Before PartLoaded       // by lives of which the present one does not know
	Last   api.LoadProgress // of the present one
	Told   api.LoadSpent    `json:",omitzero"` // of that, what an activity before this one has counted
}

// hear takes in what the worker says. A new run of the load goes on with what the
// runs before it spent, if the worker has kept that. Else it begins with what is on
// its disk; what the one before had, and is not there, was lost.
func (t *partTally) hear(p api.LoadProgress) {
	p.Failed = nil
	if was := t.Last.Spent(); p.Spent().Run != was.Run {
		had := t.had()
		t.Before = t.sum(false)
		t.Before.Refetched.Lost += max(0, had-p.StartBytes)
		t.Told = api.LoadSpent{}
	}
	t.Last = p
}

func (t *partTally) sum(lost bool) PartLoaded {
	s, spent := t.Before, t.Last.Spent()
	s.UFSRequests += spent.UFSRequests - t.Told.UFSRequests
	s.UFSBytes += spent.UFSBytes - t.Told.UFSBytes
	s.Refetched.Add(spent.Refetched)
	s.Refetched.Sub(t.Told.Refetched)
	s.Evicted += spent.Refetched.Lost - spent.Died - t.Told.Refetched.Lost + t.Told.Died
	s.Failed = t.Last.FailedObjects
	if s.Lost = lost; lost {
		s.Had, s.Told = t.had(), spent
	}
	return s
}

// had is what the worker has on its disk, or had on its way there.
func (t *partTally) had() int64 {
	return t.Last.StartBytes + t.Last.UFSBytes - t.Last.Refetched.Retry - t.Last.Refetched.Hedge - t.Last.Refetched.Lost
}

// AwaitInput waits for a lost worker.
type AwaitInput struct {
	Plan  stoker.ID
	Part  int
	Until time.Time
}

// AwaitReturn waits until the worker of a part answers again, and reports
// whether it did so in time.
func (a *Activities) AwaitReturn(ctx context.Context, in AwaitInput) (bool, error) {
	plan, err := a.LoadPlan(ctx, in.Plan)
	if err != nil {
		return false, ToTemporal(err)
	}
	want := plan.Workers[in.Part]
	for {
		w, err := a.Worker(a.addressOf(ctx, want))
		if err != nil {
			return false, ToTemporal(err)
		}
		ask, cancel := context.WithTimeout(ctx, 2*time.Second)
		v, err := w.Version(ask)
		cancel()
		switch {
		case err == nil && v.ID == want.ID:
			return true, nil
		case ctx.Err() != nil:
			return false, ended(ctx)
		case time.Now().After(in.Until):
			return false, nil
		}
		activity.RecordHeartbeat(ctx)
		select {
		case <-ctx.Done():
		case <-time.After(lostPause):
		}
	}
}
