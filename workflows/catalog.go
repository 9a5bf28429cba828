package workflows

import (
	"time"

	"go.temporal.io/sdk/workflow"

	"stoker.dev"
	"stoker.dev/activities"
	"stoker.dev/cache/manifest"
)

// Catalog lists a new dataset and enters it into the registry. As there is
// one such workflow for each name at a time, nothing else writes that entry.
func Catalog(ctx workflow.Context, d manifest.Dataset) (activities.Frozen, error) {
	f, err := List(ctx, activities.FreezeInput{Roots: d.Roots})
	if err != nil {
		return f, err
	}
	d.Generations = []manifest.Generation{{Number: 1, Manifest: f.Manifest, ListedAt: f.ListedAt, Objects: f.Objects, Bytes: f.Bytes}}
	if err := workflow.ExecuteActivity(working(ctx, 0, 6), do.Register, d).Get(ctx, nil); err != nil || d.SyncEvery == 0 {
		return f, err
	}
	return f, workflow.ExecuteActivity(working(ctx, 0, 6), do.PutSchedule, d.Name).Get(ctx, nil)
}

// List freezes what lies below some roots and registers nothing.
func List(ctx workflow.Context, in activities.FreezeInput) (activities.Frozen, error) {
	var f activities.Frozen
	err := workflow.ExecuteActivity(working(ctx, listSilence, 3), do.Freeze, in).Get(ctx, &f)
	return f, err
}

// SyncInput names a registered dataset that is to be listed again.
type SyncInput struct {
	Name  string
	Roots []manifest.Root
	Base  stoker.ID // of the generation that is current
}

// scheduleVersion guards what a release without schedules does not do.
const scheduleVersion = "sync-schedule"

// Sync lists a dataset again. What changed becomes a new generation; if nothing
// did, the current one stays and is as old as this listing. Why a listing failed
// is kept in the registry, and nothing else of it.
func Sync(ctx workflow.Context, in SyncInput) (activities.Frozen, error) {
	f, err := List(ctx, activities.FreezeInput{Roots: in.Roots, Base: in.Base})
	if err == nil {
		err = workflow.ExecuteActivity(working(ctx, 0, 6), do.Renew, activities.RenewInput{Name: in.Name, Frozen: f}).Get(ctx, &f)
	}
	if err == nil || ctx.Err() != nil || workflow.GetVersion(ctx, scheduleVersion, workflow.DefaultVersion, 1) == workflow.DefaultVersion {
		return f, err
	}
	failed := activities.SyncFailedInput{Name: in.Name, At: workflow.Now(ctx).UTC(), Error: *errorBody(err)}
	if noted := workflow.ExecuteActivity(working(ctx, 0, 6), do.SyncFailed, failed).Get(ctx, nil); noted != nil {
		workflow.GetLogger(ctx).Error("a failed sync is not noted", "dataset", in.Name, "error", noted)
	}
	return f, err
}

// RemoveInput names the entry that is to go: the one made at that time.
type RemoveInput struct {
	Name    string
	Created time.Time
}

// Remove takes a dataset's name out of the registry, and ends its schedule.
func Remove(ctx workflow.Context, in RemoveInput) (activities.Frozen, error) {
	scheduled := workflow.GetVersion(ctx, scheduleVersion, workflow.DefaultVersion, 1) != workflow.DefaultVersion
	err := workflow.ExecuteActivity(working(ctx, 0, 6), do.Unregister, activities.UnregisterInput{Name: in.Name, Created: in.Created}).Get(ctx, nil)
	if err == nil && scheduled {
		err = workflow.ExecuteActivity(working(ctx, 0, 6), do.PutSchedule, in.Name).Get(ctx, nil)
	}
	return activities.Frozen{}, err
}
