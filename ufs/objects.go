package ufs

import (
	"context"
	"io"
	"regexp"

	"stoker.dev"
)

var objectName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._-]*(/[a-zA-Z0-9][a-zA-Z0-9._-]*)*$`)

const maxObjectName = 512

// IsObjectName reports whether a listed name may be one of Objects.
func IsObjectName(name string) bool { return objectName.MatchString(name) }

// CheckObjectName refuses what is no name of Objects: kind Invalid.
func CheckObjectName(name string) error {
	if !IsObjectName(name) || len(name) > maxObjectName {
		return stoker.Errorf(stoker.KindInvalid, "store", name, "not a name: words of letters, digits, '.', '_', '-', with slashes between")
	}
	return nil
}

// Objects is a store of small named objects with conditional writes: what the
// manifest store is kept in. Names are slash-separated words of letters,
// digits, '.', '_' and '-'. Errors are *stoker.Error: NotExist, Held (it
// exists already, or was changed), Invalid, Transient. All methods may be
// called concurrently, by any number of processes.
type Objects interface {
	// Get returns an object and the tag of its content.
	Get(ctx context.Context, name string) (body []byte, tag string, err error)
	// PutIfAbsent writes a new object whole or not at all; Held if it exists.
	PutIfAbsent(ctx context.Context, name string, body []byte) (tag string, err error)
	// ReplaceIf replaces the content that has the tag; Held if it changed.
	ReplaceIf(ctx context.Context, name string, body []byte, tag string) (newTag string, err error)
	// List returns the names that begin with prefix, sorted.
	List(ctx context.Context, prefix string) ([]string, error)
	// Delete removes an object; one that is not there is fine.
	Delete(ctx context.Context, name string) error
}

// ObjectStreams is what Objects may have besides, for large ones.
type ObjectStreams interface {
	// GetTo writes an object to w without holding it in memory. What was
	// written before an error is not to be used.
	GetTo(ctx context.Context, name string, w io.Writer) error
}
