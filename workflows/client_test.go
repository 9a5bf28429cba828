package workflows

import (
	"context"
	"errors"
	"testing"

	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/temporal"

	"stoker.dev"
)

// A Temporal that stops in mid-call is away for a while; a call that its own
// caller gave up, and what Temporal says by type, are what they were.
func TestCallsOfAStoppingTemporal(t *testing.T) {
	c := &Client{address: "temporal:7233"}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	for _, x := range []struct {
		ctx  context.Context
		err  error
		want stoker.Kind
	}{
		{t.Context(), errors.New("context canceled"), stoker.KindTransient},
		{t.Context(), context.Canceled, stoker.KindTransient},
		{t.Context(), serviceerror.NewUnavailable("stopping"), stoker.KindTransient},
		{t.Context(), serviceerror.NewNotFound("no such workflow"), stoker.KindNotExist},
		{t.Context(), serviceerror.NewCanceled("context canceled"), stoker.KindTransient},
		{t.Context(), temporal.NewNonRetryableApplicationError("gone", stoker.KindStale.String(), nil), stoker.KindStale},
		{t.Context(), serviceerror.NewInvalidArgument("wrong"), stoker.KindInternal},
	} {
		if got := c.told(x.ctx, "job", "j", x.err); stoker.KindOf(got) != x.want {
			t.Errorf("%T %v: %v, want %v", x.err, x.err, got, x.want)
		}
	}
	if got := c.told(t.Context(), "job", "j", temporal.NewCanceledError()); got != context.Canceled {
		t.Errorf("a workflow that was cancelled: %v", got)
	}
	if got := c.told(over, "job", "j", context.Canceled); !errors.Is(got, context.Canceled) {
		t.Errorf("given up by its caller: %v", got)
	}
}
