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
	return f, workflow.ExecuteActivity(working(ctx, 0, 6), do.Register, d).Get(ctx, nil)
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

// Sync lists a dataset again. What changed becomes a new generation; if nothing
// did, the current one stays and is as old as this listing.
func Sync(ctx workflow.Context, in SyncInput) (activities.Frozen, error) {
	f, err := List(ctx, activities.FreezeInput{Roots: in.Roots, Base: in.Base})
	if err != nil {
		return f, err
	}
	err = workflow.ExecuteActivity(working(ctx, 0, 6), do.Renew, activities.RenewInput{Name: in.Name, Frozen: f}).Get(ctx, &f)
	return f, err
}

// RemoveInput names the entry that is to go: the one made at that time.
type RemoveInput struct {
	Name    string
	Created time.Time
}

// Remove takes a dataset's name out of the registry.
func Remove(ctx workflow.Context, in RemoveInput) (activities.Frozen, error) {
	return activities.Frozen{}, workflow.ExecuteActivity(working(ctx, 0, 6), do.Unregister, activities.UnregisterInput{Name: in.Name, Created: in.Created}).Get(ctx, nil)
}
