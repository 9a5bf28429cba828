package activities

import (
	"context"
	"time"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/internal/api"
)

// Scheduler keeps the schedules by which datasets are listed again. Its methods
// may be repeated.
type Scheduler interface {
	// PutSchedule makes or changes the schedule of the entry that was made at a
	// time; every 0 ends it.
	PutSchedule(ctx context.Context, name string, created time.Time, every time.Duration) error
}

// ScheduleInput is how often the entry that was made at a time is to be synced.
type ScheduleInput struct {
	Name    string
	Created time.Time
	Every   time.Duration `json:",omitempty"` // 0 = not on schedule
}

// SetSyncEvery enters it into the registry. An entry that is gone, or was made
// anew since, is NotExist.
func (a *Activities) SetSyncEvery(ctx context.Context, in ScheduleInput) error {
	defer alive(ctx)()
	return ToTemporal(a.changeEntry(ctx, in.Name, in.Created, func(d *manifest.Dataset) bool {
		changed := d.SyncEvery != in.Every
		d.SyncEvery = in.Every
		return changed
	}))
}

// PutSchedule makes, changes or ends a dataset's schedule, as its entry in the
// registry says: none if there is none.
func (a *Activities) PutSchedule(ctx context.Context, name string) error {
	defer alive(ctx)()
	d, _, err := a.o.Store.Dataset(ctx, name)
	if stoker.KindOf(err) == stoker.KindNotExist {
		d, err = &manifest.Dataset{Name: name}, nil
	}
	if err == nil {
		err = a.o.Scheduler.PutSchedule(ctx, name, d.Created, d.SyncEvery)
	}
	return ToTemporal(err)
}

// SyncTarget is what a scheduled sync lists.
type SyncTarget struct {
	Roots []manifest.Root
	Base  stoker.ID `json:",omitzero"`
	// Gone: the entry is not there any more, or has no schedule.
	Gone bool `json:",omitempty"`
}

// SyncTarget looks up what a schedule is for.
func (a *Activities) SyncTarget(ctx context.Context, in ScheduleInput) (SyncTarget, error) {
	defer alive(ctx)()
	d, _, err := a.o.Store.Dataset(ctx, in.Name)
	switch {
	case stoker.KindOf(err) == stoker.KindNotExist && err != nil, err == nil && (!d.Created.Equal(in.Created) || d.SyncEvery == 0):
		return SyncTarget{Gone: true}, nil
	case err != nil:
		return SyncTarget{}, ToTemporal(err)
	}
	return SyncTarget{Roots: d.Roots, Base: d.Current().Manifest}, nil
}

// SyncFailedInput is a sync that failed, and why.
type SyncFailedInput struct {
	Name  string
	At    time.Time
	Error api.ErrorBody
}

// maxWhy bounds what the registry keeps of an error.
const maxWhy = 2000

// SyncFailed enters why the last sync of a dataset failed. One that is gone
// needs no entry.
func (a *Activities) SyncFailed(ctx context.Context, in SyncFailedInput) error {
	defer alive(ctx)()
	err := a.changeEntry(ctx, in.Name, time.Time{}, func(d *manifest.Dataset) bool {
		d.LastSync = &manifest.Synced{At: in.At, Kind: in.Error.Kind, Message: in.Error.Message[:min(len(in.Error.Message), maxWhy)]}
		return true
	})
	if stoker.KindOf(err) == stoker.KindNotExist {
		return nil
	}
	return ToTemporal(err)
}

// changeEntry changes a registry entry, if change says so. created, unless
// zero, must be the entry's. Somebody else's change in between is Busy.
func (a *Activities) changeEntry(ctx context.Context, name string, created time.Time, change func(*manifest.Dataset) bool) error {
	d, tag, err := a.o.Store.Dataset(ctx, name)
	if err != nil {
		return err
	}
	if !created.IsZero() && !d.Created.Equal(created) {
		return stoker.Errorf(stoker.KindNotExist, "dataset", name, "was removed, and added again since")
	}
	if !change(d) {
		return nil
	}
	err = a.o.Store.UpdateDataset(ctx, d, tag)
	if stoker.KindOf(err) == stoker.KindHeld {
		err = stoker.Errorf(stoker.KindBusy, "dataset", name, "%w", err)
	}
	return err
}
