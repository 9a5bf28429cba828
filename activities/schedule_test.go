package activities

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"stoker.dev"
	"stoker.dev/cache/manifest"
	"stoker.dev/internal/api"
)

// turns notes what becomes of schedules.
type turns []string

func (t *turns) PutSchedule(_ context.Context, name string, created time.Time, every time.Duration) error {
	*t = append(*t, fmt.Sprint(name, " ", created.Unix(), " ", every))
	return nil
}

// A schedule is what the registry says, whoever puts it there and however often;
// how a sync ended is kept until the next one.
func TestScheduleFollowsTheRegistry(t *testing.T) {
	c := newCluster(t, 0)
	var done turns
	c.o.Scheduler = &done
	made := time.Unix(1000, 0).UTC()
	d := manifest.Dataset{Name: "d", Owner: "o", Created: made, Generations: []manifest.Generation{{Number: 1, Manifest: stoker.ID{1}, ListedAt: made}}}
	if err := c.Register(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	in := ScheduleInput{Name: "d", Created: made, Every: time.Hour}
	if target, err := c.SyncTarget(t.Context(), in); err != nil || !target.Gone {
		t.Errorf("a schedule that was ended: %+v, %v", target, err)
	}
	for range 2 { // activities may run twice
		if err := c.SetSyncEvery(t.Context(), in); err != nil {
			t.Fatal(err)
		}
		if err := c.PutSchedule(t.Context(), "d"); err != nil {
			t.Fatal(err)
		}
	}
	if target, err := c.SyncTarget(t.Context(), in); err != nil || target.Gone || target.Base != (stoker.ID{1}) {
		t.Errorf("%+v, %v", target, err)
	}
	other := ScheduleInput{Name: "d", Created: made.Add(time.Second), Every: time.Minute}
	if err := FromTemporal("", "", c.SetSyncEvery(t.Context(), other)); stoker.KindOf(err) != stoker.KindNotExist {
		t.Errorf("of an entry that was made anew: %v", err)
	}
	if target, err := c.SyncTarget(t.Context(), other); err != nil || !target.Gone {
		t.Errorf("%+v, %v", target, err)
	}
	if err := c.PutSchedule(t.Context(), "nothing"); err != nil {
		t.Fatal(err)
	}
	if want := []string{"d 1000 1h0m0s", "d 1000 1h0m0s"}; !slices.Equal(done[:2], want) || !strings.HasSuffix(done[2], " 0s") {
		t.Errorf("schedules: %q", done)
	}

	why := api.ErrorBody{Kind: "denied", Message: strings.Repeat("no ", 1000)}
	if err := c.SyncFailed(t.Context(), SyncFailedInput{Name: "d", At: made.Add(time.Minute), Error: why}); err != nil {
		t.Fatal(err)
	}
	if err := c.SyncFailed(t.Context(), SyncFailedInput{Name: "nothing", Error: why}); err != nil {
		t.Fatal(err)
	}
	got, _, err := c.o.Store.Dataset(t.Context(), "d")
	if err != nil || got.LastSync == nil || got.LastSync.Kind != "denied" || len(got.LastSync.Message) != maxWhy || got.SyncEvery != time.Hour || got.Current().Number != 1 {
		t.Fatalf("%+v, %v", got, err)
	}
	same := RenewInput{"d", Frozen{Manifest: stoker.ID{1}, ListedAt: made}} // not newer, but it did succeed
	if f, err := c.Renew(t.Context(), same); err != nil || !f.Unchanged {
		t.Fatal(f, err)
	}
	if got, _, err = c.o.Store.Dataset(t.Context(), "d"); err != nil || got.LastSync.Kind != "" || len(got.Generations) != 1 {
		t.Errorf("%+v, %v", got.LastSync, err)
	}
}
