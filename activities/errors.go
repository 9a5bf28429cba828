package activities

import (
	"context"
	"errors"
	"time"

	"go.temporal.io/sdk/temporal"

	"stoker.dev"
)

// Retry is the policy of every activity: Temporal repeats what may succeed,
// a bounded number of times.
var Retry = temporal.RetryPolicy{InitialInterval: time.Second, BackoffCoefficient: 2, MaximumInterval: 10 * time.Second, MaximumAttempts: 6}

// retryable is the one table from kinds to Temporal's retries.
func retryable(k stoker.Kind) bool {
	switch k {
	case stoker.KindTransient, stoker.KindBusy, stoker.KindInternal:
		return true
	default: // NotExist, Invalid, Corrupt, Stale, NoSpace, Denied, Held, Deadline, Incomplete stay so
		return false
	}
}

// ToTemporal makes an error that crosses Temporal with its kind.
func ToTemporal(err error) error {
	if err == nil || errors.Is(err, context.Canceled) {
		return err
	}
	k := stoker.KindOf(err)
	if retryable(k) {
		return temporal.NewApplicationError(err.Error(), k.String())
	}
	return temporal.NewNonRetryableApplicationError(err.Error(), k.String(), nil)
}

// FromTemporal is its inverse: whatever Temporal wrapped around the error is
// taken off. Time-outs and lost workers are Transient.
func FromTemporal(op, key string, err error) error {
	var app *temporal.ApplicationError
	var timeout *temporal.TimeoutError
	var own *stoker.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &own): // it never crossed
		return err
	case temporal.IsCanceledError(err), errors.Is(err, context.Canceled):
		return context.Canceled
	case errors.As(err, &app):
		return &toldError{stoker.Error{Op: op, Key: key, Kind: stoker.ParseKind(app.Type()), Err: errors.New(app.Message())}}
	case errors.As(err, &timeout):
		return stoker.Errorf(stoker.KindTransient, op, key, "no end in time: %s", timeout.Message())
	default:
		return stoker.Errorf(stoker.KindInternal, op, key, "%w", err)
	}
}

// toldError has the text of the error that was told, and nothing before it.
type toldError struct{ inner stoker.Error }

func (e *toldError) Error() string { return e.inner.Err.Error() }
func (e *toldError) Unwrap() error { return &e.inner }
