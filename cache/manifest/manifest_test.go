package manifest

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"stoker.dev"
	"stoker.dev/ufs"
	"stoker.dev/ufs/memufs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// source is a memufs whose objects are as large, and have the tags, that a
// test says, and whose pages are of a size that it says.
type source struct {
	*memufs.FS
	versions map[string]ufs.Version
	pageKeys int        // 0 = memufs's own
	failAt   int        // the listing request that fails, from 1 on
	mu       sync.Mutex // guards what follows
	pages    int
}

func newSource() *source { return &source{FS: memufs.New(), versions: map[string]ufs.Version{}} }

var someTime = time.Date(2024, 5, 6, 7, 8, 9, 123456789, time.UTC)

// add puts an object of so many bytes, none of which exists.
func (s *source) add(key string, size int64) {
	s.object(ufs.Object{Key: key}, ufs.Version{Tag: tagFor(key), ModTime: someTime, Bytes: size})
}

func (s *source) object(o ufs.Object, v ufs.Version) {
	s.PutObject(o, nil)
	s.versions[o.Key] = v
}

// tagFor makes what a store without multi-part uploads answers.
func tagFor(key string) string {
	return fmt.Sprintf(`"%x"`, [16]byte([]byte(key + strings.Repeat("\x07", 16))[:16]))
}

func (s *source) List(ctx context.Context, o ufs.ListOptions) (ufs.Page, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pages++; s.pages == s.failAt {
		return ufs.Page{}, stoker.Errorf(stoker.KindTransient, "test.list", o.Prefix, "page %d fails", s.pages)
	}
	o.MaxKeys = s.pageKeys
	p, err := s.FS.List(ctx, o)
	for i := range p.Objects {
		if v, ok := s.versions[p.Objects[i].Key]; ok {
			p.Objects[i].Version = v
		}
	}
	return p, err
}

// options freeze the whole of s as mem://bucket.
func (s *source) options(t testing.TB) BuildOptions {
	return BuildOptions{
		Roots:   []Root{{Location: ufs.Location{URI: "mem://bucket"}}},
		Open:    func(_ context.Context, l ufs.Location) (ufs.FS, string, error) { return s, prefixOf(l.URI), nil },
		TempDir: t.TempDir(),
	}
}

