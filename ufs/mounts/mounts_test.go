package mounts

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"stoker.dev"
	"stoker.dev/ufs"
	"stoker.dev/ufs/budget"
	"stoker.dev/ufs/guard"
	"stoker.dev/ufs/memufs"
)

func TestParseURI(t *testing.T) {
	for _, c := range []struct{ name, uri, scheme, store, prefix string }{
		{"bucket", "s3://bucket", "s3", "bucket", ""},
		{"slash", "s3://bucket/", "s3", "bucket", ""},
		{"prefix", "s3://bucket/a/b", "s3", "bucket", "a/b/"},
		{"prefix with slash", "s3://bucket/a/b/", "s3", "bucket", "a/b/"},
		{"slashes around", "s3://bucket//a//", "s3", "bucket", "a/"},
		{"empty segment inside", "s3://bucket/a//b", "s3", "bucket", "a//b/"},
		{"dots are a key like any other", "s3://bucket/../etc", "s3", "bucket", "../etc/"},
		{"equals, at, question mark, hash in the prefix", "s3://bucket/x=1@2?a#b", "s3", "bucket", "x=1@2?a#b/"},
		{"a URI in the prefix", "s3://bucket/s3://other", "s3", "bucket", "s3://other/"},
		{"bytes that are no text", "s3://bucket/\xff\x01", "s3", "bucket", "\xff\x01/"},
		{"folder", "file:///data/set", "file", "", "data/set/"},
		{"folder with slashes around", "file:////data/", "file", "", "data/"},
		{"the whole tree", "file:///", "file", "", ""},
		{"folder with odd bytes", "file:///a b/=@1?#\xff", "file", "", "a b/=@1?#\xff/"},
		{"host and port", "hdfs://name-node.local:8020/data", "hdfs", "name-node.local:8020", "data/"},
	} {
		scheme, store, prefix, err := ParseURI(c.uri)
		if err != nil || scheme != c.scheme || store != c.store || prefix != c.prefix {
			t.Errorf("%s: %q is %q, %q, %q (%v)", c.name, c.uri, scheme, store, prefix, err)
		}
	}
}

func TestParseURIRefuses(t *testing.T) {
	for _, uri := range []string{
		"", "bucket", "/bucket/a", "s3:bucket", "s3:/bucket/a", "://bucket", "s3://", "s3:///a", "s3://../a", "s3://./a",
		"s3:// /a", "s3://bu cket", "s3://bucket\x00", "s3://buck\net/a", "s3://bucket?x=1", "s3://bucket#x", "s3://\xff/a", "s3://-bucket", `s3://b\a`,
		"file://", "file://data", "file://./data", "file://host/data", "file:data", "file:/data", "file:///data/../etc", "file:///..", "file:///../etc",
		"file:///./data", "file:///data//set", "file:///data/.", "file:///da\x00ta",
	} {
		if _, _, _, err := ParseURI(uri); stoker.KindOf(err) != stoker.KindInvalid || err == nil {
			t.Errorf("%q: %v", uri, err)
		}
	}
}

// What may be a secret is refused, and not repeated where logs would keep it.
func TestParseURIShowsNoSecret(t *testing.T) {
	for _, uri := range []string{"s3://key:hunter2@bucket/a", "s3://hunter2@bucket"} {
		_, _, _, err := ParseURI(uri)
		if stoker.KindOf(err) != stoker.KindInvalid || err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%v", err)
		}
	}
}

func TestUnknownSchemeListsTheKnown(t *testing.T) {
	m := New(Options{})
	m.Register("mem", func(context.Context, string, ufs.Location) (ufs.FS, error) { return memufs.New(), nil })
	for _, uri := range []string{"ftp://host/a", "FILE:///folder", "S3://bucket/a", "hdfs://", "://bucket"} {
		_, _, err := m.Open(t.Context(), ufs.Location{URI: uri})
		if stoker.KindOf(err) != stoker.KindInvalid || err == nil || !strings.Contains(err.Error(), "these are: file, mem, s3") {
			t.Errorf("%q: %v", uri, err)
		}
	}
}

// counting is a Mounts whose scheme mem counts how often a driver is made.
func counting(o Options) (*Mounts, *[]ufs.Location) {
	m, opened := New(o), new([]ufs.Location)
	m.Register("mem", func(_ context.Context, store string, l ufs.Location) (ufs.FS, error) {
		*opened = append(*opened, l) // Open holds its lock
		if store == "broken" {
			return nil, stoker.Errorf(stoker.KindDenied, "mem", store, "as told")
		}
		fs := memufs.New()
		fs.Put("in/"+store, []byte("hello"))
		return fs, nil
	})
	return m, opened
}

