package planner

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"stoker.dev"
)

func somePlan(r *rand.Rand, workers, shards, replicas int) (*Plan, []Shard) {
	p := &Plan{Dataset: "imagenet", Generation: 3, Manifest: randomID(r), Replicas: replicas, Round: r.Int64()}
	for i := range workers {
		p.Workers = append(p.Workers, PlanWorker{ID: fmt.Sprintf("w%d", i), Address: fmt.Sprintf("http://10.0.0.%d:7", i)})
	}
	for range shards {
		var owners []uint16
		for _, w := range r.Perm(workers)[:replicas] {
			owners = append(owners, uint16(w))
		}
		p.Owners = append(p.Owners, owners)
	}
	return p, someShards(r, shards, packs)
}

func TestPlanRoundTrip(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	big, _ := somePlan(r, 100, 3000, 2)
	mended, _ := somePlan(r, 5, 50, 1)
	mended.Mended = []uint32{0, 7, 49}
	none, _ := somePlan(r, 5, 50, 1)
	none.Mended = []uint32{}
	local, _ := somePlan(r, 5, 50, 5)
	local.Nodes = []uint16{1, 4}
	localMended, _ := somePlan(r, 5, 50, 5)
	localMended.Nodes, localMended.Mended = []uint16{0}, []uint32{3}
	some, _ := somePlan(r, 5, 50, 1)
	some.Select = `{"paths":["train"]}`
	someLocal, _ := somePlan(r, 5, 50, 1)
	someLocal.Select, someLocal.Nodes, someLocal.Mended = "x", []uint16{2}, []uint32{1}
	for name, p := range map[string]*Plan{
		"selected":         some,
		"selected, mended": someLocal,
		"on nodes":         local,
		"mended on nodes":  localMended,
		"large":            big,
		"mends another":    mended,
		"mends nothing":    none,
		"nothing":          {Owners: [][]uint16{}},
		"extremes":         {Dataset: strings.Repeat("x", maxString), Generation: 1 << 40, Replicas: 1 << 16, Round: math.MaxInt64, Owners: [][]uint16{}},
		"no worker yet":    {Dataset: "a", Owners: [][]uint16{{}, {}}},
		"bytes, not UTF-8": {Dataset: "s3://b/\xff\x00", Workers: []PlanWorker{{ID: "\x80"}}, Owners: [][]uint16{{0}}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := DecodePlan(p.Encode())
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, p) {
				t.Errorf("got %+v\nwant %+v", got, p)
			}
			if !bytes.Equal(got.Encode(), p.Encode()) {
				t.Error("equal plans have different bytes")
			}
		})
	}
	if n := len(big.Encode()); n > 16<<10 {
		t.Errorf("100 workers and 3000 shards take %d bytes", n)
	}
}

// sealed gives bytes the checksum that they should have.
func sealed(body []byte) []byte {
	return binary.LittleEndian.AppendUint32(slices.Clone(body), crc32.ChecksumIEEE(body))
}

func checkDamaged(t *testing.T, what string, b []byte) {
	t.Helper()
	p, err := DecodePlan(b)
	if err != nil {
		if stoker.KindOf(err) != stoker.KindCorrupt || p != nil {
			t.Fatalf("%s: %v, kind %s", what, err, stoker.KindOf(err))
		}
		return
	}
	for _, k := range p.Parts() { // what decodes can be used
		p.Part(k)
	}
	for i, n := range p.Mended {
		_ = p.Owners[n]
		if i > 0 && n <= p.Mended[i-1] {
			t.Fatalf("%s: mended %v are in no order", what, p.Mended)
		}
	}
	for _, owners := range p.Owners {
		for _, w := range owners {
			_ = p.Workers[w]
		}
	}
}

// Damage is found by the checksum; and where the checksum is right, because
// somebody made such bytes, nothing panics or takes much memory.
func TestDamagedPlans(t *testing.T) {
	r := rand.New(rand.NewPCG(8, 8))
	p, _ := somePlan(r, 6, 40, 2)
	p.Mended = []uint32{1, 2, 30}
	damagePlan(t, r, p.Encode())
	p.Nodes = []uint16{0, 5}
	damagePlan(t, r, p.Encode())
}

