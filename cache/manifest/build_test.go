package manifest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"stoker.dev"
	"stoker.dev/ufs"
)

// Keys that can be no path are listed with the reason, and the rest works.
func TestOddKeys(t *testing.T) {
	long := strings.Repeat("x", 255)
	deep := strings.Repeat("d234567/", 511)
	for name, c := range map[string]struct {
		key    string
		size   int64
		reason string // "" = it is served as path
		path   string // if it is not the key
	}{
		"plain":                       {key: "dir/file"},
		"dot":                         {key: "a/./b", reason: "path segment ."},
		"dot dot":                     {key: "../etc/passwd", reason: "path segment .."},
		"dot dot at the end":          {key: "a/..", reason: "path segment .."},
		"three dots":                  {key: "a/.../b"},
		"hidden":                      {key: ".hidden/.file"},
		"empty segment":               {key: "a//b", reason: "empty path segment"},
		"leading slash":               {key: "/abs", reason: "empty path segment"},
		"two slashes at the end":      {key: "a//", reason: "empty path segment"},
		"NUL":                         {key: "a/b\x00c", reason: "NUL byte"},
		"component of 255 bytes":      {key: "a/" + long},
		"component of 256 bytes":      {key: "a/" + long + "y", reason: "path segment longer than 255 bytes"},
		"folder of 256 bytes":         {key: long + "y/a", reason: "path segment longer than 255 bytes"},
		"path of 4095 bytes":          {key: deep + strings.Repeat("e", 7)},
		"path of 4096 bytes":          {key: deep + strings.Repeat("e", 8), reason: "path longer than 4095 bytes"},
		"newline":                     {key: "a\nb/c\rd"},
		"invalid UTF-8":               {key: "a\xff\xfe/\x80"},
		"control bytes":               {key: "\x01\x1b[31m"},
		"backslash and blank":         {key: " a\\b / c "},
		"folder marker":               {key: "empty/folder/", path: "empty/folder"},
		"folder marker with content":  {key: "odd/", size: 5, reason: "a folder marker with content"},
		"marker of the root":          {key: "/", path: ""},
		"object of no bytes":          {key: "nothing", size: -1},
		"decomposed letters":          {key: "u\u0308"},
		"looks like a percent escape": {key: "a%2Fb"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSource()
			s.add("dir/beside", 7)
			size := max(c.size, 0)
			if c.size == 0 && !strings.HasSuffix(c.key, "/") {
				size = 3
			}
			s.add(c.key, size)
			m := freeze(t, s)
			if _, ok := m.LookupPath("dir/beside"); !ok {
				t.Error("the object beside it is gone")
			}
			if c.reason != "" {
				want := []Unmountable{{strings.ToValidUTF8(c.key, "\ufffd"), c.reason}}
				if !slices.Equal(m.Unmountable(), want) || m.Objects() != 1 {
					t.Errorf("%d objects, unmountable %q, want %q", m.Objects(), m.Unmountable(), want)
				}
				return
			}
			if len(m.Unmountable()) > 0 {
				t.Fatalf("unmountable: %q", m.Unmountable())
			}
			checkServed(t, m, c.key, c.path, size)
		})
	}
}

func checkServed(t *testing.T, m *Manifest, key, path string, size int64) {
	t.Helper()
	folder := strings.HasSuffix(key, "/")
	if !folder {
		path = key
	}
	row, ok := m.LookupPath(path)
	e := m.Entry(row)
	switch {
	case !ok:
		t.Errorf("%q is not there", path)
	case folder && (e.Kind != Directory || m.Objects() != 1):
		t.Errorf("%q is %+v among %d objects, want a folder and 1", path, e, m.Objects())
	case !folder && (e.Kind != File || e.Bytes != size || m.Source(row).Key != key || m.Path(row) != path):
		t.Errorf("%q is %+v of %q at %q", path, e, m.Source(row).Key, m.Path(row))
	case size == 0 && e.Shard != NoShard:
		t.Errorf("%q has no bytes and lies in shard %d", path, e.Shard)
	}
}

