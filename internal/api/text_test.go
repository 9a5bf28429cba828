package api

import (
	"encoding/json"
	"math"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestEscapePath(t *testing.T) {
	for _, c := range []struct{ path, want string }{
		{"", ""}, {"a/b c.txt", "a/b c.txt"}, {"é/日本", "é/日本"}, {"new\nline", "new\nline"},
		{"100%", "100%25"}, {"%41", "%2541"}, {"\xff", "%FF"}, {"a\xc3/b", "a%C3/b"}, {"é\xffé%", "é%FFé%25"},
		{"\ufffd", "\ufffd"}, {"\ufffd\xff", "\ufffd%FF"}, {"\xed\xa0\x80", "%ED%A0%80"}, {"\x00", "\x00"},
	} {
		got := EscapePath(c.path)
		if got != c.want || !utf8.ValidString(got) {
			t.Errorf("%q: %q, want %q", c.path, got, c.want)
		}
	}
}

// No two paths look the same.
func TestEscapePathIsOneToOne(t *testing.T) {
	pieces := []string{"a", "%", "\xff", "%FF", "é", "\xc3", "\xa9", "25"}
	seen := map[string]string{}
	for _, a := range pieces {
		for _, b := range pieces {
			for _, c := range pieces {
				p := a + b + c
				if other, twice := seen[EscapePath(p)]; twice && other != p {
					t.Errorf("%q and %q are both %q", p, other, EscapePath(p))
				}
				seen[EscapePath(p)] = p
			}
		}
	}
}

func TestHumanBytes(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 B", 1: "1 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 1<<20 - 1: "1.0 MiB", 1 << 20: "1.0 MiB", 1048524: "1023.9 KiB",
		3328599654400: "3.0 TiB", 1 << 50: "1.0 PiB", math.MaxInt64: "8.0 EiB", -1: "-1 B", -2048: "-2.0 KiB", math.MinInt64: "-8.0 EiB",
	} {
		if got := HumanBytes(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}

// keys returns the names of a value's JSON fields, those of embedded structs
// too, sorted.
func keys(t testing.TB, v any) []string {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]any{}
	if err := json.Unmarshal(raw, &m); err != nil {
		t.Fatal(err)
	}
	out := []string{}
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// The names that scripts read are never changed and never left out, even of
// values that are zero; others may be added.
func TestFieldNamesOfTheContract(t *testing.T) {
	for name, c := range map[string]struct {
		v     any
		names string
	}{
		"certificate": {Certificate{}, "dataset generation manifest state objects bytes residentObjects residentBytes ufsRequests ufsBytes refetched seconds failed unmountable"},
		"refetched":   {Refetched{}, "lost retry hedge bypass"},
		"failed":      {Failure{}, "path kind reason"},
		"unmountable": {Unmountable{}, "key reason"},
		"jobs":        {JobLine{}, "job state owner datasets bytes residentBytes etaSeconds"},
		"workers":     {WorkerInfo{}, "id incarnation address socket pid state capacityBytes usedBytes reservedBytes"},
		"status":      {Status{}, "jobs workers datasets"},
		"dataset ls":  {DatasetInfo{}, "name uris owner generation manifest objects bytes residentBytes listedAt"},
		"error":       {ErrorBody{}, "kind message"},
	} {
		got := keys(t, c.v)
		for _, want := range strings.Fields(c.names) {
			if !slices.Contains(got, want) {
				t.Errorf("%s: no field %q in %v", name, want, got)
			}
		}
	}
}
