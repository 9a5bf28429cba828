package planner

import (
	"encoding/binary"
	"hash/crc32"
	"slices"

	"stoker.dev"
)

// Plan says which worker owns which shard of a manifest. It is stored as a
// blob and known by its hash; part k of it is what worker k has to load: its
// shards, or of a plan that mends another one, those of them that Mended names.
type Plan struct {
	Dataset    string
	Generation int
	Manifest   stoker.ID
	Replicas   int
	Round      int64 // sets plans of one placement apart: what a load has cost is counted by plan
	Workers    []PlanWorker
	Owners     [][]uint16 // for each shard its workers, the owner first
	Mended     []uint32   // sorted; nil: all shards
	Select     string     // of the objects, as api.Selection has it; "": all
	Nodes      []uint16   // workers that have to hold every shard, sorted: nobody takes over for them; nil: none
}

// PlanWorker is one worker of a plan.
type PlanWorker struct {
	ID      string
	Address string // base URL when the plan was made
}

const (
	planMagic = "STKPLN1\n"
	planKind  = 6 // bytes of it that every format has
	maxString = 4096
)

// Encode makes the plan's bytes; equal plans have equal bytes.
func (p *Plan) Encode() []byte {
	b := []byte(planMagic)
	str := func(s string) {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	str(p.Dataset)
	b = binary.AppendUvarint(b, uint64(p.Generation))
	b = append(b, p.Manifest[:]...)
	b = binary.AppendUvarint(b, uint64(p.Replicas))
	b = binary.AppendUvarint(b, uint64(p.Round))
	b = binary.AppendUvarint(b, uint64(len(p.Workers)))
	for _, w := range p.Workers {
		str(w.ID)
		str(w.Address)
	}
	b = binary.AppendUvarint(b, uint64(len(p.Owners)))
	for _, owners := range p.Owners {
		b = binary.AppendUvarint(b, uint64(len(owners)))
		for _, w := range owners {
			b = binary.AppendUvarint(b, uint64(w))
		}
	}
	switch { // what a plan does not have stands in none of an earlier release
	case p.Mended != nil:
		b = binary.AppendUvarint(b, uint64(len(p.Mended))+1)
		for _, n := range p.Mended {
			b = binary.AppendUvarint(b, uint64(n))
		}
	case p.Nodes != nil || p.Select != "":
		b = binary.AppendUvarint(b, 0)
	}
	if p.Nodes != nil || p.Select != "" {
		b = binary.AppendUvarint(b, uint64(len(p.Nodes)))
		for _, w := range p.Nodes {
			b = binary.AppendUvarint(b, uint64(w))
		}
	}
	if p.Select != "" {
		str(p.Select)
	}
	return binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
}

// decoder reads a plan; after the first damage all reads give zero.
type decoder struct {
	b   []byte
	bad bool
}

// num reads a number up to limit.
func (d *decoder) num(limit uint64) int {
	v, n := binary.Uvarint(d.b)
	if n <= 0 || v > limit {
		d.bad, d.b = true, nil
		return 0
	}
	d.b = d.b[n:]
	return int(v)
}

func (d *decoder) take(n int) []byte {
	if n > len(d.b) {
		d.bad, d.b = true, nil
		return make([]byte, min(n, maxString))
	}
	v := d.b[:n]
	d.b = d.b[n:]
	return v
}

func (d *decoder) str() string { return string(d.take(d.num(maxString))) }

// DecodePlan reads what Encode made; a whole plan of another format is Invalid,
// anything else Corrupt.
func DecodePlan(b []byte) (*Plan, error) {
	corrupt := func(what string) (*Plan, error) {
		return nil, stoker.Errorf(stoker.KindCorrupt, "plan.decode", "", "%s", what)
	}
	if len(b) < len(planMagic)+4 || string(b[:planKind]) != planMagic[:planKind] {
		return corrupt("is no plan")
	}
	body := b[:len(b)-4]
	if crc32.ChecksumIEEE(body) != binary.LittleEndian.Uint32(b[len(b)-4:]) {
		return corrupt("is damaged")
	}
	if string(b[:len(planMagic)]) != planMagic {
		return nil, stoker.Errorf(stoker.KindInvalid, "plan.decode", "", "has a format that this program does not know: upgrade it")
	}
	d := &decoder{b: body[len(planMagic):]}
	p := &Plan{Dataset: d.str(), Generation: d.num(1 << 40)}
	copy(p.Manifest[:], d.take(len(p.Manifest)))
	p.Replicas = d.num(1 << 16)
	p.Round = int64(d.num(1<<63 - 1))
	workers := d.num(min(1<<16, uint64(len(d.b))))
	for range workers {
		p.Workers = append(p.Workers, PlanWorker{ID: d.str(), Address: d.str()})
	}
	shards := d.num(uint64(len(d.b)))
	p.Owners = d.owners(shards, workers)
	if len(d.b) > 0 && !d.bad {
		p.Mended = d.mended(shards)
		if len(d.b) == 0 && p.Mended == nil {
			d.bad = true // a plan without either ends before
		}
	}
	if len(d.b) > 0 && !d.bad {
		p.Nodes = d.nodes(workers)
	}
	if len(d.b) > 0 && !d.bad {
		p.Select = d.str()
		d.bad = d.bad || p.Select == ""
	}
	if d.bad || len(d.b) != 0 {
		return corrupt("breaks off or has too much")
	}
	return p, nil
}

// owners reads the workers of each shard. They share pieces of memory, which
// are made as they are needed: what a damaged plan says is not believed.
func (d *decoder) owners(shards, workers int) [][]uint16 {
	out := make([][]uint16, shards)
	flat := []uint16{}
	for i := range out {
		n := d.num(min(uint64(workers), uint64(len(d.b))))
		if cap(flat)-len(flat) < n {
			flat = make([]uint16, 0, max(n, min(ownersAtOnce, len(d.b))))
		}
		from := len(flat)
		for range n {
			w := d.num(1<<16 - 1)
			if w >= workers {
				d.bad, w = true, 0
			}
			flat = append(flat, uint16(w))
		}
		out[i] = flat[from:len(flat):len(flat)]
	}
	return out
}

// ownersAtOnce is for how many owners memory is taken at a time.
const ownersAtOnce = 1 << 16

// nodes reads the workers that have to hold every shard.
func (d *decoder) nodes(workers int) []uint16 {
	count := d.num(min(uint64(workers), uint64(len(d.b))))
	if count == 0 { // then none of it is written, but before a selection
		d.bad = d.bad || len(d.b) == 0
		return nil
	}
	out := make([]uint16, count)
	for i := range out {
		w := d.num(1<<16 - 1)
		if w >= workers || i > 0 && uint16(w) <= out[i-1] {
			d.bad = true
			return nil
		}
		out[i] = uint16(w)
	}
	return out
}

// mended reads the shards of a plan that mends another one; nil for one that
// mends none.
func (d *decoder) mended(shards int) []uint32 {
	count := d.num(uint64(len(d.b))) - 1
	if count == -1 && !d.bad {
		return nil
	}
	if count < 0 || count > shards {
		d.bad = true
		return nil
	}
	out := make([]uint32, count)
	for i := range out {
		out[i] = uint32(d.num(uint64(shards)))
		if int(out[i]) >= shards || i > 0 && out[i] <= out[i-1] {
			d.bad = true
			return nil
		}
	}
	return out
}

// Part returns the shards that worker number part has to hold, in order.
func (p *Plan) Part(part int) []uint32 {
	var out []uint32
	add := func(n uint32) {
		if slices.Contains(p.Owners[n], uint16(part)) {
			out = append(out, n)
		}
	}
	if p.Mended != nil {
		for _, n := range p.Mended {
			add(n)
		}
		return out
	}
	for n := range p.Owners {
		add(uint32(n))
	}
	return out
}

// Parts returns the numbers of the workers that have something to load.
func (p *Plan) Parts() []int {
	any := make([]bool, len(p.Workers))
	note := func(n uint32) {
		for _, w := range p.Owners[n] {
			any[w] = true
		}
	}
	if p.Mended != nil {
		for _, n := range p.Mended {
			note(n)
		}
	} else {
		for n := range p.Owners {
			note(uint32(n))
		}
	}
	var out []int
	for k := range any {
		if any[k] {
			out = append(out, k)
		}
	}
	return out
}

// SetOwners takes over what Place returned. All owners lie in one piece of
// memory: a plan may have millions of shards.
func (p *Plan) SetOwners(owners [][]int) {
	total := 0
	for _, ws := range owners {
		total += len(ws)
	}
	flat := make([]uint16, 0, total)
	p.Owners = make([][]uint16, len(owners))
	for n, ws := range owners {
		from := len(flat)
		for _, w := range ws {
			flat = append(flat, uint16(w))
		}
		p.Owners[n] = flat[from:len(flat):len(flat)]
	}
}
