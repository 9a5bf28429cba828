package activities

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/temporal"

	"stoker.dev"
)

// crossed is what an error looks like on the other side of Temporal.
func crossed(err error) error {
	c := temporal.GetDefaultFailureConverter()
	return fmt.Errorf("activity error (type: LoadPart): %w", c.FailureToError(c.ErrorToFailure(err)))
}

// Each kind crosses Temporal, with its text, and Temporal repeats what may
// succeed.
func TestKindsCrossTemporal(t *testing.T) {
	repeated := map[stoker.Kind]bool{stoker.KindTransient: true, stoker.KindBusy: true, stoker.KindInternal: true}
	for k := stoker.KindInternal; k <= stoker.KindIncomplete; k++ {
		t.Run(k.String(), func(t *testing.T) {
			told := ToTemporal(fmt.Errorf("load: %w", stoker.Errorf(k, "op", "key", "cause")))
			var app *temporal.ApplicationError
			if !errors.As(crossed(told), &app) || app.NonRetryable() == repeated[k] {
				t.Errorf("non-retryable: %v", app.NonRetryable())
			}
			back := FromTemporal("workflow", "", crossed(told))
			if stoker.KindOf(back) != k || back.Error() != "load: op key: cause" {
				t.Errorf("%s: %v", stoker.KindOf(back), back)
			}
		})
	}
	if len(repeated) != 3 || stoker.KindIncomplete.String() != "incomplete" {
		t.Error("kinds were added: enter them into the table")
	}
}

func TestOtherErrorsCrossTemporal(t *testing.T) {
	own := stoker.Errorf(stoker.KindHeld, "evict", "d", "is held")
	for name, c := range map[string]struct {
		err    error
		kind   stoker.Kind
		text   string
		cancel bool
	}{
		"it never crossed":       {err: own, kind: stoker.KindHeld, text: "evict d: is held"},
		"a plain error":          {err: errors.New("boom"), kind: stoker.KindInternal, text: "op key: boom"},
		"a plain one that did":   {err: crossed(errors.New("boom")), kind: stoker.KindInternal, text: "boom"},
		"a kind of the future":   {err: crossed(temporal.NewApplicationError("new", "frozen")), kind: stoker.KindInternal, text: "new"},
		"heartbeats missed":      {err: crossed(temporal.NewHeartbeatTimeoutError()), kind: stoker.KindTransient, text: "op key: no end in time: heartbeat timeout"},
		"no time":                {err: crossed(temporal.NewTimeoutError(enums.TIMEOUT_TYPE_START_TO_CLOSE, nil)), kind: stoker.KindTransient},
		"cancelled":              {err: context.Canceled, cancel: true},
		"cancelled there":        {err: crossed(temporal.NewCanceledError()), cancel: true},
		"cancelled, and wrapped": {err: fmt.Errorf("get: %w", context.Canceled), cancel: true},
	} {
		t.Run(name, func(t *testing.T) {
			got := FromTemporal("op", "key", c.err)
			if errors.Is(got, context.Canceled) != c.cancel {
				t.Fatalf("%v", got)
			}
			if !c.cancel && (stoker.KindOf(got) != c.kind || c.text != "" && got.Error() != c.text) {
				t.Errorf("%s: %q", stoker.KindOf(got), got)
			}
		})
	}
	if ToTemporal(nil) != nil || FromTemporal("", "", nil) != nil {
		t.Error("no error became one")
	}
	if err := ToTemporal(fmt.Errorf("x: %w", context.Canceled)); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled activity fails: %v", err)
	}
}
