package order

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"stoker.dev"
)

func TestParse(t *testing.T) {
	for spec, want := range map[string]Sampler{
		"pytorch:seed=0,world=8":                   {World: 8},
		"pytorch:world=1":                          {World: 1},
		"pytorch:drop_last,world=64,seed=42":       {Seed: 42, World: 64, DropLast: true},
		"pytorch:seed=9223372036854775807,world=2": {Seed: 1<<63 - 1, World: 2},
	} {
		s, err := Parse(spec)
		if err != nil || s != want {
			t.Errorf("%s: %+v, %v", spec, s, err)
		}
		if again, err := Parse(s.String()); err != nil || again != s {
			t.Errorf("%s: written as %s, read as %+v, %v", spec, s, again, err)
		}
	}
	for spec, why := range map[string]string{
		"":                                "is not known",
		"tf:seed=0":                       "is not known",
		"pytorch":                         "lacks world=N",
		"pytorch:seed=0":                  "lacks world=N",
		"pytorch:seed=-1,world=2":         "seed=-1",
		"pytorch:seed=x,world=2":          "seed=x",
		"pytorch:seed=0,world=0":          "world=0",
		"pytorch:seed=0,world=2,":         `the key ""`,
		"pytorch:seed=0,world=2,world=2":  "says world twice",
		"pytorch:seed=0,world=2,epochs=3": `the key "epochs"`,
		"pytorch:world=2,drop_last=true":  "drop_last has no value",
		"pytorch:world=2," + string(make([]byte, 1<<10)): "is not known",
	} {
		if _, err := Parse(spec); stoker.KindOf(err) != stoker.KindInvalid || !strings.Contains(err.Error(), why) || len(err.Error()) > 1000 {
			t.Errorf("%.40q: %v", spec, err)
		}
	}
}

// The orders are those of PyTorch: testdata/orders.py recorded them.
func TestOrdersAreThoseOfPyTorch(t *testing.T) {
	f, err := os.Open("testdata/orders.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cases := 0
	for lines := bufio.NewScanner(f); lines.Scan(); cases++ {
		var n, rank, drop, count int
		var epoch uint64
		var s Sampler
		var digest string
		if _, err := fmt.Sscan(lines.Text(), &n, &s.Seed, &epoch, &s.World, &rank, &drop, &count, &digest); err != nil {
			t.Fatalf("%v: %s", err, lines.Text())
		}
		s.DropLast = drop == 1
		all := s.Permutation(n, epoch)
		var got []byte
		for step := range s.Steps(n) {
			got = binary.LittleEndian.AppendUint32(got, s.At(all, rank, step))
		}
		if sum := fmt.Sprintf("%x", sha256.Sum256(got)); len(got)/4 != count || sum != digest {
			t.Errorf("%d samples of %s; recorded %s", len(got)/4, sum, lines.Text())
		}
	}
	if cases < 200 {
		t.Errorf("%d cases", cases)
	}
}

// A part of a deal is the beginning of the whole, whatever was dealt before.
func TestDealsBeginAlike(t *testing.T) {
	s := Sampler{Seed: 3, World: 1}
	for _, n := range []int{1, 2, 9, 1000, 5000} {
		d := NewDeck(n)
		for i, most := range []int{1, n / 16, n, n / 10, n/8 - 1, 7, n + 1, n / 2} {
			want := s.Permutation(n, uint64(i))
			if got := d.Deal(s, uint64(i), max(most, 0)); !slices.Equal(got, want[:min(max(most, 0), n)]) {
				t.Errorf("%d of %d, deal %d: %v", most, n, i, got[:min(5, len(got))])
			}
		}
	}
}

func BenchmarkPermutation(b *testing.B) {
	for _, n := range []int{50_000, 1_281_167, 10_000_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			d, s := NewDeck(n), Sampler{World: 8}
			for b.Loop() {
				d.Deal(s, 1, n)
			}
		})
	}
}