func build(t testing.TB, o BuildOptions) *Built {
	t.Helper()
	b, err := Build(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func open(t testing.TB, path string) *Manifest {
	t.Helper()
	m, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	return m
}

// freeze builds and opens.
func freeze(t testing.TB, s *source) *Manifest {
	t.Helper()
	b := build(t, s.options(t))
	if err := VerifyFile(b.Path, b.ID); err != nil {
		t.Error(err)
	}
	return open(t, b.Path)
}

func wantKind(t testing.TB, err error, kind stoker.Kind) {
	t.Helper()
	if err == nil || stoker.KindOf(err) != kind {
		t.Errorf("got %v (%v), want kind %v", err, stoker.KindOf(err), kind)
	}
}

// model is a dataset as a map: what the manifest must say of each path.
type model map[string]ufs.Object

// dirs returns the directories that the files need, "" first.
func (w model) dirs() map[string][]string {
	children := map[string]map[string]bool{"": {}}
	for p := range w {
		for p != "" {
			dir, name := path.Split(p)
			dir = strings.TrimSuffix(dir, "/")
			if children[dir] == nil {
				children[dir] = map[string]bool{}
			}
			children[dir][name] = true
			p = dir
		}
	}
	out := map[string][]string{}
	for dir, names := range children {
		out[dir] = slices.Sorted(maps.Keys(names))
	}
	return out
}

// compare wants that m is the model, by every way there is to ask.
func (w model) compare(t testing.TB, m *Manifest) {
	t.Helper()
	dirs := w.dirs()
	queue, parents, next := []string{""}, []Row{0}, Row(1)
	size := int64(0)
	for row := Row(0); int(row) < len(queue); row++ {
		p := queue[row]
		e := m.Entry(row)
		if got := m.Path(row); got != p || e.Parent != parents[row] {
			t.Fatalf("row %d is %q below row %d, want %q below %d", row, got, e.Parent, p, parents[row])
		}
		if found, ok := m.LookupPath(p); !ok || found != row {
			t.Errorf("LookupPath(%q) = %d %v, want %d", p, found, ok, row)
		}
		if _, ok := m.LookupPath(strings.TrimPrefix(p+"/nothing", "/")); ok {
			t.Errorf("found something below %q that is not there", p)
		}
		names, isDir := dirs[p]
		if !isDir {
			w.compareFile(t, m, row, w[p])
			size += w[p].Version.Bytes
			continue
		}
		if e.Kind != Directory || e.FirstChild != next || int(e.Children) != len(names) || e.Shard != NoShard {
			t.Errorf("directory %q is %+v, want %d children from row %d on", p, e, len(names), next)
		}
		compareDir(t, m, row, names)
		for _, name := range names {
			queue, parents = append(queue, strings.TrimPrefix(p+"/"+name, "/")), append(parents, row)
		}
		next += Row(len(names))
	}
	if m.Rows() != len(queue) || m.Objects() != int64(len(w)) || m.Directories() != int64(len(dirs)) || m.Bytes() != size {
		t.Errorf("%d rows, %d objects, %d directories, %d bytes; want %d, %d, %d, %d",
			m.Rows(), m.Objects(), m.Directories(), m.Bytes(), len(queue), len(w), len(dirs), size)
	}
}

func (w model) compareFile(t testing.TB, m *Manifest, row Row, want ufs.Object) {
	t.Helper()
	e := m.Entry(row)
	kind, length := File, want.Version.Bytes
	if want.Link != "" {
		kind, length = Symlink, int64(len(want.Link))
	}
	if e.Kind != kind || e.Bytes != length || e.Exec != want.Exec || string(m.AppendLink(nil, row)) != want.Link {
		t.Errorf("row %d of %q is %+v -> %q, want %+v", row, want.Key, e, m.AppendLink(nil, row), want)
	}
	if !want.Version.ModTime.IsZero() && !e.ModTime.Equal(want.Version.ModTime) {
		t.Errorf("row %d of %q is of %v, want %v", row, want.Key, e.ModTime, want.Version.ModTime)
	}
	src := m.Source(row)
	if src.Key != want.Key || kind == File && (src.Version.Tag != want.Version.Tag || src.Version.Bytes != want.Version.Bytes ||
		!src.Version.ModTime.Equal(want.Version.ModTime)) {
		t.Errorf("source of row %d is %+v, want %+v", row, src, want)
	}
	if _, ok := m.Lookup(row, []byte("x")); ok {
		t.Errorf("found something below the file %q", want.Key)
	}
	m.ReadDir(row, 0, func(Row, []byte) bool { t.Errorf("the file %q has children", want.Key); return false })
}

// compareDir wants these names, in order, by Lookup and by ReadDir from each child on.
func compareDir(t testing.TB, m *Manifest, dir Row, names []string) {
	t.Helper()
	first := m.Entry(dir).FirstChild
	for i, name := range names {
		if r, ok := m.Lookup(dir, []byte(name)); !ok || r != first+Row(i) {
			t.Errorf("Lookup(%d, %q) = %d %v, want %d", dir, name, r, ok, first+Row(i))
		}
		for _, other := range []string{name + "\x00", name[:len(name)-1]} {
			if _, ok := m.Lookup(dir, []byte(other)); ok && !slices.Contains(names, other) {
				t.Errorf("Lookup(%d, %q) found something", dir, other)
			}
		}
	}
	for _, from := range []int{0, len(names) / 3, len(names) - 1, len(names), len(names) + 1, -1} {
		var got []string
		m.ReadDir(dir, from, func(r Row, name []byte) bool {
			if want := first + Row(from+len(got)); r != want || !bytes.Equal(m.AppendName(nil, r), name) {
				t.Errorf("ReadDir gave row %d as %q, want row %d", r, name, want)
			}
			got = append(got, string(name))
			return len(got) < 40 // the listing stops when it is told to
		})
		want := []string{}
		if from >= 0 && from < len(names) {
			want = names[from:min(len(names), from+40)]
		}
		if !slices.Equal(got, want) {
			t.Errorf("ReadDir(%d, %d) = %q, want %q", dir, from, got, want)
		}
	}
}

// randomTree draws paths over few names, so that folders are shared, with what
// the manifest keeps of objects varied.
func randomTree(r *rand.Rand, files int) model {
	w := model{}
	names := []string{"a", "b", "train", "val", "n01440764", "n01440764_10026.JPEG", "n01440764_10027.JPEG", "z z", "ü", "-", "~", "0"}
	for range files {
		parts := make([]string, 1+r.IntN(4))
		for i := range parts {
			parts[i] = names[r.IntN(len(names))]
			if r.IntN(2) == 0 {
				parts[i] = fmt.Sprint(parts[i], r.IntN(50))
			}
		}
		p := strings.Join(parts, "/")
		o := ufs.Object{Key: p, Exec: r.IntN(5) == 0, Version: ufs.Version{Bytes: int64(r.ExpFloat64() * 1e6), ModTime: someTime.Add(time.Duration(r.IntN(1e9)))}}
		switch r.IntN(6) {
		case 0:
			o.Version.Tag = fmt.Sprintf(`"%032x-%d"`, r.Uint64(), r.IntN(99))
		case 1:
			o.Version.Bytes = 0
			o.Version.ModTime = time.Time{}
		case 2:
			o = ufs.Object{Key: p, Link: strings.Repeat("../", r.IntN(3)) + "target"}
		default:
			o.Version.Tag = tagFor(p)
		}
		w[p] = o
	}
	for dir := range w.dirs() { // a folder wins over a file of its name
		delete(w, dir)
	}
	return w
}

func TestManifestIsTheTree(t *testing.T) {
	for seed := range uint64(25) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 1))
			w := randomTree(r, r.IntN(400))
			s := newSource()
			s.pageKeys = 1 + r.IntN(50)
			for _, o := range w {
				s.object(o, o.Version)
			}
			m := freeze(t, s)
			w.compare(t, m)
			checkShards(t, m)
		})
	}
}