func TestKeysThatMeet(t *testing.T) {
	const both = "file with the name of a folder"
	for name, c := range map[string]struct {
		keys, paths []string
		lost        []Unmountable
	}{
		"file and folder":          {[]string{"a", "a/b"}, []string{"a/b"}, []Unmountable{{"a", both}}},
		"file and folder marker":   {[]string{"a", "a/"}, nil, []Unmountable{{"a", both}}},
		"file and a lost child":    {[]string{"a", "a//b"}, []string{"a"}, []Unmountable{{"a//b", "empty path segment"}}},
		"three deep":               {[]string{"a", "a/b", "a/b/c"}, []string{"a/b/c"}, []Unmountable{{"a", both}, {"a/b", both}}},
		"letters of either case":   {[]string{"A", "a", "b/X", "B/X"}, []string{"A", "a", "B/X", "b/X"}, nil},
		"composed and decomposed":  {[]string{"\u00fc", "u\u0308"}, []string{"u\u0308", "\u00fc"}, nil},
		"names around the slash":   {[]string{"a.b", "a/b", "a0"}, []string{"a.b", "a0", "a/b"}, nil},
		"all lost":                 {[]string{"a/../b", "c//d"}, nil, []Unmountable{{"a/../b", "path segment .."}, {"c//d", "empty path segment"}}},
		"nothing":                  {nil, nil, nil},
		"many markers of one path": {[]string{"a/", "a/b/", "a/b/c"}, []string{"a/b/c"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSource()
			for _, key := range c.keys {
				size := int64(3)
				if strings.HasSuffix(key, "/") {
					size = 0
				}
				s.add(key, size)
			}
			m := freeze(t, s)
			var files []string
			for r := range Row(m.Rows()) {
				if m.Entry(r).Kind == File {
					files = append(files, m.Path(r))
				}
			}
			if !slices.Equal(files, c.paths) || m.Objects() != int64(len(c.paths)) {
				t.Errorf("files %q (%d objects), want %q", files, m.Objects(), c.paths)
			}
			if !slices.Equal(m.Unmountable(), c.lost) && len(m.Unmountable())+len(c.lost) > 0 {
				t.Errorf("unmountable %q, want %q", m.Unmountable(), c.lost)
			}
		})
	}
}

// Each kind of version comes back as the store gave it.
func TestVersionsComeBack(t *testing.T) {
	hex32 := "0123456789abcdef0123456789abcdef"
	for name, tag := range map[string]string{
		"32 hex digits":        `"` + hex32 + `"`,
		"multi-part":           `"` + hex32 + `-12"`,
		"capitals":             `"` + strings.ToUpper(hex32) + `"`,
		"32 other letters":     `"0123456789abcdef0123456789abcdeg"`,
		"half of it hex":       `"0123456789abcdef0123456789abcd-1"`,
		"no quotes":            hex32,
		"32 digits, no quotes": "0" + hex32 + "0",
		"weak":                 `W/"` + hex32 + `"`,
		"generation":           "1715000000000001",
		"all zeros":            `"` + strings.Repeat("0", 32) + `"`,
		"none":                 "",
		"long":                 strings.Repeat("v", 5000),
	} {
		t.Run(name, func(t *testing.T) {
			s := newSource()
			for i, mod := range []time.Time{{}, time.Unix(0, 0), someTime, time.Unix(-5, 7)} {
				v := ufs.Version{Tag: tag, ModTime: mod, Bytes: 1 + int64(i)}
				s.object(ufs.Object{Key: fmt.Sprint("f", i)}, v)
			}
			m := freeze(t, s)
			for i := range 4 {
				row, _ := m.LookupPath(fmt.Sprint("f", i))
				got, want := m.Source(row).Version, s.versions[fmt.Sprint("f", i)]
				if got.Tag != want.Tag || got.Bytes != want.Bytes || !got.ModTime.Equal(want.ModTime) || got.ModTime.IsZero() != want.ModTime.IsZero() {
					t.Errorf("got %+v, want %+v", got, want)
				}
			}
		})
	}
}

