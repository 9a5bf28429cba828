// Package mounts opens locations: it knows which driver serves which URI
// scheme, puts a guard in front of each, and opens each store once. A Mounts
// may be used from any goroutine.
package mounts

import (
	"context"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"

	"stoker.dev"
	"stoker.dev/ufs"
	"stoker.dev/ufs/budget"
	"stoker.dev/ufs/guard"
	"stoker.dev/ufs/posixufs"
	"stoker.dev/ufs/s3ufs"
)

// Options tune the guards and say which folders may be read.
type Options struct {
	Budgets    *budget.Budgets // of the cluster; nil = no limits
	Guard      guard.Options
	AllowFiles []string // folders that file:// locations may lie in; none = no file:// at all
}

// opener makes the driver of one store, or of one folder.
type opener func(ctx context.Context, store string, l ufs.Location) (ufs.FS, error)

// Mounts opens locations and keeps them open.
type Mounts struct {
	o       Options
	openers map[string]opener

	mu   sync.Mutex
	open map[ufs.Location]*guard.FS // +checklocks:mu — by location with the URI cut to its store or folder
	ends map[string]*guard.Endpoint // +checklocks:mu — by name
}

// New knows all schemes that are built in.
func New(o Options) *Mounts {
	m := &Mounts{o: o, open: map[ufs.Location]*guard.FS{}, ends: map[string]*guard.Endpoint{}, openers: map[string]opener{}}
	m.Register("s3", func(ctx context.Context, bucket string, l ufs.Location) (ufs.FS, error) {
		return s3ufs.Open(ctx, s3ufs.Options{Bucket: bucket, Location: l})
	})
	m.Register(fileScheme, func(_ context.Context, _ string, l ufs.Location) (ufs.FS, error) {
		return openFolder(l, o.AllowFiles)
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

const fileScheme = "file"

// openFolder opens a folder. Its keys are its path and theirs below it, as the
// keys of a manifest are.
func openFolder(l ufs.Location, allow []string) (ufs.FS, error) {
	if plain := (ufs.Location{URI: l.URI}); l != plain {
		return nil, stoker.Errorf(stoker.KindInvalid, "uri", l.URI, "a folder has no endpoint, region, profile or other option of a store: leave them out")
	}
	_, _, prefix, err := ParseURI(l.URI)
	if err != nil {
		return nil, err
	}
	return posixufs.Open(posixufs.Options{Folder: "/" + strings.TrimSuffix(prefix, "/"), Prefix: prefix, Allow: allow})
}

// parseFolder reads what follows file://. There is one tree, so no store.
func parseFolder(uri, rest string) (prefix string, err error) {
	if !strings.HasPrefix(rest, "/") || strings.IndexByte(rest, 0) >= 0 {
		return "", stoker.Errorf(stoker.KindInvalid, "uri", uri, "names no absolute folder: write file:///folder, with three slashes")
	}
	if prefix = strings.Trim(rest, "/"); prefix == "" {
		return "", nil
	}
	if path.Clean(prefix) != prefix || prefix == ".." || strings.HasPrefix(prefix, "../") {
		return "", stoker.Errorf(stoker.KindInvalid, "uri", uri, "write the folder without '.', '..' and double slashes: file://%s", path.Clean("/"+prefix))
	}
	return prefix + "/", nil
}

// ParseURI splits scheme://store[/prefix], or file:///prefix, whose store is
// "". prefix is "" or ends in "/".
func ParseURI(uri string) (scheme, store, prefix string, err error) {
	scheme, rest, ok := strings.Cut(uri, "://")
	if ok && scheme == fileScheme {
		prefix, err = parseFolder(uri, rest)
		return scheme, "", prefix, err
	}
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
	open, store, prefix, at, err := m.find(l)
	if err != nil {
		return nil, "", err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if fs := m.open[at]; fs != nil {
		return fs, prefix, nil
	}
	fs, err := open(ctx, store, at)
	if err != nil {
		return nil, "", err
	}
	o := m.o.Guard
	o.Name = endpointOf(fs, at)
	o.Endpoint = m.endpointLocked(o.Name)
	g := guard.New(fs, o)
	m.open[at] = g
	return g, prefix, nil
}

// endpointOf names what a store is reached by: a host, or of a folder the file
// system that it lies in. All stores of one endpoint share its limits.
func endpointOf(fs ufs.FS, at ufs.Location) string {
	if e, ok := fs.(interface{ Endpoint() string }); ok {
		return e.Endpoint()
	}
	return at.URI
}

func (m *Mounts) endpointLocked(name string) *guard.Endpoint {
	e := m.ends[name]
	if e == nil {
		var b *budget.Endpoint
		if m.o.Budgets != nil {
			b = m.o.Budgets.Endpoint(name)
		}
		e = guard.NewEndpoint(m.o.Guard.MaxInFlight, b)
		m.ends[name] = e
	}
	return e
}

// InFlight adds up, over all endpoints that are in use, how many data requests may
// be in flight at present, and how many are.
func (m *Mounts) InFlight() (limit, now int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range m.ends {
		l, n := e.InFlight()
		limit, now = limit+l, now+n
	}
	return limit, now
}

// find returns what opens a location, and the location cut to its store.
func (m *Mounts) find(l ufs.Location) (open opener, store, prefix string, at ufs.Location, err error) {
	// Before the rules that the known schemes have.
	if scheme, _, ok := strings.Cut(l.URI, "://"); ok && m.openers[scheme] == nil {
		return nil, "", "", l, stoker.Errorf(stoker.KindInvalid, "uri", scheme+"://…", "scheme %q is not known; these are: %s", scheme, strings.Join(m.schemes(), ", "))
	}
	scheme, store, prefix, err := ParseURI(l.URI)
	if err != nil {
		return nil, "", "", l, err
	}
	l.URI = scheme + "://" + store
	if scheme == fileScheme { // each folder is a tree of its own
		l.URI += "/" + strings.TrimSuffix(prefix, "/")
	}
	return m.openers[scheme], store, prefix, l, nil
}

// Probe looks at how the store of a location behaves. Nothing is kept of it,
// and nothing is retried.
func (m *Mounts) Probe(ctx context.Context, l ufs.Location) ([]ufs.Finding, error) {
	open, store, prefix, at, err := m.find(l)
	if err != nil {
		return nil, err
	}
	fs, err := open(ctx, store, at)
	if err != nil {
		return nil, err
	}
	p, ok := fs.(ufs.Prober)
	if !ok {
		return nil, stoker.Errorf(stoker.KindInvalid, "probe", at.URI, "stores of this scheme cannot be examined")
	}
	return p.Probe(ctx, prefix), nil
}

func (m *Mounts) schemes() []string {
	var names []string
	for s := range m.openers {
		names = append(names, s)
	}
	slices.Sort(names)
	return names
}
