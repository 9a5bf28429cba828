// Package mounts opens locations: it knows which driver serves which URI
// scheme, puts a guard in front of each, and opens each store once. A Mounts
// may be used from any goroutine.
package mounts

import (
	"context"
	"regexp"
	"slices"
	"strings"
	"sync"

	"stoker.dev"
	"stoker.dev/ufs"
	"stoker.dev/ufs/guard"
	"stoker.dev/ufs/s3ufs"
)

// Options tune the guards.
type Options struct {
	Guard guard.Options
}

// opener makes the driver of one store.
type opener func(ctx context.Context, store string, l ufs.Location) (ufs.FS, error)

// Mounts opens locations and keeps them open.
type Mounts struct {
	o       Options
	openers map[string]opener

	mu   sync.Mutex
	open map[ufs.Location]*guard.FS // +checklocks:mu — by location with the URI cut to its store
}

// New knows all schemes that are built in.
func New(o Options) *Mounts {
	m := &Mounts{o: o, open: map[ufs.Location]*guard.FS{}, openers: map[string]opener{}}
	m.Register("s3", func(ctx context.Context, bucket string, l ufs.Location) (ufs.FS, error) {
		return s3ufs.Open(ctx, s3ufs.Options{Bucket: bucket, Location: l})
	})
	return m
}

// Register adds a scheme. It must not be called after the first Open.
func (m *Mounts) Register(scheme string, open func(ctx context.Context, store string, l ufs.Location) (ufs.FS, error)) {
	m.openers[scheme] = open
}

// storeName is what a bucket or a host:port is made of. What it keeps out above
// all is user:password@.
var storeName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:-]*$`)

// ParseURI splits scheme://store[/prefix]. prefix is "" or ends in "/".
func ParseURI(uri string) (scheme, store, prefix string, err error) {
	scheme, rest, ok := strings.Cut(uri, "://")
	store, prefix, _ = strings.Cut(rest, "/")
	switch {
	case !ok || scheme == "":
		return "", "", "", stoker.Errorf(stoker.KindInvalid, "uri", uri, "is no URI: write s3://bucket/prefix")
	case store == "":
		return "", "", "", stoker.Errorf(stoker.KindInvalid, "uri", uri, "names no bucket: write %s://bucket/prefix", scheme)
	case strings.Contains(store, "@"): // not shown: it may be a secret
		return "", "", "", stoker.Errorf(stoker.KindInvalid, "uri", scheme+"://…", "holds credentials: the daemons have them, name them with --profile")
	case !storeName.MatchString(store):
		return "", "", "", stoker.Errorf(stoker.KindInvalid, "uri", uri, "%q is no name of a bucket: write %s://bucket/prefix", store, scheme)
	}
	if prefix = strings.Trim(prefix, "/"); prefix != "" {
		prefix += "/"
	}
	return scheme, store, prefix, nil
}

// Open returns the guarded file system of a location, and the prefix of its
// keys there. It checks the URI and the configuration, not whether the store
// answers.
func (m *Mounts) Open(ctx context.Context, l ufs.Location) (ufs.FS, string, error) {
	// Before the rules that the known schemes have: file:///folder is no s3 URI without a bucket.
	if scheme, _, ok := strings.Cut(l.URI, "://"); ok && m.openers[scheme] == nil {
		return nil, "", stoker.Errorf(stoker.KindInvalid, "uri", scheme+"://…", "scheme %q is not known; these are: %s", scheme, strings.Join(m.schemes(), ", "))
	}
	scheme, store, prefix, err := ParseURI(l.URI)
	if err != nil {
		return nil, "", err
	}
	at := l
	at.URI = scheme + "://" + store
	m.mu.Lock()
	defer m.mu.Unlock()
	if fs := m.open[at]; fs != nil {
		return fs, prefix, nil
	}
	fs, err := m.openers[scheme](ctx, store, at)
	if err != nil {
		return nil, "", err
	}
	g := guard.New(fs, m.o.Guard)
	m.open[at] = g
	return g, prefix, nil
}

// InFlight adds up, over all stores that are open, how many data requests may
// be in flight at present, and how many are.
func (m *Mounts) InFlight() (limit, now int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, g := range m.open {
		l, n := g.InFlight()
		limit, now = limit+l, now+n
	}
	return limit, now
}

func (m *Mounts) schemes() []string {
	var names []string
	for s := range m.openers {
		names = append(names, s)
	}
	slices.Sort(names)
	return names
}