func damagePlan(t *testing.T, r *rand.Rand, good []byte) {
	t.Helper()
	for n := range len(good) {
		if _, err := DecodePlan(good[:n]); stoker.KindOf(err) != stoker.KindCorrupt || err == nil {
			t.Fatalf("the first %d bytes: %v", n, err)
		}
		for bit := range 8 {
			b := slices.Clone(good)
			b[n] ^= 1 << bit
			if _, err := DecodePlan(b); stoker.KindOf(err) != stoker.KindCorrupt || err == nil {
				t.Fatalf("bit %d of byte %d: %v", bit, n, err)
			}
		}
	}
	body := good[:len(good)-4]
	for n := len(planMagic); n < len(body); n++ {
		checkDamaged(t, "cut off", sealed(body[:n]))
		for range 20 {
			b := slices.Clone(body)
			for range 1 + r.IntN(4) {
				b[n+r.IntN(len(b)-n)] = byte(r.Uint32())
			}
			checkDamaged(t, "changed", sealed(b))
		}
	}
	for range 20000 {
		b := append([]byte(planMagic), make([]byte, r.IntN(200))...)
		for i := len(planMagic); i < len(b); i++ {
			b[i] = byte(r.Uint32()) >> r.IntN(8)
		}
		checkDamaged(t, "random", sealed(b))
	}
	if _, err := DecodePlan(append(good, 0)); stoker.KindOf(err) != stoker.KindCorrupt || err == nil {
		t.Errorf("a byte too many: %v", err)
	}
	if _, err := DecodePlan(sealed(append(slices.Clone(body), 0))); stoker.KindOf(err) != stoker.KindCorrupt || err == nil {
		t.Errorf("a field too many: %v", err)
	}
}

func FuzzDecodePlan(f *testing.F) {
	p, _ := somePlan(rand.New(rand.NewPCG(8, 8)), 6, 40, 2)
	f.Add(p.Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		checkDamaged(t, "as it is", b)
		checkDamaged(t, "sealed", sealed(append([]byte(planMagic), b...)))
	})
}

// covered counts how often the parts of a plan name each shard.
func covered(p *Plan, shards int) []int {
	count := make([]int, shards)
	for _, k := range p.Parts() {
		for _, n := range p.Part(k) {
			count[n]++
		}
	}
	return count
}

func TestPartsCoverThePlan(t *testing.T) {
	r := rand.New(rand.NewPCG(6, 6))
	p, _ := somePlan(r, 7, 100, 3)
	p.Workers = append(p.Workers, PlanWorker{ID: "idle"})
	for n, c := range covered(p, 100) {
		if c != 3 {
			t.Errorf("shard %d is in %d parts, want 3", n, c)
		}
	}
	if parts := p.Parts(); !slices.Equal(parts, []int{0, 1, 2, 3, 4, 5, 6}) {
		t.Errorf("parts %v: the idle worker has none", parts)
	}
	p.Mended = []uint32{3, 50}
	for n, c := range covered(p, 100) {
		if want := map[int]int{3: 3, 50: 3}[n]; c != want {
			t.Errorf("mended: shard %d is in %d parts, want %d", n, c, want)
		}
	}
}

func TestWaves(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	p, shards := somePlan(r, 4, 500, 2)
	for _, limit := range []int64{1, 100 * mib, 1 << 30, 1 << 50} {
		for _, part := range p.Parts() {
			waves := p.Waves(part, shards, limit)
			if got := slices.Concat(waves...); !slices.Equal(got, p.Part(part)) {
				t.Fatalf("the waves are not the part: %v", got)
			}
			bytes := func(wave []uint32) (sum int64) {
				for _, n := range wave {
					sum += shards[n].Bytes
				}
				return sum
			}
			for i, wave := range waves {
				if b := bytes(wave); b > limit && len(wave) > 1 {
					t.Errorf("limit %d: a wave of %d shards has %d bytes", limit, len(wave), b)
				}
				if i > 0 && bytes(waves[i-1])+shards[wave[0]].Bytes <= limit {
					t.Errorf("limit %d: wave %d could have been longer", limit, i-1)
				}
			}
		}
	}
	for i := range shards {
		shards[i].Bytes = 64 * mib
	}
	if got := p.Waves(0, shards, 128*mib); len(got) != (len(p.Part(0))+1)/2 {
		t.Errorf("two shards fill a wave exactly: %d waves for %d", len(got), len(p.Part(0)))
	}
	if got := p.Waves(99, shards, 1<<30); got != nil {
		t.Errorf("waves of a part that does not exist: %v", got)
	}
}

