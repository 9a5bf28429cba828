package stoker

import (
	"context"
	"errors"
	"fmt"
)

// Kind says what the caller of a failed operation should do. Kinds cross
// process borders by name, so names are never changed, only added.
type Kind uint8

// The kinds of errors. Three tables map them: to errno in fuse, to Temporal
// retries in activities, to exit codes in cmd/stoker.
const (
	KindInternal   Kind = iota // our own fault; nothing the caller can do
	KindNotExist               // no such object, dataset, job, shard
	KindInvalid                // the request is wrong and stays wrong
	KindTransient              // try again later: network, 5xx, throttling
	KindBusy                   // another operation holds what this one needs
	KindCorrupt                // bytes do not match their checksum
	KindStale                  // the object is no longer the version asked for
	KindNoSpace                // no capacity for it
	KindDenied                 // not permitted
	KindHeld                   // in use by others (evict, umount, rm)
	KindDeadline               // the user's deadline passed
	KindIncomplete             // not everything is resident
)

var kindNames = [...]string{
	"internal", "notexist", "invalid", "transient", "busy", "corrupt",
	"stale", "nospace", "denied", "held", "deadline", "incomplete",
}

// String returns the name of k as it stands in JSON.
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return "internal"
}

// ParseKind is the inverse of String; unknown names are KindInternal.
func ParseKind(name string) Kind {
	for i, n := range kindNames {
		if n == name {
			return Kind(i)
		}
	}
	return KindInternal
}

// Error is the error type returned across package borders.
type Error struct {
	Op   string // what was tried: "cache.fill", "s3.get"
	Key  string // object, shard, dataset or job, for the message
	Kind Kind   // what the caller should do
	Err  error  // cause; may be nil
}

// Error joins what is known: "op key: cause".
func (e *Error) Error() string {
	s := e.Op
	if e.Key != "" {
		s += " " + e.Key
	}
	if e.Err != nil {
		return s + ": " + e.Err.Error()
	}
	return s + ": " + e.Kind.String()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Errorf makes an Error whose cause is formatted like fmt.Errorf, %w included.
func Errorf(kind Kind, op, key, format string, args ...any) *Error {
	return &Error{Op: op, Key: key, Kind: kind, Err: fmt.Errorf(format, args...)}
}

// KindOf returns the kind of the outermost *Error in err's chain. Ended
// contexts without one are KindTransient (timed out) or KindInternal; ask
// errors.Is(err, context.Canceled) first where cancelling matters.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return KindTransient
	}
	return KindInternal
}
