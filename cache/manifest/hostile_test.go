package manifest

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"stoker.dev/ufs"
)

// checkKeys freezes keys, some of them with bytes, and wants each served at
// exactly one path below the root, or named with the reason why not.
func checkKeys(t *testing.T, keys []string) {
	t.Helper()
	s := newSource()
	sizes := map[string]int64{}
	for i, k := range keys {
		if _, twice := sizes[k]; k != "" && !twice {
			sizes[k] = int64(i % 3)
			s.object(ufs.Object{Key: k}, ufs.Version{Tag: `"x"`, Bytes: sizes[k]})
		}
	}
	m := freeze(t, s)
	served, paths := map[string]int{}, map[string]bool{}
	for r := range Row(m.Rows()) {
		p := m.Path(r)
		if paths[p] {
			t.Errorf("%q is there twice", p)
		}
		paths[p] = true
		for part := range strings.SplitSeq(p, "/") {
			if r > 0 && (part == "" || part == "." || part == ".." || len(part) > 255 || strings.IndexByte(part, 0) >= 0) {
				t.Errorf("row %d has the path %q", r, p)
			}
		}
		if len(p) > 4095 {
			t.Errorf("a path of %d bytes", len(p))
		}
		if m.Entry(r).Kind == File {
			key := m.Source(r).Key
			if served[key]++; key != p || m.Entry(r).Bytes != sizes[key] {
				t.Errorf("key %q is served as %q", key, p)
			}
		}
	}
	lost := map[string]int{}
	for _, u := range m.Unmountable() {
		if lost[u.Key]++; u.Reason == "" {
			t.Errorf("%q is not mounted, and nobody says why", u.Key)
		}
	}
	for k := range sizes {
		n := served[k]
		if path, ok := strings.CutSuffix(k, "/"); ok && sizes[k] == 0 && paths[path] {
			n++ // a folder marker
		}
		name := string([]rune(k)) // as JSON has it: several keys may look alike there
		if n > 1 || n == 1 && lost[name] > 0 && name == k || n == 0 && lost[name] == 0 {
			t.Errorf("key %q is served %d times, and named %d times", k, n, lost[name])
		}
	}
}

// hostileKeys are keys that do harm where they are taken for paths.
var hostileKeys = []string{
	"..", "../..", "/", "//", "a/", "a", "a/b", "a//b", "a/./b", "a/../b", "./a", "a/..", "\x00", "a\x00/b", "\n", "a\nb/c",
	"\xff\xfe", "\xff\xfe/a", "A", "A/b", "u\u0308", "\u00fc", "...", "-rf", " ", "~", "$HOME", "C:\\x", "a\\..\\b", "%2e%2e/a",
	strings.Repeat("k", 1024), strings.Repeat("k", 255), strings.Repeat("k", 256), strings.Repeat("d/", 511) + "f", strings.Repeat("../", 340),
}

// Whatever the keys are: no panic, no path outside of the mount, and every key
// at one path or named.
func FuzzKeys(f *testing.F) {
	f.Add(strings.Join(hostileKeys, "\x01"))
	for _, k := range hostileKeys {
		f.Add(k + "\x01" + k + "/x\x01" + k + "/")
	}
	f.Fuzz(func(t *testing.T, keys string) {
		if len(keys) > 1<<16 {
			return
		}
		checkKeys(t, strings.Split(keys, "\x01"))
	})
}

// The same for random keys of few parts, which meet often.
func TestRandomKeys(t *testing.T) {
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 3))
		var keys []string
		for range r.IntN(60) {
			var parts []string
			for range 1 + r.IntN(4) {
				parts = append(parts, []string{"a", "b", "A", "", ".", "..", "\xff", "a\n", "x\x00", hostileKeys[r.IntN(len(hostileKeys))]}[min(r.IntN(14), 9)])
			}
			keys = append(keys, strings.Join(parts, "/"))
		}
		if checkKeys(t, keys); t.Failed() {
			t.Fatalf("seed %d: %q", seed, keys)
		}
	}
}

// A million keys in one folder.
func BenchmarkBuildFlat1M(b *testing.B) {
	const objects = 1_000_000
	s := newSource()
	for i := range objects {
		s.object(ufs.Object{Key: fmt.Sprintf("img_%08d.jpg", i)}, ufs.Version{Tag: plainTag(i), ModTime: someTime, Bytes: int64(60_000 + i%100_000)})
	}
	o := s.options(b)
	for b.Loop() {
		m := open(b, build(b, o).Path)
		if row, ok := m.LookupPath("img_00999999.jpg"); m.Objects() != objects || !ok || m.Source(row).Key != "img_00999999.jpg" {
			b.Fatal(m.Objects())
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/objects, "ns/file")
}
