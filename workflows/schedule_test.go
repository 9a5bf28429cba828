package workflows

import (
	"testing"
	"time"

	"go.temporal.io/sdk/converter"
	"go.temporal.io/sdk/workflow"

	"stoker.dev"
	"stoker.dev/activities"
	"stoker.dev/cache/manifest"
)

// serveCatalog fakes what lists, and what changes the registry.
func (w *world) serveCatalog() {
	serve(w, "Freeze", func(n int, _ activities.FreezeInput) (activities.Frozen, error) {
		return activities.Frozen{Manifest: id(9)}, w.list(n)
	})
	serve(w, "Register", func(int, manifest.Dataset) (struct{}, error) { return struct{}{}, nil })
	serve(w, "Renew", func(_ int, in activities.RenewInput) (activities.Frozen, error) { return in.Frozen, nil })
	serve(w, "Unregister", func(int, activities.UnregisterInput) (struct{}, error) { return struct{}{}, nil })
	serve(w, "SetSyncEvery", func(int, activities.ScheduleInput) (struct{}, error) { return struct{}{}, nil })
	serve(w, "PutSchedule", func(int, string) (struct{}, error) { return struct{}{}, nil })
	serve(w, "SyncFailed", func(int, activities.SyncFailedInput) (struct{}, error) { return struct{}{}, nil })
	serve(w, "SyncTarget", func(_ int, in activities.ScheduleInput) (activities.SyncTarget, error) {
		return activities.SyncTarget{Base: id(1), Roots: []manifest.Root{{Folder: "f"}}, Gone: in.Name == "gone"}, nil
	})
}

// A schedule's turn is a sync like everybody's, in the place where the one
// changer of the entry stands.
func TestScheduledSync(t *testing.T) {
	w := newWorld(t)
	var child string
	w.SetOnChildWorkflowStartedListener(func(info *workflow.Info, _ workflow.Context, _ converter.EncodedValues) {
		child = info.WorkflowExecution.ID
	})
	w.ExecuteWorkflow(scheduledWorkflow, activities.ScheduleInput{Name: "data"}, "c")
	w.finished()
	if got := w.story(); got != "SyncTarget Freeze Renew" || child != "catalog-c-data" {
		t.Errorf("%s, as %q", got, child)
	}
	if in := inputsOf[activities.FreezeInput](w, "Freeze"); len(in) != 1 || in[0].Base != id(1) || in[0].Roots[0].Folder != "f" {
		t.Errorf("it lists %+v", in)
	}
}

// A schedule whose dataset is gone ends itself and lists nothing.
func TestScheduleOfNothingEndsItself(t *testing.T) {
	w := newWorld(t)
	w.ExecuteWorkflow(scheduledWorkflow, activities.ScheduleInput{Name: "gone"}, "c")
	w.finished()
	if got := w.story(); got != "SyncTarget PutSchedule" {
		t.Error(got)
	}
}

// A listing that fails makes no generation; why it did is noted, and told to
// whoever asked.
func TestFailedSyncIsNoted(t *testing.T) {
	w := newWorld(t)
	w.list = func(int) error { return stoker.Errorf(stoker.KindDenied, "list", "s3://b", "the key is not known") }
	w.ExecuteWorkflow(scheduledWorkflow, activities.ScheduleInput{Name: "data"}, "c")
	if err := activities.FromTemporal("", "", w.GetWorkflowError()); stoker.KindOf(err) != stoker.KindDenied {
		t.Errorf("it ends with %v", err)
	}
	if got := w.story(); got != "SyncTarget Freeze SyncFailed" {
		t.Error(got)
	}
	in := inputsOf[activities.SyncFailedInput](w, "SyncFailed")
	if len(in) != 1 || in[0].Name != "data" || in[0].Error.Kind != "denied" || in[0].At.IsZero() {
		t.Errorf("noted is %+v", in)
	}
}

// What is set stands in the registry before Temporal acts on it; an add sets it
// with the entry, a remove ends it after.
func TestScheduleIsSet(t *testing.T) {
	for name, c := range map[string]struct {
		kind string
		in   any
		want string
	}{
		"set":                   {scheduleWorkflow, activities.ScheduleInput{Name: "data", Every: time.Hour}, "SetSyncEvery PutSchedule"},
		"added with one":        {catalogWorkflow, manifest.Dataset{Name: "data", SyncEvery: time.Hour}, "Freeze Register PutSchedule"},
		"added without":         {catalogWorkflow, manifest.Dataset{Name: "data"}, "Freeze Register"},
		"removed":               {removeWorkflow, RemoveInput{Name: "data"}, "Unregister PutSchedule"},
		"a sync that succeeded": {syncWorkflow, SyncInput{Name: "data"}, "Freeze Renew"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.ExecuteWorkflow(c.kind, c.in)
			w.finished()
			if got := w.story(); got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}

// Datasets have their turns at different times, and each always at its own.
func TestScheduleOfADataset(t *testing.T) {
	c := &Client{cluster: "c"}
	offsets := map[time.Duration]bool{}
	for _, name := range []string{"a", "b", "cats", "dogs"} {
		o := c.schedule(name, time.Time{}, 10*time.Minute)
		iv := o.Spec.Intervals[0]
		if o.ID != "sync-c-"+name || iv.Every != 10*time.Minute || iv.Offset < 0 || iv.Offset >= iv.Every || iv.Offset != c.schedule(name, time.Time{}, 10*time.Minute).Spec.Intervals[0].Offset {
			t.Errorf("%s: %+v", name, o)
		}
		offsets[iv.Offset] = true
	}
	if len(offsets) < 4 {
		t.Errorf("%d different offsets", len(offsets))
	}
}