// A folder with thousands of names is one run of rows, found by halving.
func TestLargeFolder(t *testing.T) {
	w, s := model{}, newSource()
	for i := range 3000 {
		o := ufs.Object{Key: fmt.Sprintf("d/%x", i*i*i), Version: ufs.Version{Bytes: int64(i), Tag: tagFor(fmt.Sprint(i)), ModTime: someTime}}
		w[o.Key] = o
		s.object(o, o.Version)
	}
	w.compare(t, freeze(t, s))
}

func TestHeader(t *testing.T) {
	s := newSource()
	s.add("a", 5)
	o := s.options(t)
	o.Base = stoker.ID{7}
	o.Roots[0].Region, o.Roots[0].Profile = "eu", "lab"
	before := time.Now()
	b := build(t, o)
	h := open(t, b.Path).Header()
	if h.FormatVersion != 1 || h.Base != o.Base || !slices.Equal(h.Roots, o.Roots) {
		t.Errorf("header %+v", h)
	}
	if h.ListedFrom.Before(before) || h.ListedTo.Before(h.ListedFrom) || !h.ListedTo.Equal(b.ListedTo) || b.Objects != 1 || b.Bytes != 5 {
		t.Errorf("listed from %v to %v; built %+v", h.ListedFrom, h.ListedTo, b)
	}
}

