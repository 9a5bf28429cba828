package manifest

import (
	"fmt"
	"os"
	"testing"

	"stoker.dev/ufs"
)

// realistic is a dataset with names as they are, so many objects of it.
func realistic(objects int, tag func(i int) string) *source {
	s := newSource()
	for i := range objects {
		class := 1440764 + i/1000*137
		s.object(ufs.Object{Key: fmt.Sprintf("train/n%08d/n%08d_%d.JPEG", class, class, 10026+i%1000*17)},
			ufs.Version{Tag: tag(i), ModTime: someTime, Bytes: int64(60_000 + i%100_000)})
	}
	return s
}

func plainTag(i int) string { return tagFor(fmt.Sprintf("%016x", i)) }

func fileBytes(t testing.TB, path string) float64 {
	t.Helper()
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return float64(fi.Size())
}

func TestBytesPerFile(t *testing.T) {
	for name, c := range map[string]struct {
		tag  func(i int) string
		most float64
	}{
		"plain ETags":      {plainTag, 64},
		"no ETags":         {func(int) string { return "" }, 64},
		"multi-part ETags": {func(i int) string { return fmt.Sprintf(`"%032x-12"`, i) }, 100}, // whole, in the string table
	} {
		t.Run(name, func(t *testing.T) {
			const objects = 10000
			got := fileBytes(t, build(t, realistic(objects, c.tag).options(t)).Path) / objects
			t.Logf("%.1f bytes a file", got)
			if got > c.most {
				t.Errorf("%.1f bytes a file, want at most %.0f", got, c.most)
			}
		})
	}
}

// The hot path of every view: nothing is allocated.
func TestAnswersDoNotAllocate(t *testing.T) {
	m := freeze(t, realistic(3000, plainTag))
	dir, _ := m.LookupPath("train/n01440764")
	row, ok := m.LookupPath("train/n01440764/n01440764_10026.JPEG")
	if !ok {
		t.Fatal("not there")
	}
	name := []byte("n01440764_10026.JPEG")
	names := make([]byte, 0, 256)
	members := make([]Member, 0, 10000)
	for what, do := range map[string]func(){
		"Entry":      func() { m.Entry(row) },
		"AppendName": func() { m.AppendName(names, row) },
		"Lookup":     func() { m.Lookup(dir, name) },
		"LookupPath": func() { m.LookupPath("train/n01440764/n01440764_10026.JPEG") },
		"ShardOf":    func() { m.ShardOf(row, 0) },
		"Members":    func() { m.Members(0, members) },
	} {
		if n := testing.AllocsPerRun(100, do); n > 0 {
			t.Errorf("%s allocates %.0f times", what, n)
		}
	}
	// A listing may keep its name buffer on the heap, once for the folder.
	if n := testing.AllocsPerRun(100, func() { m.ReadDir(dir, 0, func(Row, []byte) bool { return true }) }); n > 1 {
		t.Errorf("ReadDir of 1000 names allocates %.0f times", n)
	}
}

func BenchmarkBuild100k(b *testing.B) {
	const objects = 100_000
	s := realistic(objects, plainTag)
	s.pageKeys = 0
	o := s.options(b)
	b.ReportAllocs()
	var size float64
	for b.Loop() {
		built := build(b, o)
		size = fileBytes(b, built.Path)
		_ = os.Remove(built.Path)
	}
	b.ReportMetric(size/objects, "bytes/file")
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/objects, "ns/file")
}

func BenchmarkOpen100k(b *testing.B) {
	path := build(b, realistic(100_000, plainTag).options(b)).Path
	b.ReportAllocs()
	for b.Loop() {
		m, err := Open(path)
		if err != nil {
			b.Fatal(err)
		}
		if m.Rows() < 100_000 {
			b.Fatal("too few rows")
		}
		_ = m.Close()
	}
}

func BenchmarkVerify100k(b *testing.B) {
	built := build(b, realistic(100_000, plainTag).options(b))
	for b.Loop() {
		if err := VerifyFile(built.Path, built.ID); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkLookup(b *testing.B) {
	m := freeze(b, realistic(100_000, plainTag))
	dir, ok := m.LookupPath("train/n01440764")
	if !ok {
		b.Fatal("not there")
	}
	name := []byte("n01440764_18526.JPEG")
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := m.Lookup(dir, name); !ok {
			b.Fatal("not there")
		}
	}
}

func BenchmarkReadDir1000(b *testing.B) {
	m := freeze(b, realistic(100_000, plainTag))
	dir, _ := m.LookupPath("train/n01440764")
	b.ReportAllocs()
	for b.Loop() {
		n := 0
		m.ReadDir(dir, 0, func(Row, []byte) bool { n++; return true })
		if n != 1000 {
			b.Fatal(n)
		}
	}
}
