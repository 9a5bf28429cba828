// Package ufs is the contract with under file systems: the object stores and
// file trees where the data truly lives. Drivers (s3ufs, posixufs, memufs) implement
// FS; package ufstest holds the suite that each of them passes; package guard
// adds retries, limits and counters. All methods of an FS may be called from
// any number of goroutines.
package ufs

import (
	"context"
	"hash"
	"io"
	"time"
)

// Version identifies one content of an object. Tag is the store's own opaque
// token (ETag with its quotes, generation), empty if the store has none.
type Version struct {
	Tag     string
	ModTime time.Time // to the precision the store has; zero if unknown
	Bytes   int64
}

// Same reports whether v and w may be the same content: tags are compared if
// both have one, sizes always, modification times (to the second, as HTTP
// has them) if both have one.
func (v Version) Same(w Version) bool {
	if v.Bytes != w.Bytes {
		return false
	}
	if v.Tag != "" && w.Tag != "" && v.Tag != w.Tag {
		return false
	}
	if !v.ModTime.IsZero() && !w.ModTime.IsZero() && v.ModTime.Unix() != w.ModTime.Unix() {
		return false
	}
	return true
}

// Object is one object as a listing or Stat shows it.
type Object struct {
	Key     string // full key in the store, any bytes
	Version Version
	Exec    bool   // has an executable bit (POSIX trees)
	Link    string // target of a symbolic link (POSIX trees), else ""
	// Unmountable says what it is if it can be no file ("a socket"), else "".
	Unmountable string
}

// Location names a prefix in a store and how to reach it. It never holds a
// secret: Profile is the name of credentials that the daemons have.
type Location struct {
	URI       string `json:"uri"`                 // s3://bucket[/prefix], file:///folder, mem://name[/prefix]
	Endpoint  string `json:"endpoint,omitempty"`  // base URL; "" = the environment's
	Region    string `json:"region,omitempty"`    // "" = the environment's
	PathStyle bool   `json:"pathStyle,omitempty"` // bucket in the path, not in the host
	Anonymous bool   `json:"anonymous,omitempty"` // send no credentials
	Profile   string `json:"profile,omitempty"`   // named credentials; "" = the environment's
}

// ListOptions asks for one page of a listing in key order.
type ListOptions struct {
	Prefix     string // only keys that begin with it
	Delimiter  string // "/" folds deeper keys into Prefixes; "" lists all
	StartAfter string // only keys after it, not in the middle of a folded folder; with Token, ignored
	Token      string // Page.Next of the page before
	MaxKeys    int    // at most so many entries; 0 = the store's own limit
}

// Page is one page of a listing.
type Page struct {
	Objects  []Object
	Prefixes []string // folded keys, ending in the delimiter
	Next     string   // token of the next page, "" at the end
}

// FS is one under file system: one bucket, or one file tree.
//
// Errors are *stoker.Error: NotExist (no such key or bucket), Stale (the
// object is not the version asked for, or changed while it was read), Denied,
// Invalid, Transient (worth another try), Internal. Contexts' own errors are
// returned unwrapped or wrapped with %w.
type FS interface {
	// Stat returns the object as it is now.
	Stat(ctx context.Context, key string) (Object, error)

	// List returns one page. Keys come in byte order across pages.
	List(ctx context.Context, o ListOptions) (Page, error)

	// Open starts a read of exactly length bytes from off (length > 0) of the
	// object's version want. The condition is sent where the store has one,
	// and the response's own version is compared too: if it differs, Open
	// fails with kind Stale and no byte is handed out. The reader returns
	// exactly length bytes, then io.EOF; a body that ends early is an error of
	// kind Transient. The caller closes it.
	Open(ctx context.Context, key string, want Version, off, length int64) (io.ReadCloser, error)
}

// Summed is what a reader of a whole object may implement, if the store sent
// the object's checksum along. Sum returns a new hash, and what it must give
// over all bytes of the object; nil if there is none.
type Summed interface {
	Sum() (h hash.Hash, want []byte)
}