// Folders are as old as the listing; rows beyond the last are nothing.
func TestEntryOfNothing(t *testing.T) {
	s := newSource()
	s.add("d/a", 5)
	m := freeze(t, s)
	if e := m.Entry(1); !e.ModTime.Equal(m.Header().ListedFrom) {
		t.Errorf("folder of %v, listed at %v", e.ModTime, m.Header().ListedFrom)
	}
	for _, r := range []Row{3, 1 << 31, ^Row(0)} {
		if e := m.Entry(r); e.Kind != File || e.Bytes != 0 || e.Shard != NoShard || m.Path(r) != "" || m.Source(r).Key != "" ||
			len(m.AppendName(nil, r)) != 0 || m.ShardOf(r, 0) != NoShard {
			t.Errorf("row %d: %+v", r, e)
		}
	}
	if s := m.Shard(1); s.Bytes != 0 || len(m.Members(1, nil)) != 0 {
		t.Errorf("shard 1: %+v", s)
	}
}

// checkShards wants what docs/adr/0001 says of the shard table.
func checkShards(t testing.TB, m *Manifest) {
	t.Helper()
	covered := map[Row]int64{}
	lastPack := -1
	for n := range uint32(m.Shards()) {
		if m.Shard(n).Extent < 0 {
			lastPack = int(n)
		}
	}
	for n := range uint32(m.Shards()) {
		s := m.Shard(n)
		members := m.Members(n, nil)
		end, blocks := int64(0), uint32(0)
		for _, p := range members {
			e := m.Entry(p.Row)
			if p.Off != end || p.Off%stoker.AlignBytes != 0 || p.FirstBlock != blocks || p.Bytes <= 0 {
				t.Fatalf("shard %d: member %+v, want it at %d as block %d", n, p, end, blocks)
			}
			if p.ObjectOff != covered[p.Row] {
				t.Fatalf("shard %d: member %+v leaves out bytes from %d on", n, p, covered[p.Row])
			}
			covered[p.Row] += p.Bytes
			blocks += uint32(BlocksOf(p.Bytes))
			end += (p.Bytes + stoker.AlignBytes - 1) / stoker.AlignBytes * stoker.AlignBytes
			for _, at := range []int64{p.ObjectOff, p.ObjectOff + p.Bytes - 1} {
				if got := m.ShardOf(p.Row, at); got != n {
					t.Fatalf("ShardOf(%d, %d) = %d, want %d", p.Row, at, got, n)
				}
			}
			if m.ShardOf(p.Row, e.Bytes) != NoShard || m.ShardOf(p.Row, -1) != NoShard {
				t.Fatalf("row %d has a shard for bytes that it has not", p.Row)
			}
		}
		checkShard(t, m, n, members, end, int(n) == lastPack)
		if s.Blocks != blocks {
			t.Fatalf("shard %d has %d blocks, its members have %d", n, s.Blocks, blocks)
		}
	}
	for r := range Row(m.Rows()) {
		if e := m.Entry(r); e.Kind == File && covered[r] != e.Bytes {
			t.Fatalf("row %d has %d bytes, %d of them in shards", r, e.Bytes, covered[r])
		}
	}
}

func checkShard(t testing.TB, m *Manifest, n uint32, members []Member, end int64, last bool) {
	t.Helper()
	s := m.Shard(n)
	if s.Extent < 0 {
		if s.Bytes != end || s.Bytes > packMax || s.Bytes < packMin && !last {
			t.Fatalf("pack %d has %d bytes, its members end at %d", n, s.Bytes, end)
		}
		if len(members) == 0 || members[0].Row != s.FirstRow || members[len(members)-1].Row != s.FirstRow+Row(s.Rows)-1 {
			t.Fatalf("pack %d has rows from %d, %d of them", n, s.FirstRow, s.Rows)
		}
		return
	}
	whole := m.Entry(s.FirstRow).Bytes
	if s.Rows != 1 || len(members) != 1 || s.Bytes != min(stoker.ExtentBytes, whole-int64(s.Extent)*stoker.ExtentBytes) || members[0].Bytes != s.Bytes {
		t.Fatalf("extent %d: %+v of an object of %d bytes has members %+v", n, s, whole, members)
	}
}

func removed(t testing.TB, dir string) {
	t.Helper()
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("%d files are left in the folder (%v)", len(left), err)
	}
}
