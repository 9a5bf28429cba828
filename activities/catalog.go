package activities

import (
	"context"
	"errors"
	"os"
	"sync/atomic"
	"time"

	"go.temporal.io/sdk/activity"

	"stoker.dev"
	"stoker.dev/cache/listing"
	"stoker.dev/cache/manifest"
	"stoker.dev/internal/api"
)

// FreezeInput names what is to be listed.
type FreezeInput struct {
	Roots []manifest.Root
	Base  stoker.ID `json:",omitzero"`
}

// Frozen is a stored manifest.
type Frozen struct {
	Manifest stoker.ID
	Objects  int64
	Bytes    int64
	ListedAt time.Time
	// Unchanged: a sync found what the current generation has.
	Unchanged bool `json:",omitempty"`
}

// Freeze lists all roots and stores the manifest. Its heartbeats carry
// api.ListProgress. A try that follows one whose controller died goes on where
// that one's journal ends.
func (a *Activities) Freeze(ctx context.Context, in FreezeInput) (Frozen, error) {
	at := activity.GetInfo(ctx)
	journal := a.o.Store.Journal(at.WorkflowExecution.ID+" "+at.WorkflowExecution.RunID+" "+at.ActivityID, listing.JournalOptions{})
	run, done := untilStopped(ctx)
	defer done()
	f, err := a.freeze(run, in, journal)
	if err != nil && ctx.Err() == nil && errors.Is(context.Cause(run), errStopped) {
		return f, ToTemporal(stoker.Errorf(stoker.KindTransient, "list", in.Roots[0].URI, "%w", errStopped))
	}
	if jerr := journal.Err(); jerr != nil && ctx.Err() == nil {
		a.o.Log.Warn("a listing was not journalled to its end", "dataset", in.Roots[0].URI, "err", jerr)
	}
	if err == nil || ctx.Err() == nil && !retryable(stoker.KindOf(err)) { // no other try comes
		if jerr := journal.Remove(ctx); jerr != nil {
			a.o.Log.Warn("the journal of a listing is left behind", "dataset", in.Roots[0].URI, "err", jerr)
		}
	}
	return f, ToTemporal(err)
}

func (a *Activities) freeze(ctx context.Context, in FreezeInput, journal *listing.Journal) (Frozen, error) {
	var last atomic.Pointer[api.ListProgress]
	last.Store(&api.ListProgress{})
	stop := telling(ctx, &last)
	defer stop()
	b, err := manifest.Build(ctx, manifest.BuildOptions{
		Roots: in.Roots, Base: in.Base, Open: a.o.Open, TempDir: a.o.TempDir, Journal: journal,
		Progress: func(objects, bytes, pages int64) {
			p := &api.ListProgress{Objects: objects, Bytes: bytes, Pages: pages}
			last.Store(p)
			activity.RecordHeartbeat(ctx, *p)
		},
	})
	if err != nil {
		return Frozen{}, err
	}
	defer os.Remove(b.Path) // unless it was stored, which takes it away
	if b.Objects == 0 && len(b.Unmountable) == 0 {
		return Frozen{}, stoker.Errorf(stoker.KindNotExist, "dataset", in.Roots[0].URI, "nothing is stored there: check the bucket and the prefix")
	}
	if err := a.o.Store.Put(ctx, b); err != nil {
		return Frozen{}, err
	}
	return Frozen{Manifest: b.ID, Objects: b.Objects, Bytes: b.Bytes, ListedAt: b.ListedTo.UTC()}, nil
}

// Register enters a dataset with its first generation. A repetition that
// finds its own entry is fine.
func (a *Activities) Register(ctx context.Context, d manifest.Dataset) error {
	defer alive(ctx)()
	err := a.register(ctx, d)
	if err == nil && len(d.Readers) > 0 {
		err = a.o.Store.SyncRestrictions(ctx)
	}
	return ToTemporal(err)
}

func (a *Activities) register(ctx context.Context, d manifest.Dataset) error {
	err := a.o.Store.CreateDataset(ctx, &d)
	if stoker.KindOf(err) == stoker.KindHeld {
		there, _, gerr := a.o.Store.Dataset(ctx, d.Name)
		if gerr == nil && there.Created.Equal(d.Created) && there.Owner == d.Owner && there.Current().Manifest == d.Current().Manifest {
			return nil
		}
		if gerr == nil && d.Nonce != "" && there.Nonce == d.Nonce && there.Owner == d.Owner {
			return nil // the request was repeated just when its first listing ended
		}
		err = stoker.Errorf(stoker.KindInvalid, "dataset", d.Name, "is registered already ('stoker dataset show %s'); take another name", d.Name)
	}
	return err
}

// RenewInput is a new listing of a registered dataset.
type RenewInput struct {
	Name string
	Frozen
}

// Renew enters a new listing as the current generation, unless nothing has
// changed: then the current one is as old as the listing. It may be repeated.
func (a *Activities) Renew(ctx context.Context, in RenewInput) (Frozen, error) {
	defer alive(ctx)()
	d, tag, err := a.o.Store.Dataset(ctx, in.Name)
	if err != nil {
		return Frozen{}, ToTemporal(err)
	}
	out := in.Frozen
	failed := d.LastSync != nil && d.LastSync.Kind != ""
	d.LastSync = &manifest.Synced{At: in.ListedAt}
	if n := len(d.Generations); n > 0 && d.Generations[n-1].Manifest == in.Manifest {
		out.Unchanged = true
		if !in.ListedAt.After(d.Generations[n-1].ListedAt) && !failed {
			return out, nil
		}
		d.Generations[n-1].ListedAt = in.ListedAt
	} else {
		d.Generations = append(d.Generations, manifest.Generation{Number: d.Current().Number + 1, Manifest: in.Manifest,
			ListedAt: in.ListedAt, Objects: in.Objects, Bytes: in.Bytes})
	}
	err = a.o.Store.UpdateDataset(ctx, d, tag)
	if stoker.KindOf(err) == stoker.KindHeld { // somebody else's change came between: look again
		err = stoker.Errorf(stoker.KindBusy, "dataset", in.Name, "%w", err)
	}
	return out, ToTemporal(err)
}

// UnregisterInput names the entry that was made at a time.
type UnregisterInput struct {
	Name    string
	Created time.Time
}

// Unregister takes an entry out of the registry. One that is gone, or that was
// made anew since, is fine.
func (a *Activities) Unregister(ctx context.Context, in UnregisterInput) error {
	defer alive(ctx)()
	d, _, err := a.o.Store.Dataset(ctx, in.Name)
	if stoker.KindOf(err) == stoker.KindNotExist {
		return nil
	}
	if err == nil && d.Created.Equal(in.Created) {
		err = a.o.Store.RemoveDataset(ctx, in.Name)
		if err == nil && len(d.Readers) > 0 {
			err = a.o.Store.SyncRestrictions(ctx)
		}
	}
	return ToTemporal(err)
}
