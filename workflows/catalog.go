package workflows

import (
	"go.temporal.io/sdk/workflow"

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