// One store is opened once, whatever the prefix and however many ask at once.
func TestOneDriverForEachStore(t *testing.T) {
	m, opened := counting(Options{})
	var all [8]ufs.FS
	var wg sync.WaitGroup
	for i := range all {
		wg.Go(func() {
			fs, prefix, err := m.Open(t.Context(), ufs.Location{URI: "mem://one/" + strings.Repeat("x", i)})
			if want := strings.Repeat("x", i) + "/"; err != nil || i > 0 && prefix != want {
				t.Errorf("prefix %q, want %q (%v)", prefix, want, err)
			}
			all[i] = fs
		})
	}
	wg.Wait()
	for _, fs := range all {
		if fs != all[0] {
			t.Error("two drivers of one store")
		}
	}
	if len(*opened) != 1 || (*opened)[0].URI != "mem://one" {
		t.Errorf("opened %v", *opened)
	}
}

// Whatever else a location says makes it another one: requests must not go out
// under another's credentials, nor to another's endpoint.
func TestLocationsAreKeptApart(t *testing.T) {
	m, opened := counting(Options{})
	locations := []ufs.Location{
		{URI: "mem://one"}, {URI: "mem://two"}, {URI: "mem://one", Endpoint: "http://e"}, {URI: "mem://one", Region: "r"},
		{URI: "mem://one", PathStyle: true}, {URI: "mem://one", Anonymous: true}, {URI: "mem://one", Profile: "p"},
	}
	seen := map[ufs.FS]ufs.Location{}
	for _, l := range locations {
		fs, _, err := m.Open(t.Context(), l)
		if err != nil {
			t.Fatal(err)
		}
		if other, twice := seen[fs]; twice {
			t.Errorf("%+v and %+v share a driver", l, other)
		}
		seen[fs] = l
	}
	for i, l := range *opened {
		if l != locations[i] {
			t.Errorf("the driver got %+v, want %+v", l, locations[i])
		}
	}
}

func TestAFailedOpenIsTriedAgain(t *testing.T) {
	m, opened := counting(Options{})
	for range 2 {
		if _, _, err := m.Open(t.Context(), ufs.Location{URI: "mem://broken/a"}); stoker.KindOf(err) != stoker.KindDenied {
			t.Error(err)
		}
	}
	if len(*opened) != 2 {
		t.Errorf("opened %d times", len(*opened))
	}
}

// What Open returns is guarded, with the options of the Mounts.
func TestDriversAreGuarded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := New(Options{Guard: guard.Options{Attempts: 3}})
		tries := 0
		m.Register("mem", func(context.Context, string, ufs.Location) (ufs.FS, error) {
			return refusing{tries: &tries}, nil
		})
		fs, _, err := m.Open(t.Context(), ufs.Location{URI: "mem://one"})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fs.Open(t.Context(), "k", ufs.Version{}, 0, 1); stoker.KindOf(err) != stoker.KindTransient || tries != 3 {
			t.Errorf("%d tries: %v", tries, err)
		}
	})
}

// refusing is a store that never answers.
type refusing struct {
	ufs.FS
	tries *int
}

func (r refusing) Open(context.Context, string, ufs.Version, int64, int64) (io.ReadCloser, error) {
	*r.tries++
	return nil, stoker.Errorf(stoker.KindTransient, "mem", "", "%w", errors.New("as told"))
}

// s3 is built in, and opening it asks no store.
func TestS3IsBuiltIn(t *testing.T) {
	t.Setenv("AWS_REGION", "us-east-1")
	fs, prefix, err := New(Options{}).Open(t.Context(), ufs.Location{URI: "s3://bucket/a", Endpoint: "http://127.0.0.1:1", Anonymous: true})
	if err != nil || fs == nil || prefix != "a/" {
		t.Errorf("%v, %q, %v", fs, prefix, err)
	}
}