func TestMend(t *testing.T) {
	r := rand.New(rand.NewPCG(11, 11))
	p, shards := somePlan(r, 8, 300, 2)
	others := func(free int64) (ws []Worker, addresses []string) {
		for i := 1; i < 8; i++ {
			ws, addresses = append(ws, Worker{ID: p.Workers[i].ID, FreeBytes: free}), append(addresses, "http://new")
		}
		return append(ws, Worker{ID: "joined", FreeBytes: free}), append(addresses, "http://joined")
	}
	begun := func(n uint32) bool { return n%3 == 0 }
	none := func(uint32) bool { return false }
	for name, c := range map[string]struct {
		keep        func(uint32) bool
		free        int64
		moved, kept bool
	}{
		"what is begun waits":  {begun, 1 << 40, true, true},
		"it will not return":   {none, 1 << 40, true, false},
		"all is begun":         {func(uint32) bool { return true }, 1 << 40, false, true},
		"nobody has space":     {none, 0, false, true},
		"they have some space": {none, 256 * mib, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			ws, addresses := others(c.free)
			before := p.Encode()
			m := Mend(p, shards, MendOptions{Lost: 0, Keep: c.keep, Round: 77, Workers: ws, Addresses: addresses})
			if (m.Moved != nil) != c.moved || (m.Kept != nil) != c.kept {
				t.Fatalf("moved %v, kept %v", m.Moved != nil, m.Kept != nil)
			}
			if !bytes.Equal(before, p.Encode()) {
				t.Error("the plan itself was changed")
			}
			checkMended(t, p, m, shards, c.keep, c.free)
		})
	}
}

// checkMended checks that a mending divides the lost worker's part.
func checkMended(t *testing.T, p *Plan, m Mending, shards []Shard, keep func(uint32) bool, free int64) {
	t.Helper()
	var both []uint32
	load := map[uint16]int64{}
	if m.Moved != nil {
		both = append(both, m.Moved.Mended...)
		for _, n := range m.Moved.Mended {
			was, now := p.Owners[n], m.Moved.Owners[n]
			at := slices.Index(was, 0)
			if keep(n) || slices.Contains(now, 0) || len(now) != len(was) || now[0] == now[1] || now[1-at] != was[1-at] {
				t.Errorf("shard %d moved from %v to %v", n, was, now)
			}
			load[now[at]] += shards[n].Bytes
		}
		if m.Moved.Round != 77 || m.Moved.Workers[8].ID != "joined" || m.Moved.Workers[1].Address != "http://new" || len(m.Moved.Part(8)) == 0 {
			t.Errorf("plan of what moved: round %d, workers %v, the new one has %d", m.Moved.Round, m.Moved.Workers, len(m.Moved.Part(8)))
		}
	}
	if m.Kept != nil {
		both = append(both, m.Kept.Mended...)
		if !slices.Equal(m.Kept.Part(0), m.Kept.Mended) {
			t.Error("what is kept is not the lost worker's")
		}
	}
	slices.Sort(both)
	if !slices.Equal(both, p.Part(0)) {
		t.Errorf("%d of %d shards are moved or kept", len(both), len(p.Part(0)))
	}
	for w, b := range load {
		if b > free {
			t.Errorf("worker %d got %d bytes, free are %d", w, b, free)
		}
	}
}

// A plan of another format is told from a damaged one.
func TestUnknownPlanFormatIsRefused(t *testing.T) {
	b := (&Plan{Dataset: "d", Replicas: 1}).Encode()
	copy(b, "STKPLN2\n")
	if _, err := DecodePlan(sealed(b[:len(b)-4])); stoker.KindOf(err) != stoker.KindInvalid || err == nil {
		t.Errorf("%v", err)
	}
}