// some is a dataset with all that has a say in the id.
func some() *source {
	s := newSource()
	for i := range 50 {
		s.add(fmt.Sprintf("train/%d/f%d", i%7, i), int64(i*1000))
	}
	s.add("large", 3*stoker.ExtentBytes+5)
	s.add("multi", 9)
	s.versions["multi"] = ufs.Version{Tag: `"abc-2"`, ModTime: someTime, Bytes: 9}
	s.add("empty/", 0)
	s.add("train", 1)
	s.add("a//b", 1)
	s.object(ufs.Object{Key: "link", Link: "train"}, ufs.Version{})
	return s
}

// What a killed process left in its folder goes; what is whole, and others', stays.
func TestClearTemp(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a[b")
	whole := stoker.ID{7}.String()
	for _, name := range []string{"manifest-123", ".new-9", whole, "notes"} {
		if err := errors.Join(os.MkdirAll(filepath.Join(dir, "manifest-folder"), 0o755), os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if err := ClearTemp(dir); err != nil {
		t.Fatal(err)
	}
	var left []string
	all, err := os.ReadDir(dir)
	for _, f := range all {
		left = append(left, f.Name())
	}
	if err != nil || !slices.Equal(left, []string{whole, "manifest-folder", "notes"}) {
		t.Errorf("left are %v, %v", left, err)
	}
	if err := ClearTemp(filepath.Join(dir, "none")); err == nil {
		t.Error("a folder that is not there is no error")
	}
}

func TestIDIsOfTheContent(t *testing.T) {
	want := build(t, some().options(t)).ID
	for name, change := range map[string]func(s *source, o *BuildOptions){
		"again":               func(*source, *BuildOptions) {},
		"one at a time":       func(_ *source, o *BuildOptions) { o.Parallel = 1 },
		"many at a time":      func(_ *source, o *BuildOptions) { o.Parallel = 100 },
		"other base":          func(_ *source, o *BuildOptions) { o.Base = stoker.ID{1} },
		"pages of one entry":  func(s *source, _ *BuildOptions) { s.pageKeys = 1 },
		"same time elsewhere": func(s *source, _ *BuildOptions) { inZone(s, time.FixedZone("x", 7200)) },
	} {
		t.Run(name, func(t *testing.T) {
			s := some()
			o := s.options(t)
			change(s, &o)
			if got := build(t, o).ID; got != want {
				t.Errorf("id %s, want %s", got.Short(), want.Short())
			}
		})
	}
}

func inZone(s *source, z *time.Location) {
	for k, v := range s.versions {
		if !v.ModTime.IsZero() {
			v.ModTime = v.ModTime.In(z)
			s.versions[k] = v
		}
	}
}

func TestIDChangesWithContent(t *testing.T) {
	seen := map[stoker.ID]string{build(t, some().options(t)).ID: "nothing"}
	version := func(key string, change func(v *ufs.Version)) func(*source, *BuildOptions) {
		return func(s *source, _ *BuildOptions) {
			v := s.versions[key]
			change(&v)
			s.versions[key] = v
		}
	}
	for name, change := range map[string]func(s *source, o *BuildOptions){
		"size":             version("train/1/f1", func(v *ufs.Version) { v.Bytes++ }),
		"tag":              version("train/1/f1", func(v *ufs.Version) { v.Tag = tagFor("other") }),
		"tag in strings":   version("multi", func(v *ufs.Version) { v.Tag = `"abc-3"` }),
		"no tag":           version("multi", func(v *ufs.Version) { v.Tag = "" }),
		"time":             version("train/1/f1", func(v *ufs.Version) { v.ModTime = v.ModTime.Add(time.Nanosecond) }),
		"no time":          version("train/1/f1", func(v *ufs.Version) { v.ModTime = time.Time{} }),
		"version of large": version("large", func(v *ufs.Version) { v.Tag = tagFor("other") }),
		"key":              func(s *source, _ *BuildOptions) { s.Delete("train/1/f1"); s.add("train/1/f1x", 1000) },
		"one more":         func(s *source, _ *BuildOptions) { s.add("train/1/g", 0) },
		"one less":         func(s *source, _ *BuildOptions) { s.Delete("train/1/f1") },
		"one more folder":  func(s *source, _ *BuildOptions) { s.add("more/", 0) },
		"one more odd key": func(s *source, _ *BuildOptions) { s.add("b//b", 1) },
		"exec bit":         func(s *source, _ *BuildOptions) { s.PutObject(ufs.Object{Key: "multi", Exec: true}, nil) },
		"link's target":    func(s *source, _ *BuildOptions) { s.PutObject(ufs.Object{Key: "link", Link: "tra1n"}, nil) },
		"root's URI":       func(_ *source, o *BuildOptions) { o.Roots[0].URI = "mem://other" },
		"root's folder":    func(_ *source, o *BuildOptions) { o.Roots[0].Folder = "x" },
	} {
		t.Run(name, func(t *testing.T) {
			s := some()
			o := s.options(t)
			change(s, &o)
			id := build(t, o).ID
			if other, twice := seen[id]; twice {
				t.Errorf("the id is the same as with %s changed", other)
			}
			seen[id] = name
		})
	}
}

// The format is for ever: this dataset has had this id since format 1. If this
// fails, old manifests and cached shards are worth nothing: raise formatVersion.
func TestIDsOfFormat1(t *testing.T) {
	s := newSource()
	s.add("a/small", 300000)
	s.add("a/large", stoker.ExtentBytes+1)
	s.object(ufs.Object{Key: "b", Link: "a/small"}, ufs.Version{})
	s.object(ufs.Object{Key: "c", Exec: true}, ufs.Version{Tag: `"x-1"`, Bytes: 5})
	m := freeze(t, s)
	got := []string{m.ID().String()}
	for n := range uint32(m.Shards()) {
		got = append(got, m.Shard(n).ID.String())
	}
	want := []string{
		"dc09b9a82441baa32ab589ec3cb52aa40440b065b9d9777d0b4f5aac7c3c13fe",
		"a1958ef13f97dd1ebd00bcb770bec91de031743adc14851ec4846a638b57028e",
		"8f98e1dda8c6e3333294dbbf8f129c6955d349bb8b32e9d2ad7250ad5402c1e1",
		"f7ab04de320348d23718a143be2faa42e81aeb59b15cdc03c7cd6024111b7770",
	}
	if !slices.Equal(got, want) {
		t.Errorf("ids\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// Nothing is asked of any store where one root is joined at no folder's path.
func TestWrongFoldersAreRefusedAtOnce(t *testing.T) {
	for _, folder := range []string{"..", "a//b", "a/"} {
		s := some()
		o := s.options(t)
		o.Roots = append(slices.Clone(o.Roots), Root{Location: o.Roots[0].Location, Folder: folder})
		_, err := Build(t.Context(), o)
		if wantKind(t, err, stoker.KindInvalid); s.pages > 0 {
			t.Errorf("%d pages for a folder %q", s.pages, folder)
		}
	}
}

// A manifest is complete or it is none, whichever page cannot be listed.
func TestListingErrorFailsTheBuild(t *testing.T) {
	s := some()
	s.pageKeys = 2
	alone := func() BuildOptions { // one request at a time: as many in each try
		o := s.options(t)
		o.Parallel = 1
		return o
	}
	build(t, alone())
	pages := s.pages
	if pages < 20 {
		t.Fatalf("only %d pages", pages)
	}
	for failAt := 1; failAt <= pages; failAt++ {
		s.pages, s.failAt = 0, failAt
		o := alone()
		b, err := Build(context.Background(), o)
		if b != nil {
			t.Fatalf("page %d of %d failed and there is a manifest", failAt, pages)
		}
		wantKind(t, err, stoker.KindTransient)
		removed(t, o.TempDir)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Build(ctx, s.options(t)); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestBuildRefuses(t *testing.T) {
	root := func(uri, folder string) Root { return Root{ufs.Location{URI: uri}, folder} }
	refused := stoker.Errorf(stoker.KindDenied, "test", "", "no")
	for name, c := range map[string]struct {
		change func(s *source, o *BuildOptions)
		want   stoker.Kind
	}{
		"no roots":        {func(_ *source, o *BuildOptions) { o.Roots = nil }, stoker.KindInvalid},
		"folder ..":       {func(_ *source, o *BuildOptions) { o.Roots[0].Folder = "a/.." }, stoker.KindInvalid},
		"folder /":        {func(_ *source, o *BuildOptions) { o.Roots[0].Folder = "/" }, stoker.KindInvalid},
		"folder a/":       {func(_ *source, o *BuildOptions) { o.Roots[0].Folder = "a/" }, stoker.KindInvalid},
		"folder /a":       {func(_ *source, o *BuildOptions) { o.Roots[0].Folder = "/a" }, stoker.KindInvalid},
		"one root twice":  {func(_ *source, o *BuildOptions) { o.Roots = append(o.Roots, o.Roots[0]) }, stoker.KindInvalid},
		"roots that meet": {func(_ *source, o *BuildOptions) { o.Roots = append(o.Roots, root("mem://bucket/train/1", "train/1")) }, stoker.KindInvalid},
		"store not open": {func(_ *source, o *BuildOptions) {
			o.Open = func(context.Context, ufs.Location) (ufs.FS, string, error) { return nil, "", refused }
		}, stoker.KindDenied},
		"no folder to write in": {func(_ *source, o *BuildOptions) { o.TempDir += "/none" }, stoker.KindInternal},
	} {
		t.Run(name, func(t *testing.T) {
			s := some()
			o := s.options(t)
			c.change(s, &o)
			_, err := Build(context.Background(), o)
			wantKind(t, err, c.want)
		})
	}
}

func TestRootsAreJoined(t *testing.T) {
	s := newSource()
	s.add("x/train/1", 5)
	s.add("x/train/sub/2", 6)
	s.add("x/trainer", 7) // beside the prefix, not below it
	s.add("y/1", 8)
	s.add("y//odd", 9)
	s.add("y/", 0)
	o := s.options(t)
	o.Roots = []Root{{ufs.Location{URI: "mem://bucket/x/train"}, ""}, {ufs.Location{URI: "mem://bucket/y/"}, "more/y"}, {ufs.Location{URI: "mem://bucket/none"}, "none"}}
	var objects, size, pages atomic.Int64
	o.Progress = func(n, b, p int64) {
		objects.Store(max(n, objects.Load()))
		size.Store(max(b, size.Load()))
		pages.Add(1)
	}
	b := build(t, o)
	m := open(t, b.Path)
	want := map[string]Source{
		"1":        {Root: 0, Key: "x/train/1"},
		"sub/2":    {Root: 0, Key: "x/train/sub/2"},
		"more/y/1": {Root: 1, Key: "y/1"},
	}
	for path, src := range want {
		row, ok := m.LookupPath(path)
		if got := m.Source(row); !ok || got.Root != src.Root || got.Key != src.Key || m.Path(row) != path {
			t.Errorf("%s is row %d (%v): %+v, want %+v", path, row, ok, got, src)
		}
	}
	if row, ok := m.LookupPath("none"); !ok || m.Entry(row).Kind != Directory {
		t.Error("an empty root has no folder")
	}
	if m.Objects() != 3 || !slices.Equal(m.Unmountable(), []Unmountable{{"y//odd", "empty path segment"}}) || !slices.Equal(b.Unmountable, m.Unmountable()) {
		t.Errorf("%d objects, unmountable %v", m.Objects(), m.Unmountable())
	}
	if objects.Load() != 5 || size.Load() != 5+6+8+9 || pages.Load() == 0 {
		t.Errorf("progress: %d objects, %d bytes, %d calls", objects.Load(), size.Load(), pages.Load())
	}
}

func TestTempFileIsTheOnlyTrace(t *testing.T) {
	s := some()
	o := s.options(t)
	b := build(t, o)
	if err := os.Remove(b.Path); err != nil {
		t.Fatal(err)
	}
	removed(t, o.TempDir)
}