// Folders are built in; each is a tree of its own, in what the daemon allows.
func TestFoldersAreBuiltIn(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(os.MkdirAll(filepath.Join(dir, "in/a"), 0o755), os.WriteFile(filepath.Join(dir, "in/a/k"), []byte("x"), 0o644)); err != nil {
		t.Fatal(err)
	}
	m := New(Options{AllowFiles: []string{filepath.Join(dir, "in")}})
	fs, prefix, err := m.Open(t.Context(), ufs.Location{URI: "file://" + dir + "/in/a/"})
	if err != nil {
		t.Fatal(err)
	}
	p, err := fs.List(t.Context(), ufs.ListOptions{Prefix: prefix})
	if want := strings.TrimPrefix(dir, "/") + "/in/a/k"; err != nil || len(p.Objects) != 1 || p.Objects[0].Key != want {
		t.Errorf("%+v, want %q (%v)", p, want, err)
	}
	if same, _, err := m.Open(t.Context(), ufs.Location{URI: "file://" + dir + "/in/a"}); err != nil || same != fs {
		t.Errorf("one folder is opened twice (%v)", err)
	}
	if other, _, err := m.Open(t.Context(), ufs.Location{URI: "file://" + dir + "/in"}); err != nil || other == fs {
		t.Errorf("two folders are one tree (%v)", err)
	}
	for uri, kind := range map[string]stoker.Kind{
		"file://" + dir: stoker.KindDenied, "file:///etc": stoker.KindDenied, "file://" + dir + "/inside": stoker.KindDenied,
		"file://" + dir + "/in/../other": stoker.KindInvalid, "file://in": stoker.KindInvalid,
	} {
		if _, _, err := m.Open(t.Context(), ufs.Location{URI: uri}); err == nil || stoker.KindOf(err) != kind {
			t.Errorf("%s: %v, want kind %v", uri, err, kind)
		}
	}
	if _, _, err := New(Options{}).Open(t.Context(), ufs.Location{URI: "file://" + dir + "/in"}); stoker.KindOf(err) != stoker.KindDenied || !strings.Contains(err.Error(), "--allow-file") {
		t.Errorf("without a word of the administrator: %v", err)
	}
	for _, l := range []ufs.Location{{Endpoint: "http://e"}, {Region: "r"}, {PathStyle: true}, {Anonymous: true}, {Profile: "p"}} {
		l.URI = "file://" + dir + "/in"
		if _, _, err := m.Open(t.Context(), l); stoker.KindOf(err) != stoker.KindInvalid || err == nil || !strings.Contains(err.Error(), "leave them out") {
			t.Errorf("%+v: %v", l, err)
		}
	}
}

// A probe opens the driver for itself and keeps nothing; a store without one
// says so.
func TestProbeKeepsNothing(t *testing.T) {
	dir := t.TempDir()
	m := New(Options{AllowFiles: []string{dir}})
	found, err := m.Probe(t.Context(), ufs.Location{URI: "file://" + dir})
	if err != nil || len(found) == 0 || len(m.open) != 0 {
		t.Errorf("%v, %d kept open (%v)", found, len(m.open), err)
	}
	m.Register("mem", func(context.Context, string, ufs.Location) (ufs.FS, error) { return memufs.New(), nil })
	for uri, kind := range map[string]stoker.Kind{"mem://x": stoker.KindInvalid, "ftp://x": stoker.KindInvalid, "s3://": stoker.KindInvalid, "file:///etc": stoker.KindDenied} {
		if _, err := m.Probe(t.Context(), ufs.Location{URI: uri}); err == nil || stoker.KindOf(err) != kind {
			t.Errorf("%s: %v", uri, err)
		}
	}
}

// hosted is a store at a host.
type hosted struct {
	ufs.FS
	host string
}

func (h hosted) Endpoint() string { return h.host }

// Stores of one host share its limits, others do not.
func TestStoresOfAHostShareItsLimits(t *testing.T) {
	b := budget.New(budget.Options{Limits: budget.Limits{Bytes: budget.Rules{{Pattern: "one:*", PerSecond: 1e9}}}})
	m := New(Options{Budgets: b})
	body := memufs.New()
	body.Put("key", []byte("body"))
	m.Register("mem", func(_ context.Context, store string, l ufs.Location) (ufs.FS, error) {
		return hosted{body, l.Endpoint}, nil
	})
	var stores []ufs.FS
	for _, l := range []ufs.Location{{URI: "mem://a", Endpoint: "one:80"}, {URI: "mem://b/x", Endpoint: "one:80"}, {URI: "mem://a", Endpoint: "two:80"}} {
		fs, _, err := m.Open(t.Context(), l)
		if err != nil {
			t.Fatal(err)
		}
		stores = append(stores, fs)
	}
	if uses := b.Uses(); len(uses) != 1 || uses[0].Endpoint != "one:80" {
		t.Errorf("limited are %v, want one:80 alone", uses)
	}
	o, err := stores[0].Stat(t.Context(), "key")
	if err != nil {
		t.Fatal(err)
	}
	r, err := stores[0].Open(t.Context(), "key", o.Version, 0, 4)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for i, want := range []int{1, 1, 0} {
		if _, n := stores[i].(*guard.FS).InFlight(); n != want {
			t.Errorf("store %d knows of %d requests in flight, want %d", i, n, want)
		}
	}
	one, _ := guard.NewEndpoint(0, nil).InFlight()
	if limit, _ := m.InFlight(); limit != 2*one {
		t.Errorf("%d requests may be in flight at two hosts, want %d", limit, 2*one)
	}
}
